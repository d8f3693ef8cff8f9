"""`longconn_app` with requests that do not end by themselves, and connections that are taken over.

/endless          never ends; what its `finally` does is the line "finally <?where=>" of the server's log. ?where= is
                  view       before the answer begins
                  stream     after the first piece of the answer
                  body       while the request's body is read, of which the client sends nothing
                  write      while an answer that the client does not read is sent
                  stubborn   before the answer, and it goes on when it is told to end
/raw              takes the connection over as WSGI applications do under gunicorn (`gunicorn.socket`), answers 101 and
                  sends back what it receives
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import parse_qs

from gunicorn.workers.base_async import ALREADY_HANDLED

from tests.support import longconn_app

__all__ = ["application"]

SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: raw\r\n\r\n"
PIECE = bytes(1 << 16)
LONG = 3600.0
"""Seconds; longer than any test."""


def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Answer by the table at the top of this module, or as `longconn_app` does."""
    match environ["PATH_INFO"]:
        case "/endless":
            return _endless(environ, start_response, parse_qs(environ["QUERY_STRING"])["where"][0])
        case "/raw":
            return _raw(environ)
        case _:
            return longconn_app.application(environ, start_response)


def _endless(environ: dict[str, Any], start_response: Any, where: str) -> Iterable[bytes]:
    if where in ("stream", "write"):
        start_response("200 OK", [("Content-Type", "application/octet-stream")])
        return _pieces(where)
    try:
        if where == "body":
            environ["wsgi.input"].read()
        else:
            _sleep(stubborn=where == "stubborn")
    finally:
        _say(f"finally {where}")
    start_response("200 OK", [("Content-Length", "0")])
    return []


def _pieces(where: str) -> Iterator[bytes]:
    try:
        yield PIECE[:10]
        while True:
            if where == "stream":
                _sleep(stubborn=False)
            yield PIECE
    finally:
        _say(f"finally {where}")


def _sleep(*, stubborn: bool) -> None:
    while True:
        try:
            time.sleep(LONG)
        except BaseException:
            if not stubborn:
                raise


def _raw(environ: dict[str, Any]) -> Iterable[bytes]:
    client = environ["gunicorn.socket"]
    client.sendall(SWITCHED)
    try:
        while data := client.recv(4096):
            client.sendall(data)
    finally:
        _say(f"finally raw {environ['QUERY_STRING']}")
    handled: Iterable[bytes] = ALREADY_HANDLED
    return handled


def _say(line: str) -> None:
    os.write(sys.stderr.fileno(), f"{line}\n".encode())
