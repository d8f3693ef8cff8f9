"""An attacker says how it was shown out: by which close code, or by none."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from bench.websocket.attackers import Attacker
from longconn.core.frames import encode_close, encode_frame

SWITCH = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"


@contextlib.contextmanager
def server(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """One connection, served by a function on a thread."""

    def run() -> None:
        connection = listener.accept()[0]
        with connection:
            serve(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            thread.join(10)


def head(connection: socket.socket) -> bytes:
    received = b""
    while not received.endswith(b"\r\n\r\n"):
        received += connection.recv(65_536)
    return received


def test_the_close_code_is_read_from_between_other_frames() -> None:
    def serve(connection: socket.socket) -> None:
        head(connection)
        connection.sendall(SWITCH + encode_frame(1, b"hello") + encode_close(1009, "too big"))

    with server(serve) as port, Attacker(port, "/") as attacker:
        assert 1009 == attacker.rest(5.0)


def test_a_connection_that_is_cut_has_no_code() -> None:
    def serve(connection: socket.socket) -> None:
        head(connection)
        connection.sendall(SWITCH)

    with server(serve) as port, Attacker(port, "/") as attacker:
        assert 0 == attacker.rest(5.0)


def test_what_is_sent_arrives_while_answers_are_read() -> None:
    seen: list[int] = []

    def serve(connection: socket.socket) -> None:
        head(connection)
        connection.sendall(SWITCH)
        left = 1_000_000
        while left:
            left -= len(connection.recv(65_536))
        seen.append(left)

    with server(serve) as port, Attacker(port, "/") as attacker:
        assert attacker.send(bytes(1_000_000))
        attacker.rest(5.0)
    assert [0] == seen


def test_a_refused_handshake_is_told() -> None:
    def serve(connection: socket.socket) -> None:
        head(connection)
        connection.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")

    with server(serve) as port, pytest.raises(RuntimeError, match="403 Forbidden"):
        Attacker(port, "/")


def test_the_handshake_carries_the_fields_that_were_given() -> None:
    seen: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        seen.append(head(connection))
        connection.sendall(SWITCH)

    with server(serve) as port, Attacker(port, "/x", fields="Sec-WebSocket-Extensions: permessage-deflate\r\n"):
        pass
    assert b"GET /x HTTP/1.1\r\n" in seen[0]
    assert b"\r\nSec-WebSocket-Extensions: permessage-deflate\r\n" in seen[0]
