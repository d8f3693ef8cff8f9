"""The last word on a connection: a refusal, or the end of its last answer; and the moment after it."""

from __future__ import annotations

import socket as sockets
from typing import Any

from gunicorn import util

from longconn import reasons, scoreboard
from longconn.core.states import Event
from longconn.errors import Refusal
from longconn.parking.addresses import plain_address
from longconn.parking.connection import HELD, LARGEST_READ, Connection
from longconn.parking.lot import Lot
from longconn.parking.poller import GONE

__all__ = ["Discarding", "Farewell", "refusal_page"]

LINGER = 1.0
"""For how long what a client still sends is thrown away, so that it sees its answer before the connection resets."""
MOST_DISCARDED = 1_048_576


class Discarding:
    """Attached to a connection of which nothing more is wanted: why it closes, and how much has been thrown away."""

    __slots__ = ("reason", "taken")

    def __init__(self, reason: int) -> None:
        self.reason = reason
        self.taken = 0


class _Sink:
    """Takes down what gunicorn writes to a client, so that it leaves in our way."""

    def __init__(self) -> None:
        self.data = b""

    def gettimeout(self) -> float:
        """As a socket that does not block."""
        return 0.0

    def sendall(self, data: bytes) -> None:
        """As `socket.sendall`."""
        self.data += data

    def close(self) -> None:
        """As `socket.close`."""


class Farewell:
    """Refuses, and closes without losing what has been said. Nothing here waits: it may be called in the hub.

    `render(error, request, address)` makes the answer to what is refused, or None for the usual page.
    """

    def __init__(self, worker: Any, lot: Lot, *, render: Any = None) -> None:
        self._worker = worker
        self._lot = lot
        self._render = render
        self._linger_ticks = lot.wheel.ticks(LINGER)

    def refuse(self, connection: Connection, refusal: Refusal, reason: int, *, request: Any = None) -> None:
        """Answer `refusal`, then close. Does not wait: may be called in the hub."""
        data = self._rendered(refusal, request, connection) or refusal_page(refusal)
        self._count_refusal(refusal)
        self._last_word(connection, data, reason)

    def _rendered(self, error: BaseException, request: Any, connection: Connection) -> bytes | None:
        """What the application's own way to refuse makes of `error`; None when it has none, or fails."""
        if self._render is None:
            return None
        try:
            data: bytes | None = self._render(error, request, plain_address(connection.address))
        except Exception:
            self._worker.log.exception("Exception in render_refusal hook")
            return None
        return data

    def _count_refusal(self, refusal: Refusal) -> None:
        name = {408: "timeout", 413: "body size", 431: "head", 504: "timeout"}.get(refusal.status)
        if name is not None:
            self._lot.tally[scoreboard.refused_field(name)] += 1

    def refuse_by_gunicorn(
        self, connection: Connection, request: Any, error: BaseException, *, reason: int = reasons.INVALID
    ) -> None:
        """Answer what gunicorn says about `error`, then close. Does not wait."""
        data = self._rendered(error, request, connection)
        if data is None:
            sink = _Sink()
            try:
                raise error  # noqa: TRY301 - gunicorn logs what is being handled
            except BaseException:  # noqa: BLE001
                self._worker.handle_error(request, sink, plain_address(connection.address), error)
            data = sink.data
        if reason == reasons.INVALID:
            self._lot.tally[scoreboard.refused_field("invalid")] += 1
        self._last_word(connection, data, reason)

    def _last_word(self, connection: Connection, data: bytes, reason: int) -> None:
        try:
            connection.transmit(data)
        except OSError:
            self._lot.close(connection, reasons.RESET)
            return
        self.linger(connection, reason)

    def linger(self, connection: Connection, reason: int) -> None:
        """Say that nothing more comes, then throw away for a while what the client still sends.

        Closing at once would reset the connection, and the client might never see its answer.
        """
        lot = self._lot
        self._lot.drop(connection)
        try:
            connection.socket.shutdown(sockets.SHUT_WR)
        except OSError:
            lot.close(connection, reason)
            return
        lot.move(connection, Event.DRAIN)
        connection.attached = Discarding(reason)
        connection.since = lot.wheel.now_tick
        lot.wheel.schedule(connection, lot.wheel.now_tick + self._linger_ticks)
        connection.edges |= HELD
        self.discard(connection)

    def discard(self, connection: Connection) -> None:
        """Throw away what has arrived; close at the client's end, or when it has sent too much."""
        attached: Discarding = connection.attached
        try:
            while data := connection.receive(LARGEST_READ):
                attached.taken += len(data)
                if attached.taken >= MOST_DISCARDED:
                    break
        except OSError:
            data = b""
        if data is None:
            if connection.slot < 0:
                self._lot.wheel.schedule(connection, connection.deadline)
            connection.edges &= ~GONE
            self._lot.rest(connection)
        else:
            self._lot.close(connection, attached.reason)


def refusal_page(refusal: Refusal) -> bytes:
    """An answer in the form that gunicorn's have."""
    sink = _Sink()
    util.write_error(sink, refusal.status, refusal.phrase, refusal.detail)
    if refusal.retry_after is None:
        return sink.data
    head, _, page = sink.data.partition(b"\r\n")
    return b"%s\r\nRetry-After: %d\r\n%s" % (head, refusal.retry_after, page)
