"""Faults that were found in the lot, and shall not come back."""

from __future__ import annotations

import _socket
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent.event import Event as Signal

from longconn import reasons
from longconn.core.states import State
from longconn.errors import ConnectionOver
from longconn.parking.connection import Connection
from longconn.parking.lot import Listener, Lot
from longconn.parking.poller import READABLE
from longconn.scoreboard import Scoreboard

PATIENCE = 5.0


def until(condition: Callable[[], object]) -> None:
    """Let the loop turn until it is so."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it has not come to pass"
        gevent.sleep(0)


class Scene:
    """A lot, in which the first connection that is attended to waits for bytes, and the others until they are let go.

    What each of them met with is in `heard`, by the name of its client.
    """

    def __init__(self) -> None:
        self.heard: dict[str, BaseException | str] = {}
        self.inside: set[str] = set()
        self.let_go = Signal()
        row = Scoreboard(rows=1).claim(1)
        self.lot = Lot(
            attend=self._attend, expire=_nothing, closed=lambda one, reason: None, tally=row.tally(), row=row
        )
        self._listening = socket.socket()
        self.listener = Listener(self._listening, self.lot, secure=False, reserved=False)
        self._clients: list[socket.socket] = []

    def _attend(self, one: Connection) -> None:
        name = one.address
        self.inside.add(name)
        try:
            if name == "waits":
                self.lot.wait(one, READABLE, self.lot.now() + 60)
            else:
                self.let_go.wait(PATIENCE)
            self.heard[name] = "nothing"
        except BaseException as error:  # noqa: BLE001
            self.heard[name] = error

    def connection(self, name: str) -> Connection:
        """One that waits for its first byte."""
        ours, client = socket.socketpair()
        plain = _socket.socket(ours.family, ours.type, ours.proto, ours.detach())
        plain.setblocking(False)
        self._clients.append(client)
        made = Connection(plain, name, self.listener, self.lot.wheel.now_tick)
        self.lot.admit(made)
        return made

    def in_the_hub(self, function: Callable[[], object]) -> None:
        """Run it in the hub, as timers and watchers are, and return when it has run."""
        done: list[Any] = []
        timer: Any = self.lot.loop.timer(0)
        timer.start(lambda: done.append(function()))
        until(lambda: done)
        timer.close()

    def end(self) -> None:
        """Leave nothing."""
        self.let_go.set()
        until(lambda: not self.lot.busy_greenlets)
        self.lot.end()
        for client in self._clients:
            client.close()
        self._listening.close()


def _nothing(_: Connection) -> None:
    return


@pytest.fixture
def scene() -> Iterator[Scene]:
    made = Scene()
    yield made
    made.end()


@pytest.mark.parametrize("slice_is_left", [False, True])
def test_who_has_gone_on_for_another_reason_is_not_told_of_the_end_in_the_middle_of_something_else(
    scene: Scene, slice_is_left: bool
) -> None:
    """In one turn its connection is closed, another one is called for, and its request's own time is over."""
    waits, other = scene.connection("waits"), scene.connection("other")
    scene.lot.call(waits)
    until(lambda: waits.waiter is not None)
    waiter = waits.waiter

    def all_at_once() -> None:
        if slice_is_left:
            scene.lot._slice_end = scene.lot.now() + 1
        scene.lot.close(waits, reasons.EVICTED)
        scene.lot.call(other)
        waiter.throw(gevent.Timeout(1))

    scene.in_the_hub(all_at_once)
    until(lambda: "other" in scene.inside)
    for _ in range(5):
        gevent.sleep(0)
    assert "other" not in scene.heard
    scene.let_go.set()
    until(lambda: "other" in scene.heard)
    assert (gevent.Timeout, "nothing") == (type(scene.heard["waits"]), scene.heard["other"])


def test_who_waits_hears_once_that_it_was_closed(scene: Scene) -> None:
    waits = scene.connection("waits")
    scene.lot.call(waits)
    until(lambda: waits.waiter is not None)
    scene.lot.close(waits, reasons.EVICTED)
    scene.lot.close(waits, reasons.KILLED)
    until(lambda: scene.heard)
    assert ConnectionOver is type(scene.heard["waits"])
    assert 1 == scene.lot.idle_greenlets


def test_who_is_interrupted_goes_on_and_its_connection_is_still_there(scene: Scene) -> None:
    waits = scene.connection("waits")
    scene.lot.call(waits)
    until(lambda: waits.waiter is not None)
    scene.lot.interrupt(waits)
    until(lambda: scene.heard)
    assert (ConnectionOver, State.ACCEPTED, None) == (type(scene.heard["waits"]), waits.state, waits.waiter)


def test_nobody_is_interrupted_who_does_not_wait(scene: Scene) -> None:
    other = scene.connection("other")
    scene.lot.call(other)
    until(lambda: "other" in scene.inside)
    scene.lot.interrupt(other)
    for _ in range(5):
        gevent.sleep(0)
    assert {} == scene.heard


def test_a_greenlet_that_is_killed_while_it_idles_is_given_nothing_to_do(scene: Scene) -> None:
    first, second = scene.connection("first"), scene.connection("second")
    scene.let_go.set()
    scene.lot.call(first)
    until(lambda: 1 == scene.lot.idle_greenlets)
    (idle,) = scene.lot.greenlets
    idle.kill()
    until(lambda: idle.dead)
    assert 0 == scene.lot.idle_greenlets
    scene.lot.call(second)
    until(lambda: "second" in scene.heard)


def test_a_connection_whose_socket_is_closed_has_nothing_unread(scene: Scene) -> None:
    connection = scene.connection("other")
    scene.lot.forget(connection, connection.fileno())
    connection.socket.close()
    assert (-1, 0) == (connection.fileno(), connection.unread())
    scene.lot.close(connection, reasons.ERROR)
    assert (State.CLOSED, 0) == (connection.state, scene.lot.live)
