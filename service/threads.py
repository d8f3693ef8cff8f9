"""Native threads beside the event loop, for work that would hold it: waiting for SQLite's lock, hashing passwords.

gevent's thread pool does the running; this adds what a request needs around it: a bounded line in front of the
threads, a limit on the time spent in that line, the caller's context inside the thread, and places that are given back
exactly once whether the caller waits to the end or is interrupted.

Works in a patched and in an unpatched process. One instance belongs to the event loop (native thread) that used it first.
Code that runs in these threads takes no lock that greenlets take, so it does not log: it returns what there is to log.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from typing import Generic, TypeVar

from gevent.lock import Semaphore
from gevent.threadpool import ThreadPool

__all__ = ["JobAbandoned", "LineIsFull", "NativeThreads", "NoThreadInTime"]

T = TypeVar("T")

_inside_a_job: ContextVar[bool] = ContextVar("inside_a_job", default=False)

Abandoned = Callable[[], bool]
"""Whether the greenlet that asked has stopped waiting. Cheap; a job asks it before its point of no return."""


class LineIsFull(Exception):
    """As many jobs wait as may wait. Nothing was started."""


class NoThreadInTime(Exception):
    """No thread became free within the caller's timeout. Nothing was started."""


class JobAbandoned(Exception):
    """The greenlet that asked had stopped waiting, so the job was not begun. Nobody receives this."""


@dataclass(slots=True)
class _Ticket:
    abandoned: bool = False


@dataclass(frozen=True, slots=True)
class _Outcome(Generic[T]):
    value: T | None = None
    error: BaseException | None = None

    def unwrap(self) -> T:
        if self.error is not None:
            raise self.error
        return self.value  # type: ignore[return-value]  # without an error the value is the job's


class NativeThreads:
    """Up to `threads` native threads, started on first use (so after a fork), with at most `waiting` jobs in line."""

    def __init__(self, threads: int, *, waiting: int) -> None:
        self._threads = threads
        self._places = threads + waiting
        self._turns = Semaphore(threads)
        self._pool: ThreadPool | None = None
        self._closed = False

    @property
    def free_places(self) -> int:
        """How many more jobs would be accepted now."""
        return self._places

    def run(self, job: Callable[[Abandoned], T], *, timeout: float | None = None) -> T:
        """Run `job` in a thread, in a copy of the caller's context, and return or raise what it does.

        `timeout` limits the seconds in line, not the job. Raises `LineIsFull` or `NoThreadInTime` when the job was not
        begun. A caller that is interrupted while it waits leaves a job that has not begun undone; one that has begun
        runs to its end and keeps its thread until then.
        """
        if self._closed:
            raise RuntimeError("these threads are closed; open a new set")
        if _inside_a_job.get():
            raise RuntimeError("a job may not wait for another; do both in one, or one after the other")
        if self._places == 0:
            raise LineIsFull
        self._places -= 1
        has_turn = False
        try:
            has_turn = self._turns.acquire(timeout=timeout)
        finally:
            if not has_turn:
                self._places += 1
        if not has_turn:
            raise NoThreadInTime
        return self._run_now(job)

    def close(self) -> None:
        """Wait for the jobs under way, then end the threads. Idempotent."""
        self._closed = True
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.join()
            pool.kill()

    def _run_now(self, job: Callable[[Abandoned], T]) -> T:
        ticket = _Ticket()
        try:
            if self._pool is None:
                self._pool = ThreadPool(self._threads)
            result = self._pool.spawn(copy_context().run, _perform, job, ticket)
        except BaseException:
            self._give_back(None)
            raise
        result.rawlink(self._give_back)
        try:
            outcome = result.get()
        except BaseException:
            ticket.abandoned = True
            raise
        assert outcome is not None  # a job always has an outcome; the pool's type cannot say so
        try:
            return outcome.unwrap()
        finally:
            del outcome  # the error's traceback holds this frame; without the name there is no cycle

    def _give_back(self, _: object) -> None:
        self._turns.release()
        self._places += 1


def _perform(job: Callable[[Abandoned], T], ticket: _Ticket) -> _Outcome[T]:
    # An error is carried as a value: the pool would print a traceback for one that is raised in its thread.
    _inside_a_job.set(True)
    if ticket.abandoned:
        return _Outcome(error=JobAbandoned())
    try:
        return _Outcome(value=job(lambda: ticket.abandoned))
    except BaseException as error:  # noqa: BLE001 - raised again in the greenlet that asked
        return _Outcome(error=error)
