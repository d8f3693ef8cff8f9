"""How a connection goes on under another protocol: parked where the worker can, else in a greenlet or thread of its own.

A view hands its connection over with `carry`. On the parking worker that is `environ["longconn.upgrade"]`. gunicorn's own
workers and werkzeug's development server give their socket away; there one greenlet or thread plays the lot for one
connection (`LoneLot`), so that the same endpoints run everywhere, at the price that those servers take for a connection.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import os
import select
import socket as sockets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from math import ceil, inf
from typing import Any

import gevent.monkey
from greenlet import getcurrent

from longconn import reasons, scoreboard
from longconn.channels.ports import Message, Position
from longconn.core.states import NEXT, Event, IllegalTransition, State
from longconn.errors import LongConnError
from longconn.http.lending import TlsStream
from longconn.http.upgrading import Upgrading
from longconn.parking.connection import HALF_CLOSED, HELD, LARGEST_READ, NEVER, SHORT_OF_ROOM, Connection
from longconn.parking.poller import BROKEN, GONE, READABLE, WRITABLE
from longconn.upgraded import HANDLED, Endpoint, UpgradedConnection, lone_connections

__all__ = ["LoneWire", "NoTransport", "ask", "bell_for", "can_carry", "carry", "look_again", "parks"]

TICK = 0.1
"""Deadlines are kept to this many seconds."""
HEAD_PATIENCE = 30.0
"""For how many seconds a client may refuse to take the head of the answer."""
LINGER = 2.0
"""For how many seconds, and"""
MOST_DISCARDED = 1 << 20
"""for how many bytes, a client that is told goodbye may go on sending."""
SOCKETS = ("gunicorn.socket", "werkzeug.socket")
LONGEST_WAIT = 86_400.0

_log = logging.getLogger("longconn")
_Lock = gevent.monkey.get_original("_thread", "allocate_lock")
"""The interpreter's own: one that gevent has patched does not wake a native thread that waits for it."""
_thread_number = gevent.monkey.get_original("_thread", "get_ident")


class NoTransport(LongConnError, RuntimeError):
    """This server gives its connections to nobody."""

    def __init__(self) -> None:
        super().__init__(
            "this server does not hand its connections over: serve with gunicorn -k longconn.worker.ParkingWorker (or with "
            "gunicorn's gevent or gthread workers, or werkzeug's development server, without parking)"
        )


def can_carry(environ: dict[str, Any]) -> bool:
    """Whether the server of this request lets its connection go on under another protocol."""
    return "longconn.upgrade" in environ or any(name in environ for name in SOCKETS)


def parks(environ: dict[str, Any]) -> bool:
    """Whether it is the parking worker that serves this request."""
    return "longconn.upgrade" in environ


def carry(
    environ: dict[str, Any],
    start_response: Callable[..., object],
    endpoint: Endpoint,
    head: bytes,
    begin: Callable[[UpgradedConnection], object],
    beside: Callable[[], object] | None = None,
) -> Iterable[bytes]:
    """Answer the request with `head` and give its connection to `endpoint`. What is returned is the application's answer.

    `begin(connection)` is called as soon as the head is out, `beside()` then, if given, while the endpoint is called already:
    it may block for as long as it likes, in the request's own greenlet or thread and in its contexts.

    Raises `NoTransport`, `longconn.UpgradeError`, and `OSError` when the client is gone.
    """
    upgrade = environ.get("longconn.upgrade")
    if upgrade is not None:
        upgraded: UpgradedConnection = upgrade(endpoint, head)
        begin(upgraded)
        if beside is not None:
            upgraded.start()
            del begin, head, upgraded  # for as long as it may take, nothing is kept that nobody needs
            beside()
        return HANDLED
    socket = next((environ[name] for name in SOCKETS if name in environ), None)
    if socket is None:
        raise NoTransport
    address = (environ.get("REMOTE_ADDR", ""), int(environ.get("REMOTE_PORT") or 0))
    LoneLot(socket, address).carry(endpoint, head, begin, beside)
    # Nobody gets this answer. It lets the server come to an end with the request as with any whose client has left, and log it.
    start_response("101 Switching Protocols", [])
    return []


def ask(upgraded: UpgradedConnection, function: Callable[[], Any]) -> Any:
    """What `function` returns or raises where `upgraded` is attended to, waiting for it if that is another greenlet or thread.

    Raises `ConnectionOver` when the connection has ended.
    """
    lot = upgraded.connection.lot
    return lot.ask(function) if isinstance(lot, LoneLot) else function()


class _GreenletBell:
    """Wakes a greenlet of the loop's thread. Much lighter than a lock, on which every idle connection would wait."""

    __slots__ = ("_greenlet", "_lot")

    def __init__(self, lot: Any) -> None:
        self._lot = lot
        self._greenlet: Any = None

    def wait(self, seconds: float | None) -> None:
        """Wait for `ring`, at most so long."""
        lot = self._lot
        timer = None if seconds is None else lot.loop.timer(seconds)
        self._greenlet = getcurrent()
        try:
            if timer is not None:
                timer.start(self._switch)
            lot.hub.switch()
        finally:
            self._greenlet = None
            if timer is not None:
                timer.stop()
                timer.close()

    def ring(self) -> None:
        """Have it go on."""
        self._lot.loop.run_callback(self._switch)

    def _switch(self) -> None:
        greenlet, self._greenlet = self._greenlet, None
        if greenlet is not None:
            greenlet.switch()


class _Bell:
    """Wakes whatever waits: a thread, or a greenlet where threads are greenlets."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def wait(self, seconds: float | None) -> None:
        """Wait for `ring`, at most so long."""
        self._lock.acquire(timeout=-1 if seconds is None else min(seconds, threading.TIMEOUT_MAX))

    def ring(self) -> None:
        """Have it go on. Once."""
        self._lock.release()


def bell_for(upgraded: UpgradedConnection) -> _Bell | _GreenletBell:
    """What the caller can wait with, once, for something that happens to `upgraded`."""
    lot = upgraded.connection.lot
    return _Bell() if isinstance(lot, LoneLot) or not lot.is_here() else _GreenletBell(lot)


def look_again(upgraded: UpgradedConnection) -> None:
    """Have the endpoint of `upgraded` called as if something had arrived; for endpoints that left something unread."""
    upgraded.connection.edges |= READABLE
    upgraded.wake(0)


class LoneWire:
    """A `longconn.channels.ports.Wire` that has each connection written to where it is attended to."""

    __slots__ = ("_wire",)

    def __init__(self, wire: Any) -> None:
        self._wire = wire

    def encode(self, message: Message) -> Any:
        """As the wire that stands behind it."""
        return self._wire.encode(message)

    def write(self, subscribers: Sequence[Any], first: int, encoded: Any, message: Message, until: float) -> int:
        """Have all of them written to. `until` is of no use: nothing here takes long."""
        del until
        size = len(message.data)
        for subscriber in subscribers[first:]:
            lot = subscriber.connection.lot
            if lot.is_here():
                self._wire.write((subscriber,), 0, encoded, message, inf)
            else:
                lot.write_from_thread(subscriber, size, self._wire.write, (subscriber,), 0, encoded, message, inf)
        return len(subscribers)

    def missed(self, subscriber: Any, channel: str, position: Position) -> None:
        """As the wire that stands behind it."""
        subscriber.here(self._wire.missed, subscriber, channel, position)


class _Alarm:
    """The deadline of one connection, with the methods of a timing wheel."""

    __slots__ = ("_on_change",)
    resolution = TICK

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change

    @property
    def now_tick(self) -> int:
        return int(time.monotonic() / TICK)

    def ticks(self, seconds: float) -> int:
        return ceil(seconds / TICK) + 1

    def tick(self, moment: float) -> int:
        return ceil(moment / TICK)

    def schedule(self, entry: Any, tick: int) -> None:
        entry.deadline = entry.slot = tick
        self._on_change()

    def cancel(self, entry: Any) -> None:
        entry.deadline, entry.slot = NEVER, -1


class _Side:
    """What a lone connection has for a listener."""

    __slots__ = ("lot", "secure")

    def __init__(self, lot: LoneLot, *, secure: bool) -> None:
        self.lot = lot
        self.secure = secure


class _LoneConnection(Connection):
    """A connection that remembers whether its endpoint has looked at what arrived."""

    __slots__ = ("was_read",)

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.was_read = False

    def receive(self, size: int = LARGEST_READ) -> bytes | None:
        """As every connection's."""
        self.was_read = True
        return super().receive(size)

    def transmit(self, data: Any) -> int:
        """As every connection's."""
        sent = super().transmit(data)
        if sent < len(data):
            self.lot.note_change()
        return sent


class _Write:
    """Something that another thread wants to be written, until that is done or given up."""

    __slots__ = ("call", "size")

    def __init__(self, size: int, function: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        self.size = size
        self.call: tuple[Callable[..., object], tuple[Any, ...]] | None = function, arguments


class LoneLot:
    """A lot of one connection, run by one greenlet or thread: what endpoints need of `longconn.parking.lot.Lot`, over a socket
    that another server has given away.

    Everything is called in that thread but `call_from_thread` and `ask`; where greenlets share it, in any of them.
    """

    tally = [0] * scoreboard.WIDTH
    """Of all in this process; nobody publishes it."""
    replaced = False
    leaving_window = 0.0

    def __init__(self, socket: Any, address: Any) -> None:
        secure = hasattr(socket, "cipher")
        self.now = time.monotonic
        self.wheel = _Alarm(self.note_change)
        self.bytes_in = 0
        self.bytes_out = 0
        self.head_bytes = 0
        self._socket = socket
        stream = TlsStream(socket) if secure else socket
        self._connection = _LoneConnection(stream, address, _Side(self, secure=secure), self.wheel.now_tick)
        self._connection.state = State.RESPONDING
        self._connection.edges = HELD
        self._upgrading = Upgrading(self, _log)  # type: ignore[arg-type]  # it plays the lot
        self._attending = False
        self._calls: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._lock = _Lock()
        self._writes: deque[_Write] = deque()
        self._unwritten = 0
        self._overflowed = False
        self._bell: tuple[int, int] | None = None
        self._thread = _thread_number()
        self._attendant = threading.get_ident()
        self._finished = False
        self._lingers = False
        self._events = select.POLLIN

    # The life of the connection.

    def carry(
        self,
        endpoint: Endpoint,
        head: bytes,
        begin: Callable[[UpgradedConnection], object],
        beside: Callable[[], object] | None,
    ) -> None:
        """Serve the connection until it has ended and `beside` has returned."""
        connection = self._connection
        self._socket.settimeout(HEAD_PATIENCE)
        self._socket.sendall(head)
        self._socket.settimeout(None if connection.listener.secure else 0.0)
        self._bell = os.pipe()
        for descriptor in self._bell:
            os.set_blocking(descriptor, False)
        thread: threading.Thread | None = None
        upgraded: UpgradedConnection | None = None
        try:
            upgraded = self._upgrading.upgrade(connection, endpoint)
            begin(upgraded)
            lone_connections.add(upgraded)
            if beside is None:
                self._run(upgraded)
            else:
                thread = threading.Thread(
                    target=self._run, args=(upgraded,), name=f"{endpoint.kind} connection", daemon=True
                )
                self._thread = 0  # nobody's, until that one runs
                thread.start()
                try:
                    beside()
                except BaseException:
                    self.call_from_thread(self.close, connection, reasons.KILLED)
                    raise
        finally:
            if thread is not None:
                thread.join()
            self._finish(upgraded)

    def _run(self, upgraded: UpgradedConnection) -> None:
        self._thread, self._attendant = _thread_number(), threading.get_ident()
        try:
            # What endpoints do is not the request's, as it is not on a worker that parks.
            contextvars.Context().run(self._serve, upgraded)
        except BaseException:
            upgraded.kick(1001)  # the server ends
            raise
        finally:
            self.close(self._connection, reasons.KILLED)
            with self._lock:
                self._finished = True
            self._answer_calls()  # whoever has asked hears that it is over

    def _serve(self, upgraded: UpgradedConnection) -> None:
        connection = self._connection
        poll = select.poll()
        assert self._bell is not None
        poll.register(self._bell[0], select.POLLIN)
        descriptor = connection.fileno()
        poll.register(descriptor, self._events)
        self._attending = True
        self._upgrading.begin(connection, upgraded, b"")
        while connection.state != State.CLOSED:
            self._answer_calls()
            if connection.state == State.CLOSED:
                return
            if self._attending:
                self._attend()
                continue
            events = select.POLLIN if self._events else 0
            if connection.edges & SHORT_OF_ROOM:
                events |= select.POLLOUT
            poll.modify(descriptor, events)
            self._hear(dict(poll.poll(self._patience())), descriptor)

    def _attend(self) -> None:
        connection = self._connection
        arrived = bool(connection.edges & (READABLE | GONE))
        self._attending = connection.was_read = False
        self._upgrading.attend(connection)
        if arrived:
            # It was told and did not look: it will say when it wants to. At the end there is nothing more to be told.
            has_ended = connection.edges & HALF_CLOSED
            self._events = select.POLLIN if connection.was_read and not has_ended else 0

    def _hear(self, heard: dict[int, int], descriptor: int) -> None:
        connection = self._connection
        mask = heard.get(descriptor, 0)
        if mask & (select.POLLHUP | select.POLLERR | select.POLLNVAL):
            if connection.edges & BROKEN:
                self.close(connection, reasons.RESET)  # it has been told, and does not end it
                return
            connection.edges |= GONE
        if mask & select.POLLIN:
            connection.edges |= READABLE
        if mask & select.POLLOUT:
            connection.edges |= WRITABLE
        if mask:
            self.call(connection)
        if connection.deadline <= self.wheel.now_tick:
            connection.deadline = NEVER
            connection.attached.expired()
        assert self._bell is not None
        if self._bell[0] in heard:
            with contextlib.suppress(BlockingIOError):
                os.read(self._bell[0], 4096)

    def _patience(self) -> float:
        """For how many milliseconds to wait."""
        deadline = self._connection.deadline
        seconds = LONGEST_WAIT if deadline >= NEVER else deadline * TICK - self.now()
        return 1000 * min(max(0.0, seconds), LONGEST_WAIT) + 1

    def _answer_calls(self) -> None:
        while self._calls:
            function, arguments = self._calls.popleft()
            try:
                function(*arguments)
            except Exception:  # noqa: BLE001 - it is logged, and ends nothing else
                _log.exception("What another thread asked of a connection failed")

    def _finish(self, upgraded: UpgradedConnection | None) -> None:
        self.close(self._connection, reasons.KILLED)
        if upgraded is not None:
            lone_connections.discard(upgraded)
        with self._lock:
            bell, self._bell = self._bell, None
            self._finished = True
        for descriptor in bell or ():
            os.close(descriptor)
        self._thread = _thread_number()
        self._answer_calls()
        if self._lingers:
            self._linger()

    def _linger(self) -> None:
        """Throw away for a while what the client still sends.

        Closing at once would reset the connection, and the client might never see the last words.
        """
        poll = select.poll()
        poll.register(self._connection.fileno(), select.POLLIN)
        until = self.now() + LINGER
        taken = 0
        with contextlib.suppress(OSError):
            while taken < MOST_DISCARDED and (left := until - self.now()) > 0 and poll.poll(1000 * left):
                data = Connection.receive(self._connection)
                if data == b"":
                    return
                taken += len(data or b"")

    # What endpoints need of a lot.

    def is_here(self) -> bool:
        """Whether the caller may do as if it attended to the connection: it is in the same thread."""
        return bool(self._thread == _thread_number())

    def note_change(self) -> None:
        """Something is to be waited for that was not: whoever attends to the connection looks again."""
        if self._attendant != threading.get_ident():
            self._ring()

    def call_from_thread(self, function: Callable[..., object], *arguments: Any) -> None:
        """Run `function` in the connection's greenlet or thread; from any. Does nothing when the connection has ended."""
        with self._lock:
            if self._finished:
                return
            self._calls.append((function, arguments))
            self._ring_locked()

    def write_from_thread(self, upgraded: Any, size: int, function: Callable[..., object], *arguments: Any) -> None:
        """As `call_from_thread`, for a function that has `size` bytes wait for the client of `upgraded`.

        They count from now on: a handler may be at work for long, and until it returns nothing is written.
        """
        with self._lock:
            if self._finished or self._overflowed:
                return
            most = upgraded.endpoint.queue_bytes
            if self._writes and self._unwritten + size > most and upgraded.endpoint.overflow == "disconnect":
                self._overflowed = True
                self._calls.append((upgraded.endpoint.overflowed, (upgraded,)))
            else:
                while self._writes and self._unwritten + size > most:
                    self._forget_oldest()
                write = _Write(size, function, arguments)
                self._unwritten += size
                self._writes.append(write)
                self._calls.append((self._write, (write,)))
            self._ring_locked()

    def _forget_oldest(self) -> None:
        oldest = self._writes.popleft()
        self._unwritten -= oldest.size
        oldest.call = None
        self.tally[scoreboard.slow_field("dropped")] += 1

    def _write(self, write: _Write) -> None:
        with self._lock:
            call, write.call = write.call, None
            if call is None:
                return
            self._writes.popleft()  # they are done in order
            self._unwritten -= write.size
        function, arguments = call
        function(*arguments)

    def ask(self, function: Callable[[], Any]) -> Any:
        """What `function` returns or raises in the connection's greenlet or thread; from any, waiting for it.

        Raises `ConnectionOver` when the connection has ended.
        """
        if self.is_here():
            return function()
        answered = _Lock()
        answered.acquire()
        answer: list[Any] = []

        def call() -> None:
            try:
                answer.extend((function(), None))
            except Exception as error:  # noqa: BLE001 - raised where it was asked for
                answer.extend((None, error))
            finally:
                answered.release()

        with self._lock:
            if self._finished:
                raise self._connection.over()
            self._calls.append((call, ()))
            self._ring_locked()
        answered.acquire()
        if answer[1] is not None:
            raise answer[1]
        return answer[0]

    def _ring(self) -> None:
        with self._lock:
            self._ring_locked()

    def _ring_locked(self) -> None:
        if self._bell is not None:
            with contextlib.suppress(BlockingIOError):
                os.write(self._bell[1], b"\0")

    def call(self, connection: Connection) -> None:
        """Have the connection attended to."""
        connection.edges |= HELD
        self._attending = True
        if connection.edges & READABLE:
            self._events = select.POLLIN
        self.note_change()

    call_again = call

    def rest(self, connection: Connection) -> None:
        """Let it wait."""
        connection.edges &= ~HELD

    def keep(self, connection: Connection, data: bytes) -> None:
        """Let `data` wait with the connection."""
        connection.pending = bytearray(data)

    def drop(self, connection: Connection) -> None:
        """Forget what waits with it."""
        connection.pending = None

    def forget(self, connection: Connection, descriptor: int) -> None:
        """Watch it no more."""

    def move(self, connection: Connection, event: int) -> None:
        """Let `event` happen to it. Raises `IllegalTransition`."""
        following = NEXT[connection.state][event]
        if following < 0:
            raise IllegalTransition(connection.state, event)
        connection.state = following

    def part(self, connection: Connection, reason: int) -> None:
        """As `close`, of one whose last words are to arrive."""
        self._lingers = not connection.edges & (GONE | HALF_CLOSED)
        self.close(connection, reason)

    def close(self, connection: Connection, reason: int) -> None:
        """End the connection; the server closes its socket. `reason` is one of `longconn.reasons`. Does nothing twice."""
        if connection.state == State.CLOSED:
            return
        self.move(connection, Event.CLOSE)
        connection.pending = None
        connection.deadline = NEVER
        with contextlib.suppress(OSError):
            connection.socket.shutdown(sockets.SHUT_WR if self._lingers else sockets.SHUT_RDWR)
        self._upgrading.closed(connection, reason)
        self.note_change()

    def later(self, function: Callable[..., object], *arguments: Any) -> None:
        """Call `function` soon, in a context of its own; it may block, as all that is called here."""
        self._calls.append((contextvars.Context().run, (function, *arguments)))
        self.note_change()

    def breathe(self, until: float) -> float:
        """Nobody else waits for this greenlet or thread."""
        return until
