"""A circuit of several hosts, beside an account of it: a common one, and one of every host under the common one's present life."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import settings
from hypothesis import strategies as some
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from resilience.core.breaker import BreakerPolicy, Event, Outcome, Refusal
from resilience.decorators.kept import ByHand, Granted, Identity
from resilience.decorators.shared import SharedCircuit
from resilience.storage.state_memory import MemoryStateStorage
from resilience.testing import FakeClock
from tests.support.circuit_account import HANDS, Account
from tests.support.examples import many

PROCESSES = ("web-1", "web-1", "web-2", "web-3")
"""The hosts of the processes."""

processes = some.integers(0, len(PROCESSES) - 1)
policies = some.builds(
    BreakerPolicy,
    reset_timeout=some.sampled_from([1, 8]),
    success_threshold=some.integers(1, 2),
    half_open_max_calls=some.integers(1, 2),
    probe_lease=some.sampled_from([1, 4]),
    open_time_growth=some.sampled_from([1, 2]),
    open_time_cap=some.just(30),
    quorum=some.integers(1, 3),
)


class ManyHosts(MemoryStateStorage):
    """As if these processes were on hosts of their own."""

    spans_hosts = True


class Hosts:
    """What should be the case where many hosts share a circuit. A host's own account ends with the common one's life."""

    def __init__(self, policy: BreakerPolicy) -> None:
        self.policy = policy
        self.common = Account(policy)
        self.own: dict[str, tuple[int, Account]] = {}

    def of(self, host: str, now: float) -> Account:
        """The account that holds for this host."""
        self.common.look(now)
        if self.common.state != "closed" or self.policy.quorum == 1:
            return self.common
        return self.under(host, self.common.moves)

    def under(self, host: str, life: int) -> Account:
        """That of the host itself, as far as it was begun in this life of the common one."""
        known = self.own.get(host)
        if known is None or known[0] != life:
            known = self.own[host] = (life, Account(self.policy))
        return known[1]

    def told(self, host: str, account: Account, life: int, now: float, act: Callable[[], None]) -> None:
        """Something happens to an account. Where a host's own opens by that it votes; where that recovers, no longer."""
        before = account.moves
        act()
        if account is self.common or account.moves == before:
            return
        if account.state == "open":
            assert account.ends is not None
            keep = max(0.0, account.ends - now) + self.policy.probe_lease
            self.common.hears_vote(host, life, keep, now, 0.0, 0.0)
        elif account.state == "closed":
            self.common.votes.pop(host, None)


class CircuitsBesideTheirAccounts(RuleBasedStateMachine):
    """Processes see the same circuit as the accounts say, whoever does what, and however late."""

    leaves = Bundle("leaves")
    sights = Bundle("sights")

    @initialize(policy=policies)
    def begin(self, policy: BreakerPolicy) -> None:
        self.policy, self.clock, self.hosts = policy, FakeClock(), Hosts(policy)
        storage = ManyHosts(clock=self.clock)
        self.circuits = [SharedCircuit(storage, "backend", host, policy, self.clock.seconds) for host in PROCESSES]

    @property
    def now(self) -> float:
        return self.clock.seconds()

    @rule(quarters=some.integers(0, 40))
    def time_passes(self, quarters: int) -> None:
        self.clock.advance(quarters / 4)

    @rule(target=sights, process=processes)
    def somebody_looks(self, process: int) -> tuple[int, Identity, Account, int, int]:
        account = self.hosts.of(PROCESSES[process], self.now)
        return process, self.circuits[process].view().identity, account, self.hosts.common.moves, account.moves

    @rule(sight=sights)
    def calls_have_failed_since_somebody_looked(self, sight: tuple[int, Identity, Account, int, int]) -> None:
        process, identity, account, life, moves = sight
        host, now = PROCESSES[process], self.now
        self.circuits[process].trip(self.policy, identity, 0.0, 0.0)
        self.hosts.common.look(now)
        if account is not self.hosts.common and self.hosts.own.get(host) != (life, account):
            return  # that of another life
        self.hosts.told(host, account, life, now, lambda: account.finds_ill(moves, now, 0.0, 0.0))

    @rule(target=leaves, process=processes)
    def somebody_asks(self, process: int) -> object:
        host, now = PROCESSES[process], self.now
        account = self.hosts.of(host, now)
        life, refuses_itself = self.hosts.common.moves, self.now < self.circuits[process]._refused_until
        answer = self.circuits[process].admit(self.policy)
        if refuses_itself and isinstance(answer, Refusal):
            return multiple()  # it was refused a moment ago, and has heard of nothing since
        assert account.admits(now) == isinstance(answer, Granted)
        return (process, answer, account, life) if isinstance(answer, Granted) else multiple()

    @rule(leave=leaves, outcome=some.sampled_from(Outcome))
    def a_call_ends(self, leave: tuple[int, Granted, Account, int], outcome: Outcome) -> None:
        process, granted, account, life = leave
        host, now = PROCESSES[process], self.now
        if not granted.permit.number:
            return
        self.circuits[process].settle(self.policy, granted, outcome, 0.0, 0.0)
        if account is not self.hosts.common and self.hosts.own.get(host) != (life, account):
            return
        permit = granted.permit._replace(generation=account.moves if self.is_under_way(account, granted) else -1)
        self.hosts.told(host, account, life, now, lambda: account.hears(permit, outcome.value, now, 0.0, 0.0))

    def is_under_way(self, account: Account, granted: Granted) -> bool:
        return self.generations.get((id(account), account.moves)) == granted.permit.generation

    @rule(process=processes, event=some.sampled_from(list(HANDS)), expires_in=some.none() | some.integers(0, 10))
    def somebody_orders(self, process: int, event: Event, expires_in: float | None) -> None:
        self.circuits[process].force(self.policy, ByHand(event, "why", "who", expires_in))
        self.hosts.common.is_moved(event, self.now, expires_in)

    @invariant()
    def every_process_sees_what_the_accounts_say(self) -> None:
        if not hasattr(self, "circuits"):
            return
        for host, circuit in zip(PROCESSES, self.circuits, strict=True):
            account, seen = self.hosts.of(host, self.now), circuit.view().circuit
            assert (account.state, account.ends) == (seen.state, seen.until)
            assert [probe.number for probe in account.under_way()] == [probe.number for probe in seen.probes]
            assert self.hosts.common.votes == {each.voter: each.expires for each in seen.votes}
