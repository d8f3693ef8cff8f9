"""A WSGI application whose answers say exactly what it was asked, so that a mix-up of connections shows.

Every path answers 200 with one line of JSON: method, uri, marker (the field X-Marker), how much of the body was read
with its SHA-256, and `context`: what the request before it left in a context variable. The first part of the path says
how:

    /whole   body read at once; one piece with a Content-Length (also for every path that is not in this list)
    /stream  body read by lines; the answer in pieces without a length
    /ignore  body not read
    /part    the first `take` bytes of the body read
    /file    body read in small pieces; the answer as a file
    /none    204
    /raise   an exception
    /socket  the options of the connection's socket

`pad=n` in the query makes the answer at least n bytes of "marker,marker," longer; `pause=seconds` waits first.
"""

from __future__ import annotations

import contextvars
import hashlib
import io
import json
import socket
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

__all__ = ["application", "padding"]

PIECE = 3000
_last: contextvars.ContextVar[str] = contextvars.ContextVar("last", default="nothing")


class Mirrored(Exception):
    """What /raise raises."""


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer as the module says."""
    how = environ["PATH_INFO"].strip("/").partition("/")[0]
    query = dict(urllib.parse.parse_qsl(environ["QUERY_STRING"]))
    context = _last.get()
    _last.set(environ.get("HTTP_X_MARKER", "somebody"))
    time.sleep(_number(query, "pause"))
    if how == "socket":
        return _answer(start_response, _options(environ["gunicorn.socket"]))
    if how == "raise":
        raise Mirrored
    if how == "none":
        _read(how, environ["wsgi.input"], query)
        start_response("204 No Content", [("X-Marker", environ.get("HTTP_X_MARKER", ""))])
        return []
    return _mirror(how, environ, query, context, start_response)


def padding(marker: str, size: int) -> bytes:
    """At least `size` bytes in which nothing but the marker occurs."""
    unit = f"{marker},".encode("latin-1")
    return unit * -(-size // len(unit))


def _mirror(
    how: str, environ: dict[str, Any], query: dict[str, str], context: str, start_response: Callable[..., Any]
) -> Iterable[bytes]:
    body = _read(how, environ["wsgi.input"], query)
    marker = environ.get("HTTP_X_MARKER", "")
    said = {
        "method": environ["REQUEST_METHOD"],
        "uri": environ["RAW_URI"],
        "marker": marker,
        "length": len(body),
        "digest": hashlib.sha256(body).hexdigest(),
        "context": context,
    }
    answer = json.dumps(said).encode() + b"\n" + padding(marker, int(_number(query, "pad")))
    if how == "stream":
        start_response("200 OK", [("Content-Type", "application/json")])
        return _pieces(answer)
    if how == "file":
        start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(answer)))])
        wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](_file(answer))
        return wrapped
    return _answer(start_response, answer)


def _answer(start_response: Callable[..., Any], answer: bytes) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(answer)))])
    return [answer]


def _number(query: dict[str, str], name: str) -> float:
    """What the query says, which a fuzzer may have garbled."""
    text = query.get(name, "0")
    return float(text) if text.replace(".", "", 1).isdecimal() and len(text) < 10 else 0.0


def _read(how: str, body: Any, query: dict[str, str]) -> bytes:
    if how == "ignore":
        return b""
    if how == "part":
        return bytes(body.read(int(_number(query, "take")) or 10))
    if how == "stream":
        return b"".join(iter(body.readline, b""))
    if how == "file":
        return b"".join(iter(lambda: body.read(7), b""))
    return bytes(body.read())


def _pieces(answer: bytes) -> Iterator[bytes]:
    for start in range(0, len(answer), PIECE):
        yield answer[start : start + PIECE]


def _file(answer: bytes) -> IO[bytes]:
    if len(answer) % 2:
        return io.BytesIO(answer)  # no descriptor: sent by write
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the server closes it
    file.write(answer)
    file.seek(0)
    return file


def _options(connection: Any) -> bytes:
    options = {
        "nodelay": (socket.IPPROTO_TCP, socket.TCP_NODELAY),
        "keepalive": (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
        "keepalive idle": (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
        "user timeout": (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
    }
    return json.dumps({name: connection.getsockopt(*option) for name, option in options.items()}).encode()
