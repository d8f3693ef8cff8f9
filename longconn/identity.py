"""Who is at the other end of a connection that stays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Identity"]


@dataclass(frozen=True, slots=True)
class Identity:
    """What `authorize` may say of a caller.

    `user` is what lists and kicks go by. `token` names the credential (its id, never the credential itself), so that it can be
    revoked. At `expires_at`, in seconds since the epoch, the connection is closed with 1008. `claims` is the application's.
    """

    user: str
    token: str = ""
    expires_at: float | None = None
    claims: Any = None
