"""How many waiting connections a worker takes, so that long-lived ones spread evenly over the workers.

All workers share one listener and see each other's counts and how many wait. Each works out for itself how high all would
stand if those who wait were poured over the workers, the emptiest first, like water into a vessel with an uneven floor,
and takes what is missing to that level. Nobody has to wait for the others' accepts: one that another has taken is one
less that waits and one more that the other holds, so the level stays the same.

A connection that comes alone wakes only the workers that stand by for it, the emptiest two. When they have had their
share, the next two stand by (see `longconn.sharing`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["HEARD_NS", "SHORT_NS", "accept_quota", "fill_level", "is_among_emptiest"]

HEARD_NS = 500_000_000
"""A worker that was not heard of for so long, in nanoseconds, is not counted at all: it is dead or stands still."""
SHORT_NS = 5_000_000
"""For so long, in nanoseconds, a worker that does not react is waited for in any case."""
LONGER_NS = 4_000_000
"""And for so much longer for each connection that it is behind, or that waits, beyond a few: to take its share from it would
make all uneven."""
LONG_NS = 100_000_000
"""But no longer than this."""

_SLIGHT_DIVISOR = 100
_SLIGHT = 4
"""Who is behind by a hundredth of the mean, or by 4, is hardly behind."""
_LONE_SLACK = 2
"""So many more than its share a worker takes of those that come one by one: the next worker would have to be called."""


def fill_level(counts: Iterable[int], newcomers: int) -> int:
    """How many connections the emptiest of workers that hold `counts`, at least one, has after `newcomers` connections have
    gone one by one to whoever was the emptiest."""
    rising = sorted(counts)
    left = newcomers
    for filled, lower in enumerate(rising, start=1):
        missing = (rising[filled] - lower) * filled if filled < len(rising) else left
        if missing >= left:
            return lower + left // filled
        left -= missing
    raise ValueError("no worker to fill")


def accept_quota(
    mine: int,
    others: Sequence[tuple[int, int, int]],
    *,
    waiting: int = 1,
    most: int = 64,
) -> int:
    """How many of `waiting` (at least 1) connections a worker that holds `mine` should take now, from 0 to `most`.

    `others` has, for each other worker, its connections, the nanoseconds since it last reacted (how long the current turn
    of its loop has lasted, or how long ago it was called; 0 when it sleeps and nobody called it), and the nanoseconds since
    it was last heard of.

    0 says that emptier workers are there and free, or soon will be: leave the newcomers to them, and look again soon. The
    worker does not go beyond the level that all will have, see `fill_level`; but the emptiest may always take one, and for a
    connection that comes alone whoever has up to 2 more may, too. When nobody is there to be waited for, `most` are taken.
    """
    heard = [other for other in others if other[2] <= HEARD_NS]
    mean = (mine + sum(other[0] for other in heard)) // (1 + len(heard))
    slight = max(mean // _SLIGHT_DIVISOR, _SLIGHT)
    present = []
    for connections, reacted, _ in heard:
        behind = max(mine - connections, waiting) - slight
        if reacted <= min(LONG_NS, SHORT_NS + max(0, behind) * LONGER_NS):
            present.append(connections)
    if not present:
        return most
    above = mine - min(present)
    missing = fill_level([mine, *present], waiting) - mine
    if missing < 1 and above <= (_LONE_SLACK if waiting == 1 else 0):
        missing = 1
    return max(0, min(most, waiting, missing))


def is_among_emptiest(mine: tuple[int, int], others: Iterable[tuple[int, int]], places: int = 2) -> bool:
    """Whether fewer than `places` of `others` are emptier. Each is (connections, the number of its row): with as many
    connections the lower number counts as emptier, so that all workers come to one answer."""
    return sum(other < mine for other in others) < places
