"""The same application under the stock gevent worker and under the parking worker, side by side.

with both_workers("--keep-alive", "5") as sides:
    assert b"pong" == sides.same(lambda server: server.get("/")[2])
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest

from tests.support.longconn_server import GunicornServer, Reply, certificate, gunicorn_server

__all__ = ["PARKING", "STOCK", "WORKERS", "Sides", "both_workers", "comparable", "exchange", "outline"]

T = TypeVar("T")

STOCK = "gevent"
PARKING = "longconn.worker.ParkingWorker"
WORKERS = (pytest.param(STOCK, marks=pytest.mark.prove), PARKING)
"""For tests that say what both do: that the stock worker still does it is left to the long proofs."""

OBJECTS = {"wsgi.input", "wsgi.errors", "wsgi.early_hints", "gunicorn.socket"}
"""Keys of an environ for which the parking worker has objects of its own, which do the same."""

NUMBERS = {"REMOTE_PORT", "SERVER_PORT"}
"""Keys of an environ whose values differ from one connection and server to the next."""

Outline = tuple[str, int, str, tuple[tuple[str, str], ...], bytes]


@dataclass(frozen=True, slots=True)
class Sides:
    """Two servers that differ in their worker class alone."""

    stock: GunicornServer
    parking: GunicornServer

    def same(self, ask: Callable[[GunicornServer], T]) -> T:
        """What both answer. Fails when they differ."""
        expected, actual = ask(self.stock), ask(self.parking)
        assert expected == actual, f"\nstock:   {expected!r}\nparking: {actual!r}"
        return actual


@contextlib.contextmanager
def both_workers(*arguments: str, stock: Sequence[str] = (), **options: Any) -> Iterator[Sides]:
    """Both servers with the same arguments; those of `stock` are for the stock worker alone."""
    if options.get("tls"):
        certificate()  # once, before both want it
    with contextlib.ExitStack() as running:
        with ThreadPoolExecutor(2) as starting:
            first = starting.submit(running.enter_context, gunicorn_server(*arguments, *stock, worker=STOCK, **options))
            second = starting.submit(running.enter_context, gunicorn_server(*arguments, worker=PARKING, **options))
        yield Sides(first.result(), second.result())


def exchange(server: GunicornServer, data: bytes, *, source: str = "127.0.0.1") -> bytes:
    """Everything that a server sends to a client which sends `data` and nothing after it, dates made equal."""
    with server.client(10.0, source) as client:
        client.send(data)
        client.finish()
        return _undated(client.rest())


def comparable(environ: dict[str, Any]) -> dict[str, Any]:
    """An environ without what may differ between connections, servers and the two workers."""
    assert all(environ[key] for key in OBJECTS)
    ours = {key for key in environ if key.startswith("longconn.")}
    return {key: value for key, value in environ.items() if key not in OBJECTS | NUMBERS | ours}


def outline(reply: Reply) -> Outline:
    """A response without its date, to compare it with another."""
    fields = tuple((name, value) for name, value in reply.headers.items() if name.lower() != "date")
    return reply.protocol, reply.status, reply.reason, fields, reply.body


def _undated(data: bytes) -> bytes:
    return re.sub(rb"\r\nDate: [^\r]+", b"\r\nDate: ...", data)
