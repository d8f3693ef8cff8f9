"""A success that is only added to `passed` counts as one that is recorded."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from resilience.core.breaker import BreakerPolicy
from resilience.core.window import Health, Rule, Totals

policies = some.one_of(
    some.builds(BreakerPolicy, fail_max=some.integers(1, 4)),
    some.builds(
        lambda calls, minimum, rate, row: BreakerPolicy(
            fail_max=row, failure_rate=rate, slow_call_rate=rate, window_calls=calls, minimum_calls=min(minimum, calls)
        ),
        some.integers(1, 12), some.integers(1, 12), some.sampled_from((0.1, 0.3, 0.5, 1.0)), some.sampled_from((None, 3)),
    ),
    some.builds(
        lambda minimum, rate, row: BreakerPolicy(
            fail_max=row, failure_rate=rate, slow_call_rate=rate, window_calls=None, window_seconds=10, minimum_calls=minimum
        ),
        some.integers(1, 12), some.sampled_from((0.1, 0.3, 0.5, 1.0)), some.sampled_from((None, 3)),
    ),
)  # fmt: skip

calls = some.tuples(
    some.sampled_from(("call", "call", "call", "call", "look", "clear", "others")),
    some.sampled_from((False, False, False, True)),
    some.sampled_from((False, False, False, False, True)),
    some.sampled_from((0.0, 0.0, 0.1, 0.9, 1.0, 4.0, 11.0)),
)


def call(health: Health, failed: bool, slow: bool, now: float) -> Rule | None:
    """As the breaker does it."""
    if health.calm and now < health.turn and not failed and not slow:
        health.passed += 1
        return None
    return health.record(failed, slow, now)


@given(policies, some.lists(calls, max_size=60))
def test_whatever_happens_both_ways_break_the_same_rules_and_hold_the_same(policy: Any, steps: list[Any]) -> None:
    quick, thorough, now = Health(policy), Health(policy), 1_000.0
    for step, failed, slow, later in steps:
        now += later
        if step == "clear":
            quick.clear()
            thorough.clear()
        elif step == "others":
            quick.others = thorough.others = Totals(6, 3 * failed, 2 * slow)
            assert thorough.broken_rule(now) == quick.broken_rule(now)
        elif step == "call":
            assert thorough.record(failed, slow, now) == call(quick, failed, slow, now)
            assert thorough.failures == quick.failures
        else:
            assert thorough.all_totals(now) == quick.all_totals(now)
    assert thorough.totals(now) == quick.totals(now)


@pytest.mark.parametrize("passed", [1, 9, 10, 11, 1_000])
def test_any_number_of_successes_fills_a_window_of_calls(passed: int) -> None:
    health = Health(BreakerPolicy(failure_rate=1.0, window_calls=10, minimum_calls=10))
    health.record(True, False, 0.0)
    health.passed += passed
    assert Totals(min(10, passed + 1), int(passed < 10)) == health.totals(0.0)


def test_another_policy_keeps_the_row_of_failures_and_begins_another_window() -> None:
    health = Health(BreakerPolicy(fail_max=3, failure_rate=0.5, window_calls=10, minimum_calls=10))
    health.record(True, False, 0.0)
    health.change(BreakerPolicy(fail_max=2, failure_rate=0.5, window_calls=20, minimum_calls=20))
    assert (1, Totals()) == (health.failures, health.totals(0.0))
    assert Rule.CONSECUTIVE is health.record(True, False, 0.0)
