"""Where policies tell of what happens to them: what is remembered, and who hears of it."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterator

import pytest

from resilience.core.events import (
    CallFailed,
    CallNotPermitted,
    CallSucceeded,
    LimitExceeded,
    PolicyEvent,
    StateChanged,
    StoreChanged,
)
from resilience.events import POLICIES, EventLog


@pytest.fixture
def log() -> EventLog:
    """One that nobody listens to."""
    return EventLog(kept=5)


def moved(policy: str = "payments", at: float = 0.0) -> StateChanged:
    """A circuit opened."""
    return StateChanged(policy=policy, at=at, old="closed", new="open", cause="too many failed calls")


def failed(at: float = 0.0, policy: str = "payments") -> CallFailed:
    """A call failed."""
    return CallFailed(policy=policy, at=at, error="OSError")


def refused(count: int = 1) -> CallNotPermitted:
    """A call was refused."""
    return CallNotPermitted(policy="payments", at=0.0, count=count, retry_after=5.0)


# -- what is remembered --------------------------------------------------------------------------------------------------


def test_the_events_of_a_policy_are_remembered_in_their_order(log: EventLog) -> None:
    told = [moved(at=1.0), failed(2.0), moved(at=3.0)]
    for event in told:
        log.emit(event)
    log.emit(moved("mail"))
    assert list(enumerate(told, 1)) == log.of("circuit", "payments")
    assert 4 == log.last


def test_the_oldest_event_of_a_policy_is_forgotten_when_its_ring_is_full(log: EventLog) -> None:
    for at in range(8):
        log.emit(failed(at))
    assert [3.0, 4.0, 5.0, 6.0, 7.0] == [entry.event.at for entry in log.of("circuit", "payments")]


def test_a_storm_of_failed_calls_leaves_it_known_how_the_circuit_moved(log: EventLog) -> None:
    log.emit(moved())
    for at in range(20):
        log.emit(failed(at))
    assert moved() == log.of("circuit", "payments")[0].event


def test_policies_of_two_kinds_may_have_one_name(log: EventLog) -> None:
    log.emit(moved("payments"))
    log.emit(LimitExceeded(policy="payments", at=0.0, key="alice", count=1, retry_after=None))
    assert ["STATE_TRANSITION"] == [entry.event.type for entry in log.of("circuit", "payments")]
    assert ["REFUSED"] == [entry.event.type for entry in log.of("limiter", "payments")]


def test_of_a_policy_that_has_not_spoken_nothing_is_known(log: EventLog) -> None:
    assert [] == log.of("circuit", "payments")


def test_a_success_is_told_and_not_kept(log: EventLog) -> None:
    heard: list[PolicyEvent] = []
    log.listen(heard.append)
    log.emit(CallSucceeded(policy="payments", at=0.0))
    assert ([], 1) == (log.of("circuit", "payments"), len(heard))


def test_who_was_silent_for_the_longest_is_forgotten_first(log: EventLog) -> None:
    for number in range(POLICIES):
        log.emit(moved(str(number)))
    log.emit(moved("0"))
    log.emit(moved("new"))
    assert [2, 0, 1] == [len(log.of("circuit", name)) for name in ("0", "1", "new")]


def test_what_happened_since_an_event_comes_in_order_over_all_policies(log: EventLog) -> None:
    for name in ("payments", "mail", "payments", "mail"):
        log.emit(moved(name))
    assert [2, 3, 4] == [entry.number for entry in log.since(1)]
    assert [3, 4] == [entry.number for entry in log.since(0, most=2)]
    assert [] == log.since(0, most=0)
    assert [] == log.since(4)


def test_a_log_that_is_cleared_forgets_and_goes_on_counting(log: EventLog) -> None:
    heard: list[PolicyEvent] = []
    log.listen(heard.append)
    log.emit(moved())
    log.clear()
    log.emit(moved())
    assert ([2], 2) == ([entry.number for entry in log.since(0)], len(heard))


# -- who hears of it -----------------------------------------------------------------------------------------------------


def test_a_listener_hears_of_everything_until_it_ends_that(log: EventLog) -> None:
    heard: list[PolicyEvent] = []
    end = log.listen(heard.append)
    log.emit(moved())
    end()
    log.emit(moved())
    end()
    assert [moved()] == heard


def test_a_listener_of_some_types_hears_of_these_alone(log: EventLog) -> None:
    heard: list[PolicyEvent] = []
    log.listen(heard.append, CallFailed, StoreChanged)
    log.emit(moved())
    log.emit(failed())
    assert [failed()] == heard


def test_the_same_listener_twice_hears_twice_and_ends_once(log: EventLog) -> None:
    heard: list[PolicyEvent] = []
    end = log.listen(heard.append)
    log.listen(heard.append)
    log.emit(moved())
    end()
    log.emit(moved())
    assert 3 == len(heard)


def test_a_listener_that_raises_is_logged_and_nobody_else_suffers(
    log: EventLog, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(event: PolicyEvent) -> None:
        raise RuntimeError("disk full")

    heard: list[PolicyEvent] = []
    log.listen(broken)
    log.listen(heard.append)
    with caplog.at_level(logging.ERROR):
        log.emit(moved())
        log.emit(moved())
    assert (2, 2) == (len(heard), len(caplog.records))
    assert "'payments'" in caplog.records[0].getMessage()


def test_a_listener_may_ask_for_state_tell_and_listen_itself(log: EventLog) -> None:
    seen: list[int] = []

    def curious(event: PolicyEvent) -> None:
        seen.append(len(log.of(event.kind, event.policy)))
        if len(seen) == 1:
            log.emit(moved())
            log.listen(lambda _: None)()

    log.listen(curious)
    log.emit(moved())
    assert [1, 2] == seen


def test_nobody_pays_for_successes_unless_somebody_listens_for_them(log: EventLog) -> None:
    wanted = [log.wants_successes]
    log.listen(lambda _: None, CallFailed)
    wanted.append(log.wants_successes)
    end = log.listen(lambda _: None, CallSucceeded)
    wanted.append(log.wants_successes)
    end()
    wanted.append(log.wants_successes)
    assert [False, False, True, False] == wanted


def test_every_single_refusal_is_told_to_those_who_want_that_and_the_sum_to_the_others(log: EventLog) -> None:
    each: list[PolicyEvent] = []
    sums: list[PolicyEvent] = []
    wanted = [log.wants_refusals]
    end = log.listen(each.append, CallNotPermitted, every_refusal=True)
    log.listen(sums.append)
    wanted.append(log.wants_refusals)
    log.emit_each(refused())
    log.emit(refused(count=7))
    assert ([refused()], [refused(count=7)]) == (each, sums)
    end()
    assert [False, True, False] == [*wanted, log.wants_refusals]


def test_what_threads_tell_at_once_is_all_kept_each_under_a_number_of_its_own() -> None:
    log = EventLog(kept=1_000)
    barrier = threading.Barrier(4)

    def tell() -> None:
        barrier.wait()
        for _ in range(200):
            log.emit(moved())

    threads = [threading.Thread(target=tell) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(range(1, 801)) == [entry.number for entry in log.of("circuit", "payments")]


@pytest.fixture
def switching_often() -> Iterator[None]:
    """Threads take turns a thousand times as often."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("switching_often")
def test_who_begins_and_ends_to_listen_meanwhile_is_neither_lost_nor_left_behind(log: EventLog) -> None:
    def come_and_go() -> None:
        for _ in range(200):
            log.listen(lambda _: None)()

    threads = [threading.Thread(target=come_and_go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(200):
        log.emit(moved())
    for thread in threads:
        thread.join()
    assert () == log.listeners


def test_a_forked_child_knows_of_no_event_of_its_parent_and_waits_for_none_of_its_threads(log: EventLog) -> None:
    log.emit(moved())
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with log._lock:
            held.set()
            done.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    try:
        log.after_fork()  # as in the child, where that thread is not
        assert [] == log.of("circuit", "payments")
        log.emit(moved())
        assert [2] == [entry.number for entry in log.of("circuit", "payments")]
    finally:
        done.set()
        thread.join()


def test_the_log_of_the_process_is_renewed_in_a_forked_child() -> None:
    from resilience.events import PROCESS_EVENTS

    PROCESS_EVENTS.emit(moved("forked"))
    child = os.fork()
    if child == 0:
        os._exit(len(PROCESS_EVENTS.of("circuit", "forked")))
    assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert 1 == len(PROCESS_EVENTS.of("circuit", "forked"))
    PROCESS_EVENTS.clear()
