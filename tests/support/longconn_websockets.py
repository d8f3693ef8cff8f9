"""An application of WebSockets that do what their clients ask for, without a framework.

/ws?name=&options=&user=&expires=   opens one. `options` is JSON of `WebSocketOptions`, `user` who it is, `expires` in how many
                       seconds the authorization ends; ?compress=1 agrees on permessage-deflate; ?open= is what `open` does
/connections           JSON: [user, path, host, queued, channels] of every live connection
/kick?user=&code=      sends those of a user away
/send?user=&text=&times=&from=thread   sends a text, so many times over, to those of a user, from this request or a thread
/push?bytes=&times=    sends so many messages to all of them, through the endpoint's wire
/figures               JSON: this worker's row of the scoreboard
/memory                bytes of the process that are its own
anything else          "pong"

A client's message is echoed unless it is a text of one of these:

large <bytes>          send so much of the pattern
many <count> <bytes>   send so many messages
close <code> <reason>  close
sleep <seconds>        block, then say so
raise                  raise an error
ping                   send a ping

What the handlers are called for is a line of the file that the environment names as EVENTS: "<name> <what>".
"""

from __future__ import annotations

import gc
import json
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from time import time
from typing import Any
from urllib.parse import parse_qs

import gevent

from longconn import HANDLED, scoreboard
from longconn.channels.ports import Message, Position
from longconn.core.deflate import negotiate
from longconn.core.handshake import HandshakeRefused, accept, head
from longconn.identity import Identity
from longconn.upgraded import upgraded_connections
from longconn.websocket.connection import WebSocketConnection
from longconn.websocket.endpoint import WebSocketEndpoint
from longconn.websocket.options import WebSocketOptions
from longconn.worker import BOARD
from tests.support.longconn_app import pattern
from tests.support.longconn_endpoints import note

__all__ = ["application"]

Environ = dict[str, Any]
Start = Callable[..., Callable[[bytes], object]]


class Obedient:
    """Handlers that do what their client asks for."""

    def open(self, conn: WebSocketConnection) -> None:
        """Note it, and do what the URL says."""
        note(_name(conn), "open")
        if conn.arguments["open"]:
            self.message(conn, conn.arguments["open"])

    def message(self, conn: WebSocketConnection, data: str | bytes) -> None:
        """Carry out a command, or send it back."""
        command, _, rest = data.partition(" ") if isinstance(data, str) else ("", "", "")
        match command:
            case "large":
                conn.send(pattern(int(rest)))
            case "many":
                count, size = map(int, rest.split())
                for _ in range(count):
                    conn.send("x" * size)
            case "close":
                code, _, reason = rest.partition(" ")
                conn.close(int(code), reason)
            case "sleep":
                gevent.sleep(float(rest))
                note(_name(conn), "slept")
                conn.send("slept")
            case "raise":
                raise RuntimeError("asked for")
            case "ping":
                conn.ping()
            case _:
                conn.send(data)

    def close(self, conn: WebSocketConnection, code: int, reason: str) -> None:
        """Note it; for a name that begins with slow, after a while."""
        if _name(conn).startswith("slow"):
            gevent.sleep(0.5)
        note(_name(conn), f"close {code} {reason}".rstrip())

    def drained(self, conn: WebSocketConnection) -> None:
        """Note it."""
        note(_name(conn), "drained")


def _name(conn: WebSocketConnection) -> str:
    return str(conn.arguments["name"])


_handlers = Obedient()
_endpoints: dict[str, WebSocketEndpoint] = {}


def application(environ: Environ, start_response: Start) -> Iterable[bytes]:
    """Answer by the table at the top of this module."""
    one = {name: values[0] for name, values in parse_qs(environ["QUERY_STRING"]).items()}
    match environ["PATH_INFO"]:
        case "/ws":
            return _open(environ, start_response, one)
        case "/connections":
            body = json.dumps([[c.user, c.path, c.host, c.queued, c.channels] for c in upgraded_connections()])
        case "/kick":
            for conn in _of(one["user"]):
                conn.kick(int(one["code"]), "kicked")
            body = "kicked"
        case "/send":
            body = _send(one)
        case "/push":
            body = _push(int(one["bytes"]), int(one.get("times", "1")))
        case "/figures":
            row = next(row for row in BOARD.rows() if row.pid == os.getpid())
            body = json.dumps(dict(zip(scoreboard.FIELDS, row.values, strict=False)))
        case "/memory":
            gc.collect()
            found = re.findall(r"^Private_\w+: +(\d+) kB", Path("/proc/self/smaps_rollup").read_text(), re.MULTILINE)
            body = str(sum(map(int, found)) * 1024)
        case _:
            body = "pong"
    return _answer(start_response, "200 OK", body)


def _answer(start_response: Start, status: str, body: str, fields: Iterable[tuple[str, str]] = ()) -> list[bytes]:
    start_response(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(body.encode()))), *fields])
    return [body.encode()]


def _open(environ: Environ, start_response: Start, one: dict[str, str]) -> Iterable[bytes]:
    try:
        handshake = accept(environ)
    except HandshakeRefused as refusal:
        return _answer(start_response, f"{refusal.status} Refused", refusal.message, refusal.fields)
    text = one.get("options", "{}")
    if text not in _endpoints:
        _endpoints[text] = WebSocketEndpoint(_handlers, WebSocketOptions.of(json.loads(text)))
    endpoint = _endpoints[text]
    deflation = negotiate(handshake.extensions) if endpoint.options.compression else None
    extensions = "" if deflation is None else deflation.response
    identity = None
    if "user" in one:
        expires = time() + float(one["expires"]) if "expires" in one else None
        identity = Identity(one["user"], expires_at=expires)
    connection = environ["longconn.upgrade"](endpoint, head(handshake, extensions=extensions))
    endpoint.begin(
        connection,
        identity=identity,
        arguments={"name": one.get("name", "nobody"), "open": one.get("open", "")},
        path=environ["PATH_INFO"],
        deflation=deflation,
    )
    return HANDLED


def _of(user: str) -> list[Any]:
    return [conn for conn in upgraded_connections() if conn.user == user]


def _send(one: dict[str, str]) -> str:
    def send_all() -> None:
        for conn in _of(one["user"]):
            conn.send(one["text"] * int(one.get("times", "1")))

    if one.get("from") == "thread":
        gevent.get_hub().threadpool.apply(send_all)
    else:
        send_all()
    return "sent"


def _push(size: int, times: int) -> str:
    connections = upgraded_connections()
    for number in range(times):
        message = Message("all", Position(1, number + 1), "x" * size)
        for endpoint in {conn.endpoint for conn in connections}:
            ours = [conn for conn in connections if conn.endpoint is endpoint]
            index = 0
            while index < len(ours):
                index = endpoint.wire.write(ours, index, endpoint.wire.encode(message), message, float("inf"))
    return str(len(connections))
