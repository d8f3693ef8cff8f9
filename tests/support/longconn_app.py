"""A WSGI application that shows what its server does. Plain WSGI, with the same essentials through Flask below /flask.

Every route takes its parameters from the query string:

/                 "pong"
/echo             JSON: method, path, query, headers, and the body's length and SHA-256
/body             the same, the body read as ?how= says: read, sized, lines, line, partly, not
/slow             ?seconds= later, "slow"; ?status=
/block            the whole process sleeps for ?seconds=, its loop too
/stream           a generator of ?chunks= times ?size= bytes, ?gap= seconds between; ?length=1 announces the length
/large            ?bytes= bytes in one piece
/file             `wsgi.file_wrapper` of ?path= from ?offset=; ?length= is announced; ?wrapped=buffer hides the descriptor
/hints            ?count= early hints, then "hinted"
/context          JSON: what the last request of this context left in a ContextVar
/pid              JSON: the worker's and the master's process ids
/environ          JSON: every key of the environ with its value, or its type where JSON has none
/raise            raises ?error= (RuntimeError, SystemExit, ...) when called, or after ?after= chunks; ?length= as announced;
                  ?after=0&closing=1: only when it is closed
/close            answers with "Connection: close"
/expect           reads the body when ?read=1 (else it does not), "expected <length>"
/status           answers ?code= with the body ?body=
/respond          answers with the fields of the query, each one a header
/write            by the `write` callable: ?chunks= times ?size=
/wrong            returns what no application may: ?what=
/tracked          a stream as /stream; that it was closed can be read at /events; ?name=
/events           JSON: what happened to the tracked streams of this process
/errors           writes ?text= to `wsgi.errors`
/restart          calls start_response again, with exc_info, before the first byte or after it (?late=1)
/socket           JSON: both ends of the connection, as `gunicorn.socket` has them
/take             answers 101 through `gunicorn.socket` and echoes what comes until "bye", as WebSocket libraries do
"""

from __future__ import annotations

import contextvars
import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import flask
import gevent
from gevent import monkey

__all__ = ["application", "flask_app", "pattern"]

Environ = dict[str, Any]
Start = Callable[..., Callable[[bytes], object]]
Query = dict[str, str]
Route = Callable[[Environ, Start, Query], Iterable[bytes]]

PERIOD = bytes(range(256)) + b"Seawall"
"""Repeats after a prime number of bytes, so that a piece that is out of place shows."""

_left: contextvars.ContextVar[str] = contextvars.ContextVar("left", default="nothing")
_events: dict[str, list[str]] = {}
_routes: dict[str, Route] = {}


def pattern(length: int, offset: int = 0) -> bytes:
    """The bytes that this application sends wherever it has to send `length` bytes, from the byte `offset` on."""
    start = offset % len(PERIOD)
    return (PERIOD * (length // len(PERIOD) + 2))[start : start + length]


def application(environ: Environ, start_response: Start) -> Iterable[bytes]:
    """Answer by the table at the top of this module; 404 for anything else."""
    path = environ["PATH_INFO"]
    if path.startswith("/flask/"):
        return flask_app(environ, start_response)
    query = dict(parse_qsl(environ["QUERY_STRING"], keep_blank_values=True))
    return _routes.get(path, _missing)(environ, start_response, query)


def _route(path: str) -> Callable[[Route], Route]:
    def add(route: Route) -> Route:
        _routes[path] = route
        return route

    return add


def _answer(start: Start, body: bytes, status: str = "200 OK", *fields: tuple[str, str]) -> list[bytes]:
    start(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(body))), *fields])
    return [body]


def _json(start: Start, value: object) -> list[bytes]:
    body = json.dumps(value).encode()
    start("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


def _headers(environ: Environ) -> dict[str, str]:
    return {key[5:].replace("_", "-").title(): value for key, value in environ.items() if key.startswith("HTTP_")}


def _request(environ: Environ, body: bytes) -> dict[str, object]:
    return {
        "method": environ["REQUEST_METHOD"],
        "path": environ["PATH_INFO"],
        "query": environ["QUERY_STRING"],
        "protocol": environ["SERVER_PROTOCOL"],
        "headers": _headers(environ),
        "content_type": environ.get("CONTENT_TYPE"),
        "content_length": environ.get("CONTENT_LENGTH"),
        "length": len(body),
        "sha256": hashlib.sha256(body).hexdigest(),
    }


def _missing(environ: Environ, start: Start, query: Query) -> Iterable[bytes]:
    return _answer(start, b"not here", "404 Not Found")


@_route("/")
def _pong(environ: Environ, start: Start, query: Query) -> Iterable[bytes]:
    return _answer(start, b"pong")


@_route("/echo")
def _echo(environ: Environ, start: Start, query: Query) -> Iterable[bytes]:
    return _json(start, _request(environ, environ["wsgi.input"].read()))


READERS: dict[str, Callable[[Any], bytes]] = {
    "read": lambda stream: bytes(stream.read()),
    "sized": lambda stream: b"".join(iter(lambda: stream.read(7), b"")),
    "lines": lambda stream: b"".join(stream.readlines()),
    "line": lambda stream: b"".join(iter(lambda: stream.readline(5), b"")),
    "each": b"".join,
    "partly": lambda stream: bytes(stream.read(3)),
    "not": lambda stream: b"",
}


@_route("/body")
def _body(environ: Environ, start: Start, query: Query) -> Iterable[bytes]:
    return _json(start, _request(environ, READERS[query.get("how", "read")](environ["wsgi.input"])))


@_route("/slow")
def _slow(environ: Environ, start: Start, query: Query) -> Iterable[bytes]:
    time.sleep(float(query.get("seconds", "0.1")))
    return _answer(start, b"slow", query.get("status", "200 OK"))


@_route("/block")
def _block(environ: Environ, start: Start, query: Query) -> Iterable[bytes]:
    monkey.get_original("time", "sleep")(float(query.get("seconds", "0.1")))
    return _answer(start, b"blocked")


def _pieces(query: Query) -> tuple[int, int, float]:
    return int(query.get("chunks", "3")), int(query.get("size", "10")), float(query.get("gap", "0"))


def _start_stream(start: Start, query: Query) -> Callable[[bytes], object]:
    chunks, size, _ = _pieces(query)
    fields = [("Content-Type", "application/octet-stream")]
    if query.get("length"):
        fields.append(("Content-Length", str(chunks * size)))
    return start(query.get("status", "200 OK"), fields)


def _chunks(query: Query) -> Iterator[bytes]:
    chunks, size, gap = _pieces(query)
    for number in range(chunks):
        if number and gap:
            time.sleep(gap)
        yield pattern(size, number * size)


@_route("/stream")
def _stream(environ: Environ, start: Start, query: Query) -> Iterable[bytes]:
    _start_stream(start, query)
    return _chunks(query)


@_route("/large")
def _large(environ: Environ, start: Start, query: Query) -> Iterable[bytes]:
    return _answer(start, pattern(int(query.get("bytes", "1000000"))))


@_route("/file")
def _file(environ: Environ, start: Start, query: Query) -> Iterable[bytes]:
    file = Path(query.get("path", __file__)).open("rb")  # noqa: SIM115 - the server closes it
    file.seek(int(query.get("offset", "0")))
    fields = [("Content-Type", "application/octet-stream")]
    if "length" in query:
        fields.append(("Content-Length", query["length"]))
    start("200 OK", fields)
    source: Any = io.BytesIO(file.read()) if query.get("wrapped") == "buffer" else file
    if source is not file:
        file.close()
    wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](source, 4096)
    return wrapped


@_route("/hints")
def _hints(environ: Environ, start: Start, query: Query) -> Iterable[bytes]:
    for number in range(int(query.get("count", "1"))):
        environ["wsgi.early_hints"]([("Link", f"</style-{number}.css>; rel=preload"), ("X-Hint", str(number))])
    return _answer(start, b"hinted")


@_route("/context")
def _context(environ: Environ, start: Start, query: Query) -> Iterable[bytes]:
    found = _left.get()
    _left.set(query.get("value", "something"))
    return _json(start, {"left": found, "pid": os.getpid()})


@_route("/pid")
def _pid(environ: Environ, start: Start, query: Query) -> Iterable[bytes]:
    return _json(start, {"pid": os.getpid(), "parent": os.getppid()})


@_route("/environ")
def _environ(environ: Environ, start: Start, query: Query) -> Iterable[bytes]:
    def shown(value: object) -> object:
        plain = isinstance(value, (str, int, bool, float, tuple)) or value is None
        return value if plain else f"{type(value).__module__}.{type(value).__qualname__}"

    return _json(start, {key: shown(value) for key, value in environ.items()})


class Unusual(BaseException):
    """Nothing that anybody would think of catching."""


ERRORS: dict[str, type[BaseException]] = {
    each.__name__: each
    for each in (
        *(RuntimeError, OSError, BrokenPipeError, StopIteration, GeneratorExit, SystemExit, KeyboardInterrupt),
        *(TimeoutError, Unusual),
    )
}
ERRORS["gevent.Timeout"] = gevent.Timeout


class _Failing:
    """One chunk that cannot be closed."""

    def __init__(self, chunk: bytes) -> None:
        self._chunks = iter([chunk])

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks

    def close(self) -> None:
        raise RuntimeError("raised when it was closed")


@_route("/raise")
def _raise(environ: Environ, start: Start, query: Query) -> Iterable[bytes]:
    error = ERRORS[query.get("error", "RuntimeError")]
    if "after" not in query:
        raise error("raised before the first byte")
    length = [("Content-Length", query["length"])] if "length" in query else []
    start("200 OK", [("Content-Type", "text/plain"), *length])

    def broken() -> Iterator[bytes]:
        for _ in range(int(query["after"])):
            yield b"chunk"
        raise error("raised after some bytes")

    if query.get("closing"):
        return _Failing(pattern(10))
    return broken()


@_route("/close")
def _close(environ: Environ, start: Start, query: Query) -> Iterable[bytes]:
    return _answer(start, b"closing", "200 OK", ("Connection", "close"))


@_route("/expect")
def _expect(environ: Environ, start: Start, query: Query) -> Iterable[bytes]:
    length = len(environ["wsgi.input"].read()) if query.get("read", "1") == "1" else 0
    return _answer(start, f"expected {length}".encode())


@_route("/status")
def _status(environ: Environ, start: Start, query: Query) -> Iterable[bytes]:
    body = query.get("body", "").encode()
    fields = [("Content-Length", str(len(body)))] if query.get("length", "1") == "1" else []
    start(query.get("code", "200 OK"), fields)
    return [body]


@_route("/respond")
def _respond(environ: Environ, start: Start, query: Query) -> Iterable[bytes]:
    start("200 OK", parse_qsl(environ["QUERY_STRING"], keep_blank_values=True))
    return [b"responded"]


@_route("/write")
def _write(environ: Environ, start: Start, query: Query) -> Iterable[bytes]:
    write = _start_stream(start, query)
    for chunk in _chunks(query):
        write(chunk)
    return []


@_route("/wrong")
def _wrong(environ: Environ, start: Start, query: Query) -> Iterable[bytes]:
    what = query["what"]
    statuses: dict[str, Any] = {"status bytes": b"200 OK", "status number": 200, "status short": "20 OK"}
    statuses |= {"status long": "2000 OK", "status lines": "200 OK\r\nX-Two: two", "status empty": ""}
    fields: dict[str, Any] = {
        "name bytes": [(b"X-Name", "value")],
        "value bytes": [("X-Name", b"value")],
        "value number": [("X-Name", 1)],
        "name space": [("X Name", "value")],
        "value lines": [("X-Name", "one\r\nX-Two: two")],
        "length text": [("Content-Length", "many")],
        "length empty": [("Content-Length", "")],
        "two lengths": [("Content-Length", "4"), ("Content-Length", "4")],
        "field of three": [("X-Name", "value", "more")],
        "field of letters": ["ab"],
    }
    bodies: dict[str, Any] = {
        "none": None,
        "number": 5,
        "text": "text",
        "bytes": b"bytes",
        "list of text": ["text"],
        "list of none": [None],
        "list of numbers": [1],
        "bytearray": [bytearray(b"bytes")],
        "memoryview": [memoryview(b"bytes")],
    }
    if what == "never started":
        return [b"body"]
    start(statuses.get(what, "200 OK"), fields.get(what, []))
    if what == "started twice":
        start("200 OK", [])
    body: Iterable[bytes] = bodies.get(what, [b"body"])
    return body


class _Tracked:
    """A stream that says in `_events` when it was closed, and how far it had come."""

    def __init__(self, name: str, chunks: Iterator[bytes]) -> None:
        self._events = _events.setdefault(name, [])
        self._chunks = chunks
        self._sent = 0

    def __iter__(self) -> _Tracked:
        return self

    def __next__(self) -> bytes:
        chunk = next(self._chunks)
        self._sent += 1
        return chunk

    def close(self) -> None:
        self._events.append(f"closed after {self._sent}")


@_route("/tracked")
def _tracked(environ: Environ, start: Start, query: Query) -> Iterable[bytes]:
    _start_stream(start, query)
    return _Tracked(query.get("name", ""), _chunks(query))


@_route("/events")
def _all_events(environ: Environ, start: Start, query: Query) -> Iterable[bytes]:
    return _json(start, _events)


@_route("/errors")
def _errors(environ: Environ, start: Start, query: Query) -> Iterable[bytes]:
    environ["wsgi.errors"].write(query["text"] + "\n")
    environ["wsgi.errors"].flush()
    return _answer(start, b"written")


@_route("/restart")
def _restart(environ: Environ, start: Start, query: Query) -> Iterable[bytes]:
    write = start("200 OK", [("Content-Type", "text/plain"), ("X-First", "1")])
    if query.get("late"):
        write(b"begun")
    error = RuntimeError("a reason to start again")
    start("503 Service Unavailable", [("Content-Length", "4"), ("X-Second", "2")], (type(error), error, None))
    return [b"sorry"]


@_route("/socket")
def _socket(environ: Environ, start: Start, query: Query) -> Iterable[bytes]:
    sock = environ["gunicorn.socket"]
    return _json(start, {"peer": sock.getpeername(), "name": sock.getsockname(), "timeout": sock.gettimeout()})


@_route("/take")
def _take(environ: Environ, start: Start, query: Query) -> Iterable[bytes]:
    sock = environ["gunicorn.socket"]
    sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
    while (data := sock.recv(4096)) not in (b"", b"bye"):
        sock.sendall(data)
    raise StopIteration


flask_app = flask.Flask(__name__)
"""The part below /flask."""


@flask_app.get("/flask/")
def flask_pong() -> str:
    """As / is."""
    return "pong"


@flask_app.route("/flask/echo", methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
def flask_echo() -> dict[str, object]:
    """As /echo is."""
    return _request(flask.request.environ, flask.request.get_data())


@flask_app.get("/flask/slow")
def flask_slow() -> str:
    """As /slow is."""
    time.sleep(flask.request.args.get("seconds", 0.1, type=float))
    return "slow"


@flask_app.get("/flask/stream")
def flask_stream() -> flask.Response:
    """As /stream is, within the context of its request."""
    chunks: Iterator[bytes] = flask.stream_with_context(_chunks(dict(flask.request.args)))
    return flask.Response(chunks, mimetype="application/octet-stream")


@flask_app.get("/flask/context")
def flask_context() -> dict[str, object]:
    """JSON: what an earlier request left, in a ContextVar and in `flask.g`."""
    found, held = _left.get(), flask.g.get("held", "nothing")
    _left.set("something")
    flask.g.held = "something"
    return {"left": found, "held": held, "pid": os.getpid()}


@flask_app.get("/flask/raise")
def flask_raise() -> str:
    """Flask's own answer to an error: 500."""
    raise RuntimeError("raised in a view")


@flask_app.post("/flask/upload")
def flask_upload() -> dict[str, object]:
    """JSON: name, length and SHA-256 of each uploaded file."""
    files = {name: file.read() for name, file in flask.request.files.items()}
    return {name: {"length": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
