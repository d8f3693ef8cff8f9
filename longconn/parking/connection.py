"""One client's connection: what is kept of it while it waits, and how it is read and written while it does not."""

from __future__ import annotations

import array
import fcntl
import socket as sockets
import struct
import termios
from typing import Any

from longconn.core.states import State
from longconn.core.wheel import Entry
from longconn.errors import ConnectionOver, SlowReader
from longconn.parking.poller import READABLE, WRITABLE

__all__ = ["AWAITS_ROOM", "HALF_CLOSED", "HELD", "LARGEST_READ", "NEVER", "NO_LINGER", "SHORT_OF_ROOM", "Connection"]

HELD = 0x10000
"""Among the edges of a connection: it stands in the queue or a greenlet attends to it."""
SHORT_OF_ROOM = 0x20000
"""Its client has not taken all that was written: whoever has it wants to hear when there is room again."""
AWAITS_ROOM = 0x40000
"""A greenlet waits, in the middle of an answer, for the client to take more of it."""
HALF_CLOSED = 0x80000
"""Under another protocol: its client has said its last word, and whoever has it knows."""

LARGEST_READ = 65_536

NO_LINGER = struct.pack("ii", 1, 0)  # SO_LINGER with no time: closing throws away what is still to be sent
NEVER = 1 << 62


class Connection(Entry):
    """A client's connection. While it waits there is nothing else of it in this process.

    `address` is the client's as gunicorn has it, `requests` the number of requests begun on it. What a protocol that
    took it over may use is documented in `longconn.upgraded`.
    """

    __slots__ = (
        "address",
        "attached",
        "edges",
        "listener",
        "pending",
        "requests",
        "since",
        "socket",
        "state",
        "waiter",
    )

    def __init__(self, socket: Any, address: Any, listener: Any, now_tick: int) -> None:
        # The base's own, without a call: there is one for each connection that comes.
        self.slot = -1
        self.previous = None
        self.next = None
        self.deadline = NEVER
        self.socket = socket
        self.address = address
        self.listener = listener
        self.state: int = State.ACCEPTED
        self.since = now_tick
        """The tick at which its present wait began."""
        self.edges = 0
        """What the poller told of it that has not been used up, and the flags above."""
        self.requests = 0
        self.pending: Any = None
        """What has arrived and is not understood yet: an incomplete head, or the begin of a next request."""
        self.waiter: Any = None
        """The greenlet that waits in the middle of a transfer."""
        self.attached: Any = None
        """The exchange under way, or the endpoint that took it over."""

    @property
    def lot(self) -> Any:
        """Where it parks."""
        return self.listener.lot

    @property
    def slow(self) -> bool:
        """Whether it moves a body or an answer below the minimum rate."""
        return self.waiter is not None and bool(self.attached.is_slow(self.lot.now()))

    def fileno(self) -> int:
        """Its descriptor, -1 when it is closed."""
        return int(self.socket.fileno())

    def unread(self) -> int:
        """How many bytes have arrived that nobody has read; 0 when it is closed. Those inside TLS do not count."""
        return self._count(termios.FIONREAD)

    def unsent(self) -> int:
        """How many bytes have been written that its client has not acknowledged; 0 when it is closed."""
        return self._count(termios.TIOCOUTQ)

    def _count(self, question: int) -> int:
        count = array.array("i", [0])
        try:
            fcntl.ioctl(self.socket.fileno(), question, count)
        except (OSError, ValueError):
            return 0
        return count[0]

    def receive(self, size: int = LARGEST_READ) -> bytes | None:
        """What has arrived, at most `size` bytes, without waiting: None when nothing is there, b"" at the end.

        Raises `OSError` when the connection is broken.
        """
        self.edges &= ~READABLE
        try:
            data: bytes = self.socket.recv(size)
        except BlockingIOError:
            return None
        except InterruptedError:
            self.edges |= READABLE
            return None
        listener = self.listener
        if len(data) == size or (listener.secure and data):
            # There may be more, of which nobody will be told again. TLS gives one record at a time.
            self.edges |= READABLE
        lot = listener.lot
        lot.bytes_in += len(data)
        return data

    def transmit(self, data: Any) -> int:
        """Write what the client takes of `data` without waiting, and return how many bytes that were.

        When it is not all, whoever has the connection hears of room for more. Raises `OSError` when it is broken.
        """
        try:
            sent: int = self.socket.send(data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            self.edges = (self.edges & ~WRITABLE) | SHORT_OF_ROOM
        self.listener.lot.bytes_out += sent
        return sent

    def read(self, size: int) -> bytes:
        """At most `size` bytes, waiting for them at the pace of its exchange. b"" at the end.

        Raises `BodyTooSlow` through its exchange, and `OSError` when the connection breaks.
        """
        exchange = self.attached
        while True:
            data = self.receive(size)
            if data is not None:
                exchange.arrived(len(data))
                return data
            exchange.wait(self, READABLE)

    def write(self, data: bytes) -> None:
        """Write all of `data`, waiting for the client at the pace of its exchange.

        Raises `SlowReader` when the client does not keep it up, `OSError` when the connection breaks.
        """
        try:
            sent: int = self.socket.send(data)
        except BlockingIOError:
            sent = 0
        self.listener.lot.bytes_out += sent
        if sent == len(data):
            return
        rest = memoryview(data)[sent:]
        exchange = self.attached
        while rest:
            self.edges &= ~WRITABLE
            sent = self.transmit(rest)
            if sent:
                exchange.departed(sent)
                rest = rest[sent:]
            if rest:
                exchange.wait(self, WRITABLE)
        self.edges &= ~SHORT_OF_ROOM

    def cut(self) -> None:
        """Let closing throw away what is still to be sent, instead of leaving it to the kernel for minutes."""
        try:
            self.socket.setsockopt(sockets.SOL_SOCKET, sockets.SO_LINGER, NO_LINGER)
        except (OSError, AttributeError):
            return

    def over(self) -> ConnectionOver:
        """What is raised in whoever still uses it after it has closed."""
        return ConnectionOver("the connection has closed")

    def too_slow(self) -> SlowReader:
        """What is raised when the client does not read."""
        return SlowReader("the client does not read its answer: it is cut")
