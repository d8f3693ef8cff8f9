"""A programme that opens many connections to 127.0.0.1 and holds them: `python -m bench.worker.holder '{"port": ...}'`.

It obeys lines on its standard input and answers each with one line of JSON on its standard output:

    open 5000   open that many more; each asks once and is answered, or sends the beginning of a head: {"held", "failed"}
    ask         ask once more on every connection: {"answered"}
    count       how many are still open: {"held"}
    close       close all of them: {"held": 0}

It ends with its input. While it waits it sends one more byte on each unfinished head every `drip` seconds.
"""

from __future__ import annotations

import errno
import json
import os
import re
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Holder", "Options", "verdict"]

IP_BIND_ADDRESS_NO_PORT = 24
"""Linux's, missing in `socket`: the port is chosen on connecting, so that one address serves many connections."""

GIVE_UP = 30.0
"""Seconds without any answer after which the connections that wait for one have failed."""

TICK = 0.05
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Options:
    """Where to connect, from which addresses, what to send, and how many may be under way at once."""

    port: int
    sources: tuple[str, ...] = ("127.0.0.2",)
    path: str = "/"
    unfinished: bool = False
    """Send the beginning of a head, never its end."""
    drip: float = 10.0
    at_once: int = 64


def verdict(received: bytes) -> bool | None:
    """Is this a whole answer of 200? None: it is not whole yet. False: it is another answer, or none at all."""
    head, blank, body = received.partition(b"\r\n\r\n")
    if not blank:
        return None
    if not head.startswith(b"HTTP/1.1 200 "):
        return False
    length = LENGTH.search(head + b"\r\n")
    if length is not None:
        return True if len(body) >= int(length[1]) else None
    return True if body.endswith(b"0\r\n\r\n") else None


class Holder:
    """Many connections, one thread, one epoll set."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._epoll = select.epoll()
        self._held: dict[int, socket.socket] = {}
        self._waiting: dict[int, bytes] = {}  # descriptor -> what has been received of the answer
        self._opening: dict[int, socket.socket] = {}
        self._failed = 0
        self._number = 0
        self._dripping: deque[int] = deque()
        self._owed = 0.0
        head = f"GET {options.path} HTTP/1.1\r\nHost: 127.0.0.1:{options.port}\r\n"
        self._ask = f"{head}\r\n".encode()
        self._sent = f"{head}X-Slow: a".encode() if options.unfinished else self._ask

    @property
    def held(self) -> int:
        """How many connections are open, as far as has been noticed."""
        return len(self._held)

    def open(self, count: int) -> dict[str, float]:
        """Open `count` more, `at_once` of them under way at a time."""
        started, failed, begun = time.monotonic(), self._failed, 0
        progress = started
        while begun < count or self._opening or self._waiting:
            while begun < count and len(self._opening) + len(self._waiting) < self._options.at_once:
                self._begin()
                begun += 1
            if self._poll(TICK):
                progress = time.monotonic()
            elif time.monotonic() - progress > GIVE_UP:
                self._abandon()
        return {"held": self.held, "failed": self._failed - failed, "seconds": time.monotonic() - started}

    def ask(self) -> dict[str, float]:
        """Ask once more on every connection; how many were answered. Those that were not are closed."""
        started, descriptors = time.monotonic(), list(self._held)
        before, progress = len(descriptors), started
        while descriptors or self._waiting:
            while descriptors and len(self._waiting) < self._options.at_once:
                self._send(descriptors.pop(), self._ask)
            if self._poll(TICK):
                progress = time.monotonic()
            elif time.monotonic() - progress > GIVE_UP:
                self._abandon()
        return {"answered": self.held, "asked": before, "seconds": time.monotonic() - started}

    def count(self) -> dict[str, float]:
        """How many are open."""
        while self._poll(0.0):
            pass
        return {"held": self.held}

    def close(self) -> dict[str, float]:
        """Close all."""
        for descriptor in list(self._held):
            self._drop(descriptor)
        return {"held": 0}

    def wait(self) -> str:
        """Drip and notice who hangs up, until a line comes in; that line. Empty at the end of the input."""
        source = sys.stdin.fileno()
        while True:
            started = time.monotonic()
            if select.select([source], [], [], TICK)[0]:
                return sys.stdin.readline()
            self._poll(0.0)
            self._drip(time.monotonic() - started)

    def _begin(self) -> None:
        self._number += 1
        connection = socket.socket()
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        connection.bind((self._options.sources[self._number % len(self._options.sources)], 0))
        error = connection.connect_ex(("127.0.0.1", self._options.port))
        if error not in {0, errno.EINPROGRESS}:
            connection.close()
            self._failed += 1
            return
        self._opening[connection.fileno()] = connection
        self._epoll.register(connection, select.EPOLLOUT)

    def _poll(self, timeout: float) -> int:
        events = self._epoll.poll(timeout, 1024)
        for descriptor, _event in events:
            if descriptor in self._opening:
                self._connected(descriptor)
            elif descriptor in self._waiting:
                self._receive(descriptor)
            else:
                self._drop(descriptor)  # nobody speaks to an idle client: it was closed, or answered while it was slow
        return len(events)

    def _connected(self, descriptor: int) -> None:
        connection = self._opening.pop(descriptor)
        if connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._failed += 1
            connection.close()
            return
        self._held[descriptor] = connection
        self._epoll.modify(descriptor, select.EPOLLIN | select.EPOLLRDHUP)
        self._send(descriptor, self._sent, awaited=not self._options.unfinished)
        if self._options.unfinished and descriptor in self._held:
            self._dripping.append(descriptor)

    def _send(self, descriptor: int, data: bytes, *, awaited: bool = True) -> None:
        if awaited:
            self._waiting[descriptor] = b""
        try:
            self._held[descriptor].send(data)
        except KeyError:
            self._waiting.pop(descriptor, None)  # closed meanwhile
        except OSError:
            self._drop(descriptor, failed=True)

    def _receive(self, descriptor: int) -> None:
        try:
            data = self._held[descriptor].recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        received = self._waiting[descriptor] + data
        found = verdict(received) if data else False
        if found is None:
            self._waiting[descriptor] = received
        elif found:
            del self._waiting[descriptor]
        else:
            self._drop(descriptor, failed=True)

    def _drip(self, passed: float) -> None:
        if not self._dripping or not self._options.drip:
            return
        self._owed += len(self._dripping) * passed / self._options.drip
        while self._owed >= 1 and self._dripping:
            self._owed -= 1
            descriptor = self._dripping.popleft()
            if descriptor in self._held:
                self._send(descriptor, b"a", awaited=False)
                self._dripping.append(descriptor)

    def _drop(self, descriptor: int, *, failed: bool = False) -> None:
        self._failed += failed
        self._waiting.pop(descriptor, None)
        connection = self._held.pop(descriptor, None)
        if connection is not None:
            connection.close()  # which also takes it out of the epoll set

    def _abandon(self) -> None:
        for descriptor in list(self._waiting):
            self._drop(descriptor, failed=True)
        for connection in self._opening.values():
            connection.close()
            self._failed += 1
        self._opening.clear()


def _obey(holder: Holder, lines: Iterable[str]) -> None:
    for line in lines:
        verb, _, number = line.strip().partition(" ")
        answers = {"ask": holder.ask, "count": holder.count, "close": holder.close}
        answer = holder.open(int(number)) if verb == "open" else answers[verb]()
        print(json.dumps(answer), flush=True)


def main() -> None:
    """Obey until the input ends, or whoever started this has."""
    raw = json.loads(sys.argv[1])
    holder = Holder(Options(**{**raw, "sources": tuple(raw["sources"])}))
    sys.stdin = os.fdopen(0, buffering=1)  # lines are looked for with select: none may wait in a buffer
    _obey(holder, iter(holder.wait, ""))


if __name__ == "__main__":
    main()
