"""What attends to the WebSockets of one address: reads their messages, calls the application, sees whether they live."""

from __future__ import annotations

import inspect
import logging
import random
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar, cast

import gevent

from longconn import reasons, scoreboard
from longconn.channels.errors import ChannelError
from longconn.channels.ports import History, Position
from longconn.core.frames import CloseCode, Opcode, ProtocolError, encode_frame, shortened
from longconn.core.messages import read
from longconn.core.states import State
from longconn.errors import ConnectionClosed, LongConnError
from longconn.identity import Identity
from longconn.upgraded import HANDLING, HEARD, MUTE, About, Endpoint, UpgradedConnection, upgraded_connections
from longconn.websocket.connection import (
    AWAITS_PONG,
    ENDS_WHEN_WRITTEN,
    LEAVING,
    OPENED,
    Closing,
    WebSocketConnection,
)
from longconn.websocket.options import WebSocketOptions
from longconn.websocket.wire import WebSocketWire

if TYPE_CHECKING:
    from longconn.core.deflate import Deflation

__all__ = ["HANDLERS", "ChannelsMissing", "WebSocketEndpoint", "check_handlers", "is_coroutine"]

HANDLERS = ("open", "message", "close", "missed", "drained", "encode", "authorize")

_CHANCE = random.SystemRandom()  # of its own: an application that seeds `random` would have all workers act in step

_log = logging.getLogger("gunicorn.error")

_TEXT = int(Opcode.TEXT)
_BINARY = int(Opcode.BINARY)
_CLOSE = int(Opcode.CLOSE)
_PING = int(Opcode.PING)
_PONG = int(Opcode.PONG)

_UPGRADED = int(State.UPGRADED)

MESSAGES_IN = scoreboard.messages_field("websocket in")

SMALL_READ = 16_384
"""So many bytes are read at once: ten thousand tiny frames of one client would hold up all others."""
LARGE_READ = 65_536
"""So many in the middle of a large frame."""
MOST_HELD = 268_435_456
"""So many bytes all incomplete messages of a process may take together. Above it the largest one is given up."""

K = TypeVar("K")
V = TypeVar("V")

EARLIEST = "earliest"
"""What `join` takes for all that a channel holds."""

MOST_SHARED = 4_096
"""So many different values of what connections share are known at most; more are simply not shared."""

_NO_ARGUMENTS: Mapping[str, Any] = MappingProxyType({})


class ChannelsMissing(LongConnError, RuntimeError):
    """A connection was to join a channel, and its endpoint has no channels."""


def is_coroutine(function: Any) -> bool:
    """Whether calling `function` would not run it."""
    call = getattr(function, "__call__", None)  # noqa: B004 - the method of an object that is called
    return any(inspect.iscoroutinefunction(one) or inspect.isasyncgenfunction(one) for one in (function, call))


def check_handlers(handlers: Any) -> None:
    """Raises `TypeError` for a handler that is declared with `async def`: nobody would await it, and it would never run."""
    for name in HANDLERS:
        if is_coroutine(getattr(handlers, name, None)):
            raise TypeError(
                f"{name} is declared with `async def`, and handlers are plain functions, which may block: use `def`"
            )


class WebSocketEndpoint(Endpoint):
    """The WebSockets of one address, under one set of options.

    `handlers` is an object with any of these, which are called in a greenlet within `around()` and may block, for each
    connection one at a time and in order (only `drained` may come while another one runs):

    - `open(conn)`, when the client has been told that it is connected;
    - `message(conn, data)`, a str or bytes;
    - `close(conn, code, reason)`, once, when it has ended; 1006 without a goodbye;
    - `missed(conn, channel, position)`: some of the channel before `position` is lost for this connection;
    - `drained(conn)`: all that waited for the client has been taken.

    `encode(message)`, which says how a channel's message looks to these clients (text, bytes, or a dict or list for JSON), is
    called once for each message, on the loop: it must not block.

    What they raise is logged and closes the connection with 1011, except for the `ConnectionClosed` of a client that has left,
    and for a `ChannelError` that tells of a client's mistake, whose text goes to the client with 1008. A handler that is
    declared with `async def` is a `TypeError`.
    """

    kind = "websocket"

    def __init__(
        self,
        handlers: Any,
        options: WebSocketOptions | None = None,
        channels: Any = None,
        around: Callable[[], AbstractContextManager[Any]] | None = None,
    ) -> None:
        check_handlers(handlers)
        self.handlers = handlers
        self.options = options = options or WebSocketOptions()
        self.channels = channels
        self.around: Callable[[], AbstractContextManager[Any]] = around or nullcontext
        self.queue_bytes = options.queue_bytes
        self.overflow = options.overflow
        self.wire: Any = WebSocketWire(options, getattr(handlers, "encode", None), self._missed)
        """What `join` hands to the channels."""
        self._open = getattr(handlers, "open", None)
        self._message = getattr(handlers, "message", None)
        self._close = getattr(handlers, "close", None)
        self._told_of_missed = getattr(handlers, "missed", None)
        self._told_of_drained = getattr(handlers, "drained", None)
        self._without_channels = False
        self._limits = options.limits
        self._limiter = _limiter(options.messages_per_second)
        self._abouts: dict[Any, About] = {}
        self._names: dict[tuple[str, ...], tuple[str, ...]] = {}

    @property
    def connection_class(self) -> type[UpgradedConnection]:
        """`WebSocketConnection`."""
        return WebSocketConnection

    # The beginning.

    def begin(
        self,
        connection: UpgradedConnection,
        *,
        identity: Identity | None = None,
        user: Any = None,
        arguments: Mapping[str, Any] | None = None,
        path: str = "",
        address: str = "",
        subprotocol: str = "",
        deflation: Deflation | None = None,
    ) -> WebSocketConnection:
        """The connection has been handed over and its client told so: say who it is, and let the application open it.

        `address` is the client's host where that is not the other end of the connection (behind a proxy); `user` is who it is
        where there is no `Identity`.
        """
        conn = cast("WebSocketConnection", connection)
        if identity is not None and user is None:
            user = identity.user
        if address == UpgradedConnection.host.fget(conn):  # type: ignore[attr-defined]
            address = ""
        conn.about = self._about(About(user, identity, _frozen(arguments), path, address, subprotocol or "", deflation))
        conn.connection.since = conn.connection.lot.wheel.now_tick
        self._wait(conn, self.options.ping_interval * _CHANCE.uniform(0.5, 1.0))
        self._start_channels()
        conn.flags |= OPENED
        if self._open is not None:
            self._call(conn, self._open)
        return conn

    def _start_channels(self) -> None:
        """Let this process hear what others ask about its connections, also while none of them has joined anything."""
        if self.channels is not None and not self._without_channels:
            try:
                self.channels.start()
            except LongConnError:
                self._without_channels = True
                _log.exception("WebSockets of this process are neither listed nor sent away by others")

    def _about(self, about: About) -> About:
        if about.identity is not None or not (about.user is None or isinstance(about.user, str)):
            return about  # it is this client's alone
        key = (about.user, about.path, about.address, about.subprotocol, about.agreed, *about.arguments.items())
        try:
            return _shared(self._abouts, key, about)
        except TypeError:  # an argument that cannot be a key
            return about

    # What arrives.

    def readable(self, connection: UpgradedConnection) -> None:
        """Read what has arrived, and hand the messages that are complete to the application."""
        conn: WebSocketConnection = connection  # type: ignore[assignment]  # a cast, without the call
        underway = conn.underway
        reading = None if underway is None else underway.reading
        data = conn.receive(LARGE_READ if reading is not None and reading.awaited > SMALL_READ else SMALL_READ)
        if not data:
            if data is not None:
                conn.end(conn.cause("client"))
            return
        if conn.flags & ENDS_WHEN_WRITTEN:
            return
        if conn.flags & AWAITS_PONG:
            self._heard(conn)
        error: ProtocolError | None = None
        try:
            events, still = read(data, reading, self._limits, inflate=conn.about.agreed is not None)
        except ProtocolError as raised:
            # Its traceback holds this frame, which holds the error: all of it would stay until the next collection.
            error, events, still = raised.with_traceback(None), raised.events, None
        if still is not None or reading is not None:
            self._keep(conn, still)
        if events:
            self._dispatch(conn, events)
        if error is not None:
            conn.fail(error.code, error.reason)

    @staticmethod
    def _keep(conn: WebSocketConnection, reading: Any) -> None:
        """Keep the incomplete message, if there is one, and see that all of the process together do not grow without bound."""
        underway = conn.busy()
        underway.reading = reading
        before = underway.held
        held = underway.held = 0 if reading is None else reading.held_bytes
        _incomplete.held += held - before
        if reading is None:
            conn.tidy()
        elif held > before and _incomplete.held > MOST_HELD:
            largest = cast("WebSocketConnection", max(upgraded_connections(), key=_held_by))
            largest.here(largest.fail, CloseCode.TRY_AGAIN_LATER, "too much is incomplete", "evicted")

    def _dispatch(self, conn: WebSocketConnection, events: list[tuple[int, Any]]) -> None:
        lot = conn.connection.listener.lot
        if len(events) == 1 and events[0][0] <= _BINARY and self._limiter is None and not conn.flags & MUTE:
            self._take(conn, lot, events[0][1])
        else:
            self._dispatch_all(conn, lot, events)

    def _dispatch_all(self, conn: WebSocketConnection, lot: Any, events: list[tuple[int, Any]]) -> None:
        pongs = b""
        turn = 0.0
        for opcode, payload in events:
            if conn.connection.state != _UPGRADED:
                return
            if opcode == _CLOSE:
                conn.answer_close(*payload)
                return
            if opcode == _PONG or conn.flags & MUTE or self._are_too_many(conn):
                continue
            if opcode <= _BINARY:
                if pongs:
                    conn.push_control(pongs, "pong")
                    pongs = b""
                self._take(conn, lot, payload)
                turn = lot.breathe(turn)
            elif opcode == _PING:
                pongs += encode_frame(Opcode.PONG, payload)
        if pongs:
            conn.push_control(pongs, "pong")

    def _take(self, conn: WebSocketConnection, lot: Any, data: str | bytes) -> None:
        """Hand a message to the application."""
        lot.tally[MESSAGES_IN] += 1
        conn.connection.since = lot.wheel.now_tick
        if self._message is not None:
            self._call(conn, self._message, data)

    def _are_too_many(self, conn: WebSocketConnection) -> bool:
        """Count a message or a ping against the limit of its connection, which is closed when there are too many."""
        if self._limiter is None or self._limiter.try_acquire(str(conn.number)).allowed:
            return False
        conn.begin_close(CloseCode.POLICY_VIOLATION, "too many messages", "refused")
        return True

    # The application.

    def _call(self, conn: WebSocketConnection, function: Callable[..., object], *arguments: Any) -> None:
        conn.flags |= HANDLING
        try:
            with self.around():
                function(conn, *arguments)
        except (Exception, gevent.Timeout) as error:  # noqa: BLE001 - the application's own
            self._failed(conn, error)
        except BaseException as error:  # it asks for an end: that of its greenlet, or of the process
            if not isinstance(error, gevent.GreenletExit):
                _log.exception("A handler of the WebSocket %s failed", conn.path)
            if not conn.flags & MUTE:
                leaves = conn.flags & LEAVING
                code = self.code_of_leaving(conn) if leaves else CloseCode.INTERNAL_ERROR
                conn.fail(code, "", "drain" if leaves else "error")
            raise
        finally:
            conn.flags &= ~HANDLING
            if conn.connection.state != _UPGRADED:
                self._tell_of_end(conn)

    @staticmethod
    def _failed(conn: WebSocketConnection, error: BaseException) -> None:
        if isinstance(error, ConnectionClosed) and conn.flags & MUTE:
            return  # it wanted to send something, and its client had left: nothing of which anybody should hear
        if isinstance(error, ChannelError) and error.status < 500:
            _log.info("The WebSocket %s is closed: %s", conn.path, error)
            conn.begin_close(CloseCode.POLICY_VIOLATION, shortened(str(error)), "refused")
            return
        _log.error("A handler of the WebSocket %s failed", conn.path, exc_info=error)
        conn.begin_close(CloseCode.INTERNAL_ERROR, "", "error")

    def _call_later(self, conn: WebSocketConnection, function: Callable[..., object], *arguments: Any) -> None:
        try:
            with self.around():
                function(conn, *arguments)
        except (Exception, gevent.Timeout):  # noqa: BLE001 - the application's own
            _log.exception("A handler of the WebSocket %s failed", conn.path)

    def _missed(self, conn: WebSocketConnection, channel: str, position: Position) -> None:
        if self._told_of_missed is not None:
            conn.here(conn.post, (self._told_of_missed, channel, position))

    def message(self, connection: UpgradedConnection, message: Any) -> None:
        """What was posted: one of the handlers, and what it is called with."""
        function, *arguments = message
        self._call(cast("WebSocketConnection", connection), function, *arguments)

    # The end.

    def closed(self, connection: UpgradedConnection, reason: str) -> None:
        """It has ended: the channels lose it, and the application is told, after what it is doing for it now."""
        conn = cast("WebSocketConnection", connection)
        underway = conn.busy()
        _incomplete.held -= underway.held
        underway.reading = underway.inbox = underway.seconds = None
        underway.held = 0
        underway.unsent = 0
        closing = underway.closing
        if closing is None:
            closing = underway.closing = Closing(CloseCode.ABNORMAL, "", reason)
        conn.connection.lot.tally[scoreboard.close_code_field(closing.code)] += 1
        for channel in conn.channels:
            self.channels.unsubscribe(conn, channel)
        if not conn.flags & HANDLING:
            self._tell_of_end(conn)

    def _tell_of_end(self, conn: WebSocketConnection) -> None:
        if self._close is None or not conn.flags & OPENED:
            return
        conn.flags &= ~OPENED
        closing = conn.busy().closing or Closing(CloseCode.ABNORMAL, "", "")
        conn.connection.lot.later(self._call_later, conn, self._close, closing.code, closing.reason)

    def overflowed(self, connection: UpgradedConnection) -> None:
        """The client does not take what it is sent."""
        conn = cast("WebSocketConnection", connection)
        conn.begin_close(self.options.overflow_code, "too slow", "write timeout")

    def drained(self, connection: UpgradedConnection) -> None:
        """All that waited has left."""
        conn = cast("WebSocketConnection", connection)
        if conn.flags & ENDS_WHEN_WRITTEN:
            conn.end(conn.cause("client"))
        elif self._told_of_drained is not None and not conn.flags & MUTE:
            conn.connection.lot.later(self._call_later, conn, self._told_of_drained)

    # Deadlines.

    def _wait(self, conn: WebSocketConnection, seconds: float) -> None:
        """Let the deadline be in `seconds` (0 for never), or earlier where something else is due."""
        identity = conn.about.identity
        options = self.options
        if identity is not None and identity.expires_at is not None:
            left = max(0.001, identity.expires_at - time.time())  # never 0, which would be never
            seconds = min(seconds, left) if seconds else left
        if options.idle_timeout:
            left = max(0.001, options.idle_timeout - self._idle(conn))
            seconds = min(seconds, left) if seconds else left
        conn.wake_after(seconds or None)

    @staticmethod
    def _idle(conn: WebSocketConnection) -> float:
        """For how many seconds the client has said nothing, and nothing has been done for it."""
        wheel = conn.connection.lot.wheel
        if conn.flags & HANDLING:
            conn.connection.since = wheel.now_tick
        return float((wheel.now_tick - conn.connection.since) * wheel.resolution)

    def _heard(self, conn: WebSocketConnection) -> None:
        """The client lives: the next ping is due after an interval, a little earlier so that clients do not keep in step."""
        conn.flags &= ~AWAITS_PONG
        if conn.flags & MUTE:
            return
        if conn.underway is not None:
            conn.underway.unsent = 0
            conn.tidy()
        if not conn.flags & LEAVING:
            self._wait(conn, self.options.ping_interval * _CHANCE.uniform(0.8, 1.0))

    def deadline(self, connection: UpgradedConnection) -> None:
        """Something is due. In the hub."""
        conn = cast("WebSocketConnection", connection)
        flags = conn.flags
        if flags & MUTE:
            if conn.takes:  # slowly, what was sent before the goodbye
                conn.wake_after(self.options.close_timeout)
            else:
                conn.end(conn.cause("client"))
        elif flags & LEAVING:
            conn.begin_close(self.code_of_leaving(conn), "", "drain")
        elif self._has_expired(conn):
            conn.begin_close(CloseCode.POLICY_VIOLATION, "the authorization has expired", "refused")
        elif self.options.idle_timeout and self._idle(conn) >= self.options.idle_timeout:
            conn.begin_close(CloseCode.NORMAL, "idle", "idle")
        elif flags & AWAITS_PONG:
            self._judge(conn)
        elif self.options.ping_interval:
            conn.flags &= ~HEARD
            unsent = conn.connection.unsent()
            if unsent:
                conn.busy().unsent = unsent
            conn.send_ping()
        else:
            self._wait(conn, 0.0)

    @staticmethod
    def code_of_leaving(conn: WebSocketConnection) -> int:
        """What clients hear when the worker leaves: whether to come back at once."""
        return CloseCode.SERVICE_RESTART if conn.replaced else CloseCode.GOING_AWAY

    @staticmethod
    def _has_expired(conn: WebSocketConnection) -> bool:
        identity = conn.about.identity
        return identity is not None and identity.expires_at is not None and identity.expires_at <= time.time()

    def _judge(self, conn: WebSocketConnection) -> None:
        """No answer to a ping has come in time. The client may be busy taking what is on its way to it."""
        connection = conn.connection
        if connection.unread():
            connection.lot.call(connection)
            conn.wake_after(self.options.ping_timeout)
            return
        unsent = connection.unsent()
        before = 0 if conn.underway is None else conn.underway.unsent
        if conn.flags & HEARD or unsent < before:
            conn.flags &= ~HEARD
            conn.busy().unsent = unsent
            conn.tidy()
            conn.wake_after(self.options.ping_timeout)
            return
        if unsent:
            conn.busy().closing = Closing(CloseCode.ABNORMAL, "no answer to a ping", "idle")
            connection.cut()  # nobody takes it, and the kernel would go on trying
            connection.lot.close(connection, reasons.IDLE)
        else:
            conn.fail(CloseCode.INTERNAL_ERROR, "no answer to a ping", "idle")

    # Channels.

    def join(self, conn: WebSocketConnection, channel: str, since: Position | str | None) -> History:
        """Let `conn` hear `channel`; see `WebSocketConnection.join`."""
        channels = self.channels
        if channels is None:
            raise ChannelsMissing(
                "this endpoint has no channels: give WebSockets(app) some, or WebSocketEndpoint(channels=...)"
            )
        channels.may(conn.user, channel, "subscribe")
        history = self._subscribe(conn, channel, "" if since == EARLIEST else since)
        if not conn.alive:
            channels.unsubscribe(conn, channel)
            raise conn.over()
        if channel not in conn.channels:
            names = (*conn.channels, channel)
            conn.channels = _shared(self._names, names, names)
        if not history.complete:
            self._missed(conn, channel, _last_lost(history))
        return history

    def _subscribe(self, conn: WebSocketConnection, channel: str, since: Position | str | None) -> History:
        """Let `conn` listen, and send it what it has missed before anything new."""

        def before(found: History) -> None:
            for message in found.messages:
                self.wire.write([conn], 0, self.wire.encode(message), message, float("inf"))

        try:
            history: History = self.channels.subscribe(conn, channel, self.wire, since=since, before=before)
        except BaseException:
            self._forget(conn, channel)
            raise
        return history

    def leave(self, conn: WebSocketConnection, channel: str) -> None:
        """Let `conn` hear nothing more of `channel`."""
        if channel in conn.channels:
            self._forget(conn, channel)

    def _forget(self, conn: WebSocketConnection, channel: str) -> None:
        self.channels.unsubscribe(conn, channel)
        if channel in conn.channels:
            names = tuple(name for name in conn.channels if name != channel)
            conn.channels = _shared(self._names, names, names)


def _last_lost(history: History) -> Position:
    """The position of the newest message that `history` has lost."""
    if not history.messages:
        return history.position
    epoch, number = history.messages[0].position
    return Position(epoch, max(0, number - 1))


def _shared(known: dict[K, V], key: K, value: V) -> V:
    """One object for all that are equal."""
    found = known.get(key)
    if found is not None:
        return found
    if len(known) >= MOST_SHARED:
        known.clear()
    known[key] = value
    return value


class _Incomplete:
    """The incomplete messages of this process."""

    def __init__(self) -> None:
        self.held = 0


_incomplete = _Incomplete()


def _held_by(connection: UpgradedConnection) -> int:
    return 0 if connection.underway is None else connection.underway.held


def _frozen(arguments: Mapping[str, Any] | None) -> Mapping[str, Any]:
    return MappingProxyType(dict(arguments)) if arguments else _NO_ARGUMENTS


def _limiter(notation: str) -> Any:
    """A limit for each connection, of this process."""
    if not notation:
        return None
    from resilience import MemoryStorage, RateLimiter

    return RateLimiter(notation, name=f"websocket messages {notation}", storage=MemoryStorage())
