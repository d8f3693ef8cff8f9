"""One connection to a server over which a process asks, and hears what others have done.

A thread of its own (a greenlet, where gevent has patched) does all input and output; it asks and listens over the same
connection, in the server's third protocol (RESP3). So answers and news come in the order in which the server did things, and
what is known of a record is never put back by something older. A caller makes an `Inquiry` and waits for it; one that is
killed while it waits leaves nothing behind.

It is its own switch. A server that did not answer in time is left, and nobody waits for it any more: whoever asks is refused
at once, until a new connection has been made and has shown, by a write, that all is well. Nothing is asked twice, except
what the server says it has not done.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import re
import selectors
import socket
import ssl
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import hiredis
import redis
from redis.connection import AbstractConnection

from resilience.errors import StorageUnavailable
from resilience.greenlets import INTERRUPTIONS
from resilience.storage.script import bulk

__all__ = ["Connector", "Ears", "Inquiry", "Wire", "command"]

_CHANCE = random.SystemRandom()  # of its own: an application that seeds `random` would have all workers act in step

_LOG = logging.getLogger(__name__)

_LEAST: Final = 0.2
"""The part of the timeout that the server has at least, however long an inquiry waited to be sent."""
_PATIENCE: Final = 0.5
"""Seconds for an answer that no caller waits for, unless callers wait longer."""
_ALIVE_EVERY: Final = 1.0
"""Seconds of silence after which the server is asked whether it is there."""
_PAUSES: Final = (0.05, 0.1, 0.2, 0.4)
"""Seconds between attempts to connect; the last one again and again, all give or take a quarter."""
_GLANCE: Final = 0.001
"""Seconds between two looks of a caller who cannot be woken."""
_STEADY: Final = 1.0
"""Seconds for which a connection must have been of use, so that its loss is no sign of trouble."""
_RECEIVED: Final = 65_536

_NOTHING_YET: Final = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
# What says of the server, and not of the question, that it is the wrong one, or in no state to help.
_UNFIT: Final = re.compile(
    r"\b(READONLY|LOADING|MASTERDOWN|NOAUTH|NOPERM|CLUSTERDOWN|MOVED|ASK|TRYAGAIN|OOM|MISCONF|NOREPLICAS|BUSY|UNKILLABLE)\b"
)


def command(*words: bytes) -> bytes:
    """A command as it travels."""
    return b"*%d\r\n%b" % (len(words), b"".join(map(bulk, words)))


class Connector(Protocol):
    """Makes connections to whoever is the right server at the moment."""

    def connect(self) -> AbstractConnection:
        """A new one. It may take a second or so; no caller waits for it. Raises anything."""

    def mistaken(self, message: str) -> str:
        """The server connected to last has answered with this error: it is not the right one, perhaps. Returns what is to be
        said about it."""


class Inquiry:
    """Commands that are sent together, and what the server answered."""

    __slots__ = (
        "_count",
        "_done",
        "_waited_until",
        "answered",
        "commands",
        "deadline",
        "error",
        "heed",
        "replies",
        "sent",
        "withdrawn",
    )

    def __init__(
        self,
        commands: bytes,
        count: int,
        *,
        timeout: float,
        heed: Callable[[Inquiry], None] | None = None,
    ) -> None:
        """`commands` as they travel, how many answers they have, and for how many seconds they may be under way. `heed` is
        called in the wire's thread when all of them are there, in the order of the server's answers, before the caller is
        woken; it must be quick."""
        self.commands = commands
        self._count = count
        self.heed = heed
        self.sent = self.answered = time.monotonic()
        self._waited_until = self.deadline = self.sent + timeout  # the wire may put the latter off
        self.replies: list[Any] = []
        self.error: Exception | None = None
        self.withdrawn = False
        self._done = threading.Event()

    @property
    def complete(self) -> bool:
        """Whether every answer is there."""
        return len(self.replies) == self._count

    @property
    def done(self) -> bool:
        """Whether nothing more will come of it."""
        return self._done.is_set()

    @property
    def refusal(self) -> str | None:
        """The first answer that is an error; None without one."""
        return next((str(reply) for reply in self.replies if isinstance(reply, hiredis.ReplyError)), None)

    def finish(self, error: Exception | None = None) -> None:
        """Wake the caller."""
        self.error = error
        self._done.set()

    def wait(self, *, by_looking: bool) -> bool:
        """Return when it is done, or its time is over and more. Whether it is done."""
        try:
            left = self._waited_until - time.monotonic()
            if not by_looking:
                return self._done.wait(max(0.0, left))
            while not self._done.is_set() and time.monotonic() < self._waited_until:
                time.sleep(_GLANCE)
            return self._done.is_set()
        except BaseException:
            self.withdrawn = True
            raise


class Ears(Protocol):
    """What hears what comes over a wire. Called in its thread, never at the same time; must be quick, and raise nothing."""

    def greeting(self, timeout: float) -> Inquiry:
        """What to ask over a new connection before anything else. Nobody asks until it is answered."""

    def keeping_alive(self, timeout: float) -> Inquiry:
        """What to ask a server that has been silent for a second."""

    def heard(self, news: Sequence[Any]) -> None:
        """The server has something to say that was not asked."""

    def changed(self, *, hears: bool) -> None:
        """From now on everything is heard (all has been read again), or nothing is."""

    def ended(self) -> None:
        """Nothing is heard any more over this wire."""


class Wire:
    """The connection, one after the other, and its thread. Good for one process, and one start.

    `uri` names the server in errors. `timeout` bounds what callers wait, in seconds.
    """

    def __init__(self, connector: Connector, ears: Ears, *, uri: str, timeout: float) -> None:
        self.ended = False
        """Whether the thread is gone."""
        self._connector = connector
        self._ears = ears
        self._uri = uri
        self._timeout = timeout
        self._patience = max(timeout, _PATIENCE)
        self._process = os.getpid()
        self._waiting: deque[Inquiry] = deque()
        self._despaired = False  # the last attempt to connect has failed: whoever asks is refused
        self._missed = False  # a caller has given up: the ears are told when there are answers again
        self._stopped = False
        self._why: Exception = ConnectionError("it has not been asked yet")
        self._awake, self._alarm = _bell()
        # Not any earlier: a number that is closed may be somebody else's in the next moment, and is written to.
        weakref.finalize(self, _close, self._awake, self._alarm).atexit = False
        self._native = 0
        self._beside = False
        # From here on the thread's own.
        self._hearing = False
        self._hasty = False
        self._failures = 0  # connections that ended, since one was steady
        self._welcomed = 0.0
        self._greeting: Inquiry | None = None
        self._under_way: deque[Inquiry] = deque()
        self._connection: AbstractConnection | None = None
        self._socket: socket.socket
        self._reader: hiredis.Reader
        self._unsent = bytearray()
        self._received = 0.0

    def start(self) -> None:
        """Start the thread. Raises `RuntimeError` when there is none to be had."""
        thread = threading.Thread(target=self._run, name="seawall-state", daemon=True)
        try:
            thread.start()
        except BaseException:  # nobody looks after a thread that was not seen to start; if it did, it ends
            self._stopped = True
            self._end()
            raise
        self._native = thread.native_id or 0
        self._beside = self._native != threading.get_native_id()

    def lives_in(self, native: int) -> bool:
        """Whether the thread is a greenlet of that native thread, or a real one: it can wake whoever waits there."""
        return self._beside or self._native == native

    @property
    def is_down(self) -> bool:
        """Whether nobody is answered at the moment."""
        # Also when one has waited for a connection in vain: once is enough.
        return self._despaired or self.ended or (self._missed and not self._hearing)

    def send(self, inquiry: Inquiry) -> None:
        """Put it on its way, and do not wait."""
        self._waiting.append(inquiry)
        if self.is_down:
            self._refuse_waiting()
        else:
            self._wake()

    def ask(self, inquiry: Inquiry) -> list[Any]:
        """The answers. Raises `StorageUnavailable` when they did not come in time, and at once while nobody is answered.

        Errors among the answers are left to the caller, where they do not concern the server as a whole.
        """
        self.send(inquiry)
        # Where gevent has patched, a native thread beside its loop (of a thread pool) cannot be woken by a greenlet.
        if not inquiry.wait(by_looking=not self.lives_in(threading.get_native_id())):
            inquiry.withdrawn = self._missed = True
            raise StorageUnavailable(f"{self._uri} did not answer within {self._timeout:g} s")
        if inquiry.error is not None:
            # One of the caller's own: an error that many raise collects all their tracebacks.
            raise StorageUnavailable(f"{self._uri} did not answer: {inquiry.error}") from inquiry.error
        return inquiry.replies

    def reconnect(self) -> None:
        """Leave the server: another one is the right one by now."""
        self._hasty = True
        self._wake()

    def stop(self) -> None:
        """Let the thread end. What is under way fails."""
        self._stopped = True
        self._wake()

    def leave_to_parent(self) -> None:
        """In a forked child: never to touch the parent's connection again.

        Greenlets survive a fork, also the one that is about to read from it: its descriptors become other, dead ones.
        """
        self.ended = True
        connection = self._connection
        sock: socket.socket | None = None if connection is None else connection._sock  # noqa: SLF001  # as in `_adopt`
        with contextlib.suppress(OSError, ValueError):
            reading, writing = os.pipe()
            os.close(writing)
            for inherited in (self._awake, self._alarm, *(() if sock is None else (sock.fileno(),))):
                os.dup2(reading, inherited, inheritable=False)
            os.close(reading)

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # full: it is awake already
            os.write(self._alarm, b"\0")

    def _refuse_waiting(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                self._waiting.popleft().finish(self._why)

    # What the thread does.

    def _run(self) -> None:
        try:
            with contextlib.suppress(*INTERRUPTIONS):
                while not self._stopped and os.getpid() == self._process:
                    self._live_once()
        finally:
            if os.getpid() != self._process:
                # A copy in a forked child, under greenlets; as a thread it is not known there, and would be complained about.
                threading.Event().wait()
            self._end()

    def _end(self) -> None:
        self.ended = True
        self._why = ConnectionError("the connection was closed")
        self._fall_silent()
        self._refuse_waiting()
        self._ears.ended()

    def _live_once(self) -> None:
        """One connection, from its making to its end, and the pause before the next."""
        try:
            self._adopt(self._connector.connect())
            self._converse()
        except Exception as error:  # noqa: BLE001  # whatever it is, it is no answer; it is the cause of what is raised
            self._why = error
        if self._stopped or os.getpid() != self._process:
            return
        if self._hearing and time.monotonic() - self._welcomed >= _STEADY:
            self._failures = 0
        # A server that closes the connection may be there again at once. One that is silent has been waited for.
        hopes = self._failures == 0 and isinstance(self._why, _Moved | ConnectionResetError | BrokenPipeError)
        self._failures += 1
        if not hopes:
            self._despair()
        self._fall_silent()
        if not hopes:
            self._pause()

    def _despair(self) -> None:
        if not self._despaired:
            _LOG.warning("%s does not answer: %s; this process goes on alone", self._uri, self._why)
        self._despaired = True
        self._refuse_waiting()

    def _fall_silent(self) -> None:
        self._drop()
        self._hearing = False
        while self._under_way:
            self._under_way.popleft().finish(self._why)
        if self._despaired:
            self._ears.changed(hears=False)

    def _pause(self) -> None:
        seconds = _PAUSES[min(self._failures, len(_PAUSES)) - 1] * _CHANCE.uniform(0.75, 1.25)
        until = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._awake, selectors.EVENT_READ)
            while not self._stopped and os.getpid() == self._process and (left := until - time.monotonic()) > 0:
                if selector.select(left):
                    self._drain()

    def _drain(self) -> None:
        with contextlib.suppress(OSError):
            while os.read(self._awake, 4_096):
                if os.getpid() != self._process:
                    return

    def _adopt(self, connection: AbstractConnection) -> None:
        self._connection = connection
        connection.connect()  # type: ignore[no-untyped-call]  # does nothing when it is connected
        # Read from here and not by redis-py, which does not tell answers from news.
        sock: socket.socket | None = connection._sock  # noqa: SLF001
        if sock is None or os.getpid() != self._process:
            raise ConnectionError("no connection")
        sock.settimeout(0.0)
        self._socket = sock
        self._reader = hiredis.Reader()
        self._unsent = bytearray(command(b"HELLO", b"3"))
        self._under_way.append(Inquiry(b"", 1, timeout=self._patience))
        self._put(self._ears.greeting(self._patience))
        self._greeting = self._under_way[-1]
        self._received = time.monotonic()
        self._hasty = False

    def _put(self, inquiry: Inquiry) -> None:
        inquiry.sent = time.monotonic()
        self._unsent += inquiry.commands
        self._under_way.append(inquiry)

    def _converse(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._awake, selectors.EVENT_READ)
            selector.register(self._socket, selectors.EVENT_READ)
            while not self._stopped:
                if self._hasty:
                    raise _Moved("the server was replaced")
                if self._hearing:
                    self._collect()
                writing = selectors.EVENT_READ | (0 if self._write() else selectors.EVENT_WRITE)
                if selector.get_key(self._socket).events != writing:
                    selector.modify(self._socket, writing)
                selector.select(self._time_left())
                if os.getpid() != self._process:
                    return
                self._drain()
                self._receive()
                self._look_at_the_clock()

    def _collect(self) -> None:
        """Take what waits."""
        now = time.monotonic()
        with contextlib.suppress(IndexError):
            while True:
                inquiry = self._waiting.popleft()
                if inquiry.withdrawn or (inquiry.deadline < now and inquiry.commands):
                    inquiry.finish(TimeoutError(f"no turn within {self._timeout:g} s"))
                    self._missed = True
                elif inquiry.complete:  # who asks nothing waits for this: that somebody is listening
                    inquiry.finish()
                else:
                    inquiry.deadline = max(inquiry.deadline, now + self._timeout * _LEAST)
                    self._put(inquiry)
        if not self._under_way and now - self._received >= _ALIVE_EVERY:
            self._put(self._ears.keeping_alive(self._patience))

    def _write(self) -> bool:
        """Whether everything is sent."""
        while self._unsent:
            try:
                sent = self._socket.send(self._unsent)
            except _NOTHING_YET:
                return False
            del self._unsent[:sent]
        return True

    def _time_left(self) -> float:
        now = time.monotonic()
        then = min((inquiry.deadline for inquiry in self._under_way), default=self._received + _ALIVE_EVERY)
        return max(0.0, then - now)

    def _receive(self) -> None:
        while True:
            try:
                data = self._socket.recv(_RECEIVED)
            except _NOTHING_YET:
                return
            if not data:
                raise ConnectionResetError("the server closed the connection")
            self._received = time.monotonic()
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not False:
                self._hand_out(reply)
            if self._missed and self._hearing:
                # Some were told that nobody answers, and this is an answer.
                self._missed = False
                self._ears.changed(hears=True)

    def _look_at_the_clock(self) -> None:
        """Called after what there was has been received: perhaps it was this process that stood still."""
        if self._under_way and min(inquiry.deadline for inquiry in self._under_way) <= time.monotonic():
            raise TimeoutError(f"no answer within {self._timeout:g} s")

    def _hand_out(self, reply: Any) -> None:
        if isinstance(reply, hiredis.PushNotification):
            self._ears.heard(reply)
            return
        if not self._under_way:
            raise ConnectionError("the server answered what nobody had asked")
        inquiry = self._under_way[0]
        inquiry.replies.append(reply)
        if isinstance(reply, hiredis.ReplyError):
            self._judge(inquiry, str(reply))
        if not inquiry.complete:
            return
        self._under_way.popleft()
        inquiry.answered = self._received
        if inquiry.heed is not None:
            inquiry.heed(inquiry)
        if inquiry is self._greeting:
            self._welcome()
        inquiry.finish()

    def _judge(self, inquiry: Inquiry, message: str) -> None:
        """Go on when the error concerns this inquiry alone."""
        if self._hearing and not _UNFIT.search(message):
            return
        moved = message.startswith("MOVED")
        message = self._connector.mistaken(message)
        if not moved:
            raise redis.ResponseError(message)
        if len(inquiry.replies) == 1 and inquiry is not self._greeting and inquiry.commands:
            # Nothing of it has been done. What came after it may have been: that fails.
            self._under_way.remove(inquiry)
            inquiry.replies.clear()
            self._waiting.appendleft(inquiry)
        raise _Moved(message)

    def _welcome(self) -> None:
        self._greeting = None
        self._hearing = True
        if self._despaired:
            _LOG.warning("%s answers again", self._uri)
        self._welcomed = time.monotonic()
        self._missed = False
        self._despaired = False
        self._ears.changed(hears=True)

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.disconnect()  # type: ignore[no-untyped-call]


class _Moved(ConnectionError):
    """Another server is the right one, and who that is is known, or will be soon."""


def _bell() -> tuple[int, int]:
    """What wakes the thread: descriptors to read from, and to write to."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    return reading, writing


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
