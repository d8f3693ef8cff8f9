"""The other end of a connection: reads answers off a socket exactly as the RFC frames them.

with Conversation(server.connect()) as client:
    client.send(b"GET / HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n")
    assert 200 == client.reply().status
"""

from __future__ import annotations

import collections
import contextlib
import socket
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

__all__ = ["Broken", "Conversation", "Reply", "ReplyReader", "request", "reset"]

BODILESS = (204, 304)


class Broken(AssertionError):
    """What came is not a sequence of whole answers. The message says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer, whole. Names of fields are in small letters."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def closes(self) -> bool:
        """Whether it says that it is the connection's last."""
        return "close" in self.headers.get("connection", "").lower()


@dataclass(slots=True)
class _Head:
    status: int
    headers: dict[str, str]


class ReplyReader:
    """Turns the bytes of a connection into answers. `asked` tells it of each request, in order.

    A request's method decides whether its answer has a body (RFC 9112, section 6.3). Answers nobody asked for
    count as answers to GET: a server may refuse a connection before its first request.
    """

    def __init__(self) -> None:
        self._methods: collections.deque[str] = collections.deque()
        self._pending = bytearray()
        self._head: _Head | None = None
        self._chunks: list[bytes] | None = None

    def asked(self, method: str) -> None:
        """A request with this method has been sent, or is about to be."""
        self._methods.append(method)

    def feed(self, data: bytes) -> list[Reply]:
        """The answers that are complete with this. Interim ones (1xx) are among them."""
        self._pending += data
        replies = []
        while (reply := self._next()) is not None:
            replies.append(reply)
        return replies

    def end(self) -> Reply | None:
        """The connection is over: the answer that ended with it, if one did. Raises `Broken` if one was cut off."""
        if self._head is None:
            if self._pending:
                raise Broken(f"ends within the head of an answer: {bytes(self._pending[:200])!r}")
            return None
        if self._chunks is not None or "content-length" in self._head.headers:
            raise Broken(f"ends within the body of an answer {self._head.status}")
        return self._finish(bytes(self._take(len(self._pending))))

    def _next(self) -> Reply | None:
        if self._head is None and not self._read_head():
            return None
        head = self._head
        assert head is not None
        if 100 <= head.status < 200:
            self._head = None
            return Reply(head.status, head.headers, b"")
        if head.status in BODILESS or (self._methods and self._methods[0] == "HEAD"):
            return self._finish(b"")
        if "chunked" in head.headers.get("transfer-encoding", ""):
            return self._chunked()
        if "content-length" in head.headers:
            length = int(head.headers["content-length"])
            return self._finish(self._take(length)) if len(self._pending) >= length else None
        return None

    def _read_head(self) -> bool:
        end = self._pending.find(b"\r\n\r\n")
        if end < 0:
            return False
        status_line, *lines = self._take(end + 4)[:-4].decode("latin-1").split("\r\n")
        version, _, rest = status_line.partition(" ")
        if version not in ("HTTP/1.0", "HTTP/1.1") or not rest[:3].isdigit():
            raise Broken(f"not the beginning of an answer: {status_line!r}")
        pairs = (line.partition(":") for line in lines)
        self._head = _Head(int(rest[:3]), {name.lower(): value.strip() for name, _, value in pairs})
        self._chunks = [] if "chunked" in self._head.headers.get("transfer-encoding", "") else None
        return True

    def _chunked(self) -> Reply | None:
        assert self._chunks is not None
        while (end := self._pending.find(b"\r\n")) >= 0:
            size = int(self._pending[:end], 16)
            if len(self._pending) < end + 2 + size + 2:
                return None
            chunk = self._take(end + 2 + size + 2)
            if not chunk.endswith(b"\r\n"):
                raise Broken(f"a chunk does not end where it says: {chunk[-20:]!r}")
            if size == 0:
                return self._finish(b"".join(self._chunks))
            self._chunks.append(chunk[end + 2 : -2])
        return None

    def _finish(self, body: bytes) -> Reply:
        assert self._head is not None
        reply = Reply(self._head.status, self._head.headers, body)
        self._head = self._chunks = None
        if self._methods:
            self._methods.popleft()
        return reply

    def _take(self, count: int) -> bytes:
        taken = bytes(self._pending[:count])
        del self._pending[:count]
        return taken


class Conversation:
    """A connection to a server, used by one thread. Every wait has an end."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self._reader = ReplyReader()
        self._replies: collections.deque[Reply] = collections.deque()
        self._over = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        self.socket.close()

    def send(self, data: bytes, *methods: str) -> None:
        """Send, or as much of it as the server takes. `methods` are those of the requests that it holds, if not GET."""
        for method in methods:
            self._reader.asked(method)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # an answer may be there all the same
            self.socket.sendall(data)

    def get(self, path: str = "/", headers: Iterable[str] = (), *, within: float = 10.0) -> Reply:
        """One request and its answer."""
        self.send(request("GET", path, headers))
        return self.reply(within=within)

    def reply(self, *, within: float = 10.0) -> Reply:
        """The next answer that is not an interim one. Raises `Broken` if there is none in `within` seconds."""
        deadline = time.monotonic() + within
        while True:
            while self._replies:
                reply = self._replies.popleft()
                if reply.status >= 200:
                    return reply
            if self._over:
                raise Broken("closed without an answer")
            if not self._receive(deadline):
                raise Broken(f"no answer in {within} s")

    def until_closed(self, *, within: float = 10.0) -> list[Reply]:
        """Every further answer up to the end of the connection. Raises `Broken` if it has not ended in time.

        Answers of 1xx are left out.
        """
        deadline = time.monotonic() + within
        while not self._over:
            if not self._receive(deadline):
                raise Broken(f"still open after {within} s, with {[reply.status for reply in self._replies]}")
        replies = [reply for reply in self._replies if reply.status >= 200]
        self._replies.clear()
        return replies

    def is_closed(self) -> bool:
        """Whether the server has ended the connection by now. Answers that are there are kept for `reply`."""
        while not self._over and self._receive(time.monotonic()):
            pass
        return self._over

    def _receive(self, deadline: float) -> bool:
        """Read what is there, waiting for it up to the deadline; whether anything came, be it the end."""
        left = deadline - time.monotonic()
        try:
            if left > 0:
                self.socket.settimeout(left)
                data = self.socket.recv(1 << 16)
            else:
                self.socket.settimeout(0)
                data = self.socket.recv(1 << 16)
        except (TimeoutError, BlockingIOError):
            return False
        except ConnectionResetError:
            data = b""
        if data:
            self._replies.extend(self._reader.feed(data))
            return True
        self._over = True
        if (last := self._reader.end()) is not None:
            self._replies.append(last)
        return True


def request(method: str, path: str, headers: Iterable[str] = (), body: bytes = b"") -> bytes:
    """The bytes of a request. It names its body's length when it has one, unless `headers` already frame it."""
    fields = ["Host: test", *headers]
    framed = any(field.lower().startswith(("content-length:", "transfer-encoding:")) for field in fields)
    if body and not framed:
        fields.append(f"Content-Length: {len(body)}")
    return "\r\n".join([f"{method} {path} HTTP/1.1", *fields, "", ""]).encode("latin-1") + body


def reset(connection: socket.socket) -> None:
    """Close in the rudest way: the other end gets a reset, and what was not read is lost."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
