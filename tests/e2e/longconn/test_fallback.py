"""The worker where there is no epoll: the hub's own watchers tell of the same things."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.gunicorn import eventually
from tests.support.longconn_app import pattern
from tests.support.longconn_endpoints import SWITCHED
from tests.support.longconn_server import GunicornServer, gunicorn_server

WITHOUT_EPOLL = """
def post_fork(server, worker):
    from longconn.parking import lot, poller

    poller.make_poller = lot.make_poller = poller.WatcherPoller
"""
PATIENT = ("--graceful-timeout", "10")
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@pytest.fixture(scope="module", params=[False, pytest.param(True, marks=pytest.mark.prove)], ids=["tcp", "tls"])
def server(request: pytest.FixtureRequest) -> Iterator[GunicornServer]:
    """A worker that watches each connection by itself, for all tests that do not end it."""
    with gunicorn_server(*PATIENT, config=WITHOUT_EPOLL, tls=request.param) as running:
        eventually(lambda: "; watchers)" in running.log())
        yield running


def busy_seconds(server: GunicornServer, during: float) -> float:
    """How much of a processor the worker takes in the next seconds."""
    (pid,) = server.worker_pids()

    def used() -> float:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND

    before = used()
    time.sleep(during)
    return used() - before


def test_a_connection_is_kept_for_many_requests(server: GunicornServer) -> None:
    with server.client() as client:
        for number in range(50):
            reply = client.ask(f"/echo?number={number}")
            assert (200, f"number={number}", True) == (reply.status, json.loads(reply.body)["query"], reply.keeps)
            if number % 10 == 0:
                time.sleep(0.05)


def test_many_connections_take_turns(server: GunicornServer) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.client()) for _ in range(40)]
        for _ in range(3):
            for client in clients:
                client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert [b"pong"] * 40 == [client.response().body for client in clients]


def test_pipelined_requests_are_answered_in_order(server: GunicornServer) -> None:
    with server.client() as client:
        client.send(b"".join(b"GET /echo?%d HTTP/1.1\r\nHost: a\r\n\r\n" % number for number in range(30)))
        assert [f"{number}" for number in range(30)] == [json.loads(client.response().body)["query"] for _ in range(30)]
        assert b"pong" == client.ask("/").body


def test_a_head_may_come_in_pieces(server: GunicornServer) -> None:
    with server.client() as client:
        for _ in range(2):
            for byte in b"GET / HTTP/1.1\r\nHost: a\r\n\r\n":
                client.send(bytes([byte]))
                time.sleep(0.003)
            assert b"pong" == client.response().body


def test_bodies_arrive_whole(server: GunicornServer) -> None:
    with server.client(10.0) as client:
        for size in (1, 10_000, 1_000_000):
            reply = client.ask("/echo", method="POST", body=pattern(size))
            assert size == json.loads(reply.body)["length"]
        client.send(b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(10):
            client.send(b"64\r\n" + pattern(100) + b"\r\n")
            time.sleep(0.02)
        client.send(b"0\r\n\r\n")
        assert 1000 == json.loads(client.response().body)["length"]
        assert b"pong" == client.ask("/").body


def test_a_client_may_leave_at_any_moment(server: GunicornServer) -> None:
    for data in (b"", b"GET / HT", b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc"):
        for rude in (False, True):
            client = server.client()
            client.send(data)
            time.sleep(0.05)
            client.close(reset=rude)
    assert b"pong" == server.get("/")[2]


def test_a_slow_reader_gets_every_byte(server: GunicornServer) -> None:
    size = 8_000_000
    with server.client(10.0) as client:
        client.send(f"GET /large?bytes={size} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        time.sleep(0.5)
        assert b"pong" == server.get("/")[2]
        assert pattern(size) == client.response().body
        assert b"pong" == client.ask("/").body


def test_a_slow_reader_that_has_sent_more_costs_nothing_meanwhile(server: GunicornServer) -> None:
    size = 8_000_000
    with server.client(10.0) as client:
        client.send(f"GET /large?bytes={size} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        time.sleep(0.3)
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        time.sleep(0.2)
        assert busy_seconds(server, 1.5) < 0.5
        assert pattern(size) == client.response().body
        assert b"pong" == client.response().body


def test_waiting_connections_cost_nothing(server: GunicornServer) -> None:
    with contextlib.ExitStack() as stack:
        for number in range(30):
            client = stack.enter_context(server.client())
            if number % 3 == 0:
                client.ask("/")
            elif number % 3 == 1:
                client.send(b"GET / HTTP/1.1\r\n")
        time.sleep(0.2)
        assert busy_seconds(server, 1.5) < 0.5


@pytest.mark.parametrize("tls", [pytest.param(False, marks=pytest.mark.prove), True], ids=["tcp", "tls"])
def test_an_upgraded_connection_works_as_with_epoll(tls: bool, tmp_path: Path) -> None:
    events = tmp_path / "events"
    with (
        gunicorn_server(
            *PATIENT,
            app="tests.support.longconn_endpoints:application",
            config=WITHOUT_EPOLL,
            tls=tls,
            environment={"EVENTS": str(events)},
        ) as server,
        server.client(10.0) as client,
    ):
        client.send(b"GET /upgrade?name=it HTTP/1.1\r\nHost: a\r\n\r\nsay early\n")
        assert SWITCHED == client.until(b"\r\n\r\n")
        assert b"early\n" == client.until(b"\n")
        for number in range(5):
            client.send(b"say %d\n" % number)
            assert b"%d\n" % number == client.until(b"\n")
            time.sleep(0.02)
        client.send(b"large 12000000\n")
        time.sleep(0.4)
        assert pattern(12_000_000) == client.exactly(12_000_000)
        client.send(b"wake 0.2\n")
        assert b"deadline\n" == client.until(b"\n")
        server.get("/post?name=it")
        assert b"message 0\n" == client.until(b"\n")
        assert busy_seconds(server, 1.0) < 0.4
        server.signal(signal.SIGTERM)
        assert client.until(b"\n").startswith(b"draining ")
        client.finish()
        assert 0 == server.process.wait(6)
    assert ["it left", "it closed client"] == events.read_text().splitlines()[-2:]
    assert "it writable" in events.read_text().splitlines()


@pytest.mark.together
def test_it_drains_as_with_epoll() -> None:
    with (
        gunicorn_server(*PATIENT, config=WITHOUT_EPOLL) as server,
        server.client(10.0) as idle,
        server.client(10.0) as busy,
    ):
        idle.ask("/")
        busy.send(b"GET /slow?seconds=1 HTTP/1.1\r\nHost: a\r\n\r\n")
        time.sleep(0.3)
        server.signal(signal.SIGTERM)
        time.sleep(0.3)
        reply = idle.ask("/")
        assert (b"pong", False) == (reply.body, reply.keeps)
        assert idle.ended()
        reply = busy.response()
        assert (b"slow", False) == (reply.body, reply.keeps)
        assert 0 == server.process.wait(8)
        assert "Traceback" not in server.log()


@pytest.mark.together
def test_two_workers_without_epoll_both_take_connections_and_idle() -> None:
    with gunicorn_server(*PATIENT, config=WITHOUT_EPOLL, workers=2) as server, contextlib.ExitStack() as stack:
        pids = set()
        for _ in range(60):
            client = stack.enter_context(server.client())
            pids.add(json.loads(client.ask("/pid").body)["pid"])
        assert set(server.worker_pids()) == pids
