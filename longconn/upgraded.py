"""For connections that another protocol has taken over (WebSocket, server-sent events, anything): how such a one parks, and
what wakes it.

An application answers a request with the head of its protocol and hands the connection to an endpoint:

    def application(environ, start_response):
        environ["longconn.upgrade"](endpoint, b"HTTP/1.1 101 Switching Protocols\\r\\n...\\r\\n\\r\\n")
        return longconn.HANDLED

From then on it costs what any parked connection costs. One endpoint may serve all its connections, keeping what it needs
of each in `connection.state_of_endpoint`. Its methods are called in a greenlet, one at a time for each connection, whenever

- something arrived (`readable`) or the client left (`readable` too: `receive` returns b"" then),
- there is room again after a `transmit` that was not taken whole (`writable`),
- the deadline has passed that was set with `connection.wake_after(seconds)` (`deadline`),
- somebody has a message for it, `connection.post(message)`, from any greenlet (`message`); from another thread use
  `connection.post_from_thread(message)`,
- the worker leaves (`draining`): it says goodbye in its protocol and closes, within the seconds it is given,
- it has ended, whoever ended it (`closed`).

Whatever a method returns, the connection parks again, unless it was closed. A method that raises ends the connection, and
the error is logged.

An endpoint may leave it to the engine to queue what a client does not take: `connection.push(frame)` writes at once or lets the
frame wait, whole and in order, within the endpoint's `queue_bytes`, and `push_all` does so for many.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from longconn import reasons, scoreboard
from longconn.core.outbox import CONFLATED, DROPPED, QUEUED, REFUSED, Outbox
from longconn.core.states import Event, State
from longconn.errors import LongConnError
from longconn.identity import Identity
from longconn.parking.addresses import host, packed, plain_address
from longconn.parking.connection import HALF_CLOSED, NEVER, SHORT_OF_ROOM, Connection
from longconn.parking.lot import lots
from longconn.parking.poller import READABLE, WRITABLE

__all__ = [
    "HANDLED",
    "NOBODY",
    "About",
    "Endpoint",
    "UpgradeError",
    "UpgradedConnection",
    "hand_over",
    "lone_connections",
    "push_all",
    "upgraded_connections",
    "upgraded_of",
]

_CHANCE = random.SystemRandom()  # of its own: an application that seeds `random` would have all workers act in step


class UpgradeError(LongConnError, RuntimeError):
    """A connection cannot be handed over now."""


class _Handled:
    """What an application returns instead of a body when the connection is no longer HTTP's."""

    def __iter__(self) -> _Handled:
        return self

    def __next__(self) -> bytes:
        raise StopIteration

    def __repr__(self) -> str:
        return "longconn.handled"


HANDLED = _Handled()

_UPGRADED = int(State.UPGRADED)  # a plain int: to compare with a member of an enumeration takes four times as long

_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class About:
    """What does not change about a connection. Connections of which it is the same share one.

    `address` is the client's host where it is another one than the connection's own: behind a proxy. `agreed` is what the
    endpoint and the client have agreed on.
    """

    user: Any = None
    identity: Identity | None = None
    arguments: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)
    path: str = ""
    address: str = ""
    subprotocol: str = ""
    agreed: Any = None


NOBODY = About()


class Endpoint:
    """What attends to upgraded connections. Derive from it; every method may block its own connection, and no other."""

    kind = "other"
    """"websocket", "sse" or "other", for the metrics."""

    queue_bytes = 1_048_576
    """How much may wait for one client behind what is being written (see `longconn.core.outbox`)."""

    overflow = "disconnect"
    """What happens when more would wait: "disconnect", "drop-oldest" or "conflate"."""

    @property
    def connection_class(self) -> type[UpgradedConnection]:
        """Of which its connections are: `UpgradedConnection`, or one derived from it."""
        return UpgradedConnection

    def readable(self, connection: UpgradedConnection) -> None:
        """Something has arrived: `connection.receive()` until it returns None (nothing more) or b"" (the client left)."""
        if connection.receive() == b"":
            connection.end("client")

    def writable(self, connection: UpgradedConnection) -> None:
        """The client takes more."""

    def drained(self, connection: UpgradedConnection) -> None:
        """All that was pushed and had to wait has left. Called where that is found out: it must not block."""

    def overflowed(self, connection: UpgradedConnection) -> None:
        """Something was pushed for which there is no room. By default the connection ends. It must not block."""
        connection.end("write timeout")

    def deadline(self, connection: UpgradedConnection) -> None:
        """The deadline has passed. By default the connection closes."""
        connection.end("idle")

    def message(self, connection: UpgradedConnection, message: Any) -> None:
        """`message` was posted to it. Messages come in the order of posting."""

    def draining(self, connection: UpgradedConnection, seconds: float) -> None:
        """The worker leaves in `seconds`. By default the connection closes at once."""
        del seconds
        connection.end("drain")

    def closed(self, connection: UpgradedConnection, reason: str) -> None:
        """It has ended. Called once, in the hub: it must not block."""


# What the flags of an upgraded connection say. Those that stay while it waits are small: so small numbers cost no memory.
MUTE = 0x01
"""Nothing more may be pushed to it."""
HEARD = 0x02
"""Its client has sent something, or taken something that waited. For the endpoint, which clears it."""
FIRST_OF_ENDPOINT = 0x04
"""This bit and the next four are the endpoint's."""
RECEIVED = 0x80

DEADLINE = 0x0100
MESSAGE = 0x0200
DRAIN = 0x0400
HANDLING = 0x0800
"""One of the application's functions is being called."""

REASONS = DEADLINE | MESSAGE | DRAIN


class Underway:
    """What an upgraded connection has only while something is under way on it."""

    __slots__ = ("closing", "held", "inbox", "outbox", "reading", "seconds", "unsent")

    def __init__(self) -> None:
        self.outbox: Outbox | None = None
        self.reading: Any = None
        """The incomplete message, the endpoint's."""
        self.held = 0
        """How many bytes of memory that takes, the endpoint's."""
        self.inbox: list[Any] | None = None
        self.closing: Any = None
        """How it ends, the endpoint's."""
        self.seconds: float | None = None
        """In how many seconds the worker leaves, until the endpoint has been told."""
        self.unsent = 0
        """Bytes that the kernel had not sent when they were last counted, the endpoint's."""

    @property
    def is_over(self) -> bool:
        """Whether it holds nothing."""
        return (
            self.outbox is None
            and self.reading is None
            and self.inbox is None
            and self.closing is None
            and self.seconds is None
            and not self.unsent
        )


_number_lock = threading.Lock()
_last_number = 0


def _next_number() -> int:
    """The present microsecond, or the first one after it that no other connection of this process has."""
    global _last_number
    with _number_lock:
        _last_number = max(time.time_ns() // 1000, _last_number + 1)
        return _last_number


class UpgradedConnection:
    """A connection under another protocol. Its methods are for the loop's thread, except `post_from_thread`."""

    __slots__ = ("about", "channels", "connection", "endpoint", "flags", "number", "state_of_endpoint", "underway")

    expires_in_use = False
    """Whether `expired` is called while its endpoint is, too, which may block. Otherwise it waits until that returns."""

    def __init__(self, connection: Connection, endpoint: Endpoint) -> None:
        self.connection = connection
        self.flags = 0
        self.underway: Underway | None = None
        self.endpoint: Any = endpoint
        self.about = NOBODY
        self.number = _next_number()
        """When it was handed over, in microseconds since the epoch; no two of a process have the same."""
        self.channels: tuple[str, ...] = ()
        """The names of the channels that it hears."""
        self.state_of_endpoint: Any = None

    # Who it is.

    @property
    def id(self) -> str:
        """Its name, which no other connection of this host has."""
        return f"{self.number:x}-{os.getpid():x}"

    @property
    def since(self) -> float:
        """When it was handed over, in seconds since the epoch."""
        return self.number / 1e6

    @property
    def user(self) -> Any:
        """Who is at the other end, None for anybody."""
        return self.about.user

    @property
    def identity(self) -> Identity | None:
        """Who is at the other end, with the credential."""
        return self.about.identity

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The variables of its URL."""
        return self.about.arguments

    @property
    def path(self) -> str:
        """The path of its URL."""
        return self.about.path

    @property
    def address(self) -> Any:
        """The address of the other side of the connection, as `accept` gave it: a proxy's where there is one."""
        return plain_address(self.connection.address)

    @property
    def host(self) -> str:
        """The client's host, as the application knows it."""
        return self.about.address or host(self.connection.address)

    # How it is.

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self.connection.state == _UPGRADED

    @property
    def replaced(self) -> bool:
        """Whether another worker takes the place of the one that leaves: its client may come back at once."""
        return bool(self.connection.lot.replaced)

    @property
    def queued(self) -> int:
        """How many bytes wait for its client, without those that the kernel has."""
        underway = self.underway
        outbox = None if underway is None else underway.outbox  # once: another thread may look while it changes
        return 0 if outbox is None else outbox.size

    def fileno(self) -> int:
        """Its descriptor, -1 when it has ended."""
        return self.connection.fileno() if self.alive else -1

    def start(self) -> None:
        """Park now, although the application has not returned: from here on its endpoint is called, and the application goes on
        beside it, for as long as it likes. For the application that handed the connection over, in its own greenlet."""
        exchange = self.connection.attached
        if exchange is not self and exchange is not None:
            exchange.begin_upgraded()

    # Reading and writing.

    def receive(self, size: int = 65_536) -> bytes | None:
        """What has arrived, at most `size` bytes, without waiting: None when there is nothing, b"" when the client left.

        A broken connection counts as one whose client left.
        """
        connection = self.connection
        pending = connection.pending
        if pending:
            data = bytes(pending[:size])
            connection.pending = pending[size:] or None
            connection.lot.head_bytes -= len(data)
            self.flags |= RECEIVED | HEARD
            connection.edges |= READABLE  # the rest of it, or what lies in the kernel, of which nobody tells again
            return data
        if connection.state != _UPGRADED:
            return b""
        try:
            received = connection.receive(size)
        except OSError:
            received = b""
        if received:
            self.flags |= RECEIVED | HEARD
        elif received is not None:
            connection.edges |= HALF_CLOSED
        return received

    def transmit(self, data: bytes | memoryview) -> int:
        """Write what the client takes at once, and return how much that was; `writable` is called when it takes more.

        Raises `OSError` when the connection is broken or has ended.
        """
        if self.connection.state != _UPGRADED:
            raise self.connection.over()
        return self.connection.transmit(data)

    def push(self, frame: bytes, key: str = "") -> None:
        """Write `frame`, or let it wait until the client takes it: whole, and after all that was pushed before. `key`: see
        `longconn.core.outbox`. Does nothing when the connection has ended or is muted, and ends it when it is broken."""
        if self.flags & MUTE:
            return
        underway = self.underway
        if underway is None or underway.outbox is None:
            self._write(frame)
            return
        outbox = underway.outbox
        before = outbox.size
        outcome = outbox.put(frame, key)
        tally = self.connection.lot.tally
        tally[scoreboard.QUEUED_BYTES] += outbox.size - before
        if outcome == REFUSED:
            tally[_DISCONNECTED] += 1
            self.endpoint.overflowed(self)
        elif outcome != QUEUED:
            tally[_OUTCOMES[outcome]] += 1

    def push_control(self, frame: bytes, kind: str) -> None:
        """Write `frame`, before all that waits and has not begun. It takes the place of one of its `kind` that waits."""
        if self.flags & MUTE:
            return
        underway = self.underway
        if underway is None or underway.outbox is None:
            self._write(frame)
        else:
            before = underway.outbox.size
            underway.outbox.put_control(frame, kind)
            self.connection.lot.tally[scoreboard.QUEUED_BYTES] += underway.outbox.size - before

    def push_last(self, frame: bytes, *, at_once: bool = False) -> bool:
        """Write `frame` after all that waits, or, `at_once`, in place of it, and then nothing more. Returns whether it
        has left; otherwise `drained` is called when it has."""
        if self.flags & MUTE:
            return not self.queued
        self.flags |= MUTE
        underway = self.underway
        if underway is None or underway.outbox is None:
            self._write(frame)
        else:
            before = underway.outbox.size
            if at_once:
                underway.outbox.keep_begun()
            underway.outbox.end_with(frame)
            self.connection.lot.tally[scoreboard.QUEUED_BYTES] += underway.outbox.size - before
        return not self.queued

    def _write(self, frame: bytes) -> None:
        connection = self.connection
        if connection.state != _UPGRADED:
            return
        try:
            sent = connection.socket.send(frame)
        except BlockingIOError:
            sent = 0
        except OSError:
            connection.lot.close(connection, reasons.RESET)
            return
        connection.listener.lot.bytes_out += sent
        if sent < len(frame):
            self.keep_rest(frame, sent)

    def keep_rest(self, frame: bytes, sent: int) -> None:
        """Let the rest of `frame` wait, of which `sent` bytes have left."""
        connection = self.connection
        connection.edges = (connection.edges & ~WRITABLE) | SHORT_OF_ROOM
        outbox = self.busy().outbox = Outbox(self.endpoint.queue_bytes, self.endpoint.overflow)
        outbox.begin(frame, sent)
        connection.lot.tally[scoreboard.QUEUED_BYTES] += outbox.size

    def _flush(self, outbox: Outbox) -> None:
        """Write of what waits as much as the client takes."""
        connection = self.connection
        before = outbox.size
        try:
            while (piece := outbox.next()) is not None:
                sent = connection.transmit(piece)
                outbox.took(sent)
                if sent < len(piece):
                    return
        finally:
            if outbox.size < before:
                self.flags |= HEARD
            connection.lot.tally[scoreboard.QUEUED_BYTES] -= before - outbox.size
        assert self.underway is not None
        self.underway.outbox = None
        self.tidy()
        self.endpoint.drained(self)

    def busy(self) -> Underway:
        """Where what is under way is kept; whoever has put something there and taken it out again calls `tidy`."""
        if self.underway is None:
            self.underway = Underway()
        return self.underway

    def tidy(self) -> None:
        """Keep nothing when nothing is under way."""
        if self.underway is not None and self.underway.is_over:
            self.underway = None

    # Deadlines, messages, the end.

    def wake_after(self, seconds: float | None) -> None:
        """Call `deadline` in `seconds` from now; None for never. The latest call counts."""
        connection = self.connection
        lot = connection.lot
        if connection.state != _UPGRADED:
            return
        if seconds is None:
            connection.deadline = NEVER
        else:
            lot.wheel.schedule(connection, lot.wheel.now_tick + lot.wheel.ticks(seconds))

    def post(self, message: Any) -> None:
        """Have `endpoint.message(connection, message)` called. Does nothing when the connection has ended."""
        if self.connection.state != _UPGRADED:
            return
        underway = self.busy()
        if underway.inbox is None:
            underway.inbox = []
        underway.inbox.append(message)
        self.wake(MESSAGE)

    def post_from_thread(self, message: Any) -> None:
        """As `post`, from any thread."""
        self.connection.lot.call_from_thread(self.post, message)

    def end(self, reason: str = "upgraded") -> None:
        """End it. `reason` is one of `longconn.scoreboard.CLOSE_REASONS`. What has been written reaches the client all the
        same, unless it left."""
        number = scoreboard.CLOSE_REASONS.index(reason)
        connection = self.connection
        if connection.state == _UPGRADED:
            connection.lot.part(connection, number)

    def close(self, reason: str = "upgraded") -> None:
        """As `end`."""
        self.end(reason)

    def kick(self, code: int = 1008, reason: str = "") -> None:
        """Send the client away, from any thread: as its protocol says it, if it has a way to say `code` and `reason`."""
        del code, reason
        self.here(self.end, "killed")

    def here(self, function: Any, *arguments: Any) -> None:
        """Call `function` on the loop's thread: now, when this is it."""
        lot = self.connection.lot
        if lot.is_here():
            function(*arguments)
        else:
            lot.call_from_thread(function, *arguments)

    def moment_to_leave(self, seconds: float) -> float:
        """When, in seconds from now, to say goodbye, for one of all the connections that do so because the worker leaves in
        `seconds`: at random, so that their clients do not all come back in the same second."""
        window = min(self.connection.lot.leaving_window, seconds)
        return _CHANCE.uniform(0.0, window)

    # The engine's.

    def wake(self, reason: int) -> None:
        """Have it attended to for `reason`; the engine's."""
        self.flags |= reason
        self.connection.lot.call(self.connection)

    def drain(self, seconds: float) -> None:
        """Tell it that the worker leaves; the engine's. It must not block."""
        self.busy().seconds = seconds
        self.wake(DRAIN)

    def abandon(self) -> None:
        """The worker's time is over; the engine's. It must not block."""
        self.end("drain")

    def expired(self) -> None:
        """Its deadline has passed; the engine's. It must not block."""
        self.wake(DEADLINE)

    def attend(self, something_arrived: bool, room: bool) -> None:
        """Call the endpoint for every reason there is; the engine's, in a greenlet."""
        why = self.flags & REASONS
        self.flags &= ~(REASONS | RECEIVED)
        if not why and not room:
            if something_arrived:
                self.endpoint.readable(self)
            return
        for call in self._calls(why, something_arrived=something_arrived, room=room):
            call()
            if self.connection.state != _UPGRADED:
                return

    def _calls(self, why: int, *, something_arrived: bool, room: bool) -> Iterator[Any]:
        if why & DRAIN:
            yield self._tell_of_drain
        if something_arrived:
            yield self._tell_of_bytes
        if room:
            yield self._tell_of_room
        if why & DEADLINE:
            yield self._tell_of_deadline
        if why & MESSAGE:
            yield self._tell_of_messages

    def _tell_of_drain(self) -> None:
        underway = self.busy()
        seconds, underway.seconds = underway.seconds, None
        self.tidy()
        self.endpoint.draining(self, seconds or 0.0)

    def _tell_of_bytes(self) -> None:
        self.endpoint.readable(self)

    def _tell_of_room(self) -> None:
        outbox = None if self.underway is None else self.underway.outbox
        if outbox is None:
            self.endpoint.writable(self)
        else:
            self._flush(outbox)

    def _tell_of_deadline(self) -> None:
        self.endpoint.deadline(self)

    def _tell_of_messages(self) -> None:
        underway = self.busy()
        inbox, underway.inbox = underway.inbox, None
        self.tidy()
        for message in inbox or ():
            if self.connection.state != _UPGRADED:
                return
            self.endpoint.message(self, message)

    def ended(self, reason: str) -> None:
        """It has ended; the engine's, in the hub."""
        underway = self.underway
        if underway is not None and underway.outbox is not None:
            self.connection.lot.tally[scoreboard.QUEUED_BYTES] -= underway.outbox.size
            underway.outbox = None
        self.flags |= MUTE
        try:
            self.endpoint.closed(self, reason)
        finally:
            self.tidy()

    @property
    def received(self) -> bool:
        """Whether its endpoint has received bytes in the present call; the engine's."""
        return bool(self.flags & RECEIVED)

    @property
    def waits_again(self) -> bool:
        """Whether nothing is left to call its endpoint for; the engine's."""
        return not self.flags & REASONS


_DISCONNECTED = scoreboard.slow_field("disconnected")
_OUTCOMES = {DROPPED: scoreboard.slow_field("dropped"), CONFLATED: scoreboard.slow_field("conflated")}
_LOOKS_AT_CLOCK = 0x1F
"""A loop over connections looks at the clock where these bits of its index are 0."""


def push_all(connections: Sequence[UpgradedConnection], first: int, frame: bytes, key: str, until: float) -> int:
    """`push(frame, key)` to `connections[first:]`, which belong to one worker, on the loop's thread, until time.monotonic()
    passes `until`. Returns the index of the first that it was not pushed to."""
    size = len(frame)
    monotonic = time.monotonic
    end = len(connections)
    index = first
    written = 0
    while index < end:
        upgraded = connections[index]
        index += 1
        if upgraded.underway is not None or upgraded.flags & MUTE:
            upgraded.push(frame, key)
        else:
            connection = upgraded.connection
            if connection.state == _UPGRADED:
                try:
                    sent = connection.socket.send(frame)
                except BlockingIOError:
                    sent = 0
                except OSError:
                    connection.lot.close(connection, reasons.RESET)
                    continue
                written += sent
                if sent < size:
                    upgraded.keep_rest(frame, sent)
        if not index & _LOOKS_AT_CLOCK and monotonic() >= until:
            break
    if index > first:
        connections[first].connection.lot.bytes_out += written
    return index


lone_connections: set[UpgradedConnection] = set()
"""Those of this process that park nowhere: whoever serves connections in another way adds them, and takes them out."""


def upgraded_connections() -> list[UpgradedConnection]:
    """All of this process that live."""
    parked = [
        connection.attached
        for lot in lots()
        for connection in lot.connections()
        if isinstance(connection.attached, UpgradedConnection)
    ]
    return [*parked, *lone_connections]


def upgraded_of(connection: Connection) -> UpgradedConnection | None:
    """What `connection` has become, also while the application that handed it over has not returned; the engine's."""
    attached = connection.attached
    upgraded = attached if isinstance(attached, UpgradedConnection) else getattr(attached, "upgraded", None)
    return upgraded if isinstance(upgraded, UpgradedConnection) else None


def hand_over(connection: Connection, endpoint: Endpoint) -> UpgradedConnection:
    """Make `connection` the endpoint's; the engine's."""
    upgraded = endpoint.connection_class(connection, endpoint)
    connection.address = packed(connection.address)
    connection.lot.move(connection, Event.UPGRADE)
    return upgraded
