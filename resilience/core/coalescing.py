"""What happens again and again, said at most once a second for each key, with how often it happened."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Final, NamedTuple

from resilience.core.top import RecentlyFrequent, Top

__all__ = ["OTHERS", "Coalescing", "Said"]

OTHERS: Final = ""
"""The key under which those are said together for which there was no room."""


class Said(NamedTuple):
    """What is to be said now: so many `times` for `key` since that was last said. `is_present` tells what has just happened
    from what is left of an earlier round."""

    key: str
    times: int
    is_present: bool


class Coalescing:
    """Counts by key, in rounds of `interval` seconds (above 0), and knows who came the most often lately.

    A key is said when it comes for the first time in a round; how often it came after that is said when the round is over and
    something happens again, or somebody looks. A round says `most` keys (from 1) as they come, and as many that were left, the
    most frequent first; all others together. At most `room` keys (from 1) are told apart in a round.

    Plain additions: exact under greenlets; under threads two that coincide may count once.
    """

    __slots__ = ("_counts", "_ends", "_interval", "_most", "_others", "_recent", "_room", "_told")

    def __init__(self, *, interval: float = 1.0, most: int = 20, room: int = 1_000) -> None:
        self._interval = interval
        self._most = most
        self._room = room
        self._counts: dict[str, int] = {}  # of this round, since the key was said
        self._others = 0
        self._told = 0
        self._ends = -inf
        self._recent = RecentlyFrequent()  # told of everything but what is in `_counts`

    def add(self, key: str, now: float) -> Sequence[Said]:
        """It happened for `key` at `now`, in seconds. What is to be said, mostly nothing. A clock that goes backwards counts as
        standing still."""
        counts = self._counts
        count = counts.get(key)
        if count is not None and now < self._ends:
            counts[key] = count + 1
            return ()
        left = self._end(now, key) if now >= self._ends else []
        return self._first(key, left, now)

    def leftovers(self, now: float) -> Sequence[Said]:
        """What was not said of a round that is over at `now`."""
        return self._end(now, None) if now >= self._ends else ()

    def top(self, most: int, now: float) -> list[Top]:
        """Who came the most often in the last five to ten minutes, at most so many."""
        return self._recent.top(most, now, besides=self._counts)

    def _first(self, key: str, left: list[Said], now: float) -> Sequence[Said]:
        """A key that is new in this round, with what was left of the last one."""
        counts = self._counts
        if self._told < self._most:
            self._told += 1
            counts[key] = 0
            self._recent.add(key, 1, now)
            before = next((said.times for said in left if said.key == key), 0)
            return [*(said for said in left if said.key != key), Said(key, before + 1, is_present=True)]
        if len(counts) < self._room:
            counts[key] = 1
        else:
            self._others += 1
            self._recent.add(key, 1, now)
        return left

    def _end(self, now: float, present: str | None) -> list[Said]:
        """Begin a round, and return what was left of the last one; first what concerns the `present` key."""
        counts, others = self._counts, self._others
        self._counts, self._others, self._told, self._ends = {}, 0, 0, now + self._interval
        left = sorted(
            ((key, count) for key, count in counts.items() if count), key=lambda each: (each[0] != present, -each[1])
        )
        for key, count in left:
            self._recent.add(key, count, now)
        said = [Said(key, count, is_present=False) for key, count in left[: self._most]]
        others += sum(count for _, count in left[self._most :])
        if others:
            said.append(Said(OTHERS, others, is_present=False))
        return said
