"""`/api/v1/backends/<name>/<path>`: calls passed on to the configured backends."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Callable, Iterator
from urllib.parse import quote

import gevent
import structlog
from flask import Blueprint, Request, Response, current_app, g, request
from werkzeug.exceptions import RequestEntityTooLarge

from service.errors import PayloadTooLarge, ServiceError, ValidationFailed
from service.services.backends import (
    Backends,
    Origin,
    believed_addresses,
    request_headers,
    response_headers,
    target_below,
)
from service.services.ports import BackendResponse

__all__ = ["create_backends_blueprint"]

MARGIN = 1.0

_log = structlog.get_logger("service.routes.backends")


def create_backends_blueprint(
    backends: Backends, *, body_limit: int, stream_timeout: float, trusted_proxies: int = 0
) -> Blueprint:
    """The routes that pass GET, HEAD and POST on to `backends`.

    Request bodies of more than `body_limit` bytes are refused with 413, chunked ones as soon as they exceed it. A
    caller who has not taken the whole response after `stream_timeout` seconds is cut off, a second after the client
    has given up on a backend that is too slow. `trusted_proxies` is how many proxies in front of the service have added
    to X-Forwarded-For.
    """
    blueprint = Blueprint("backends", __name__, url_prefix="/api/v1/backends")

    def forward(name: str, path: str = "") -> Response:  # noqa: ARG001 - the path as the caller encoded it is used
        backend = backends.find(name)
        target = target_below(_request_target(request), f"{request.script_root}/api/v1/backends/{name}")
        headers = request_headers(request.headers.items(), _origin(request, trusted_proxies))
        answer = backend.forward(request.method, target, headers, _body(request, body_limit))
        response = _render(answer)
        _bound_sending(request, response, stream_timeout + MARGIN)
        return response

    # Doubled slashes are the backend's business; merging them would answer with a redirect.
    # A rule without the slash, or the framework would redirect, to whatever the caller gave as Host, before anybody asked
    # for a token.
    blueprint.add_url_rule("/<name>", "bare", forward, methods=["GET", "POST"], merge_slashes=False)
    blueprint.add_url_rule("/<name>/", "root", forward, methods=["GET", "POST"], merge_slashes=False)
    blueprint.add_url_rule("/<name>/<path:path>", "forward", forward, methods=["GET", "POST"], merge_slashes=False)
    return blueprint


def _request_target(request: Request) -> str:
    """What the request line said. A server that does not tell leaves a path that is decoded; it is encoded again."""
    told: str | None = request.environ.get("RAW_URI")
    if told is not None:
        return told
    query = request.query_string.decode("latin-1")
    return quote(request.script_root + request.path) + (f"?{query}" if query else "")


def _origin(request: Request, trusted_proxies: int) -> Origin:
    trace = g.get("trace")
    return Origin(
        clients=believed_addresses(request.remote_addr, request.headers.get("X-Forwarded-For", ""), trusted_proxies),
        scheme=request.scheme,
        host=request.host,
        request_id=g.get("request_id"),
        traceparent=trace and trace.traceparent,
        tracestate=trace and trace.tracestate,
    )


def _body(request: Request, limit: int) -> bytes:
    """The whole body. Raises `PayloadTooLarge`, and `ValidationFailed` when it breaks off."""
    # A body of unknown length is cut at the maximum without a word, so one byte more is asked for.
    request.max_content_length = limit + 1
    try:
        body = request.get_data(cache=False)
    except RequestEntityTooLarge:
        raise _too_large(limit) from None
    if len(body) > limit:
        raise _too_large(limit)
    if len(body) < (request.content_length or 0):
        raise ValidationFailed("the body is shorter than its Content-Length; send it again as a whole")
    return body


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"bodies of up to {limit} bytes are passed on to backends; send less")


def _render(answer: BackendResponse) -> Response:
    headers = response_headers(answer.headers, answer.status)
    response = current_app.response_class(_Passage(answer.body), answer.status, list(headers))
    if not any(name.lower() == "content-type" for name, _ in headers):
        # The framework's default would claim a type that the backend did not give.
        response.headers.remove("Content-Type")
    return response


class _Passage:
    """The body on its way. Should it break off, only a broken connection can still tell the caller, and the server
    takes a reset for that without a word; the reason has been logged where it was known."""

    def __init__(self, body: Iterator[bytes]) -> None:
        self._body = body

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            return next(self._body)
        except ServiceError as error:
            raise ConnectionResetError(errno.ECONNRESET, "the body broke off") from error

    def close(self) -> None:
        close: Callable[[], None] | None = getattr(self._body, "close", None)
        if close is not None:
            close()


def _bound_sending(request: Request, response: Response, seconds: float) -> None:
    """Keep a caller that stopped reading from holding a backend's connection for ever."""
    connection: socket.socket | None = request.environ.get("gunicorn.socket")
    if connection is None:
        return
    log = _log.bind(path=request.path, request_id=g.get("request_id"))

    def cut() -> None:
        log.warning("caller cut off", seconds=seconds)
        # Through a second descriptor: the greenlet that is sending then sees a broken pipe, which servers expect.
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as twin:
            twin.shutdown(socket.SHUT_RDWR)

    timer = gevent.spawn_later(seconds, cut)
    response.call_on_close(lambda: timer.kill(block=False))
