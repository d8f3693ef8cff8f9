"""What the library needs from its surroundings, as Protocols."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

from resilience.core.limiter import Charge, Decision, Limit, Refund

if TYPE_CHECKING:
    from resilience.errors import RateLimited

__all__ = [
    "Change",
    "Clock",
    "Following",
    "LimitStorage",
    "Messenger",
    "QuickStorage",
    "Scope",
    "Stance",
    "StateStorage",
    "Stored",
    "Taker",
]

Stance = Literal["enforce", "shadow", "skip"]
"""What the surroundings want of limits: enforce them; decide, count and log but reject nothing; or leave the call alone."""

Taker = Callable[[str, int], Decision]
"""Decides one charge: takes the subject and the cost in tokens."""


T = TypeVar("T")


class Stored(NamedTuple):
    """A record as it was at `now`, which is in seconds of the storage's clock; `text` is None where there is none."""

    text: bytes | None
    now: float


Change = Callable[[bytes | None, float], tuple[bytes | None, T]]
"""What becomes of a record: takes its text (None: there is none) and the time in seconds of the storage's clock, returns the
new text (the same object: nothing is written; None: it is removed) and an answer. It does no I/O, and may be called again when
somebody else was faster."""


class Clock(Protocol):
    """A clock that never goes backwards. Only differences mean anything."""

    def seconds(self) -> float:
        """Seconds since some fixed moment."""

    def microseconds(self) -> int:
        """Whole microseconds since some fixed moment."""

    def sleep(self, seconds: float) -> None:
        """Return when so much time has passed. Under greenlets others run meanwhile."""


@runtime_checkable
class LimitStorage(Protocol):
    """Where buckets live. One call is one decision over all charges, atomic, all or nothing."""

    @property
    def uri(self) -> str:
        """What it is, without credentials: for the admin endpoint and the logs."""

    def take(self, charges: Sequence[Charge]) -> Decision:
        """Take every charge or none. Raises `StorageUnavailable` when no decision could be had in time."""

    def give_back(self, refunds: Sequence[Refund]) -> None:
        """Give tokens back, or fill buckets. Raises `StorageUnavailable` when that could not be had in time."""

    def close(self) -> None:
        """Give back connections. A closed storage may be used again and reconnects."""


@runtime_checkable
class QuickStorage(LimitStorage, Protocol):
    """A storage that decides one charge with less ado than `take` does: the path of nearly every request."""

    def taker(self, scope: str, limit: Limit, floor: int = 0, lease: int = 0) -> Taker:
        """What decides `take([Charge(scope, subject, limit, cost, floor, lease)])`, given the subject and the cost."""


class Scope(Protocol):
    """What the surroundings of a call supply: an application's storage, who is calling, what becomes of a refusal."""

    @property
    def storage(self) -> LimitStorage:
        """Where limits without a storage of their own keep their buckets."""

    def caller(self) -> str:
        """The key of a limit that names none: the client's address in a web request."""

    def method(self) -> str | None:
        """The HTTP method of the request; None outside of requests."""

    def stance(self) -> Stance:
        """What to do with this call; asked once for each decision."""

    def observe(self, policy: str, titles: tuple[str, ...], decision: Decision) -> None:
        """Told of every decision that counts, so that an edge can render it: one title for each quota of `decision`.

        `titles` is one and the same object for one policy, so that what is made of it can be kept.
        """

    def replacement(self, rejection: RateLimited) -> Any:
        """What a refused function returns when `on_breach` gave something."""

    def refuse(self, rejection: RateLimited) -> None:
        """Told of a refusal just before it is raised; may set `rejection.response`."""

    def settle(self, then: Callable[[Any], None]) -> bool:
        """Call `then` with the response of the current request when it is made. False, and no call, outside of requests."""


class Following(Protocol):
    """One record, watched. `cell[place]` is a number that changes whenever anybody has changed the record: in shared memory
    at once, over a network as soon as the news is there. Comparing it is all that a call on a closed circuit pays."""

    @property
    def cell(self) -> Sequence[int]:
        """Where the number is. One and the same object for as long as this process follows, also across a fork."""

    @property
    def place(self) -> int:
        """The number's index in `cell`."""

    def read(self) -> Stored:
        """The record as last heard of, without any I/O over a network. Raises `StorageUnavailable` when what was heard may
        be out of date, because the news do not arrive."""

    def close(self) -> None:
        """Stop following."""


@runtime_checkable
class StateStorage(Protocol):
    """Where processes keep small records that all of them know at once: circuits, and what operators have ordered.

    A record is a short text (4,000 bytes at most) under a name. Everything here is rare: calls on closed circuits do none of it
    but compare a number.
    """

    @property
    def uri(self) -> str:
        """What it is, without credentials: for the admin endpoint and the logs."""

    @property
    def spans_hosts(self) -> bool:
        """Whether several hosts meet here, so that none of them alone speaks for all."""

    def update(self, name: str, change: Change[T], *, keep: float) -> T:
        """Change the record `name`, atomically, and return the answer of `change`. Who follows it is told.

        The record is kept for `keep` seconds (above 0) after its last change at least, and forgotten some time after.
        Raises `StorageUnavailable` when that could not be had in time; it may have been changed nevertheless.
        """

    def read(self, name: str) -> Stored:
        """The record `name` as it is now. Raises `StorageUnavailable`."""

    def follow(self, name: str, told: Callable[[], None] | None = None) -> Following:
        """Follow the record `name`. `told`, where given, is called without arguments from another thread (or greenlet) after
        news have arrived, by storages that are told of them; where memory is shared, nobody is. Never raises
        `StorageUnavailable`: what cannot be reached now is followed as soon as it can."""

    def exchange(self, name: str, member: str, text: bytes, *, keep: float) -> dict[str, bytes]:
        """Leave `text` (500 bytes at most) under `name` for `member`, for `keep` seconds, and return what every member has
        left there, this one included. Raises `StorageUnavailable`."""

    def close(self) -> None:
        """Give back connections and threads. A closed storage may be used again and reconnects."""


@runtime_checkable
class Messenger(Protocol):
    """What a state storage that spans hosts is besides: a way to tell the processes of all of them something at once.

    A message reaches whoever listens at that moment, and nobody else; one may be lost while a connection is made anew.
    """

    def publish(self, topic: str, message: bytes) -> None:
        """Tell everybody who listens to `topic`, this process included. Raises `StorageUnavailable` when it could not be sent
        in time."""

    def listen(self, topic: str, told: Callable[[bytes], None]) -> Callable[[], None]:
        """Call `told` with every message on `topic` from now on, in a thread (or greenlet) of the storage's own, so it must
        not take long. Never raises `StorageUnavailable`: what cannot be reached now is listened to as soon as it can. Returns
        what ends it."""
