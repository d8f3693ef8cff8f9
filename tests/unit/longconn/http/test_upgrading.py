"""Endpoints: what wakes them, what they may leave for later, and whose context they run in."""

from __future__ import annotations

import _socket
import contextvars
import logging
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest

from longconn import reasons, scoreboard
from longconn.core.states import Event, State
from longconn.http.upgrading import Upgrading
from longconn.parking.connection import Connection
from longconn.parking.lot import Listener, Lot
from longconn.scoreboard import Scoreboard
from longconn.upgraded import HANDLED, Endpoint, UpgradedConnection
from tests.support.upgraded_scene import upgraded_scene

_left: contextvars.ContextVar[str] = contextvars.ContextVar("left", default="nothing")


def until(condition: Callable[[], object]) -> None:
    """Let the loop turn until it is so."""
    deadline = time.monotonic() + 5.0
    while not condition():
        assert time.monotonic() < deadline, "it has not come to pass"
        gevent.sleep(0.001)


class Recorder(Endpoint):
    """Notes what it is called for; reads a few bytes at a time, and not to the end."""

    kind = "websocket"

    def __init__(self, size: int = 3) -> None:
        self.size = size
        self.calls: list[tuple[str, Any]] = []

    def readable(self, connection: UpgradedConnection) -> None:
        data = connection.receive(self.size)
        self.calls.append(("readable", data))
        if data == b"":
            connection.close("client")

    def message(self, connection: UpgradedConnection, message: Any) -> None:
        self.calls.append(("message", _left.get()))
        _left.set(message)

    def closed(self, connection: UpgradedConnection, reason: str) -> None:
        self.calls.append(("closed", reason))

    @property
    def received(self) -> bytes:
        return b"".join(what for name, what in self.calls if name == "readable" and what)


class Scene:
    """A lot whose connections are all upgraded."""

    def __init__(self) -> None:
        row = Scoreboard(rows=1).claim(1)
        self.tally = row.tally()
        self.lot = Lot(
            attend=lambda connection: self.upgrading.attend(connection),
            expire=lambda connection: connection.attached.expired(),
            closed=lambda connection, reason: self.upgrading.closed(connection, reason),
            tally=self.tally,
            row=row,
        )
        self.upgrading = Upgrading(self.lot, logging.getLogger("gunicorn.error"))
        self.listening = socket.socket()
        self.listener = Listener(self.listening, self.lot, secure=False, reserved=False)
        self.clients: list[socket.socket] = []

    def upgraded(self, endpoint: Endpoint, rest: bytes = b"") -> tuple[UpgradedConnection, socket.socket]:
        """A connection whose application has just returned."""
        ours, client = socket.socketpair()
        self.clients.append(client)
        client.settimeout(5.0)
        connection = Connection(
            _socket.socket(ours.family, ours.type, ours.proto, ours.detach()),
            ("127.0.0.1", 1),
            self.listener,
            self.lot.wheel.now_tick,
        )
        connection.socket.setblocking(False)
        self.lot.admit(connection)
        for event in (Event.BYTES, Event.HEAD):
            self.lot.move(connection, event)
        made = self.upgrading.upgrade(connection, endpoint)
        connection.edges |= 0x10000  # held by the greenlet that calls the application
        gevent.spawn(self.upgrading.begin, connection, made, rest).join()
        return made, client


@pytest.fixture
def scene() -> Iterator[Scene]:
    made = Scene()
    yield made
    made.lot.end()
    for client in made.clients:
        client.close()
    made.listening.close()
    gevent.sleep(0)


def test_what_came_with_the_request_comes_first_however_little_is_read_at_once(scene: Scene) -> None:
    endpoint = Recorder()
    _, client = scene.upgraded(endpoint, b"early bytes, ")
    until(lambda: b"early bytes, " == endpoint.received)
    client.send(b"later bytes")
    until(lambda: b"early bytes, later bytes" == endpoint.received)
    assert 0 == scene.lot.head_bytes


def test_an_endpoint_may_leave_bytes_for_its_next_call(scene: Scene) -> None:
    endpoint = Recorder()
    _, client = scene.upgraded(endpoint)
    client.send(b"more than three at once")
    until(lambda: b"more than three at once" == endpoint.received)


def test_the_end_of_what_a_client_sends_is_not_lost_behind_its_last_bytes(scene: Scene) -> None:
    endpoint = Recorder(size=100)
    _, client = scene.upgraded(endpoint)
    client.send(b"bye")
    client.shutdown(socket.SHUT_WR)
    until(lambda: ("closed", "client") in endpoint.calls)
    assert b"bye" == endpoint.received


def test_one_call_of_an_endpoint_does_not_see_the_context_of_another_connections(scene: Scene) -> None:
    endpoint = Recorder()
    first, second = scene.upgraded(endpoint)[0], scene.upgraded(endpoint)[0]
    first.post("a secret of the first one")
    second.post("a secret of the second one")
    until(lambda: 2 == len(endpoint.calls))
    assert [("message", "nothing")] * 2 == endpoint.calls


def test_kinds_are_counted_while_they_last_and_unknown_ones_as_other(scene: Scene) -> None:
    endpoint, unknown = Recorder(), Recorder()
    unknown.kind = "carrier pigeons"
    made, _ = scene.upgraded(endpoint)
    scene.upgraded(unknown)
    field = scoreboard.KINDS + scoreboard.KIND_NAMES.index("websocket")
    other = scoreboard.KINDS + scoreboard.KIND_NAMES.index("other")
    assert (1, 1) == (scene.tally[field], scene.tally[other])
    made.close("idle")
    made.close("client")
    assert (0, 1) == (scene.tally[field], scene.tally[other])
    assert [("closed", "idle")] == endpoint.calls
    assert 1 == scene.tally[scoreboard.CLOSED + reasons.IDLE]


def test_what_has_ended_is_over_for_everybody_who_holds_it(scene: Scene) -> None:
    made, _ = scene.upgraded(Recorder())
    assert (True, ("127.0.0.1", 1)) == (made.alive, made.address)
    made.close()
    made.post("nothing comes of it")
    made.wake_after(1.0)
    assert (False, -1, b"") == (made.alive, made.fileno(), made.receive())
    with pytest.raises(ConnectionResetError):
        made.transmit(b"a")


def test_a_plain_endpoint_ends_with_its_client(scene: Scene) -> None:
    made, client = scene.upgraded(Endpoint())
    client.send(b"ignored")
    gevent.sleep(0.01)
    assert made.alive
    client.close()
    until(lambda: not made.alive)


def test_a_plain_endpoint_ends_at_its_deadline(scene: Scene) -> None:
    made, _ = scene.upgraded(Endpoint())
    made.expired()
    until(lambda: not made.alive)
    assert 1 == scene.tally[scoreboard.CLOSED + reasons.IDLE]


def test_a_plain_endpoint_ends_when_the_worker_leaves(scene: Scene) -> None:
    made, _ = scene.upgraded(Endpoint())
    made.drain(5.0)
    until(lambda: not made.alive)
    assert 1 == scene.tally[scoreboard.CLOSED + reasons.DRAIN]


def test_what_an_application_returns_then_is_an_answer_without_a_byte() -> None:
    assert ([], "longconn.handled") == (list(HANDLED), repr(HANDLED))


def test_an_upgraded_connection_is_one_for_the_state_machine(scene: Scene) -> None:
    scene.upgraded(Recorder())
    assert 1 == scene.tally[scoreboard.STATES + State.UPGRADED]


# The end.


class Patient(Recorder):
    """Does not end it when the client has said its last word."""

    def readable(self, connection: UpgradedConnection) -> None:
        self.calls.append(("readable", connection.receive()))

    def writable(self, connection: UpgradedConnection) -> None:
        self.calls.append(("writable", None))


def test_a_half_close_is_told_once_however_much_happens_after_it(scene: Scene) -> None:
    endpoint = Patient()
    made, client = scene.upgraded(endpoint)
    client.shutdown(socket.SHUT_WR)
    until(lambda: ("readable", b"") in endpoint.calls)
    for _ in range(3):
        made.transmit(b"x" * 1_000_000)
        client.recv(1 << 20)
        gevent.sleep(0.005)
    assert 1 == endpoint.calls.count(("readable", b""))
    assert ("writable", None) in endpoint.calls
    client.close()
    until(lambda: not made.alive)
    assert ("closed", "client") == endpoint.calls[-1]


def test_what_was_said_last_arrives_although_nobody_has_read_what_the_client_said() -> None:
    with upgraded_scene() as scene:
        endpoint = Recorder()
        made, client = scene.upgraded(endpoint)
        client.send(b"not read")
        made.transmit(b"last words")
        made.end("upgraded")
        assert (False, -1) == (made.alive, made.fileno())
        assert [("closed", "upgraded")] == endpoint.calls
        client.send(b"nor this")
        assert [b"last words", b""] == [client.recv(100) for _ in range(2)]
        client.close()
        scene.until(lambda: scene.tally[scoreboard.closed_field("upgraded")])
        assert [("closed", "upgraded")] == endpoint.calls
        assert 0 == scene.lot.live


def test_one_whose_client_says_nothing_more_is_closed_in_the_end() -> None:
    with upgraded_scene() as scene:
        made, client = scene.upgraded(Recorder())
        made.end("idle")
        assert b"" == client.recv(1)
        scene.pass_time(1.2)
        assert [0, 1] == [scene.lot.live, scene.tally[scoreboard.closed_field("idle")]]


# Frames.


def test_a_frame_is_written_at_once_or_waits_and_is_whole() -> None:
    with upgraded_scene() as scene:
        made, client = scene.upgraded(Endpoint(), buffer=5000)
        made.push(b"first")
        assert b"first" == client.recv(100)
        frames = [bytes([number]) * 9_000 for number in range(10)]
        for frame in frames:
            made.push(frame)
        assert made.queued > 50_000
        received = b""
        while len(received) < 90_000:
            scene.turn()
            received += client.recv(1 << 16)
        assert b"".join(frames) == received
        scene.until(lambda: 0 == made.queued)


def test_who_does_not_take_what_is_pushed_is_cut_off_by_default() -> None:
    class Small(Endpoint):
        queue_bytes = 10_000

    with upgraded_scene() as scene:
        made, _ = scene.upgraded(Small(), buffer=5000)
        for _ in range(10):
            made.push(b"x" * 9_000)
        assert not made.alive
        assert [1, 0] == [scene.tally[scoreboard.slow_field("disconnected")], scene.tally[scoreboard.QUEUED_BYTES]]


def test_nothing_is_pushed_after_the_last_frame() -> None:
    with upgraded_scene() as scene:
        made, client = scene.upgraded(Endpoint())
        assert made.push_last(b"last")
        made.push(b"more")
        made.push_control(b"more", "ping")
        assert made.push_last(b"more")
        made.end()
        assert [b"last", b""] == [client.recv(100) for _ in range(2)]


def test_the_address_takes_little_and_is_what_it_was(scene: Scene) -> None:
    made, _ = scene.upgraded(Recorder())
    assert isinstance(made.connection.address, int)
    assert (("127.0.0.1", 1), "127.0.0.1") == (made.address, made.host)
