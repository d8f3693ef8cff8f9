"""An application written for flask-sock, with the import swapped: on the parking worker, and on servers that do not park."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.development_server import development_server
from tests.support.gunicorn import eventually
from tests.support.longconn_server import PARKING, GunicornServer, gunicorn_server
from tests.support.untraced import without_coverage
from tests.support.websocket_client import websocket

EXAMPLE = Path(__file__).parents[2] / "support" / "sock_example.py"
OURS = "from longconn import ConnectionClosed, Sock"
THEIRS = "from flask_sock import Sock\nfrom simple_websocket import ConnectionClosed"
MANY = 1_000
MOST_PER_CONNECTION = 20 * 1024
"""Bytes of the process for a view that waits for its client."""


@contextlib.contextmanager
def serving(kind: str, folder: Path) -> Iterator[GunicornServer]:
    """The example on one of the servers, or with flask-sock itself."""
    package, server = kind.split(" on ")
    source = EXAMPLE.read_text(encoding="utf-8")
    assert OURS in source
    (folder / "example.py").write_text(source.replace(OURS, OURS if package == "longconn" else THEIRS))
    if server == "werkzeug":
        with development_server("example:app", path=str(folder)) as running:
            yield running
        return
    worker = PARKING if server == "parking" else server
    threads = ("--threads", "16") if server == "gthread" else ()
    with gunicorn_server(*threads, "--pythonpath", str(folder), app="example:app", worker=worker) as running:
        yield running


@pytest.fixture(
    scope="module",
    params=[
        "longconn on parking",
        "longconn on gevent",
        "longconn on gthread",
        "longconn on werkzeug",
        "flask-sock on gthread",
    ],
)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GunicornServer]:
    """A server for all tests that do not end it."""
    with serving(request.param, tmp_path_factory.mktemp("sock")) as running:
        yield running
        assert "longconn" not in request.param or "Traceback" not in running.log(), running.log()


@pytest.mark.together
def test_an_echo_until_it_is_told_to_close(server: GunicornServer) -> None:
    with websocket(server, "/echo") as client:
        client.say("hello", b"bytes", "ünïcödé", "x" * 500_000)
        assert ["hello", b"bytes", "ünïcödé", "x" * 500_000] == [client.hear() for _ in range(4)]
        client.send(client.frame(1, b"in ", fin=False) + client.frame(0, b"pieces"))
        assert "in pieces" == client.hear()
        client.say("close")
        assert ("close", 1000, "") == client.hear()
    assert b"hello" == server.get("/")[2]


@pytest.mark.together
def test_a_thread_sends_to_all_that_listen(server: GunicornServer, name: str) -> None:
    with websocket(server, f"/clock/{name}-a") as one, websocket(server, f"/clock/{name}-b") as other:
        for client in (one, other):
            assert [{"type": "clock"}] * 2 == [json.loads(client.hear()) for _ in range(2)]
        one.say("hello")
        heard = [json.loads(one.hear()) for _ in range(4)]
        assert {"type": "log", "text": "hello"} in heard


@pytest.mark.together
def test_a_route_of_a_blueprint(server: GunicornServer) -> None:
    with websocket(server, "/words/reverse") as client:
        client.say("abc")
        assert "cba" == client.hear()


@pytest.mark.together
def test_a_view_knows_its_request_and_its_subprotocol(server: GunicornServer) -> None:
    with websocket(server, "/who?name=ann", "Sec-WebSocket-Protocol: xml, chat") as client:
        assert "ann /who chat True" == client.hear()
        assert ("close", 1000, "") == client.hear()
    with websocket(server, "/who") as client:
        assert "None /who None True" == client.hear()


@pytest.mark.together
def test_a_view_waits_as_long_as_it_wants_to(server: GunicornServer) -> None:
    with websocket(server, "/patience") as client:
        assert ["None", "None", ("close", 4000, "no patience")] == [client.hear() for _ in range(3)]


@pytest.mark.together
def test_a_view_hears_how_its_client_left(server: GunicornServer) -> None:
    with websocket(server, "/until-the-end") as client:
        client.say_goodbye(4001, "enough")
        assert ("close", 4001) == client.hear()[:2]
    eventually(lambda: [4001, "enough", False] in json.loads(server.get("/ends")[2]))


@pytest.mark.together
def test_pings_are_answered_while_the_view_does_something_else(server: GunicornServer) -> None:
    with websocket(server, "/busy") as client:
        client.say("go")
        client.ping(b"there?")
        assert [("pong", b"there?"), "done"] == [client.hear(), client.hear()]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 1001), (signal.SIGHUP, 1012)])
def test_a_worker_that_leaves_does_not_wait_for_views_that_wait(tmp_path: Path, number: int, code: int) -> None:
    with serving("longconn on parking", tmp_path) as server, websocket(server, "/until-the-end", timeout=30) as client:
        client.say("here")
        (pid,) = server.worker_pids()
        server.signal(number)
        assert ("close", code) == client.hear()[:2]
        client.say_goodbye(code)
        assert client.hear() is None
        eventually(lambda: pid not in server.worker_pids() or server.process.poll() is not None)
        if number == signal.SIGTERM:
            assert 0 == server.process.wait(10)
        assert "cuts" not in server.log()


@pytest.mark.alone
def test_a_view_that_waits_takes_at_most_20_kib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ.keys() - without_coverage().keys():  # whose tracer would be measured, too
        monkeypatch.delenv(name)
    with serving("longconn on parking", tmp_path) as server, contextlib.ExitStack() as opened:
        (pid,) = server.worker_pids()

        def open_some(count: int) -> None:
            for _ in range(count):
                opened.enter_context(websocket(server, "/echo"))

        open_some(100)
        before = own_memory(pid)
        open_some(MANY)
        time.sleep(0.5)
        assert (own_memory(pid) - before) / MANY < MOST_PER_CONNECTION


def own_memory(pid: int) -> int:
    """Bytes of a process that nobody shares with it."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


def test_a_client_that_never_reads_does_not_stop_the_others(tmp_path: Path) -> None:
    with serving("longconn on parking", tmp_path) as server, contextlib.ExitStack() as opened:
        deaf = opened.enter_context(websocket(server, "/echo", buffer=4096))
        one = opened.enter_context(websocket(server, "/echo"))
        deaf.socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                deaf.socket.send(deaf.frame(2, b"x" * 100_000))
        for number in range(20):
            one.say(f"{number}")
            assert f"{number}" == one.hear()
