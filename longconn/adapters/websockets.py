"""`WebSockets`, the Flask extension: classes that attend to WebSockets, at rules of an application.

    ws = WebSockets(app)

    @ws.endpoint("/ws/<room>")
    class Room:
        def open(self, conn):
            conn.join(conn.arguments["room"])

        def message(self, conn, data):
            ws.channels.publish(conn.arguments["room"], data)

See docs/websockets.md.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable
from contextvars import Token
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar

from flask import Blueprint, Flask, Response, current_app, has_app_context, request
from flask.ctx import AppContext
from flask.globals import _cv_app  # what `current_app` looks into
from flask.signals import appcontext_popped, appcontext_pushed, appcontext_tearing_down, got_request_exception

from longconn.adapters import EXTENSION, channels_of
from longconn.adapters.handshakes import SwitchingProtocols, admit, attuned, checked, explain_mismatches, open_handshake
from longconn.core.deflate import Deflation
from longconn.errors import ConnectionClosed
from longconn.upgraded import UpgradedConnection
from longconn.websocket.endpoint import WebSocketEndpoint, check_handlers, is_coroutine
from longconn.websocket.options import WebSocketOptions

if TYPE_CHECKING:
    from longconn.channels.hub import Channels
    from longconn.roster import Connections, Counts, Kicked, Roster

__all__ = ["WebSockets", "application_context"]

METHODS = ("open", "message", "close", "missed", "encode", "authorize")
_OPTIONS = frozenset(field.name for field in fields(WebSocketOptions))

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Declared:
    """An endpoint as it was declared, before it is known which applications have it."""

    rule: str
    name: str
    handlers: Any
    options: WebSocketOptions
    routing: dict[str, Any]
    view: Callable[..., Response]


class WebSockets:
    """WebSockets of an application, parked: between two messages a connection holds no greenlet and no context.

    `channels` are the application's, made when they are not given. `authorize(request)` decides for endpoints that have no
    method of that name. Everything else is an option for all endpoints, a field of `WebSocketOptions`.

    Raises `TypeError` for an option that does not exist, `ValueError` for a value out of range.
    """

    def __init__(
        self,
        app: Flask | None = None,
        *,
        channels: Channels | None = None,
        authorize: Callable[[Any], Any] | None = None,
        **options: Any,
    ) -> None:
        checked(WebSocketOptions.of(options))
        if is_coroutine(authorize):
            raise TypeError("authorize is a plain function: declare it with `def`, not `async def`")
        self._defaults = options
        self._channels = channels
        self._authorize = authorize
        self._declared: list[_Declared] = []
        self._app: Flask | None = None
        self._applications: list[Flask] = []
        self._rosters: weakref.WeakKeyDictionary[Channels, Roster] = weakref.WeakKeyDictionary()
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Add all endpoints to `app`, also those that are declared later. One object may serve several applications."""
        if self._channels is not None:
            present = app.extensions.setdefault(EXTENSION, self._channels)
            if present is not self._channels:
                raise RuntimeError(
                    "this application has other channels already: give the same to all of its extensions"
                )
        self._roster(channels_of(app))
        explain_mismatches(app)
        _add_commands(app)
        self._app = app
        self._applications.append(app)
        for declared in self._declared:
            if "blueprint" not in declared.routing:
                _add_declared(app, declared)

    # Endpoints.

    def endpoint(
        self,
        rule: str,
        *,
        blueprint: Blueprint | None = None,
        endpoint: str | None = None,
        defaults: dict[str, Any] | None = None,
        subdomain: str | None = None,
        host: str | None = None,
        strict_slashes: bool | None = None,
        **options: Any,
    ) -> Callable[[T], T]:
        """Have the class that is decorated, or an object, attend to the WebSockets at `rule`.

        A class is made into one object, without arguments. It may have any of these methods:

        - `authorize(request)`, before the connection is a WebSocket: None or True lets it in, False refuses it (403), an
          `Identity` or the name of a user says whose it is; `abort(401)` and other errors are answered as a view's.
        - `open(conn)`, `message(conn, data)` with a text or bytes, `close(conn, code, reason)`,
        - `missed(conn, channel, position)`: messages of a channel are lost for this client; `encode(message)`: how a channel's
          message is shown to clients of this endpoint.

        Methods run in an application context; those of one connection one at a time, and they may block.

        `endpoint` is its name for `url_for`, that of the class when it is not given; `blueprint` has the rule instead of the
        application; `defaults`, `subdomain`, `host` and `strict_slashes` are Flask's. Everything else is an option, a field of
        `longconn.websocket.options.WebSocketOptions`, and comes before the extension's own.

        Raises `TypeError` for an option that does not exist, `ValueError` for a value out of range.
        """
        chosen = checked(WebSocketOptions.of({**self._defaults, **options}))
        given: dict[str, Any] = {
            "defaults": defaults,
            "subdomain": subdomain,
            "host": host,
            "strict_slashes": strict_slashes,
        }
        routing = {key: value for key, value in given.items() if value is not None}

        def declare(handlers: T) -> T:
            made: Any = handlers() if isinstance(handlers, type) else handlers
            if not any(callable(getattr(made, method, None)) for method in METHODS):
                raise TypeError(
                    f"{handlers!r} attends to nothing: a WebSocket endpoint is a class, or an object, with any of the methods "
                    f"{', '.join(METHODS)}"
                )
            check_handlers(made)
            called = endpoint or getattr(handlers, "__name__", None) or type(handlers).__name__
            if blueprint is None and any(other.name == called for other in self._declared):
                raise TypeError(
                    f"there is an endpoint of the name {called!r} already: give this one another, endpoint=..."
                )
            declared = _Declared(rule, called, made, chosen, routing, self._make_view(made, chosen))
            if blueprint is not None:
                _add_declared(blueprint, declared)
            else:
                self._declared.append(declared)
                for app in self._applications:
                    _add_declared(app, declared)
            return handlers

        return declare

    def _make_view(self, handlers: Any, options: WebSocketOptions) -> Callable[..., Response]:
        endpoints: weakref.WeakKeyDictionary[Flask, WebSocketEndpoint] = weakref.WeakKeyDictionary()
        making = threading.Lock()
        authorize = getattr(handlers, "authorize", None) or self._authorize

        def endpoint_of(app: Flask) -> WebSocketEndpoint:
            endpoint = endpoints.get(app)
            if endpoint is None:
                with making:
                    endpoint = endpoints.get(app)
                    if endpoint is None:
                        endpoint = WebSocketEndpoint(handlers, options, channels_of(app), application_context(app))
                        endpoints[app] = endpoint
            return endpoint

        def view(**arguments: Any) -> Response:
            app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]  # noqa: SLF001 - documented for this use
            opened = open_handshake(request, options)
            answer = authorize(request) if authorize is not None else None
            if isinstance(answer, Response):
                return answer
            identity, user = admit(answer)
            endpoint = attuned(endpoint_of(app), request)
            path, address = request.path, request.remote_addr or ""

            def begin(upgraded: UpgradedConnection, subprotocol: str, deflation: Deflation | None) -> None:
                endpoint.begin(
                    upgraded,
                    identity=identity,
                    user=user,
                    arguments=arguments,
                    path=path,
                    address=address,
                    subprotocol=subprotocol,
                    deflation=deflation,
                )

            return SwitchingProtocols(opened, endpoint, begin)

        return view

    # What is connected.

    @property
    def channels(self) -> Channels:
        """The channels of the application. Where this object serves several: of the one whose context is current."""
        if self._channels is not None:
            return self._channels
        if len(self._applications) == 1 and self._app is not None:
            return channels_of(self._app)
        if has_app_context():
            return channels_of(current_app)
        raise RuntimeError("these WebSockets have no application yet: call init_app(app), or give them channels")

    @property
    def roster(self) -> Roster:
        """What is connected to the workers of this host. See `longconn.roster`."""
        return self._roster(self.channels)

    def connections(self, **filters: Any) -> Connections:
        """The connections of all workers of this host: `longconn.roster.Roster.connections`."""
        return self.roster.connections(**filters)

    def counts(self, **options: Any) -> Counts:
        """How many connections there are, and whose: `longconn.roster.Roster.counts`."""
        return self.roster.counts(**options)

    def kick(self, **filters: Any) -> Kicked:
        """Close the connections of a `user`, `address`, `channel`, `token` or `id`, on all workers of this host, with `code`
        and `reason`; returns how many there were: `longconn.roster.Roster.kick`."""
        return self.roster.kick(**filters)

    def revoke(self, token: str) -> Kicked:
        """Close all connections that were let in by the credential `token` (`Identity.token`), with 1008. Returns how many."""
        return self.roster.revoke(token)

    def _roster(self, channels: Channels) -> Roster:
        roster = self._rosters.get(channels)
        if roster is None:
            from longconn.roster import Roster

            roster = self._rosters.setdefault(channels, Roster(channels))
            roster.answer()
        return roster


def application_context(app: Flask) -> Callable[[], _Around]:
    """What makes the surroundings of a handler."""
    plain = type(app).app_context is Flask.app_context
    return functools.partial(_Around, app, functools.partial(_Context, app) if plain else app.app_context)


class _Context(AppContext):
    """Flask's own, whose parts are made when one of them is asked for: most messages ask for none."""

    def __init__(self, app: Flask) -> None:
        self.app = app

    def __getattr__(self, name: str) -> Any:
        if "g" in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        super().__init__(self.app)
        return getattr(self, name)


class _Around:
    """An application context, and for an error that leaves it the signal that Flask sends for a view's.

    `open` is called inside of its request, whose context is good enough. For a message there is a new one. Where nobody wants
    to know when contexts come and go, making it current is all that is done, which takes a third of the time.
    """

    __slots__ = ("_app", "_context", "_make", "_token")

    def __init__(self, app: Flask, make: Callable[[], AppContext]) -> None:
        self._app = app
        self._make = make
        self._context: AppContext | None = None
        self._token: Token[AppContext] | None = None

    def __enter__(self) -> None:
        app = self._app
        self._context = self._token = None
        current = _cv_app.get(None)
        if current is not None and current.app is app:
            return
        self._context = context = self._make()
        if (
            app.teardown_appcontext_funcs
            or appcontext_pushed.receivers
            or appcontext_tearing_down.receivers
            or appcontext_popped.receivers
        ):
            context.push()
        else:
            self._token = _cv_app.set(context)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        try:
            if isinstance(error, Exception) and not isinstance(error, ConnectionClosed):
                app = self._app
                got_request_exception.send(app, _async_wrapper=app.ensure_sync, exception=error)
        finally:
            if self._token is not None:
                _cv_app.reset(self._token)
            elif self._context is not None:
                self._context.pop(error)


def _add_declared(where: Flask | Blueprint, declared: _Declared) -> None:
    where.add_url_rule(declared.rule, declared.name, declared.view, websocket=True, **declared.routing)


def _add_commands(app: Flask) -> None:
    from longconn.adapters.commands import channels

    if channels.name not in app.cli.commands:
        app.cli.add_command(channels)
