"""Who is at the other end of a connection that stays."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Any

__all__ = ["Identity"]


@dataclass(frozen=True, slots=True)
class Identity:
    """What `authorize` may say of a caller.

    `user` is what lists and kicks go by. `token` names the credential (its id, never the credential itself), so that it can be
    revoked. At `expires_at`, in seconds since the epoch, the connection is closed with 1008. `claims` is the application's.

    Raises `TypeError` for an `expires_at` that is no number, and `ValueError` for one that is no moment (None is never).
    """

    user: str
    token: str = ""
    expires_at: float | None = None
    claims: Any = None

    def __post_init__(self) -> None:
        ends = self.expires_at
        if ends is None:
            return
        if not isinstance(ends, int | float):
            raise TypeError(f"expires_at={ends!r}: give seconds since the epoch, as time.time() has them")
        if not isfinite(ends):
            raise ValueError(f"expires_at={ends!r}: give seconds since the epoch, or None for never")
