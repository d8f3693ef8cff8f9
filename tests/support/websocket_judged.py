"""Flask applications whose WebSockets strangers judge and attack.

`application` is as it comes: / echoes, compressing nothing. `generous` takes what the largest Autobahn cases send, and
compresses whatever it can. Neither pings: an Autobahn case that takes longer than a heartbeat counts one as an answer that it
did not expect. `strict` has small limits:

/count                 answers with the length of each message
/silent                takes messages and says nothing
/flood                 sends messages of 1,000 bytes for as long as the client is connected
/waiting               how many clients /flood talks to (HTTP)
/pong                  "pong" (HTTP)
"""

from __future__ import annotations

import gevent
from flask import Flask

from longconn import ConnectionClosed, WebSockets
from longconn.websocket.connection import WebSocketConnection

__all__ = ["BYTES", "FRAGMENTS", "QUEUE", "application", "generous", "strict"]

BYTES = 65_536
"""What a message to `strict` may have."""
FRAGMENTS = 64
"""Frames that it may come in."""
QUEUE = 65_536
"""Bytes that `strict` keeps for a client."""


class Echo:
    """Sends everything back."""

    def message(self, conn: WebSocketConnection, data: str | bytes) -> None:
        """Send it back."""
        conn.send(data)


class Count:
    """Says how long messages are."""

    def message(self, conn: WebSocketConnection, data: str | bytes) -> None:
        """Say it."""
        conn.send(str(len(data)))


class Silent:
    """Listens."""

    def message(self, conn: WebSocketConnection, data: str | bytes) -> None:
        """Say nothing."""


class Flood:
    """Talks, as long as it is allowed to."""

    listeners = 0

    def message(self, conn: WebSocketConnection, data: str | bytes) -> None:
        """Send until it is over, and let others have their turn."""
        Flood.listeners += 1
        try:
            while True:
                conn.send("x" * 1_000)
                gevent.sleep(0)
        except ConnectionClosed:
            Flood.listeners -= 1


application = Flask("application")
WebSockets(application, ping_interval=0).endpoint("/")(Echo)

generous = Flask("generous")
WebSockets(
    generous,
    message_bytes=16 << 20,
    queue_bytes=64 << 20,
    fragments=100_000,
    compression=True,
    compression_from=0,
    ping_interval=0,
).endpoint("/")(Echo)

strict = Flask("strict")
_sockets = WebSockets(strict, message_bytes=BYTES, fragments=FRAGMENTS, queue_bytes=QUEUE, compression=True)
_sockets.endpoint("/count")(Count)
_sockets.endpoint("/silent")(Silent)
_sockets.endpoint("/flood")(Flood)


@strict.get("/waiting")
def waiting() -> str:
    """How many are being talked to."""
    return str(Flood.listeners)


@strict.get("/pong")
def pong() -> str:
    """Say pong."""
    return "pong"
