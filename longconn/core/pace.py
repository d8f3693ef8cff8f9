"""When a transfer is too slow: by the gap since its last movement, and by its rate over all.

A gap alone lets a client trickle a byte now and then for ever; a rate alone cuts a fast client off for one short stall.
Both together bound the length of a transfer by its size. The rate is counted from the start, with some seconds of grace.
"""

from __future__ import annotations

from math import inf

__all__ = ["Pace"]


class Pace:
    """A body that is read or an answer that is written, since `now`.

    `now` is in seconds of a monotonic clock, the same in every call. `gap`: the longest wait for a next movement, in
    seconds above 0. `rate`: the least number of bytes per second, 0 for none. `grace`: seconds that the rate gives away at
    the start, from 0.
    """

    __slots__ = ("_gap", "_last", "_rate", "_started", "_total", "grace")

    grace: float
    """Seconds before the rate is asked for."""

    def __init__(self, now: float, *, gap: float, rate: float, grace: float = 5.0) -> None:
        self.grace = grace
        self._gap = gap
        self._rate = rate
        self._started = now
        self._last = now
        self._total = 0

    def moved(self, now: float, count: int) -> None:
        """`count` bytes went through at `now`. A count of 0 is no movement."""
        if count:
            self._last = now
            self._total += count

    def deadline(self) -> float:
        """The moment (seconds of the clock) at which the transfer is too slow unless something moves before."""
        return min(self._last + self._gap, self._due(self.grace))

    def slow(self, now: float) -> bool:
        """Whether it is below the rate at `now`, the grace not counted: whom a full table may do without."""
        return now > self._due(0.0)

    def _due(self, grace: float) -> float:
        """When the rate wants the next byte, `grace` seconds after the start at the earliest."""
        return self._started + grace + self._total / self._rate if self._rate else inf
