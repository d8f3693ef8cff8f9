"""When a circuit opens and for how long: rates, slow calls, what counts, what the backend asks for."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from resilience import CircuitBreaker, CircuitOpen, circuit_breaker
from resilience.core.breaker import BreakerPolicy
from resilience.decorators.rules import FailedResult
from resilience.registry import PROCESS_REGISTRY
from resilience.testing import FakeClock, RecordingListener
from tests.support.breakers import Boom, Fine, boom, breaker, fail, fine


def test_a_failure_rate_opens_from_the_minimum_of_calls_on() -> None:
    circuit = breaker(failure_rate=0.5, minimum_calls=4)
    fail(circuit, 3)
    assert ("closed", -1.0) == (circuit.snapshot().state, circuit.snapshot().failure_rate)
    fail(circuit)
    assert ("open", 100.0) == (circuit.snapshot().state, circuit.snapshot().failure_rate)


def test_the_success_that_completes_the_minimum_may_be_the_one_that_opens() -> None:
    circuit = breaker(failure_rate=0.5, minimum_calls=4)
    fail(circuit, 3)
    assert "fine" == circuit.call(fine)
    assert ("open", 75.0) == (circuit.snapshot().state, circuit.snapshot().failure_rate)


def test_successes_count_before_the_first_failure() -> None:
    circuit = breaker(failure_rate=0.5, minimum_calls=4)
    for _ in range(6):
        circuit.call(fine)
    fail(circuit, 5)
    assert ("closed", 11, 5) == (circuit.current_state, *list(circuit.snapshot().window.values())[:2])
    fail(circuit)
    assert ("open", 6, 6) == (circuit.current_state, circuit.snapshot().succeeded, circuit.snapshot().failed)


def test_a_window_of_seconds_forgets() -> None:
    clock = FakeClock()
    circuit = breaker(clock, failure_rate=0.5, window_seconds=10, minimum_calls=4)
    fail(circuit, 3)
    clock.advance(11)
    fail(circuit, 3)
    assert "closed" == circuit.current_state
    fail(circuit)
    assert "open" == circuit.current_state


def test_successes_of_the_quick_way_leave_a_window_of_seconds_as_well() -> None:
    clock = FakeClock()
    circuit = breaker(clock, failure_rate=0.5, window_seconds=10, minimum_calls=4)
    for _ in range(50):
        circuit.call(fine)
    assert 50 == circuit.snapshot().own_window["calls"]
    clock.advance(11)
    assert 0 == circuit.snapshot().own_window["calls"]
    fail(circuit, 4)
    assert ("open", 50) == (circuit.current_state, circuit.snapshot().succeeded)


def test_slow_calls_open_though_they_succeed() -> None:
    clock = FakeClock()
    circuit = breaker(clock, slow_call_rate=0.5, slow_call_duration=2, minimum_calls=2)
    circuit.call(fine)
    circuit.call(clock.advance, 2)
    snapshot = circuit.snapshot()
    assert ("open", 50.0, 1, 2, 2.0) == (
        snapshot.state, snapshot.slow_call_rate, snapshot.slow, snapshot.succeeded, snapshot.longest["successful"]
    )  # fmt: skip


def test_a_rate_alone_has_no_rule_for_failures_in_a_row() -> None:
    assert None is breaker(failure_rate=0.5).fail_max
    assert 3 == breaker(failure_rate=0.5, fail_max=3).fail_max


def test_a_small_window_needs_no_more_calls_than_it_holds() -> None:
    assert 5 == breaker(failure_rate=0.5, window_calls=5).policy.minimum_calls


def test_only_what_is_recorded_is_a_failure() -> None:
    circuit = breaker(record=[Boom])
    fail(circuit, 5, Fine)
    assert ("closed", 5) == (circuit.current_state, circuit.snapshot().succeeded)
    fail(circuit, 2)
    assert "open" == circuit.current_state


def test_what_is_ignored_is_ignored_though_it_is_recorded_too() -> None:
    circuit = breaker(record=[Exception], ignore=[lambda error: isinstance(error, Boom)])
    fail(circuit, 5)
    assert ("closed", 5) == (circuit.current_state, circuit.snapshot().ignored)


def test_results_may_be_failures_and_the_caller_has_them_all_the_same() -> None:
    listener = RecordingListener()
    circuit = breaker(record_result=lambda status: status >= 500, listeners=[listener], throw_new_error_on_trip=True)
    assert [503, 503] == [circuit.call(lambda: 503) for _ in range(2)]
    assert ("open", 2) == (circuit.current_state, circuit.snapshot().failed)
    assert ("failure", FailedResult.__name__) in listener.heard


def test_results_may_count_as_neither() -> None:
    circuit = breaker(ignore_result=lambda status: status == 404)
    fail(circuit)
    assert 404 == circuit.call(lambda: 404)
    assert (1, 1) == (circuit.fail_counter, circuit.snapshot().ignored)
    circuit.call(lambda: 200)
    assert (0, 1) == (circuit.fail_counter, circuit.snapshot().succeeded)


def test_a_rule_for_results_that_raises_says_nothing_about_the_backend() -> None:
    clock = FakeClock()
    circuit = breaker(clock, record_result=lambda result: result.status >= 500)
    circuit.open()
    clock.advance(10)
    with pytest.raises(AttributeError):
        circuit.call(fine)
    assert ("half-open", 0, 1) == (circuit.current_state, circuit.snapshot().probes, circuit.snapshot().ignored)


class Unavailable(Exception):
    """A backend that says when to come back."""

    def __init__(self, retry_after: Any) -> None:
        super().__init__()
        self.retry_after = retry_after


@pytest.mark.parametrize(
    ("said", "open_time"), [(30, 30.0), (3, 10.0), (500.0, 100.0), (None, 10.0), ("30", 10.0), (float("nan"), 10.0), (-5, 10.0)]
)  # fmt: skip
def test_the_backend_says_when_to_come_back_up_to_the_cap(said: Any, open_time: float) -> None:
    circuit = breaker()
    fail(circuit, 2, Unavailable(said))
    assert open_time == circuit.snapshot().retry_after


def test_what_the_backend_says_can_be_read_from_anything() -> None:
    circuit = breaker(fail_max=1, record_result=bool, retry_after=lambda headers: headers["wait"])
    circuit.call(lambda: {"wait": 42})
    assert 42.0 == circuit.snapshot().retry_after


def test_open_times_grow_until_the_backend_recovers() -> None:
    clock = FakeClock()
    circuit = breaker(clock, fail_max=1, open_time_growth=2, open_time_cap=35)
    waits = []
    for _ in range(4):
        fail(circuit)
        waits.append(circuit.snapshot().retry_after)
        clock.advance(waits[-1])
    assert [10.0, 20.0, 35.0, 35.0] == waits
    circuit.call(fine)
    fail(circuit)
    assert 10.0 == circuit.snapshot().retry_after


@pytest.mark.parametrize("option", ["ignore", "exclude", "record"])
@pytest.mark.parametrize("rules", [OSError, 5, [5], ["OSError"], "OSError"])
def test_rules_that_are_none_are_refused(option: str, rules: Any) -> None:
    with pytest.raises(TypeError, match=f"{option}.*exception types"):
        breaker(**{option: rules})


def test_what_is_excluded_later_is_looked_at_as_well() -> None:
    circuit = breaker()
    with pytest.raises(TypeError, match="exclude holds 'OSError'"):
        circuit.add_excluded_exceptions(KeyError, "OSError")  # type: ignore[arg-type]  # the mistake
    assert (KeyError,) == circuit.excluded_exceptions


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fail_max": "5"}, "fail_max='5': give a number"),
        ({"fail_max": True}, "fail_max=True: give a number"),
        ({"reset_timeout": timedelta(minutes=1)}, r"reset_timeout=.*: give a number, as reset_timeout=60 \(seconds\)"),
        ({"record_result": 5}, "record_result=5: give a function"),
        ({"ignore_result": 5}, "ignore_result=5: give a function"),
        ({"retry_after": 5}, "retry_after=5: give a function"),
    ],
)
def test_what_is_of_another_kind_is_refused_by_its_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        breaker(**options)


def test_a_time_that_is_no_number_is_refused_by_its_name() -> None:
    with pytest.raises(TypeError, match="expires_in='10': give a number"):
        breaker().force_open(expires_in="10")  # type: ignore[arg-type]  # the mistake


@pytest.mark.parametrize("option", ["window_calls", "window_seconds", "minimum_calls", "slow_call_duration"])
def test_what_has_no_effect_without_a_rate_is_refused(option: str) -> None:
    with pytest.raises(ValueError, match=f"{option}=5 has no effect without a rate: give .*slow_call_rate too"):
        CircuitBreaker(**{option: 5})  # type: ignore[arg-type]  # one of several


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"failure_rate": 50}, "failure_rate=50: a circuit breaker takes a share above 0, to 1"),
        ({"failure_rate": 0.5, "window_calls": 10, "window_seconds": 1}, "give one of them"),
        ({"failure_rate": 0.5, "window_calls": 10, "minimum_calls": 11}, "minimum_calls=11"),
        ({"open_time_growth": 0.5}, "open_time_growth=0.5"),
        ({"quorum": 0}, "quorum=0"),
    ],
)
def test_values_out_of_range_are_refused_by_their_names(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        breaker(**options)


def test_a_storage_that_is_none_is_refused_with_what_to_do() -> None:
    with pytest.raises(TypeError, match=r"open_state_storage\('redis"):
        breaker(state_storage="redis://localhost")


def test_a_snapshot_tells_which_values_were_given() -> None:
    settings = breaker(failure_rate=0.5).snapshot().policy
    assert ((0.5, "code"), (100, "default"), (10, "code")) == (
        settings["failure_rate"], settings["window_calls"], settings["reset_timeout"]
    )  # fmt: skip


def test_what_the_decorator_begins_with_was_not_chosen_by_anybody() -> None:
    settings = circuit_breaker("begun", open_time_jitter=0.2)(str).circuit.snapshot().policy  # type: ignore[attr-defined]
    PROCESS_REGISTRY.clear()
    assert ((2.0, "default"), (0.2, "code")) == (settings["open_time_growth"], settings["open_time_jitter"])


def test_as_in_pybreaker_open_times_are_the_same_and_exact() -> None:
    policy: BreakerPolicy = CircuitBreaker().policy
    assert (5, 60, 1.0, 0.0) == (
        policy.fail_max,
        policy.reset_timeout,
        policy.open_time_growth,
        policy.open_time_jitter,
    )


def test_the_decorator_s_open_times_grow_and_are_spread() -> None:
    try:
        guarded: Any = circuit_breaker("payments", reset_timeout=5)(fine)
        policy = guarded.circuit.policy
        assert (2.0, 0.1, 50.0, 5) == (
            policy.open_time_growth, policy.open_time_jitter, policy.open_time_cap, policy.fail_max
        )  # fmt: skip
    finally:
        PROCESS_REGISTRY.clear()


def test_an_open_time_that_is_changed_holds_for_the_circuit_that_is_open() -> None:
    clock = FakeClock()
    circuit = breaker(clock)
    circuit.open()
    clock.advance(4)
    circuit.reset_timeout = 5
    assert 1.0 == circuit.snapshot().retry_after
    clock.advance(1)
    assert "fine" == circuit.call(fine)


@pytest.mark.parametrize("way", [lambda circuit: circuit.call(boom), lambda circuit: circuit(boom)()])
def test_a_nested_circuit_that_is_open_counts_as_a_failure_that_says_when_to_come_back(
    way: Callable[[Any], object],
) -> None:
    inner, outer = breaker(name="inner", reset_timeout=60), breaker(name="outer", fail_max=1)
    inner.open()
    with pytest.raises(CircuitOpen, match="inner"):
        outer.call(way, inner)
    assert ("open", 60.0) == (outer.current_state, outer.snapshot().retry_after)
