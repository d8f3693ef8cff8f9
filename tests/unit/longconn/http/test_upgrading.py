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
