"""A WebSocket of a Flask application without a server: one end of a pair of sockets is the client's, and the application,
called in a thread, finds the other where werkzeug's server would put its own.

    with dialled(app, "/echo") as client:
        client.say("hello")
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

from flask import Flask

from tests.support.longconn_server import Client, Reply
from tests.support.websocket_client import WebSocketClient

__all__ = ["ASKED", "Dialled", "dialled"]

ASKED = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version": "13",
}
"""The fields of a handshake."""


class Dialled(WebSocketClient):
    """A client that knows how its handshake was answered."""

    def __init__(self, sock: socket.socket, early: bytes, head: Reply) -> None:
        super().__init__(sock, early)
        self.head = head


@contextlib.contextmanager
def dialled(app: Flask, target: str, *, timeout: float = 10.0, **fields: str) -> Iterator[Dialled]:
    """Open one. `fields` are added to the handshake, `_` in a name standing for `-`. The head of the answer is `client.head`.

    When the block ends the client leaves, and the application has come to its end.
    """
    ours, theirs = socket.socketpair()
    ours.settimeout(timeout)
    headers = {**ASKED, **{name.replace("_", "-"): value for name, value in fields.items()}}

    def call() -> None:
        with theirs:
            app.test_client().get(
                target,
                headers=headers,
                environ_overrides={"werkzeug.socket": theirs, "REMOTE_ADDR": "192.0.2.1", "REMOTE_PORT": "40000"},
            )

    thread = threading.Thread(target=call, name=f"an application's {target}", daemon=True)
    thread.start()
    try:
        reader = Client(ours)
        reply = reader.response()
        assert 101 == reply.status
        client = Dialled(ours, reader.buffer, reply)
        with client:
            yield client
    finally:
        ours.close()
        thread.join(10.0)
        assert not thread.is_alive(), "the application does not come to its end"
