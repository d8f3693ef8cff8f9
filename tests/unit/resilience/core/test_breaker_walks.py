"""The circuit beside a second account of what it should do, step by step, along random walks."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as some
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from resilience.core.breaker import (
    BreakerPolicy,
    Circuit,
    Event,
    Outcome,
    Permit,
    Refusal,
    admit,
    expire,
    force,
    retry_after,
    settle,
    trip,
    vote,
    withdraw,
)
from tests.support.circuit_account import HANDS, Account
from tests.support.examples import many

policies = some.builds(
    BreakerPolicy,
    reset_timeout=some.sampled_from([0, 1, 8]),
    success_threshold=some.integers(1, 3),
    half_open_max_calls=some.integers(1, 3),
    probe_lease=some.sampled_from([1, 4]),
    open_time_growth=some.sampled_from([1, 2]),
    open_time_cap=some.sampled_from([8, 30]),
    open_time_jitter=some.sampled_from([0, 0.5]),
    quorum=some.integers(1, 3),
)
# Halves and quarters add up without rounding, whoever adds them in whatever order.
moments = some.integers(0, 40).map(lambda quarters: quarters / 4)
chances = some.sampled_from([0.0, 0.25, 1.0])
pauses = some.sampled_from([0.0, 2.0, 50.0])


class CircuitBesideItsAccount(RuleBasedStateMachine):
    """Whatever happens to a circuit happens to its account, too."""

    permits = Bundle("permits")

    @initialize(policy=policies)
    def begin(self, policy: BreakerPolicy) -> None:
        self.policy, self.now = policy, 100.0
        self.circuit, self.account = Circuit(), Account(policy)
        self.heard: set[Permit] = set()

    @rule(seconds=moments)
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(target=permits)
    def somebody_asks(self) -> Permit:
        self.circuit, answer = admit(self.circuit, self.policy, self.now)
        assert self.account.admits(self.now) == isinstance(answer, Permit)
        if isinstance(answer, Refusal):
            assert answer.retry_after >= 0
            return Permit(-1, 0, 0.0)  # nobody's
        return answer

    @rule(permit=permits, outcome=some.sampled_from(Outcome), chance=chances, pause=pauses)
    def a_call_ends(self, permit: Permit, outcome: Outcome, chance: float, pause: float) -> None:
        self.circuit = settle(self.circuit, self.policy, permit, outcome, self.now, chance=chance, pause=pause)
        self.account.hears(permit, outcome.value, self.now, chance, pause)

    @rule(permit=permits, chance=chances, pause=pauses)
    def calls_have_failed(self, permit: Permit, chance: float, pause: float) -> None:
        self.circuit = trip(self.circuit, self.policy, permit.generation, self.now, chance=chance, pause=pause)
        self.account.finds_ill(permit.generation, self.now, chance, pause)

    @rule(
        host=some.sampled_from(["web-1", "web-2", "web-3"]),
        permit=permits,
        keep=some.sampled_from([1.0, 20.0]),
        chance=chances,
        pause=pauses,
    )
    def a_host_votes(self, host: str, permit: Permit, keep: float, chance: float, pause: float) -> None:
        seen = permit.generation
        self.circuit = vote(self.circuit, self.policy, host, seen, keep, self.now, chance=chance, pause=pause)
        self.account.hears_vote(host, seen, keep, self.now, chance, pause)

    @rule(host=some.sampled_from(["web-1", "web-2", "web-3"]))
    def a_host_takes_its_vote_back(self, host: str) -> None:
        self.circuit = withdraw(self.circuit, host)
        self.account.votes.pop(host, None)

    @rule(event=some.sampled_from(list(HANDS)), expires_in=some.none() | moments)
    def somebody_moves_it(self, event: Event, expires_in: float | None) -> None:
        self.circuit = force(self.circuit, self.policy, event, self.now, expires_in=expires_in)
        self.account.is_moved(event, self.now, expires_in)

    @rule()
    def somebody_looks(self) -> None:
        self.circuit = expire(self.circuit, self.now)
        self.account.look(self.now)

    @invariant()
    def both_say_the_same(self) -> None:
        if not hasattr(self, "circuit"):
            return
        circuit, account = self.circuit, self.account
        assert (account.state, account.moves, account.ends) == (circuit.state, circuit.generation, circuit.until)
        assert account.failed_in_a_row == circuit.openings
        assert [probe.number for probe in account.under_way()] == [probe.number for probe in circuit.probes]
        assert account.succeeded() == circuit.successes
        assert account.votes == {each.voter: each.expires for each in circuit.votes}

    @invariant()
    def whoever_waits_as_long_as_was_said_is_admitted(self) -> None:
        if not hasattr(self, "circuit"):
            return
        wait = retry_after(self.circuit, self.policy, self.now)
        held = self.circuit.state == "forced-open" and self.circuit.until is None
        waits_for_a_lease = any(probe.expires > self.now for probe in self.circuit.probes)
        if not held and not waits_for_a_lease:
            assert isinstance(admit(self.circuit, self.policy, self.now + wait)[1], Permit)


TestCircuitBesideItsAccount = CircuitBesideItsAccount.TestCase
TestCircuitBesideItsAccount.settings = settings(max_examples=many(200), stateful_step_count=40, deadline=None)
