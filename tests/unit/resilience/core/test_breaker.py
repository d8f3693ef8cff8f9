"""The circuit: every cell of its table, and what its permits promise."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from resilience.core.breaker import (
    CLOSED,
    HALF_OPEN,
    OPEN,
    STATES,
    TRANSITIONS,
    BreakerPolicy,
    Circuit,
    Event,
    Outcome,
    Permit,
    Refusal,
    admit,
    force,
    retry_after,
    settle,
)

POLICY = BreakerPolicy(fail_max=3, reset_timeout=10, success_threshold=2, half_open_max_calls=2, probe_lease=30)


def admitted(circuit: Circuit, now: float = 0.0, policy: BreakerPolicy = POLICY) -> Permit:
    answer, _ = admit(circuit, policy, now)
    assert isinstance(answer, Permit)
    return answer


def call(circuit: Circuit, outcome: Outcome, now: float = 0.0, policy: BreakerPolicy = POLICY) -> None:
    settle(circuit, policy, admitted(circuit, now, policy), outcome, now)


def opened(now: float = 0.0) -> Circuit:
    circuit = Circuit()
    for _ in range(3):
        call(circuit, Outcome.FAILURE, now)
    assert circuit.state == OPEN
    return circuit


def test_the_table_has_just_these_moves() -> None:
    expected = {
        (CLOSED, Event.TRIP): OPEN,
        (OPEN, Event.COOL): HALF_OPEN,
        (HALF_OPEN, Event.PROBE_FAILED): OPEN,
        (HALF_OPEN, Event.RECOVER): CLOSED,
    }
    forced = {Event.FORCE_OPEN: OPEN, Event.FORCE_CLOSED: CLOSED, Event.FORCE_HALF_OPEN: HALF_OPEN}
    expected |= {(state, event): new for state in STATES for event, new in forced.items()}
    assert expected == dict(TRANSITIONS)


def test_consecutive_failures_open_it_and_a_success_starts_the_count_again() -> None:
    circuit = Circuit()
    for outcome in (Outcome.FAILURE, Outcome.FAILURE, Outcome.SUCCESS, Outcome.FAILURE, Outcome.FAILURE):
        call(circuit, outcome)
    assert (circuit.state, circuit.failures) == (CLOSED, 2)
    call(circuit, Outcome.FAILURE)
    assert circuit.state == OPEN


def test_an_ignored_result_changes_nothing() -> None:
    circuit = Circuit()
    call(circuit, Outcome.FAILURE)
    call(circuit, Outcome.IGNORED)
    assert (circuit.state, circuit.failures) == (CLOSED, 1)


def test_an_open_circuit_refuses_and_says_how_long() -> None:
    circuit = opened(now=100)
    assert (Refusal(7.5), None) == admit(circuit, POLICY, 102.5)
    assert retry_after(circuit, POLICY, 102.5) == 7.5


def test_when_its_time_is_over_it_admits_as_many_probes_as_permitted() -> None:
    circuit = opened()
    first, transition = admit(circuit, POLICY, 10)
    assert isinstance(first, Permit)
    assert transition is not None
    assert (transition.old, transition.new) == (OPEN, HALF_OPEN)
    second = admitted(circuit, 10)
    assert first != second
    refused, _ = admit(circuit, POLICY, 10)
    assert Refusal(1.0) == refused
    settle(circuit, POLICY, first, Outcome.SUCCESS, 11)
    assert isinstance(admit(circuit, POLICY, 11)[0], Permit), "a probe that came home frees its place"


def test_enough_successful_probes_close_it() -> None:
    circuit = opened()
    call(circuit, Outcome.SUCCESS, 10)
    assert circuit.state == HALF_OPEN
    call(circuit, Outcome.SUCCESS, 10)
    assert (circuit.state, circuit.failures) == (CLOSED, 0)


def test_one_failed_probe_opens_it_for_another_full_time() -> None:
    circuit = opened()
    call(circuit, Outcome.FAILURE, 10)
    assert (circuit.state, retry_after(circuit, POLICY, 10)) == (OPEN, 10.0)


def test_an_ignored_probe_gives_its_place_back_and_decides_nothing() -> None:
    circuit = opened()
    for _ in range(5):
        call(circuit, Outcome.IGNORED, 10)
    assert (circuit.state, circuit.successes, circuit.probes) == (HALF_OPEN, 0, [])


def test_a_probe_that_never_reports_loses_its_place_when_its_lease_ends() -> None:
    circuit = opened()
    lost = [admitted(circuit, 10), admitted(circuit, 10)]
    assert isinstance(admit(circuit, POLICY, 39.9)[0], Refusal)
    admitted(circuit, 40.1)
    for permit in lost:
        assert settle(circuit, POLICY, permit, Outcome.FAILURE, 41) is None
    assert circuit.state == HALF_OPEN


def test_a_result_from_before_the_last_move_is_dropped() -> None:
    circuit = Circuit()
    late = admitted(circuit)
    for _ in range(3):
        call(circuit, Outcome.FAILURE)
    assert settle(circuit, POLICY, late, Outcome.SUCCESS, 1) is None
    assert circuit.state == OPEN
    probe = admitted(circuit, 10)
    force(circuit, Event.FORCE_CLOSED, 11)
    assert settle(circuit, POLICY, probe, Outcome.FAILURE, 12) is None
    assert (circuit.state, circuit.failures) == (CLOSED, 0)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize(
    ("event", "new"), [(Event.FORCE_OPEN, OPEN), (Event.FORCE_CLOSED, CLOSED), (Event.FORCE_HALF_OPEN, HALF_OPEN)]
)
def test_it_can_be_forced_from_anywhere(state: str, event: Event, new: str) -> None:
    circuit = Circuit(state=state)
    transition = force(circuit, event, 5)
    assert (state, new, new) == (transition.old, transition.new, circuit.state)


@pytest.mark.parametrize(
    "values",
    [{"fail_max": 0}, {"success_threshold": 0}, {"half_open_max_calls": 0}, {"reset_timeout": -1}, {"probe_lease": 0}],
)
def test_values_out_of_range_are_refused_by_name(values: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        BreakerPolicy(**values)


steps = some.lists(
    some.one_of(
        some.tuples(some.just("admit"), some.floats(0, 20)),
        some.tuples(some.just("settle"), some.integers(0, 9), some.sampled_from(Outcome)),
        some.tuples(
            some.just("force"), some.sampled_from([Event.FORCE_OPEN, Event.FORCE_CLOSED, Event.FORCE_HALF_OPEN])
        ),
    ),
    max_size=80,
)


@given(steps)
def test_no_interleaving_admits_more_probes_than_permitted_or_leaves_the_table(walk: list[tuple[object, ...]]) -> None:
    circuit, now = Circuit(), 0.0
    under_way: list[Permit] = []
    for step in walk:
        before = circuit.state
        transition = None
        if step[0] == "admit":
            now += step[1]  # type: ignore[operator]  # a float by construction
            answer, transition = admit(circuit, POLICY, now)
            if isinstance(answer, Permit):
                under_way.append(answer)
        elif step[0] == "settle" and under_way:
            permit = under_way.pop(step[1] % len(under_way))  # type: ignore[operator]  # an int by construction
            transition = settle(circuit, POLICY, permit, step[2], now)  # type: ignore[arg-type]
        elif step[0] == "force":
            transition = force(circuit, step[1], now)  # type: ignore[arg-type]
        live = [p for p in under_way if p.generation == circuit.generation and p.number and p.expires > now]
        assert len(live) <= POLICY.half_open_max_calls or circuit.state != HALF_OPEN
        if transition is None:
            assert before == circuit.state
        else:
            assert (before, circuit.state) == (transition.old, transition.new)
            assert TRANSITIONS[transition.old, transition.event] == transition.new
