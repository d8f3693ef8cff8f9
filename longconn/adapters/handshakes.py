"""How a Flask view answers the opening handshake of a WebSocket: who is let in, and what the answer is."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from flask import Flask, Request, Response, request
from werkzeug.exceptions import Forbidden, HTTPException
from werkzeug.routing.exceptions import WebsocketMismatch

from longconn.adapters.transports import LoneWire, NoTransport, can_carry, carry, parks
from longconn.configuration import hooks
from longconn.core import deflate, handshake, origins
from longconn.core.handshake import Handshake, HandshakeRefused
from longconn.identity import Identity
from longconn.settings import Settings
from longconn.upgraded import UpgradedConnection
from longconn.websocket.endpoint import WebSocketEndpoint
from longconn.websocket.options import WebSocketOptions

__all__ = ["Refused", "SwitchingProtocols", "admit", "attuned", "checked", "explain_mismatches", "open_handshake"]

T = TypeVar("T", bound=WebSocketEndpoint)


class Refused(HTTPException):
    """A handshake that is answered with an error, which the application's error handlers may render."""

    def __init__(self, status: int, description: str, fields: Iterable[tuple[str, str]] = ()) -> None:
        super().__init__(description)
        self.code = status
        self.fields = tuple(fields)

    def get_headers(self, environ: Any = None, scope: Any = None) -> list[tuple[str, str]]:
        """The fields of the answer."""
        return [*super().get_headers(environ, scope), *self.fields]


def checked(options: WebSocketOptions) -> WebSocketOptions:
    """`options`, if their origins can be some. Raises `ValueError`."""
    origins.check(options.allowed_origins or ())
    return options


def open_handshake(asked: Request, options: WebSocketOptions) -> Handshake:
    """What `asked` asks for, if it comes from a page that may ask. Raises `Refused` and `Forbidden`."""
    try:
        found = handshake.accept(asked.environ)
    except HandshakeRefused as error:
        raise Refused(error.status, error.message, error.fields) from None
    if not can_carry(asked.environ):
        raise Refused(501, str(NoTransport()))
    extra = options.allowed_origins
    if extra is None:
        extra = _origins_of_all_endpoints()
    if not origins.allowed(found.origin, asked.host, asked.scheme, extra):
        raise Forbidden(
            f"Pages of {found.origin} may not open a WebSocket here. LONGCONN_ALLOWED_ORIGINS lists the origins that may, "
            "besides this host's own."
        )
    return found


@functools.cache
def _origins_of_all_endpoints() -> tuple[str, ...]:
    return Settings.from_environment(os.environ, defaults=dict(hooks().defaults)).allowed_origins


def explain_mismatches(app: Flask) -> None:
    """Have requests answered with 426 (or what else is wrong with them) that come to the address of a WebSocket and open none.

    werkzeug takes them for bad requests, and says nothing. An application that has a handler of its own keeps it.
    """
    if WebsocketMismatch in app.error_handler_spec[None][WebsocketMismatch.code]:
        return

    def explain(_: WebsocketMismatch) -> Any:
        try:
            handshake.accept(request.environ)
        except HandshakeRefused as refused:
            return app.handle_user_exception(Refused(refused.status, refused.message, refused.fields))
        return app.handle_user_exception(Refused(400, "There is no WebSocket at this address."))

    app.register_error_handler(WebsocketMismatch, explain)


def attuned(endpoint: T, asked: Request) -> T:
    """`endpoint` as the server of `asked` needs it."""
    if not parks(asked.environ) and not isinstance(endpoint.wire, LoneWire):
        endpoint.wire = LoneWire(endpoint.wire)
    return endpoint


def admit(answer: Any) -> tuple[Identity | None, Any]:
    """Who is at the other end, after what `authorize` has answered: an identity and a user.

    None and True let anybody in, False nobody (403). An `Identity` and a text name the user; anything else is the user.
    Raises `Forbidden`, and `TypeError` for a coroutine: nobody has looked at the request yet.
    """
    if inspect.isawaitable(answer):
        if inspect.iscoroutine(answer):
            answer.close()
        raise TypeError("authorize has answered a coroutine: declare it with `def`, not `async def`")
    if answer is None or answer is True:
        return None, None
    if answer is False:
        raise Forbidden("This WebSocket is not for you.")
    if isinstance(answer, Identity):
        return answer, answer.user
    return None, answer


class SwitchingProtocols(Response):
    """The answer that makes a request a WebSocket. Fields that `after_request` functions add, cookies too, go into its head."""

    default_mimetype = None

    def __init__(
        self,
        opened: Handshake,
        endpoint: WebSocketEndpoint,
        begin: Callable[[UpgradedConnection, str, deflate.Deflation | None], object],
        beside: Callable[[], object] | None = None,
    ) -> None:
        super().__init__(status=101)
        self._plan: Any = opened, endpoint, begin, beside

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Hand the connection over. Once."""
        # A view that blocks keeps this object for as long as its connection lasts: nothing but the view is kept with it.
        beside = self._plan[3]
        head, endpoint, begin = self._prepare()
        return carry(environ, start_response, endpoint, head, begin, beside)

    def _prepare(self) -> tuple[bytes, WebSocketEndpoint, Callable[[UpgradedConnection], object]]:
        opened, endpoint, begin, _ = self._plan
        self._plan = None
        options = endpoint.options
        subprotocol = opened.choose(options.subprotocols)
        deflation = deflate.negotiate(opened.extensions) if options.compression else None
        head = handshake.head(
            opened,
            subprotocol=subprotocol,
            extensions=deflation.response if deflation else "",
            fields=self.headers.items(),
        )
        return head, endpoint, lambda upgraded: begin(upgraded, subprotocol, deflation)
