"""Many connections in one thread: one epoll set, one small object for each connection.

A connection that waits costs this object, its socket and nothing else. What arrives alike over many of them is read once
(`longconn.load.kinds`), so that one process keeps up with a broadcast.
"""

from __future__ import annotations

import errno
import os
import random
import select
import socket
import time
from collections import deque
from enum import IntEnum
from heapq import heappop, heappush

from longconn.load.kinds import EventStreams, Heard, KeepAlives, Kind, Refused, Request, WebSockets
from longconn.load.marks import Mark, judge, numbered
from longconn.load.plan import Share
from longconn.load.tally import SECOND, Tally
from longconn.load.waiting import delay

__all__ = ["Crowd"]

IP_BIND_ADDRESS_NO_PORT = 24
"""Linux's, missing in `socket`: the port is chosen on connecting, so that one address serves many connections."""

AT_ONCE = 256
"""Connections that are being made at a time, so that none waits long in the server's queue for this client's sake."""

RECEIVED_AT_ONCE = 65_536
EVENTS_AT_ONCE = 1_024
GOODBYE = 5.0
"""Seconds that the server may take to answer a goodbye."""

TICK = 0.05
SPEAKING_TICK = 0.005


class Phase(IntEnum):
    """Where in its life a connection is."""

    AWAY = 0
    CONNECTING = 1
    GREETING = 2
    OPEN = 3
    LEAVING = 4
    GONE = 5


class Connection:
    """One of the crowd. `attempt` counts its sockets, `failures` the tries in a row that failed."""

    __slots__ = (
        "asked_at",
        "attempt",
        "failures",
        "marks",
        "number",
        "phase",
        "reading",
        "retry",
        "sent",
        "settled",
        "socket",
        "unsent",
    )

    def __init__(self, number: int) -> None:
        self.number = number
        self.phase = Phase.AWAY
        self.socket: socket.socket | None = None
        self.reading: object = None
        self.unsent = b""
        self.marks: Mark | dict[str, Mark] | None = (
            None  # of each stream the last; the mark itself while there is one stream
        )
        self.asked_at = 0.0
        self.sent = 0
        self.attempt = 0
        self.failures = 0
        self.retry: float | None = None
        self.settled = False

    @property
    def position(self) -> str:
        """Of the last message that it saw, "" when it saw none. With several streams there is none that says all."""
        return self.marks.position if isinstance(self.marks, Mark) else ""


class Crowd:
    """The connections of one process. `turn` does what is due and what has arrived, all in the caller's thread."""

    def __init__(self, share: Share) -> None:
        plan = share.plan
        self.tally = Tally(wanted=share.connections)
        self._share = share
        self._plan = plan
        self._target = (share.target.host, share.target.port)
        self._family = socket.AF_INET6 if ":" in share.target.host else socket.AF_INET
        self._kind = _kind(share)
        self._epoll = select.epoll()
        self._held: dict[int, Connection] = {}  # by descriptor
        self._waiting: list[tuple[float, int, Connection]] = []  # a heap of those that come back
        self._awaited: deque[tuple[float, int, Connection]] = deque()  # those being made: until when, which attempt
        self._making = 0
        self._begun = 0
        self._started = 0.0
        self._speakers: deque[Connection] = deque()
        self._spoke_at = 0.0
        self._owed = 0.0
        self._leaving = False

    def turn(self, most: float = TICK) -> None:
        """Do what is due, then wait up to `most` seconds for something to arrive, and attend to it."""
        now = time.monotonic()
        if not self._leaving:
            self._come_back(now)
            self._begin(now)
            self._give_up(now)
            self._speak(now)
        busy = self._speakers or self._begun < self._share.connections
        for descriptor, event in self._epoll.poll(min(most, SPEAKING_TICK if busy else TICK), EVENTS_AT_ONCE):
            connection = self._held.get(descriptor)
            if connection is not None:
                self._attend(connection, event)
        self.tally.opening = self._making

    def leave(self, within: float = GOODBYE) -> None:
        """Say goodbye on all connections, wait until the server has answered, and close them."""
        self._leaving = True
        deadline = time.monotonic() + within
        goodbye = self._kind.goodbye()
        for connection in list(self._held.values()):
            if connection.phase == Phase.OPEN and goodbye:
                self.tally.open -= 1
                connection.phase = Phase.LEAVING
                self._send(connection, goodbye)
            else:
                self._drop(connection)
        while self._held and time.monotonic() < deadline:
            self.turn()
        for connection in list(self._held.values()):
            self._drop(connection)

    def close(self) -> None:
        """Close everything at once."""
        for connection in list(self._held.values()):
            self._drop(connection)
        self._epoll.close()

    # Opening

    def _begin(self, now: float) -> None:
        if not self._started:
            self._started = now
        share = self._share
        due = min(share.connections, int((now - self._started) * share.rate) + 1)
        while self._begun < due and self._making < AT_ONCE:
            connection = Connection(share.first + self._begun)
            self._begun += 1
            self._connect(connection, now)

    def _come_back(self, now: float) -> None:
        while self._waiting and self._waiting[0][0] <= now and self._making < AT_ONCE:
            self._connect(heappop(self._waiting)[2], now)

    def _give_up(self, now: float) -> None:
        while self._awaited and self._awaited[0][0] <= now:
            _, attempt, connection = self._awaited.popleft()
            if attempt == connection.attempt and connection.phase in (Phase.CONNECTING, Phase.GREETING):
                self._fail(connection, "no answer in time")

    def _connect(self, connection: Connection, now: float) -> None:
        connection.attempt += 1
        connection.phase = Phase.CONNECTING
        connection.asked_at = now
        connection.reading = connection.retry = None
        connection.unsent = b""
        self._making += 1
        try:
            opened = socket.socket(self._family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            self._fail(connection, _reason(error.errno))
            return
        connection.socket = opened
        self._held[opened.fileno()] = connection
        try:
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            addresses = self._share.addresses
            if addresses:
                opened.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
                # Another one at each attempt: the last port may still be remembered by the kernel.
                opened.bind((addresses[(connection.number + connection.attempt) % len(addresses)], 0))
            error_number = opened.connect_ex(self._target)
        except OSError as error:
            self._fail(connection, _reason(error.errno))
            return
        if error_number not in (0, errno.EINPROGRESS):
            self._fail(connection, _reason(error_number))
            return
        self._awaited.append((now + self._plan.patience, connection.attempt, connection))
        self._epoll.register(opened, select.EPOLLOUT)

    def _connected(self, connection: Connection) -> None:
        assert connection.socket is not None
        error_number = connection.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error_number:
            self._fail(connection, _reason(error_number))
            return
        connection.phase = Phase.GREETING
        connection.reading = b""
        self._epoll.modify(connection.socket, select.EPOLLIN | select.EPOLLRDHUP)
        position = connection.position if self._plan.check else ""
        self._send(connection, self._kind.request(connection.number, position))

    def _greet(self, connection: Connection, data: bytes) -> None:
        whole = connection.reading
        assert isinstance(whole, bytes)
        whole += data
        greeting = self._kind.greet(whole)
        if greeting is None:
            connection.reading = whole
            return
        connection.reading = None
        connection.phase = Phase.OPEN
        connection.failures = 0
        self._making -= 1
        tally = self.tally
        tally.open += 1
        tally.opened += 1
        tally.reopened += connection.settled
        tally.connecting.observe(_nanoseconds(time.monotonic() - connection.asked_at))
        if self._plan.send_every and not connection.settled:
            self._speakers.append(connection)
        self._settle(connection)
        if not self._resumes:
            connection.marks = None
        connection.asked_at = 0.0
        if hello := self._kind.hello(connection.number, connection.position):
            self._send(connection, hello)
        if self._plan.send_every == 0:
            self._say(connection)
        if greeting.rest and connection.phase == Phase.OPEN:
            self._take(connection, greeting.rest)

    # What arrives

    def _attend(self, connection: Connection, event: int) -> None:
        if connection.phase == Phase.CONNECTING:
            self._connected(connection)
            return
        if event & select.EPOLLOUT:
            self._flush(connection)
        if not event & ~select.EPOLLOUT or connection.socket is None:
            return
        try:
            data = connection.socket.recv(RECEIVED_AT_ONCE)
        except BlockingIOError:
            return
        except OSError:
            self._end(connection, self._kind.reset)
            return
        if not data:
            self._end(connection, self._kind.ended)
            return
        self.tally.received_bytes += len(data)
        try:
            if connection.phase == Phase.GREETING:
                self._greet(connection, data)
            else:
                self._take(connection, data)
        except Refused as refused:
            self._fail(connection, str(refused))

    def _take(self, connection: Connection, data: bytes) -> None:
        heard = self._kind.read(data, connection.reading)
        connection.reading = heard.reading
        if heard.messages:
            self._count(connection, heard)
        if heard.heartbeats:
            self.tally.heartbeats += heard.heartbeats
        if heard.retry is not None:
            connection.retry = heard.retry
        if heard.complaint:
            self.tally.failed[heard.complaint] += 1
        if heard.reply:
            self.tally.pings += heard.pings
            self._send(connection, heard.reply)
        if heard.code:
            self._end(connection, heard.code)
        elif heard.messages and self._plan.send_every == 0 and connection.phase == Phase.OPEN:
            self._say(connection)

    def _count(self, connection: Connection, heard: Heard) -> None:
        tally = self.tally
        tally.messages += heard.messages
        if connection.asked_at and self._kind.asks:
            tally.delivery.observe(_nanoseconds(time.monotonic() - connection.asked_at))
            connection.asked_at = 0.0
        if not self._plan.check and not heard.marks:
            return
        now = time.time()
        for mark in heard.marks:
            if mark.at:
                tally.delivery.observe(_nanoseconds(now - mark.at))
            if self._plan.check:
                last = connection.marks
                if isinstance(last, Mark) and mark.number == last.number + 1 and mark[:2] == last[:2]:
                    connection.marks = mark
                else:
                    self._compare(connection, mark)
        if self._plan.check:
            tally.unnumbered += heard.messages - len(heard.marks)

    def _compare(self, connection: Connection, mark: Mark) -> None:
        marks = connection.marks
        if marks is None or (isinstance(marks, Mark) and marks.stream == mark.stream):
            last = marks
        else:
            if isinstance(marks, Mark):
                marks = connection.marks = {marks.stream: marks}
            last = marks.get(mark.stream)
        assert not isinstance(last, dict)
        fault = judge(last, mark)
        tally = self.tally
        tally.lost += fault.lost
        tally.doubled += fault.doubled
        tally.disordered += fault.disordered
        tally.restarted += fault.restarted
        if fault.disordered:
            return  # the newest one stays what the next is compared with
        if isinstance(marks, dict):
            marks[mark.stream] = mark
        else:
            connection.marks = mark

    # What is sent

    def _speak(self, now: float) -> None:
        every = self._plan.send_every
        passed, self._spoke_at = now - (self._spoke_at or now), now
        if not every or not self._speakers:
            return
        self._owed = min(self._owed + len(self._speakers) * passed / every, len(self._speakers))
        while self._owed >= 1:
            self._owed -= 1
            connection = self._speakers[0]
            self._speakers.rotate(-1)
            if connection.phase == Phase.OPEN and not connection.unsent and not connection.asked_at:
                self._say(connection)

    def _say(self, connection: Connection) -> None:
        connection.sent += 1
        self.tally.sent += 1
        data = self._kind.message(numbered(connection.sent, time.time(), self._plan.size))
        if data is None:
            connection.asked_at = time.monotonic()
            data = self._kind.request(connection.number, "")
        self._send(connection, data)

    def _send(self, connection: Connection, data: bytes) -> None:
        assert connection.socket is not None
        if connection.unsent:
            connection.unsent += data
            return
        try:
            sent = connection.socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            return  # the end of it is about to be read, with what the server said before
        if sent < len(data):
            connection.unsent = data[sent:]
            self._epoll.modify(connection.socket, select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLOUT)

    def _flush(self, connection: Connection) -> None:
        assert connection.socket is not None
        data, connection.unsent = connection.unsent, b""
        self._epoll.modify(connection.socket, select.EPOLLIN | select.EPOLLRDHUP)
        if data:
            self._send(connection, data)

    # Ending

    def _end(self, connection: Connection, code: str) -> None:
        """The server has ended it."""
        if connection.phase == Phase.GREETING:
            self._fail(connection, "ended without an answer")
            return
        was_open = connection.phase == Phase.OPEN
        self._drop(connection)
        if was_open:
            self.tally.ended[code] += 1
            self._wait(connection)

    def _fail(self, connection: Connection, reason: str) -> None:
        self.tally.failed[reason] += 1
        was_leaving = connection.phase == Phase.LEAVING
        self._drop(connection)
        if not was_leaving:
            connection.failures += 1
            self._wait(connection)

    def _drop(self, connection: Connection) -> None:
        if connection.phase == Phase.OPEN:
            self.tally.open -= 1
        elif connection.phase in (Phase.CONNECTING, Phase.GREETING):
            self._making -= 1
        connection.phase = Phase.AWAY
        connection.reading = None
        connection.unsent = b""
        held, connection.socket = connection.socket, None
        if held is not None:
            del self._held[held.fileno()]
            held.close()  # which also takes it out of the epoll set

    def _wait(self, connection: Connection) -> None:
        if not self._plan.reconnect or self._leaving:
            connection.phase = Phase.GONE
            self._settle(connection)
            return
        wait = delay(connection.failures, self._plan.reconnect, random.random(), told=connection.retry)  # noqa: S311
        heappush(self._waiting, (time.monotonic() + wait, connection.number, connection))

    def _settle(self, connection: Connection) -> None:
        if not connection.settled:
            connection.settled = True
            self.tally.settled += 1

    @property
    def _resumes(self) -> bool:
        plan = self._plan
        return plan.check and bool(plan.kind == "sse" or plan.resume or plan.hello_again)


def _kind(share: Share) -> Kind:
    plan = share.plan
    request = Request(share.target.name, share.target.path, plan.fields, plan.resume)
    if plan.kind == "sse":
        return EventStreams(request, marked=True)
    if plan.kind == "http":
        return KeepAlives(request, marked=False)
    return WebSockets(
        request,
        marked=True,
        nonce=os.urandom(16),
        mask=os.urandom(4),
        hello=plan.hello,
        hello_again=plan.hello_again,
        subprotocols=plan.subprotocols,
    )


def _reason(error_number: int | None) -> str:
    return os.strerror(error_number or 0).lower()


def _nanoseconds(seconds: float) -> int:
    return max(0, round(seconds * SECOND))
