"""The token bucket in whole numbers.

A bucket holds at most `burst` tokens and gains `amount` tokens every `period`. To stay exact for every rate, also for
7 per second or 100 per minute, nothing is divided: a token is worth `unit` small parts and the bucket gains `refill`
parts every `tick` microseconds, where unit / refill is the reduced fraction period / amount. All numbers stay below
2**53, so that a script whose only number type is a double (`storage/lua/token_bucket.lua`) computes the same.

A charge says with its `floor` how many parts must be left: 0 for a plain one; less, where the caller is ready to wait for
a debt to clear (a reservation); more, where something is to be left for others.

Source of the algorithm: the token bucket of golang.org/x/time/rate (time is an argument, one function decides, a cancelled
reservation gives its tokens back), with the rule of redis-cell that a denial writes nothing: nothing but the time, where
the clock went backwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from math import ceil, gcd
from typing import NamedTuple

__all__ = [
    "LARGEST",
    "Bucket",
    "Charge",
    "Decision",
    "Limit",
    "Quota",
    "Refund",
    "advance",
    "decide",
    "give_back",
    "seconds_rounded_up",
]

LARGEST = 2**53
"""Whole numbers up to here are exact in a double."""

_MICROSECONDS = 1_000_000
_LONGEST_PERIOD = 366 * 86_400


@dataclass(frozen=True, slots=True)
class Limit:
    """`amount` tokens every `period` seconds into a bucket that holds `burst` of them.

    `amount` is a number above 0 (0.5, `Fraction(1, 3)`; a float means what it prints as), `period` is in seconds, from one
    microsecond to 366 days. `burst` is a whole number from 1 and defaults to `amount`, rounded up. Raises `ValueError` with
    the reason when a value is out of range or when the burst is too large for exact arithmetic at this rate.
    """

    amount: int | float | Fraction | Decimal
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
        amount = _exact(self.amount)
        burst = ceil(amount) if self.burst is None else _require_whole("burst", self.burst)
        object.__setattr__(self, "burst", burst)
        microseconds = _microseconds(self.period)
        for tick in (1, 10, 100, 1_000, 10_000, 100_000, 1_000_000):
            if microseconds % tick:
                break
            ticks = microseconds // tick
            parts = ticks * amount.denominator
            shared = gcd(amount.numerator, parts)
            unit, refill = parts // shared, amount.numerator // shared
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
        """Tokens in a full bucket."""
        return self.capacity // self.unit

    @property
    def period_microseconds(self) -> int:
        """The period in whole microseconds."""
        return round(self.period * _MICROSECONDS)

    @property
    def seconds_to_fill(self) -> float:
        """Seconds from an empty bucket to a full one."""
        return self.ticks_to_fill * self.tick / _MICROSECONDS

    def debt(self, seconds: float) -> int:
        """The debt, in parts from 0, that clears within `seconds`; never so deep that the arithmetic were not exact."""
        return min(int(seconds * _MICROSECONDS) // self.tick * self.refill, LARGEST - self.capacity)

    def __str__(self) -> str:
        burst = "" if self.size == self.amount else f" burst {self.size}"
        return f"{self.amount} per {self.period:g} s{burst}"


def _exact(amount: object) -> Fraction:
    exact = Fraction(0)
    if isinstance(amount, int | float | Fraction | Decimal) and not isinstance(amount, bool):
        with suppress(ValueError, OverflowError):  # not a number, or infinite
            exact = Fraction(repr(amount)) if isinstance(amount, float) else Fraction(amount)
    if exact <= 0:
        raise ValueError(f"amount={amount!r}: a limit takes a number above 0")
    return exact


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
    """What is stored: `level` parts (below 0: a debt) at `stamp` microseconds, in parts of which `unit` make a token."""

    level: int
    stamp: int
    unit: int


class Charge(NamedTuple):
    """A request for `cost` tokens from the bucket that `subject` (the caller) has under `scope` (the policy).

    `floor` is how many parts must be left after it. Below 0 it is a debt that may be taken on, for someone who waits until
    it has cleared; `Limit.debt` says how deep it is for so many seconds. `lease` is how many tokens the process may take
    ahead for charges to come, where a storage offers that. A charge of 0 tokens looks, and is never refused.
    """

    scope: str
    subject: str
    limit: Limit
    cost: int
    floor: int = 0
    lease: int = 0


class Refund(NamedTuple):
    """`cost` tokens to be given back to the bucket that `subject` has under `scope`; None fills the bucket.

    `expected` is for a reservation given up before it was due: the level, in parts, that the bucket has if nobody came
    after it. When somebody did, who was told to wait for it to go first, nothing is given back: the next to come would be
    due together with that one, and more than a burst would pass at once.
    """

    scope: str
    subject: str
    limit: Limit
    cost: int | None
    expected: int | None = None


class Quota(NamedTuple):
    """What one limit says: `level` is what the bucket holds after the decision, in parts; below 0 it is a debt."""

    limit: Limit
    level: int
    cost: int
    floor: int = 0

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
        needed = self.cost * limit.unit + self.floor
        if self.cost > limit.size or needed > limit.capacity:
            return None
        if self.level >= needed:
            return 0.0
        return -(-(needed - self.level) // limit.refill) * limit.tick / _MICROSECONDS

    @property
    def debt_delay(self) -> float:
        """Seconds until a debt has cleared: how long whoever took it on waits."""
        limit = self.limit
        return 0.0 if self.level >= 0 else -(self.level // limit.refill) * limit.tick / _MICROSECONDS

    @property
    def queue_delay(self) -> float:
        """Seconds until everything taken before this cost has leaked out: how long a smoothed caller waits."""
        limit = self.limit
        before = limit.capacity - self.level - self.cost * limit.unit
        return 0.0 if before <= 0 else -(-before // limit.refill) * limit.tick / _MICROSECONDS


class _Answer(NamedTuple):
    allowed: bool
    quotas: tuple[Quota, ...]


class Decision(_Answer):
    """All or nothing over every charge. Holds all that an HTTP edge asks for, so that no second look is needed.

    `allowed`, and one of `quotas` for each charge, in order.
    """

    __slots__ = ()

    @property
    def quotas(self) -> tuple[Quota, ...]:
        """What each limit says."""
        quotas = self[1]
        # A storage in a hurry leaves plain tuples here: most decisions are made and never read.
        return quotas if not quotas or type(quotas[0]) is Quota else tuple(map(Quota._make, quotas))

    @property
    def retry_after(self) -> float | None:
        """Seconds after which the same request can succeed; 0.0 when allowed, None when it never will."""
        if self.allowed:
            return 0.0
        waits = [quota.wait for quota in self.quotas]
        return None if None in waits else max(wait for wait in waits if wait is not None)

    @property
    def remaining(self) -> int:
        """Whole tokens left under the tightest limit; `LARGEST` where no limit is concerned."""
        return min((quota.remaining for quota in self.quotas), default=LARGEST)


def advance(limit: Limit, bucket: Bucket | None, now: int) -> tuple[int, int]:
    """The level and stamp of `bucket` at `now` (microseconds). A missing bucket is full.

    A fraction of a tick is kept for later. A clock that went backwards adds nothing and loses nothing: time counts again
    from `now`, once that is stored. A bucket that was written under another rate keeps its whole tokens.
    """
    if bucket is None:
        return limit.capacity, now
    level, stamp, unit = bucket
    if unit != limit.unit:
        level = level // unit * limit.unit
    if level < 0:
        level = max(level, limit.capacity - LARGEST)
    if now <= stamp:
        return min(level, limit.capacity), now
    ticks = (now - stamp) // limit.tick
    # Compared in ticks: the product of ticks and refill may be beyond what a double holds.
    if ticks >= -(-(limit.capacity - level) // limit.refill):
        return limit.capacity, now
    return level + ticks * limit.refill, stamp + ticks * limit.tick


def decide(
    charges: Sequence[Charge], buckets: Sequence[Bucket | None], now: int
) -> tuple[Decision, tuple[Bucket | None, ...] | None]:
    """Decide all charges together at `now` (microseconds).

    Returns the decision and what is stored from now on, one for each charge; None when nothing is to be written (a denial,
    or a cost of 0). A denial writes buckets from the future only, as after a clock that went backwards: they are stored
    as they are at `now`, or they would gain nothing before the clock has caught up. The others are returned unchanged.
    """
    advanced = [advance(charge.limit, bucket, now) for charge, bucket in zip(charges, buckets, strict=True)]
    allowed = all(_fits(charge, level) for charge, (level, _) in zip(charges, advanced, strict=True))
    spent = [charge.cost * charge.limit.unit if allowed else 0 for charge in charges]
    quotas = tuple(
        Quota(charge.limit, level - cost, charge.cost, charge.floor)
        for charge, (level, _), cost in zip(charges, advanced, spent, strict=True)
    )
    decision = Decision(allowed, quotas)
    if not allowed and any(bucket is not None and bucket.stamp > now for bucket in buckets):
        return decision, tuple(
            Bucket(level, stamp, charge.limit.unit) if bucket is not None and bucket.stamp > now else bucket
            for charge, bucket, (level, stamp) in zip(charges, buckets, advanced, strict=True)
        )
    if not any(spent):
        return decision, None
    stored = tuple(
        Bucket(quota.level, stamp, quota.limit.unit) for quota, (_, stamp) in zip(quotas, advanced, strict=True)
    )
    return decision, stored


def _fits(charge: Charge, level: int) -> bool:
    cost = charge.cost * charge.limit.unit
    return not cost or (level - cost >= charge.floor and cost <= charge.limit.capacity)


def give_back(refund: Refund, bucket: Bucket | None, now: int) -> Bucket | None:
    """The bucket after a refund at `now` (microseconds). None when it is full: a full bucket need not be kept."""
    limit = refund.limit
    level, stamp = advance(limit, bucket, now)
    if refund.expected is None or level >= refund.expected:
        level += limit.capacity - level if refund.cost is None else refund.cost * limit.unit
    return None if level >= limit.capacity else Bucket(level, stamp, limit.unit)


def seconds_rounded_up(seconds: float) -> int:
    """Whole seconds, never earlier than `seconds`: what an HTTP field may promise."""
    return max(0, ceil(seconds))
