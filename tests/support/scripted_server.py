"""A TCP server whose every byte is written by the test: for peers that answer slowly, wrongly or not at all."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

__all__ = ["Conversation", "ReceivedRequest", "ScriptedServer"]

PATIENCE = 10.0


@dataclass(frozen=True, slots=True)
class ReceivedRequest:
    """One request as it came over the wire."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def header(self, name: str) -> str | None:
        """The value of the only field of that name, None without one."""
        values = [value for known, value in self.headers if known.lower() == name.lower()]
        assert len(values) < 2, f"{name} came {len(values)} times"
        return values[0] if values else None


@dataclass(slots=True)
class Conversation:
    """One accepted connection. `number` counts connections from 1."""

    number: int
    socket: socket.socket
    received: list[ReceivedRequest] = field(default_factory=list)

    def read_request(self) -> ReceivedRequest | None:
        """The next request, None when the peer has closed."""
        lines = self._read_head()
        if not lines:
            return None
        method, target, _ = lines[0].split(" ", 2)
        headers = tuple((name, value.strip()) for name, _, value in (line.partition(":") for line in lines[1:]))
        length = next((int(value) for name, value in headers if name.lower() == "content-length"), 0)
        request = ReceivedRequest(method, target, headers, self._read_exactly(length))
        self.received.append(request)
        return request

    def send(self, data: bytes) -> None:
        """Put `data` on the wire."""
        self.socket.sendall(data)

    def answer(self, body: bytes = b"ok", *, status: str = "200 OK", headers: bytes = b"") -> None:
        """A whole response with its length."""
        self.send(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n%s\r\n%s" % (status.encode(), len(body), headers, body))

    def closed_by_peer(self) -> bool:
        """Wait until the peer closes; what it still sends is thrown away."""
        try:
            while self.socket.recv(65_536):
                pass
        except TimeoutError:
            return False
        except OSError:
            return True
        return True

    def reset(self) -> None:
        """Close so that the peer sees a reset rather than an end."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.socket.close()

    def _read_head(self) -> list[str]:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            byte = self.socket.recv(1)
            if not byte:
                return []
            head += byte
        return head.decode("latin-1").strip().split("\r\n")

    def _read_exactly(self, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            piece = self.socket.recv(length - len(data))
            if not piece:
                break
            data += piece
        return bytes(data)


class ScriptedServer:
    """Listens on `host` and runs `script` for each connection in a thread of its own; closes it afterwards."""

    def __init__(
        self, script: Callable[[Conversation], object], *, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
    ) -> None:
        self._script = script
        self._tls = tls
        self._listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        self.port: int = self._listener.getsockname()[1]
        self.conversations: list[Conversation] = []
        self._threads: list[threading.Thread] = []
        self._acceptor = threading.Thread(target=self._accept)

    @property
    def url(self) -> str:
        """The base URL."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def requests(self) -> list[ReceivedRequest]:
        """Every request, connection by connection."""
        return [request for conversation in self.conversations for request in conversation.received]

    def __enter__(self) -> Self:
        self._acceptor.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._acceptor.join(PATIENCE)
        for conversation in self.conversations:
            _shut(conversation.socket)
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), "a script did not end when its connection was closed"

    def _accept(self) -> None:
        while True:
            try:
                accepted, _ = self._listener.accept()
            except OSError:
                return
            accepted.settimeout(PATIENCE)
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            thread = threading.Thread(target=self._converse, args=(accepted, len(self._threads) + 1))
            self._threads.append(thread)
            thread.start()

    def _converse(self, accepted: socket.socket, number: int) -> None:
        try:
            connection = self._tls.wrap_socket(accepted, server_side=True) if self._tls else accepted
        except OSError:  # the peer did not like the certificate
            accepted.close()
            return
        conversation = Conversation(number, connection)
        self.conversations.append(conversation)
        try:
            self._script(conversation)
        except OSError:
            pass  # the peer has gone, or the test is over
        finally:
            _shut(connection)
            connection.close()


def _shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # closed already
        connection.shutdown(socket.SHUT_RDWR)
