"""`memory://`: buckets of this process. Bounded, exact under threads and greenlets, not shared between workers."""

from __future__ import annotations

import sys
import time
from collections import OrderedDict
from collections.abc import Sequence

from resilience.clock import SYSTEM_CLOCK
from resilience.core.limiter import LARGEST, Bucket, Charge, Decision, Limit, Refund, advance, give_back
from resilience.errors import StorageBusy
from resilience.ports import Clock, Taker
from resilience.storage.wrapping import forget_after_fork

__all__ = ["MemoryStorage"]

_PATIENCE = 1.0
"""Seconds to wait for a turn that lasts microseconds."""
_TRIES = 200
"""So often at least the turn is asked for, whatever the clock says: the process may have been stopped meanwhile."""

# A named tuple's own constructor takes twice as long as the tuple's.
_new = tuple.__new__

_Asked = tuple[str, Limit, int, int]
"""A bucket's key, its limit, the cost and the floor."""

_Numbers = tuple[Limit, int, int, int]
"""A `Quota` before anybody reads it."""


class MemoryStorage:
    """Buckets in a dictionary of this process.

    At most `size` buckets are kept, those used last: a flood of random keys costs a bounded amount of memory (300 to
    500 bytes a bucket) and forgets the callers that have been silent longest, of whichever limit: give one that must not
    be forgotten a storage of its own. Each process counts for itself: with N workers a caller gets up to N times the limit.

    Nothing is waited for but another thread's arithmetic. Asked by a signal handler, or by a `__del__` that the collector
    runs, in the middle of the same thread's decision, it raises `StorageBusy`.
    """

    uri = "memory://"

    def __init__(self, *, size: int = 65_536, clock: Clock = SYSTEM_CLOCK) -> None:
        if size < 1:
            raise ValueError(f"size={size}: a memory storage keeps at least one bucket")
        self._size = size
        self._clock = clock
        # Level, stamp and unit of each, changed in place; the one used last is at the end. All below belongs to the turn.
        self._buckets: OrderedDict[str, list[int]] = OrderedDict()
        # Who takes the item out has the turn, and puts it back. That is one instruction of the interpreter, after which
        # no signal handler runs before the `try` begins: as safe as a lock, whose `with` takes a fifth of a decision. The
        # turn is kept for arithmetic only, in which no greenlet switches: only threads ever find it taken.
        self._turn: list[None] = [None]
        forget_after_fork(self)

    def __len__(self) -> int:
        return len(self._buckets)

    def __repr__(self) -> str:
        return f"<MemoryStorage: {len(self)} of at most {self._size} buckets>"

    def taker(self, scope: str, limit: Limit, floor: int = 0, lease: int = 0) -> Taker:  # noqa: ARG002  # nobody to lease from
        """What decides one charge of this kind: `core.limiter.decide`, written out for one limit."""
        prefix = f"{scope}\x1f"
        unit, refill, tick, capacity = limit.unit, limit.refill, limit.tick, limit.capacity
        deepest = capacity - LARGEST
        buckets, turn, size = self._buckets, self._turn, self._size
        find, use, end_turn = buckets.get, buckets.move_to_end, turn.append
        now = None if self._clock is SYSTEM_CLOCK else self._clock.microseconds

        def take(subject: str, cost: int) -> Decision:
            key = prefix + subject
            spent = cost * unit
            try:
                del turn[0]
            except IndexError:
                _await(turn)
            try:
                # What SYSTEM_CLOCK says, without the call. Read in turn, so that time never goes backwards for a bucket.
                moment = time.monotonic_ns() // 1_000 if now is None else now()
                bucket = find(key)
                if bucket is None:
                    level, stamp = capacity, moment
                else:
                    level, stamp, written = bucket
                    ticks = moment - stamp
                    if ticks < 0 or written != unit or level < deepest:
                        level, stamp = _advance_rarely(limit, bucket, moment, spent)
                    else:
                        if tick != 1:
                            ticks //= tick
                        level += ticks * refill
                        stamp += ticks * tick
                        if level >= capacity:
                            level, stamp = capacity, moment
                    use(key)
                allowed = not spent or (level - spent >= floor and spent <= capacity)
                if allowed and spent:
                    level -= spent
                    if bucket is None:
                        buckets[key] = [level, stamp, unit]
                        if len(buckets) > size:
                            buckets.popitem(last=False)
                    else:
                        bucket[0] = level
                        bucket[1] = stamp
                        bucket[2] = unit
            finally:
                end_turn(None)
            return _new(Decision, (allowed, ((limit, level, cost, floor),)))  # a Quota when it is read

        return take

    def joint_taker(self, parts: Sequence[tuple[str, Limit]]) -> Taker:
        """What decides one charge of the same subject and cost for each scope and limit in `parts`, together."""
        prefixes = tuple((f"{scope}\x1f", limit) for scope, limit in parts)
        decide = self._decide

        def take(subject: str, cost: int) -> Decision:
            return decide([(prefix + subject, limit, cost, 0) for prefix, limit in prefixes])

        return take

    def take(self, charges: Sequence[Charge]) -> Decision:
        """Take every charge or none."""
        asked = [(f"{scope}\x1f{subject}", limit, cost, floor) for scope, subject, limit, cost, floor, _ in charges]
        if len(asked) > 1 and len({key for key, _, _, _ in asked}) != len(asked):
            raise ValueError("two charges of one decision name the same bucket: add their costs instead")
        return self._decide(asked)

    def _decide(self, asked: Sequence[_Asked]) -> Decision:
        """`core.limiter.decide` for buckets by key, without its lists."""
        turn = self._turn
        try:
            del turn[0]
        except IndexError:
            _await(turn)
        try:
            now = self._clock.microseconds()
            return _new(Decision, self._decide_in_turn(asked, now))
        finally:
            turn.append(None)

    def _decide_in_turn(self, asked: Sequence[_Asked], now: int) -> tuple[bool, tuple[_Numbers, ...]]:
        buckets = self._buckets
        allowed = True
        stamps: list[int] = []
        quotas: list[_Numbers] = []
        for key, limit, cost, floor in asked:
            bucket = buckets.get(key)
            if bucket is None:
                level, stamp = limit.capacity, now
            else:
                level, stamp = _advance(limit, bucket, now)
                buckets.move_to_end(key)
            spent = cost * limit.unit
            if spent and (level - spent < floor or spent > limit.capacity):
                allowed = False
            stamps.append(stamp)
            quotas.append((limit, level, cost, floor))
        if allowed:
            for index, (key, limit, cost, floor) in enumerate(asked):
                if cost:
                    level = quotas[index][1] - cost * limit.unit
                    quotas[index] = (limit, level, cost, floor)
                    buckets[key] = [level, stamps[index], limit.unit]
            while len(buckets) > self._size:
                buckets.popitem(last=False)
        else:
            for (key, limit, _, _), (_, level, _, _) in zip(asked, quotas, strict=True):
                bucket = buckets.get(key)
                if bucket is not None and bucket[1] > now:
                    bucket[:] = level, now, limit.unit  # the clock went backwards: time counts again from here
        return allowed, tuple(quotas)

    def give_back(self, refunds: Sequence[Refund]) -> None:
        """Give tokens back, or fill buckets."""
        turn = self._turn
        try:
            del turn[0]
        except IndexError:
            _await(turn)
        try:
            buckets = self._buckets
            now = self._clock.microseconds()
            for refund in refunds:
                key = f"{refund.scope}\x1f{refund.subject}"
                bucket = buckets.get(key)
                returned = give_back(refund, None if bucket is None else Bucket(*bucket), now)
                if returned is None:
                    buckets.pop(key, None)
                else:
                    buckets[key] = list(returned)
        finally:
            turn.append(None)

    def close(self) -> None:
        """Nothing to give back; the buckets stay."""

    def after_fork(self) -> None:
        """A thread that had the turn when the process was forked is not here to end it."""
        self._turn[:] = [None]


def _advance(limit: Limit, bucket: list[int], now: int) -> tuple[int, int]:
    """`core.limiter.advance`, with less ado for nearly every bucket."""
    level, stamp, unit = bucket
    if level < 0 or now < stamp or unit != limit.unit or limit.tick != 1:
        return advance(limit, Bucket(level, stamp, unit), now)
    level += (now - stamp) * limit.refill
    return min(limit.capacity, level), now


def _advance_rarely(limit: Limit, bucket: list[int], now: int, spent: int) -> tuple[int, int]:
    """`core.limiter.advance` for the bucket of a charge of `spent` parts.

    After a clock went backwards the bucket is stored as it is now: what is granted is stored anyway, and for a denial time
    counts again from here.
    """
    level, stamp = advance(limit, Bucket(*bucket), now)
    if spent and bucket[1] > now:
        bucket[:] = level, stamp, limit.unit
    return level, stamp


def _await(turn: list[None]) -> None:
    """Take the turn when the thread that has it has done its sums.

    If that is this very thread, interrupted by who asks now, it never will: raises `StorageBusy`.
    """
    deadline = time.monotonic() + _PATIENCE
    tries = 0
    while tries < _TRIES or (time.monotonic() < deadline and not _is_interrupted(turn)):
        time.sleep(0 if tries < _TRIES else 0.001)
        tries += 1
        try:
            del turn[0]
        except IndexError:
            continue
        return
    raise StorageBusy(
        "memory:// was asked from within a decision of the same thread, which cannot go on meanwhile. "
        "Do not rate limit in signal handlers or in __del__"
    )


def _is_interrupted(turn: list[None]) -> bool:
    """Whether one of the decisions that this thread is in the middle of is about this turn, but for the one that asks."""
    frame = sys._getframe(2).f_back  # noqa: SLF001  # CPython and PyPy have it; without the asker's own frame
    while frame is not None:
        if frame.f_code.co_filename == __file__ and frame.f_locals.get("turn") is turn:
            return True
        frame = frame.f_back
    return False
