"""The circuit: every cell of its table, what its permits promise, and how long it stays open."""

from __future__ import annotations

from dataclasses import replace
from math import inf, nan
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from resilience.core.breaker import (
    CLOSED,
    DISABLED,
    FORCED,
    FORCED_CLOSED,
    FORCED_OPEN,
    HALF_OPEN,
    METRICS_ONLY,
    OPEN,
    PASSING,
    STATES,
    TRANSITIONS,
    BreakerPolicy,
    Circuit,
    Event,
    Outcome,
    Permit,
    Refusal,
    Vote,
    admit,
    expire,
    force,
    open_time,
    retry_after,
    settle,
    trip,
    vote,
    withdraw,
)

POLICY = BreakerPolicy(fail_max=3, reset_timeout=10, success_threshold=2, half_open_max_calls=2, probe_lease=30)
BY_HAND = {
    Event.OPEN: OPEN,
    Event.CLOSE: CLOSED,
    Event.HALF_OPEN: HALF_OPEN,
    Event.FORCE_OPEN: FORCED_OPEN,
    Event.FORCE_CLOSED: FORCED_CLOSED,
    Event.DISABLE: DISABLED,
    Event.MEASURE: METRICS_ONLY,
}


def opened(now: float = 0.0, policy: BreakerPolicy = POLICY) -> Circuit:
    """A circuit that calls have opened at `now`."""
    return trip(Circuit(), policy, 0, now)


def probing(circuit: Circuit, now: float, policy: BreakerPolicy = POLICY) -> tuple[Circuit, Permit]:
    """The circuit after a call was admitted at `now`, and its permit."""
    circuit, answer = admit(circuit, policy, now)
    assert isinstance(answer, Permit)
    return circuit, answer


def refused(circuit: Circuit, now: float, policy: BreakerPolicy = POLICY) -> Refusal:
    """What a call is told that is refused at `now`."""
    _, answer = admit(circuit, policy, now)
    assert isinstance(answer, Refusal)
    return answer


def probed(circuit: Circuit, outcome: Outcome, now: float, policy: BreakerPolicy = POLICY) -> Circuit:
    """The circuit after a call with this outcome was made and settled at `now`."""
    circuit, permit = probing(circuit, now, policy)
    return settle(circuit, policy, permit, outcome, now)


def forced(event: Event, now: float = 0.0, **said: Any) -> Circuit:
    """A closed circuit that somebody moved at `now`."""
    return force(Circuit(), POLICY, event, now, **said)


# -- the table ---------------------------------------------------------------------------------------------------------


def test_the_table_has_just_these_moves() -> None:
    expected = {
        (CLOSED, Event.TRIP): OPEN,
        (OPEN, Event.COOL): HALF_OPEN,
        (HALF_OPEN, Event.PROBE_FAILED): OPEN,
        (HALF_OPEN, Event.RECOVER): CLOSED,
        (FORCED_OPEN, Event.EXPIRE): HALF_OPEN,
        (FORCED_CLOSED, Event.EXPIRE): CLOSED,
        (DISABLED, Event.EXPIRE): CLOSED,
        (METRICS_ONLY, Event.EXPIRE): CLOSED,
    }
    expected |= {(state, event): new for state in STATES for event, new in BY_HAND.items()}
    assert expected == dict(TRANSITIONS)


def test_every_state_either_lets_all_pass_or_refuses_and_some_are_held_there() -> None:
    assert {CLOSED, FORCED_CLOSED, DISABLED, METRICS_ONLY} == PASSING
    assert {FORCED_OPEN, FORCED_CLOSED, DISABLED, METRICS_ONLY} == FORCED
    assert len(STATES) == len(set(STATES))


# -- opening -----------------------------------------------------------------------------------------------------------


def test_a_closed_circuit_admits_every_call_under_one_permit_and_stays_the_same_object() -> None:
    circuit = Circuit()
    answers = [admit(circuit, POLICY, now) for now in (0.0, 5.0, 1e9)]
    assert all(after is circuit and answer == Permit(0, 0, 0.0) for after, answer in answers)


def test_a_tripped_circuit_is_open_for_its_open_time_and_knows_why() -> None:
    circuit = opened(now=100)
    expected = Circuit(state=OPEN, generation=1, since=100, until=110, openings=1, event=Event.TRIP)
    assert expected == circuit


def test_a_circuit_that_opened_elsewhere_is_open_for_the_rest_of_that_time_also_by_votes() -> None:
    assert 103 == trip(Circuit(), POLICY, 0, 100, pause=60, lasts=3).until
    voted = vote(Circuit(), POLICY, "a", 0, 30, 100)
    assert (OPEN, 104) == ((after := vote(voted, POLICY, "b", 0, 30, 100, lasts=4)).state, after.until)


def test_calls_of_an_earlier_generation_trip_nothing() -> None:
    circuit = force(Circuit(), POLICY, Event.CLOSE, 1)
    assert trip(circuit, POLICY, 0, 2) is circuit


@pytest.mark.parametrize("state", [state for state in STATES if state != CLOSED])
def test_only_a_closed_circuit_trips(state: str) -> None:
    circuit = Circuit(state=state, generation=4, until=50.0)
    assert trip(circuit, POLICY, 4, 2) is circuit


def test_what_was_forced_closed_and_has_expired_is_not_tripped_by_the_calls_from_before() -> None:
    circuit = forced(Event.FORCE_CLOSED, expires_in=5)
    after = trip(circuit, POLICY, circuit.generation, 5)
    assert (CLOSED, Event.EXPIRE) == (after.state, after.event)


def test_an_open_circuit_refuses_and_says_how_long() -> None:
    circuit = opened(now=100)
    assert Refusal(7.5) == refused(circuit, 102.5)
    assert 7.5 == retry_after(circuit, POLICY, 102.5)


def test_an_open_circuit_stays_open_until_somebody_asks() -> None:
    circuit = opened()
    assert expire(circuit, 1_000) is circuit
    assert 0.0 == retry_after(circuit, POLICY, 1_000)


def test_under_a_clock_that_goes_back_an_open_circuit_stays_open() -> None:
    assert Refusal(60.0) == refused(opened(now=100), 50)


# -- probing -----------------------------------------------------------------------------------------------------------


def test_when_its_time_is_over_it_admits_as_many_probes_as_permitted() -> None:
    circuit, first = probing(opened(), 10)
    assert (HALF_OPEN, Event.COOL, 2) == (circuit.state, circuit.event, circuit.generation)
    circuit, second = probing(circuit, 10)
    assert [Permit(2, 1, 40.0), Permit(2, 2, 40.0)] == [first, second]
    assert Refusal(1.0) == refused(circuit, 10)
    circuit = settle(circuit, POLICY, first, Outcome.SUCCESS, 11)
    assert isinstance(admit(circuit, POLICY, 11)[1], Permit), "a probe that came home frees its place"


def test_enough_successful_probes_close_it() -> None:
    circuit = probed(opened(), Outcome.SUCCESS, 10)
    assert (HALF_OPEN, 1) == (circuit.state, circuit.successes)
    circuit = probed(circuit, Outcome.SUCCESS, 12)
    assert Circuit(state=CLOSED, generation=3, since=12, event=Event.RECOVER) == circuit


def test_one_failed_probe_opens_it_for_another_full_time() -> None:
    circuit = probed(opened(), Outcome.FAILURE, 10)
    assert (OPEN, Event.PROBE_FAILED, 10.0, 2) == (
        circuit.state, circuit.event, retry_after(circuit, POLICY, 10), circuit.openings
    )  # fmt: skip


def test_an_ignored_probe_gives_its_place_back_and_decides_nothing() -> None:
    circuit = opened()
    for _ in range(5):
        circuit = probed(circuit, Outcome.IGNORED, 10)
    assert (HALF_OPEN, 0, ()) == (circuit.state, circuit.successes, circuit.probes)


def test_a_probe_that_never_reports_loses_its_place_when_its_lease_ends() -> None:
    circuit, first = probing(opened(), 10)
    circuit, second = probing(circuit, 10)
    assert Refusal(1.0) == refused(circuit, 39)
    circuit, third = probing(circuit, 40)
    assert (third,) == circuit.probes
    for lost in (first, second):
        assert settle(circuit, POLICY, lost, Outcome.FAILURE, 41) is circuit


def test_a_late_probe_still_counts_while_nobody_needed_its_place() -> None:
    circuit, late = probing(opened(), 10)
    assert OPEN == settle(circuit, POLICY, late, Outcome.FAILURE, 1_000).state


def test_a_refused_probe_is_told_of_the_next_lease_that_ends_but_of_a_second_at_most() -> None:
    circuit, _ = probing(opened(), 10)
    circuit, _ = probing(circuit, 15)
    assert [1.0, 1.0, 0.25, 0.0] == [retry_after(circuit, POLICY, now) for now in (15, 39, 39.75, 41)]
    brief = replace(POLICY, reset_timeout=0.2)
    assert pytest.approx(0.2) == retry_after(circuit, brief, 15)


def test_where_there_is_a_place_for_a_probe_nobody_need_wait() -> None:
    circuit, _ = probing(opened(), 10)
    assert 0.0 == retry_after(circuit, POLICY, 10)


@pytest.mark.parametrize("outcome", Outcome)
def test_a_result_from_before_the_last_move_is_dropped(outcome: Outcome) -> None:
    circuit, probe = probing(opened(), 10)
    moved = force(circuit, POLICY, Event.HALF_OPEN, 11)
    assert settle(moved, POLICY, probe, outcome, 12) is moved


def test_the_same_result_counts_once() -> None:
    circuit, probe = probing(opened(), 10)
    circuit = settle(circuit, POLICY, probe, Outcome.SUCCESS, 11)
    assert settle(circuit, POLICY, probe, Outcome.SUCCESS, 11) is circuit


# -- how long ----------------------------------------------------------------------------------------------------------

GROWING = BreakerPolicy(reset_timeout=10, open_time_growth=2, open_time_cap=35, open_time_jitter=0.5)


def test_every_opening_without_a_recovery_lasts_longer_up_to_the_cap() -> None:
    circuit, lasted = opened(policy=GROWING), []
    for _ in range(4):
        assert circuit.until is not None
        lasted.append(circuit.until - circuit.since)
        circuit = probed(circuit, Outcome.FAILURE, circuit.until, GROWING)
    assert [10, 20, 35, 35] == lasted


def test_a_recovery_begins_with_the_first_open_time_again() -> None:
    circuit = probed(opened(policy=GROWING), Outcome.FAILURE, 10, GROWING)
    circuit = probed(circuit, Outcome.SUCCESS, 100, GROWING)
    circuit = trip(circuit, GROWING, circuit.generation, 200)
    assert (1, 210) == (circuit.openings, circuit.until)


def test_jitter_adds_up_to_its_share_and_never_passes_the_cap() -> None:
    assert [10, 12.5, 15, 35] == [
        open_time(GROWING, 1, 0.0), open_time(GROWING, 1, 0.5), open_time(GROWING, 1, 1.0), open_time(GROWING, 3, 1.0)
    ]  # fmt: skip


def test_a_backend_that_asks_for_a_pause_is_given_it_up_to_the_cap() -> None:
    assert [10, 30, 35, 35] == [open_time(GROWING, 1, 0.0, pause) for pause in (3, 30, 36, inf)]
    assert 30 == trip(Circuit(), GROWING, 0, 0, pause=30).until
    circuit, probe = probing(opened(policy=GROWING), 10, GROWING)
    assert 40 == settle(circuit, GROWING, probe, Outcome.FAILURE, 10, pause=30).until


def test_a_pause_that_is_no_number_is_none() -> None:
    assert 10 == open_time(GROWING, 1, 0.0, nan)


@given(
    reset=some.floats(0, 1e6),
    growth=some.floats(1, 100),
    over=some.floats(0, 1e9),
    jitter=some.floats(0, 1),
    openings=some.integers(1, 10**9),
    chance=some.floats(0, 1),
    pause=some.floats(0, 1e12),
)
def test_no_open_time_leaves_its_bounds_however_often_it_opens(
    reset: float, growth: float, over: float, jitter: float, openings: int, chance: float, pause: float
) -> None:
    policy = BreakerPolicy(
        reset_timeout=reset, open_time_growth=growth, open_time_cap=reset + over, open_time_jitter=jitter
    )
    lasts = open_time(policy, openings, chance, pause)
    assert min(policy.open_time_cap, max(reset, pause)) <= lasts <= policy.open_time_cap
    assert lasts <= open_time(policy, openings + 1, chance, pause)


# -- votes -------------------------------------------------------------------------------------------------------------


def test_a_circuit_of_many_hosts_opens_when_enough_of_them_find_the_backend_ill() -> None:
    circuit = vote(Circuit(), POLICY, "web-1", 0, 60, 0)
    assert (CLOSED, (Vote("web-1", 60),)) == (circuit.state, circuit.votes)
    circuit = vote(circuit, POLICY, "web-2", 0, 60, 5)
    assert (OPEN, Event.TRIP, 15, ()) == (circuit.state, circuit.event, circuit.until, circuit.votes)


def test_one_host_has_one_vote_however_often_it_votes() -> None:
    circuit = Circuit()
    for now in range(5):
        circuit = vote(circuit, POLICY, "web-1", 0, 60, now)
    assert (CLOSED, (Vote("web-1", 64),)) == (circuit.state, circuit.votes)


def test_a_vote_counts_until_it_expires() -> None:
    circuit = vote(Circuit(), POLICY, "web-1", 0, 60, 0)
    assert CLOSED == vote(circuit, POLICY, "web-2", 0, 60, 60).state
    assert OPEN == vote(circuit, POLICY, "web-2", 0, 60, 59.9).state


def test_a_host_for_which_the_backend_has_recovered_takes_its_vote_back() -> None:
    circuit = withdraw(vote(Circuit(), POLICY, "web-1", 0, 60, 0), "web-1")
    assert () == circuit.votes
    assert CLOSED == vote(circuit, POLICY, "web-2", 0, 60, 1).state
    assert withdraw(circuit, "web-1") is circuit


def test_a_vote_over_an_earlier_generation_is_dropped() -> None:
    circuit = force(Circuit(), POLICY, Event.CLOSE, 1)
    assert vote(circuit, POLICY, "web-1", 0, 60, 2) is circuit


@pytest.mark.parametrize("state", [state for state in STATES if state != CLOSED])
def test_nobody_votes_on_a_circuit_that_is_not_closed(state: str) -> None:
    circuit = Circuit(state=state, generation=4, until=50.0)
    assert vote(circuit, POLICY, "web-1", 4, 60, 2) is circuit


def test_with_a_quorum_of_one_every_host_speaks_for_all() -> None:
    assert OPEN == vote(Circuit(), replace(POLICY, quorum=1), "web-1", 0, 60, 0).state


# -- by hand -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize(("event", "new"), BY_HAND.items())
def test_it_can_be_moved_by_hand_from_anywhere_to_anywhere(state: str, event: Event, new: str) -> None:
    before = Circuit(state=state, generation=7, probes=(Permit(7, 1, 99.0),), successes=1, votes=(Vote("web-1", 9),))
    after = force(before, POLICY, event, 5, reason="maintenance", author="ops")
    assert (new, 8, 5, event) == (after.state, after.generation, after.since, after.event)
    assert ("maintenance", "ops") == (after.reason, after.author)
    assert ((), (), 0) == (after.probes, after.votes, after.successes)


def test_who_moves_what_has_expired_unseen_comes_after_all_that_have_seen_it() -> None:
    circuit = forced(Event.FORCE_CLOSED, expires_in=5)
    seen = expire(circuit, 6)
    after = force(circuit, POLICY, Event.CLOSE, 6)
    assert (CLOSED, CLOSED, seen.generation + 1) == (seen.state, after.state, after.generation)


@pytest.mark.parametrize("event", [event for event in Event if event not in BY_HAND])
def test_what_only_calls_and_time_do_nobody_does_by_hand(event: Event) -> None:
    for state in STATES:
        with pytest.raises(KeyError):
            force(Circuit(state=state), POLICY, event, 0)


def test_what_is_opened_by_hand_half_opens_after_its_open_time() -> None:
    circuit = forced(Event.OPEN)
    assert (Refusal(10.0), 10.0, 1) == (refused(circuit, 0), circuit.until, circuit.openings)
    assert HALF_OPEN == probing(circuit, 10)[0].state


def test_what_is_opened_by_hand_for_a_time_half_opens_after_that() -> None:
    circuit = forced(Event.OPEN, expires_in=25)
    assert Refusal(5.0) == refused(circuit, 20)
    assert HALF_OPEN == probing(circuit, 25)[0].state


@pytest.mark.parametrize("event", [event for event, new in BY_HAND.items() if new in FORCED])
def test_what_is_forced_without_an_end_stays(event: Event) -> None:
    circuit = forced(event)
    assert circuit.until is None
    assert expire(circuit, 1e12) is circuit


@pytest.mark.parametrize(
    ("event", "new"),
    [
        (Event.FORCE_OPEN, HALF_OPEN),
        (Event.FORCE_CLOSED, CLOSED),
        (Event.DISABLE, CLOSED),
        (Event.MEASURE, CLOSED),
    ],
)
def test_what_is_forced_for_a_time_is_over_after_it(event: Event, new: str) -> None:
    circuit = forced(event, now=100, expires_in=5, reason="test", author="ops")
    assert expire(circuit, 104.9) is circuit
    after = expire(circuit, 105)
    assert (new, Event.EXPIRE, None, "", "") == (after.state, after.event, after.until, after.reason, after.author)


def test_a_forced_open_circuit_refuses_until_its_time_is_over_and_then_takes_probes() -> None:
    circuit = forced(Event.FORCE_OPEN, expires_in=5)
    assert Refusal(3.0) == refused(circuit, 2)
    circuit, probe = probing(circuit, 5)
    assert (HALF_OPEN, 1) == (circuit.state, probe.number)


def test_a_circuit_that_is_held_open_without_an_end_names_its_open_time() -> None:
    assert Refusal(10.0) == refused(forced(Event.FORCE_OPEN), 2)


@pytest.mark.parametrize("event", [event for event, new in BY_HAND.items() if new in PASSING])
def test_what_is_forced_to_pass_lets_all_pass_and_has_nobody_wait(event: Event) -> None:
    circuit = forced(event)
    assert (circuit, circuit.permit) == admit(circuit, POLICY, 3)
    assert 0.0 == retry_after(circuit, POLICY, 3)


@pytest.mark.parametrize("event", [Event.FORCE_OPEN, Event.FORCE_CLOSED, Event.DISABLE, Event.MEASURE])
def test_what_has_expired_has_at_that_moment_whenever_somebody_looks(event: Event) -> None:
    circuit = forced(event, now=100, expires_in=5)
    assert expire(circuit, 105) == expire(circuit, 200)


@pytest.mark.parametrize("event", [Event.CLOSE, Event.HALF_OPEN])
def test_what_is_moved_and_left_to_itself_does_not_expire(event: Event) -> None:
    circuit = forced(event, expires_in=5)
    assert expire(circuit, 100) is circuit


# -- the policy --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"fail_max": 0}, "fail_max=0"),
        ({"fail_max": 2.5}, "fail_max=2.5"),
        ({"success_threshold": 0}, "success_threshold=0"),
        ({"half_open_max_calls": 0}, "half_open_max_calls=0"),
        ({"quorum": 0}, "quorum=0"),
        ({"reset_timeout": -1}, "reset_timeout=-1"),
        ({"reset_timeout": nan}, "reset_timeout=nan"),
        ({"reset_timeout": inf}, "reset_timeout=inf"),
        ({"probe_lease": 0}, "probe_lease=0"),
        ({"failure_rate": 0.0}, r"failure_rate=0\.0"),
        ({"failure_rate": 50}, "failure_rate=50.*share"),
        ({"slow_call_rate": 1.1}, r"slow_call_rate=1\.1"),
        ({"slow_call_duration": 0}, "slow_call_duration=0"),
        ({"window_calls": 0}, "window_calls=0"),
        ({"window_calls": None, "window_seconds": 0}, "window_seconds=0"),
        ({"minimum_calls": 0}, "minimum_calls=0"),
        ({"open_time_growth": 0.5}, r"open_time_growth=0\.5"),
        ({"open_time_growth": 101}, "open_time_growth=101"),
        ({"open_time_jitter": 2}, "open_time_jitter=2"),
        ({"open_time_cap": 5}, "open_time_cap=5.*60"),
        ({"failure_rate": 0.5, "window_calls": 10}, "minimum_calls=20.*10"),
        ({"window_seconds": 10}, "window_calls or of window_seconds"),
        ({"window_calls": None}, "window_calls or of window_seconds"),
        ({"fail_max": None}, "nothing opens this circuit"),
    ],
)
def test_values_out_of_range_are_refused_by_name(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        BreakerPolicy(**values)


def test_a_window_is_needed_where_a_rate_is_given() -> None:
    assert [False, True, True] == [
        BreakerPolicy().has_rates, BreakerPolicy(failure_rate=0.5).has_rates, BreakerPolicy(slow_call_rate=0.5).has_rates
    ]  # fmt: skip


def test_rates_without_failures_in_a_row_are_a_rule_too() -> None:
    assert BreakerPolicy(fail_max=None, failure_rate=0.5).fail_max is None
