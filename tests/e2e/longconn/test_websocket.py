"""WebSockets on the real worker: what its clients see, how they end, and what they cost."""

from __future__ import annotations

import contextlib
import json
import select
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.support.gunicorn import eventually
from tests.support.longconn_app import pattern
from tests.support.longconn_server import GunicornServer, gunicorn_server
from tests.support.websocket_client import WebSocketClient, websocket

APP = "tests.support.longconn_websockets:application"
MOST_PER_CONNECTION = 560
"""Bytes of the process for one that is idle. Few are opened here, so that what the process itself takes counts too."""


@contextlib.contextmanager
def websockets_server(events: Path, *arguments: str, **options: Any) -> Iterator[GunicornServer]:
    """A server whose events go to the file."""
    with gunicorn_server(
        "--graceful-timeout", "15", *arguments, app=APP, environment={"EVENTS": str(events)}, **options
    ) as server:
        yield server


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file with the events of the server that the tests of this module share."""
    file = tmp_path_factory.mktemp("websockets") / "events"
    file.touch()
    return file


@pytest.fixture(scope="module")
def server(events: Path) -> Iterator[GunicornServer]:
    """A server for all tests that do not end it."""
    with websockets_server(events) as running:
        yield running


def target(name: str, **options: Any) -> str:
    """Where a WebSocket with these options is opened. `user`, `expires` and `open` are no options."""
    others = "".join(f"&{key}={options.pop(key)}" for key in ("user", "expires", "open") if key in options)
    return f"/ws?name={name}{others}&options={quote(json.dumps(options))}"


def ends(events: Path, name: str) -> list[str]:
    """What the application has heard of the end."""
    pairs = (each.partition(" ") for each in events.read_text().splitlines())
    return [what for who, _, what in pairs if who == name and what.startswith("close")]


def assert_ended_once(events: Path, name: str, end: str) -> None:
    """The application has heard it, once."""
    eventually(lambda: ends(events, name))
    assert [f"close {end}"] == ends(events, name)


def figures(server: GunicornServer) -> dict[str, int]:
    """The worker's row of the scoreboard."""
    found: dict[str, int] = json.loads(server.get("/figures")[2])
    return found


# Messages.


def test_messages_come_back(server: GunicornServer, name: str) -> None:
    with websocket(server, target(name)) as client:
        client.say("hello", b"\x00\xff", "ü" * 70_000)
        assert ["hello", b"\x00\xff", "ü" * 70_000] == [client.hear() for _ in range(3)]


def test_a_message_may_come_byte_by_byte(server: GunicornServer, name: str) -> None:
    with websocket(server, target(name)) as client:
        for byte in client.frame(1, b"one by one"):
            client.send(bytes([byte]))
            time.sleep(0.002)
        assert "one by one" == client.hear()


def test_a_message_may_come_in_fragments_with_pings_between(server: GunicornServer, name: str) -> None:
    with websocket(server, target(name)) as client:
        client.send(client.frame(1, b"in ", fin=False) + client.frame(9, b"?") + client.frame(0, b"two"))
        assert [("pong", b"?"), "in two"] == [client.hear() for _ in range(2)]


def test_what_came_with_the_handshake_is_heard(server: GunicornServer, name: str) -> None:
    with server.client() as client:
        fields = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        head = f"GET {target(name)} HTTP/1.1\r\nHost: a\r\n{fields}Sec-WebSocket-Key: {'A' * 22}==\r\n\r\n".encode()
        early = WebSocketClient(client.socket).frame(1, b"early")
        client.send(head + early)
        assert client.until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")
        assert "early" == WebSocketClient(client.socket, client.buffer).hear()


def test_what_is_sent_when_it_opens_comes_first(server: GunicornServer, name: str) -> None:
    with websocket(server, target(name, open="welcome")) as client:
        assert "welcome" == client.hear()


def test_twenty_megabytes_reach_a_slow_reader_whole(server: GunicornServer, name: str) -> None:
    with websocket(server, target(name), buffer=65_536) as client:
        client.say("large 20000000")
        time.sleep(0.2)
        client.say("and then")
        assert pattern(20_000_000) == client.hear()
        assert "and then" == client.hear()


def test_those_who_send_at_the_same_time_never_mix_their_messages(server: GunicornServer, name: str) -> None:
    with websocket(server, target(name, user=name, queue_bytes=1 << 26), buffer=16_384) as client:

        def send(letter: str, way: str) -> None:
            for _ in range(3):
                server.get(f"/send?user={name}&text={letter}&times=60000{way}")

        threads = [
            threading.Thread(target=send, args=(letter, way))
            for letter, way in zip("abcdef", ["", "&from=thread"] * 3, strict=True)
        ]
        for thread in threads:
            thread.start()
        heard = Counter(client.hear() for _ in range(18))
        for thread in threads:
            thread.join()
        assert {letter * 60_000: 3 for letter in "abcdef"} == heard


def test_a_handler_that_blocks_holds_up_no_other_client(server: GunicornServer, name: str) -> None:
    with websocket(server, target(name)) as slow, websocket(server, target(name)) as quick:
        slow.say("sleep 0.5", "after")
        for number in range(20):
            quick.say(f"{number}")
            assert f"{number}" == quick.hear()
        assert ["slept", "after"] == [slow.hear() for _ in range(2)]


def test_a_flood_of_one_client_leaves_others_their_turn(server: GunicornServer, name: str) -> None:
    with websocket(server, target(name, queue_bytes=1 << 26)) as flood, websocket(server, target(name)) as other:
        flood.send(flood.frame(1, b"x") * 30_000)
        slowest = 0.0
        for _ in range(20):
            started = time.monotonic()
            other.say("here")
            assert "here" == other.hear()
            slowest = max(slowest, time.monotonic() - started)
        assert slowest < 1.0
        assert 30_000 == sum(1 for _ in range(30_000) if flood.hear() == "x")


def test_compression_is_spoken_where_it_was_agreed_on(server: GunicornServer, name: str) -> None:
    with websocket(server, target(name, compression=True), compress=True) as client:
        assert client.compressed
        client.say("long " * 10_000, "short")
        assert ["long " * 10_000, "short"] == [client.hear() for _ in range(2)]
    with websocket(server, target(name), compress=True) as client:
        assert not client.compressed


def test_it_is_spoken_over_tls(tmp_path: Path) -> None:
    with websockets_server(tmp_path / "events", tls=True) as server, websocket(server, target("tls")) as client:
        client.say("hello", "large 5000000", "close 4000 done")
        assert ["hello", pattern(5_000_000), ("close", 4000, "done")] == [client.hear() for _ in range(3)]
        client.say_goodbye(4000)
        assert client.hear() is None
        assert_ended_once(tmp_path / "events", "tls", "4000 done")


# Whether it lives.


def test_a_client_that_answers_its_pings_lives_and_another_one_does_not(
    server: GunicornServer, events: Path, name: str
) -> None:
    options = {"ping_interval": 0.4, "ping_timeout": 0.3}
    with websocket(server, target(name, **options)) as good, websocket(server, target(f"{name}-bad", **options)) as bad:
        for _ in range(4):
            assert ("ping", b"") == good.hear()
            good.pong()
        assert [("ping", b""), ("close", 1011, "no answer to a ping")] == bad.rest()
        assert_ended_once(events, f"{name}-bad", "1011 no answer to a ping")
        good.say("alive")
        assert "alive" == next(heard for _ in range(10) if (heard := good.hear()) != ("ping", b""))


def test_a_client_that_was_busy_taking_a_large_message_is_not_given_up(server: GunicornServer, name: str) -> None:
    with websocket(server, target(name, ping_interval=0.2, ping_timeout=0.3), buffer=16_384) as client:
        client.say("large 8000000")
        taken = b""
        while len(taken) < 1_500_000:
            taken += client.socket.recv(50_000)
            time.sleep(0.03)
        client._take(taken)
        assert pattern(8_000_000) == client.hear()


def test_who_never_reads_is_sent_away_at_the_limit(server: GunicornServer, events: Path, name: str) -> None:
    with (
        websocket(server, target(name, queue_bytes=200_000, close_timeout=0.5), buffer=4_096) as client,
        websocket(server, target(f"{name}-other")) as other,
    ):
        before = int(server.get("/memory")[2])
        with contextlib.suppress(OSError):
            for _ in range(40):
                client.say("many 100 10000")
        other.say("here")
        assert "here" == other.hear()
        eventually(lambda: figures(server)["slow consumers disconnected"])
        assert int(server.get("/memory")[2]) - before < 6_000_000
        assert "x" * 10_000 == client.hear()
        heard = client.rest()
        assert ("close", 1013, "too slow") == heard[-1]
        assert {"x" * 10_000} == set(heard[:-1])
        client.socket.close()
    assert_ended_once(events, name, "1013 too slow")


# How it ends.


def test_a_goodbye_is_answered_and_the_connection_ends(server: GunicornServer, events: Path, name: str) -> None:
    with websocket(server, target(name)) as client:
        client.say_goodbye(3333, "enough")
        assert [("close", 3333, "")] == client.rest()
    assert_ended_once(events, name, "3333 enough")


@pytest.mark.parametrize("how", ["close", "reset", "half"])
def test_a_client_that_just_leaves_has_left(server: GunicornServer, events: Path, name: str, how: str) -> None:
    with websocket(server, target(name)) as client:
        if how == "reset":
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        if how == "half":
            client.socket.shutdown(socket.SHUT_WR)
            assert client.hear() is None
        client.socket.close()
        assert_ended_once(events, name, "1006")


def test_the_last_words_reach_a_client_that_is_just_sending(server: GunicornServer, name: str) -> None:
    with websocket(server, target(name, message_bytes=1000)) as client:
        with contextlib.suppress(OSError):
            client.send(client.frame(2, b"x" * 900_000))
        assert ("close", 1009) == client.hear()[:2]


def test_an_authorization_ends_when_it_expires(server: GunicornServer, events: Path, name: str) -> None:
    with websocket(server, target(name, user="ada", expires=0.5)) as client:
        client.say("still")
        assert "still" == client.hear()
        assert ("close", 1008, "the authorization has expired") == client.hear()
        client.say_goodbye(1008)
    assert_ended_once(events, name, "1008 the authorization has expired")


def test_a_user_may_be_sent_away(server: GunicornServer, events: Path, name: str) -> None:
    with websocket(server, target(name, user=name)) as client, websocket(server, target(f"{name}-other")) as other:
        server.get(f"/kick?user={name}&code=4403")
        assert ("close", 4403, "kicked") == client.hear()
        client.say_goodbye(4403)
        assert client.hear() is None
        other.say("still here")
        assert "still here" == other.hear()
    assert_ended_once(events, name, "4403 kicked")


# When the worker leaves.


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 1001), (signal.SIGHUP, 1012)])
def test_everybody_hears_that_the_worker_leaves_after_what_was_sent_before(
    tmp_path: Path, number: int, code: int
) -> None:
    with websockets_server(tmp_path / "events") as server, contextlib.ExitStack() as stack:
        (pid,) = server.worker_pids()
        clients = [stack.enter_context(websocket(server, target(f"{each}"))) for each in range(150)]
        reader = stack.enter_context(websocket(server, target("reader"), buffer=65_536))
        reader.say("large 9000000")
        time.sleep(0.2)
        server.signal(number)
        assert pattern(9_000_000) == reader.hear()
        for client in [*clients, reader]:
            assert ("close", code, "") == client.hear()
            client.say_goodbye(code)
            assert client.hear() is None
        eventually(lambda: pid not in server.worker_pids())
        lines = (tmp_path / "events").read_text().splitlines()
        assert 151 == sum(line.endswith(f" close {code}") for line in lines)
        if number == signal.SIGTERM:
            assert 0 == server.process.wait(5)


def test_the_goodbyes_are_spread(tmp_path: Path) -> None:
    with websockets_server(tmp_path / "events") as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(websocket(server, target("a"))) for _ in range(300)]
        server.signal(signal.SIGHUP)
        waiting = {client.socket: client for client in clients}
        moments = []
        while waiting:
            for ready in select.select(list(waiting), [], [], 10.0)[0]:
                moments.append(time.monotonic())
                assert ("close", 1012, "") == waiting.pop(ready).hear()
        assert moments[-1] - moments[0] > 0.3
        for client in clients:
            client.socket.close()


def test_one_that_opens_while_the_worker_leaves_is_told_too(tmp_path: Path) -> None:
    with (
        websockets_server(tmp_path / "events") as server,
        server.client() as idle,
        websocket(server, target("a", open="sleep%203", close_timeout=1)) as client,
    ):
        idle.send(b"G")
        eventually(lambda: "a open" in (tmp_path / "events").read_text())
        server.signal(signal.SIGTERM)
        assert ("close", 1001, "") == client.hear()
        client.say_goodbye(1001)
        assert client.hear() is None
        # What the application is doing for it comes to its end.
        idle.close()
        assert 0 == server.process.wait(10)
        assert ["a open", "a slept", "a close 1001"] == (tmp_path / "events").read_text().splitlines()


# What it costs.


def idle_bytes(server: GunicornServer, count: int) -> float:
    """What one idle WebSocket costs, of `count`."""
    with contextlib.ExitStack() as stack:

        def open_some(number: int) -> None:
            for each in range(number):
                stack.enter_context(websocket(server, "/ws", source=f"127.0.1.{1 + each % 50}"))

        open_some(count // 8)
        time.sleep(0.3)
        before = int(server.get("/memory")[2])
        open_some(count)
        time.sleep(0.3)
        each = (int(server.get("/memory")[2]) - before) / count
        assert figures(server)["kind websocket"] >= count
        assert figures(server)["greenlets"] <= 16
    print(f"\n{each:.0f} bytes for each of {count} idle WebSockets")
    return each


@pytest.mark.parametrize("count", [800, pytest.param(9_000, marks=pytest.mark.prove)])
def test_an_idle_one_costs_half_a_kibibyte(tmp_path: Path, count: int) -> None:
    with websockets_server(tmp_path / "events") as server:
        assert idle_bytes(server, count) < MOST_PER_CONNECTION


def test_those_whose_handlers_do_not_end_hear_that_the_worker_leaves(tmp_path: Path) -> None:
    with (
        websockets_server(tmp_path / "events", "--graceful-timeout", "3") as server,
        websocket(server, target("busy")) as busy,
        websocket(server, target("opening")) as other,
    ):
        busy.say("sleep 60")
        other.say("sleep 60")
        time.sleep(0.2)
        started = time.monotonic()
        server.signal(signal.SIGTERM)
        assert [("close", 1001, "")] * 2 == [busy.hear(), other.hear()]
        assert time.monotonic() - started < 2.0
        busy.say_goodbye(1001)
        assert 0 == server.process.wait(8)


def test_the_worker_leaves_when_the_application_has_heard_of_every_end(tmp_path: Path) -> None:
    with websockets_server(tmp_path / "events") as server, contextlib.ExitStack() as stack:
        for each in range(5):
            stack.enter_context(websocket(server, target(f"slow-{each}", close_timeout=0.2)))
        assert 0 == server.stop()
        lines = (tmp_path / "events").read_text().splitlines()
        assert 5 == sum(line.endswith(" close 1001") for line in lines)
