"""All that can come of two or three actors at one circuit, in every order of their steps.

Each table names every outcome there is, and why it is right. What a table does not name must not happen; what it names must
happen in some order, or the walk does not go where it should.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import pytest

from resilience.core import breaker
from resilience.core.breaker import (
    HALF_OPEN,
    OPEN,
    BreakerPolicy,
    Circuit,
    Event,
    Outcome,
    Permit,
    Refusal,
    force,
    trip,
)
from tests.support.interleavings import (
    Actor,
    Core,
    Fault,
    World,
    by_hand,
    caller,
    later,
    probe,
    voter,
    walk,
    withdrawal,
)

POLICY = BreakerPolicy(reset_timeout=10, success_threshold=1, half_open_max_calls=1, probe_lease=30, quorum=2)
PAIRS = replace(POLICY, success_threshold=2, half_open_max_calls=2)

CLOSED_AT_0 = Circuit()
OPEN_AT_0 = trip(CLOSED_AT_0, POLICY, 0, 0)
GOOD, BAD, NEITHER = Outcome.SUCCESS, Outcome.FAILURE, Outcome.IGNORED


class Scenario(NamedTuple):
    """Who does what, from where, and all that may come of it."""

    actors: Sequence[Actor]
    legal: dict[str, str]
    circuit: Circuit = OPEN_AT_0
    now: float = 10.0
    policy: BreakerPolicy = POLICY


SCENARIOS = {
    "two ask a circuit whose time is over": Scenario(
        [probe(POLICY, GOOD), probe(POLICY, GOOD)],
        {
            "closed: probe, refused": "the second asked while the first was under way",
            "closed: refused, probe": "and the other way round",
            "closed: probe, pass": "the second asked when the first had closed it",
            "closed: pass, probe": "and the other way round",
        },
    ),
    "two ask, and the probe fails": Scenario(
        [probe(POLICY, BAD), probe(POLICY, BAD)],
        {
            "open 2: probe, refused": "one probe, one opening more, whenever the other asked",
            "open 2: refused, probe": "and the other way round",
        },
    ),
    "one probe is interrupted, the other one succeeds": Scenario(
        [probe(POLICY, NEITHER), probe(POLICY, GOOD)],
        {
            "half-open: probe, refused": "the second asked while the first was under way: nobody has decided",
            "closed: refused, probe": "the first asked while the second was under way",
            "closed: probe, probe": "the first gave its place back",
            "closed: pass, probe": "the first asked when it was closed",
        },
    ),
    "three ask for two places": Scenario(
        [probe(PAIRS, GOOD), probe(PAIRS, GOOD), probe(PAIRS, BAD)],
        {
            "open 2: probe, probe, probe": "the failed one was the last to ask, or the last to tell",
            "open 2: probe, refused, probe": "the second asked when both places were taken, or it was open again",
            "open 2: refused, probe, probe": "and the other way round",
            "open 2: refused, refused, probe": "it had failed before anybody else asked",
            "closed: probe, probe, probe": "the failed one told when the others had closed it",
            "closed: probe, probe, refused": "the failing one came when both places were taken",
            "closed: probe, probe, pass": "the failing one came when it was closed: what it says counts in a window",
        },
        policy=PAIRS,
    ),
    "a probe succeeds while somebody forces the circuit open": Scenario(
        [probe(POLICY, GOOD), by_hand(POLICY, Event.FORCE_OPEN)],
        {
            "forced-open: probe": "its result came too late, or it had closed the circuit before",
            "forced-open: refused": "it asked after that",
        },
    ),
    "a probe fails while somebody closes the circuit": Scenario(
        [probe(POLICY, BAD), by_hand(POLICY, Event.CLOSE)],
        {
            "closed: probe": "its result came too late, or the circuit was open and was closed by hand after that",
            "closed: pass": "it asked after that",
        },
    ),
    "a probe fails while somebody half-opens the circuit": Scenario(
        [probe(POLICY, BAD), by_hand(POLICY, Event.HALF_OPEN)],
        {
            "half-open: probe": "its result came too late, or it opened the circuit before",
            "open 1: probe": "it was a probe of the new half-open circuit: which begins to count anew",
        },
    ),
    "calls fail while somebody resets the circuit": Scenario(
        [caller(POLICY), by_hand(POLICY, Event.CLOSE)],
        {
            "open 1: pass 1 closed": "it was called after the reset",
            "closed: pass 0 closed": "it was called before: too late, or tripped and was reset after that",
        },
        circuit=CLOSED_AT_0,
    ),
    "two trip at once": Scenario(
        [caller(POLICY), caller(POLICY)],
        {
            "open 1: pass 0 closed, pass 0 closed": "both were called when it was closed: one opening",
            "open 1: pass 0 closed, refused": "the second was called when it was open",
            "open 1: refused, pass 0 closed": "and the other way round",
        },
        circuit=CLOSED_AT_0,
    ),
    "calls fail, somebody resets the circuit, somebody forces it": Scenario(
        [caller(POLICY), by_hand(POLICY, Event.CLOSE), by_hand(POLICY, Event.FORCE_CLOSED)],
        {
            "forced-closed: pass 0 closed": "forced last; whether it had been tripped or reset is of no account",
            "forced-closed: pass 1 closed": "the same, called after the reset",
            "forced-closed: pass 2 forced-closed": "the same, called when it was forced",
            "closed: pass 0 closed": "reset last",
            "closed: pass 1 forced-closed": "called while it was forced, which is of the past",
            "open 1: pass 2 closed": "called after both",
        },
        circuit=CLOSED_AT_0,
    ),
    "what is forced expires while calls fail": Scenario(
        [caller(POLICY), later(5.0), probe(POLICY, GOOD)],
        {
            "forced-closed: pass 1 forced-closed, pass": "nobody asked after it was over: they called before",
            "closed: pass 1 forced-closed, pass": "whoever asked found it over; the failures are of the past",
            "open 1: pass 2 closed, pass": "called when it was over and closed",
            "open 1: pass 2 closed, refused": "the other one asked after that had opened it",
        },
        circuit=force(CLOSED_AT_0, POLICY, Event.FORCE_CLOSED, 0, expires_in=15),
    ),
    "what was forced has expired, calls fail, and somebody resets the circuit": Scenario(
        [caller(POLICY), by_hand(POLICY, Event.CLOSE)],
        {
            "closed: pass 2 closed": "called before the reset: too late, or tripped and was reset after that",
            "open 1: pass 3 closed": "called after the reset",
        },
        circuit=force(CLOSED_AT_0, POLICY, Event.FORCE_CLOSED, 0, expires_in=5),
    ),
    "a probe outlasts its lease": Scenario(
        [probe(POLICY, BAD), later(30.0), probe(POLICY, GOOD)],
        {
            "closed: probe, probe": "its place was given away: its failure is not heard, the other's success is",
            "open 2: probe, refused": "its place was not: late as it is, it counts",
            "closed: refused, probe": "it asked while the other was under way",
            "closed: pass, probe": "it asked when it was closed",
            "open 2: probe, probe": "it asked for the place of the other, whose lease had ended",
        },
    ),
    "two hosts vote while somebody resets the circuit": Scenario(
        [voter(POLICY, "web-1"), voter(POLICY, "web-2"), by_hand(POLICY, Event.CLOSE)],
        {
            "closed: pass 0 closed, pass 0 closed": "all calls were made before the reset: too late, or opened and reset",
            "closed with 1: pass 0 closed, pass 1 closed": "one host's calls were made before the reset, and are of the past",
            "closed with 1: pass 1 closed, pass 0 closed": "and the other way round",
            "open 1: pass 1 closed, pass 1 closed": "all calls were made after it",
        },
        circuit=CLOSED_AT_0,
    ),
    "two hosts vote, and one takes its vote back": Scenario(
        [(*voter(POLICY, "web-1"), *withdrawal("web-1")), voter(POLICY, "web-2")],
        {
            "open 1: pass 0 closed, pass 0 closed": "both had voted",
            "closed with 1: pass 0 closed, pass 0 closed": "the first took its vote back before the second one voted",
        },
        circuit=CLOSED_AT_0,
    ),
    "one host votes from three processes, another from one": Scenario(
        [voter(POLICY, "web-1"), voter(POLICY, "web-1"), voter(POLICY, "web-2")],
        {
            "open 1: pass 0 closed, pass 0 closed, pass 0 closed": "two hosts",
            "open 1: pass 0 closed, refused, pass 0 closed": "called when it was open",
            "open 1: refused, pass 0 closed, pass 0 closed": "and the other way round",
        },
        circuit=CLOSED_AT_0,
    ),
    "a circuit is tripped, probed and reset": Scenario(
        [(*caller(POLICY), *later(10.0)), probe(POLICY, BAD), by_hand(POLICY, Event.CLOSE)],
        {
            "closed: pass 0 closed, pass": "the prober asked when it was closed, or nobody asked when its time was over",
            "closed: pass 0 closed, probe": "the probe failed before the reset, or too late",
            "closed: pass 0 closed, refused": "the prober asked while it was open",
            "open 1: pass 1 closed, pass": "called after the reset; the prober asked before it was open",
            "open 1: pass 1 closed, refused": "called after the reset; the prober asked while it was open",
            "open 2: pass 1 closed, probe": "called after the reset; the probe failed",
        },
        circuit=CLOSED_AT_0,
        now=0.0,
    ),
}


def told(world: World, said: Iterable[tuple[str, ...]]) -> str:
    """The state that is left, how often it opened and how many votes it holds, and what every actor said."""
    circuit = world.circuit
    opened = f" {circuit.openings}" if circuit.state == OPEN else ""
    votes = f" with {len(circuit.votes)}" if circuit.votes else ""
    return f"{circuit.state}{opened}{votes}: {', '.join(' '.join(words) for words in said if words)}"


def outcomes_of(scenario: Scenario, core: Core | None = None) -> set[str]:
    """All that comes of it."""
    return set(
        walk(scenario.policy, scenario.circuit, scenario.actors, now=scenario.now, core=core, told=told).outcomes
    )


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS.keys())
def test_every_order_of_the_steps_ends_as_the_table_says(scenario: Scenario) -> None:
    assert set(scenario.legal) == outcomes_of(scenario)


def test_millions_of_orders_are_walked_through() -> None:
    scenario = SCENARIOS["three ask for two places"]
    walked = walk(scenario.policy, scenario.circuit, scenario.actors, now=scenario.now, told=told)
    assert walked.orders == sum(walked.outcomes.values())
    assert walked.orders > 10_000_000


# -- wrong cores, every one of which is found ----------------------------------------------------------------------------


def admits_beyond_the_cap(circuit: Circuit, policy: BreakerPolicy, now: float) -> tuple[Circuit, Permit | Refusal]:
    return breaker.admit(circuit, replace(policy, half_open_max_calls=policy.half_open_max_calls + 1), now)


def forgets_whom_it_admitted(circuit: Circuit, policy: BreakerPolicy, now: float) -> tuple[Circuit, Permit | Refusal]:
    after, answer = breaker.admit(circuit, policy, now)
    return replace(after, probes=()), answer


def half_opens_too_early(circuit: Circuit, policy: BreakerPolicy, now: float) -> tuple[Circuit, Permit | Refusal]:
    return breaker.admit(circuit, policy, now + 60 if circuit.state == OPEN else now)


def never_ends_a_lease(circuit: Circuit, policy: BreakerPolicy, now: float) -> tuple[Circuit, Permit | Refusal]:
    return breaker.admit(circuit, policy, now if circuit.state != HALF_OPEN else min(now, circuit.since))


def hears_late_results(
    circuit: Circuit, policy: BreakerPolicy, permit: Permit, outcome: Outcome, now: float
) -> Circuit:
    if circuit.state == HALF_OPEN and permit not in circuit.probes:
        circuit = replace(circuit, probes=(*circuit.probes, permit._replace(generation=circuit.generation)))
        permit = circuit.probes[-1]
    return breaker.settle(circuit, policy, permit, outcome, now)


def keeps_the_place_of_an_interrupted_probe(
    circuit: Circuit, policy: BreakerPolicy, permit: Permit, outcome: Outcome, now: float
) -> Circuit:
    return circuit if outcome is NEITHER else breaker.settle(circuit, policy, permit, outcome, now)


def takes_an_interrupted_probe_for_a_success(
    circuit: Circuit, policy: BreakerPolicy, permit: Permit, outcome: Outcome, now: float
) -> Circuit:
    return breaker.settle(circuit, policy, permit, GOOD if outcome is NEITHER else outcome, now)


def trips_over_the_past(circuit: Circuit, policy: BreakerPolicy, generation: int, now: float) -> Circuit:
    return breaker.trip(circuit, policy, circuit.generation, now)


def trips_what_is_open(circuit: Circuit, policy: BreakerPolicy, generation: int, now: float) -> Circuit:
    if circuit.state == OPEN:
        return replace(circuit, openings=circuit.openings + 1)
    return breaker.trip(circuit, policy, generation, now)


def votes_over_the_past(
    circuit: Circuit, policy: BreakerPolicy, voter: str, generation: int, keep: float, now: float
) -> Circuit:
    return breaker.vote(circuit, policy, voter, circuit.generation, keep, now)


def counts_a_host_twice(
    circuit: Circuit, policy: BreakerPolicy, voter: str, generation: int, keep: float, now: float
) -> Circuit:
    return breaker.vote(circuit, policy, f"{voter} {len(circuit.votes)}", generation, keep, now)


def withdraws_nothing(circuit: Circuit, voter: str) -> Circuit:
    return circuit


def forces_within_the_generation(circuit: Circuit, *given: Any, **said: Any) -> Circuit:
    return replace(force(circuit, *given, **said), generation=circuit.generation)


def forces_without_a_look_at_the_time(
    circuit: Circuit, policy: BreakerPolicy, event: Event, now: float, **said: Any
) -> Circuit:
    return force(replace(circuit, until=None), policy, event, now, **said)


WRONG = [
    Core(admit=admits_beyond_the_cap),
    Core(admit=forgets_whom_it_admitted),
    Core(admit=half_opens_too_early),
    Core(admit=never_ends_a_lease),
    Core(settle=hears_late_results),
    Core(settle=keeps_the_place_of_an_interrupted_probe),
    Core(settle=takes_an_interrupted_probe_for_a_success),
    Core(trip=trips_over_the_past),
    Core(trip=trips_what_is_open),
    Core(vote=votes_over_the_past),
    Core(vote=counts_a_host_twice),
    Core(withdraw=withdraws_nothing),
    Core(force=forces_within_the_generation),
    Core(force=forces_without_a_look_at_the_time),
    Core(compares=False),
]


def what_is_wrong(core: Core) -> str:
    """In which function it differs from the right one."""
    names = [getattr(part, "__name__", "replaces_without_comparing") for part in core]
    rights = [getattr(part, "__name__", "") for part in Core()]
    return next(name for name, right in zip(names, rights, strict=True) if name != right)


@pytest.mark.parametrize("core", WRONG, ids=what_is_wrong)
def test_a_core_that_is_wrong_in_one_place_is_found_out(core: Core) -> None:
    assert any(is_found_out(core, scenario) for scenario in SCENARIOS.values())


def is_found_out(core: Core, scenario: Scenario) -> bool:
    """Whether it does what no order may lead to, or ends as no table says."""
    try:
        return set(scenario.legal) != outcomes_of(scenario, core)
    except Fault:
        return True
