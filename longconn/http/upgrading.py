"""Connections that another protocol has taken over: who calls their endpoints, and when."""

from __future__ import annotations

import contextvars
from typing import Any

import gevent

from longconn import reasons, scoreboard
from longconn.core.states import State
from longconn.parking.connection import HALF_CLOSED, NEVER, SHORT_OF_ROOM, Connection
from longconn.parking.lot import Lot
from longconn.parking.poller import BROKEN, GONE, READABLE, WRITABLE
from longconn.upgraded import Endpoint, UpgradedConnection, hand_over

__all__ = ["Upgrading"]

_UPGRADED = int(State.UPGRADED)
_CALLS_FOR_MORE = READABLE | GONE | HALF_CLOSED | SHORT_OF_ROOM


class Upgrading:
    """Attends to the upgraded connections of one worker. `farewell` ends them so that their last words arrive; without it they
    are closed at once."""

    def __init__(self, lot: Lot, log: Any, farewell: Any = None) -> None:
        self._lot = lot
        self._log = log
        self._farewell = farewell
        self.leaves_at = 0.0
        """When the worker's time is over, in seconds of the lot's clock; 0 while it stays."""

    def upgrade(self, connection: Connection, endpoint: Endpoint) -> UpgradedConnection:
        """Hand `connection` over to `endpoint`."""
        upgraded = hand_over(connection, endpoint)
        connection.deadline = NEVER
        self._lot.tally[_kind_field(endpoint)] += 1
        return upgraded

    def begin(self, connection: Connection, upgraded: UpgradedConnection, rest: bytes) -> None:
        """The application has returned: from here on the connection is the endpoint's, `rest` being its first bytes."""
        connection.attached = upgraded
        if rest:
            self._lot.keep(connection, rest)
        if self.leaves_at:
            upgraded.drain(max(0.0, self.leaves_at - self._lot.now()))
        self.attend(connection)

    def attend(self, connection: Connection) -> None:
        """Call the endpoint for what has happened."""
        upgraded: UpgradedConnection = connection.attached
        edges = connection.edges
        if edges & HALF_CLOSED:
            if edges & BROKEN:
                self._lot.close(connection, reasons.CLIENT)
                return
            edges &= ~(READABLE | GONE)  # its endpoint has heard it
            connection.edges &= ~GONE
        arrived = bool(edges & (READABLE | GONE)) or bool(connection.pending)
        room = bool(edges & WRITABLE and edges & SHORT_OF_ROOM)
        if room:
            connection.edges &= ~SHORT_OF_ROOM
        connection.edges &= ~READABLE
        try:
            # A context of its own, as for a request: the greenlet serves many, of many clients.
            contextvars.Context().run(upgraded.attend, arrived, room)
        except (gevent.GreenletExit, gevent.Timeout, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001 - an endpoint's fault ends its connection and nothing else
            if connection.state != _UPGRADED:
                return  # it has said so itself
            if not isinstance(error, OSError):
                self._log.exception("An endpoint failed")
            self._lot.close(connection, reasons.RESET if isinstance(error, OSError) else reasons.ERROR)
            return
        if connection.state != _UPGRADED:
            return
        if connection.edges & _CALLS_FOR_MORE or connection.slot < 0 or not upgraded.waits_again:
            self._stay(connection)
        else:
            self._lot.rest(connection)

    def _stay(self, connection: Connection) -> None:
        lot = self._lot
        if connection.slot < 0 and connection.deadline < NEVER:
            lot.wheel.schedule(connection, connection.deadline)
        if connection.edges & GONE and not connection.attached.received:
            connection.edges &= ~GONE  # its endpoint does not want to know
        if connection.edges & HALF_CLOSED and not connection.edges & BROKEN:
            connection.edges &= ~(READABLE | GONE)
        edges = connection.edges
        has_room = edges & WRITABLE and edges & SHORT_OF_ROOM
        if edges & (READABLE | GONE) or has_room or not connection.attached.waits_again:
            lot.call_again(connection)
        else:
            lot.rest(connection)

    def part(self, connection: Connection, reason: int) -> None:
        """End an upgraded connection of whom something may be on its way: in either direction."""
        if self._farewell is None or connection.edges & (BROKEN | HALF_CLOSED):
            self._lot.close(connection, reason)
            return
        self.closed(connection, reason)
        if connection.state == State.UPGRADED:
            self._farewell.linger(connection, reason)

    def closed(self, connection: Connection, reason: int) -> None:
        """An upgraded connection has ended, whoever ended it: its endpoint hears of it."""
        upgraded, connection.attached = connection.attached, None
        upgraded = getattr(upgraded, "upgraded", None) or upgraded  # it may have ended before its application returned
        if not isinstance(upgraded, UpgradedConnection):
            return
        self._lot.tally[_kind_field(upgraded.endpoint)] -= 1
        try:
            upgraded.ended(scoreboard.CLOSE_REASONS[reason])
        except Exception:  # noqa: BLE001
            self._log.exception("An endpoint failed when its connection closed")


def _kind_field(endpoint: Endpoint) -> int:
    kind = endpoint.kind if endpoint.kind in scoreboard.KIND_NAMES else "other"
    return scoreboard.KINDS + scoreboard.KIND_NAMES.index(kind)
