"""The values that the layers hand to each other. Frozen, free of SQL and HTTP."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

__all__ = ["Caller", "Page", "Participant", "Role", "User", "user_name"]

Role = Literal["member", "admin"]


@dataclass(frozen=True, slots=True)
class User:
    """A person who may sign in. `version` grows by one with every change and is the strong ETag."""

    id: int
    name: str
    email: str
    role: Role
    version: int
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Page:
    """One page of users, oldest first. `next` is the cursor of the following page, None on the last."""

    users: tuple[User, ...]
    next: str | None


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is asking, as the token says: signature and expiry checked, the database not asked."""

    user_id: int
    role: Role


@dataclass(frozen=True, slots=True)
class Participant:
    """Who is at the other end of a connection that stays.

    `name` is what others see and what lists of connections go by: `user-7` for the user with that id, `guest-` and some
    letters for a guest of the demo, who is no user: `caller` is None. `token` names the credential that was shown (its id, so
    that it can be revoked), and `expires_at` is when that ends, in seconds since the epoch; None: never.
    """

    name: str
    caller: Caller | None = None
    token: str = ""
    expires_at: float | None = None

    @property
    def is_guest(self) -> bool:
        """Whether this is no user of the service."""
        return self.caller is None

    @property
    def is_admin(self) -> bool:
        """Whether this is a user who administers the service."""
        return self.caller is not None and self.caller.role == "admin"


def user_name(user_id: int) -> str:
    """What a `Participant` who is that user is called."""
    return f"user-{user_id}"
