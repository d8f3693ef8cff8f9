"""Whatever an application does with the socket it was lent, it does to its own client and during its own request."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.gunicorn import eventually
from tests.support.longconn_faults import SECRET
from tests.support.longconn_server import Client, GunicornServer, gunicorn_server

APP = "tests.support.longconn_faults:application"
QUESTION = "GET {} HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "tls"])
def server(request: pytest.FixtureRequest) -> Iterator[GunicornServer]:
    with gunicorn_server(app=APP, tls=request.param, environment={"LONGCONN_LINGER": "0.5"}) as running:
        yield running


def say(client: Client, target: str) -> None:
    """Send a request and do not wait for what comes of it."""
    client.send(QUESTION.format(target).encode())


def used(server: GunicornServer) -> Client:
    """A connection on which a request has been answered, and nothing else is under way: what TLS has to say is said."""
    client = server.client()
    assert b"pong" == client.ask("/").body
    return client


def processor_seconds(pid: int) -> float:
    """Processor time that all threads of this process have used."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text(encoding="ascii").split()[0]) for task in tasks) / 1e9


def states(asking: Client) -> list[str]:
    """The state of every connection in the worker's table, without that of the one that asks."""
    table = json.loads(asking.ask("/table").body)
    assert len(table["states"]) == table["live"]
    table["states"].remove("RESPONDING")
    return sorted(table["states"])


def test_an_answer_after_the_lent_socket_was_closed_reaches_nobody_else(server: GunicornServer) -> None:
    with server.client() as careless, contextlib.ExitStack() as stack:
        say(careless, "/secret?seconds=0.5")
        time.sleep(0.2)
        # One of them has the number of the descriptor that was closed.
        others = [stack.enter_context(used(server)) for _ in range(3)]
        assert b"" == careless.rest()
        time.sleep(0.5)
        assert [True] * 3 == [other.silent(0) for other in others]
        assert [b"pong"] * 3 == [other.ask("/").body for other in others]
    assert SECRET.decode() not in server.log()


def test_a_connection_whose_lent_socket_was_closed_leaves_nothing_in_the_table(server: GunicornServer) -> None:
    with server.client() as asking, contextlib.ExitStack() as stack:
        careless = [stack.enter_context(server.client()) for _ in range(5)]
        for client in careless:
            say(client, "/secret?seconds=0")
            assert b"" == client.rest()
        time.sleep(0.1)
        assert [] == states(asking)


def test_a_duplicate_that_is_kept_keeps_nobody_busy_when_its_client_leaves() -> None:
    with gunicorn_server(app=APP) as server, server.client() as first, server.client() as second:
        (worker,) = server.worker_pids()
        careless = server.client()
        say(careless, "/twin")
        time.sleep(0.2)
        assert [b"pong"] * 2 == [client.ask("/").body for client in (first, second)]
        newcomer = server.client()  # has the number of the lent socket
        newcomer.ask("/")
        careless.close()
        time.sleep(0.1)
        before = processor_seconds(worker)
        time.sleep(0.6)
        assert processor_seconds(worker) - before < 0.3
        assert [b"pong"] * 3 == [client.ask("/").body for client in (first, second, newcomer)]
        newcomer.close()
        eventually(lambda: ["PARKED"] == states(first))


def test_a_socket_that_is_kept_reaches_no_later_request(server: GunicornServer) -> None:
    with server.client() as client:
        assert b"kept" == client.ask("/keep").body
        reply = client.ask("/use")
        found = json.loads(reply.body)
        assert ("EBADF", "EBADF") == (found["send"], found["shutdown"])
        assert b"pong" == client.ask("/").body
        assert client.silent(0.1)


def test_a_socket_that_is_kept_reaches_no_request_of_another(server: GunicornServer) -> None:
    with server.client() as client:
        assert b"kept" == client.ask("/keep").body
    with server.client() as another:
        found = json.loads(another.ask("/use").body)
        assert ("EBADF", "EBADF") == (found["send"], found["shutdown"])
        assert b"pong" == another.ask("/").body


def test_closing_the_lent_socket_logs_no_error(server: GunicornServer) -> None:
    with server.client() as careless:
        say(careless, "/secret?seconds=0")
        assert careless.ended()
    assert 200 == server.get("/")[0]
    assert "Traceback" not in server.log()
    assert "[ERROR]" not in server.log()


def test_receiving_on_the_lent_socket_waits_also_after_a_body_was_read(server: GunicornServer) -> None:
    with used(server) as client:
        client.send(b"POST /wait HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n")
        time.sleep(0.1)
        client.send(b"abc")
        assert client.silent(0.2)
        client.send(b"hello")
        assert b"hello" in client.until(b"hello")


def test_a_worker_whose_applications_hold_closed_sockets_finds_room_and_leaves() -> None:
    environment = {"LONGCONN_MAX_CONNECTIONS": "4", "LONGCONN_LINGER": "0.3"}
    with gunicorn_server(app=APP, environment=environment) as server, contextlib.ExitStack() as stack:
        holding = [stack.enter_context(server.client()) for _ in range(3)]
        for client in holding:
            say(client, "/secret?seconds=1")
        time.sleep(0.2)
        for _ in range(3):
            assert b"pong" == server.get("/")[2]
        assert [True] * 3 == [client.ended() for client in holding]
        assert 0 == server.stop()
        assert "Traceback" not in server.log()
