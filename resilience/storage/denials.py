"""Who was refused is refused again without asking, until that could have changed."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from resilience.clock import SYSTEM_CLOCK
from resilience.core.limiter import Bucket, Charge, Decision, Limit, Quota, Refund, advance
from resilience.ports import Clock, LimitStorage, Taker
from resilience.storage.wrapping import ask_whether_it_takes, forget_after_fork, taker_of

__all__ = ["LONGEST", "DenialsSnapshot", "RememberedDenials"]

LONGEST = 1_000_000
"""Microseconds that a denial is remembered at most: meanwhile others may give back, reset or change the limit."""

_new = tuple.__new__


class DenialsSnapshot(NamedTuple):
    """How many buckets are remembered now, and how many decisions were answered from memory since the process started."""

    remembered: int
    answered: int


class _Seen(NamedTuple):
    limit: Limit
    bucket: Bucket
    until: int


class RememberedDenials:
    """`primary`, which is not asked again for what it has just refused.

    Of a denial the levels of its buckets are remembered, for a second at most and at most `size` of them. A charge that
    would not fit by then, going by this process's clock, is refused here: an attacker costs no round trip. As soon as it
    could fit, the primary is asked. Never refuses what the primary would allow, unless another process gave tokens back
    within that second; `give_back` through this storage forgets at once. A look (a cost of 0) at a bucket without a whole
    token is answered here, too.
    """

    def __init__(self, primary: LimitStorage, *, clock: Clock = SYSTEM_CLOCK, size: int = 16_384) -> None:
        if size < 1:
            raise ValueError(f"size={size}: remembered denials take at least one bucket")
        self._primary = primary
        self._now = clock.microseconds
        self._size = size
        self._lock = threading.Lock()
        # In the order of asking, which is nearly that of forgetting: the first is the one to go. Written under _lock.
        self._seen: OrderedDict[tuple[str, str], _Seen] = OrderedDict()
        self._given_back = 0  # guarded by _lock
        self._answered = 0
        forget_after_fork(self)

    @property
    def uri(self) -> str:
        """That of the primary."""
        return self._primary.uri

    @property
    def primary(self) -> LimitStorage:
        """Who decides what is not remembered."""
        return self._primary

    def __repr__(self) -> str:
        return f"<RememberedDenials: {len(self._seen)} of at most {self._size} for {self._primary!r}>"

    def snapshot(self) -> DenialsSnapshot:
        """What this process has counted."""
        return DenialsSnapshot(len(self._seen), self._answered)

    def take(self, charges: Sequence[Charge]) -> Decision:
        """Take every charge or none. Raises what the primary raises."""
        asked = self._now()
        known = [self._seen.get((charge.scope, charge.subject)) for charge in charges]
        if None not in known:
            refused = self._refused(charges, known, asked)
            if refused is not None:
                return refused
        given_back = self._given_back
        decision = self._primary.take(charges)
        if not decision.allowed or any(known):
            self._remember(charges, decision, asked, given_back)
        return decision

    def taker(self, scope: str, limit: Limit, floor: int = 0, lease: int = 0) -> Taker:
        """What decides one charge of this kind."""
        ask = taker_of(self._primary, scope, limit, floor, lease)
        seen = self._seen
        now = self._now

        def take(subject: str, cost: int) -> Decision:
            asked = now()
            known = seen.get((scope, subject))
            if known is not None:
                charge = _new(Charge, (scope, subject, limit, cost, floor, lease))
                refused = self._refused((charge,), (known,), asked)
                if refused is not None:
                    return refused
            given_back = self._given_back
            decision = ask(subject, cost)
            if known is not None or not decision.allowed:
                charge = _new(Charge, (scope, subject, limit, cost, floor, lease))
                self._remember((charge,), decision, asked, given_back)
            return decision

        return take

    def give_back(self, refunds: Sequence[Refund]) -> None:
        """Give tokens back, or fill buckets, and forget that they refused. Raises what the primary raises."""
        try:
            self._primary.give_back(refunds)
        finally:
            with self._lock:
                self._given_back += 1  # a denial that was under way meanwhile may be older than this
                for refund in refunds:
                    self._seen.pop((refund.scope, refund.subject), None)

    def probe(self) -> None:
        """Return if the primary takes charges. Raises `StorageUnavailable` otherwise."""
        ask_whether_it_takes(self._primary)

    def close(self) -> None:
        """Forget all, and close the primary."""
        with self._lock:
            self._seen.clear()
        self._primary.close()

    def after_fork(self) -> None:
        """A lock that another thread of the parent held stays locked in the child."""
        self._lock = threading.Lock()

    def _refused(self, charges: Sequence[Charge], known: Sequence[_Seen | None], now: int) -> Decision | None:
        """The denial of `charges`, if their buckets are known well enough."""
        looking = not any(charge.cost for charge in charges)
        fits = True
        quotas: list[Quota] = []
        for (_, _, limit, cost, floor, _), seen in zip(charges, known, strict=True):
            level = None if seen is None else _level(seen, limit, now)
            if level is None:
                return None
            parts = (cost or looking) * limit.unit
            # A tick in advance: the primary may have been in the middle of one.
            if parts and (level + limit.refill < parts + floor or parts > limit.capacity):
                fits = False
            quotas.append(_new(Quota, (limit, level, cost, floor)))
        if fits:
            return None
        self._answered += 1
        return _new(Decision, (looking, tuple(quotas)))

    def _remember(self, charges: Sequence[Charge], decision: Decision, asked: int, given_back: int) -> None:
        """`charges` were asked about at `asked`. An allowed decision brings up to date what is known already."""
        seen = self._seen
        with self._lock:
            if given_back != self._given_back:
                return
            for charge, quota in zip(charges, decision.quotas, strict=True):
                key = (charge.scope, charge.subject)
                known = seen.pop(key, None)
                if known is not None or not decision.allowed:
                    # The primary decided after `asked`: by this bucket there is never less than there is.
                    limit = charge.limit
                    seen[key] = _Seen(limit, Bucket(quota.level, asked, limit.unit), asked + LONGEST)
            self._evict_locked(asked)

    def _evict_locked(self, now: int) -> None:
        seen = self._seen
        while seen and (len(seen) > self._size or next(iter(seen.values())).until <= now):
            seen.popitem(last=False)


def _level(seen: _Seen, limit: Limit, now: int) -> int | None:
    """What the bucket holds at most, but for the rest of a tick; None when that is not known any longer."""
    if (seen.limit is not limit and seen.limit != limit) or not seen.bucket.stamp <= now < seen.until:
        return None
    return advance(limit, seen.bucket, now)[0]
