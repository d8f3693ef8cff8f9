"""A lot in the process of the test whose connections are all upgraded, and the clients at their other ends."""

from __future__ import annotations

import _socket
import logging
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gevent

from longconn.core.states import Event
from longconn.http.farewell import Farewell
from longconn.http.upgrading import Upgrading
from longconn.parking.connection import HELD, Connection
from longconn.parking.lot import Listener, Lot
from longconn.scoreboard import Scoreboard
from longconn.upgraded import Endpoint

__all__ = ["UpgradedScene", "upgraded_scene"]


class UpgradedScene:
    """A lot, and what attends to its connections. What would wait for a client of a real worker waits here for the loop of the
    test: `until` lets it turn."""

    def __init__(self) -> None:
        row = Scoreboard(rows=1).claim(1)
        self.tally = row.tally()
        self.lot = Lot(
            attend=self._attend,
            expire=self._expire,
            closed=lambda connection, reason: self.upgrading.closed(connection, reason),
            tally=self.tally,
            row=row,
            part=lambda connection, reason: self.upgrading.part(connection, reason),
        )
        self.farewell = Farewell(None, self.lot)
        self.upgrading = Upgrading(self.lot, logging.getLogger("gunicorn.error"), self.farewell)
        self.listening = socket.socket()
        self.listener = Listener(self.listening, self.lot, secure=False, reserved=False)
        self.clients: list[socket.socket] = []

    def _attend(self, connection: Connection) -> None:
        if connection.state == 6:  # upgraded
            self.upgrading.attend(connection)
        else:
            self.farewell.discard(connection)

    def _expire(self, connection: Connection) -> None:
        if connection.state == 6:
            connection.attached.expired()
        else:
            self.lot.close(connection, connection.attached.reason)

    def connection(self, address: Any = ("127.0.0.1", 1), *, buffer: int = 0) -> tuple[Connection, socket.socket]:
        """A connection in the middle of a request, and its client. `buffer`: what the kernel takes of what is not read."""
        ours, client = socket.socketpair()
        if buffer:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
        self.clients.append(client)
        client.settimeout(5.0)
        plain = _socket.socket(ours.family, ours.type, ours.proto, ours.detach())
        connection = Connection(plain, address, self.listener, self.lot.wheel.now_tick)
        connection.socket.setblocking(False)
        self.lot.admit(connection)
        for event in (Event.BYTES, Event.HEAD):
            self.lot.move(connection, event)
        connection.edges |= HELD  # by the greenlet that calls the application
        return connection, client

    def upgraded(
        self,
        endpoint: Endpoint,
        rest: bytes = b"",
        *,
        begin: Callable[[Any], object] | None = None,
        buffer: int = 0,
    ) -> tuple[Any, socket.socket]:
        """A connection that was handed over, whose application has called `begin` and returned; and its client."""
        connection, client = self.connection(buffer=buffer)
        made = self.upgrading.upgrade(connection, endpoint)

        def run() -> None:
            if begin is not None:
                begin(made)
            if connection.state == 6:
                self.upgrading.begin(connection, made, rest)

        gevent.spawn(run).join()
        return made, client

    def until(self, condition: Callable[[], object]) -> None:
        """Let the loop turn until it is so."""
        deadline = time.monotonic() + 5.0
        while not condition():
            assert time.monotonic() < deadline, "it has not come to pass"
            gevent.sleep(0.001)

    def turn(self) -> None:
        """Let the loop turn a little, for what is not to happen."""
        for _ in range(3):
            gevent.sleep(0.001)

    def pass_time(self, seconds: float) -> None:
        """Let the lot see that so much time has gone by, without waiting for it."""
        for connection in self.lot.connections():
            connection.since -= self.lot.wheel.ticks(seconds)
            if connection.slot >= 0:
                self.lot.wheel.cancel(connection)
                self.lot.wheel.schedule(connection, connection.deadline - self.lot.wheel.ticks(seconds))
        self.lot.wheel.now_tick -= 1
        self.lot._on_tick()


@contextmanager
def upgraded_scene() -> Iterator[UpgradedScene]:
    """One that leaves nothing behind."""
    made = UpgradedScene()
    try:
        yield made
    finally:
        made.lot.end()
        for client in made.clients:
            client.close()
        made.listening.close()
        gevent.sleep(0)
