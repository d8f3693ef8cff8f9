"""Why connections close: the numbers of `scoreboard.CLOSE_REASONS`."""

from __future__ import annotations

from typing import Final

from longconn.scoreboard import CLOSE_REASONS

__all__ = [
    "ANSWERED", "BODY_TIMEOUT", "CLIENT", "DRAIN", "ERROR", "EVICTED", "HANDSHAKE_TIMEOUT", "HEAD_TIMEOUT", "IDLE", "INVALID",
    "KILLED", "MAXIMUM_REQUESTS", "RESET",
]  # fmt: skip

CLIENT: Final = CLOSE_REASONS.index("client")
ANSWERED: Final = CLOSE_REASONS.index("answered")
RESET: Final = CLOSE_REASONS.index("reset")
HANDSHAKE_TIMEOUT: Final = CLOSE_REASONS.index("handshake timeout")
HEAD_TIMEOUT: Final = CLOSE_REASONS.index("head timeout")
BODY_TIMEOUT: Final = CLOSE_REASONS.index("body timeout")
WRITE_TIMEOUT: Final = CLOSE_REASONS.index("write timeout")
IDLE: Final = CLOSE_REASONS.index("idle")
EVICTED: Final = CLOSE_REASONS.index("evicted")
REFUSED: Final = CLOSE_REASONS.index("refused")
INVALID: Final = CLOSE_REASONS.index("invalid")
MAXIMUM_REQUESTS: Final = CLOSE_REASONS.index("maximum requests")
DRAIN: Final = CLOSE_REASONS.index("drain")
KILLED: Final = CLOSE_REASONS.index("killed")
ERROR: Final = CLOSE_REASONS.index("error")
