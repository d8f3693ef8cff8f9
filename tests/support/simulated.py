"""Greenlets on a clock that a test moves: callers wait, are interrupted and go on at exact moments, in no time at all."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count

from greenlet import getcurrent, greenlet

from resilience.testing import FakeClock

__all__ = ["Interruption", "Simulation"]


class Interruption(BaseException):
    """What a timeout or a kill raises in a caller that waits."""


class Simulation(FakeClock):
    """A clock whose `sleep` lets other callers run, in the order of their moments."""

    def __init__(self, start: float = 1_000.0) -> None:
        super().__init__(start)
        self._hub = getcurrent()
        self._due: list[tuple[int, int, Callable[[], object]]] = []
        self._order = count()
        self._naps: dict[greenlet, int] = {}

    def at(self, microseconds: int, action: Callable[[], object]) -> None:
        """Do something so many microseconds from now."""
        heapq.heappush(self._due, (self.microseconds() + microseconds, next(self._order), action))

    def sleep(self, seconds: float) -> None:
        """Let others run for so long."""
        caller = getcurrent()
        nap = self._naps[caller] = next(self._order)
        self.at(round(seconds * 1_000_000), lambda: self._wake(caller, nap))
        self._hub.switch()

    def _wake(self, caller: greenlet, nap: int) -> None:
        if self._naps.get(caller) == nap and not caller.dead:
            del self._naps[caller]
            caller.switch()

    def interrupt(self, caller: greenlet) -> bool:
        """Raise `Interruption` in a caller that sleeps. False if it does not."""
        if self._naps.pop(caller, None) is None:
            return False
        caller.throw(Interruption)
        return True

    def run(self) -> None:
        """Until nothing is left to be done."""
        while self._due:
            moment, _, action = heapq.heappop(self._due)
            self.advance((moment - self.microseconds()) / 1_000_000)
            action()
