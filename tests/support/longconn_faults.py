"""A WSGI application that does to its server what no application should. What it does not know, `longconn_app` answers.

Every route takes its parameters from the query string:

/secret           closes the socket it was lent, answers "SECRET" after ?seconds=
/twin             keeps a duplicate of the socket it was lent, closes that one, and says it has answered
/wait             reads the body of the request, then answers with what the lent socket gives next, up to 5 bytes
/keep             keeps the socket it was lent
/use              JSON: what came of using the socket that was kept: the name of an error, or "worked"
/short            announces 10 bytes and answers 3
/switch           answers 101 by start_response
/upgrade          hands its connection over and returns a response that wants to be closed
/closed           JSON: the responses that have been closed
/table            JSON: the connections of this worker: how many it counts, and the state of each in its table
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import parse_qsl

import gevent

from longconn import Endpoint, UpgradedConnection
from longconn.core.states import State
from tests.support.longconn_app import application as well_behaved

__all__ = ["SECRET", "application"]

Environ = dict[str, Any]
Start = Callable[..., Callable[[bytes], object]]
Query = dict[str, str]

SECRET = b"SECRET"
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n"

_kept: list[Any] = []
_closed: list[str] = []


class _Silent(Endpoint):
    """Reads until its client leaves."""

    def readable(self, connection: UpgradedConnection) -> None:
        while data := connection.receive():
            connection.transmit(data)
        if data == b"":
            connection.close("client")


class _Noticed:
    """A response that takes down that it was closed."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __iter__(self) -> Iterator[bytes]:
        return iter([b"not looked at"])

    def close(self) -> None:
        _closed.append(self._name)


_silent = _Silent()


def application(environ: Environ, start: Start) -> Iterable[bytes]:
    """The WSGI application."""
    query = dict(parse_qsl(environ["QUERY_STRING"]))
    route = _routes.get(environ["PATH_INFO"])
    return well_behaved(environ, start) if route is None else route(environ, start, query)


def _answer(start: Start, body: bytes, *, length: int | None = None) -> list[bytes]:
    start("200 OK", [("Content-Length", str(len(body) if length is None else length))])
    return [body]


def _secret(environ: Environ, start: Start, query: Query) -> Iterable[bytes]:
    environ["gunicorn.socket"].close()
    gevent.sleep(float(query["seconds"]))
    return _answer(start, SECRET)


def _twin(environ: Environ, start: Start, query: Query) -> Iterable[bytes]:
    lent = environ["gunicorn.socket"]
    _kept.append(lent.dup())
    lent.close()
    raise StopIteration


def _wait(environ: Environ, start: Start, query: Query) -> Iterable[bytes]:
    lent = environ["gunicorn.socket"]
    lent.getpeername()
    environ["wsgi.input"].read()
    return _answer(start, lent.recv(5))


def _keep(environ: Environ, start: Start, query: Query) -> Iterable[bytes]:
    lent = environ["gunicorn.socket"]
    lent.getpeername()
    _kept.append(lent)
    return _answer(start, b"kept")


def _use(environ: Environ, start: Start, query: Query) -> Iterable[bytes]:
    lent = _kept.pop()
    uses: dict[str, Callable[[], object]] = {
        "send": lambda: lent.sendall(b"STRAY"),
        "shutdown": lambda: lent.shutdown(2),
        "close": lambda: lent.close(),
    }
    return _answer(start, json.dumps({name: _outcome(use) for name, use in uses.items()}).encode())


def _outcome(use: Callable[[], object]) -> str:
    try:
        use()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, repr(error))
    return "worked"


def _short(environ: Environ, start: Start, query: Query) -> Iterable[bytes]:
    return _answer(start, b"abc", length=10)


def _switch(environ: Environ, start: Start, query: Query) -> Iterable[bytes]:
    start("101 Switching Protocols", [("Connection", "Upgrade"), ("Upgrade", "websocket")])
    return []


def _upgrade(environ: Environ, start: Start, query: Query) -> Iterable[bytes]:
    environ["longconn.upgrade"](_silent, SWITCHED)
    return _Noticed(query["name"])


def _all_closed(environ: Environ, start: Start, query: Query) -> Iterable[bytes]:
    return _answer(start, json.dumps(_closed).encode())


def _table(environ: Environ, start: Start, query: Query) -> Iterable[bytes]:
    lot = environ["longconn.upgrade"].__self__.connection.lot
    found = {"live": lot.live, "states": [State(one.state).name for one in lot.connections()]}
    return _answer(start, json.dumps(found).encode())


_routes: dict[str, Callable[[Environ, Start, Query], Iterable[bytes]]] = {
    "/secret": _secret,
    "/twin": _twin,
    "/wait": _wait,
    "/keep": _keep,
    "/use": _use,
    "/short": _short,
    "/switch": _switch,
    "/upgrade": _upgrade,
    "/closed": _all_closed,
    "/table": _table,
}
