"""The socket that an application is given, and TLS as the engine uses it."""

from __future__ import annotations

import _socket
import contextlib
import os
import socket
import ssl
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import gevent.socket
import gevent.ssl
import pytest

from longconn.http.lending import LentSocket, TlsStream, lend, reclaim
from tests.support.longconn_server import certificate


@pytest.fixture
def pair() -> Iterator[tuple[Any, socket.socket]]:
    """A connection as the engine has it, and its client."""
    ours, client = socket.socketpair()
    client.settimeout(5.0)
    forgotten: list[int] = []
    connection = SimpleNamespace(
        socket=_socket.socket(ours.family, ours.type, ours.proto, ours.detach()),
        attached=SimpleNamespace(lent=None, used_by_application=False),
        lot=SimpleNamespace(forget=lambda connection, descriptor: forgotten.append(descriptor)),
        forgotten=forgotten,
    )
    connection.fileno = lambda: connection.socket.fileno()
    yield connection, client
    client.close()
    connection.socket.close()


def test_a_socket_that_nobody_looks_at_is_not_made(pair: tuple[Any, socket.socket]) -> None:
    connection, _ = pair
    lent = LentSocket(connection, connection.attached)
    assert f"<LentSocket of descriptor {connection.fileno()}>" == repr(lent)
    assert connection.attached.lent is None


def test_it_is_the_connections_own_descriptor_and_made_once(pair: tuple[Any, socket.socket]) -> None:
    connection, client = pair
    lent = LentSocket(connection, connection.attached)
    try:
        assert connection.fileno() == lent.fileno()
        lent.sendall(b"hello")
        assert b"hello" == client.recv(10)
        assert lend(connection) is connection.attached.lent is lend(connection)
        assert lent.gettimeout() is None
    finally:
        reclaim(connection, connection.attached.lent)


@pytest.mark.parametrize("name", ["getpeername", "getsockname", "family", "gettimeout", "getsockopt"])
def test_looking_at_it_is_not_using_it(pair: tuple[Any, socket.socket], name: str) -> None:
    connection, _ = pair
    getattr(LentSocket(connection, connection.attached), name)
    assert not connection.attached.used_by_application
    reclaim(connection, connection.attached.lent)


@pytest.mark.parametrize(
    "name", ["send", "sendall", "recv", "recv_into", "makefile", "fileno", "dup", "detach", "shutdown"]
)
def test_what_reaches_the_client_is_using_it(pair: tuple[Any, socket.socket], name: str) -> None:
    connection, _ = pair
    getattr(LentSocket(connection, connection.attached), name)
    assert connection.attached.used_by_application
    reclaim(connection, connection.attached.lent)


def test_what_the_application_keeps_is_closed_and_the_connection_is_not(pair: tuple[Any, socket.socket]) -> None:
    connection, client = pair
    kept = lend(connection)
    reclaim(connection, kept)
    assert -1 == kept.fileno()
    with pytest.raises(OSError, match="Bad file descriptor"):
        kept.send(b"too late")
    connection.socket.send(b"still here")
    assert b"still here" == client.recv(20)


def test_a_descriptor_that_the_application_closed_is_nobodys_any_more(pair: tuple[Any, socket.socket]) -> None:
    connection, _ = pair
    descriptor = connection.fileno()
    lent = lend(connection)
    lent.close()
    with contextlib.suppress(OSError):
        os.fstat(descriptor)
    reclaim(connection, lent)
    assert (-1, [descriptor]) == (connection.fileno(), connection.forgotten)


# TLS.


@pytest.fixture(params=["the standard library's", "gevent's"])
def secured(request: pytest.FixtureRequest) -> Iterator[tuple[TlsStream, ssl.SSLSocket]]:
    """A stream after its handshake, and its client. Neither waits."""
    ours: Any
    ours, theirs = socket.socketpair()
    server_side: Any = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if request.param == "gevent's":  # what the worker has, whose `send` says 0 instead of raising
        server_side = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        ours = gevent.socket.socket(ours.family, ours.type, ours.proto, ours.detach())
    server_side.load_cert_chain(*certificate())
    client_side = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_side.check_hostname, client_side.verify_mode = False, ssl.CERT_NONE
    ours.setblocking(False)
    theirs.setblocking(False)
    tls = server_side.wrap_socket(ours, server_side=True, do_handshake_on_connect=False)
    client = client_side.wrap_socket(theirs, do_handshake_on_connect=False)
    unfinished = [client, tls]
    while unfinished:
        for each in list(unfinished):
            with contextlib.suppress(ssl.SSLWantReadError):
                each.do_handshake()
                unfinished.remove(each)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.recv(1)  # the tickets of TLS 1.3
    yield TlsStream(tls), client
    client.close()
    tls.close()


def everything(client: ssl.SSLSocket) -> bytes:
    """What has arrived."""
    data = b""
    with contextlib.suppress(ssl.SSLWantReadError):
        while piece := client.recv(1 << 16):
            data += piece
    return data


def test_tls_that_has_nothing_to_give_says_so_as_a_socket_does(secured: tuple[TlsStream, ssl.SSLSocket]) -> None:
    stream, client = secured
    with pytest.raises(BlockingIOError):
        stream.recv(10)
    client.send(b"hello")
    assert b"hello" == stream.recv(10)
    with pytest.raises(BlockingIOError):
        stream.recv(10)


def test_what_tls_takes_of_a_large_piece_is_told(secured: tuple[TlsStream, ssl.SSLSocket]) -> None:
    stream, client = secured
    data = bytes(range(256)) * 40_000
    sent = stream.send(data)
    assert 0 < sent < len(data)
    with pytest.raises(BlockingIOError):
        stream.send(data[sent:])
    received = everything(client)
    while len(received) < len(data):
        sent += stream.send(memoryview(data)[sent:])
        received += everything(client)
    assert data == received
    assert len(data) == sent


def test_nothing_to_send_is_sent_at_once(secured: tuple[TlsStream, ssl.SSLSocket]) -> None:
    assert 0 == secured[0].send(b"")


def test_a_shut_down_ends_what_is_sent_and_not_what_is_received(secured: tuple[TlsStream, ssl.SSLSocket]) -> None:
    stream, client = secured
    descriptor = stream.fileno()
    stream.shutdown(socket.SHUT_WR)
    assert descriptor == stream.fileno()
    client.send(b"going on")
    assert b"going on" == stream.recv(10)
    with pytest.raises(OSError, match="EOF occurred"):
        stream.send(b"no")


def test_options_are_those_of_the_socket_underneath(secured: tuple[TlsStream, ssl.SSLSocket]) -> None:
    stream, _ = secured
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 10_000)
    assert 20_000 == stream.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    stream.close()
    assert -1 == stream.fileno()
