"""A client of WebSockets that sees every frame. What it understands of the protocol it has from the `websockets` package, so
that the server is held to somebody else's reading of the standard.

with websocket(server, "/ws?name=a") as client:
    client.say("hello")
    assert "hello" == client.hear()
"""

from __future__ import annotations

import os
import socket
from types import TracebackType
from typing import Any

from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame, Opcode
from websockets.protocol import CLIENT, Protocol

from tests.support.longconn_server import GunicornServer, Reply

__all__ = ["HandshakeFailed", "WebSocketClient", "websocket"]

_KEY = "dGhlIHNhbXBsZSBub25jZQ=="
_FIELDS = ("Upgrade: websocket", "Connection: Upgrade", f"Sec-WebSocket-Key: {_KEY}", "Sec-WebSocket-Version: 13")


class HandshakeFailed(AssertionError):
    """The server answered something else than 101: `reply`."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(f"{reply.status} {reply.reason}: {reply.body!r}")
        self.reply = reply


class WebSocketClient:
    """One connection whose handshake is done. Nothing is answered of itself: pongs and closes are sent when a test says so."""

    def __init__(self, sock: socket.socket, early: bytes = b"", *, compressed: bool = False) -> None:
        self.socket = sock
        self.compressed = compressed
        self._protocol = Protocol(CLIENT, max_size=None)
        if compressed:
            self._protocol.extensions = [PerMessageDeflate(True, True, 15, 15)]
        self._frames: list[Frame] = []
        self._ended = False
        self._take(early)

    def __enter__(self) -> WebSocketClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    # Sending.

    def frame(self, opcode: int, payload: bytes = b"", *, fin: bool = True) -> bytes:
        """The bytes of a frame of this client."""
        return Frame(Opcode(opcode), payload, fin).serialize(mask=True, extensions=self._protocol.extensions)

    def send(self, data: bytes) -> None:
        """Send bytes."""
        self.socket.sendall(data)

    def say(self, *messages: str | bytes) -> None:
        """Send messages, all at once."""
        self.send(
            b"".join(
                self.frame(Opcode.TEXT, each.encode()) if isinstance(each, str) else self.frame(Opcode.BINARY, each)
                for each in messages
            )
        )

    def ping(self, payload: bytes = b"") -> None:
        """Send a ping."""
        self.send(self.frame(Opcode.PING, payload))

    def pong(self, payload: bytes = b"") -> None:
        """Send a pong."""
        self.send(self.frame(Opcode.PONG, payload))

    def say_goodbye(self, code: int = 1000, reason: str = "") -> None:
        """Send a close."""
        self.send(self.frame(Opcode.CLOSE, code.to_bytes(2, "big") + reason.encode()))

    # Hearing.

    def next_frame(self) -> Frame | None:
        """The next frame; None when the connection has ended instead. Raises `TimeoutError`."""
        while not self._frames and not self._ended:
            try:
                data = self.socket.recv(1 << 18)
            except ConnectionResetError:
                data = b""
            if not data:
                self._ended = True
            self._take(data)
        return self._frames.pop(0) if self._frames else None

    def _take(self, data: bytes) -> None:
        if data:
            self._protocol.receive_data(data)
            self._frames += [each for each in self._protocol.events_received() if isinstance(each, Frame)]
            self._protocol.data_to_send()  # what the package would answer

    def hear(self) -> Any:
        """The next message: a str or bytes; ("ping" or "pong", payload); ("close", code, reason); None at the end."""
        frame = self.next_frame()
        if frame is None:
            return None
        data = bytes(frame.data)
        match frame.opcode:
            case Opcode.TEXT:
                return data.decode()
            case Opcode.BINARY:
                return data
            case Opcode.CLOSE:
                return ("close", int.from_bytes(data[:2], "big"), data[2:].decode()) if data else ("close", 1005, "")
        return (frame.opcode.name.lower(), data)

    def rest(self) -> list[Any]:
        """All that comes until the end."""
        heard = []
        while (one := self.hear()) is not None:
            heard.append(one)
        return heard


def websocket(
    server: GunicornServer,
    target: str = "/ws",
    *fields: str,
    timeout: float = 10.0,
    compress: bool = False,
    buffer: int = 0,
    source: str = "127.0.0.1",
) -> WebSocketClient:
    """Open one. `buffer`: how little the kernel takes in before this side reads. Raises `HandshakeFailed`."""
    if buffer:
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        raw.settimeout(timeout)
        raw.connect((server.host, server.port))
        client = _client_of(raw)
    else:
        client = server.client(timeout, source)
    if compress:
        fields = ("Sec-WebSocket-Extensions: permessage-deflate", *fields)
    reply = client.ask(target, *_FIELDS, *fields)
    if reply.status != 101:
        client.close()
        raise HandshakeFailed(reply)
    compressed = "permessage-deflate" in (reply.headers.get("Sec-WebSocket-Extensions") or "")
    return WebSocketClient(client.socket, client.buffer, compressed=compressed)


def _client_of(raw: socket.socket) -> Any:
    from tests.support.longconn_server import Client

    return Client(raw)


def random_bytes(count: int) -> bytes:
    """Bytes that do not compress."""
    return os.urandom(count)
