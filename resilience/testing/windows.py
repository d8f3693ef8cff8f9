"""What a list of admissions amounts to."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction

from resilience.core.limiter import Limit

__all__ = ["smallest_burst"]


def smallest_burst(admitted: Iterable[tuple[int, int]], limit: Limit) -> Fraction:
    """The size in tokens, exactly, of the smallest bucket filled at the rate of `limit` that admits all of these.

    `admitted` holds a moment in microseconds and a cost in tokens for each, in any order. This is also the worst window,
    wherever it begins and ends: the most that any of them was given beyond what its time gives. A limit that holds never
    shows more than its burst.
    """
    rate = Fraction(limit.refill, limit.unit * limit.tick)
    spent, least, worst = 0, Fraction(0), Fraction(0)
    first: int | None = None
    for moment, cost in sorted(admitted):
        first = moment if first is None else first
        given = (moment - first) * rate
        # Everything so far, less the best beginning so far: a window that begins with this one or before.
        least = min(least, spent - given)
        spent += cost
        worst = max(worst, spent - given - least)
    return worst
