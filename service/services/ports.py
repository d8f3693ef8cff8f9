"""What the services need from outside, as Protocols. `service.data` and `service.clients` implement them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from longconn.channels.ports import History, Position
from service.model import Page, Participant, Role, User

__all__ = [
    "Backend",
    "BackendResponse",
    "Channels",
    "Decision",
    "Limiter",
    "PasswordHasher",
    "TicketSigner",
    "TokenSigner",
    "UserRepository",
    "Users",
]


class UserRepository(Protocol):
    """Users at rest. Every method is one transaction. Raises `DatabaseBusy` (503) when the database does not take
    it in time and `DatabaseFailed` (500) when it fails."""

    def get(self, user_id: int) -> User | None:
        """The user, or None."""

    def credentials(self, name: str) -> tuple[User, str] | None:
        """The user of that name (names compare without case) with its password hash, or None."""

    def page(self, after: int, size: int) -> Page:
        """Up to `size` users with an id above `after`, by id."""

    def add(self, *, name: str, email: str, role: Role, password_hash: str) -> User:
        """Store a new user. Raises `Conflict` when name or email is taken, naming which."""

    def change(self, user_id: int, version: int | None, changes: Mapping[str, str]) -> User | None:
        """Apply `changes` (name, email, role, password_hash) if the stored version equals `version` (None: whatever
        it is). None when there is no such user; raises `PreconditionFailed` on another version, `Conflict` as `add` and
        when the last admin would be one no longer: only the transaction can know."""

    def remove(self, user_id: int, version: int | None) -> bool:
        """Delete the user under the same version rule. False when there is no such user; raises `Conflict` for the last
        admin."""


class Users(Protocol):
    """Who is a user at present."""

    def present(self, who: Participant) -> Participant:
        """`who`, with the role that they have now. Raises `Unauthenticated` when they are a user who is gone."""


class PasswordHasher(Protocol):
    """Slow, salted password hashing, off the event loop. Raises `Overloaded` when its queue is full."""

    def hash(self, password: str) -> str:
        """The salted hash, in PHC string format."""

    def verify(self, password_hash: str | None, password: str) -> bool:
        """Whether the password matches. None (no such user) costs the same time and is False."""


class TokenSigner(Protocol):
    """Bearer tokens."""

    def issue(self, user: User) -> tuple[str, int]:
        """A signed token and its lifetime in seconds."""


@dataclass(frozen=True, slots=True)
class BackendResponse:
    """A backend's answer: status and headers at once, the body as it arrives. `body` must be exhausted or closed."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: Iterator[bytes]


class Backend(Protocol):
    """One configured backend, guarded by its own circuit breaker."""

    def forward(self, method: str, target: str, headers: tuple[tuple[str, str], ...], body: bytes) -> BackendResponse:
        """Send the request to `target` (path and query below the backend's base URL, already encoded).

        Raises `CircuitIsOpen`, `BackendFailed`, `BackendTimedOut` or `BackendSaturated`.
        """


class Decision(Protocol):
    """Whether somebody may, and else after how many seconds (None: never)."""

    @property
    def allowed(self) -> bool: ...
    @property
    def retry_after(self) -> float | None: ...


class Limiter(Protocol):
    """A rate limit."""

    def try_acquire(self, key: str) -> Decision:
        """Take one from the bucket of `key`, if it holds one."""


class TicketSigner(Protocol):
    """One-time tickets for connections that stay."""

    def issue(self, participant: Participant) -> tuple[str, int]:
        """A ticket for `participant` and its lifetime in seconds."""

    def redeem(self, ticket: str) -> Participant:
        """Who it was issued for, once. Raises `Unauthenticated` when it does not hold."""

    def guest(self, visitor: str) -> Participant:
        """The guest who comes with `visitor`, a text that only they know."""


class Channels(Protocol):
    """Messages for whoever hears a channel, on every worker, and what was said before. Raises `ChannelError`s of
    `longconn.channels.errors`."""

    def publish(self, channel: str, data: str, *, event: str = "", key: str = "") -> Position:
        """Have all subscribers hear `data`, and return where it stands in the channel."""

    def history(self, channel: str, since: Position | None = None, most: int | None = None) -> History:
        """What is still held after `since`, at most the newest `most`."""
