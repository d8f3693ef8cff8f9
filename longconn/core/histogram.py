"""A histogram with fixed buckets over a plain list of whole numbers.

The list may be a part of a larger one, such as the counters a worker publishes: cell `first` is the first bucket, one
cell for each bound and one for what lies above the last, then one for the sum. The number of observations is the sum
of the buckets, so that the two can never disagree. Values are whole numbers (nanoseconds, bytes): sums stay exact.

Source of the buckets: the Prometheus histogram, whose bucket of a bound counts what is at most the bound.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import MutableSequence, Sequence
from itertools import accumulate

__all__ = ["Histogram", "cells_of"]


def cells_of(bounds: Sequence[int]) -> int:
    """How many cells a histogram with these bounds takes: a bucket each, one above the last, and the sum."""
    return len(bounds) + 2


class Histogram:
    """Counts whole numbers from 0 in buckets. `bounds` rise; a value counts in the first bucket whose bound it does not exceed.

    Without `cells` it keeps its own. Raises `ValueError` when the bounds are missing or do not rise, or when `cells` is
    too short.
    """

    __slots__ = ("_first", "_sum", "bounds", "cells")

    def __init__(self, bounds: Sequence[int], cells: MutableSequence[int] | None = None, first: int = 0) -> None:
        self.bounds = tuple(bounds)
        if not self.bounds or any(low >= high for low, high in zip(self.bounds, self.bounds[1:], strict=False)):
            raise ValueError(f"bounds={self.bounds}: a histogram takes bounds that rise")
        self.cells: MutableSequence[int] = [0] * (first + cells_of(self.bounds)) if cells is None else cells
        if first < 0 or len(self.cells) < first + cells_of(self.bounds):
            raise ValueError(f"first={first}: no room for {cells_of(self.bounds)} cells in {len(self.cells)}")
        self._first = first
        self._sum = first + len(self.bounds) + 1

    def observe(self, value: int) -> None:
        """Count `value`, a whole number from 0."""
        cells = self.cells
        cells[self._first + bisect_left(self.bounds, value)] += 1
        cells[self._sum] += value

    @property
    def buckets(self) -> list[int]:
        """How many values fell into each bucket; the last one is for values above the last bound."""
        return list(self.cells[self._first : self._sum])

    @property
    def sum(self) -> int:
        """The sum of all values."""
        return self.cells[self._sum]

    @property
    def count(self) -> int:
        """How many values were observed."""
        return sum(self.buckets)

    def cumulative(self) -> list[int]:
        """For each bound how many values were at most that, and at the end how many there were: what Prometheus shows."""
        return list(accumulate(self.buckets))

    def quantile(self, share: float) -> int | None:
        """A bound that at least `share` (0 to 1) of the values do not exceed: the smallest that is known.

        None when there are no values, or when only values above the last bound reach that share.
        """
        if not 0 <= share <= 1:
            raise ValueError(f"share={share!r}: a quantile takes 0 to 1")
        reached = self.cumulative()
        if not reached[-1]:
            return None
        return next(
            (
                bound
                for bound, count in zip(self.bounds, reached, strict=False)
                if count and count >= share * reached[-1]
            ),
            None,
        )
