"""Connections that another protocol has taken over: what wakes them, in which order, and how they end."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote_plus

import pytest

from tests.support.gunicorn import eventually
from tests.support.longconn_app import pattern
from tests.support.longconn_endpoints import SWITCHED
from tests.support.longconn_server import Client, GunicornServer, gunicorn_server

APP = "tests.support.longconn_endpoints:application"
STEP = 0.1
"""Seconds between two ticks of the worker's wheel: a deadline may be late by about as much."""
MANY = 300
MOST_PER_CONNECTION = 1536
"""Bytes of the process for one that is parked, TCP and TLS of the kernel and OpenSSL not counted."""


@contextlib.contextmanager
def endpoints(
    events: Path, *arguments: str, tls: bool = False, workers: int = 1, environment: dict[str, str] | None = None
) -> Iterator[GunicornServer]:
    """A server of `longconn_endpoints` whose events go to the file."""
    patient = ("--graceful-timeout", "20")
    with gunicorn_server(
        *patient,
        *arguments,
        app=APP,
        tls=tls,
        workers=workers,
        environment={"EVENTS": str(events), **(environment or {})},
    ) as server:
        yield server


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file with the events of the server that the tests of this module share."""
    file = tmp_path_factory.mktemp("upgrades") / "events"
    file.touch()
    return file


@pytest.fixture(scope="module", params=[pytest.param(False, marks=pytest.mark.prove), True], ids=["tcp", "tls"])
def server(events: Path, request: pytest.FixtureRequest) -> Iterator[GunicornServer]:
    """A server for all tests that do not end it."""
    with endpoints(events, tls=request.param) as running:
        yield running


def upgraded(server: GunicornServer, name: str, *commands: str, after: str = "return", kind: str = "other") -> Client:
    """A connection that has been handed over. The commands have run inside the application's call."""
    client = server.client(10.0)
    runs = "".join(f"&run={quote_plus(command)}" for command in commands)
    target = f"/upgrade?name={quote_plus(name)}&kind={kind}&after={quote_plus(after)}{runs}"
    client.send(f"GET {target} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    assert SWITCHED == client.until(b"\r\n\r\n")
    return client


def line(client: Client) -> str:
    """The next line that the endpoint sends."""
    return client.until(b"\n").decode().rstrip("\n")


def command(client: Client, *commands: str) -> None:
    """Ask the endpoint for something."""
    client.send("".join(f"{each}\n" for each in commands).encode())


def ask(server: GunicornServer, path: str, name: str, *commands: str) -> bytes:
    """A request of another client about the connection of this name."""
    runs = "".join(f"&run={quote_plus(each)}" for each in commands)
    separator = "&" if "?" in path else "?"
    status, _, body = server.get(f"{path}{separator}name={quote_plus(name)}{runs}")
    assert 200 == status
    return body


def happened(events: Path, name: str) -> list[str]:
    """What has happened to the connection of this name."""
    pairs = (each.partition(" ") for each in events.read_text().splitlines())
    return [what for who, _, what in pairs if who == name]


def ends(events: Path, name: str) -> list[str]:
    """Every call of `closed`."""
    return [what for what in happened(events, name) if what.startswith("closed")]


def assert_ended_once(events: Path, name: str, reason: str) -> None:
    """Its `closed` has been called, once and with this reason, and nothing of it overlapped."""
    eventually(lambda: ends(events, name))
    time.sleep(0.15)
    assert [f"closed {reason}"] == ends(events, name)
    assert [] == [what for what in happened(events, name) if what.startswith("overlap")]


def figures(server: GunicornServer) -> dict[str, int]:
    """The worker's row of the scoreboard."""
    found: dict[str, int] = json.loads(server.get("/figures")[2])
    return found


# What wakes it.


@pytest.mark.together
def test_what_the_client_sends_wakes_it(server: GunicornServer, name: str) -> None:
    with upgraded(server, name) as client:
        for number in range(5):
            command(client, f"say {number}")
            assert f"{number}" == line(client)
        command(client, "say together", "say with this", "sleep 0.1", "say later")
        assert ["together", "with this", "later"] == [line(client) for _ in range(3)]


@pytest.mark.together
def test_a_message_in_many_pieces_arrives_whole(server: GunicornServer, name: str) -> None:
    with upgraded(server, name) as client:
        for byte in b"say one by one\n":
            client.send(bytes([byte]))
            time.sleep(0.005)
        assert "one by one" == line(client)
        command(client, "say " + "x" * 300_000)
        assert "x" * 300_000 == line(client)


@pytest.mark.parametrize("framing", ["no body", "a body"])
@pytest.mark.together
def test_bytes_that_came_with_the_request_are_its_first(server: GunicornServer, name: str, framing: str) -> None:
    with server.client(10.0) as client:
        body = b"Content-Length: 3\r\n\r\nabc" if framing == "a body" else b"\r\n"
        client.send(f"POST /upgrade?name={name} HTTP/1.1\r\nHost: a\r\n".encode() + body + b"say early\nsay ear")
        assert SWITCHED == client.until(b"\r\n\r\n")
        assert "early" == line(client)
        client.send(b"lier\n")
        assert "earlier" == line(client)


@pytest.mark.together
def test_bytes_that_arrive_while_the_application_runs_are_not_lost(server: GunicornServer, name: str) -> None:
    with upgraded(server, name, after="sleep 0.4") as client:
        command(client, "say meanwhile")
        assert "meanwhile" == line(client)


@pytest.mark.together
def test_bytes_that_arrive_behind_a_body_while_it_is_read_are_not_lost(server: GunicornServer, name: str) -> None:
    with server.client(10.0) as client:
        client.send(f"POST /upgrade?name={name} HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nabc".encode())
        time.sleep(0.2)
        client.send(b"defsay behind\n")
        assert SWITCHED == client.until(b"\r\n\r\n")
        assert "behind" == line(client)


@pytest.mark.together
def test_a_client_that_leaves_ends_it(server: GunicornServer, events: Path, name: str) -> None:
    upgraded(server, name).close()
    assert_ended_once(events, name, "client")
    assert {"alive": False, "descriptor": -1} == json.loads(ask(server, "/alive", name))


@pytest.mark.together
def test_a_reset_counts_as_leaving(server: GunicornServer, events: Path, name: str) -> None:
    client = upgraded(server, name)
    command(client, "say hello")
    assert "hello" == line(client)
    client.close(reset=True)
    assert_ended_once(events, name, "client")


@pytest.mark.together
def test_a_client_that_left_before_the_application_returned_has_left(
    server: GunicornServer, events: Path, name: str
) -> None:
    upgraded(server, name, after="sleep 0.5").close()
    assert_ended_once(events, name, "client")


@pytest.mark.together
def test_after_a_half_close_the_endpoint_can_still_speak(events: Path, name: str) -> None:
    with endpoints(events) as server, upgraded(server, name, "on left say goodbye", "on left large 500000") as client:
        command(client, "say hello")
        client.finish()
        assert ["hello", "goodbye"] == [line(client) for _ in range(2)]
        assert pattern(500_000) == client.exactly(500_000)
        ask(server, "/do", name, "close upgraded")
        assert client.ended()
        assert_ended_once(events, name, "upgraded")


@pytest.mark.together
def test_what_a_slow_client_does_not_take_goes_on_when_it_does(server: GunicornServer, events: Path, name: str) -> None:
    size = 12_000_000
    with upgraded(server, name) as client:
        command(client, f"large {size}")
        time.sleep(0.3)
        assert b"pong" == server.get("/")[2]
        received = 0
        while received < size:
            piece = client.socket.recv(1 << 18)
            assert pattern(len(piece), received) == piece
            received += len(piece)
            if received < 3_000_000:
                time.sleep(0.002)
        command(client, "say done")
        assert "done" == line(client)
    assert "writable" in happened(events, name)
    assert_ended_once(events, name, "client")


@pytest.mark.together
def test_room_that_comes_while_its_method_still_runs_is_not_missed(
    server: GunicornServer, events: Path, name: str
) -> None:
    size = 8_000_000
    with upgraded(server, name, "on readable sleep 0.7") as client:
        command(client, f"large {size}")
        assert pattern(size) == client.exactly(size)
    assert "writable" in happened(events, name)


@pytest.mark.together
def test_room_wakes_what_the_application_itself_began_to_send(server: GunicornServer, events: Path, name: str) -> None:
    size = 12_000_000
    with upgraded(server, name, f"large {size}", after="sleep 0.2") as client:
        time.sleep(0.4)
        assert pattern(size) == client.exactly(size)
    assert "writable" in happened(events, name)


@pytest.mark.together
def test_its_client_is_heard_while_it_does_not_read(server: GunicornServer, events: Path, name: str) -> None:
    with upgraded(server, name, "on message close upgraded") as client:
        command(client, "large 20000000")
        command(client, "raise RuntimeError")
        assert_ended_once(events, name, "error")


# Deadlines.


@pytest.mark.together
def test_a_deadline_comes_in_time_and_once(server: GunicornServer, name: str) -> None:
    with upgraded(server, name) as client:
        started = time.monotonic()
        command(client, "wake 0.5")
        assert "deadline" == line(client)
        took = time.monotonic() - started
        assert 0.49 <= took < 0.5 + 2 * STEP + 1.0
        assert client.silent(0.7)


@pytest.mark.together
def test_a_deadline_set_inside_the_application_call_counts_from_there(server: GunicornServer, name: str) -> None:
    with upgraded(server, name, "wake 0.3", after="sleep 0.6") as client:
        assert "deadline" == line(client)
        assert client.silent(0.5)
    with upgraded(server, name, "wake 0.3") as client:
        assert "deadline" == line(client)


@pytest.mark.together
def test_a_deadline_can_be_set_anew_from_within(server: GunicornServer, name: str) -> None:
    with upgraded(server, name, "on deadline wake 0.2", "wake 0.2") as client:
        started = time.monotonic()
        assert ["deadline"] * 4 == [line(client) for _ in range(4)]
        assert 0.79 <= time.monotonic() - started


@pytest.mark.together
def test_the_latest_deadline_counts(server: GunicornServer, name: str) -> None:
    with upgraded(server, name, "wake 0.2") as client:
        command(client, "wake 1.2")
        started = time.monotonic()
        assert "deadline" == line(client)
        assert 0.9 < time.monotonic() - started
        command(client, "wake 60", "wake 0.2")
        started = time.monotonic()
        assert "deadline" == line(client)
        assert time.monotonic() - started < 3.0


@pytest.mark.together
def test_a_deadline_can_be_cancelled(server: GunicornServer, name: str) -> None:
    with upgraded(server, name, "wake 0.3") as client:
        command(client, "wake never")
        assert client.silent(0.9)
        command(client, "wake 0.1")
        assert "deadline" == line(client)


@pytest.mark.together
def test_another_request_may_set_its_deadline(server: GunicornServer, name: str) -> None:
    with upgraded(server, name) as client:
        ask(server, "/do", name, "wake 0.2")
        assert "deadline" == line(client)


@pytest.mark.together
def test_a_deadline_that_passes_while_its_method_runs_is_not_lost(server: GunicornServer, name: str) -> None:
    with upgraded(server, name) as client:
        command(client, "wake 0.2", "sleep 0.6", "say slept")
        assert ["slept", "deadline"] == [line(client) for _ in range(2)]


@pytest.mark.together
def test_it_has_no_deadline_of_http(name: str, events: Path) -> None:
    short = {f"LONGCONN_{what}_TIMEOUT": "0.5" for what in ("IDLE", "HEAD", "BODY", "WRITE", "REQUEST")}
    with endpoints(events, environment=short) as server, upgraded(server, name) as client:
        assert client.silent(1.5)
        command(client, "say here")
        assert "here" == line(client)


# Messages.


@pytest.mark.parametrize("origin", ["greenlet", "thread"])
@pytest.mark.together
def test_messages_come_in_the_order_of_posting(server: GunicornServer, name: str, origin: str) -> None:
    with upgraded(server, name) as client:
        ask(server, f"/post?messages={MANY}&from={origin}", name)
        assert [f"message {number}" for number in range(MANY)] == [line(client) for _ in range(MANY)]


@pytest.mark.together
def test_messages_that_come_while_its_method_blocks_wait(server: GunicornServer, events: Path, name: str) -> None:
    with upgraded(server, name, "on message sleep 0.2", "on message say slept") as client:
        for _ in range(3):
            ask(server, "/post", name)
        assert ["message 0", "slept"] * 3 == [line(client) for _ in range(6)]
    assert_ended_once(events, name, "client")


@pytest.mark.together
def test_methods_of_one_connection_never_overlap(server: GunicornServer, events: Path, name: str) -> None:
    blocking = [f"on {method} sleep 0.05" for method in ("readable", "deadline", "message")]
    with upgraded(server, name, *blocking, "on deadline wake 0.1", "wake 0.1") as client:
        for number in range(12):
            command(client, f"say {number}")
            ask(server, f"/post?messages=2&from={'thread' if number % 2 else 'greenlet'}", name)
        seen = Counter(line(client).split(" ")[0] for _ in range(12 + 24))
        while sum(count for word, count in seen.items() if word != "deadline") < 36:
            seen[line(client).split(" ")[0]] += 1
        assert 24 == seen["message"]
        command(client, "close client")
        client.rest()
    assert_ended_once(events, name, "client")


@pytest.mark.together
def test_a_method_that_blocks_holds_up_no_other_connection(server: GunicornServer, name: str) -> None:
    with upgraded(server, f"{name}-one") as blocked, upgraded(server, f"{name}-other") as other:
        command(blocked, "sleep 1.5", "say at last")
        for _ in range(10):
            command(other, "say quick")
            assert "quick" == line(other)
        assert blocked.silent(0.0)
        assert "at last" == line(blocked)


@pytest.mark.together
def test_a_message_posted_inside_the_application_call_arrives(server: GunicornServer, name: str) -> None:
    with upgraded(server, name, after="sleep 0.4") as client:
        ask(server, "/post?messages=2", name)
        assert ["message 0", "message 1"] == [line(client) for _ in range(2)]


@pytest.mark.parametrize("origin", ["greenlet", "thread"])
@pytest.mark.together
def test_a_message_to_a_connection_that_has_ended_is_dropped(
    server: GunicornServer, events: Path, name: str, origin: str
) -> None:
    upgraded(server, name).close()
    assert_ended_once(events, name, "client")
    ask(server, f"/post?from={origin}&messages=3", name)
    ask(server, "/do", name, "wake 0.1", "close idle")
    time.sleep(0.3)
    assert ["left", "closed client"] == happened(events, name)


# How it ends.


@pytest.mark.together
def test_it_may_be_closed_from_its_own_methods(server: GunicornServer, events: Path, name: str) -> None:
    with upgraded(server, name) as client:
        command(client, "say bye", "close idle", "close client")
        assert b"bye\n" == client.rest()
    assert_ended_once(events, name, "idle")


@pytest.mark.together
def test_it_may_be_closed_from_another_request(server: GunicornServer, events: Path, name: str) -> None:
    with upgraded(server, name) as client:
        ask(server, "/do", name, "close evicted")
        assert client.ended()
    assert_ended_once(events, name, "evicted")


@pytest.mark.together
def test_it_may_be_closed_while_its_method_blocks(server: GunicornServer, events: Path, name: str) -> None:
    with upgraded(server, name) as client:
        command(client, "sleep 0.4", "say into the void")
        time.sleep(0.1)
        ask(server, "/do", name, "close evicted")
        assert client.ended()
    time.sleep(0.5)
    assert_ended_once(events, name, "evicted")


@pytest.mark.together
def test_it_may_be_closed_inside_the_application_call(server: GunicornServer, events: Path, name: str) -> None:
    with upgraded(server, name, "close idle") as client:
        assert client.ended()
    assert_ended_once(events, name, "idle")


@pytest.mark.parametrize("method", ["readable", "deadline", "message", "writable"])
def test_an_error_in_a_method_is_logged_and_ends_only_that_connection(
    server: GunicornServer, events: Path, name: str, method: str
) -> None:
    before = server.log().count("RuntimeError: asked for")
    with (
        upgraded(server, f"{name}-other") as other,
        upgraded(server, name, f"on {method} raise RuntimeError") as client,
    ):
        match method:
            case "readable":
                command(client, "say something")
            case "deadline":
                command(client, "wake 0.1")
            case "message":
                ask(server, "/post", name)
            case "writable":
                command(client, "large 9000000")
        client.rest()
        assert_ended_once(events, name, "error")
        eventually(lambda: before + 1 == server.log().count("RuntimeError: asked for"))
        command(other, "say alive")
        assert "alive" == line(other)


@pytest.mark.parametrize("error", ["OSError", "SystemExit", "GreenletExit", "Timeout", "Unusual"])
@pytest.mark.together
def test_whatever_a_method_raises_ends_its_connection(
    server: GunicornServer, events: Path, name: str, error: str
) -> None:
    (pid,) = server.worker_pids()
    with upgraded(server, name) as client:
        command(client, f"raise {error}")
        assert client.ended()
    eventually(lambda: ends(events, name))
    assert 1 == len(ends(events, name))
    with upgraded(server, f"{name}-next") as client:
        command(client, "say alive")
        assert "alive" == line(client)
    assert [pid] == server.worker_pids()


def test_an_error_in_closed_is_logged(server: GunicornServer, events: Path, name: str) -> None:
    before = server.log().count("RuntimeError: asked for")
    upgraded(server, name, "on closed raise RuntimeError").close()
    assert_ended_once(events, name, "client")
    eventually(lambda: before + 1 == server.log().count("RuntimeError: asked for"))
    assert b"pong" == server.get("/")[2]


@pytest.mark.together
def test_closing_it_for_a_reason_that_is_none_is_an_error_of_the_method(
    server: GunicornServer, events: Path, name: str
) -> None:
    with upgraded(server, name) as client:
        command(client, "close for good")
        assert client.ended()
    assert_ended_once(events, name, "error")


@pytest.mark.parametrize("error", ["RuntimeError", "OSError", "Unusual"])
@pytest.mark.together
def test_an_application_that_raises_after_the_hand_over_ends_it(
    server: GunicornServer, events: Path, name: str, error: str
) -> None:
    with upgraded(server, name, after=f"raise {error}") as client:
        assert client.ended()
    eventually(lambda: ends(events, name))
    assert ends(events, name) in (["closed error"], ["closed reset"])
    eventually(lambda: "raised after the hand-over" in server.log())
    assert b"pong" == server.get("/")[2]


# When it cannot be handed over.


@pytest.mark.together
def test_a_connection_whose_answer_has_begun_is_not_handed_over(server: GunicornServer) -> None:
    status, _, body = server.get("/refused?how=late")
    assert (200, True) == (status, body.startswith(b"begun, UpgradeError: the answer has begun"))


@pytest.mark.together
def test_a_connection_is_handed_over_once(server: GunicornServer) -> None:
    with server.client(10.0) as client:
        client.send(b"GET /refused?how=twice HTTP/1.1\r\nHost: a\r\n\r\n")
        assert SWITCHED == client.until(b"\r\n\r\n")
        assert line(client).startswith("UpgradeError: ")
        command(client, "say still here")
        assert "still here" == line(client)


@pytest.mark.parametrize("framing", ["Content-Length: 9", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize("arrives", ["never", "meanwhile"])
@pytest.mark.together
def test_a_connection_with_an_unread_body_is_not_handed_over(
    server: GunicornServer, framing: str, arrives: str
) -> None:
    with server.client(10.0) as client:
        client.send(f"POST /refused?how=unread HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n".encode())
        if arrives == "meanwhile":
            time.sleep(0.1)
            client.send(b"say lost\n" if "Length" in framing else b"9\r\nsay lost\n\r\n0\r\n\r\n")
        reply = client.response()
        assert (200, True) == (reply.status, reply.body.startswith(b"UpgradeError: the request has a body"))


# What it costs.


def test_it_waits_without_a_greenlet_and_is_counted(events: Path, name: str) -> None:
    with endpoints(events) as server, contextlib.ExitStack() as stack:
        kinds = ["websocket"] * 60 + ["sse"] * 30 + ["other"] * 10
        clients = [
            stack.enter_context(upgraded(server, f"{name}-{number}", kind=kind)) for number, kind in enumerate(kinds)
        ]
        eventually(lambda: 100 == figures(server)["state upgraded"])
        found = figures(server)
        assert {"websocket": 60, "sse": 30, "other": 10} == {
            kind: found[f"kind {kind}"] for kind in ("websocket", "sse", "other")
        }
        assert found["greenlets"] <= 8
        assert 100 <= found["connections"] <= 102
        for client in clients:
            client.close()
        eventually(lambda: 0 == figures(server)["state upgraded"])
        found = figures(server)
        assert [0, 0, 0] == [found[f"kind {kind}"] for kind in ("websocket", "sse", "other")]


def resident(pid: int) -> int:
    """Bytes of the process that are its own."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    return sum(int(found) for found in re.findall(r"^Private_\w+: +(\d+) kB", text, re.MULTILINE)) * 1024


@pytest.mark.parametrize("count", [1200, pytest.param(3000, marks=pytest.mark.prove)])
def test_it_costs_little_memory(events: Path, name: str, count: int) -> None:
    with endpoints(events) as server, contextlib.ExitStack() as stack:
        (pid,) = server.worker_pids()

        def open_some(number: int) -> None:
            for each in range(number):
                connection = server.connect(10.0, f"127.0.1.{1 + each % 50}")  # there are only so many ports
                stack.callback(connection.close)
                connection.sendall(b"GET /upgrade HTTP/1.1\r\nHost: a\r\n\r\n")
                assert connection.recv(4096).startswith(SWITCHED[:20])

        open_some(count // 6)
        time.sleep(0.3)
        before = resident(pid)
        open_some(count)
        time.sleep(0.3)
        each = (resident(pid) - before) / count
        print(f"\n{each:.0f} bytes for each of {count} upgraded connections, the endpoint's own state included")
        assert each < MOST_PER_CONNECTION


# Leaving.


def drained(log: Callable[[], str]) -> bool:
    return "has drained" in log()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.together
def test_it_is_told_once_that_the_worker_leaves(events: Path, name: str, number: int) -> None:
    with endpoints(events) as server, upgraded(server, name) as client:
        (pid,) = server.worker_pids()
        server.signal(number)
        word, _, seconds = line(client).partition(" ")
        assert "draining" == word
        assert 10 < float(seconds) <= 19.0
        assert client.silent(1.0)
        command(client, "wake 0.1", "say still served")
        assert ["still served", "deadline"] == [line(client) for _ in range(2)]
        command(client, "close drain")
        assert client.ended()
        eventually(lambda: pid not in server.worker_pids())
        assert 1 == happened(events, name).count("draining")
        assert_ended_once(events, name, "drain")
        if number == signal.SIGTERM:
            assert 0 == server.process.wait(5)


@pytest.mark.together
def test_the_worker_leaves_as_soon_as_the_last_has_ended(events: Path, name: str) -> None:
    with endpoints(events) as server, upgraded(server, name, "on draining close drain") as client:
        started = time.monotonic()
        assert 0 == server.stop()
        assert time.monotonic() - started < 5.0
        assert client.rest().startswith(b"draining ")
        assert_ended_once(events, name, "drain")


@pytest.mark.together
def test_what_has_not_ended_at_the_deadline_is_cut(events: Path, name: str) -> None:
    with (
        endpoints(events, "--graceful-timeout", "3") as server,
        upgraded(server, f"{name}-parked") as parked,
        upgraded(server, f"{name}-busy") as busy,
    ):
        command(busy, "sleep 60")
        time.sleep(0.2)
        started = time.monotonic()
        assert 0 == server.stop()
        assert 1.2 < time.monotonic() - started < 6.0
        assert b"draining 2." == parked.rest()[:11]
        busy.rest()
        assert_ended_once(events, f"{name}-parked", "drain")
        assert 1 == len(ends(events, f"{name}-busy"))


@pytest.mark.together
def test_one_handed_over_while_the_worker_leaves_is_told_too(events: Path, name: str) -> None:
    with endpoints(events, "--graceful-timeout", "8") as server, upgraded(server, name, after="sleep 1.0") as client:
        server.signal(signal.SIGTERM)
        assert line(client).startswith("draining ")
        command(client, "close drain")
        assert 0 == server.process.wait(5)
        assert 1 == happened(events, name).count("draining")


@pytest.mark.together
def test_one_whose_application_began_before_the_worker_leaves_is_told_too(events: Path, name: str) -> None:
    with endpoints(events, "--graceful-timeout", "8") as server, server.client(10.0) as client:
        target = f"/upgrade?name={name}"
        client.send(f"POST {target} HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n".encode())
        time.sleep(0.2)
        server.signal(signal.SIGTERM)
        time.sleep(0.5)
        client.send(b"abc")
        assert SWITCHED == client.until(b"\r\n\r\n")
        assert line(client).startswith("draining ")
        command(client, "close drain")
        assert 0 == server.process.wait(5)


@pytest.mark.together
def test_the_last_words_reach_a_client_that_is_just_sending(events: Path, name: str) -> None:
    with endpoints(events) as server, upgraded(server, name) as client:
        command(client, "on readable say " + "y" * 200_000, "on readable close upgraded")
        with contextlib.suppress(OSError):
            for _ in range(20):
                client.socket.sendall(b"x" * 20_000)
        client.socket.settimeout(5.0)
        assert b"y" * 200_000 + b"\n" == _all_of(client)


def _all_of(client: Client) -> bytes:
    data = client.buffer
    with contextlib.suppress(ConnectionResetError):
        while piece := client.socket.recv(1 << 16):
            data += piece
    return data


def test_a_unix_socket_is_handed_over_too(tmp_path: Path) -> None:
    with gunicorn_server(app=APP, unix=True, environment={"EVENTS": str(tmp_path / "events")}) as server:
        client = Client(server.connect(5.0))
        assert socket.AF_UNIX == client.socket.family
        client.send(b"GET /upgrade?name=unix HTTP/1.1\r\nHost: a\r\n\r\n")
        assert SWITCHED == client.until(b"\r\n\r\n")
        command(client, "say hello", "large 3000000")
        assert "hello" == line(client)
        assert pattern(3_000_000) == client.exactly(3_000_000)
        client.close()
        assert_ended_once(tmp_path / "events", "unix", "client")
