"""The circuit breaker as a table and a few functions from one circuit to the next.

A `Circuit` is a value. `admit`, `settle`, `trip`, `vote` and `force` return the circuit that follows, so that the same
arithmetic serves a circuit of one process (kept under a lock), of a host (in shared memory) and of many hosts (replaced in
Redis if nobody else has replaced it meanwhile). Time is an argument, in seconds of the clock of the place where the circuit is
kept; chance is one too.

A permit remembers the generation in which it was given: the result of a call that began before the last move says nothing
about the present and is dropped. A half-open circuit gives out a bounded number of probes at a time, each on a lease, so that
a caller that never comes back does not hold the circuit half-open for ever.

Sources: Michael T. Nygard, "Release It!" (the pattern); sony/gobreaker (generations); resilience4j (forced states, bounded
probes, rates below a minimum of calls); Envoy's outlier detection (open times that grow with each opening, and no one host
that decides for all).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from math import isfinite
from types import MappingProxyType
from typing import Final, NamedTuple

__all__ = [
    "CLOSED",
    "DISABLED",
    "FORCED",
    "FORCED_CLOSED",
    "FORCED_OPEN",
    "HALF_OPEN",
    "METRICS_ONLY",
    "OPEN",
    "PASSING",
    "STATES",
    "TRANSITIONS",
    "BreakerPolicy",
    "Circuit",
    "Event",
    "Outcome",
    "Permit",
    "Refusal",
    "Transition",
    "Vote",
    "admit",
    "expire",
    "force",
    "open_time",
    "retry_after",
    "settle",
    "trip",
    "vote",
    "withdraw",
]

CLOSED: Final = "closed"
OPEN: Final = "open"
HALF_OPEN: Final = "half-open"
FORCED_OPEN: Final = "forced-open"
FORCED_CLOSED: Final = "forced-closed"
DISABLED: Final = "disabled"
METRICS_ONLY: Final = "metrics-only"
STATES: Final = (CLOSED, OPEN, HALF_OPEN, FORCED_OPEN, FORCED_CLOSED, DISABLED, METRICS_ONLY)
FORCED: Final = frozenset((FORCED_OPEN, FORCED_CLOSED, DISABLED, METRICS_ONLY))
"""Nothing that calls do moves a circuit out of these: somebody does, or their time is over."""
PASSING: Final = frozenset((CLOSED, FORCED_CLOSED, DISABLED, METRICS_ONLY))
"""Every call passes."""


class Event(Enum):
    """What moves a circuit."""

    TRIP = "too many failed or slow calls"
    COOL = "open time is over"
    PROBE_FAILED = "a probe failed"
    RECOVER = "enough probes succeeded"
    EXPIRE = "what was forced has expired"
    OPEN = "opened by hand"
    CLOSE = "closed by hand"
    HALF_OPEN = "half-opened by hand"
    FORCE_OPEN = "forced open"
    FORCE_CLOSED = "forced closed"
    DISABLE = "disabled"
    MEASURE = "set to metrics only"


_BY_HAND: Final = {
    Event.OPEN: OPEN,
    Event.CLOSE: CLOSED,
    Event.HALF_OPEN: HALF_OPEN,
    Event.FORCE_OPEN: FORCED_OPEN,
    Event.FORCE_CLOSED: FORCED_CLOSED,
    Event.DISABLE: DISABLED,
    Event.MEASURE: METRICS_ONLY,
}

TRANSITIONS = MappingProxyType(
    {
        (CLOSED, Event.TRIP): OPEN,
        (OPEN, Event.COOL): HALF_OPEN,
        (HALF_OPEN, Event.PROBE_FAILED): OPEN,
        (HALF_OPEN, Event.RECOVER): CLOSED,
        (FORCED_OPEN, Event.EXPIRE): HALF_OPEN,
        (FORCED_CLOSED, Event.EXPIRE): CLOSED,
        (DISABLED, Event.EXPIRE): CLOSED,
        (METRICS_ONLY, Event.EXPIRE): CLOSED,
        **{(state, event): new for event, new in _BY_HAND.items() for state in STATES},
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
    """When a circuit opens, for how long, and when it closes. All times are in seconds, all rates from above 0 to 1.

    When it opens (any of these that are given):

    - `fail_max`: so many failures in a row, from 1 (None: no such rule).
    - `failure_rate`: at least this share of the calls in the window failed.
    - `slow_call_rate`: at least this share took `slow_call_duration` (above 0) or longer; a failed call may be slow too.
    - the window is the last `window_calls` calls, or those of the last `window_seconds`; no rate counts below
      `minimum_calls` calls in it.

    For how long: `reset_timeout` (from 0) the first time; every opening without a recovery in between multiplies it by
    `open_time_growth` (1 to 100), to `open_time_cap` at most. `open_time_jitter` (0 to 1) adds up to so large a share of it, by
    chance. Where the backend says when to come back, the open time is no shorter than that, up to the cap.

    When it closes: `success_threshold` probes succeeded, of which `half_open_max_calls` may be under way at once; one that did
    not report within `probe_lease` is counted as lost.

    `quorum`: how many hosts must find the backend ill before the circuit opens for all of them; below that each opens
    for itself.

    Raises `ValueError` naming the value that is out of range.
    """

    fail_max: int | None = 5
    reset_timeout: float = 60.0
    success_threshold: int = 1
    half_open_max_calls: int = 1
    probe_lease: float = 60.0
    failure_rate: float | None = None
    slow_call_rate: float | None = None
    slow_call_duration: float = 60.0
    window_calls: int | None = 100
    window_seconds: float | None = None
    minimum_calls: int = 20
    open_time_growth: float = 1.0
    open_time_cap: float = 600.0
    open_time_jitter: float = 0.0
    quorum: int = 2

    def __post_init__(self) -> None:
        for names, is_in_range, wanted in _RANGES:
            for name in names:
                value = getattr(self, name)
                if value is not None and not (isfinite(value) and is_in_range(value)):
                    raise _out_of_range(self, name, wanted)
        if self.open_time_cap < self.reset_timeout:
            raise _out_of_range(self, "open_time_cap", f"seconds from reset_timeout ({self.reset_timeout:g})")
        if (self.window_calls is None) == (self.window_seconds is None):
            raise ValueError("a circuit breaker's window is of window_calls or of window_seconds: give one of them")
        if self.has_rates and self.window_calls is not None and self.minimum_calls > self.window_calls:
            raise _out_of_range(self, "minimum_calls", f"at most window_calls ({self.window_calls}), or no rate counts")
        if self.fail_max is None and not self.has_rates:
            raise ValueError("nothing opens this circuit: give fail_max, failure_rate or slow_call_rate")

    @property
    def has_rates(self) -> bool:
        """Whether a window of calls is needed."""
        return self.failure_rate is not None or self.slow_call_rate is not None


_RANGES: Final[tuple[tuple[tuple[str, ...], Callable[[float], bool], str], ...]] = (
    (
        ("fail_max", "success_threshold", "half_open_max_calls", "window_calls", "minimum_calls", "quorum"),
        lambda number: number >= 1 and isinstance(number, int),
        "a whole number from 1",
    ),
    (("failure_rate", "slow_call_rate"), lambda rate: 0 < rate <= 1, "a share above 0, to 1 (0.5: half of the calls)"),
    (("probe_lease", "slow_call_duration", "window_seconds"), lambda seconds: seconds > 0, "seconds above 0"),
    (("reset_timeout", "open_time_cap"), lambda seconds: seconds >= 0, "seconds from 0"),
    (("open_time_growth",), lambda factor: 1 <= factor <= 100, "a factor from 1 to 100"),
    (("open_time_jitter",), lambda share: 0 <= share <= 1, "a share from 0 to 1"),
)


class Permit(NamedTuple):
    """Leave to make one call. `number` tells the probes of one generation apart; 0 for a call on a circuit that lets all
    pass."""

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


class Vote(NamedTuple):
    """A host that finds the backend ill, until then at most."""

    voter: str
    expires: float


@dataclass(frozen=True, slots=True)
class Circuit:
    """The state of one circuit.

    `since` is when it came into it, `until` when that ends by itself: the open time of an open circuit, the expiry of a
    forced one (None: it has no end). `openings` counts how often it opened since it last recovered, `successes` the probes that
    succeeded since it half-opened; `probes` are those under way, `handed_out` how many there have been. `votes` are the hosts
    that would open it. `event` is what moved it here; `reason` and `author` are what was said when it was moved by hand.
    """

    state: str = CLOSED
    generation: int = 0
    since: float = 0.0
    until: float | None = None
    openings: int = 0
    successes: int = 0
    handed_out: int = 0
    probes: tuple[Permit, ...] = ()
    votes: tuple[Vote, ...] = ()
    event: Event | None = None
    reason: str = ""
    author: str = ""

    @property
    def permit(self) -> Permit:
        """The permit of every call while all calls pass."""
        return Permit(self.generation, 0, 0.0)


def expire(circuit: Circuit, now: float) -> Circuit:
    """The circuit at `now`: what was forced and has expired is over. An open circuit stays open until somebody asks."""
    if circuit.state in FORCED and circuit.until is not None and now >= circuit.until:
        return _moved(circuit, Event.EXPIRE, circuit.until)
    return circuit


def admit(circuit: Circuit, policy: BreakerPolicy, now: float) -> tuple[Circuit, Permit | Refusal]:
    """Leave or refusal for one call at `now`. Asking half-opens an open circuit whose time is over."""
    circuit = expire(circuit, now)
    if circuit.state in PASSING:
        return circuit, circuit.permit
    if circuit.state == OPEN and circuit.until is not None and now >= circuit.until:
        circuit = _moved(circuit, Event.COOL, now)
    if circuit.state != HALF_OPEN:
        return circuit, Refusal(retry_after(circuit, policy, now))
    under_way = circuit.probes
    if len(under_way) >= policy.half_open_max_calls:
        under_way = tuple(probe for probe in under_way if probe.expires > now)
        if len(under_way) >= policy.half_open_max_calls:
            return circuit, Refusal(retry_after(circuit, policy, now))
    probe = Permit(circuit.generation, circuit.handed_out + 1, now + policy.probe_lease)
    return replace(circuit, probes=(*under_way, probe), handed_out=probe.number), probe


def settle(
    circuit: Circuit,
    policy: BreakerPolicy,
    permit: Permit,
    outcome: Outcome,
    now: float,
    *,
    chance: float = 0.0,
    pause: float = 0.0,
) -> Circuit:
    """Take the result of a probe into account. `pause` is for how many seconds the backend asks to be left alone; `chance`,
    from 0 to 1, is what the jitter of the open time comes to."""
    circuit = expire(circuit, now)
    if permit.generation != circuit.generation or permit not in circuit.probes:
        return circuit  # of the past, or its lease ran out and its place was given away
    rest = tuple(probe for probe in circuit.probes if probe != permit)
    if outcome is Outcome.FAILURE:
        return _opened(circuit, policy, Event.PROBE_FAILED, now, chance, pause)
    if outcome is Outcome.IGNORED:
        return replace(circuit, probes=rest)
    if circuit.successes + 1 >= policy.success_threshold:
        return _moved(circuit, Event.RECOVER, now)
    return replace(circuit, probes=rest, successes=circuit.successes + 1)


def trip(
    circuit: Circuit,
    policy: BreakerPolicy,
    generation: int,
    now: float,
    *,
    chance: float = 0.0,
    pause: float = 0.0,
    lasts: float | None = None,
) -> Circuit:
    """Open a closed circuit: the calls of this `generation` have failed too often. One that has moved since stays. `lasts` are
    the seconds for which it is open, where that has been settled elsewhere (None: its open time)."""
    circuit = expire(circuit, now)
    if circuit.state != CLOSED or circuit.generation != generation:
        return circuit
    return _opened(circuit, policy, Event.TRIP, now, chance, pause, lasts)


def vote(
    circuit: Circuit,
    policy: BreakerPolicy,
    voter: str,
    generation: int,
    keep: float,
    now: float,
    *,
    chance: float = 0.0,
    pause: float = 0.0,
    lasts: float | None = None,
) -> Circuit:
    """Count `voter` among those that find the backend ill, for `keep` seconds, and open the circuit for all when there are
    `quorum` of them, for so long as `trip` does. A vote over the calls of another `generation` says nothing about the present,
    and is dropped."""
    circuit = expire(circuit, now)
    if circuit.state != CLOSED or circuit.generation != generation:
        return circuit
    votes = (*(each for each in circuit.votes if each.voter != voter and each.expires > now), Vote(voter, now + keep))
    circuit = replace(circuit, votes=votes)
    return circuit if len(votes) < policy.quorum else _opened(circuit, policy, Event.TRIP, now, chance, pause, lasts)


def withdraw(circuit: Circuit, voter: str) -> Circuit:
    """Forget the vote of `voter`, for which the backend has recovered."""
    votes = tuple(each for each in circuit.votes if each.voter != voter)
    return circuit if len(votes) == len(circuit.votes) else replace(circuit, votes=votes)


def force(
    circuit: Circuit,
    policy: BreakerPolicy,
    event: Event,
    now: float,
    *,
    reason: str = "",
    author: str = "",
    expires_in: float | None = None,
) -> Circuit:
    """Move by hand. Calls under way are of the past from here on, also when the state stays the same.

    `Event.OPEN`, `CLOSE` and `HALF_OPEN` move the circuit and leave it to itself; the others hold it where they put it, for
    `expires_in` seconds (None: until somebody moves it). An opened one stays open for `expires_in` too (None: its open time).
    """
    if event not in _BY_HAND:
        raise KeyError(event)
    # Who has seen the circuit since its time was over has counted one generation on; this one comes after that.
    circuit = expire(circuit, now)
    moved = _moved(circuit, event, now)
    until = None
    if event is Event.OPEN:
        until = now + (policy.reset_timeout if expires_in is None else expires_in)
    elif moved.state in FORCED and expires_in is not None:
        until = now + expires_in
    openings = max(1, circuit.openings) if event is Event.OPEN else 0
    return replace(moved, until=until, openings=openings, reason=reason, author=author)


def open_time(policy: BreakerPolicy, openings: int, chance: float, pause: float = 0.0) -> float:
    """Seconds for which a circuit stays open that opens for the `openings`-th time in a row, which is from 1."""
    # Beyond so many doublings every open time has reached its cap, and a float its end.
    grown = min(policy.open_time_cap, policy.reset_timeout * policy.open_time_growth ** min(openings - 1, 64))
    grown += grown * policy.open_time_jitter * chance
    return min(policy.open_time_cap, max(grown, pause))


def retry_after(circuit: Circuit, policy: BreakerPolicy, now: float) -> float:
    """Seconds until a refused call may be given leave: 0.0 where none is refused; at most a second while probes are under
    way; the open time where a circuit is held open without an end."""
    if circuit.state in (OPEN, FORCED_OPEN):
        return policy.reset_timeout if circuit.until is None else max(0.0, circuit.until - now)
    if circuit.state == HALF_OPEN and len(circuit.probes) >= policy.half_open_max_calls:
        return max(0.0, min(1.0, policy.reset_timeout, *(probe.expires - now for probe in circuit.probes)))
    return 0.0


def _opened(
    circuit: Circuit,
    policy: BreakerPolicy,
    event: Event,
    now: float,
    chance: float,
    pause: float,
    lasts: float | None = None,
) -> Circuit:
    openings = circuit.openings + 1
    opened = _moved(circuit, event, now)
    seconds = open_time(policy, openings, chance, pause) if lasts is None else lasts
    return replace(opened, openings=openings, until=now + seconds)


def _moved(circuit: Circuit, event: Event, now: float) -> Circuit:
    new = TRANSITIONS[circuit.state, event]
    return Circuit(
        state=new,
        generation=circuit.generation + 1,
        since=now,
        openings=0 if new in PASSING else circuit.openings,
        event=event,
    )


def _out_of_range(policy: BreakerPolicy, name: str, wanted: str) -> ValueError:
    return ValueError(f"{name}={getattr(policy, name)!r}: a circuit breaker takes {wanted}")
