"""What a rate limiter counts, and how often a limit in shadow mode speaks."""

from __future__ import annotations

import logging
import math
from typing import NamedTuple

from resilience.ports import Clock

__all__ = ["LimiterSnapshot", "ShadowLog", "Tally"]

_LOG = logging.getLogger(__name__)
_QUIET = 1.0


class LimiterSnapshot(NamedTuple):
    """A rate limiter as this process sees it. Counts are of calls, since the process started.

    `allowed` and `denied` are decisions that counted; `shadow_denied` were let through and would have been denied without
    the shadow mode; `waited` were allowed and had to wait for their turn; `exempted` were no concern of the limit.
    """

    name: str
    limits: tuple[str, ...]
    storage: str
    allowed: int
    denied: int
    shadow_denied: int = 0
    waited: int = 0
    exempted: int = 0


class Tally:
    """Decisions of one policy. Plain additions: exact under greenlets; under threads two that coincide may count once."""

    __slots__ = ("allowed", "denied", "exempted", "shadow_denied", "waited")

    def __init__(self) -> None:
        self.allowed = 0
        self.denied = 0
        self.shadow_denied = 0
        self.waited = 0
        self.exempted = 0


class ShadowLog:
    """Says what a limit in shadow mode would have refused: at most once a second, with how many there were."""

    def __init__(self, name: str, clock: Clock) -> None:
        self._name = name
        self._clock = clock
        self._spoke_at = -math.inf
        self._unsaid = 0

    def refused(self) -> None:
        """One more call that would have been refused."""
        self._unsaid += 1
        now = self._clock.seconds()
        if now - self._spoke_at < _QUIET:
            return
        count, self._unsaid, self._spoke_at = self._unsaid, 0, now
        _LOG.warning(
            "rate limit %r is in shadow mode and would have refused %d call%s",
            self._name,
            count,
            "s" if count > 1 else "",
        )
