"""Breakers that share their circuit through a state storage: several "processes" and "hosts" side by side in this one."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import gevent
import pytest

from resilience import CircuitBreaker, CircuitOpen, circuit_breaker
from resilience.core.events import RateExceeded, SharingChanged, StateChanged
from resilience.core.record import decode
from resilience.decorators.rounds import PROCESS_ROUNDS
from resilience.errors import StorageBusy, StorageUnavailable
from resilience.ports import Following, StateStorage, Stored
from resilience.registry import PROCESS_REGISTRY
from resilience.storage.state_memory import MemoryStateStorage
from resilience.testing import FakeClock, RecordingListener
from tests.support.breakers import breaker, fail, fine, heard

T = TypeVar("T")


@pytest.fixture(autouse=True)
def _rounds_when_a_test_makes_them(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(PROCESS_ROUNDS, "add", lambda visited: None)
    yield
    PROCESS_REGISTRY.clear()


class Shaky:
    """A storage that is out of reach, or busy, when told to be."""

    uri = "shaky://"

    def __init__(self, clock: FakeClock, *, spans_hosts: bool = False) -> None:
        self.spans_hosts = spans_hosts
        self.storage = MemoryStateStorage(clock=clock)
        self.error: type[StorageUnavailable] | None = None
        self.updates = self.reads = 0

    def update(self, name: str, change: Any, *, keep: float) -> Any:
        self.updates += 1
        self.check()
        return self.storage.update(name, change, keep=keep)

    def read(self, name: str) -> Stored:
        self.check()
        return self.storage.read(name)

    def follow(self, name: str, told: Callable[[], None] | None = None) -> Following:
        return ShakyFollowing(self, self.storage.follow(name, told))

    def exchange(self, name: str, member: str, text: bytes, *, keep: float) -> dict[str, bytes]:
        self.check()
        return self.storage.exchange(name, member, text, keep=keep)

    def close(self) -> None:
        self.storage.close()

    def check(self) -> None:
        if self.error is not None:
            raise self.error("no answer")


class ShakyFollowing:
    """Falls silent when its storage is out of reach."""

    def __init__(self, shaky: Shaky, following: Following) -> None:
        self.shaky, self.following = shaky, following

    @property
    def cell(self) -> Any:
        return self.following.cell

    @property
    def place(self) -> int:
        return self.following.place

    def read(self) -> Stored:
        self.shaky.reads += 1
        if self.shaky.error is StorageUnavailable:
            self.shaky.check()
        return self.following.read()

    def close(self) -> None:
        self.following.close()


class Hosts:
    """Breakers of one name on several hosts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, spans_hosts: bool = True) -> None:
        self.clock = FakeClock()
        self.storage = Shaky(self.clock, spans_hosts=spans_hosts)
        self._monkeypatch = monkeypatch

    def breaker(self, host: str, **options: Any) -> CircuitBreaker:
        self._monkeypatch.setenv("RESILIENCE_HOST", host)
        circuit = breaker(self.clock, **options)
        circuit.share(self.storage)
        return circuit


@pytest.fixture
def one(monkeypatch: pytest.MonkeyPatch) -> Hosts:
    """A storage of one host."""
    return Hosts(monkeypatch, spans_hosts=False)


@pytest.fixture
def several(monkeypatch: pytest.MonkeyPatch) -> Hosts:
    """A storage where several hosts meet."""
    return Hosts(monkeypatch)


def states(*circuits: CircuitBreaker) -> list[str]:
    return [circuit.snapshot().state for circuit in circuits]


def visit(*circuits: CircuitBreaker) -> None:
    for circuit in circuits:
        circuit._standing.visit()


def test_what_one_process_finds_out_holds_for_all(one: Hosts) -> None:
    first, second = one.breaker("a"), one.breaker("a")
    listener = RecordingListener()
    second.add_listener(listener)
    assert ["fine", "fine"] == [first.call(fine), second.call(fine)]
    fail(first, 2)
    with pytest.raises(CircuitOpen) as caught:
        second.call(fine)
    assert (10.0, ["open", "open"]) == (caught.value.retry_after, states(first, second))
    assert ("state_change", "closed", "open") in listener.heard
    one.clock.advance(10)
    assert ("fine", ["closed", "closed"]) == (second.call(fine), states(first, second))


def test_calls_on_a_closed_circuit_ask_the_storage_nothing(one: Hosts) -> None:
    circuit = one.breaker("a")
    circuit.call(fine)
    one.storage.updates = 0
    for _ in range(100):
        circuit.call(fine)
    fail(circuit)
    assert 0 == one.storage.updates


def test_sharing_asks_the_storage_nothing_before_the_circuit_is_asked(one: Hosts) -> None:
    one.storage.error = StorageUnavailable
    circuit = one.breaker("a")
    one.storage.error = None
    fail(one.breaker("a"), 2)
    assert ["open"] == states(circuit)


def test_probes_are_capped_over_all_processes(one: Hosts) -> None:
    circuits = [one.breaker("a", half_open_max_calls=2, success_threshold=3) for _ in range(4)]
    fail(circuits[0], 2)
    one.clock.advance(10)

    def numbers() -> Iterator[int]:
        yield 1

    probes = [circuits[0].call(numbers), circuits[1].call(numbers)]
    for circuit in circuits:
        with pytest.raises(CircuitOpen) as caught:
            circuit.call(fine)
        assert 0 < caught.value.retry_after <= 1
    assert [[1], [1]] == [list(probe) for probe in probes]
    assert (["half-open"] * 4, "fine", ["closed"] * 4) == (
        states(*circuits), circuits[3].call(fine), states(*circuits)
    )  # fmt: skip


def test_a_process_that_was_refused_a_probe_does_not_ask_again_before_it_could_be_given_one(one: Hosts) -> None:
    first, second = one.breaker("a"), one.breaker("a")
    fail(first, 2)
    one.clock.advance(10)

    def probe() -> None:
        with pytest.raises(CircuitOpen):
            second.call(fine)
        one.storage.updates = one.storage.reads = 0
        for _ in range(10):
            with pytest.raises(CircuitOpen):
                second.call(fine)
        assert (0, 0) == (one.storage.updates, one.storage.reads)

    first.call(probe)
    assert "fine" == second.call(fine)  # there was news


def test_the_lease_of_a_probe_that_never_comes_back_runs_out(one: Hosts) -> None:
    first, second = one.breaker("a", probe_lease=5), one.breaker("a", probe_lease=5)
    fail(first, 2)
    one.clock.advance(10)
    lost = first._calls.admit(fine)
    with pytest.raises(CircuitOpen):
        second.call(fine)
    one.clock.advance(5)
    assert ("fine", ["closed", "closed"]) == (second.call(fine), states(first, second))
    first._calls.succeeded(lost, 0.0)
    assert ["closed", "closed"] == states(first, second)


def test_a_late_result_does_not_count_against_what_others_have_made_of_the_circuit(one: Hosts) -> None:
    first, second = one.breaker("a", fail_max=1), one.breaker("a", fail_max=1)

    def fails_late() -> None:
        second.open()
        second.close()
        raise OSError

    with pytest.raises(OSError):  # it has no message
        first.call(fails_late)
    assert ["closed", "closed"] == states(first, second)


def test_what_is_ordered_in_one_process_holds_in_all_and_expires_in_all(one: Hosts) -> None:
    first, second = one.breaker("a"), one.breaker("a")
    with heard(StateChanged) as events:
        first.force_open(reason="maintenance", author="ann", expires_in=30)
        assert ["forced-open", "forced-open"] == states(first, second)
    assert [("forced-open", "maintenance", "ann", 30.0)] * 2 == [
        (event.new, event.reason, event.author, event.expires_in) for event in events
    ]
    one.clock.advance(30)
    assert ["half-open", "half-open"] == states(first, second)
    second.reset(reason="done")
    assert ["closed", "closed"] == states(first, second)


def test_a_circuit_is_shared_under_its_name_alone(one: Hosts) -> None:
    first, other = one.breaker("a"), one.breaker("a", name="other")
    fail(first, 2)
    assert ["open", "closed"] == states(first, other)
    with pytest.raises(ValueError, match="shared under its name"):
        one.breaker("a", name=None)


@pytest.mark.parametrize(("option", "most"), [("half_open_max_calls", 50), ("quorum", 25)])
def test_what_a_record_does_not_hold_is_refused(one: Hosts, option: str, most: int) -> None:
    one.breaker("a", **{option: most})
    with pytest.raises(ValueError, match=f"{option}={most + 1}: a circuit that is shared takes {most} at most"):
        one.breaker("a", **{option: most + 1})


def test_whatever_is_said_of_an_order_fits_into_a_record(one: Hosts) -> None:
    first, second = (one.breaker("a", half_open_max_calls=50, success_threshold=50) for _ in range(2))
    first.half_open(reason="\N{SNOWMAN}\n\x00\ud800" * 1_000, author="\N{SNOWMAN}" * 1_000)
    probes = [first._calls.admit(fine) for _ in range(50)]
    assert (50, 50, "\N{SNOWMAN}   \N{SNOWMAN}") == (
        len(probes), second.snapshot().probes, second.snapshot().reason[:5]
    )  # fmt: skip


def test_a_circuit_that_is_open_when_it_is_shared_opens_for_all_for_the_rest_of_its_time(one: Hosts) -> None:
    first, second = breaker(one.clock), one.breaker("a")
    fail(first, 2)
    one.clock.advance(4)
    first.share(one.storage)
    assert (["open", "open"], 6.0) == (states(first, second), second.snapshot().retry_after)


def test_a_breaker_that_was_made_with_a_storage_keeps_it(one: Hosts) -> None:
    own = MemoryStateStorage(clock=one.clock)
    circuit = breaker(one.clock, state_storage=own)
    assert isinstance(own, StateStorage)
    circuit.share(one.storage)
    assert "memory://" == circuit.snapshot().shared
    circuit.open()
    assert "open" == decode(own.read("circuit:demo").text).circuit.state


def test_a_registry_shares_every_circuit_those_that_come_later_included(one: Hosts) -> None:
    circuit_breaker("early")(fine)
    PROCESS_REGISTRY.share(one.storage)
    circuit_breaker("late")(fine)
    assert ["shaky://", "shaky://"] == [each.snapshot().shared for each in PROCESS_REGISTRY.circuits.values()]


def test_one_ill_host_opens_for_itself_alone_until_a_second_finds_the_same(several: Hosts) -> None:
    first, neighbour, second = several.breaker("a"), several.breaker("a"), several.breaker("b")
    with heard(RateExceeded) as events:
        fail(first, 2)
    assert ["open", "open", "closed"] == states(first, neighbour, second)
    assert ["failures in a row"] == [event.rule for event in events]
    assert ["a"] == first.snapshot().votes == second.snapshot().votes
    third = several.breaker("c")
    fail(second, 2)
    assert ["open"] * 4 == states(first, neighbour, second, third)


def test_a_host_that_recovers_takes_its_vote_back(several: Hosts) -> None:
    first, second = several.breaker("a"), several.breaker("b")
    fail(first, 2)
    several.clock.advance(10)
    assert "fine" == first.call(fine)
    assert ([], ["closed", "closed"]) == (list(second.snapshot().votes), states(first, second))
    fail(second, 2)
    assert ["closed", "open"] == states(first, second)


def test_a_host_whose_probe_fails_votes_anew(several: Hosts) -> None:
    first, second = several.breaker("a", probe_lease=1), several.breaker("b", probe_lease=1)
    fail(first, 2)
    for _ in range(3):
        several.clock.advance(10)
        fail(first)
    fail(second, 2)
    assert ["open", "open"] == states(first, second)


def test_when_all_recover_what_each_host_thought_before_is_void(several: Hosts) -> None:
    first, second = several.breaker("a"), several.breaker("b")
    fail(first, 2)
    fail(second, 2)
    several.clock.advance(10)
    assert "fine" == second.call(fine)
    assert ["closed", "closed"] == states(first, second)
    assert ["fine", "fine"] == [first.call(fine), second.call(fine)]


def test_where_it_is_asked_for_one_host_speaks_for_all(several: Hosts) -> None:
    first, second = several.breaker("a", quorum=1), several.breaker("b", quorum=1)
    fail(first, 2)
    assert ["open", "open"] == states(first, second)


def updates_fail(several: Hosts, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The next change of this record does."""
    update = several.storage.update

    def fails_once(record: str, change: Any, *, keep: float) -> Any:
        if record != name:
            return update(record, change, keep=keep)
        monkeypatch.setattr(several.storage, "update", update)
        raise StorageUnavailable("no answer")

    monkeypatch.setattr(several.storage, "update", fails_once)


def test_a_vote_that_did_not_arrive_is_given_with_the_next_round_and_once(
    several: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, neighbour, second = several.breaker("a"), several.breaker("a"), several.breaker("b")
    states(first, neighbour, second)
    updates_fail(several, monkeypatch, "circuit:demo")
    fail(first, 2)
    assert ((), True) == (tuple(second.snapshot().votes), first.snapshot().alone)
    visit(neighbour)
    assert ["a"] == second.snapshot().votes
    visit(first)
    several.storage.updates = 0
    visit(first, neighbour, second, first, neighbour, second)
    fail(second, 2)
    assert (["open"] * 3, 2) == (states(first, neighbour, second), several.storage.updates)


def test_a_vote_that_was_not_taken_back_is_with_the_next_round(several: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = (several.breaker(host) for host in "abc")
    fail(first, 2)
    several.clock.advance(10)
    updates_fail(several, monkeypatch, "circuit:demo")
    assert ("fine", ["a"]) == (first.call(fine), second.snapshot().votes)
    visit(first)
    assert [] == second.snapshot().votes
    fail(second, 2)
    assert ["closed", "open", "closed"] == states(first, second, third)


def test_a_vote_whose_time_is_over_is_not_given_again(several: Hosts) -> None:
    first, second, third = (several.breaker(host, probe_lease=1, quorum=3) for host in "abc")
    fail(first, 2)
    several.clock.advance(12)
    fail(second, 2)
    visit(first, second, third)
    assert ["b"] == third.snapshot().votes


def test_orders_hold_on_all_hosts_and_void_what_hosts_found_out(several: Hosts) -> None:
    first, second = several.breaker("a"), several.breaker("b")
    fail(first, 2)
    second.close(reason="it is well")
    assert ["closed", "closed"] == states(first, second)
    second.force_open()
    assert ["forced-open", "forced-open"] == states(first, second)


def test_rates_are_those_of_all_processes_also_of_two_that_bear_one_number(one: Hosts) -> None:
    first, second = (one.breaker("a", failure_rate=0.5, minimum_calls=4) for _ in range(2))
    fail(first, 2)
    visit(first)
    fail(second, 2)
    assert ["closed", "closed"] == states(first, second)
    visit(second)
    assert (["open", "open"], 100.0) == (states(first, second), second.snapshot().failure_rate)


def test_rates_are_those_of_a_host_where_each_host_opens_for_itself(several: Hosts) -> None:
    first, second = (several.breaker(host, failure_rate=0.5, minimum_calls=4) for host in "ab")
    fail(first, 2)
    visit(first)
    fail(second, 2)
    visit(second)
    assert (["closed", "closed"], 2) == (states(first, second), second.snapshot().window["calls"])


def test_a_worker_that_has_gone_counts_no_longer_than_the_window_lasts(one: Hosts) -> None:
    gone, stays = (one.breaker("a", failure_rate=0.5, window_seconds=2, minimum_calls=4) for _ in range(2))
    fail(gone, 3)
    visit(gone)
    one.clock.advance(3)
    fail(stays, 3)
    visit(stays)
    assert ("closed", 3) == (stays.snapshot().state, stays.snapshot().window["calls"])


def test_a_circuit_that_is_shared_elsewhere_takes_its_window_along(one: Hosts) -> None:
    moves, stays = (one.breaker("a", failure_rate=0.5, minimum_calls=4) for _ in range(2))
    fail(moves, 3)
    visit(moves)
    moves.share(MemoryStateStorage(clock=one.clock))
    fail(stays, 3)
    visit(stays)
    assert ("closed", 3) == (stays.snapshot().state, stays.snapshot().window["calls"])


def test_a_window_that_says_nothing_new_is_told_rarely_and_an_empty_one_never(one: Hosts) -> None:
    told: list[bytes] = []
    exchange = one.storage.exchange

    def telling(name: str, member: str, text: bytes, *, keep: float) -> dict[str, bytes]:
        told.append(text)
        return exchange(name, member, text, keep=keep)

    one.storage.exchange = telling  # type: ignore[method-assign]  # watched
    circuit = one.breaker("a", failure_rate=0.5)
    circuit.snapshot()
    visit(circuit, circuit)
    assert [] == told
    circuit.call(fine)
    for _ in range(20):
        visit(circuit)
        one.clock.advance(0.2)
    assert [b"common 0 0 1 0 0 0"] == told
    one.clock.advance(2)
    visit(circuit)
    assert 2 == len(told)


@pytest.mark.parametrize("text", [b"", b"\xff", b"common 0 0 1 2", b"common 0 0 a b c d"])
def test_what_others_leave_that_is_no_window_is_passed_over(one: Hosts, text: bytes) -> None:
    one.storage.exchange("window:demo", "a/other", text, keep=60)
    circuit = one.breaker("a", failure_rate=0.5, minimum_calls=2)
    circuit.call(fine)
    visit(circuit)
    assert 1 == circuit.snapshot().window["calls"]


def test_without_its_storage_a_process_goes_on_alone_and_tells_once(one: Hosts) -> None:
    circuit = one.breaker("a")
    assert "fine" == circuit.call(fine)
    one.storage.error = StorageUnavailable
    with heard(SharingChanged) as events:
        fail(circuit, 2)
        one.clock.advance(5)
        visit(circuit, circuit)
        assert ("open", True) == (circuit.snapshot().state, circuit.snapshot().alone)
        one.storage.error = None
        visit(circuit)
    assert [(True, "StorageUnavailable: no answer"), (False, "")] == [(event.alone, event.error) for event in events]
    assert ("open", False, 5.0) == (
        circuit.snapshot().state, circuit.snapshot().alone, one.breaker("a").snapshot().retry_after
    )  # fmt: skip


def test_a_circuit_that_is_open_when_its_storage_goes_stays_open_as_long_as_it_was_to_and_probes_alone(
    one: Hosts,
) -> None:
    first, second = one.breaker("a"), one.breaker("a")
    fail(first, 2)
    assert ["open"] == states(second)
    one.storage.error = StorageUnavailable
    visit(second)
    one.clock.advance(4)
    with pytest.raises(CircuitOpen) as caught:
        second.call(fine)
    assert 6.0 == caught.value.retry_after
    one.clock.advance(6)
    assert ("fine", "closed") == (second.call(fine), second.snapshot().state)
    one.storage.error = None
    visit(second)
    assert "fine" == second.call(fine)  # it asks for a probe where it is shared, and that recovers too
    assert ["closed", "closed"] == states(first, second)


def test_a_storage_that_is_out_of_reach_from_the_beginning_is_joined_when_it_is_there(one: Hosts) -> None:
    one.storage.error = StorageUnavailable
    circuit = one.breaker("a")
    with heard(SharingChanged) as events:
        assert "fine" == circuit.call(fine)
        visit(circuit)
        assert [] == events  # a server may start a moment after its clients
        one.clock.advance(1)
        visit(circuit)
        one.storage.error = None
        visit(circuit)
    assert [True, False] == [event.alone for event in events]


def test_orders_given_to_a_process_alone_hold_there_and_later_for_all(one: Hosts) -> None:
    first, second = one.breaker("a"), one.breaker("a")
    states(first, second)
    one.storage.error = StorageUnavailable
    first.force_open(reason="maintenance", expires_in=60)
    assert ("forced-open", True) == (first.snapshot().state, first.snapshot().alone)
    one.storage.error = None
    one.clock.advance(20)
    visit(first)
    assert (["forced-open", "forced-open"], 40.0) == (states(first, second), second.snapshot().expires_in)


def test_what_was_ordered_alone_does_not_undo_what_was_ordered_for_everybody_later(one: Hosts) -> None:
    first, second = one.breaker("a"), one.breaker("a")
    states(first, second)
    one.storage.error = StorageUnavailable
    first.force_closed(reason="alone")
    one.storage.error = None
    second.force_open(reason="for everybody")
    visit(first)
    assert (["forced-open", "forced-open"], "for everybody") == (states(first, second), first.snapshot().reason)


def test_what_was_ordered_alone_ends_what_was_ordered_for_everybody_before(one: Hosts) -> None:
    first, second = one.breaker("a"), one.breaker("a")
    second.force_open(reason="for everybody")
    assert ["forced-open"] == states(first)
    one.storage.error = StorageUnavailable
    first.close(reason="alone")
    one.storage.error = None
    visit(first)
    assert ["closed", "closed"] == states(first, second)


def test_an_order_finds_the_storage_that_is_back_before_the_next_round(one: Hosts) -> None:
    first, second = one.breaker("a"), one.breaker("a")
    states(first, second)
    one.storage.error = StorageUnavailable
    fail(first, 2)
    one.storage.error = None
    first.close()
    assert (["closed", "closed"], False) == (states(first, second), first.snapshot().alone)


def test_the_result_of_a_probe_that_could_not_be_told_is_told_later(one: Hosts) -> None:
    first, second = one.breaker("a"), one.breaker("a")
    fail(first, 2)
    one.clock.advance(10)

    def loses_the_storage() -> str:
        one.storage.error = StorageUnavailable
        return "fine"

    assert "fine" == first.call(loses_the_storage)
    one.storage.error = None
    assert ["half-open"] == states(second)
    visit(first)
    assert ["closed", "closed"] == states(first, second)


@pytest.mark.parametrize("outcome", ["closed", "open"])
def test_a_busy_storage_is_not_one_that_is_gone(one: Hosts, outcome: str) -> None:
    first, second = one.breaker("a"), one.breaker("a")
    fail(first, 2)
    one.clock.advance(10)
    one.storage.error = StorageBusy
    with pytest.raises(CircuitOpen):
        first.call(fine)
    one.storage.error = None

    def makes_it_busy() -> None:
        one.storage.error = StorageBusy
        if outcome == "open":
            raise OSError

    with heard(SharingChanged) as events, contextlib.suppress(OSError):
        first.call(makes_it_busy)
    one.storage.error = None
    visit(first)
    assert ([], [outcome, outcome]) == (events, states(first, second))


def test_a_circuit_that_could_not_be_opened_as_the_storage_was_busy_opens_with_the_next_round(one: Hosts) -> None:
    first, second = one.breaker("a"), one.breaker("a")
    states(first, second)
    one.storage.error = StorageBusy
    fail(first, 2)
    one.storage.error = None
    assert ["closed", "closed"] == states(first, second)
    visit(first)
    assert ["open", "open"] == states(first, second)


def test_an_order_that_finds_the_storage_busy_holds_at_once_and_soon_for_all(one: Hosts) -> None:
    first, second = one.breaker("a"), one.breaker("a")
    states(first, second)
    one.storage.error = StorageBusy
    first.disable(reason="noisy")
    assert ["disabled"] == states(first)
    one.storage.error = None
    visit(first)
    assert (["disabled", "disabled"], "noisy") == (states(first, second), second.snapshot().reason)


def test_a_record_that_is_not_ours_leaves_each_process_alone_until_an_order_writes_it_anew(one: Hosts) -> None:
    one.storage.storage.update("circuit:demo", lambda text, now: (b"junk", None), keep=60)
    first, second = one.breaker("a"), one.breaker("a")
    fail(first, 2)
    assert (["open", "closed"], True) == (states(first, second), first.snapshot().alone)
    first.reset()
    visit(second)
    assert (["closed", "closed"], False) == (states(first, second), second.snapshot().alone)


def test_a_record_that_is_lost_leaves_a_closed_circuit(one: Hosts) -> None:
    circuit = one.breaker("a")
    fail(circuit, 2)
    one.storage.storage.update("circuit:demo", lambda text, now: (None, None), keep=60)
    assert ("fine", ["closed"]) == (circuit.call(fine), states(circuit))


def test_a_circuit_that_comes_to_the_same_number_after_its_record_was_lost_is_another_one(one: Hosts) -> None:
    first, second = one.breaker("a", fail_max=1), one.breaker("a", fail_max=1)
    first.reset()
    assert ["closed"] == states(second)
    one.storage.storage.update("circuit:demo", lambda text, now: (None, None), keep=60)
    fail(first)
    with heard(StateChanged) as events, pytest.raises(CircuitOpen):
        second.call(fine)
    assert [("closed", "open")] == [(event.old, event.new) for event in events]


def test_a_forced_state_that_has_expired_is_one_and_the_same_whoever_looks_and_whenever(one: Hosts) -> None:
    circuit = one.breaker("a", fail_max=1)
    circuit.force_closed(expires_in=5)
    one.clock.advance(6)
    assert ["closed"] == states(circuit)
    present = circuit._standing.present
    one.clock.advance(1)
    assert ["closed"] == states(circuit)
    assert present is circuit._standing.present


def test_a_killed_prober_gives_its_place_back_to_all(one: Hosts) -> None:
    first, second = one.breaker("a"), one.breaker("a")
    fail(first, 2)
    one.clock.advance(10)
    killed = gevent.spawn(first.call, gevent.sleep, 60)
    gevent.sleep(0)
    assert 1 == second.snapshot().probes
    killed.kill()
    assert (0, "fine") == (second.snapshot().probes, second.call(fine))


def test_threads_that_begin_at_once_all_wait_for_what_the_storage_says(one: Hosts) -> None:
    fail(one.breaker("a"), 2)
    circuit = one.breaker("a")
    barrier, called = threading.Barrier(8), []

    def begin() -> None:
        barrier.wait(5)
        try:
            called.append(circuit.call(fine))
        except CircuitOpen:
            called.append("refused")

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert ["refused"] * 8 == called


def test_a_forked_child_looks_again_before_its_first_call(one: Hosts) -> None:
    circuit, elsewhere = one.breaker("a"), one.breaker("a")
    circuit.call(fine)
    circuit._standing.after_fork()
    assert not circuit._standing.quick
    fail(elsewhere, 2)
    with pytest.raises(CircuitOpen):
        circuit.call(fine)


def test_a_forked_child_does_not_speak_for_the_window_of_its_parent(one: Hosts) -> None:
    circuit, stays = (one.breaker("a", failure_rate=0.5, minimum_calls=6) for _ in range(2))
    fail(circuit, 2)
    visit(circuit)
    circuit._standing.after_fork()
    circuit.call(fine)
    visit(circuit)
    fail(stays, 1)
    visit(stays)
    assert 2 + 3 + 1 == stays.snapshot().window["calls"]


@pytest.mark.parametrize("alone", [False, True], ids=["in reach", "alone"])
def test_the_place_of_a_generator_that_was_dropped_is_free_for_every_process_after_a_round(
    one: Hosts, alone: bool
) -> None:
    first, second = one.breaker("a"), one.breaker("b")
    first.half_open()
    numbers = first.call(lambda: (number for number in (1, 2)))
    next(numbers)
    with pytest.raises(CircuitOpen):
        second.call(fine)
    del numbers
    if alone:
        one.storage.error = StorageUnavailable
        visit(first)
        one.storage.error = None
    visit(first, second)
    one.clock.advance(1)
    assert "fine" == second.call(fine)


def test_a_call_whose_circuit_is_joined_by_this_very_thread_goes_on_alone(one: Hosts) -> None:
    circuit = one.breaker("a")
    with circuit._standing._joining:
        assert "fine" == circuit.call(fine)
    assert "fine" == circuit.call(fine)
    assert not circuit.snapshot().alone
