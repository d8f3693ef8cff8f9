"""While the shared storage is down the stand-in decides, nobody waits for it twice, and no caller finds out when it is back."""

from __future__ import annotations

import gc
import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence

import pytest

from resilience.core.events import StoreChanged
from resilience.core.limiter import Charge, Decision, Limit, Refund
from resilience.errors import StorageBusy, StorageUnavailable
from resilience.events import PROCESS_EVENTS
from resilience.ports import Taker
from resilience.storage.denials import RememberedDenials
from resilience.storage.leases import LeasingStorage
from resilience.storage.memory import MemoryStorage
from resilience.storage.share import Share
from resilience.storage.standin import OnStoreFailure, StandInStorage
from resilience.testing import FakeClock

LIMIT = Limit(1, 60, 3)


class Frail:
    """A storage that can be down."""

    uri = "frail://"

    def __init__(self, clock: FakeClock) -> None:
        self.error: Exception | None = None
        self.asked = 0
        self.closed = False
        self.before: Callable[[], object] | None = None
        self.storage = MemoryStorage(clock=clock)

    @property
    def down(self) -> bool:
        return self.error is not None

    @down.setter
    def down(self, down: bool) -> None:
        self.error = StorageUnavailable("frail:// did not decide: down") if down else None

    def take(self, charges: Sequence[Charge]) -> Decision:
        self._asked()
        return self.storage.take(charges)

    def give_back(self, refunds: Sequence[Refund]) -> None:
        self._asked()
        self.storage.give_back(refunds)

    def _asked(self) -> None:
        self.asked += 1
        if self.before is not None:
            before, self.before = self.before, None
            before()
        if self.error is not None:
            raise type(self.error)(*self.error.args)

    def close(self) -> None:
        self.closed = True

    def remaining(self) -> int:
        return self.storage.take([Charge("scope", "s", LIMIT, 0)]).remaining


def made(
    on_store_failure: OnStoreFailure = "local", *, workers: int = 1, down: bool = False
) -> tuple[FakeClock, Frail, StandInStorage]:
    clock = FakeClock()
    frail = Frail(clock)
    frail.down = down
    storage = StandInStorage(frail, on_store_failure=on_store_failure, workers=workers, clock=clock, probing=False)
    return clock, frail, storage


Way = Callable[[StandInStorage], Taker]


@pytest.fixture(params=["take", "taker"])
def way(request: pytest.FixtureRequest) -> Way:
    """Both ways to decide one charge."""
    if request.param == "taker":
        return lambda storage: storage.taker("scope", LIMIT)
    return lambda storage: lambda subject, cost: storage.take([Charge("scope", subject, LIMIT, cost)])


def test_while_it_answers_the_primary_decides(way: Way) -> None:
    _, frail, storage = made()
    assert 2 == way(storage)("s", 1).remaining
    assert (1, "frail://", True) == (frail.asked, storage.uri, storage.available)
    assert ("frail://", "primary", 0.0, 0, 0, 0) == storage.snapshot()


def test_one_failure_spares_all_others_the_wait(way: Way) -> None:
    clock, frail, storage = made(down=True)
    take = way(storage)
    assert [2, 1, 0] == [take("s", 1).remaining for _ in range(3)]
    assert not take("s", 1).allowed
    clock.advance(3600)
    assert take("s", 1).allowed
    assert (1, "frail:// (down: local)") == (frail.asked, storage.uri), "no caller tries again, however late"
    assert ("frail://", "local", 3600.0, 1, 1, 5) == storage.snapshot()


def test_the_primary_is_used_again_after_one_answer_to_a_charge(way: Way, caplog: pytest.LogCaptureFixture) -> None:
    clock, frail, storage = made(down=True)
    take = way(storage)
    with caplog.at_level(logging.WARNING):
        take("s", 1)
        assert not storage._probe_once()
        take("s", 1)
        clock.advance(0.5)
        frail.down = False
        assert storage._probe_once()
    assert [
        "frail:// did not decide: down; deciding local until it answers again",
        "frail:// answers again, after 0.50 s and 2 decisions without it",
    ] == [record.getMessage() for record in caplog.records]
    assert (2, True) == (take("s", 1).remaining, storage.available)
    assert ("frail://", "primary", 0.0, 1, 2, 2) == storage.snapshot()


def test_a_primary_that_answers_is_not_found_again() -> None:
    _, _, storage = made()
    assert storage._probe_once()
    assert 0 == storage.snapshot().changes


def test_one_that_fails_again_soon_must_answer_for_a_while(way: Way, caplog: pytest.LogCaptureFixture) -> None:
    clock, frail, storage = made(down=True)
    take = way(storage)

    def answers_after(seconds: float) -> bool:
        clock.advance(seconds)
        return storage._probe_once()

    take("s", 1)
    frail.down = False
    assert answers_after(0.25)
    clock.advance(9.9)
    frail.down = True
    take("s", 1)
    frail.down = False
    assert [False, False, False] == [answers_after(0.25) for _ in range(3)]
    frail.down = True
    assert not answers_after(0.25)
    frail.down = False
    assert [False, False, False, True] == [answers_after(0.25) for _ in range(4)], "from the beginning"
    clock.advance(10)
    frail.down = True
    take("s", 1)
    frail.down = False
    assert answers_after(0.25), "long enough ago"
    assert 6 == len(caplog.records) == storage.snapshot().changes


def test_a_question_from_before_the_last_change_says_nothing_of_the_primary_as_it_is_now(way: Way) -> None:
    _, frail, storage = made()
    take = way(storage)

    def comes_and_goes() -> None:
        frail.down = True
        take("s", 1)
        frail.down = False
        assert storage._probe_once()
        frail.down = True

    frail.before = comes_and_goes
    assert take("s", 1).allowed
    assert (True, 2, 2) == (storage.available, storage.snapshot().failures, storage.snapshot().changes)


def test_those_who_asked_at_the_same_time_are_one_failure_of_many_questions(way: Way) -> None:
    _, frail, storage = made(down=True)
    take = way(storage)
    frail.before = lambda: take("s", 1)
    take("s", 1)
    assert (2, 1) == (storage.snapshot().failures, storage.snapshot().changes)


def test_a_caller_who_finds_no_place_is_decided_here_and_the_primary_stays_in_use(way: Way) -> None:
    _, frail, storage = made()
    take = way(storage)
    frail.error = StorageBusy("frail://: all connections in use")
    assert take("s", 1).allowed
    assert (True, 1, 0, 1) == (storage.available, *storage.snapshot()[3:])
    frail.error = None
    take("s", 1)
    assert 2 == frail.asked


def test_what_is_not_the_storages_fault_is_raised(way: Way) -> None:
    _, frail, storage = made()
    frail.error = ValueError("two charges of one decision name the same bucket")
    with pytest.raises(ValueError, match="same bucket"):
        way(storage)("s", 1)
    assert storage.available


def test_whatever_a_probe_raises_is_no_answer() -> None:
    _, frail, storage = made(down=True)
    storage.take([])
    frail.error = AssertionError("a fault of the storage's own")
    assert not storage._probe_once()
    frail.error = StorageBusy("frail://: busy")
    assert not storage._probe_once()


def test_local_enforces_this_process_s_share_and_names_it(way: Way) -> None:
    _, _, storage = made(workers=2, down=True)
    take = way(storage)
    decisions = [take("s", 1) for _ in range(3)]
    assert [True, True, False] == [decision.allowed for decision in decisions]
    assert Share(0.5, 60, 2) == Share(
        float(decisions[2].quotas[0].limit.amount), 60, decisions[2].quotas[0].limit.burst
    )
    assert 120.0 == decisions[2].retry_after


def test_allow_allows_all(way: Way) -> None:
    _, _, storage = made("allow", down=True)
    take = way(storage)
    decisions = [take("s", cost) for cost in (1, 3, 4)]
    assert ([True] * 3, 3) == ([decision.allowed for decision in decisions], decisions[2].remaining)
    assert 0.0 == decisions[0].quotas[0].debt_delay == decisions[0].quotas[0].queue_delay


def test_deny_refuses_all_and_says_when_to_come_back(way: Way) -> None:
    _, _, storage = made("deny", down=True)
    take = way(storage)
    decision = take("s", 1)
    assert (False, 0) == (decision.allowed, decision.remaining)
    assert decision.retry_after == pytest.approx(1.0, abs=0.01)
    assert (True, 0) == (take("s", 0).allowed, take("s", 0).remaining), "a look is never refused, and sees nothing"


def test_a_view_decides_its_own_way_and_shares_all_else(caplog: pytest.LogCaptureFixture) -> None:
    _, frail, storage = made()
    strict, lenient = storage.deciding("deny"), storage.deciding("allow")
    assert storage is storage.deciding("local")
    assert storage.primary is strict.primary is lenient.deciding("local").primary
    frail.down = True
    assert not strict.take([Charge("scope", "s", LIMIT, 1)]).allowed
    assert all(lenient.take([Charge("scope", "s", LIMIT, 3)]).allowed for _ in range(3))
    assert storage.take([Charge("scope", "s", LIMIT, 3)]).allowed
    assert not storage.take([Charge("scope", "s", LIMIT, 1)]).allowed
    assert not strict.deciding("local").take([Charge("scope", "s", LIMIT, 1)]).allowed, "one process, one count"
    assert (1, 1) == (frail.asked, len(caplog.records))
    assert ("deny", 1, 7) == (strict.snapshot().mode, strict.snapshot().changes, strict.snapshot().decided_locally)
    assert "<StandInStorage: frail:// (down: deny)>" == repr(strict)
    frail.down = False
    assert storage._probe_once()
    assert strict.available
    assert lenient.available


def test_tokens_go_back_to_whoever_decides_now(way: Way) -> None:
    _, frail, storage = made()
    take = way(storage)
    take("s", 2)
    storage.give_back([Refund("scope", "s", LIMIT, 1)])
    assert 2 == frail.remaining()
    frail.down = True
    take("s", 3)
    storage.give_back([Refund("scope", "s", LIMIT, 1)])
    assert (2, 1) == (frail.remaining(), take("s", 0).remaining)


def test_a_refund_that_finds_the_primary_gone_is_its_failure(way: Way) -> None:
    _, frail, storage = made()
    way(storage)("s", 2)
    frail.down = True
    storage.give_back([Refund("scope", "s", LIMIT, 1)])
    assert (False, 1, 1) == (storage.available, frail.remaining(), storage.snapshot().changes)


@pytest.mark.parametrize("workers", [1, 2])
def test_what_was_taken_here_is_not_given_to_the_primary(way: Way, workers: int) -> None:
    _, frail, storage = made(workers=workers, down=True)
    (quota,) = way(storage)("s", 2).quotas
    frail.down = False
    storage._probe_once()
    way(storage)("s", 2)
    storage.give_back([Refund("scope", "s", quota.limit, 2)])
    assert 1 == frail.remaining()
    frail.down = True
    assert -(-3 // workers) == way(storage)("s", 0).remaining, "it is back where it was"


def test_what_was_never_taken_is_given_back_to_nobody(way: Way) -> None:
    _, frail, storage = made()
    lenient = storage.deciding("allow")
    way(storage)("s", 2)
    frail.down = True
    way(storage)("s", 2)
    (quota,) = way(lenient)("s", 2).quotas
    lenient.give_back([Refund("scope", "s", quota.limit, 2)])
    storage.give_back([Refund("scope", "s", quota.limit, 2)])
    assert 1 == way(storage)("s", 0).remaining
    frail.down = False
    storage._probe_once()
    lenient.give_back([Refund("scope", "s", quota.limit, 2)])
    assert 1 == frail.remaining()


def test_a_view_gives_back_what_another_one_took_here(way: Way) -> None:
    _, _, storage = made(down=True)
    (quota,) = way(storage)("s", 3).quotas
    storage.deciding("allow").give_back([Refund("scope", "s", quota.limit, 2)])
    assert 2 == way(storage)("s", 0).remaining


def test_what_the_primary_may_have_taken_back_is_not_given_back_here_too(way: Way) -> None:
    _, frail, storage = made()
    frail.error = StorageBusy("frail://: busy")
    way(storage)("s", 2)
    storage.give_back([Refund("scope", "s", LIMIT, 1)])
    assert 1 == way(storage)("s", 0).remaining


@pytest.mark.parametrize(
    ("error", "text"),
    [(OSError(28, "No space left on device"), "OSError: [Errno 28] No space left on device"), (OSError(), "OSError")],
)
def test_an_error_of_the_system_is_a_failure_as_well(
    way: Way, error: OSError, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    _, frail, storage = made()
    take = way(storage)
    frail.error = error
    assert take("s", 1).allowed
    assert (False, 1) == (storage.available, storage.snapshot().failures)
    frail.error = None
    storage._probe_once()
    frail.error = error
    storage.give_back([Refund("scope", "s", LIMIT, 1)])
    assert not storage.available
    line = f"frail:// did not decide: {text}; deciding local until it answers again"
    assert [line, line] == [record.getMessage() for record in caplog.records if "answers again," not in record.message]


def test_a_token_of_the_share_goes_back_to_the_share_whoever_decides_now() -> None:
    _, frail, storage = made(workers=2, down=True)
    (quota,) = storage.take([Charge("scope", "s", LIMIT, 2)]).quotas
    frail.down = False
    storage._probe_once()
    storage.take([Charge("scope", "s", LIMIT, 2)])
    storage.give_back([Refund("scope", "s", quota.limit, 1, quota.level)])
    assert 1 == frail.remaining()
    frail.down = True
    assert 1 == storage.take([Charge("scope", "s", LIMIT, 0)]).remaining


def test_a_bucket_that_is_filled_is_filled_here_too(way: Way) -> None:
    _, frail, storage = made(down=True)
    take = way(storage)
    take("s", 3)
    frail.down = False
    storage._probe_once()
    take("s", 3)
    storage.give_back([Refund("scope", "s", LIMIT, None)])
    assert 3 == frail.remaining()
    frail.down = True
    assert 2 == take("s", 1).remaining


def test_a_debt_is_taken_on_here_as_well() -> None:
    _, _, storage = made(down=True)
    take = storage.taker("scope", LIMIT, -LIMIT.debt(60))
    assert [0.0, 0.0, 0.0, 60.0] == [take("s", 1).quotas[0].debt_delay for _ in range(4)]
    assert not take("s", 1).allowed


def test_leases_and_denials_stand_between() -> None:
    clock, frail, _ = made()
    chain = LeasingStorage(RememberedDenials(frail, clock=clock), clock=clock, sweeping=False)
    storage = StandInStorage(chain, clock=clock, probing=False)
    limit = Limit(1_000, 60)
    take = storage.taker("scope", limit, 0, 100)
    assert all(take("s", 1).allowed for _ in range(100))
    assert frail.asked < 20
    frail.down = True
    held, asked = chain.snapshot().tokens, frail.asked
    assert held > 0
    assert all(take("s", 1).allowed for _ in range(held))
    assert storage.available, "what was taken ahead is spent first"
    assert 999 == take("s", 1).remaining, "then this process counts for itself"
    assert (False, True) == (storage.available, frail.asked - asked <= 1)
    frail.down = False
    assert storage._probe_once()
    assert take("s", 1).remaining < 900


def test_closing_it_closes_the_primary() -> None:
    _, frail, storage = made()
    storage.close()
    assert frail.closed


@pytest.mark.parametrize("workers", [0, -1, True, 1.5, None])
def test_no_number_of_processes_is_refused(workers: int) -> None:
    with pytest.raises(ValueError, match=f"workers={workers}"):
        made(workers=workers)


def test_another_way_to_decide_is_refused() -> None:
    with pytest.raises(ValueError, match="'sometimes': choose one of local, allow, deny"):
        made("sometimes")  # type: ignore[arg-type]  # what a typing mistake in a configuration looks like
    with pytest.raises(ValueError, match="'never': choose one of local, allow, deny"):
        made()[2].deciding("never")  # type: ignore[arg-type]


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What would be a quarter of a second."""
    monkeypatch.setattr("resilience.storage.standin._FIRST_PAUSE", 0.001)
    monkeypatch.setattr("resilience.storage.standin._PAUSE", 0.001)
    yield
    for prober in probers():
        prober.join(5)


def watched(*, down: bool = True) -> tuple[Frail, StandInStorage]:
    """A storage whose thread probes, after its first failure."""
    clock = FakeClock()
    frail = Frail(clock)
    frail.down = True
    storage = StandInStorage(frail, clock=clock)
    storage.take([])
    frail.down = down
    return frail, storage


def probers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "rate-limit-probe"]


@pytest.mark.usefixtures("short_pauses")
def test_a_thread_finds_out_that_the_primary_is_back_and_ends() -> None:
    clock = FakeClock()
    frail = Frail(clock)
    storage = StandInStorage(frail, clock=clock)
    assert [] == probers(), "while all is well there is none"
    for _ in range(2):
        frail.down = True
        for _ in range(10):
            storage.take([])
        (prober,) = probers()
        assert prober.daemon
        frail.down = False
        prober.join(5)
        assert (True, []) == (storage.available, probers())
        clock.advance(100)


@pytest.mark.usefixtures("short_pauses")
def test_a_closed_or_forgotten_storage_has_no_thread() -> None:
    for end in (StandInStorage.close, lambda _: None):
        _, storage = watched()
        (prober,) = probers()
        end(storage)
        reference = weakref.ref(storage)
        del storage
        gc.collect()
        prober.join(5)
        assert [] == probers()
        assert reference() is None


@pytest.mark.usefixtures("short_pauses")
def test_a_closed_storage_that_is_used_again_looks_again() -> None:
    frail, storage = watched()
    (prober,) = probers()
    storage.close()
    prober.join(5)
    assert not storage.available
    storage.take([])
    (prober,) = probers()
    frail.down = False
    prober.join(5)
    assert storage.available


@pytest.mark.usefixtures("short_pauses")
def test_a_child_of_a_process_that_had_found_out_looks_for_itself() -> None:
    frail, storage = watched()
    child = os.fork()
    if child == 0:
        before = len(probers())
        storage.take([])
        found = probers()
        frail.down = False
        for prober in found:
            prober.join(5)
        os._exit(100 * before + 10 * len(found) + storage.available)
    assert 11 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    storage.close()


@pytest.mark.usefixtures("short_pauses")
def test_without_a_thread_to_be_had_the_next_caller_tries_to_start_one(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[threading.Thread] = []

    def no_thread(thread: threading.Thread) -> None:
        tries.append(thread)
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", no_thread)
    _, storage = watched()
    assert storage.take([Charge("scope", "s", LIMIT, 1)]).allowed
    assert len(tries) > 1


@pytest.mark.usefixtures("short_pauses")
def test_a_thread_that_is_killed_is_followed_by_another() -> None:
    frail, storage = watched()
    (prober,) = probers()

    def kill() -> None:
        raise SystemExit

    frail.before = kill
    prober.join(5)
    assert [] == probers()
    storage.take([])
    assert 1 == len(probers())
    storage.close()


def test_every_change_is_told_once_and_who_decides_now() -> None:
    PROCESS_EVENTS.clear()
    clock = FakeClock()
    frail = Frail(clock)
    stand_in = StandInStorage(frail, clock=clock, on_store_failure="deny", probing=False)
    frail.down = True
    for _ in range(3):
        stand_in.take([Charge("scope", "subject", LIMIT, 1)])
    frail.down = False
    assert stand_in._probe_once()
    events = [entry.event for entry in PROCESS_EVENTS.of("storage", "frail://")]
    assert [("deny", "frail:// did not decide: down"), ("primary", "")] == [
        (event.mode, event.error) for event in events if isinstance(event, StoreChanged)
    ]


def test_who_is_told_of_a_change_may_ask_the_storage() -> None:
    clock = FakeClock()
    frail = Frail(clock)
    stand_in = StandInStorage(frail, clock=clock, probing=False)
    seen: list[tuple[str, bool]] = []

    def ask(_: object) -> None:
        seen.append((stand_in.snapshot().mode, stand_in.take([Charge("scope", "told", LIMIT, 1)]).allowed))

    end = PROCESS_EVENTS.listen(ask, StoreChanged)
    frail.down = True
    stand_in.take([Charge("scope", "subject", LIMIT, 1)])
    frail.down = False
    stand_in._probe_once()
    end()
    assert [("local", True), ("primary", True)] == seen
