"""The values that the layers hand to each other. Frozen, free of SQL and HTTP."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

__all__ = ["Caller", "Page", "Role", "User"]

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
