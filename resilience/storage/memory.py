"""`memory://`: buckets of this process. Bounded, exact under threads and greenlets, not shared between workers."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

from resilience.clock import SYSTEM_CLOCK
from resilience.core.limiter import Bucket, Charge, Decision, Quota, advance, decide
from resilience.ports import Clock

__all__ = ["MemoryStorage"]

# A named tuple's own constructor takes twice as long as the tuple's: three of them would be a third of a decision.
_new = tuple.__new__


class MemoryStorage:
    """Buckets in a dictionary of this process.

    At most `size` buckets are kept, those used last: a flood of random keys costs a bounded amount of memory (300 to
    500 bytes a bucket) and forgets the callers that have been silent longest, of whichever limit: give one that must not
    be forgotten a storage of its own. Each process counts for itself: with N
    workers a caller gets up to N times the limit.
    """

    uri = "memory://"

    def __init__(self, *, size: int = 65_536, clock: Clock = SYSTEM_CLOCK) -> None:
        if size < 1:
            raise ValueError(f"size={size}: a memory storage keeps at least one bucket")
        self._size = size
        self._now = clock.microseconds
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()  # guarded by _lock
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._buckets)

    def __repr__(self) -> str:
        return f"<MemoryStorage: {len(self)} of at most {self._size} buckets>"

    def take(self, charges: Sequence[Charge]) -> Decision:
        """Take every charge or none."""
        if len(charges) == 1:
            return self._take_one(charges[0])
        keys = [f"{scope}\x1f{subject}" for scope, subject, _, _ in charges]
        if len(set(keys)) != len(keys):
            raise ValueError("two charges of one decision name the same bucket: add their costs instead")
        buckets = self._buckets
        with self._lock:
            decision, stored = decide(charges, [buckets.get(key) for key in keys], self._now())
            if stored is not None:
                for key, bucket in zip(keys, stored, strict=True):
                    buckets[key] = bucket
            for key in keys:
                if key in buckets:
                    buckets.move_to_end(key)
            self._evict_locked()
        return decision

    def _take_one(self, charge: Charge) -> Decision:
        """`decide` for a single charge without its lists: this is the path of nearly every request."""
        scope, subject, limit, cost = charge
        key = f"{scope}\x1f{subject}"
        spent = cost * limit.unit
        buckets = self._buckets
        with self._lock:
            bucket = buckets.get(key)
            level, stamp = advance(limit, bucket, self._now())
            allowed = level >= spent
            if allowed and spent:
                level -= spent
                buckets[key] = _new(Bucket, (level, stamp, limit.unit))
                if bucket is None:
                    self._evict_locked()
            if bucket is not None:
                buckets.move_to_end(key)
        return _new(Decision, (allowed, (_new(Quota, (limit, level, cost)),)))

    def _evict_locked(self) -> None:
        while len(self._buckets) > self._size:
            self._buckets.popitem(last=False)

    def close(self) -> None:
        """Nothing to give back; the buckets stay."""
