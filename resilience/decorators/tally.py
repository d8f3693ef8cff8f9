"""What a rate limiter counts, what it tells of its refusals, and how often a limit in shadow mode speaks."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Final, NamedTuple

from resilience.clock import epoch_seconds
from resilience.core.coalescing import Coalescing, Said
from resilience.core.events import LimitExceeded
from resilience.core.limiter import Decision
from resilience.core.top import Top
from resilience.events import PROCESS_EVENTS
from resilience.ports import Clock

__all__ = ["LimiterSnapshot", "ShadowLog", "Tally"]

_LOG = logging.getLogger(__name__)
_QUIET = 1.0
_SHOWN: Final = 20
"""Keys that a snapshot names."""


class LimiterSnapshot(NamedTuple):
    """A rate limiter as this process sees it. Counts are of calls, since the process started.

    `allowed` and `denied` are decisions that counted; `shadow_denied` were let through and would have been denied without
    the shadow mode; `waited` were allowed and had to wait for their turn; `exempted` were no concern of the limit. `waiting`
    are those who wait for their turn now. `top` are the keys that were refused the most often, or would have been, in the last
    five to ten minutes, the most frequent first.
    """

    name: str
    limits: tuple[str, ...]
    storage: str
    allowed: int
    denied: int
    shadow_denied: int = 0
    waited: int = 0
    exempted: int = 0
    waiting: int = 0
    top: Sequence[Top] = ()


class Tally:
    """Decisions of one policy. Plain additions: exact under greenlets; under threads two that coincide may count once.

    Refusals are told to `PROCESS_EVENTS`: at most once a second for each key, and for at most twenty keys a second one by one.
    """

    __slots__ = (
        "_name", "_refusals", "_seconds", "_shadow", "allowed", "denied", "exempted", "shadow_denied", "waited", "waiting",
    )  # fmt: skip

    def __init__(self, name: str, clock: Clock) -> None:
        self.allowed = 0
        self.denied = 0
        self.shadow_denied = 0
        self.waited = 0
        self.exempted = 0
        self.waiting = 0
        self._name = name
        self._seconds = clock.seconds
        self._refusals = Coalescing()
        self._shadow = False

    def refused(self, subject: str, decision: Decision) -> None:
        """One more call of `subject` was refused by this `decision`."""
        self.denied += 1
        said = self._refusals.add(subject, self._seconds())
        if said or PROCESS_EVENTS.wants_refusals:
            self._tell(said, subject, decision, shadow=False)

    def would_have_refused(self, subject: str, decision: Decision) -> None:
        """One more call of `subject` would have been refused by this `decision`, but for the shadow mode."""
        self.shadow_denied += 1
        said = self._refusals.add(subject, self._seconds())
        if said or PROCESS_EVENTS.wants_refusals:
            self._tell(said, subject, decision, shadow=True)

    def top(self) -> list[Top]:
        """Who was refused the most often lately. Tells what was left to be told of refusals."""
        now = self._seconds()
        for key, times, _ in self._refusals.leftovers(now):
            PROCESS_EVENTS.emit(self._event(key, times, None, shadow=self._shadow))
        return self._refusals.top(_SHOWN, now)

    def _tell(self, said: Sequence[Said], subject: str, decision: Decision, *, shadow: bool) -> None:
        self._shadow = shadow
        wait = decision.retry_after
        if PROCESS_EVENTS.wants_refusals:
            PROCESS_EVENTS.emit_each(self._event(subject, 1, wait, shadow=shadow))
        for key, times, is_present in said:
            PROCESS_EVENTS.emit(self._event(key, times, wait if is_present else None, shadow=shadow))

    def _event(self, key: str, count: int, retry_after: float | None, *, shadow: bool) -> LimitExceeded:
        return LimitExceeded(
            policy=self._name, at=epoch_seconds(), key=key, count=count, retry_after=retry_after, shadow=shadow
        )


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
