"""One process's share of every limit: what it enforces when the processes cannot ask what the others do."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from typing import Generic, TypeVar

from resilience.core.limiter import Charge, Decision, Limit, Refund
from resilience.ports import LimitStorage, Taker
from resilience.storage.wrapping import taker_of

__all__ = ["PerLimit", "Share", "ShareStorage"]

_KEPT = 4_096

_new = tuple.__new__

_LimitT = TypeVar("_LimitT", bound=Limit)


@dataclass(frozen=True, slots=True)
class Share(Limit):
    """A limit that is one process's share of another one. Quotas that name it say what is enforced here and now.

    It equals every limit of the same numbers: the share of a single process is the limit.
    """

    whole: Share | None = field(default=None, init=False, repr=False, compare=False)
    """The same rate with the burst of the limit itself, under which the bucket is kept; None: this is it."""
    hidden: int = field(default=0, init=False, repr=False, compare=False)
    """Parts at the bottom of that bucket which this share does not have."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Limit):
            return NotImplemented
        return (self.amount, self.period, self.burst) == (other.amount, other.period, other.burst)


class ShareStorage:
    """`storage`, a process's own, with every limit divided by `workers`.

    The rate is divided exactly, the burst is rounded up. A charge dearer than that burst, but not than the limit's own, is
    allowed when the bucket is full, and leaves it in debt for the rest. So it comes at the divided rate rather than never,
    and whatever charges are mixed, in every window of `t` seconds `workers` processes admit at most

        workers * max(ceil(burst / workers), dearest) + rate * t

    tokens, where `dearest` is the cost of the dearest charge that is admitted: `burst + workers - 1` at once as long as no
    charge is dearer than the divided burst, `workers * burst` if there are charges of a whole burst. As everywhere,
    reservations come on top as far as they were made before the window, and what is given back may be taken again.
    """

    def __init__(self, storage: LimitStorage, *, workers: int) -> None:
        self._storage = storage
        self._workers = workers
        self._shares = PerLimit(self._divided)
        # Not cached on the function: one storage's charges would push out another's.
        self._widened = lru_cache(maxsize=_KEPT)(_with_burst)

    @property
    def uri(self) -> str:
        """That of the storage."""
        return self._storage.uri

    def take(self, charges: Sequence[Charge]) -> Decision:
        """Take every charge or none."""
        share_of = self._shares.of
        shares: list[Share] = []
        asked: list[Charge] = []
        for scope, subject, limit, cost, floor, _ in charges:
            share = share_of(limit)
            whole = share.whole
            if whole is not None and share.size < cost <= limit.size:
                share = self._widened(whole, cost)
            if floor:
                floor = _floor(floor, cost, limit, share)
            shares.append(share)
            asked.append(_new(Charge, (scope, subject, whole or share, cost, floor + share.hidden, 0)))
        decision = self._storage.take(asked)
        if self._workers == 1:
            return decision
        quotas = [
            (share, level - share.hidden, cost, floor - share.hidden)
            for share, (_, level, cost, floor) in zip(shares, decision[1], strict=True)
        ]
        return _new(Decision, (decision[0], tuple(quotas)))  # each a Quota when it is read

    def taker(self, scope: str, limit: Limit, floor: int = 0, lease: int = 0) -> Taker:  # noqa: ARG002  # nobody to lease from
        """What decides one charge of this kind."""
        share = self._shares.of(limit)
        hidden, size = share.hidden, share.size
        own_floor = _floor(floor, 0, limit, share)
        decide = taker_of(self._storage, scope, share.whole or share, own_floor + hidden)

        def take(subject: str, cost: int) -> Decision:
            if cost > size or floor > 0:
                return self.take((_new(Charge, (scope, subject, limit, cost, floor, 0)),))
            decision = decide(subject, cost)
            return _new(Decision, (decision[0], ((share, decision[1][0][1] - hidden, cost, own_floor),)))

        return take if hidden or floor > 0 else decide

    def give_back(self, refunds: Sequence[Refund]) -> None:
        """Give tokens back, or fill buckets. What was expected of a bucket that is not divided is not compared with ours."""
        self._storage.give_back([self._refund(refund) for refund in refunds])

    def close(self) -> None:
        """Close the storage."""
        self._storage.close()

    def _refund(self, refund: Refund) -> Refund:
        scope, subject, limit, cost, expected = refund
        if isinstance(limit, Share):
            share = limit
        else:
            share = self._shares.of(limit)
            if self._workers > 1:
                expected = None
        if expected is not None:
            expected += share.hidden
        return Refund(scope, subject, share.whole or share, cost, expected)

    def _divided(self, limit: Limit) -> Share:
        workers = self._workers
        if workers > 1:
            amount = Fraction(repr(limit.amount)) if isinstance(limit.amount, float) else Fraction(limit.amount)
            try:
                return _with_burst(Share(amount / workers, limit.period, limit.size), -(-limit.size // workers))
            except ValueError:
                pass  # at the edge of what is exact the divided rate is beyond it: then each process enforces the whole
        return Share(limit.amount, limit.period, limit.size)


class PerLimit(Generic[_LimitT]):
    """What `make` makes of a limit: of equal ones the same object, and at once where the limit is the same object, too."""

    def __init__(self, make: Callable[[Limit], _LimitT]) -> None:
        self._make = lru_cache(maxsize=_KEPT)(make)
        self._made: dict[int, tuple[Limit, _LimitT]] = {}

    def of(self, limit: Limit) -> _LimitT:
        """What is made of `limit`."""
        # By identity: to hash a limit takes as long as to decide. It is kept, so that no other one gets its number.
        known = self._made.get(id(limit))
        if known is not None:
            return known[1]
        if len(self._made) >= _KEPT:
            self._made.clear()
        made = self._make(limit)
        self._made[id(limit)] = (limit, made)
        return made


def _with_burst(whole: Share, burst: int) -> Share:
    """The upper `burst` tokens of the bucket of `whole`, in the same parts."""
    if burst == whole.size:
        return whole
    share = copy.copy(whole)
    capacity = burst * whole.unit
    for name, value in (
        ("burst", burst),
        ("capacity", capacity),
        ("ticks_to_fill", -(-capacity // whole.refill)),
        ("whole", whole),
        ("hidden", whole.capacity - capacity),
    ):
        object.__setattr__(share, name, value)
    return share


def _floor(floor: int, cost: int, limit: Limit, share: Share) -> int:
    """The floor of a charge in parts of its share: a debt that clears as soon, or the same part of the bucket."""
    if (share.unit, share.refill, share.capacity) == (limit.unit, limit.refill, limit.capacity):
        return floor
    if floor <= 0:
        return -share.debt(-floor / limit.refill * limit.tick / 1_000_000)
    own = floor * share.capacity // limit.capacity
    if floor + cost * limit.unit > limit.capacity:
        return own
    # It fits the limit's own bucket when that is full, so it fits the full share.
    return min(own, share.capacity - cost * share.unit)
