"""Who comes the most often, of any number of callers, in bounded memory.

Source of the algorithm: Anderson, Bevan, Lang, Liberty, Rhodes, Thaler, "A High-Performance Algorithm for Identifying Frequent
Items in Data Streams" (2017): the counters of Misra and Gries, emptied by a median at a time, so that counting takes constant
time. Agarwal and others, "Mergeable Summaries" (2012), show that these are the counters of Space-Saving in other words.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import NamedTuple

__all__ = ["Frequent", "RecentlyFrequent", "Top"]


class Top(NamedTuple):
    """A key that came so many `times` at least, and `times + error` at most."""

    key: str
    times: int
    error: int


class Frequent:
    """Counts keys, and keeps those that come often: fewer than twice `size` (from 1).

    Of `n` counts in all, no key's is short by more than `n / size`, so that every key that came oftener than that is kept.
    """

    __slots__ = ("_counts", "_error", "_size")

    def __init__(self, size: int = 64) -> None:
        self._size = size
        self._counts: dict[str, int] = {}
        self._error = 0

    @property
    def error(self) -> int:
        """How many counts of each key may be missing."""
        return self._error

    @property
    def counts(self) -> Mapping[str, int]:
        """The keys that are kept, and how often each came at least."""
        return self._counts

    def add(self, key: str, count: int = 1) -> None:
        """Count `key` so many times more (from 1)."""
        counts = self._counts
        counts[key] = counts.get(key, 0) + count
        if len(counts) >= 2 * self._size:
            self._make_room()

    def _make_room(self) -> None:
        """Take from every count what half of them do not reach. At least `size` counts pay that in full each time, and together
        they have no more than was counted: that bounds the error."""
        counts = self._counts
        middle = sorted(counts.values())[self._size]
        self._counts = {key: count - middle for key, count in counts.items() if count > middle}
        self._error += middle


class RecentlyFrequent:
    """As `Frequent`, of the last `span` to twice `span` seconds (above 0): what is older is forgotten a span at a time."""

    __slots__ = ("_before", "_ends", "_present", "_size", "_span")

    def __init__(self, size: int = 64, *, span: float = 300.0) -> None:
        self._size = size
        self._span = span
        self._present = self._before = Frequent(size)
        self._ends = -inf

    def add(self, key: str, count: int, now: float) -> None:
        """Count `key` so many times more (from 1) at `now`, in seconds."""
        if now >= self._ends:
            self._forget(now)
        self._present.add(key, count)

    def top(self, most: int, now: float, *, besides: Mapping[str, int] | None = None) -> list[Top]:
        """The keys that came the most often, at most so many, the most frequent first. `besides` are counts that belong to
        them and are yet to be added."""
        if now >= self._ends:
            self._forget(now)
        sums = dict(self._present.counts)
        for counts in (self._before.counts, besides or {}):
            for key, count in counts.items():
                sums[key] = sums.get(key, 0) + count
        error = self._present.error + self._before.error
        found = sorted(((key, count) for key, count in sums.items() if count), key=lambda each: (-each[1], each[0]))[
            :most
        ]
        return [Top(key, count, error) for key, count in found]

    def _forget(self, now: float) -> None:
        """Begin a span. What came in the last one is remembered if that has just ended."""
        is_recent = now < self._ends + self._span
        self._before = self._present if is_recent else Frequent(self._size)
        self._present = Frequent(self._size)
        self._ends = now + self._span
