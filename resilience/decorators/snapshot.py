"""A circuit as it is shown: to the admin endpoint, to metrics, to whoever asks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from resilience.clock import epoch_seconds
from resilience.core.breaker import FORCED, Outcome, retry_after
from resilience.decorators.options import Setting
from resilience.decorators.standing import Standing

__all__ = ["CircuitSnapshot", "Counts", "snapshot_of"]


class CircuitSnapshot(NamedTuple):
    """A circuit as this process sees it now, without asking anybody.

    `since` and `until` are in seconds since 1970; every other time is in seconds. `until` is when an open circuit may be
    probed, or a forced one expires (None: it has no end), `retry_after` in how many seconds, `expires_in` when a forced one
    does. `cause` is what moved it, `reason` and `author` what was said then. `failures` are those in a row. `window` holds
    what the rates are made of, those of other processes included, and `own_window` those of this one; a rate is in percent,
    and -1.0 below `minimum_calls` or where no rule needs it. Counts of calls and the `seconds` that they took, together and
    the `longest` of them, are of this process since it started; "ignored" are those that count as neither. `votes` are the
    hosts that would open a circuit that several hosts share. `shared` is the URI of the storage that it is shared through
    (None: it is of this process), `alone` whether that is out of reach, so that this process goes on by itself. `policy` has
    every option with its value, and says which come from the "code" and which are the "default".
    """

    name: str
    state: str
    since: float | None
    until: float | None
    retry_after: float
    expires_in: float | None
    generation: int
    cause: str
    reason: str
    author: str
    failures: int
    successes: int
    probes: int
    window: Mapping[str, int]
    own_window: Mapping[str, int]
    failure_rate: float
    slow_call_rate: float
    succeeded: int
    failed: int
    ignored: int
    slow: int
    not_permitted: int
    seconds: Mapping[str, float]
    longest: Mapping[str, float]
    votes: Sequence[str]
    shared: str | None
    alone: bool
    fail_max: int | None
    reset_timeout: float
    success_threshold: int
    half_open_max_calls: int
    policy: Mapping[str, Setting]


class Counts:
    """What calls came to, since the process started. Plain additions: exact under greenlets; under threads two that coincide
    may count once. Successes that `Health` counts are not among `succeeded`."""

    __slots__ = (
        "failed", "failed_longest", "failed_seconds", "ignored", "ignored_longest", "ignored_seconds", "not_permitted", "slow",
        "succeeded", "succeeded_longest", "succeeded_seconds",
    )  # fmt: skip

    def __init__(self) -> None:
        self.clear(0)

    def clear(self, passed: int) -> None:
        """Begin anew, when `Health` has counted so many successes."""
        self.succeeded = -passed
        self.failed = self.ignored = self.slow = self.not_permitted = 0
        self.succeeded_seconds = self.failed_seconds = self.ignored_seconds = 0.0
        self.succeeded_longest = self.failed_longest = self.ignored_longest = 0.0

    def add(self, outcome: Outcome, took: float) -> None:
        """Count a call that took so many seconds."""
        if outcome is Outcome.SUCCESS:
            self.succeeded += 1
            self.succeeded_seconds += took
            self.succeeded_longest = max(self.succeeded_longest, took)
        elif outcome is Outcome.FAILURE:
            self.failed += 1
            self.failed_seconds += took
            self.failed_longest = max(self.failed_longest, took)
        else:
            self.ignored += 1
            self.ignored_seconds += took
            self.ignored_longest = max(self.ignored_longest, took)


def snapshot_of(name: str, standing: Standing, counts: Counts, settings: Mapping[str, Setting]) -> CircuitSnapshot:
    """What is known now. Raises `StorageBusy` in the middle of a change by the same thread."""
    standing.refuse_within()
    now, today = standing.seconds(), epoch_seconds()
    with standing.lock:
        present, policy, health = standing.present, standing.policy, standing.health
        failures, totals, own = health.failures, health.all_totals(now), health.totals(now)
        passed = health.passed
    circuit, until, shared = present.circuit, present.until, standing.shared
    enough = policy.has_rates and totals.calls >= policy.minimum_calls
    return CircuitSnapshot(
        name=name,
        state=circuit.state,
        since=today - now - present.ahead + circuit.since if circuit.generation else None,
        until=None if until is None else today - now + until,
        retry_after=retry_after(circuit, policy, now + present.ahead),
        expires_in=None if until is None or circuit.state not in FORCED else max(0.0, until - now),
        generation=circuit.generation,
        cause="" if circuit.event is None else circuit.event.value,
        reason=circuit.reason,
        author=circuit.author,
        failures=failures,
        successes=circuit.successes,
        probes=len(circuit.probes),
        window=totals._asdict(),
        own_window=own._asdict(),
        failure_rate=100 * totals.failure_rate if enough else -1.0,
        slow_call_rate=100 * totals.slow_call_rate if enough else -1.0,
        succeeded=counts.succeeded + passed,
        failed=counts.failed,
        ignored=counts.ignored,
        slow=counts.slow,
        not_permitted=counts.not_permitted,
        seconds={
            "successful": counts.succeeded_seconds,
            "failed": counts.failed_seconds,
            "ignored": counts.ignored_seconds,
        },
        longest={
            "successful": counts.succeeded_longest,
            "failed": counts.failed_longest,
            "ignored": counts.ignored_longest,
        },
        votes=[vote.voter for vote in circuit.votes],
        shared=None if shared is None else shared.storage.uri,
        alone=standing.is_alone,
        fail_max=policy.fail_max,
        reset_timeout=policy.reset_timeout,
        success_threshold=policy.success_threshold,
        half_open_max_calls=policy.half_open_max_calls,
        policy=settings,
    )
