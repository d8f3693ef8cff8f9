"""The circuit breaker as a table and two functions: `admit` before a call, `settle` after it.

A permit remembers the generation in which it was given: the result of a call that began before the last transition says
nothing about the present and is dropped. A half-open circuit gives out a bounded number of probes at a time, each on a
lease, so that a caller which never comes back does not hold the circuit half-open for ever.

Sources: Michael T. Nygard, "Release It!" (the pattern); sony/gobreaker (generations); resilience4j (bounded probes).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from math import isfinite
from types import MappingProxyType
from typing import Final, NamedTuple

__all__ = [
    "CLOSED",
    "HALF_OPEN",
    "OPEN",
    "TRANSITIONS",
    "BreakerPolicy",
    "Circuit",
    "Event",
    "Outcome",
    "Permit",
    "Refusal",
    "Transition",
    "admit",
    "force",
    "retry_after",
    "settle",
]

CLOSED: Final = "closed"
OPEN: Final = "open"
HALF_OPEN: Final = "half-open"
STATES: Final = (CLOSED, OPEN, HALF_OPEN)


class Event(Enum):
    """What moves a circuit."""

    TRIP = "too many failures"
    COOL = "open time is over"
    PROBE_FAILED = "a probe failed"
    RECOVER = "enough probes succeeded"
    FORCE_OPEN = "opened by hand"
    FORCE_CLOSED = "closed by hand"
    FORCE_HALF_OPEN = "half-opened by hand"


TRANSITIONS = MappingProxyType(
    {
        (CLOSED, Event.TRIP): OPEN,
        (OPEN, Event.COOL): HALF_OPEN,
        (HALF_OPEN, Event.PROBE_FAILED): OPEN,
        (HALF_OPEN, Event.RECOVER): CLOSED,
        **{(state, Event.FORCE_OPEN): OPEN for state in STATES},
        **{(state, Event.FORCE_CLOSED): CLOSED for state in STATES},
        **{(state, Event.FORCE_HALF_OPEN): HALF_OPEN for state in STATES},
    }
)
"""Every legal move. Anything else is a programming error and raises KeyError."""


class Outcome(Enum):
    """What a call says about the health of what it called."""

    SUCCESS = "success"
    FAILURE = "failure"
    IGNORED = "ignored"


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """When a circuit opens and closes.

    `fail_max`: consecutive failures that open it, from 1. `reset_timeout`: seconds that it stays open, from 0.
    `success_threshold`: probes that must succeed to close it, from 1. `half_open_max_calls`: probes under way at once,
    from 1. `probe_lease`: seconds after which a probe that did not report is counted as lost and its place is free.
    Raises `ValueError` naming the value that is out of range.
    """

    fail_max: int = 5
    reset_timeout: float = 60.0
    success_threshold: int = 1
    half_open_max_calls: int = 1
    probe_lease: float = 60.0

    def __post_init__(self) -> None:
        for name in ("fail_max", "success_threshold", "half_open_max_calls"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r}: a circuit breaker takes a whole number from 1")
        if not (isfinite(self.reset_timeout) and self.reset_timeout >= 0):
            raise ValueError(f"reset_timeout={self.reset_timeout!r}: a circuit breaker takes seconds from 0")
        if not (isfinite(self.probe_lease) and self.probe_lease > 0):
            raise ValueError(f"probe_lease={self.probe_lease!r}: a circuit breaker takes seconds above 0")


class Permit(NamedTuple):
    """Leave to make one call. `number` tells the probes of one generation apart; 0 for a call on a closed circuit."""

    generation: int
    number: int
    expires: float


class Refusal(NamedTuple):
    """No leave now; a try after `retry_after` seconds may be given it."""

    retry_after: float


class Transition(NamedTuple):
    """A move that was made."""

    old: str
    event: Event
    new: str


@dataclass(slots=True)
class Circuit:
    """One circuit's state. Only the functions of this module change it; the caller holds whatever lock it needs.

    `failures` counts consecutive failures, `successes` the probes that succeeded since it half-opened. `opened_at` is in
    seconds of the caller's clock.
    """

    state: str = CLOSED
    generation: int = 0
    failures: int = 0
    successes: int = 0
    opened_at: float = 0.0
    probes: list[Permit] = field(default_factory=list)
    probe_count: int = 0
    permit: Permit = field(default_factory=lambda: Permit(0, 0, 0.0))
    """The permit of every call while the circuit is closed."""


def admit(circuit: Circuit, policy: BreakerPolicy, now: float) -> tuple[Permit | Refusal, Transition | None]:
    """Leave or refusal for one call at `now`, and the move that asking caused: an open circuit whose time is over
    half-opens."""
    if circuit.state == CLOSED:
        return circuit.permit, None
    transition = None
    if circuit.state == OPEN:
        remaining = circuit.opened_at + policy.reset_timeout - now
        if remaining > 0:
            return Refusal(remaining), None
        transition = _move(circuit, Event.COOL, now)
    if len(circuit.probes) >= policy.half_open_max_calls:
        circuit.probes = [probe for probe in circuit.probes if probe.expires > now]
        if len(circuit.probes) >= policy.half_open_max_calls:
            return Refusal(retry_after(circuit, policy, now)), transition
    circuit.probe_count += 1
    probe = Permit(circuit.generation, circuit.probe_count, now + policy.probe_lease)
    circuit.probes.append(probe)
    return probe, transition


def settle(circuit: Circuit, policy: BreakerPolicy, permit: Permit, outcome: Outcome, now: float) -> Transition | None:
    """Take the result of a permitted call into account, and return the move that it caused."""
    if permit.generation != circuit.generation:
        return None
    if circuit.state == HALF_OPEN:
        return _settle_probe(circuit, policy, permit, outcome, now)
    if outcome is Outcome.SUCCESS:
        circuit.failures = 0
    elif outcome is Outcome.FAILURE:
        circuit.failures += 1
        if circuit.failures >= policy.fail_max:
            return _move(circuit, Event.TRIP, now)
    return None


def _settle_probe(
    circuit: Circuit, policy: BreakerPolicy, permit: Permit, outcome: Outcome, now: float
) -> Transition | None:
    if permit not in circuit.probes:
        return None  # its lease ran out and its place was given away
    circuit.probes.remove(permit)
    if outcome is Outcome.FAILURE:
        circuit.failures += 1
        return _move(circuit, Event.PROBE_FAILED, now)
    if outcome is Outcome.SUCCESS:
        circuit.failures = 0
        circuit.successes += 1
        if circuit.successes >= policy.success_threshold:
            return _move(circuit, Event.RECOVER, now)
    return None


def force(circuit: Circuit, event: Event, now: float) -> Transition:
    """Move by hand. Calls under way are of the past from here on, also when the state stays the same."""
    return _move(circuit, event, now)


def retry_after(circuit: Circuit, policy: BreakerPolicy, now: float) -> float:
    """Seconds until a refused call may be given leave: 0.0 unless open; at most a second while probes are under way."""
    if circuit.state == OPEN:
        return max(0.0, circuit.opened_at + policy.reset_timeout - now)
    if circuit.state == HALF_OPEN and len(circuit.probes) >= policy.half_open_max_calls:
        return max(0.0, min(1.0, policy.reset_timeout, *(probe.expires - now for probe in circuit.probes)))
    return 0.0


def _move(circuit: Circuit, event: Event, now: float) -> Transition:
    old = circuit.state
    new = TRANSITIONS[old, event]
    circuit.state = new
    circuit.generation += 1
    circuit.permit = Permit(circuit.generation, 0, 0.0)
    circuit.probes = []
    circuit.probe_count = 0
    circuit.successes = 0
    if new == OPEN:
        circuit.opened_at = now
    elif new == CLOSED:
        circuit.failures = 0
    return Transition(old, event, new)
