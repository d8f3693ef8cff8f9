"""Clients that mean ill. Each function attacks a server on 127.0.0.1 once, and returns the close code that it got (0: none)."""

from __future__ import annotations

import contextlib
import http.client
import select
import socket
import time
import zlib
from types import TracebackType
from typing import Any, Self

from longconn.core.frames import Opcode, ProtocolError, encode_frame
from longconn.core.messages import MessageLimits, read

__all__ = ["Attacker", "acquaint", "deflate_bomb", "fragment_flood", "never_reading", "ping_flood"]

MASK = bytes(4)
OFFER = "Sec-WebSocket-Extensions: permessage-deflate\r\n"
INFLATED = 100_000_000
"""Bytes that 100 KB on the wire become."""

FRAGMENTS = 200_000
PINGS = 400_000
TEXTS, TEXT = 500, 64_000
"""What is published for a subscriber that reads none of it: messages, and the bytes of each."""

PATIENCE = 5.0
"""Seconds without any progress after which an attacker goes on to what comes next."""


class Attacker:
    """A connection that sends what it likes and reads when it likes."""

    def __init__(self, port: int, path: str, *, fields: str = "", room: int | None = None) -> None:
        self.code = 0
        self.over = False
        self._reading: Any = None
        self._socket = socket.socket()
        if room is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
        self._socket.settimeout(10.0)
        self._socket.connect(("127.0.0.1", port))
        self._socket.sendall(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{fields}\r\n".encode()
        )
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += self._socket.recv(1) or b"\r\n\r\n"
        if b" 101 " not in head.split(b"\r\n", 1)[0]:
            self._socket.close()
            raise RuntimeError(f"the handshake was refused: {head[:200]!r}")
        self.head = head
        self._socket.setblocking(False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def send(self, data: bytes, *, reads: bool = True) -> bool:
        """Send all of it; what comes meanwhile is read unless `reads` says otherwise. False: the server takes no more."""
        view, progress = memoryview(data), time.monotonic()
        while view and not self.over:
            readable, writable, _ = select.select([self._socket] if reads else [], [self._socket], [], 0.2)
            if readable:
                self._receive()
            if writable and not self.over:
                try:
                    view = view[self._socket.send(view[:262_144]) :]
                    progress = time.monotonic()
                except OSError:
                    break
            elif time.monotonic() - progress > PATIENCE:
                break
        return not view

    def rest(self, seconds: float = PATIENCE) -> int:
        """Read until the server closes, or is silent for so long; the close code, 0 for none."""
        while not self.over and select.select([self._socket], [], [], seconds)[0]:
            self._receive()
        return self.code

    def _receive(self) -> None:
        try:
            data = self._socket.recv(1 << 20)
        except OSError:
            data = b""
        if not data:
            self.over = True
            return
        with contextlib.suppress(ProtocolError):  # a server that corrupts its stream: no code can be read
            events, self._reading = read(data, self._reading, MessageLimits(1 << 30, 1 << 30), masked=False)
            self.code = next((payload[0] for opcode, payload in events if opcode == Opcode.CLOSE), self.code)


def acquaint(port: int, path: str) -> None:
    """Say something short, compressed where that is agreed on, so that what a server makes only once is there."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(b"x" * 500) + packer.flush(zlib.Z_SYNC_FLUSH)
    with Attacker(port, path, fields=OFFER) as attacker:
        compresses = b"permessage-deflate" in attacker.head.lower()
        payload = packed.removesuffix(b"\x00\x00\xff\xff") if compresses else b"x" * 500
        attacker.send(encode_frame(Opcode.BINARY, payload, compressed=compresses, mask=MASK))
        attacker.rest(0.3)


def deflate_bomb(port: int, path: str) -> int:
    """A small frame that inflates to 100 MB."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(bytes(INFLATED)) + packer.flush(zlib.Z_SYNC_FLUSH)
    frame = encode_frame(Opcode.BINARY, packed.removesuffix(b"\x00\x00\xff\xff"), compressed=True, mask=MASK)
    with Attacker(port, path, fields=OFFER) as attacker:
        attacker.send(frame)
        return attacker.rest()


def fragment_flood(port: int, path: str) -> int:
    """A message in very many fragments, which never ends."""
    first = encode_frame(Opcode.TEXT, b"x", fin=False, mask=MASK)
    with Attacker(port, path) as attacker:
        attacker.send(first + encode_frame(Opcode.CONTINUATION, b"x", fin=False, mask=MASK) * FRAGMENTS)
        return attacker.rest()


def ping_flood(port: int, path: str) -> int:
    """Very many pings, whose pongs nobody reads."""
    with Attacker(port, path, room=4_096) as attacker:
        attacker.send(encode_frame(Opcode.PING, bytes(125), mask=MASK) * PINGS, reads=False)
        return attacker.rest()


def never_reading(port: int, path: str, *, publish: str) -> int:
    """A subscriber that reads nothing while 32 MB are published for it. Raises TimeoutError when the publisher waits for it."""
    body = b"x" * TEXT
    with Attacker(port, path, room=4_096) as attacker:
        publisher = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        with contextlib.closing(publisher):
            for _ in range(TEXTS):
                publisher.request("POST", publish, body, {"Content-Type": "text/plain"})
                publisher.getresponse().read()
        return attacker.rest()
