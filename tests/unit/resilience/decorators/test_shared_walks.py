"""A circuit of several hosts beside accounts of it: a common one, and one of every host under the life of that."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeVar

from hypothesis import settings
from hypothesis import strategies as some
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from resilience.core.breaker import BreakerPolicy, Event, Outcome, Refusal
from resilience.decorators.kept import ByHand, Granted, Identity
from resilience.decorators.shared import SharedCircuit
from resilience.errors import StorageUnavailable
from resilience.ports import Change
from resilience.storage.state_memory import MemoryStateStorage
from resilience.testing import FakeClock
from tests.support.circuit_account import HANDS, Account
from tests.support.examples import many

T = TypeVar("T")

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


Sight = tuple[int, Identity, Account, int, int]
"""Which process has seen what, of which account in which life of the common one, and after how many moves."""
Leave = tuple[int, Granted, Account, int, int]
"""The same of a probe."""


class ManyHosts(MemoryStateStorage):
    """As if these processes were on hosts of their own."""

    spans_hosts = True
    loses: str | None = None

    def update(self, name: str, change: Change[T], *, keep: float) -> T:
        """As ever, unless the change of this record is the one that it `loses`."""
        if name == self.loses:
            raise StorageUnavailable("no answer")
        return super().update(name, change, keep=keep)


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
        self.storage = ManyHosts(clock=self.clock)
        self.circuits = [SharedCircuit(self.storage, "backend", host, policy, self.clock.seconds) for host in PROCESSES]

    @property
    def now(self) -> float:
        return self.clock.seconds()

    @rule(quarters=some.integers(0, 40))
    def time_passes(self, quarters: int) -> None:
        self.clock.advance(quarters / 4)

    @rule(target=sights, process=processes)
    def somebody_looks(self, process: int) -> Sight:
        return self.sight_of(process)

    def sight_of(self, process: int) -> Sight:
        """What a process sees."""
        account = self.hosts.of(PROCESSES[process], self.now)
        return process, self.circuits[process].view().identity, account, self.hosts.common.moves, account.moves

    @rule(sight=sights)
    def calls_have_failed_since_somebody_looked(self, sight: Sight) -> None:
        self.tripped(sight)

    def tripped(self, sight: Sight) -> None:
        """Calls that were let pass then have failed."""
        process, identity, account, life, moves = sight
        with contextlib.suppress(StorageUnavailable):
            self.circuits[process].trip(self.policy, identity, 0.0, 0.0)
        self.tell(process, account, life, lambda: account.finds_ill(moves, self.now, 0.0, 0.0))

    @rule(target=leaves, process=processes)
    def somebody_asks(self, process: int) -> object:
        leave = self.leave_of(process)
        return multiple() if leave is None else leave

    def leave_of(self, process: int) -> Leave | None:
        """A probe that is let through now."""
        account = self.hosts.of(PROCESSES[process], self.now)
        refuses_itself = self.now < self.circuits[process]._refused_until
        answer = self.circuits[process].admit(self.policy)
        if refuses_itself and isinstance(answer, Refusal):
            return None  # it was refused a moment ago, and has heard of nothing since
        assert account.admits(self.now) == isinstance(answer, Granted)
        if isinstance(answer, Refusal) or not answer.permit.number:
            return None
        return process, answer, account, self.hosts.common.moves, account.moves

    @rule(leave=leaves, outcome=some.sampled_from(Outcome))
    def a_probe_ends(self, leave: Leave, outcome: Outcome) -> None:
        self.settled(leave, outcome)

    def settled(self, leave: Leave, outcome: Outcome) -> None:
        """A probe has come to this."""
        process, granted, account, life, moves = leave
        with contextlib.suppress(StorageUnavailable):
            self.circuits[process].settle(self.policy, granted, outcome, 0.0, 0.0)
        probe = granted.permit._replace(generation=moves)
        self.tell(process, account, life, lambda: account.hears(probe, outcome.value, self.now, 0.0, 0.0))

    @rule(process=processes, loses=some.booleans())
    def calls_fail(self, process: int, loses: bool) -> None:
        sight = self.sight_of(process)
        with self.half_way(process, sight[1], loses):
            self.tripped(sight)

    @rule(process=processes, outcome=some.sampled_from(Outcome), loses=some.booleans())
    def a_probe_is_made(self, process: int, outcome: Outcome, loses: bool) -> None:
        leave = self.leave_of(process)
        if leave is not None:
            with self.half_way(process, leave[1].identity, loses):
                self.settled(leave, outcome)

    @contextlib.contextmanager
    def half_way(self, process: int, identity: Identity, loses: bool) -> Iterator[None]:
        """If it `loses` it, what the block tells the host's record does not come to the common one, until a round is made."""
        if not loses or identity[0] != "host":
            yield
            return
        self.storage.loses = "circuit:backend"
        yield
        self.storage.loses = None
        self.circuits[process].catch_up(self.policy)

    def tell(self, process: int, account: Account, life: int, act: Callable[[], None]) -> None:
        """Something happens to an account, if that of the process's host is still the same one."""
        host = PROCESSES[process]
        self.hosts.common.look(self.now)
        if account is self.hosts.common or self.hosts.own.get(host, (0, None))[1] is account:
            self.hosts.told(host, account, life, self.now, act)

    @rule(process=processes)
    def a_round_is_made(self, process: int) -> None:
        self.circuits[process].catch_up(self.policy)

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


TestCircuitsBesideTheirAccounts = CircuitsBesideTheirAccounts.TestCase
TestCircuitsBesideTheirAccounts.settings = settings(max_examples=many(200), stateful_step_count=40, deadline=None)
