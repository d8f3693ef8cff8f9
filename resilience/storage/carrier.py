"""One connection for all greenlets and threads of a process: what they ask at the same time travels together.

A caller makes a `Question`, sends it through the `Carrier` and waits. The input and output is done by a thread of the
carrier's own (a greenlet, where gevent has patched), so that a caller who is killed while it waits leaves no connection with
somebody else's answer behind. Two writes may be under way at a time: while the server decides one, the answers of the other
are handed out. Questions that come meanwhile wait for the next, at most one round trip.

A failure is everybody's: what is under way and what waits fails at once, the connection is dropped, and the next question
opens a new one. Nothing is sent twice, except a script that the server did not have and therefore did not run.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Hashable
from typing import Any

from redis.connection import AbstractConnection

from resilience.errors import StorageUnavailable
from resilience.ports import Clock
from resilience.storage.line import Line
from resilience.storage.question import AskAlone, Question, Redirected

__all__ = ["AskAlone", "Carrier", "Question", "Redirected"]


class Carrier:
    """Carries questions to one server and back. Safe to share between threads and greenlets, and to use after a fork.

    `connect` makes the connection and is called again for every new one; `timeout` (seconds) bounds connecting and every
    answer. `together` says which questions may share one call of the script, those for which it returns the same; None
    means all. `uri` names the server in errors, without credentials. `clock` replaces the server's clock, for tests.

    Where gevent has patched, the carrier serves the greenlets of the native thread that made it. A caller in another one (of
    gevent's thread pool) gets a connection for that question alone, which costs several times as much.
    """

    def __init__(
        self,
        connect: Callable[[], AbstractConnection],
        *,
        uri: str,
        timeout: float,
        together: Callable[[Question], Hashable] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.uri = uri
        self._new_line: Callable[[], Line] = lambda: Line(
            connect, uri=uri, timeout=timeout, together=together, clock=clock
        )
        self._line: Line | None = None
        # Where gevent has patched, a native thread beside its loop (of a thread pool) cannot wait for a greenlet of the loop.
        self._home = threading.get_native_id()
        self._opening = threading.Lock()
        self._finalizer: weakref.finalize[[], Any] | None = None
        _CARRIERS.add(self)

    def __repr__(self) -> str:
        return f"<Carrier to {self.uri}>"

    def send(self, question: Question) -> None:
        """Put the question on its way; `question.wait()` waits for the answer."""
        line = self._line
        if line is None or line.ended:
            line = self._open()
        if line.beside or threading.get_native_id() == line.native:
            line.send(question)
        else:
            self._new_line().serve(question)

    def ask(self, question: Question) -> bool:
        """`send` the question and `wait` for it. For a thread that asks alone this is the shorter way."""
        line = self._line
        if line is None or line.ended:
            line = self._open()
        if line.beside:
            line.speak(question)
        elif threading.get_native_id() == line.native:
            line.send(question)
        else:
            self._new_line().serve(question)
        return question.wait()

    def close(self) -> None:
        """Close the connection when everything under way is answered. The next question opens a new one."""
        with self._opening:
            line, self._line = self._line, None
            if self._finalizer is not None:
                self._finalizer.detach()
        if line is not None:
            line.stop()

    def _open(self) -> Line:
        try:
            return self._opened(beside=_threads_run_beside())
        except RuntimeError as error:  # there are too many threads already, or the interpreter is ending
            raise StorageUnavailable(f"{self.uri} did not decide: {error}") from error

    def _opened(self, *, beside: bool) -> Line:
        with self._opening:
            line = self._line
            if line is not None and not line.ended:
                return line
            line = self._new_line()
            line.beside = beside
            line.native = self._home
            _LINES.add(line)
            if not beside and threading.get_native_id() != self._home:
                return line  # never to be started: this is no place for a greenlet to live
            self._line = line
            # The thread knows the line only: when nobody holds the carrier any more it ends.
            self._finalizer = weakref.finalize(self, line.stop)
            self._finalizer.atexit = False
        line.start()
        return line

    def forget(self) -> None:
        """In a forked child: the thread is the parent's, and so is the connection."""
        self._line, self._opening = None, threading.Lock()
        self._home = threading.get_native_id()
        if self._finalizer is not None:
            self._finalizer.detach()


def _threads_run_beside() -> bool:
    """Whether threads are threads, and not greenlets of the one that starts them."""
    natives: list[int] = []
    thread = threading.Thread(target=lambda: natives.append(threading.get_native_id()), name="seawall-carrier")
    thread.start()
    thread.join()
    return natives != [threading.get_native_id()]


_CARRIERS: weakref.WeakSet[Carrier] = weakref.WeakSet()
_LINES: weakref.WeakSet[Line] = weakref.WeakSet()
"""Also those whose carrier was closed, or is gone, and that have answers to come."""


def _after_fork() -> None:
    for carrier in list(_CARRIERS):
        carrier.forget()
    for line in list(_LINES):
        line.leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
