"""WebSocket clients that mean harm: each is refused or closed with the right code, what it takes of memory is bounded by the
limits, and nobody else notices.

The limits are those of `tests.support.websocket_judged.strict`.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from websockets.frames import Frame, Opcode

from tests.support.gunicorn import eventually
from tests.support.longconn_server import Client, GunicornServer, gunicorn_server
from tests.support.websocket_client import WebSocketClient, websocket
from tests.support.websocket_judged import BYTES, FRAGMENTS, QUEUE

APP = "tests.support.websocket_judged:strict"
PLACES = 200
SLACK = 4 << 20
"""Bytes by which a Python process may grow for reasons of its own."""
HANDSHAKE = {
    "Host": "app.example",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version": "13",
}


@pytest.fixture(scope="module")
def server() -> Iterator[GunicornServer]:
    with gunicorn_server("--worker-connections", str(PLACES), "--keep-alive", "600", app=APP) as running:
        for _ in range(20):  # what a process takes for its first connections is not the attackers' doing
            with websocket(running, "/count", compress=True) as client:
                client.say("x" * BYTES)
                assert str(BYTES) == client.hear()
        yield running


def asked(changes: Mapping[str, str | None] | None = None, method: str = "GET") -> bytes:
    """An opening handshake with these fields changed, or left out when they are None."""
    fields = {**HANDSHAKE, **(changes or {})}
    lines = [f"{name}: {value}" for name, value in fields.items() if value is not None]
    return "\r\n".join([f"{method} /count HTTP/1.1", *lines, "", ""]).encode()


def compressed(payload: bytes) -> bytes:
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    return (compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv1: bool = False) -> bytes:
    data = Frame(Opcode(opcode), payload, fin).serialize(mask=True)
    return bytes((data[0] | 0x40, *data[1:])) if rsv1 else data


def close_of(client: WebSocketClient) -> int:
    """The code with which the server closes, whatever it says before."""
    heard = client.rest()
    assert heard, "the connection ended without a close"
    return int(heard[-1][1]) if heard[-1][0] == "close" else 1006


@contextlib.contextmanager
def growth_below(server: GunicornServer, allowed: int) -> Iterator[None]:
    """Assert that the worker never had so many bytes more than at the beginning, during the block."""
    [pid] = server.worker_pids()
    process = Path(f"/proc/{pid}")

    def peak() -> int:
        found = re.search(r"VmHWM:\s+(\d+) kB", (process / "status").read_text())
        assert found is not None
        return int(found[1]) * 1024

    (process / "clear_refs").write_text("5")  # the peak begins anew (proc(5))
    before = peak()
    yield
    grown = peak() - before
    print(f"grown by {grown / 1024:.0f} KiB, {allowed / 1024:.0f} allowed")
    assert grown < allowed


class Visitor:
    """An honest client that talks during an attack. `slowest` is the longest it waited for an answer, in seconds."""

    def __init__(self, server: GunicornServer) -> None:
        self.answers = 0
        self.slowest = 0.0
        self._client = websocket(server, "/count")
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._talk)

    def __enter__(self) -> Visitor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(20)
        self._client.socket.close()

    def _talk(self) -> None:
        while not self._over.wait(0.01):
            started = time.monotonic()
            self._client.say("x" * 100)
            if self._client.hear() != "100":
                return
            self.slowest = max(self.slowest, time.monotonic() - started)
            self.answers += 1


# Handshakes


@pytest.mark.parametrize(
    ("status", "changes"),
    [
        (426, {"Upgrade": None}),
        (426, {"Sec-WebSocket-Version": "8"}),
        (400, {"Sec-WebSocket-Version": None}),
        (400, {"Sec-WebSocket-Key": None}),
        (400, {"Sec-WebSocket-Key": "c2hvcnQ="}),
        (400, {"Connection": "close"}),
        (400, {"Sec-WebSocket-Protocol": "a b"}),
        (403, {"Origin": "http://evil.example"}),
        (403, {"Origin": "http://app.example.evil"}),
        (403, {"Origin": "http://app.example:8080"}),
        (403, {"Origin": "null"}),
        (403, {"Origin": ""}),
    ],
)
def test_a_bad_handshake_is_refused_and_what_follows_it_is_read_as_http(
    server: GunicornServer, status: int, changes: dict[str, str | None]
) -> None:
    smuggled = b"GET /pong HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    with server.client() as client:
        client.send(asked(changes) + smuggled)
        reply = client.response()
        assert status == reply.status
        assert ("13" if "Sec-WebSocket-Version" in changes else None) == reply.headers.get("Sec-WebSocket-Version")
        assert client.rest().endswith((b"pong", b""))


@pytest.mark.parametrize("changes", [{}, {"Origin": "http://app.example"}, {"Connection": "keep-alive, Upgrade"}])
def test_a_good_handshake_is_accepted(server: GunicornServer, changes: dict[str, str | None]) -> None:
    with server.client() as client:
        client.send(asked(changes))
        reply = client.response()
        assert (101, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=") == (reply.status, reply.headers["Sec-WebSocket-Accept"])


def test_another_method_than_get_is_refused(server: GunicornServer) -> None:
    with server.client() as client:
        client.send(asked(method="POST"))
        assert 405 == client.response().status


# Messages


def test_the_largest_message_is_taken_and_one_byte_more_is_not(server: GunicornServer) -> None:
    with websocket(server, "/count") as client:
        client.say("x" * BYTES)
        assert str(BYTES) == client.hear()
        client.say("x" * (BYTES + 1))
        assert 1009 == close_of(client)


@pytest.mark.parametrize("payload", [b"", b"x"])
def test_a_flood_of_fragments_is_closed(server: GunicornServer, payload: bytes) -> None:
    with websocket(server, "/count") as client, growth_below(server, SLACK):
        client.send(frame(Opcode.TEXT, fin=False) + frame(Opcode.CONT, payload, fin=False) * (FRAGMENTS - 2))
        client.send(frame(Opcode.CONT, b"end"))
        assert str(len(payload) * (FRAGMENTS - 2) + 3) == client.hear()
        with contextlib.suppress(ConnectionError):  # it is closed long before all are sent
            client.send(frame(Opcode.TEXT, fin=False) + frame(Opcode.CONT, payload, fin=False) * 100_000)
        assert 1009 == close_of(client)


def test_a_deflate_bomb_is_closed_before_it_is_inflated(server: GunicornServer) -> None:
    bomb = frame(Opcode.BINARY, compressed(bytes(50_000_000)), rsv1=True)
    assert len(bomb) < BYTES
    with growth_below(server, 2 * BYTES + SLACK):
        for _ in range(20):
            with websocket(server, "/count", compress=True) as client:
                client.send(bomb)
                assert 1009 == close_of(client)


def test_a_deflate_bomb_in_fragments_is_closed_too(server: GunicornServer) -> None:
    payload = compressed(bytes(50_000_000))
    parts = [payload[at : at + 2_000] for at in range(0, len(payload), 2_000)]
    with websocket(server, "/count", compress=True) as client, growth_below(server, 2 * BYTES + SLACK):
        client.send(frame(Opcode.BINARY, parts[0], fin=False, rsv1=True))
        with contextlib.suppress(ConnectionError):
            for part in parts[1:]:
                client.send(frame(Opcode.CONT, part, fin=False))
        assert 1009 == close_of(client)


def test_what_many_incomplete_messages_take_is_their_bytes(server: GunicornServer) -> None:
    attackers = 100
    with contextlib.ExitStack() as opened, growth_below(server, 2 * BYTES * attackers + SLACK):
        clients = [opened.enter_context(websocket(server, "/count")) for _ in range(attackers)]
        for client in clients:
            client.send(frame(Opcode.BINARY, bytes(BYTES))[:-1])
        for client in clients:
            client.ping(b"?")  # the rest of the message, as it happens
            assert str(BYTES) == client.hear()


# Clients that do not read


def test_a_client_that_never_reads_is_closed_when_its_queue_is_full(server: GunicornServer) -> None:
    with websocket(server, "/flood", buffer=4096) as client, growth_below(server, 2 * QUEUE + SLACK):
        client.say("go")
        eventually(lambda: "0" == server.get("/waiting")[2].decode(), within=15)
        heard = [client.hear()]
        while heard[-1] == "x" * 1_000:
            heard.append(client.hear())
    assert ("close", 1013) == heard[-1][:2]


def test_pings_of_a_client_that_never_reads_do_not_pile_up(server: GunicornServer) -> None:
    pings = frame(Opcode.PING, b"?" * 125) * 500
    with websocket(server, "/silent", buffer=4096, timeout=1) as client, growth_below(server, 2 * QUEUE + SLACK):
        sent = 0
        until = time.monotonic() + 1
        with contextlib.suppress(OSError):  # it is closed, or nothing more is read of it
            while time.monotonic() < until and sent < 100_000_000:
                client.send(pings)
                sent += len(pings)
        print(f"{sent / 1e6:.0f} MB of pings")
        assert sent > len(pings)


# The others


FLOODS = {
    "pings": frame(Opcode.PING, b"?") * 6_000,
    "tiny messages": frame(Opcode.TEXT, b"x") * 5_000,
    "tiny fragments": (frame(Opcode.TEXT, fin=False) + frame(Opcode.CONT, fin=False) * 50 + frame(Opcode.CONT)) * 400,
    "bombs": frame(Opcode.BINARY, compressed(bytes(BYTES)), rsv1=True) * 300,
}
"""What one attacker sends: some hundredths of a second of the server's time."""
LONG = 1.0
"""Seconds that nobody waits for an answer; it is a tenth of that on a machine with nothing else to do."""


@pytest.mark.alone
@pytest.mark.parametrize("flood", FLOODS)
def test_nobody_else_waits_long_during_a_flood(server: GunicornServer, flood: str) -> None:
    waits = []
    for _ in range(3):
        with contextlib.ExitStack() as opened, Visitor(server) as visitor:
            clients = [opened.enter_context(websocket(server, "/silent", compress=True)) for _ in range(8)]
            data = FLOODS[flood] + frame(Opcode.CLOSE)
            senders = [threading.Thread(target=client.send, args=(data,)) for client in clients]
            for sender in senders:
                sender.start()
            assert [1005] * 8 == [close_of(client) for client in clients]
            for sender in senders:
                sender.join(10)
        print(f"{flood}: {visitor.answers} answers, the slowest after {visitor.slowest * 1000:.0f} ms")
        waits.append(visitor.slowest)
        if visitor.slowest < LONG:
            break
    assert min(waits) < LONG


@pytest.mark.alone
def test_handshakes_that_are_never_finished_keep_nobody_out(server: GunicornServer) -> None:
    besiege(server, PLACES + 50)


@pytest.mark.prove
@pytest.mark.alone
def test_nor_do_as_many_as_there_are_descriptors() -> None:
    few = "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (700, 700))\n"
    with gunicorn_server("--keep-alive", "600", app=APP, config=few) as small:
        besiege(small, 900)


def besiege(server: GunicornServer, count: int) -> None:
    """Let one client talk and others come while so many connections have sent half a handshake."""
    half = asked()[:-2]
    with contextlib.ExitStack() as opened, Visitor(server) as visitor:
        for _ in range(count):
            connection = opened.enter_context(socket.create_connection((server.host, server.port), 5))
            with contextlib.suppress(OSError):
                connection.send(half)
        for _ in range(10):
            with websocket(server, "/count") as client:
                client.say("hello")
                assert "5" == client.hear()
        eventually(lambda: visitor.answers > 10, within=10)
    assert visitor.slowest < 2


@pytest.mark.alone
def test_the_server_is_well_after_all_of_this(server: GunicornServer) -> None:
    assert (200, b"pong") == server.get("/pong")[::2]
    assert "Traceback" not in server.log()
    with Client(server.connect()) as client:
        assert b"pong" == client.ask("/pong").body
