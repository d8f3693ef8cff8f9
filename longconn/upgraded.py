"""For connections that another protocol has taken over (WebSocket, server-sent events, anything): how such a one parks, and
what wakes it.

An application answers a request with the head of its protocol and hands the connection to an endpoint:

    def application(environ, start_response):
        environ["longconn.upgrade"](endpoint, b"HTTP/1.1 101 Switching Protocols\\r\\n...\\r\\n\\r\\n")
        return longconn.HANDLED

From then on it costs what any parked connection costs. One endpoint may serve all its connections, keeping what it needs
of each in `connection.state_of_endpoint`. Its methods are called in a greenlet, one at a time for each connection, whenever

- something arrived (`readable`) or the client left (`readable` too: `receive` returns b"" then),
- there is room again after a `transmit` that was not taken whole (`writable`),
- the deadline has passed that was set with `connection.wake_after(seconds)` (`deadline`),
- somebody has a message for it, `connection.post(message)`, from any greenlet (`message`); from another thread use
  `connection.post_from_thread(message)`,
- the worker leaves (`draining`): it says goodbye in its protocol and closes, within the seconds it is given,
- it has ended, whoever ended it (`closed`).

Whatever a method returns, the connection parks again, unless it was closed. A method that raises ends the connection, and
the error is logged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from longconn import scoreboard
from longconn.core.states import Event, State
from longconn.errors import LongConnError
from longconn.parking.connection import NEVER, Connection
from longconn.parking.poller import READABLE

__all__ = ["HANDLED", "Endpoint", "UpgradeError", "UpgradedConnection"]


class UpgradeError(LongConnError, RuntimeError):
    """A connection cannot be handed over now."""


class _Handled:
    """What an application returns instead of a body when the connection is no longer HTTP's."""

    def __iter__(self) -> _Handled:
        return self

    def __next__(self) -> bytes:
        raise StopIteration

    def __repr__(self) -> str:
        return "longconn.handled"


HANDLED = _Handled()


class Endpoint:
    """What attends to upgraded connections. Derive from it; every method may block its own connection, and no other."""

    kind = "other"
    """"websocket", "sse" or "other", for the metrics."""

    def readable(self, connection: UpgradedConnection) -> None:
        """Something has arrived: `connection.receive()` until it returns None (nothing more) or b"" (the client left)."""
        if connection.receive() == b"":
            connection.close("client")

    def writable(self, connection: UpgradedConnection) -> None:
        """The client takes more."""

    def deadline(self, connection: UpgradedConnection) -> None:
        """The deadline has passed. By default the connection closes."""
        connection.close("idle")

    def message(self, connection: UpgradedConnection, message: Any) -> None:
        """`message` was posted to it. Messages come in the order of posting."""

    def draining(self, connection: UpgradedConnection, seconds: float) -> None:
        """The worker leaves in `seconds`. By default the connection closes at once."""
        del seconds
        connection.close("drain")

    def closed(self, connection: UpgradedConnection, reason: str) -> None:
        """It has ended. Called once, in the hub: it must not block."""


READ = 1
WRITE = 2
DEADLINE = 4
MESSAGE = 8
DRAIN = 16


class UpgradedConnection:
    """A connection under another protocol. Its methods are for the loop's thread, except `post_from_thread`."""

    __slots__ = ("_connection", "_inbox", "_reasons", "_seconds", "endpoint", "received", "state_of_endpoint")

    def __init__(self, connection: Connection, endpoint: Endpoint) -> None:
        self._connection = connection
        self._inbox: list[Any] | None = None
        self._reasons = 0
        self._seconds = 0.0
        self.endpoint = endpoint
        self.received = False
        """Whether its endpoint has received bytes in the present call; the engine's."""
        self.state_of_endpoint: Any = None

    @property
    def address(self) -> Any:
        """The client's address."""
        return self._connection.address

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self._connection.state != State.CLOSED

    def fileno(self) -> int:
        """Its descriptor, -1 when it has ended."""
        return self._connection.fileno()

    def receive(self, size: int = 65_536) -> bytes | None:
        """What has arrived, at most `size` bytes, without waiting: None when there is nothing, b"" when the client left.

        A broken connection counts as one whose client left.
        """
        connection = self._connection
        pending = connection.pending
        if pending:
            data = bytes(pending[:size])
            connection.pending = pending[size:] or None
            connection.lot.head_bytes -= len(data)
            self.received = True
            connection.edges |= READABLE  # the rest of it, or what lies in the kernel, of which nobody tells again
            return data
        if connection.state == State.CLOSED:
            return b""
        try:
            received = connection.receive(size)
        except OSError:
            return b""
        self.received = self.received or bool(received)
        return received

    def transmit(self, data: bytes) -> int:
        """Write what the client takes at once, and return how much that was; `writable` is called when it takes more.

        Raises `OSError` when the connection is broken or has ended.
        """
        if self._connection.state == State.CLOSED:
            raise self._connection.over()
        return self._connection.transmit(data)

    def wake_after(self, seconds: float | None) -> None:
        """Call `deadline` in `seconds` from now; None for never. The latest call counts."""
        connection = self._connection
        lot = connection.lot
        if connection.state == State.CLOSED:
            return
        if seconds is None:
            connection.deadline = NEVER
        else:
            lot.wheel.schedule(connection, lot.wheel.now_tick + lot.wheel.ticks(seconds))

    def post(self, message: Any) -> None:
        """Have `endpoint.message(connection, message)` called. Does nothing when the connection has ended."""
        if self._connection.state == State.CLOSED:
            return
        if self._inbox is None:
            self._inbox = []
        self._inbox.append(message)
        self.wake(MESSAGE)

    def post_from_thread(self, message: Any) -> None:
        """As `post`, from any thread."""
        self._connection.lot.call_from_thread(self.post, message)

    def close(self, reason: str = "upgraded") -> None:
        """End it. `reason` is one of `longconn.scoreboard.CLOSE_REASONS`."""
        connection = self._connection
        if connection.state == State.CLOSED:
            return
        connection.lot.close(connection, scoreboard.CLOSE_REASONS.index(reason))

    def wake(self, reason: int) -> None:
        """Have it attended to for `reason`; the engine's."""
        self._reasons |= reason
        self._connection.lot.call(self._connection)

    def drain(self, seconds: float) -> None:
        """Tell it that the worker leaves; the engine's."""
        self._seconds = seconds
        self.wake(DRAIN)

    def expired(self) -> None:
        """Its deadline has passed; the engine's."""
        self.wake(DEADLINE)

    def attend(self, *, something_arrived: bool, room: bool) -> None:
        """Call the endpoint for every reason there is; the engine's, in a greenlet."""
        connection = self._connection
        self.received = False
        reasons, self._reasons = self._reasons, 0
        calls: list[tuple[bool, Callable[[], None]]] = [
            (bool(reasons & DRAIN), lambda: self.endpoint.draining(self, self._seconds)),
            (something_arrived, lambda: self.endpoint.readable(self)),
            (room, lambda: self.endpoint.writable(self)),
            (bool(reasons & DEADLINE), lambda: self.endpoint.deadline(self)),
            (bool(reasons & MESSAGE), self._hand_over),
        ]
        for wanted, call in calls:
            if wanted and connection.state != State.CLOSED:
                call()

    def _hand_over(self) -> None:
        inbox, self._inbox = self._inbox, None
        for message in inbox or ():
            if self._connection.state == State.CLOSED:
                return
            self.endpoint.message(self, message)

    @property
    def waits_again(self) -> bool:
        """Whether nothing is left to call its endpoint for."""
        return not self._reasons


def hand_over(connection: Connection, endpoint: Endpoint) -> UpgradedConnection:
    """Make `connection` the endpoint's; the engine's."""
    upgraded = UpgradedConnection(connection, endpoint)
    connection.lot.move(connection, Event.UPGRADE)
    return upgraded
