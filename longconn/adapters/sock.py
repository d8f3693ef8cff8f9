"""`Sock`, for applications written for flask-sock: a view that reads and writes one WebSocket and blocks.

    sock = Sock(app)

    @sock.route("/echo")
    def echo(ws):
        while True:
            ws.send(ws.receive())

The names, options and errors are flask-sock's and simple-websocket's. See docs/migrating-from-flask-sock.md.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import time
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

from flask import Blueprint, Flask, Response, current_app, request
from flask.signals import got_request_exception
from werkzeug.exceptions import HTTPException

from longconn.adapters import EXTENSION
from longconn.adapters.handshakes import SwitchingProtocols, attuned, checked, explain_mismatches, open_handshake
from longconn.adapters.transports import ask, bell_for, look_again
from longconn.core.deflate import Deflation
from longconn.core.frames import shortened
from longconn.errors import ConnectionClosed, ConnectionOver, LongConnError
from longconn.upgraded import UpgradedConnection
from longconn.websocket.endpoint import WebSocketEndpoint, is_coroutine
from longconn.websocket.options import WebSocketOptions

__all__ = ["BlockingWebSocket", "ConnectionClosed", "ConnectionError", "Sock"]

View = TypeVar("View", bound=Callable[..., Any])

NO_LIMIT = 1 << 40
"""Bytes of a message, where an application has chosen that there is no limit."""
MOST_UNRECEIVED = 1000
"""Messages that wait for a view. As many again may have arrived in the meantime, when they are small."""
_WITHOUT_EFFECT = frozenset({"event_class", "receive_bytes", "selector_class", "thread_class"})


class ConnectionError(LongConnError, RuntimeError):  # noqa: A001 - the name that simple-websocket gives it
    """A connection could not be made a WebSocket, and its client was answered `status_code`.

    Here for those who catch it: what is refused never reaches a view.
    """

    def __init__(self, status_code: int | None = None) -> None:
        super().__init__(f"the connection could not be made a WebSocket: {status_code}")
        self.status_code = status_code


class Sock:
    """Drop-in for `flask_sock.Sock`. Options are in `app.config["SOCK_SERVER_OPTIONS"]`, read when a client connects:
    flask-sock's `subprotocols`, `ping_interval` and `max_message_size`, and all fields of `WebSocketOptions`.

    Other than there, pings are sent every 25 seconds when nothing is said about it, messages have at most 1 MiB, and pages of
    foreign origins are refused.
    """

    def __init__(self, app: Flask | None = None) -> None:
        self.app: Flask | None = None
        self.bp: Blueprint | None = None
        self._endpoints: weakref.WeakKeyDictionary[Flask, dict[WebSocketOptions, _BlockingEndpoint]] = (
            weakref.WeakKeyDictionary()
        )
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Add the routes to `app`."""
        if self.bp is not None:
            app.register_blueprint(self.bp)
        explain_mismatches(app)
        self.app = app

    def route(self, path: str, bp: Blueprint | None = None, **kwargs: Any) -> Callable[[View], View]:
        """Have the decorated function called with each WebSocket that is opened at `path`, and with the variables of the path.

        `bp` is the blueprint to which the route belongs. Everything else is for Flask's `route`.
        """

        def decorate(function: View) -> View:
            if is_coroutine(function):
                raise TypeError("a view of a WebSocket blocks, and is no coroutine: declare it with `def`")

            @functools.wraps(function)
            def view(*args: Any, **arguments: Any) -> Response:
                return self._open(function, args, arguments)

            self._where(bp).route(path, **{**kwargs, "websocket": True})(view)
            return function

        return decorate

    def _where(self, bp: Blueprint | None) -> Flask | Blueprint:
        if bp is not None:
            return bp
        if self.app is not None:
            return self.app
        if self.bp is None:
            self.bp = Blueprint("__flask_sock", __name__)
        return self.bp

    def _open(self, function: Callable[..., Any], args: tuple[Any, ...], arguments: dict[str, Any]) -> Response:
        app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]  # noqa: SLF001 - documented for this use
        options = read_options(app.config.get("SOCK_SERVER_OPTIONS") or {})
        opened = open_handshake(request, options)
        endpoint = attuned(self._endpoint(app, options), request)
        ws = BlockingWebSocket(request.environ, endpoint.options)
        path, address = request.path, request.remote_addr or ""

        def begin(upgraded: UpgradedConnection, subprotocol: str, deflation: Deflation | None) -> None:
            ws.connection = endpoint.begin(
                upgraded,
                arguments=arguments,
                path=path,
                address=address,
                subprotocol=subprotocol,
                deflation=deflation,
            )
            ws.connection.state = ws

        return SwitchingProtocols(opened, endpoint, begin, _Call(app, ws, function, args, arguments).run)

    def _endpoint(self, app: Flask, options: WebSocketOptions) -> _BlockingEndpoint:
        # Their channels are there when the application uses channels: an echo needs no storage for messages.
        channels = app.extensions.get(EXTENSION)
        endpoints = self._endpoints.setdefault(app, {})
        endpoint = endpoints.get(options)
        if endpoint is None or endpoint.channels is not channels:
            endpoint = endpoints[options] = _BlockingEndpoint(_Handlers(), options, channels, None)
        return endpoint


def read_options(given: dict[str, Any]) -> WebSocketOptions:
    """`SOCK_SERVER_OPTIONS` as options of an endpoint. Raises `TypeError` for a name that is none, `ValueError` for a value out
    of range."""
    options = {name: value for name, value in given.items() if name not in _WITHOUT_EFFECT}
    subprotocols = options.get("subprotocols")
    if isinstance(subprotocols, str):
        options["subprotocols"] = (subprotocols,)
    elif subprotocols is None:
        options.pop("subprotocols", None)
    if "max_message_size" in options:
        options["message_bytes"] = options.pop("max_message_size") or NO_LIMIT
    if "ping_interval" in options:
        options["ping_interval"] = interval = options["ping_interval"] or 0
        if interval:
            options.setdefault("ping_timeout", max(0.1, min(float(interval), 10.0)))
    return checked(WebSocketOptions.of(options))


class _Call:
    """The call of a view with its WebSocket."""

    __slots__ = ("_app", "_args", "_arguments", "_function", "_ws")

    def __init__(
        self,
        app: Flask,
        ws: BlockingWebSocket,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        arguments: dict[str, Any],
    ) -> None:
        self._app = app
        self._ws = ws
        self._function = function
        self._args = args
        self._arguments = arguments

    def run(self) -> None:
        """Call it, and close its WebSocket as flask-sock does when it returns."""
        app, ws = self._app, self._ws
        code = 1011
        try:
            if self._args or self._arguments:
                self._function(ws, *self._args, **self._arguments)
            else:
                self._function(ws)  # which takes less of the stack
            code = 1000
        except ConnectionClosed:
            code = 1000
        except HTTPException as error:
            code = 1008 if error.code in (401, 403) else 1011
        except Exception as error:  # noqa: BLE001 - as an error of a view: signalled and logged
            got_request_exception.send(app, _async_wrapper=app.ensure_sync, exception=error)
            app.log_exception(sys.exc_info())
        except BaseException:  # the worker ends
            code = 1001
            raise
        finally:
            if ws.connected:
                ws.end(code)


class BlockingWebSocket:
    """What a view of `Sock` gets, with the methods and attributes of `simple_websocket.Server`."""

    __slots__ = (
        "_bells",
        "_heard",
        "_inbox",
        "_taken",
        "close_message",
        "close_reason",
        "connected",
        "connection",
        "environ",
        "options",
    )

    def __init__(self, environ: dict[str, Any], options: WebSocketOptions) -> None:
        self.environ = environ
        self.options = options
        self.connection: Any = None
        """The connection as endpoints have it: `connection.join(channel)`, `connection.id` and the rest."""
        self.connected = True
        self.close_reason = 1005
        self.close_message: str | None = None
        self._inbox: list[str | bytes] = []
        # Two sums, since two threads may do one each.
        self._heard = 0
        self._taken = 0
        self._bells: list[Any] | None = None

    @property
    def subprotocol(self) -> str | None:
        """The subprotocol that was agreed on, None when there is none."""
        return self.connection.subprotocol or None

    @property
    def subprotocols(self) -> list[str]:
        """Those that are spoken here."""
        return list(self.options.subprotocols)

    @property
    def ping_interval(self) -> float | None:
        """Seconds between two pings, None when none are sent."""
        return self.options.ping_interval or None

    @property
    def max_message_size(self) -> int | None:
        """The most bytes of a message, None for no limit."""
        return None if self.options.message_bytes >= NO_LIMIT else self.options.message_bytes

    def send(self, data: Any) -> None:
        """Send bytes as a binary message, anything else as text, as `str` has it. Waits while the client does not take it.

        Raises `ConnectionClosed`.
        """
        self._check()
        payload = data if isinstance(data, bytes | bytearray | memoryview) else str(data)
        connection = self.connection
        try:
            ask(connection, lambda: connection.send(payload))
        except ConnectionOver:
            raise ConnectionClosed(self.close_reason, self.close_message or "") from None
        while connection.queued:
            self._wait(None, self._has_sent)
            self._check()

    def receive(self, timeout: float | None = None) -> str | bytes | None:
        """The next message; None when there is none within `timeout` seconds (0: at once; None: wait for ever).

        Raises `ConnectionClosed` when the connection has ended and all that came before has been received.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            if self._inbox:
                return self._take()
            self._check()
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return None
            self._wait(left, self._has_news)

    def close(self, reason: int | None = None, message: str | None = None) -> None:
        """Close it with a code (1000 when none is given) and a text, of which 123 bytes are sent. Does not wait for the client.

        Raises `ConnectionClosed` when it is closed already, and `ValueError` for a code that must not be sent.
        """
        self._check()
        self.end(reason or 1000, message or "")

    def end(self, code: int, reason: str = "") -> None:
        """As `close`, also when it has ended."""
        connection, reason = self.connection, shortened(reason)
        with contextlib.suppress(ConnectionOver, ConnectionClosed):
            ask(connection, lambda: connection.close(code, reason))
        self.ended(code, reason)

    def _check(self) -> None:
        if not self.connected:
            raise ConnectionClosed(self.close_reason, self.close_message or "")

    def _take(self) -> str | bytes:
        was_full = self.is_full
        data = self._inbox.pop(0)
        self._taken += len(data)
        if was_full and not self.is_full:
            connection = self.connection
            with contextlib.suppress(ConnectionOver):
                ask(connection, lambda: look_again(connection))
        return data

    @property
    def is_full(self) -> bool:
        """Whether so much waits to be received that no more is read from the client meanwhile."""
        return self._heard - self._taken > self.options.queue_bytes or len(self._inbox) > MOST_UNRECEIVED

    # From the endpoint.

    def heard(self, data: str | bytes) -> None:
        """A message has come."""
        self._heard += len(data)
        self._inbox.append(data)
        self.wake()

    def ended(self, code: int, reason: str) -> None:
        """The connection has ended, or is about to."""
        if self.connected:
            self.close_reason, self.close_message = code, reason or None
            self.connected = False
        self.wake()

    def wake(self) -> None:
        """Have those that wait look again."""
        bells, self._bells = self._bells, None
        for bell in bells or ():
            bell.ring()

    def _wait(self, seconds: float | None, unless: Callable[[], bool]) -> None:
        """Wait until somebody wakes, at most so long."""
        bell = bell_for(self.connection)
        bells = self._bells = self._bells or []
        bells.append(bell)
        try:
            # Whoever changes what is waited for wakes those that it finds afterwards: this one may have come too late for that.
            if not unless():
                bell.wait(seconds)
        finally:
            if bell in bells:
                bells.remove(bell)

    def _has_news(self) -> bool:
        return bool(self._inbox) or not self.connected

    def _has_sent(self) -> bool:
        return not self.connection.queued or not self.connected


class _Handlers:
    """Passes on to the blocking side what a client says."""

    def message(self, conn: Any, data: str | bytes) -> None:
        """Let it be received."""
        conn.state.heard(data)


class _BlockingEndpoint(WebSocketEndpoint):
    """As every endpoint, but for one who receives and sends in his own time: what he does not receive stays with the client."""

    def readable(self, connection: Any) -> None:
        """Read on, unless too much waits already."""
        if not connection.state.is_full:
            super().readable(connection)
            self._tell_of_goodbye(connection)

    def drained(self, connection: Any) -> None:
        """Let whoever waits for that know."""
        super().drained(connection)
        connection.state.wake()

    def deadline(self, connection: Any) -> None:
        """As everywhere."""
        super().deadline(connection)
        self._tell_of_goodbye(connection)

    def overflowed(self, connection: Any) -> None:
        """As everywhere."""
        super().overflowed(connection)
        self._tell_of_goodbye(connection)

    def closed(self, connection: Any, reason: str) -> None:
        """It has ended."""
        super().closed(connection, reason)
        self._tell_of_goodbye(connection)

    def _tell_of_goodbye(self, connection: Any) -> None:
        """When nothing more can be said on it, its view hears of that at once, not when the client has answered."""
        ws = connection.state
        if ws is not None and ws.connected and (goodbye := connection.goodbye) is not None:
            ws.ended(*goodbye)
