"""What an operator orders, and what a circuit tells of itself."""

from __future__ import annotations

import contextlib
import gc
import threading
from typing import Any

import pybreaker
import pytest

from resilience import CircuitOpen
from resilience.core.events import (
    CallFailed,
    CallIgnored,
    CallNotPermitted,
    CallSlow,
    CallSucceeded,
    CircuitReset,
    PolicyEvent,
    RateExceeded,
    StateChanged,
)
from resilience.events import PROCESS_EVENTS
from resilience.testing import FakeClock, RecordingListener
from tests.support.breakers import Boom, Fine, breaker, fail, fine, heard


def test_a_forced_open_circuit_refuses_until_its_time_is_over_and_then_probes() -> None:
    clock = FakeClock()
    circuit = breaker(clock)
    circuit.force_open(reason="maintenance", author="ann", expires_in=30)
    snapshot = circuit.snapshot()
    assert ("forced-open", "maintenance", "ann", 30.0, "forced open") == (
        snapshot.state, snapshot.reason, snapshot.author, snapshot.expires_in, snapshot.cause
    )  # fmt: skip
    for wait in (30, 18):
        with pytest.raises(CircuitOpen) as caught:
            circuit.call(fine)
        assert wait == caught.value.retry_after
        clock.advance(12)
    clock.advance(6)
    assert "half-open" == circuit.snapshot().state
    assert ("fine", "closed") == (circuit.call(fine), circuit.snapshot().state)


def test_a_circuit_that_is_forced_open_without_an_end_stays_so() -> None:
    clock = FakeClock()
    circuit = breaker(clock)
    circuit.force_open()
    clock.advance(1e6)
    with pytest.raises(CircuitOpen) as caught:
        circuit.call(fine)
    assert (10.0, None) == (caught.value.retry_after, circuit.snapshot().until)
    circuit.close()
    assert "fine" == circuit.call(fine)


def test_a_forced_closed_circuit_counts_and_never_opens_until_its_time_is_over() -> None:
    clock = FakeClock()
    circuit = breaker(clock)
    circuit.force_closed(expires_in=30)
    fail(circuit, 5)
    assert ("forced-closed", 5, 5) == (circuit.snapshot().state, circuit.fail_counter, circuit.snapshot().failed)
    clock.advance(30)
    assert ("closed", 0) == (circuit.snapshot().state, circuit.fail_counter)
    fail(circuit, 2)
    assert "open" == circuit.snapshot().state


def test_what_is_forced_without_an_end_goes_the_short_way_and_counts_all_the_same() -> None:
    circuit = breaker(FakeClock())
    circuit.force_closed()
    assert circuit._standing.quick
    fail(circuit, 5)
    assert ["fine"] * 3 == [circuit.call(fine) for _ in range(3)]
    snapshot = circuit.snapshot()
    assert ("forced-closed", 5, 3) == (snapshot.state, snapshot.failed, snapshot.succeeded)
    circuit.force_open()
    for _ in range(3):
        with pytest.raises(CircuitOpen) as caught:
            circuit.call(fine)
    assert (10.0, 3) == (caught.value.retry_after, circuit.snapshot().not_permitted)


def test_a_disabled_circuit_counts_nothing() -> None:
    circuit = breaker()
    circuit.disable()
    fail(circuit, 5)
    assert "fine" == circuit.call(fine)
    snapshot = circuit.snapshot()
    assert ("disabled", 0, 0, 0) == (snapshot.state, snapshot.failures, snapshot.failed, snapshot.succeeded)


def test_a_circuit_for_metrics_only_tells_once_a_second_that_it_would_have_opened() -> None:
    clock = FakeClock()
    circuit = breaker(clock)
    circuit.metrics_only()
    with heard(RateExceeded) as events:
        fail(circuit, 4)
        clock.advance(1)
        fail(circuit)
    assert ("metrics-only", ["failures in a row"] * 2) == (circuit.snapshot().state, [event.rule for event in events])


def test_an_opened_circuit_stays_open_for_as_long_as_is_ordered() -> None:
    circuit = breaker()
    circuit.open(expires_in=3)
    assert 3.0 == circuit.snapshot().retry_after
    circuit.open()
    assert 10.0 == circuit.snapshot().retry_after


@pytest.mark.parametrize("method", ["close", "half_open", "reset"])
def test_what_does_not_last_takes_no_time(method: str) -> None:
    with pytest.raises(ValueError, match="force the circuit"):
        getattr(breaker(), method)(expires_in=5)


@pytest.mark.parametrize("expires_in", [-1, float("inf"), float("nan")])
def test_a_time_that_is_none_is_refused(expires_in: float) -> None:
    with pytest.raises(ValueError, match="give seconds from 0"):
        breaker().force_open(expires_in=expires_in)


def test_pybreaker_sees_forced_circuits_in_its_own_words() -> None:
    listener = RecordingListener()
    circuit = breaker(listeners=[listener])
    circuit.force_open()
    state: Any = circuit.state
    assert ("open", pybreaker.CircuitOpenState) == (circuit.current_state, type(state))
    circuit.disable()
    assert "closed" == circuit.current_state
    assert [("state_change", "closed", "open"), ("state_change", "open", "closed")] == listener.heard


def test_calls_under_way_when_somebody_moves_the_circuit_say_nothing_about_it() -> None:
    circuit = breaker(fail_max=1)

    def fails_late() -> None:
        circuit.close()
        raise Boom

    with pytest.raises(Boom):
        circuit.call(fails_late)
    assert ("closed", 0, 1) == (circuit.current_state, circuit.fail_counter, circuit.snapshot().failed)


def test_every_move_is_told_with_what_moved_it() -> None:
    clock = FakeClock()
    circuit = breaker(clock, fail_max=1)
    with heard(StateChanged, CircuitReset) as events:
        fail(circuit)
        clock.advance(10)
        circuit.call(fine)
        circuit.disable(reason="noisy", author="bob", expires_in=5)
        clock.advance(5)
        circuit.snapshot()
        circuit.reset(reason="clean", author="eve")
    moves = [(event.old, event.new, event.cause) for event in events if isinstance(event, StateChanged)]
    assert [
        ("closed", "open", "too many failed or slow calls"),
        ("open", "half-open", "open time is over"),
        ("half-open", "closed", "enough probes succeeded"),
        ("closed", "disabled", "disabled"),
        ("disabled", "closed", "what was forced has expired"),
        ("closed", "closed", "closed by hand"),
    ] == moves
    assert ("noisy", "bob", 5.0) == (events[3].reason, events[3].author, events[3].expires_in)
    assert ("clean", "eve") == (events[-1].reason, events[-1].author)


def test_calls_are_told_as_they_end_and_successes_only_to_who_wants_them() -> None:
    clock = FakeClock()
    circuit = breaker(clock, fail_max=9, slow_call_rate=1.0, slow_call_duration=2, ignore=[Fine])
    with heard(CallFailed, CallIgnored, CallSlow) as events:
        fail(circuit, error=Boom("so\nit is"))
        fail(circuit, error=Fine)
        circuit.call(clock.advance, 3)
        circuit.call(fine)
    assert ["ERROR", "IGNORED_ERROR", "SLOW_CALL"] == [event.type for event in events]
    assert ("Boom: so it is", "Fine", 3.0) == (events[0].error, events[1].error, events[2].duration)
    assert not PROCESS_EVENTS.wants_successes
    with heard(CallSucceeded) as successes:
        circuit.call(fine)
    assert [0.0] == [event.duration for event in successes]


def test_refusals_are_told_once_a_second_and_every_one_is_counted() -> None:
    clock = FakeClock()
    circuit = breaker(clock)
    circuit.open()
    with heard(CallNotPermitted) as events:
        for _ in range(5):
            with pytest.raises(CircuitOpen):
                circuit.call(fine)
        clock.advance(1)
        assert 5 == circuit.snapshot().not_permitted
    assert [(1, 10.0), (4, 9.0)] == [(event.count, event.retry_after) for event in events]


def test_who_wants_every_refusal_hears_every_refusal() -> None:
    circuit = breaker()
    circuit.open()
    events: list[PolicyEvent] = []
    end = PROCESS_EVENTS.listen(events.append, CallNotPermitted, every_refusal=True)
    try:
        for _ in range(3):
            with pytest.raises(CircuitOpen):
                circuit.call(fine)
    finally:
        end()
    assert 3 == len(events)


def test_whoever_listens_may_ask_for_the_state_and_move_it() -> None:
    circuit = breaker(fail_max=1)
    states: list[str] = []

    def listener(event: PolicyEvent) -> None:
        assert not circuit._standing.lock._is_owned()
        states.append(circuit.snapshot().state)

    end = PROCESS_EVENTS.listen(listener, StateChanged, CallFailed)
    try:
        fail(circuit)
    finally:
        end()
    assert ["open", "open"] == states


def test_listeners_are_called_one_at_a_time() -> None:
    inside, most, barrier = 0, 0, threading.Barrier(4)

    class Listener(pybreaker.CircuitBreakerListener):
        def success(self, cb: Any) -> None:
            nonlocal inside, most
            inside += 1
            most = max(most, inside)
            gc.collect(0)
            inside -= 1

    circuit = breaker(listeners=[Listener()])

    def caller() -> None:
        barrier.wait(5)
        for _ in range(50):
            circuit.call(fine)

    threads = [threading.Thread(target=caller) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert (1, 200) == (most, circuit.snapshot().succeeded)


def test_a_listener_of_moves_alone_does_not_slow_successes_down() -> None:
    class Log(pybreaker.CircuitBreakerListener):
        def state_change(self, cb: Any, old_state: Any, new_state: Any) -> None:
            """Writes a line."""

    circuit, listener = breaker(listeners=[Log()]), RecordingListener()
    ways = [circuit._standing.quick]
    circuit.add_listener(listener)
    ways.append(circuit._standing.quick)
    circuit.remove_listener(listener)
    ways.append(circuit._standing.quick)
    assert [True, False, True] == ways


def test_a_breaker_keeps_no_more_attributes_than_are_read_quickly() -> None:
    assert 30 >= len(vars(breaker()))  # beyond that CPython reads each of them more slowly


@pytest.mark.parametrize("order", ["open", "force_open"])
def test_a_rejection_is_gone_when_it_has_been_caught(order: str) -> None:
    circuit = breaker()
    getattr(circuit, order)()
    gc.collect()
    gc.disable()
    try:
        for _ in range(100):
            with contextlib.suppress(CircuitOpen):
                circuit.call(fine)
        assert [] == [each for each in gc.get_objects() if type(each) is CircuitOpen]
    finally:
        gc.enable()
