"""One line for each request, written when its last byte has left."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import flask

from longconn import HANDLED
from service import logs
from service.middleware.current import current_request, current_scratch
from service.middleware.link import Proceed
from service.services.backends import believed_addresses

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

__all__ = ["AccessLog", "metered"]

QUIET_BLUEPRINT = "health"
LINE = "seawall.access_line"
UPGRADE = "longconn.upgrade"
"""Where the worker puts what hands a connection over to another protocol."""


class AccessLog:
    """Logs the event `request`: at info, health probes at debug.

    `latency_ms` runs from the request's head to the last byte of the body. `aborted` is there when the body did not
    leave as a whole; `status` is null when there was no response at all. `client` is the address in front of
    `trusted_proxies` proxies. A connection that another protocol takes over has its line at once, with the `connection` that
    tells of its end.
    """

    def __init__(self, *, trusted_proxies: int = 0) -> None:
        self._trusted_proxies = trusted_proxies

    def __call__(self, proceed: Proceed) -> flask.Response:
        """Answer the request. Its line is written when the body that `metered` returns is closed."""
        request = current_request()
        line = _Line(request, self._client(request))
        upgrade = request.environ.get(UPGRADE)
        if upgrade is not None:
            request.environ[UPGRADE] = functools.partial(line.hand_over, upgrade)
        try:
            response = proceed()
        except BaseException:
            line.write(aborted=True)
            raise
        line.status = response.status_code
        request.environ[LINE] = line
        return response

    def _client(self, request: flask.Request) -> str | None:
        forwarded = request.headers.get("X-Forwarded-For", "") if self._trusted_proxies else ""
        if not forwarded:
            return request.remote_addr
        return believed_addresses(request.remote_addr, forwarded, self._trusted_proxies).partition(",")[0]


def metered(environ: WSGIEnvironment, body: Iterable[bytes]) -> Iterable[bytes]:
    """`body`, which writes the line of its request when it is closed, however far it has come.

    This sits outside the response, since the request's context is gone and the response's class may be anyone's.
    """
    line: _Line | None = environ.get(LINE)
    if line is None:
        return body
    if body is HANDLED:
        # The worker knows it by what it is, and nothing more comes of this request.
        line.write(aborted=False)
        return body
    return _Metered(body, line)


class _Line:
    """What is known when a request begins, and what becomes known later."""

    __slots__ = ("_fields", "_level", "_started", "bytes_sent", "status")

    def __init__(self, request: flask.Request, client: str | None) -> None:
        self._started = time.perf_counter()
        self.status: int | None = None
        self.bytes_sent = 0
        rule, scratch = request.url_rule, current_scratch()
        trace = scratch.get("trace")
        self._level = "debug" if request.blueprint == QUIET_BLUEPRINT else "info"
        self._fields: dict[str, Any] = {
            "event": "request",
            "method": request.method,
            "route": None if rule is None else rule.rule,
            "path": request.path,
            "client": client,
            "request_id": scratch.get("request_id"),
            "trace_id": None if trace is None else trace.trace_id,
        }

    def hand_over(self, upgrade: Callable[..., Any], *arguments: Any) -> Any:
        """Have the worker hand the connection over, and note what it is called from then on."""
        connection = upgrade(*arguments)
        self._fields["connection"] = connection.id
        return connection

    def write(self, *, aborted: bool) -> None:
        fields = self._fields
        fields["status"] = self.status
        fields["latency_ms"] = round((time.perf_counter() - self._started) * 1000, 3)
        fields["bytes"] = self.bytes_sent
        if aborted:
            fields["aborted"] = True
        logs.emit(self._level, fields)


class _Metered:
    """Counts a chunk when the next one is asked for: only then has the server handed it to the network."""

    __slots__ = ("_body", "_complete", "_line")

    def __init__(self, body: Iterable[bytes], line: _Line) -> None:
        self._body = body
        self._line: _Line | None = line
        self._complete = False

    def __iter__(self) -> Iterator[bytes]:
        line = self._line
        for chunk in self._body:
            yield chunk
            if line is not None:
                line.bytes_sent += len(chunk)
        self._complete = True

    def close(self) -> None:
        line, self._line = self._line, None
        close: Callable[[], None] | None = getattr(self._body, "close", None)
        try:
            if close is not None:
                close()
        finally:
            if line is not None:
                line.write(aborted=not self._complete)
