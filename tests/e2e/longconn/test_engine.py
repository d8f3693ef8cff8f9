"""Faults that were found in the worker, and shall not come back."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.gunicorn import eventually
from tests.support.longconn_server import Client, GunicornServer, gunicorn_server

APP = "tests.support.longconn_faults:application"
QUESTION = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
IDLE = 2.5
ATTEMPTS = 4
PLACES = 6
REQUEST_TIMEOUT = 0.5
HANDSHAKE_TIMEOUT = 2.0
RESET = b"\1\0\0\0\0\0\0\0"


@contextlib.contextmanager
def serving(*arguments: str, unix: bool = False, tls: bool = False, **settings: object) -> Iterator[GunicornServer]:
    """A server with these settings, named without their prefix."""
    environment = {f"LONGCONN_{name.upper()}": str(value) for name, value in settings.items()}
    with gunicorn_server(*arguments, app=APP, unix=unix, tls=tls, environment=environment) as running:
        yield running


@pytest.fixture(scope="module")
def server() -> Iterator[GunicornServer]:
    with serving(max_requests_per_connection=0) as running:
        yield running


@pytest.fixture(scope="module")
def small() -> Iterator[GunicornServer]:
    """A server with few places."""
    with serving(max_connections=PLACES, idle_timeout=IDLE) as running:
        yield running


@pytest.fixture(scope="module")
def hasty() -> Iterator[GunicornServer]:
    """A server that gives its application little time."""
    with serving(request_timeout=REQUEST_TIMEOUT) as running:
        yield running


@pytest.fixture(scope="module")
def secure() -> Iterator[GunicornServer]:
    with serving(tls=True, handshake_timeout=HANDSHAKE_TIMEOUT) as running:
        yield running


def processor_seconds(pid: int) -> float:
    """Processor time that all threads of this process have used."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text(encoding="ascii").split()[0]) for task in tasks) / 1e9


def table(server: GunicornServer) -> tuple[int, int]:
    """How many connections the worker counts, and how many are in its table, without that of the one that asks."""
    found = json.loads(server.get("/table")[2])
    return found["live"] - 1, len(found["states"]) - 1


def parked(server: GunicornServer, count: int, stack: contextlib.ExitStack) -> list[Client]:
    """Connections on which a request has been answered."""
    clients = [stack.enter_context(server.client()) for _ in range(count)]
    assert [b"pong"] * count == [client.ask("/").body for client in clients]
    return clients


# A full table.


def test_news_of_a_connection_that_made_room_do_not_reach_the_one_that_took_its_number(small: GunicornServer) -> None:
    """Of a newcomer the worker hears first, and of one that has left, and is to make room, in the same turn of its loop."""
    (worker,) = small.worker_pids()
    with contextlib.ExitStack() as stack:
        driver, *others = parked(small, PLACES, stack)
        time.sleep(1.25)  # they may be closed in favour of a newcomer
        for oldest in others[:ATTEMPTS]:  # not each of them succeeds: a tick may come in between
            assert b"pong" == driver.ask("/").body
            driver.send(b"GET /block?seconds=0.03 HTTP/1.1\r\nHost: a\r\n\r\n")
            time.sleep(0.01)
            newcomer = stack.enter_context(small.client(10.0))
            oldest.close()
            driver.response()
            time.sleep(0.03)
            before = processor_seconds(worker)
            time.sleep(0.15)
            assert processor_seconds(worker) - before < 0.1
            if oldest is not others[ATTEMPTS - 1]:
                assert b"pong" == newcomer.ask("/").body
        assert newcomer.ended(within=IDLE + 4)  # it has said nothing for as long as it may


def test_who_has_just_begun_a_head_on_a_used_connection_stays_and_an_old_slow_head_goes(small: GunicornServer) -> None:
    with contextlib.ExitStack() as stack:
        honest, *_ = parked(small, PLACES - 1, stack)
        time.sleep(0.3)
        slow = stack.enter_context(small.client())
        slow.send(b"GET / HTTP/1.1\r\nX-A: ")
        time.sleep(0.6)
        honest.send(b"GET / HTTP/1.1\r\n")
        time.sleep(0.1)
        newcomer = stack.enter_context(small.client())
        newcomer.send(QUESTION)
        assert b"pong" == newcomer.response().body
        honest.send(b"Host: a\r\n\r\n")
        assert b"pong" == honest.response().body
        assert (503, "close") == ((reply := slow.response()).status, reply.headers["Connection"])


# Many requests of one.


def _flood(server: GunicornServer, stop: threading.Event) -> None:
    with server.client(10.0) as client:
        reader = threading.Thread(target=_throw_away, args=(client,), daemon=True)
        reader.start()
        while not stop.is_set():
            client.send(QUESTION * 400)
        client.socket.shutdown(socket.SHUT_RDWR)
        reader.join(10)
        client.close(reset=True)


def _throw_away(client: Client) -> None:
    with contextlib.suppress(OSError):
        while client.socket.recv(1 << 18):
            pass


def test_two_clients_that_pipeline_without_an_end_hold_up_nobody(server: GunicornServer) -> None:
    stop = threading.Event()
    threads = [threading.Thread(target=_flood, args=(server, stop), daemon=True) for _ in range(2)]
    latencies = []
    try:
        for thread in threads:
            thread.start()
        time.sleep(0.4)
        for _ in range(10):
            started = time.monotonic()
            with server.client(10.0) as client:
                assert b"slow" == client.ask("/slow?seconds=0.01").body
            latencies.append(time.monotonic() - started)
    finally:
        stop.set()
        for thread in threads:
            thread.join(10)
    print(f"slowest {max(latencies):.3f} s")
    assert max(latencies) < 1.0
    assert [] == re.findall(r".*stood still.*", server.log())


# The time of a request.


def test_an_answer_that_has_begun_is_not_cut_by_the_time_of_a_request(hasty: GunicornServer) -> None:
    with hasty.client(10.0) as stream, hasty.client(10.0) as download:
        download.send(b"GET /large?bytes=20000000 HTTP/1.1\r\nHost: a\r\n\r\n")
        reply = stream.ask("/stream?chunks=5&size=6&gap=0.2")
        assert (200, 30) == (reply.status, len(reply.body))
        assert 20_000_000 == len(download.response().body)
        assert b"pong" == stream.ask("/").body


def test_an_answer_that_does_not_begin_in_time_is_504_and_says_when_to_come_again(hasty: GunicornServer) -> None:
    with hasty.client(10.0) as client:
        reply = client.ask("/slow?seconds=5")
        assert (504, "1") == (reply.status, reply.headers["Retry-After"])


def test_the_time_of_a_request_ends_with_it(hasty: GunicornServer) -> None:
    with hasty.client(10.0) as client:
        for _ in range(4):
            assert b"slow" == client.ask("/slow?seconds=0.3").body


# Where a request or an answer ends.


def test_after_less_than_was_announced_no_other_answer_follows(server: GunicornServer) -> None:
    with server.client() as client:
        client.send(b"GET /short HTTP/1.1\r\nHost: a\r\n\r\n" + QUESTION)
        came = client.rest()
        assert came.endswith(b"\r\n\r\nabc")
        assert 1 == came.count(b"HTTP/1.1 ")


def test_what_follows_a_101_is_not_taken_for_a_request(server: GunicornServer) -> None:
    with server.client() as client:
        client.send(b"GET /switch HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: other\r\n\r\n" + QUESTION)
        came = client.rest()
        assert came.startswith(b"HTTP/1.1 101 ")
        assert 1 == came.count(b"HTTP/1.1 ")


def test_a_response_that_is_returned_after_an_upgrade_is_closed(server: GunicornServer) -> None:
    with server.client() as client:
        client.send(b"GET /upgrade?name=one HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client.until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")
        client.send(b"hi")
        assert b"hi" == client.exactly(2)
        assert ["one"] == json.loads(server.get("/closed")[2])


# Who is counted.


def test_behind_a_proxy_at_a_unix_socket_every_client_is_counted_out_again() -> None:
    with serving("--proxy-protocol", "auto", unix=True, max_connections_per_client=3) as server:
        statuses = []
        for _ in range(8):
            with server.client() as client:
                client.send(b"PROXY TCP4 192.0.2.1 192.0.2.2 10 20\r\n" + QUESTION)
                statuses.append(client.response().status)
            time.sleep(0.05)
        assert [200] * 8 == statuses


def test_a_reset_before_the_handshake_leaves_nothing_in_the_table(secure: GunicornServer) -> None:
    eventually(lambda: (0, 0) == table(secure))
    with secure.client() as driver:
        driver.ask("/")
        for begin in (b"\x16\x03\x01", b""):
            driver.send(b"GET /block?seconds=0.1 HTTP/1.1\r\nHost: a\r\n\r\n")
            time.sleep(0.02)
            for _ in range(20):  # these are accepted when they have gone
                reset(secure.connect(raw=True), begin)
            driver.response()
            here = [secure.connect(raw=True) for _ in range(20)]
            time.sleep(0.2)
            driver.send(b"GET /block?seconds=0.1 HTTP/1.1\r\nHost: a\r\n\r\n")
            time.sleep(0.02)
            for each in here:  # and these are seen to go while their handshake begins
                reset(each, begin)
            driver.response()
    eventually(lambda: (0, 0) == table(secure), within=HANDSHAKE_TIMEOUT - 0.5)
    assert "Traceback" not in secure.log()


def reset(connection: socket.socket, begin: bytes) -> None:
    """Send the begin of something and leave as a process that is killed does."""
    connection.send(begin)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    connection.close()


def test_the_time_of_a_handshake_counts_from_the_accept(secure: GunicornServer) -> None:
    started = time.monotonic()
    with Client(secure.connect(10.0, raw=True)) as client:
        time.sleep(HANDSHAKE_TIMEOUT * 0.75)
        client.send(b"\x16")
        assert client.ended(within=10)
    assert HANDSHAKE_TIMEOUT - 0.5 < time.monotonic() - started < HANDSHAKE_TIMEOUT * 1.5


# The worker leaves.


def test_an_answer_is_not_lost_when_the_worker_leaves_in_the_middle_of_an_unread_body() -> None:
    with serving(linger=0.5) as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.client()) for _ in range(10)]
        for client in clients:
            client.send(b"POST /body?how=not HTTP/1.1\r\nHost: a\r\nContent-Length: 60000\r\n\r\n" + b"x" * 100)
        time.sleep(0.3)
        server.signal(signal.SIGTERM)
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            for client in clients:
                with contextlib.suppress(OSError):
                    client.send(b"x" * 50)
            time.sleep(0.01)
        assert [200] * 10 == [client.response().status for client in clients]
        assert 0 == server.stop()
