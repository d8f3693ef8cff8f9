"""The token bucket in whole numbers.

A bucket holds at most `burst` tokens and gains `amount` tokens every `period`. To stay exact for every rate, also for
7 per second or 100 per minute, nothing is divided: a token is worth `unit` small parts and the bucket gains `refill`
parts every `tick` microseconds, where unit / refill is the reduced fraction period / amount. All numbers stay below
2**53, so that a script whose only number type is a double (`storage/lua/token_bucket.lua`) computes the same.

Source of the algorithm: the token bucket of golang.org/x/time/rate (time is an argument, one function decides), with the
rule of redis-cell that a denial writes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil, gcd
from typing import NamedTuple

__all__ = ["LARGEST", "Bucket", "Charge", "Decision", "Limit", "Quota", "advance", "decide", "seconds_rounded_up"]

LARGEST = 2**53
"""Whole numbers up to here are exact in a double."""

_MICROSECONDS = 1_000_000
_LONGEST_PERIOD = 366 * 86_400


@dataclass(frozen=True, slots=True)
class Limit:
    """`amount` tokens every `period` seconds into a bucket that holds `burst` of them.

    `amount` and `burst` are whole numbers from 1, `period` is in seconds, from one microsecond to 366 days. `burst`
    defaults to `amount`. Raises `ValueError` with the reason when a value is out of range or when the burst is too large
    for exact arithmetic at this rate.
    """

    amount: int
    period: float
    burst: int | None = None
    unit: int = field(init=False, repr=False, compare=False)
    """Parts in one token."""
    refill: int = field(init=False, repr=False, compare=False)
    """Parts gained every tick."""
    tick: int = field(init=False, repr=False, compare=False)
    """Microseconds in a tick: 1, or a power of ten when the numbers would otherwise grow beyond `LARGEST`."""
    capacity: int = field(init=False, repr=False, compare=False)
    """Parts in a full bucket."""
    ticks_to_fill: int = field(init=False, repr=False, compare=False)
    """Ticks from empty to full."""

    def __post_init__(self) -> None:
        _require_whole("amount", self.amount)
        burst = self.amount if self.burst is None else _require_whole("burst", self.burst)
        object.__setattr__(self, "burst", burst)
        microseconds = _microseconds(self.period)
        for tick in (1, 10, 100, 1_000, 10_000, 100_000, 1_000_000):
            if microseconds % tick:
                break
            ticks = microseconds // tick
            shared = gcd(self.amount, ticks)
            unit, refill = ticks // shared, self.amount // shared
            if burst * unit + refill <= LARGEST:
                object.__setattr__(self, "unit", unit)
                object.__setattr__(self, "refill", refill)
                object.__setattr__(self, "tick", tick)
                object.__setattr__(self, "capacity", burst * unit)
                object.__setattr__(self, "ticks_to_fill", -(-burst * unit // refill))
                return
        raise ValueError(
            f"burst={burst} is too large for exact arithmetic at {self.amount} per {self.period} s: "
            "choose a smaller burst, or an amount and a period with a common divisor"
        )

    @property
    def size(self) -> int:
        """Tokens in a full bucket: `burst`, or `amount` where none was given."""
        return self.capacity // self.unit

    @property
    def period_microseconds(self) -> int:
        """The period in whole microseconds."""
        return round(self.period * _MICROSECONDS)

    @property
    def seconds_to_fill(self) -> float:
        """Seconds from an empty bucket to a full one."""
        return self.ticks_to_fill * self.tick / _MICROSECONDS

    def __str__(self) -> str:
        burst = "" if self.size == self.amount else f" burst {self.size}"
        return f"{self.amount} per {self.period:g} s{burst}"


def _require_whole(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}={value!r}: a limit takes a whole number from 1")
    return value


def _microseconds(period: float) -> int:
    if not 0 < period <= _LONGEST_PERIOD:
        raise ValueError(f"period={period!r}: a limit takes seconds above 0, up to {_LONGEST_PERIOD}")
    microseconds = round(period * _MICROSECONDS)
    if microseconds < 1:
        raise ValueError(f"period={period!r}: the shortest period is one microsecond")
    return microseconds


class Bucket(NamedTuple):
    """What is stored: `level` parts at `stamp` microseconds, in parts of which `unit` make a token."""

    level: int
    stamp: int
    unit: int


class Charge(NamedTuple):
    """A request for `cost` tokens from the bucket that `subject` (the caller) has under `scope` (the policy)."""

    scope: str
    subject: str
    limit: Limit
    cost: int


class Quota(NamedTuple):
    """What one limit says: `level` is what the bucket holds after the decision, in parts."""

    limit: Limit
    level: int
    cost: int

    @property
    def remaining(self) -> int:
        """Whole tokens left, from 0."""
        return max(0, self.level // self.limit.unit)

    @property
    def reset_after(self) -> float:
        """Seconds until the bucket is full again."""
        limit = self.limit
        return -(-(limit.capacity - self.level) // limit.refill) * limit.tick / _MICROSECONDS

    @property
    def wait(self) -> float | None:
        """Seconds until the bucket holds the cost; 0.0 when it does now, None when it never will."""
        limit = self.limit
        missing = self.cost * limit.unit - self.level
        if missing <= 0:
            return 0.0
        if self.cost > limit.size:
            return None
        return -(-missing // limit.refill) * limit.tick / _MICROSECONDS


class Decision(NamedTuple):
    """All or nothing over every charge. Holds all that an HTTP edge asks for, so that no second look is needed."""

    allowed: bool
    quotas: tuple[Quota, ...]

    @property
    def retry_after(self) -> float | None:
        """Seconds after which the same request can succeed; 0.0 when allowed, None when it never will."""
        if self.allowed:
            return 0.0
        waits = [quota.wait for quota in self.quotas]
        return None if None in waits else max(wait for wait in waits if wait is not None)

    @property
    def remaining(self) -> int:
        """Whole tokens left under the tightest limit."""
        return min(quota.remaining for quota in self.quotas)


def advance(limit: Limit, bucket: Bucket | None, now: int) -> tuple[int, int]:
    """The level and stamp of `bucket` at `now` (microseconds). A missing bucket is full.

    A fraction of a tick is kept for later. A clock that went backwards adds nothing and loses nothing. A bucket that was
    written under another rate keeps its whole tokens.
    """
    if bucket is None:
        return limit.capacity, now
    level, stamp, unit = bucket
    if unit != limit.unit:
        level = level // unit * limit.unit
    if now <= stamp:
        return min(level, limit.capacity), now
    ticks = (now - stamp) // limit.tick
    if ticks >= limit.ticks_to_fill:
        return limit.capacity, now
    level += ticks * limit.refill
    if level >= limit.capacity:
        return limit.capacity, now
    return level, stamp + ticks * limit.tick


def decide(
    charges: Sequence[Charge], buckets: Sequence[Bucket | None], now: int
) -> tuple[Decision, tuple[Bucket, ...] | None]:
    """Decide all charges together at `now` (microseconds).

    Returns the decision and the buckets to store, None when nothing is to be written (a denial, or a cost of 0).
    """
    advanced = [advance(charge.limit, bucket, now) for charge, bucket in zip(charges, buckets, strict=True)]
    costs = [charge.cost * charge.limit.unit for charge in charges]
    allowed = all(level >= cost for (level, _), cost in zip(advanced, costs, strict=True))
    spent = costs if allowed else [0] * len(costs)
    quotas = tuple(
        Quota(charge.limit, level - cost, charge.cost)
        for charge, (level, _), cost in zip(charges, advanced, spent, strict=True)
    )
    decision = Decision(allowed, quotas)
    if not any(spent):
        return decision, None
    stored = tuple(
        Bucket(quota.level, stamp, quota.limit.unit) for quota, (_, stamp) in zip(quotas, advanced, strict=True)
    )
    return decision, stored


def seconds_rounded_up(seconds: float) -> int:
    """Whole seconds, never earlier than `seconds`: what an HTTP field may promise."""
    return max(0, ceil(seconds))
