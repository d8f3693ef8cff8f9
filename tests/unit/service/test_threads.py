"""Native threads: what comes back, who has to wait, and that no place is ever lost."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar

import gevent
import pytest
from gevent.monkey import get_original

from service.threads import LineIsFull, NativeThreads, NoThreadInTime

native_ident: Callable[[], int] = get_original("_thread", "get_ident")
colour: ContextVar[str] = ContextVar("colour", default="none")

PATIENCE = 5.0


@pytest.fixture
def threads() -> Iterator[NativeThreads]:
    """One thread, and room for one more job."""
    threads = NativeThreads(1, waiting=1)
    yield threads
    threads.close()


class Gate:
    """A job that begins, says so, and ends when it is let through."""

    def __init__(self) -> None:
        self._entered = threading.Event()
        self._open = threading.Event()
        self.abandoned: bool | None = None

    def __call__(self, abandoned: Callable[[], bool]) -> str:
        self._entered.set()
        assert self._open.wait(PATIENCE)
        self.abandoned = abandoned()
        return "through"

    def let_through(self) -> None:
        self._open.set()

    def await_entry(self) -> None:
        while not self._entered.is_set():
            gevent.sleep(0.001)


def until(condition: Callable[[], bool]) -> None:
    """Let other greenlets run until the condition holds."""
    with gevent.Timeout(PATIENCE):
        while not condition():
            gevent.sleep(0.001)


def test_a_job_runs_in_another_thread_and_its_result_comes_back(threads: NativeThreads) -> None:
    assert native_ident() != threads.run(lambda _: native_ident())


def test_an_error_comes_back_as_it_was_raised(threads: NativeThreads, capsys: pytest.CaptureFixture[str]) -> None:
    error = LookupError("nothing there")

    def fail(_: object) -> None:
        raise error

    with pytest.raises(LookupError) as caught:
        threads.run(fail)
    assert error is caught.value
    assert "" == capsys.readouterr().err


def test_a_job_sees_the_context_of_its_caller_and_cannot_change_it(threads: NativeThreads) -> None:
    def paint(_: object) -> str:
        seen = colour.get()
        colour.set("blue")
        return seen

    token = colour.set("red")
    try:
        assert "red" == threads.run(paint)
        assert "red" == colour.get()
    finally:
        colour.reset(token)


def test_other_greenlets_run_while_a_job_does(threads: NativeThreads) -> None:
    gate = Gate()
    gevent.spawn(gate.let_through)
    assert "through" == threads.run(gate)


def test_as_many_jobs_run_at_once_as_there_are_threads() -> None:
    threads = NativeThreads(3, waiting=0)
    barrier = threading.Barrier(3)
    jobs = [gevent.spawn(threads.run, lambda _: barrier.wait(PATIENCE)) for _ in range(3)]
    assert [0, 1, 2] == sorted(job.get() for job in jobs)
    threads.close()


def test_a_job_beyond_the_line_is_refused(threads: NativeThreads) -> None:
    gate = Gate()
    running = gevent.spawn(threads.run, gate)
    waiting = gevent.spawn(threads.run, lambda _: "waited")
    gate.await_entry()
    with pytest.raises(LineIsFull):
        threads.run(lambda _: "refused")
    gate.let_through()
    assert ("through", "waited") == (running.get(), waiting.get())
    assert 2 == threads.free_places


def test_a_job_that_gets_no_thread_in_time_is_not_begun(threads: NativeThreads) -> None:
    gate = Gate()
    begun: list[str] = []
    running = gevent.spawn(threads.run, gate)
    gate.await_entry()
    with pytest.raises(NoThreadInTime):
        threads.run(lambda _: begun.append("late"), timeout=0.01)
    gate.let_through()
    running.get()
    assert [] == begun
    assert 2 == threads.free_places


@pytest.mark.parametrize("interruption", [gevent.Timeout(), gevent.GreenletExit()])
def test_a_caller_interrupted_in_line_gives_its_place_back(threads: NativeThreads, interruption: BaseException) -> None:
    gate = Gate()
    begun: list[str] = []
    running = gevent.spawn(threads.run, gate)
    waiting = gevent.spawn(threads.run, lambda _: begun.append("waiting"))
    gate.await_entry()
    assert 0 == threads.free_places
    waiting.kill(interruption)
    assert 1 == threads.free_places
    gate.let_through()
    running.get()
    assert [] == begun
    assert 2 == threads.free_places


@pytest.mark.parametrize("interruption", [gevent.Timeout(), gevent.GreenletExit()])
def test_a_job_of_an_interrupted_caller_keeps_its_thread_to_the_end_and_is_told(
    threads: NativeThreads, interruption: BaseException
) -> None:
    gate = Gate()
    running = gevent.spawn(threads.run, gate)
    gate.await_entry()
    running.kill(interruption)
    assert 1 == threads.free_places
    following = gevent.spawn(threads.run, lambda _: "following")
    gate.let_through()
    assert "following" == following.get(timeout=PATIENCE)
    assert gate.abandoned is True
    until(lambda: threads.free_places == 2)


def test_a_job_whose_caller_still_waits_is_told_so(threads: NativeThreads) -> None:
    assert threads.run(lambda abandoned: abandoned()) is False


def test_a_job_that_waits_for_another_job_is_refused(threads: NativeThreads) -> None:
    with pytest.raises(RuntimeError, match="a job may not wait for another"):
        threads.run(lambda _: threads.run(lambda _: None))
    assert 2 == threads.free_places


def test_a_thread_that_cannot_be_started_costs_no_place(
    threads: NativeThreads, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("service.threads.ThreadPool", refuse)
    with pytest.raises(RuntimeError, match="can't start"):
        threads.run(lambda _: None)
    assert 2 == threads.free_places
    monkeypatch.undo()
    assert "started" == threads.run(lambda _: "started")


def test_closing_waits_for_the_job_under_way(threads: NativeThreads) -> None:
    gate = Gate()
    running = gevent.spawn(threads.run, gate)
    gate.await_entry()
    gevent.spawn_later(0.02, gate.let_through)
    threads.close()
    assert "through" == running.get(timeout=PATIENCE)


def test_closed_threads_refuse_further_jobs_and_close_again(threads: NativeThreads) -> None:
    threads.close()
    threads.close()
    with pytest.raises(RuntimeError, match="open a new set"):
        threads.run(lambda _: None)
