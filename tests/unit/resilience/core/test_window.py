"""What a circuit remembers of its calls, beside a list of all of them."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as some

from resilience.core.breaker import BreakerPolicy
from resilience.core.window import CallWindow, Health, Rule, TimeWindow, Totals, broken_rule, merged


class Call(NamedTuple):
    """One that ended at `at`."""

    failed: bool
    slow: bool
    at: float = 0.0


GOOD, FAILED, SLOW, BOTH = Call(False, False), Call(True, False), Call(False, True), Call(True, True)
RATES = BreakerPolicy(fail_max=None, failure_rate=0.5, slow_call_rate=1.0, window_calls=10, minimum_calls=4)
calls = some.builds(Call, some.booleans(), some.booleans())


def counted(remembered: list[Call]) -> Totals:
    """What a window of just these calls holds."""
    return Totals(
        len(remembered),
        sum(call.failed for call in remembered),
        sum(call.slow for call in remembered),
        sum(call.failed and call.slow for call in remembered),
    )


def recorded(health: Health, *seen: Call) -> Rule | None:
    """The rule that is broken after these calls, of which the last one tells."""
    rule = None
    for call in seen:
        rule = health.record(call.failed, call.slow, call.at)
    return rule


# -- the last calls ------------------------------------------------------------------------------------------------------


@given(size=some.integers(1, 12), walk=some.lists(calls | some.none(), max_size=60))
def test_a_window_of_calls_holds_the_last_ones_and_no_other(size: int, walk: list[Call | None]) -> None:
    window, seen = CallWindow(size), list[Call]()
    for call in walk:
        if call is None:
            window.clear()
            seen.clear()
        else:
            window.record(call.failed, call.slow, 0.0)
            seen.append(call)
        assert counted(seen[-size:]) == window.totals(0.0)


def test_a_window_of_one_call_holds_the_last_one() -> None:
    window = CallWindow(1)
    for call, expected in ((FAILED, Totals(1, 1, 0, 0)), (BOTH, Totals(1, 1, 1, 1)), (GOOD, Totals(1, 0, 0, 0))):
        window.record(call.failed, call.slow, 0.0)
        assert expected == window.totals(0.0)


# -- the last seconds ----------------------------------------------------------------------------------------------------


@given(
    seconds=some.sampled_from([0.5, 10.0, 60.0]),
    start=some.sampled_from([0.0, 1_000.0, 1.7e9]),
    walk=some.lists(some.tuples(calls | some.none(), some.floats(0, 0.35) | some.floats(0, 3)), max_size=60),
)
def test_a_window_of_seconds_holds_what_is_young_enough_and_nothing_that_is_too_old(
    seconds: float, start: float, walk: list[tuple[Call | None, float]]
) -> None:
    window, seen, now = TimeWindow(seconds), list[Call](), start
    for call, passed in walk:
        now += passed * seconds
        if call is None:
            window.clear()
            seen.clear()
        else:
            window.record(call.failed, call.slow, now)
            seen.append(call._replace(at=now))
        totals = window.totals(now)
        rounding = 1e-9 * max(seconds, now)
        surely = counted([each for each in seen if now - each.at < 0.9 * seconds - rounding])
        perhaps = counted([each for each in seen if now - each.at < seconds + rounding])
        assert all(least <= held <= most for least, held, most in zip(surely, totals, perhaps, strict=True))


def test_a_call_leaves_a_window_of_seconds_after_nine_to_ten_tenths_of_them() -> None:
    window = TimeWindow(10.0)
    window.record(True, False, 100.99)
    assert [1, 1, 0] == [window.totals(now).failed for now in (100.99, 109.98, 110.0)]


def test_after_a_long_silence_nothing_is_left() -> None:
    window = TimeWindow(10.0)
    for at in range(10):
        window.record(True, True, at)
    assert Totals(10, 10, 10, 10) == window.totals(9.5)
    assert Totals() == window.totals(1e9)


def test_under_a_clock_that_goes_back_time_stands_still() -> None:
    window = TimeWindow(10.0)
    window.record(True, False, 100.0)
    window.record(False, False, 50.0)
    assert Totals(2, 1, 0, 0) == window.totals(20.0)
    assert Totals() == window.totals(111.0)


# -- the rules -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("of", range(1, 201, 7))
def test_a_rate_is_reached_at_just_as_many_calls_as_it_says(of: int) -> None:
    for failed in range(1, of + 1):
        policy = BreakerPolicy(fail_max=None, failure_rate=failed / of, window_calls=of, minimum_calls=1)
        assert broken_rule(policy, 0, Totals(of, failed)) is Rule.FAILURE_RATE
        assert broken_rule(policy, 0, Totals(of, failed - 1)) is None


def test_seven_failures_of_a_hundred_calls_are_seven_per_cent() -> None:
    policy = BreakerPolicy(fail_max=None, failure_rate=0.07)
    assert broken_rule(policy, 0, Totals(100, 7)) is Rule.FAILURE_RATE


def test_below_the_minimum_of_calls_no_rate_counts() -> None:
    assert broken_rule(RATES, 9, Totals(3, 3, 3, 3)) is None
    assert broken_rule(RATES, 0, Totals(4, 2)) is Rule.FAILURE_RATE


def test_slow_calls_break_a_rule_of_their_own_whether_they_failed_or_not() -> None:
    assert broken_rule(RATES, 0, Totals(5, 0, 5)) is Rule.SLOW_CALL_RATE
    assert broken_rule(RATES, 0, Totals(5, 1, 4, 1)) is None


def test_failures_in_a_row_need_no_minimum() -> None:
    policy = BreakerPolicy(fail_max=3, failure_rate=0.5)
    assert [None, Rule.CONSECUTIVE] == [broken_rule(policy, failures, Totals()) for failures in (2, 3)]


def test_a_rate_of_no_calls_is_nought() -> None:
    assert (0.0, 0.0) == (Totals().failure_rate, Totals().slow_call_rate)
    assert (0.25, 0.5) == (Totals(4, 1, 2).failure_rate, Totals(4, 1, 2).slow_call_rate)


@given(some.lists(some.builds(Totals, *[some.integers(0, 100)] * 4), max_size=6))
def test_the_windows_of_several_processes_add_up(parts: list[Totals]) -> None:
    expected = tuple(sum(part[place] for part in parts) for place in range(4))
    assert expected == tuple(merged(parts))


# -- the health of a backend ---------------------------------------------------------------------------------------------


def test_consecutive_failures_break_a_rule_and_a_success_starts_the_count_again() -> None:
    health = Health(BreakerPolicy(fail_max=3))
    assert recorded(health, FAILED, FAILED, GOOD, FAILED, FAILED) is None
    assert 2 == health.failures
    assert recorded(health, FAILED) is Rule.CONSECUTIVE


def test_without_a_rate_nothing_is_kept_of_the_calls() -> None:
    health = Health(BreakerPolicy())
    recorded(health, FAILED, SLOW)
    assert Totals() == health.totals(0.0)


def test_a_rate_may_be_reached_by_a_success() -> None:
    health = Health(RATES)
    assert recorded(health, FAILED, FAILED, GOOD) is None
    assert recorded(health, GOOD) is Rule.FAILURE_RATE


def test_what_others_have_seen_counts() -> None:
    health = Health(RATES)
    recorded(health, FAILED, FAILED)
    health.others = Totals(2, 0)
    assert health.broken_rule(0.0) is Rule.FAILURE_RATE
    assert Totals(2, 2) == health.totals(0.0), "what others have seen is not this process's own"
    health.others = Totals(3, 0)
    assert health.broken_rule(0.0) is None


def test_when_the_circuit_moves_it_begins_anew() -> None:
    health = Health(BreakerPolicy(fail_max=3, failure_rate=0.5, window_calls=10, minimum_calls=4))
    recorded(health, FAILED, FAILED, BOTH)
    health.others = Totals(5, 5)
    health.clear()
    assert (0, Totals(), Totals()) == (health.failures, health.others, health.totals(0.0))
    assert recorded(health, FAILED, FAILED) is None


windows = some.sampled_from([{"window_calls": 5}, {"window_calls": None, "window_seconds": 10.0}])


@given(
    window=windows,
    fail_max=some.none() | some.integers(1, 4),
    failure_rate=some.none() | some.sampled_from([0.2, 0.5, 1.0]),
    slow_call_rate=some.none() | some.sampled_from([0.4, 1.0]),
    minimum=some.integers(1, 5),
    walk=some.lists(some.tuples(calls, some.sampled_from([0.0, 0.0, 1.0, 30.0])), max_size=40),
    others=some.just(Totals()) | some.builds(Totals, some.just(10), some.integers(0, 10), some.integers(0, 10)),
)
def test_a_rule_is_broken_just_when_the_calls_that_are_remembered_break_it(
    window: dict[str, float | None],
    fail_max: int | None,
    failure_rate: float | None,
    slow_call_rate: float | None,
    minimum: int,
    walk: list[tuple[Call, float]],
    others: Totals,
) -> None:
    if (fail_max, failure_rate, slow_call_rate) == (None, None, None):
        fail_max = 2
    policy = BreakerPolicy(
        fail_max=fail_max,
        failure_rate=failure_rate,
        slow_call_rate=slow_call_rate,
        minimum_calls=minimum,
        **window,  # type: ignore[arg-type]  # numbers of one kind each
    )
    health, seen, now = Health(policy), list[Call](), 100.0
    health.others = others
    for call, passed in walk:
        now += passed
        rule = health.record(call.failed, call.slow, now)
        seen.append(call._replace(at=now))
        held = seen[-5:] if policy.window_seconds is None else [each for each in seen if now - each.at < 10]
        calls_held, failed, slow = len(held), sum(each.failed for each in held), sum(each.slow for each in held)
        in_a_row = next((place for place, each in enumerate(reversed(seen)) if not each.failed), len(seen))
        enough = calls_held + others.calls >= minimum
        breaks = (
            (fail_max is not None and in_a_row >= fail_max and call.failed)
            or (
                enough
                and failure_rate is not None
                and (failed + others.failed) / (calls_held + others.calls) >= failure_rate
            )
            or (
                enough
                and slow_call_rate is not None
                and (slow + others.slow) / (calls_held + others.calls) >= slow_call_rate
            )
        )
        assert breaks == (rule is not None)
