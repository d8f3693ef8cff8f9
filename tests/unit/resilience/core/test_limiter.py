"""The token bucket: tables of (now, cost) that read as its specification, and properties over all rates."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as some

from resilience.core.limiter import LARGEST, Bucket, Charge, Limit, Quota, advance, decide, seconds_rounded_up

SECOND = 1_000_000


def charge(limit: Limit, cost: int = 1) -> Charge:
    return Charge("scope", "subject", limit, cost)


def take(limit: Limit, bucket: Bucket | None, now: int, cost: int = 1) -> tuple[bool, Bucket | None]:
    decision, stored = decide([charge(limit, cost)], [bucket], now)
    return decision.allowed, bucket if stored is None else stored[0]


@pytest.mark.parametrize(
    ("limit", "rows"),
    [
        pytest.param(
            Limit(10, 1, 3),
            [(0, 1, True, 2), (0, 1, True, 1), (0, 1, True, 0), (0, 1, False, 0),
             (99_999, 1, False, 0), (100_000, 1, True, 0), (150_000, 1, False, 0), (200_000, 1, True, 0)],
            id="a burst of three, then one every tenth of a second",
        ),
        pytest.param(
            Limit(7, 1),
            [(0, 7, True, 0), (142_857, 1, False, 0), (142_858, 1, True, 0), (285_714, 1, False, 0), (285_715, 1, True, 0)],
            id="seven a second are exact though a seventh is not a whole number of microseconds",
        ),
        pytest.param(
            Limit(1, 60, 2),
            [(0, 2, True, 0), (59 * SECOND, 1, False, 0), (60 * SECOND, 1, True, 0), (119 * SECOND, 1, False, 0),
             (300 * SECOND, 2, True, 0)],
            id="one a minute",
        ),
        pytest.param(
            Limit(10, 1, 5),
            [(0, 6, False, 5), (0, 5, True, 0), (0, 0, True, 0), (50_000, 0, True, 0)],
            id="more than the burst is never granted and a cost of nothing always is",
        ),
    ],
)  # fmt: skip
def test_rows_of_time_and_cost_are_decided_as_written(limit: Limit, rows: list[tuple[int, int, bool, int]]) -> None:
    bucket: Bucket | None = None
    for now, cost, allowed, remaining in rows:
        decision, stored = decide([charge(limit, cost)], [bucket], now)
        assert (allowed, remaining) == (decision.allowed, decision.remaining), (now, cost)
        bucket = bucket if stored is None else stored[0]


def test_a_denial_writes_nothing() -> None:
    limit = Limit(1, 1)
    _, bucket = take(limit, None, 0)
    assert (False, bucket) == take(limit, bucket, 500_000)
    assert decide([charge(limit)], [bucket], 500_000)[1] is None


def test_looking_writes_nothing() -> None:
    assert decide([charge(Limit(5, 1), 0)], [None], 0)[1] is None


def test_a_clock_that_goes_backwards_gives_nothing_and_takes_nothing() -> None:
    limit = Limit(1, 1, 2)
    _, bucket = take(limit, None, 10 * SECOND)
    assert (limit.unit, 5 * SECOND) == advance(limit, bucket, 5 * SECOND)
    allowed, bucket = take(limit, bucket, 5 * SECOND)
    assert allowed
    assert (False, bucket) == take(limit, bucket, 5 * SECOND)
    assert take(limit, bucket, 6 * SECOND)[0], "time counts again from where the clock is now"


def test_a_fraction_of_a_tick_is_kept_for_later() -> None:
    limit = Limit(999_983, 86_400)  # prime: counted in ticks of more than a microsecond
    assert limit.tick > 1
    bucket, now = Bucket(0, 0, limit.unit), 0
    for _ in range(1_000):
        now += limit.tick - 1
        level, stamp = advance(limit, bucket, now)
        bucket = Bucket(level, stamp, limit.unit)
    assert now // limit.tick * limit.refill == bucket.level


def test_a_changed_rate_keeps_whole_tokens_up_to_the_new_burst() -> None:
    before, after = Limit(10, 1, 10), Limit(7, 60, 4)
    _, bucket = take(before, None, 0, cost=3)
    assert (4 * after.unit, 0) == advance(after, bucket, 0)
    _, bucket = take(before, None, 0, cost=8)
    assert (2 * after.unit, 0) == advance(after, bucket, 0)


def test_several_limits_are_all_or_nothing() -> None:
    loose, tight = Limit(10, 1), Limit(2, 60)
    charges = [charge(loose), charge(tight)]
    buckets: tuple[Bucket | None, ...] = (None, None)
    for _ in range(2):
        decision, stored = decide(charges, buckets, 0)
        assert decision.allowed
        assert stored is not None
        buckets = stored
    decision, stored = decide(charges, buckets, 0)
    assert stored is None
    assert (
        decision.allowed,
        tuple(q.remaining for q in decision.quotas),
        decision.retry_after,
    ) == (False, (8, 0), 30.0)


def test_an_answer_carries_what_header_fields_need() -> None:
    limit = Limit(10, 1, 20)
    decision, stored = decide([charge(limit, 15)], [None], 0)
    assert stored is not None
    quota = decision.quotas[0]
    assert (quota.remaining, quota.reset_after, decision.retry_after) == (5, 1.5, 0.0)
    denied, _ = decide([charge(limit, 8)], stored, 0)
    assert denied.retry_after == 0.3
    impossible, _ = decide([charge(limit, 21)], stored, 0)
    assert impossible.retry_after is None


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((0, 1), "amount=0"),
        ((-1, 1), "amount=-1"),
        ((1.5, 1), r"amount=1\.5"),
        ((True, 1), "amount=True"),
        ((1, 0), "period=0"),
        ((1, -1), "period=-1"),
        ((1, float("nan")), "period=nan"),
        ((1, float("inf")), "period=inf"),
        ((1, 1e-9), "shortest period"),
        ((1, 1, -2), "burst=-2"),
        ((1, 1, 0), "burst=0"),
        ((1, 1, False), "burst=False"),
        ((1, 1, 2**53), "too large"),
    ],
)
def test_values_out_of_range_are_refused_with_the_reason(arguments: tuple[int, ...], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Limit(*arguments)


limits = some.builds(
    Limit,
    amount=some.integers(1, 10_000),
    period=some.sampled_from([0.001, 0.1, 1, 7, 60, 3_600, 86_400]),
    burst=some.integers(1, 10_000),
)
walks = some.lists(some.tuples(some.integers(0, 5 * SECOND), some.integers(0, 50)), max_size=60)


@given(limits, walks)
def test_no_walk_is_ever_given_more_than_the_burst_and_the_time(limit: Limit, walk: list[tuple[int, int]]) -> None:
    bucket: Bucket | None = None
    now = spent = 0
    for elapsed, cost in walk:
        now += elapsed
        allowed, bucket = take(limit, bucket, now, cost)
        spent += cost if allowed else 0
        assert spent <= limit.size + Fraction(now * limit.amount, limit.period_microseconds)


@given(limits, walks)
def test_every_walk_is_given_what_an_exact_bucket_gives(limit: Limit, walk: list[tuple[int, int]]) -> None:
    exact, bucket, now, last = Fraction(limit.size), None, 0, 0
    rate = Fraction(limit.amount, limit.period_microseconds)
    for elapsed, cost in walk:
        now += elapsed
        if limit.tick == 1:
            exact, last = min(Fraction(limit.size), exact + (now - last) * rate), now
            expected = exact >= cost
            exact -= cost if expected else 0
            allowed, bucket = take(limit, bucket, now, cost)
            assert expected == allowed


@given(limits, walks, some.integers(1, 50))
def test_a_wait_is_long_enough_and_not_a_tick_too_long(limit: Limit, walk: list[tuple[int, int]], cost: int) -> None:
    bucket: Bucket | None = None
    now = 0
    for elapsed, spent in walk:
        now += elapsed
        _, bucket = take(limit, bucket, now, spent)
    level, stamp = advance(limit, bucket, now)
    quota = Quota(limit, level, cost)
    if cost > limit.size:
        assert quota.wait is None
        return
    assert quota.wait is not None
    microseconds = round(quota.wait * SECOND)
    settled = Bucket(level, stamp, limit.unit)
    assert take(limit, settled, stamp + microseconds, cost)[0]
    if microseconds >= limit.tick:
        assert not take(limit, settled, stamp + microseconds - limit.tick, cost)[0]


@given(some.integers(1, 10**6), some.sampled_from([1, 60, 3_600, 86_400, 31_536_000]), some.integers(1, 10**6))
def test_every_number_stays_exact_in_a_double(amount: int, period: int, burst: int) -> None:
    try:
        limit = Limit(amount, period, burst)
    except ValueError:
        return
    assert limit.capacity + limit.refill <= LARGEST
    assert Fraction(limit.amount, limit.period_microseconds) == Fraction(limit.refill, limit.unit * limit.tick)


def test_whole_seconds_are_never_too_early() -> None:
    assert [seconds_rounded_up(value) for value in (-3, 0, 0.001, 1, 1.0001)] == [0, 0, 1, 1, 2]
