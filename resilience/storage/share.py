"""One process's share of every limit: what it enforces when the processes cannot ask what the others do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from resilience.core.limiter import Charge, Decision, Limit, Refund
from resilience.ports import LimitStorage, Taker
from resilience.storage.wrapping import taker_of

__all__ = ["Share", "ShareStorage"]

_new = tuple.__new__


@dataclass(frozen=True, slots=True)
class Share(Limit):
    """A limit that is one process's share of another one. Quotas that name it say what is enforced here and now."""


class ShareStorage:
    """`storage`, a process's own, with every limit divided by `workers`.

    The rate is divided exactly, the burst is rounded up. A charge dearer than that burst, but not than the limit's own,
    is decided on a bucket that is just large enough for it: at the divided rate, rather than never.
    """

    def __init__(self, storage: LimitStorage, *, workers: int) -> None:
        self._storage = storage
        self._workers = workers
        # Not cached on the method: that would keep this object alive.
        self._share = lru_cache(maxsize=4_096)(self._divided)

    @property
    def uri(self) -> str:
        """That of the storage."""
        return self._storage.uri

    def take(self, charges: Sequence[Charge]) -> Decision:
        """Take every charge or none."""
        return self._storage.take([self._charge(charge) for charge in charges])

    def taker(self, scope: str, limit: Limit, floor: int = 0, lease: int = 0) -> Taker:  # noqa: ARG002  # nobody to lease from
        """What decides one charge of this kind."""
        usual = self._share(limit, 0)
        decide = taker_of(self._storage, scope, usual, _floor(floor, limit, usual))

        def take(subject: str, cost: int) -> Decision:
            if cost <= usual.size:
                return decide(subject, cost)
            return self.take((_new(Charge, (scope, subject, limit, cost, floor, 0)),))

        return take

    def give_back(self, refunds: Sequence[Refund]) -> None:
        """Give tokens back, or fill buckets. What was expected of another storage's bucket is not compared with ours."""
        self._storage.give_back(
            [
                refund
                if isinstance(refund.limit, Share)
                else refund._replace(limit=self._share(refund.limit, refund.cost or 0), expected=None)
                for refund in refunds
            ]
        )

    def close(self) -> None:
        """Close the storage."""
        self._storage.close()

    def _charge(self, charge: Charge) -> Charge:
        scope, subject, limit, cost, floor, _ = charge
        share = self._share(limit, cost)
        return _new(Charge, (scope, subject, share, cost, _floor(floor, limit, share), 0))

    def _divided(self, limit: Limit, cost: int) -> Limit:
        burst = -(-limit.size // self._workers)
        if burst < cost <= limit.size:
            burst = cost
        amount = Fraction(repr(limit.amount)) if isinstance(limit.amount, float) else Fraction(limit.amount)
        try:
            return Share(amount / self._workers, limit.period, burst)
        except ValueError:
            # At the edge of what is exact, the divided rate is beyond it: then each process enforces the whole.
            return limit


def _floor(floor: int, limit: Limit, share: Limit) -> int:
    """The floor of a charge in parts of its share: a debt that clears as soon, or the same part of the bucket."""
    if floor < 0:
        return -share.debt(-floor / limit.refill * limit.tick / 1_000_000)
    return floor * share.capacity // limit.capacity
