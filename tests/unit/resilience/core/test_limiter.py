"""The token bucket: tables of (now, cost) that read as its specification, and properties over all rates."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as some

from resilience.core.limiter import (
    LARGEST,
    Bucket,
    Charge,
    Decision,
    Limit,
    Quota,
    Refund,
    advance,
    decide,
    give_back,
    seconds_rounded_up,
)
from resilience.testing import smallest_burst
from tests.support.examples import many

SECOND = 1_000_000


def charge(limit: Limit, cost: int = 1, floor: int = 0) -> Charge:
    return Charge("scope", "subject", limit, cost, floor)


def refund(limit: Limit, cost: int | None = 1, expected: int | None = None) -> Refund:
    return Refund("scope", "subject", limit, cost, expected)


def ask(limit: Limit, bucket: Bucket | None, now: int, cost: int = 1, floor: int = 0) -> tuple[Decision, Bucket | None]:
    """The decision, and the bucket as it is afterwards."""
    decision, stored = decide([charge(limit, cost, floor)], [bucket], now)
    return decision, bucket if stored is None else stored[0]


def take(limit: Limit, bucket: Bucket | None, now: int, cost: int = 1, floor: int = 0) -> tuple[bool, Bucket | None]:
    decision, bucket = ask(limit, bucket, now, cost, floor)
    return decision.allowed, bucket


def rate_of(limit: Limit) -> Fraction:
    """Tokens in a microsecond, exactly."""
    return Fraction(limit.refill, limit.unit * limit.tick)


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
        pytest.param(
            Limit(0.5, 1),
            [(0, 1, True, 0), (1_999_999, 1, False, 0), (2 * SECOND, 1, True, 0)],
            id="half a token a second is one every two seconds",
        ),
        pytest.param(
            Limit(Fraction(1, 3), 0.1, 2),
            [(0, 2, True, 0), (299_999, 1, False, 0), (300_000, 1, True, 0), (900_000, 2, True, 0)],
            id="a third of a token a tenth of a second",
        ),
        pytest.param(
            Limit(30, 60, 10),
            [(0, 1, True, 9), (SECOND, 1, True, 8), (2 * SECOND, 1, True, 8), (3 * SECOND, 1, True, 7),
             (4 * SECOND, 1, True, 7)],
            id="half a token gained between two calls is there at the third",
        ),
    ],
)  # fmt: skip
def test_rows_of_time_and_cost_are_decided_as_written(limit: Limit, rows: list[tuple[int, int, bool, int]]) -> None:
    bucket: Bucket | None = None
    for now, cost, allowed, remaining in rows:
        decision, bucket = ask(limit, bucket, now, cost)
        assert (allowed, remaining) == (decision.allowed, decision.remaining), (now, cost)


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


def test_a_denial_after_a_clock_went_backwards_writes_so_that_time_counts_again_from_there() -> None:
    limit = Limit(1, 1, 2)
    _, bucket = take(limit, None, 3_600 * SECOND, cost=2)
    allowed, bucket = take(limit, bucket, 5 * SECOND)
    assert (False, Bucket(0, 5 * SECOND, limit.unit)) == (allowed, bucket)
    assert not take(limit, bucket, 6 * SECOND - 1)[0]
    assert take(limit, bucket, 6 * SECOND)[0]


def test_such_a_denial_writes_the_buckets_from_the_future_and_leaves_the_others_as_they_are() -> None:
    limit, before = Limit(1, 1, 2), Limit(10, 1, 10)
    now = 5 * SECOND
    charges = [charge(limit), charge(limit), charge(limit), charge(limit, 0), charge(limit)]
    past, present = Bucket(limit.unit, 4 * SECOND, limit.unit), Bucket(0, now, limit.unit)
    future, debt = Bucket(limit.unit, 9 * SECOND, limit.unit), Bucket(-3 * before.unit, 9 * SECOND, before.unit)
    decision, stored = decide(charges, [past, present, None, future, debt], now)
    assert not decision.allowed
    assert stored is not None
    assert (past, present, None) == stored[:3]
    assert (Bucket(limit.unit, now, limit.unit), Bucket(-3 * limit.unit, now, limit.unit)) == stored[3:]


def test_looking_writes_nothing_also_after_a_clock_went_backwards() -> None:
    limit = Limit(1, 1)
    assert decide([charge(limit, 0)], [Bucket(0, 9, limit.unit)], 0)[1] is None


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


def test_a_changed_rate_keeps_a_debt() -> None:
    before, after = Limit(10, 1, 10), Limit(7, 60, 4)
    _, bucket = take(before, None, 0, cost=10)
    _, bucket = take(before, bucket, 0, cost=3, floor=-before.debt(1))
    assert (-3 * after.unit, 0) == advance(after, bucket, 0)


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
        ((0.0, 1), r"amount=0\.0"),
        ((-0.5, 1), r"amount=-0\.5"),
        ((Fraction(-1, 3), 1), "amount=Fraction"),
        ((float("nan"), 1), "amount=nan"),
        ((float("inf"), 1), "amount=inf"),
        ((Decimal("NaN"), 1), "amount=Decimal"),
        ((Decimal("Infinity"), 1), "amount=Decimal"),
        ((True, 1), "amount=True"),
        (("10", 1), "amount='10'"),
        ((None, 1), "amount=None"),
        ((1, 0), "period=0"),
        ((1, -1), "period=-1"),
        ((1, float("nan")), "period=nan"),
        ((1, float("inf")), "period=inf"),
        ((1, 1e-9), "shortest period"),
        ((1, 1, -2), "burst=-2"),
        ((1, 1, 0), "burst=0"),
        ((1, 1, 1.5), r"burst=1\.5"),
        ((1, 1, False), "burst=False"),
        ((1, 1, 2**53), "too large"),
        ((1e-300, 1), "too large"),
        ((10**300, 1, 10), "too large"),
    ],
)
def test_values_out_of_range_are_refused_with_the_reason(arguments: tuple[int, ...], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Limit(*arguments)


@pytest.mark.parametrize(
    ("amount", "exact", "burst"),
    [
        (0.1, Fraction(1, 10), 1),
        (2.5, Fraction(5, 2), 3),
        (Fraction(7, 3), Fraction(7, 3), 3),
        (Decimal("0.75"), Fraction(3, 4), 1),
        (5, Fraction(5), 5),
    ],
)
def test_a_fractional_amount_means_what_it_prints_as_and_its_burst_is_rounded_up(
    amount: int | float | Fraction | Decimal, exact: Fraction, burst: int
) -> None:
    limit = Limit(amount, 1)
    assert (exact / SECOND, burst) == (rate_of(limit), limit.size)


amounts = some.one_of(
    some.integers(1, 10_000),
    some.fractions(Fraction(1, 100), 1_000, max_denominator=100),
    some.integers(1, 100_000).map(lambda hundredths: hundredths / 100),
)
limits = some.builds(
    Limit,
    amount=amounts,
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
        assert spent <= limit.size + now * rate_of(limit)


@given(limits, walks)
def test_every_walk_is_given_what_an_exact_bucket_gives(limit: Limit, walk: list[tuple[int, int]]) -> None:
    assume(limit.tick == 1)
    exact, bucket, now, last = Fraction(limit.size), None, 0, 0
    for elapsed, cost in walk:
        now += elapsed
        exact, last = min(Fraction(limit.size), exact + (now - last) * rate_of(limit)), now
        expected = exact >= cost
        exact -= cost if expected else 0
        allowed, bucket = take(limit, bucket, now, cost)
        assert expected == allowed


@given(limits, walks)
def test_looking_and_being_denied_change_nothing_that_comes_after(limit: Limit, walk: list[tuple[int, int]]) -> None:
    """What is stored is a function of what was granted: throttled-py moves its stamp at every look and loses the rest."""
    watched: Bucket | None = None
    plain: Bucket | None = None
    now = 0
    for elapsed, cost in walk:
        now += elapsed // 2
        assert (False, watched) == take(limit, watched, now, limit.size + 1)
        assert (True, watched) == take(limit, watched, now, 0)
        now += elapsed - elapsed // 2
        allowed, watched = take(limit, watched, now, cost)
        assert (allowed, watched) == take(limit, plain, now, cost)
        plain = watched


@given(limits, walks, some.integers(0, 10**10))
def test_wherever_the_clock_goes_back_to_who_comes_again_when_told_to_is_let_in(
    limit: Limit, walk: list[tuple[int, int]], back: int
) -> None:
    bucket: Bucket | None = None
    now = 10**10
    for elapsed, cost in walk:
        now += elapsed
        _, bucket = take(limit, bucket, now, cost)
    now -= back
    decision, bucket = ask(limit, bucket, now, limit.size)
    if not decision.allowed and back:
        assert decision.retry_after is not None
        assert take(limit, bucket, now + round(decision.retry_after * SECOND), limit.size)[0]


@given(limits, walks, some.integers(1, 50), some.floats(-60, 1))
def test_a_wait_is_long_enough_and_not_a_tick_too_long(
    limit: Limit, walk: list[tuple[int, int]], cost: int, seconds: float
) -> None:
    bucket: Bucket | None = None
    now = 0
    for elapsed, spent in walk:
        now += elapsed
        _, bucket = take(limit, bucket, now, spent)
    level, stamp = advance(limit, bucket, now)
    # Below 0 a debt that may be taken on, above it a share of the bucket that is left for others.
    floor = -limit.debt(-seconds) if seconds < 0 else int(seconds * limit.capacity)
    quota = Quota(limit, level, cost, floor)
    if cost > limit.size or cost * limit.unit + floor > limit.capacity:
        assert quota.wait is None
        return
    assert quota.wait is not None
    microseconds = round(quota.wait * SECOND)
    settled = Bucket(level, stamp, limit.unit)
    assert take(limit, settled, stamp + microseconds, cost, floor)[0]
    if microseconds >= limit.tick:
        assert not take(limit, settled, stamp + microseconds - limit.tick, cost, floor)[0]


@given(amounts, some.sampled_from([1, 60, 3_600, 86_400, 31_536_000]), some.integers(1, 10**6))
def test_every_number_stays_exact_in_a_double(amount: int | float | Fraction, period: int, burst: int) -> None:
    try:
        limit = Limit(amount, period, burst)
    except ValueError:
        return
    assert limit.capacity + limit.refill <= LARGEST
    exact = Fraction(repr(amount)) if isinstance(amount, float) else Fraction(amount)
    assert exact / limit.period_microseconds == rate_of(limit)


# Debts: a floor below 0


def test_a_debt_is_taken_on_down_to_the_floor_and_no_deeper() -> None:
    limit = Limit(10, 1, 2)
    floor = -limit.debt(0.25)  # two tokens and a half
    rows = []
    bucket: Bucket | None = None
    for _ in range(5):
        decision, bucket = ask(limit, bucket, 0, floor=floor)
        rows.append((decision.allowed, decision.quotas[0].debt_delay))
    assert [(True, 0.0), (True, 0.0), (True, 0.1), (True, 0.2), (False, 0.2)] == rows
    assert not take(limit, bucket, 49_999, floor=floor)[0]
    assert take(limit, bucket, 50_000, floor=floor)[0], "it may be asked for as soon as it clears in time"


def test_whoever_does_not_wait_is_not_let_past_a_debt() -> None:
    limit = Limit(10, 1, 1)
    _, bucket = take(limit, None, 0)
    _, bucket = take(limit, bucket, 0, floor=-limit.debt(1))
    assert not take(limit, bucket, 100_000)[0]
    decision, bucket = ask(limit, bucket, 200_000)
    assert (True, 0.0) == (decision.allowed, decision.quotas[0].debt_delay)


def test_remaining_is_never_below_nothing() -> None:
    limit = Limit(1, 1, 1)
    decision, _ = ask(limit, Bucket(-5 * limit.unit, 0, limit.unit), 0, cost=0)
    assert (True, 0, 6.0, 5.0) == (
        decision.allowed,
        decision.remaining,
        decision.quotas[0].reset_after,
        decision.quotas[0].debt_delay,
    )


def test_a_cost_above_the_burst_is_never_promised_however_deep_the_debt_may_be() -> None:
    limit = Limit(10, 1, 10)
    decision, bucket = ask(limit, None, 0, cost=11, floor=-limit.debt(10))
    assert (False, None, None) == (decision.allowed, decision.retry_after, bucket)


@given(limits, some.floats(0, 1_000_000))
def test_the_deepest_debt_clears_in_time_and_a_deeper_one_would_not(limit: Limit, seconds: float) -> None:
    debt = limit.debt(seconds)
    assert 0 <= debt <= LARGEST - limit.capacity
    assert Quota(limit, -debt, 1).debt_delay <= seconds
    if debt < LARGEST - limit.capacity:
        assert Quota(limit, -debt - 1, 1).debt_delay > seconds - limit.tick / SECOND


@settings(max_examples=many(100))
@given(limits, walks, some.floats(0, 100))
def test_reservations_come_due_in_order_and_never_above_the_rate(
    limit: Limit, walk: list[tuple[int, int]], wait: float
) -> None:
    """Those who wait until their debt has cleared come, by then, to no more than the bucket and the time give."""
    floor = -limit.debt(wait)
    bucket: Bucket | None = None
    due: list[int] = []
    now = spent = 0
    for elapsed, cost in walk:
        now += elapsed
        decision, bucket = ask(limit, bucket, now, cost, floor)
        if decision.allowed and cost:
            spent += cost
            delay = decision.quotas[0].debt_delay
            assert delay <= wait
            due.append(now + round(delay * SECOND))
            assert spent <= limit.size + due[-1] * rate_of(limit)
    assert all(earlier <= later + limit.tick for earlier, later in pairwise(due)), "first come, first served"


@settings(max_examples=many(100))
@given(limits, walks, some.floats(0, 100))
def test_smoothed_calls_leave_one_after_the_other_at_the_rate(
    limit: Limit, walk: list[tuple[int, int]], wait: float
) -> None:
    """`queue_delay`: who leaves when everything taken before has leaked out keeps the distance that those before cost."""
    bucket: Bucket | None = None
    before: tuple[int, int] | None = None
    now = 0
    for elapsed, cost in walk:
        now += elapsed
        decision, bucket = ask(limit, bucket, now, cost, -limit.debt(wait))
        if not (decision.allowed and cost):
            continue
        leaves = now + round(decision.quotas[0].queue_delay * SECOND)
        if before is not None:
            left, spent = before
            # Both moments are rounded up to a tick, and a stamp may lie up to a tick before now.
            assert leaves - left >= spent / rate_of(limit) - 2 * limit.tick
        before = leaves, cost


def test_a_smoothed_caller_waits_for_those_before_him_and_not_for_himself() -> None:
    limit = Limit(10, 1, 5)
    bucket: Bucket | None = None
    delays = []
    for cost in (1, 1, 2, 1):
        decision, bucket = ask(limit, bucket, 0, cost)
        delays.append(decision.quotas[0].queue_delay)
    assert [0.0, 0.1, 0.2, 0.4] == delays


# Floors above 0


def test_a_floor_above_nothing_leaves_so_much_for_others() -> None:
    limit = Limit(10, 1, 10)
    floor = 6 * limit.unit
    decision, bucket = ask(limit, None, 0, cost=4, floor=floor)
    assert (True, 6) == (decision.allowed, decision.remaining)
    decision, bucket = ask(limit, bucket, 0, cost=1, floor=floor)
    assert (False, 0.1) == (decision.allowed, decision.retry_after)
    assert take(limit, bucket, 0, cost=6)[0], "the others find what was left for them"


def test_a_floor_beyond_the_burst_is_never_promised() -> None:
    limit = Limit(10, 1, 10)
    decision, _ = ask(limit, None, 0, cost=5, floor=6 * limit.unit)
    assert (False, None) == (decision.allowed, decision.retry_after)


# Refunds


@given(limits, walks, some.integers(1, 50))
def test_what_is_taken_and_given_back_at_once_was_never_taken(
    limit: Limit, walk: list[tuple[int, int]], cost: int
) -> None:
    bucket: Bucket | None = None
    now = 0
    for elapsed, spent in walk:
        now += elapsed
        _, bucket = take(limit, bucket, now, spent)
    level, stamp = advance(limit, bucket, now)
    allowed, taken = take(limit, bucket, now, cost)
    if allowed:
        expected = None if level == limit.capacity else Bucket(level, stamp, limit.unit)
        assert expected == give_back(refund(limit, cost), taken, now)


@given(limits, some.lists(some.tuples(some.integers(0, SECOND), some.integers(1, 20), some.booleans()), max_size=60))
def test_with_refunds_of_what_was_taken_no_walk_keeps_more_than_the_burst_and_the_time(
    limit: Limit, walk: list[tuple[int, int, bool]]
) -> None:
    bucket: Bucket | None = None
    taken: list[int] = []
    now = 0
    for elapsed, cost, back in walk:
        now += elapsed
        if back and taken:
            bucket = give_back(refund(limit, taken.pop()), bucket, now)
        elif not back:
            allowed, bucket = take(limit, bucket, now, cost)
            taken += [cost] if allowed else []
        assert sum(taken) <= limit.size + now * rate_of(limit)
        assert bucket is None or bucket.level <= limit.capacity


@given(limits, some.integers(-100, 100), some.integers(0, 200))
def test_a_refund_never_fills_beyond_the_burst_and_a_full_bucket_is_not_kept(
    limit: Limit, tokens: int, cost: int
) -> None:
    level = max(min(tokens, limit.size) * limit.unit, limit.capacity - LARGEST)
    after = give_back(refund(limit, cost), Bucket(level, 0, limit.unit), 0)
    expected = min(level + cost * limit.unit, limit.capacity)
    assert (None if expected == limit.capacity else Bucket(expected, 0, limit.unit)) == after


@pytest.mark.parametrize("level", [-7, 0, 3, 10])
def test_a_refund_of_everything_fills_the_bucket_also_from_a_debt(level: int) -> None:
    limit = Limit(10, 1)
    assert give_back(refund(limit, None), Bucket(level * limit.unit, 0, limit.unit), 0) is None


def test_a_refund_to_a_bucket_nobody_knows_keeps_it_unknown() -> None:
    assert give_back(refund(Limit(10, 1), 3), None, 0) is None


def test_a_refund_keeps_the_fraction_that_the_time_before_it_gave() -> None:
    limit = Limit(1, 1, 5)
    bucket = give_back(refund(limit, 1), Bucket(0, 0, limit.unit), 600_000)
    assert bucket is not None
    assert not take(limit, bucket, 999_999, cost=2)[0]
    assert take(limit, bucket, SECOND, cost=2)[0]


@pytest.mark.parametrize(
    ("later", "given_back"),
    [
        pytest.param(0, 3, id="nobody came after: all of it"),
        pytest.param(1, 0, id="somebody did, and was told when his turn is: nothing"),
        pytest.param(5, 0, id="and nothing is taken from those who came after"),
    ],
)
def test_a_reservation_given_up_comes_back_unless_a_later_one_counts_on_its_going_first(
    later: int, given_back: int
) -> None:
    limit = Limit(10, 1, 10)
    floor = -limit.debt(10)
    _, bucket = take(limit, None, 0, cost=10)
    reserved, bucket = ask(limit, bucket, 0, 3, floor)
    _, bucket = take(limit, bucket, 0, later, floor)
    assert bucket is not None
    after = give_back(refund(limit, 3, expected=reserved.quotas[0].level), bucket, 0)
    assert Bucket(bucket.level + given_back * limit.unit, 0, limit.unit) == after


@settings(max_examples=many(200))
@given(
    limits,
    some.lists(
        some.tuples(some.integers(0, 300_000), some.integers(1, 9), some.none() | some.integers(0, 9)), max_size=40
    ),
)
def test_whoever_gives_up_no_window_is_given_more_than_the_burst_and_its_time(
    limit: Limit, walk: list[tuple[int, int, int | None]]
) -> None:
    """Each reserves and is served when he was told to be; some give up before. A partial refund would break this."""
    floor = -limit.debt(60)
    bucket: Bucket | None = None
    reserved: list[tuple[int, int, Bucket]] = []  # due, cost, the bucket left behind
    now = 0
    for elapsed, cost, gives_up in walk:
        now += elapsed
        if gives_up is not None and gives_up < len(reserved) and reserved[gives_up][0] > now:
            _, spent, behind = reserved.pop(gives_up)
            expected, _ = advance(limit, behind, now)
            bucket = give_back(refund(limit, spent, expected), bucket, now)
        decision, bucket = ask(limit, bucket, now, min(cost, limit.size), floor)
        if decision.allowed:
            assert bucket is not None
            due = now + round(decision.quotas[0].debt_delay * SECOND)
            reserved.append((due, min(cost, limit.size), bucket))
    # A turn is rounded up to a tick after a stamp that may be a tick old: both ends of a window may be off by as much.
    slack = 2 * limit.tick * rate_of(limit)
    assert smallest_burst([(due, cost) for due, cost, _ in reserved], limit) <= limit.size + slack


@given(limits, walks)
def test_no_window_wherever_it_is_placed_is_given_more_than_the_burst_and_its_time(
    limit: Limit, walk: list[tuple[int, int]]
) -> None:
    bucket: Bucket | None = None
    admitted = []
    now = 0
    for elapsed, cost in walk:
        now += elapsed
        allowed, bucket = take(limit, bucket, now, cost)
        admitted += [(now, cost)] if allowed else []
    # In ticks of more than a microsecond a token may be there up to a tick before its time, never more.
    assert smallest_burst(admitted, limit) <= limit.size + (limit.tick - 1) * rate_of(limit)


# Whatever is stored, the arithmetic stays exact


@settings(max_examples=many(200))
@given(limits, limits, some.integers(-LARGEST, LARGEST), some.integers(0, 2**51), some.integers(0, 2**51))
def test_whatever_is_stored_the_level_is_a_number_that_a_double_holds(
    limit: Limit, earlier: Limit, level: int, stamp: int, now: int
) -> None:
    """Also after a change of the rate, or a stored number that another version or a stranger wrote."""
    advanced, stamped = advance(limit, Bucket(level, stamp, earlier.unit), now)
    assert limit.capacity - LARGEST <= advanced <= limit.capacity
    assert now - limit.tick < stamped <= now
    assert Quota(limit, advanced, 1).reset_after >= 0


@given(limits, walks, some.floats(0, 10_000_000))
def test_no_debt_is_so_deep_that_the_arithmetic_were_not_exact(
    limit: Limit, walk: list[tuple[int, int]], wait: float
) -> None:
    bucket: Bucket | None = None
    floor = -limit.debt(wait)
    for _, cost in walk:
        _, bucket = take(limit, bucket, 0, min(cost * 1_000, limit.size), floor)
    if bucket is not None:
        assert limit.capacity - bucket.level <= LARGEST


def test_whole_seconds_are_never_too_early() -> None:
    assert [seconds_rounded_up(value) for value in (-3, 0, 0.001, 1, 1.0001)] == [0, 0, 1, 1, 2]
