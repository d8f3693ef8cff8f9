"""Tokens taken ahead from a bucket that is asked for again and again, as arithmetic.

Who takes ahead, never reports later, cannot exceed the rate: every token was charged to the bucket before it is spent. Of what
the processes hold ahead, only the burst can be larger by. With `lease` the most that one of them holds of a bucket, over
every window of `w` seconds and P processes

    admitted <= burst + rate * w + P * lease

A lease grows while it is spent fast, and shrinks when it ends unspent. It is taken only while the bucket leaves as much for
others, so that the nearer the bucket is to empty, the nearer this is to asking for every charge.

Sources: gubernator and Doorman for leases with an end, the rule of slow start (double while it goes well) for their size.
Times are in microseconds, levels in parts of a token (see `core/limiter.py`).
"""

from __future__ import annotations

from resilience.core.limiter import Limit

__all__ = ["HOT", "LONGEST", "WINDOW", "Lease", "lifetime"]

HOT = 8
"""So many charges within `WINDOW` make a bucket worth a lease. The first lease is of as many charges."""

WINDOW = 100_000
"""Microseconds."""

LONGEST = 1_000_000
"""Microseconds that a lease lasts at most."""


def lifetime(limit: Limit) -> int:
    """Microseconds that a lease lasts: no longer than the bucket takes to fill, because it would have filled meanwhile."""
    return min(limit.ticks_to_fill * limit.tick, LONGEST)


class Lease:
    """What a process holds of one bucket, and what it knows of it. Not safe to share: to be guarded by whoever holds it."""

    __slots__ = (
        "_began",
        "_charges",
        "_known",
        "_size",
        "_warm_until",
        "_window",
        "asking",
        "ends",
        "level",
        "limit",
        "low",
        "tokens",
    )

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self.tokens = 0
        """Unspent."""
        self.level = 0
        """What the bucket held when it was asked last, and what is unspent."""
        self.ends = 0
        """When the unspent is to be given back. Every token ends with the oldest of them."""
        self.low = -1
        """At so many tokens more are to be taken."""
        self.asking = False
        """Whether someone is on the way to take tokens."""
        self._size = 0
        self._began = 0
        self._warm_until = 0
        self._known = -1  # when `level` was true; below 0: never
        self._charges = 0
        self._window = 0

    def recognise(self, limit: Limit) -> bool:
        """Whether it is of this limit. From now on an equal one is recognised at once."""
        if self.limit == limit:
            self.limit = limit
            return True
        return False

    def spend(self, cost: int, now: int) -> int | None:
        """Spend `cost` tokens of the lease. The level after that; None when the lease does not hold them."""
        if 0 < self.tokens >= cost and now < self.ends:
            self.tokens -= cost
            self.level -= cost * self.limit.unit
            return self.level
        return None

    def wanted(self, cost: int, most: int, now: int) -> int:
        """How many tokens to take now so that `cost` can be spent and at most `most` are held; 0: take none.

        Called for every charge that the lease does not cover, and when it runs low (then `cost` is 0).
        """
        if cost:
            self._count(now)
        if self.asking or self._known < 0:
            return 0
        size = self._next_size(cost, now)
        limit = self.limit
        gained = max(0, now - self._known) // limit.tick * limit.refill
        there = min(limit.capacity, self.level - self.tokens * limit.unit + gained)
        count = min(size, most - self.tokens, there // limit.unit // 2)
        if count < 2 or self.tokens + count < cost:
            self.low = self.tokens // 2
            return 0
        return count

    def took(self, count: int, level: int, asked: int) -> None:
        """`count` tokens were asked for at `asked` and taken; the bucket held `level` after that."""
        limit = self.limit
        if not self.tokens:
            self.ends = asked + lifetime(limit)
        self.tokens += count
        self._began = asked
        self._size = count
        self._warm_until = self.ends + WINDOW
        self.low = self.tokens // 4
        self._learn(level, asked)

    def refused(self, level: int, asked: int) -> None:
        """The bucket did not hold enough for a lease: charges go there one by one until it is hot again."""
        self._cool()
        self._learn(level, asked)

    def answered(self, level: int, asked: int) -> None:
        """The bucket was asked about a charge at `asked` and held `level` after that."""
        self._learn(level, asked)

    def end(self, now: int | None = None) -> int:
        """End the lease, if its time has come. How many unspent tokens are to be given back."""
        unspent = self.tokens
        if not unspent or (now is not None and now < self.ends):
            return 0
        self.level -= unspent * self.limit.unit
        self.tokens = 0
        self.low = -1
        if unspent * 2 > self._size:
            self._cool()
        return unspent

    def _count(self, now: int) -> None:
        if not 0 <= now - self._window <= WINDOW:
            self._window, self._charges = now, 0
        self._charges += 1

    def _next_size(self, cost: int, now: int) -> int:
        if self._size and now <= self._warm_until:
            spent_fast = (now - self._began) * 4 <= lifetime(self.limit)
            return self._size * 2 if spent_fast else self._size
        return cost * HOT if self._charges >= HOT else 0

    def _learn(self, level: int, asked: int) -> None:
        if asked >= self._known:
            self._known = asked
            self.level = level + self.tokens * self.limit.unit

    def _cool(self) -> None:
        self._size = self._charges = 0
        self.low = -1
