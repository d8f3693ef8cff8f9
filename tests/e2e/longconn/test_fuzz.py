"""No byte of one request or connection ever reaches another.

Many connections at once send requests with marks of their own in path, field and body, cut into pieces anywhere,
pipelined or not, and many leave in the middle. Each answer must carry exactly the marks of its request, in order.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import functools
import hashlib
import json
import random
import re
import socket
import ssl
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Self, TypeVar

import pytest

from tests.support.longconn_client import Reply, ReplyReader, reset
from tests.support.longconn_mirror import padding
from tests.support.longconn_server import GunicornServer, gunicorn_server

Result = TypeVar("Result")

MIRROR = "tests.support.longconn_mirror:application"
AT_ONCE = 60
PATIENCE = 30.0
"""Seconds in which a connection must have all its answers."""

HOWS = ("whole", "whole", "stream", "ignore", "part", "file", "none")
METHODS = ("GET", "GET", "POST", "POST", "PUT", "HEAD", "DELETE")
SIZES = (0, 1, 9, 500, 9_000, 70_000)
PADS = (0, 0, 0, 40, 9_000, 200_000)
LONGEST = 20_000
"""Bytes of a piece that is sent at once, unless all are."""

NAME = re.compile(rb"[0-9a-f]{16}")
"""Of a connection."""

BROKEN = (
    b"GET /whole/%s HTTP/1.1\r\nHost: a\r\nX-Marker : %s\r\n\r\n",
    b"GET /whole/%s HTTP/9.1\r\nHost: a\r\nX-Marker: %s\r\n\r\n",
    b"GET /whole/%s HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\nX-Marker: %s\r\n\r\nab",
    b"POST /whole/%s HTTP/1.1\r\nHost: a\r\nX-Marker: %s\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
    b"GET /whole/%s HTTP/1.1\r\nHost: a\r\nX-Marker: %s\n\r\n\r\n",
)


class Mixed(AssertionError):
    """An answer that is not the one to its request."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request and what its answer must be. `ends`: the connection cannot go on after it."""

    data: bytes
    method: str
    uri: str
    marker: str
    status: int = 200
    length: int = 0
    digest: str = hashlib.sha256(b"").hexdigest()
    pad: int = 0
    ends: bool = False

    def check(self, reply: Reply) -> None:
        """Raise `Mixed` unless `reply` is this request's."""
        if self.status != reply.status:
            raise Mixed(f"{self.status} expected for {self.marker}, but {reply.status} came: {reply.body[:300]!r}")
        if self.status == 204 and self.marker != reply.headers.get("x-marker"):
            raise Mixed(f"{self.marker} expected, {reply.headers} came")
        if self.status != 200 or self.method == "HEAD":
            return
        said, _, pad = reply.body.partition(b"\n")
        wanted = {
            "method": self.method,
            "uri": self.uri,
            "marker": self.marker,
            "length": self.length,
            "digest": self.digest,
            "context": "nothing",
        }
        if wanted != json.loads(said):
            raise Mixed(f"{wanted} expected, {said!r} came")
        if pad != padding(self.marker, self.pad):
            raise Mixed(f"the answer to {self.marker} is not made of it")


@dataclass(slots=True)
class Script:
    """What one connection does."""

    seed: str
    name: str
    bursts: list[list[Asked]]
    ending: str
    """To "wait" for all answers, "half-close" before them, or "leave" or "reset" after `cut` bytes."""

    cut: int
    rng: random.Random
    mutated: bytes = b""


@dataclass(slots=True)
class Tally:
    """What has been seen."""

    answered: int = 0
    endings: Counter[str] = field(default_factory=Counter)
    names: set[str] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)


@pytest.fixture(params=[False, True], ids=["plain", "tls"])
def server(request: pytest.FixtureRequest) -> Iterator[GunicornServer]:
    with gunicorn_server("--keep-alive", "10", app=MIRROR, workers=2, tls=request.param) as running:
        yield running


def test_answers_never_get_mixed_up(server: GunicornServer) -> None:
    tally = asyncio.run(_storm(server, seed="27", seconds=3))
    print(tally.answered, dict(tally.endings))
    assert [] == tally.failures
    assert tally.answered >= 300
    assert set(tally.endings) == {"wait", "half-close", "leave", "reset", "mutated"}
    _assert_healthy(server)


@pytest.mark.prove
def test_answers_never_get_mixed_up_for_a_minute(server: GunicornServer) -> None:
    seed = f"{random.SystemRandom().getrandbits(64):x}"
    print(f"seed {seed}")
    tally = asyncio.run(_storm(server, seed=seed, seconds=60))
    print(tally.answered, dict(tally.endings))
    assert [] == tally.failures
    assert tally.answered >= 3000
    _assert_healthy(server)


def _assert_healthy(server: GunicornServer) -> None:
    """It still answers, with the same workers, and has had no errors but those of the application."""
    assert 200 == server.get()[0]
    log = server.log()
    assert 2 == log.count("Booting worker")
    records = re.split(r"\n(?=\[\d{4}-)", log)
    assert [] == [record for record in records if "Traceback (most" in record and "Mirrored" not in record]


async def _storm(server: GunicornServer, *, seed: str, seconds: float) -> Tally:
    tally = Tally()
    until = time.monotonic() + seconds
    numbers = iter(range(10**9))

    async def visitor() -> None:
        while time.monotonic() < until and not tally.failures:
            script = _script(f"{seed}-{next(numbers)}")
            tally.names.add(script.name)
            tally.endings["mutated" if script.mutated else script.ending] += 1
            try:
                await asyncio.wait_for(_visit(server, script, tally), PATIENCE)
            except TimeoutError:
                tally.failures.append(f"{script.seed}: not over in {PATIENCE} s")
            except (AssertionError, ValueError) as error:
                tally.failures.append(f"{script.seed}: {error!r}")

    await asyncio.gather(*(visitor() for _ in range(AT_ONCE)))
    return tally


async def _visit(server: GunicornServer, script: Script, tally: Tally) -> None:
    wire = await _Wire.open(server)
    try:
        if script.mutated:
            await _send_mutated(wire, script, tally)
        else:
            await _converse(wire, script, tally)
    finally:
        wire.close(rudely=script.ending == "reset")


async def _converse(wire: _Wire, script: Script, tally: Tally) -> None:
    answers = _Answers(tally)
    listening = asyncio.create_task(answers.listen(wire))
    try:
        left = script.cut if script.ending in ("leave", "reset") else sys.maxsize
        for burst in script.bursts:
            data = b"".join(each.data for each in burst)
            answers.expect(burst)
            await _send(wire, data[:left], script.rng)
            left -= len(data)
            if left <= 0:
                await asyncio.sleep(script.rng.choice((0, 0.001, 0.02)))
                return
            if script.ending == "half-close" and burst is script.bursts[-1] and wire.finish():
                await listening
            await asyncio.wait({listening, answers.all_here()}, return_when=asyncio.FIRST_COMPLETED)
            if listening.done():
                return
    finally:
        answers.forget()
        if not listening.done():
            listening.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await listening


class _Wire:
    """A connection whose two directions fail apart from each other, which those of asyncio's streams do not.

    What has arrived can be read although the server takes no more.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._loop = asyncio.get_running_loop()
        self._arrived, self._leaving = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls: ssl.SSLObject | None = None

    @classmethod
    async def open(cls, server: GunicornServer) -> Self:
        """Connect, and shake hands where the server wants that."""
        wire = cls(socket.socket())
        wire._socket.setblocking(False)
        await wire._loop.sock_connect(wire._socket, (server.host, server.port))
        if server.tls:
            wire._tls = _trusting().wrap_bio(wire._arrived, wire._leaving)
            await wire._when_arrived(wire._tls.do_handshake)
        return wire

    async def receive(self) -> bytes:
        """What comes next, b"" at the end, however that comes about."""
        try:
            if self._tls is None:
                return await self._loop.sock_recv(self._socket, 1 << 16)
            return await self._when_arrived(functools.partial(self._tls.read, 1 << 16))
        except OSError:  # of TLS too
            return b""

    async def send(self, data: bytes) -> None:
        """Send all of it. Raises `OSError` when the server takes no more."""
        if self._tls is not None:
            self._tls.write(data)
            data = self._leaving.read()
        await self._loop.sock_sendall(self._socket, data)

    def finish(self) -> bool:
        """Say that no more is sent, where one can say that and still receive."""
        if self._tls is None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)
        return self._tls is None

    def close(self, *, rudely: bool) -> None:
        """End it, `rudely` with a reset."""
        if rudely:
            reset(self._socket)
        self._socket.close()

    async def _when_arrived(self, act: Callable[[], Result]) -> Result:
        while True:
            try:
                result = act()
            except ssl.SSLWantReadError:
                await self._flush()
                data = await self._loop.sock_recv(self._socket, 1 << 16)
                self._arrived.write(data) if data else self._arrived.write_eof()
            else:
                await self._flush()
                return result

    async def _flush(self) -> None:
        if self._leaving.pending:
            await self._loop.sock_sendall(self._socket, self._leaving.read())


@functools.cache
def _trusting() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class _Answers:
    """Those of one connection, each checked when it comes."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._reader = ReplyReader()
        self._awaited: collections.deque[Asked] = collections.deque()
        self._all_here: asyncio.Future[None] | None = None
        self._last_was = ""

    def expect(self, burst: list[Asked]) -> None:
        """These are about to be sent."""
        self._awaited.extend(burst)
        for each in burst:
            self._reader.asked(each.method)

    def all_here(self) -> asyncio.Future[None]:
        """Done when nothing is missing."""
        self._all_here = asyncio.get_running_loop().create_future()
        if not self._awaited:
            self._all_here.set_result(None)
        return self._all_here

    def forget(self) -> None:
        """Nobody waits any more."""
        if self._all_here is not None:
            self._all_here.cancel()

    async def listen(self, wire: _Wire) -> None:
        """Check answers until the server closes. Raises `Mixed` when one is wrong or missing."""
        while data := await wire.receive():
            self._take(self._reader.feed(data))
        last = self._reader.end()
        self._take([last] if last is not None else [])
        if self._awaited and not self._last_was:
            raise Mixed(
                f"closed without an answer to {self._awaited[0].data[:300]!r} and {len(self._awaited) - 1} more"
            )

    def _take(self, replies: list[Reply]) -> None:
        for reply in replies:
            if reply.status < 200:
                continue
            if self._last_was:
                raise Mixed(f"after {self._last_was}, which was the last, came {reply.body[:300]!r}")
            if not self._awaited:
                raise Mixed(f"nobody asked for {reply.body[:300]!r}")
            asked = self._awaited.popleft()
            asked.check(reply)
            self._tally.answered += 1
            if reply.closes or asked.ends:
                self._last_was = asked.marker
        if not self._awaited and self._all_here is not None and not self._all_here.done():
            self._all_here.set_result(None)


async def _send(wire: _Wire, data: bytes, rng: random.Random) -> None:
    """Send `data` in pieces of any size, with pauses anywhere. What the server does not take is left out."""
    whole = rng.random() < 0.4
    with contextlib.suppress(OSError):
        while data:
            size = len(data) if whole else rng.choice((1, 2, 17, 400, LONGEST, LONGEST))
            await wire.send(data[:size])
            data = data[size:]
            if rng.random() < 0.3:
                await asyncio.sleep(rng.choice((0, 0, 0.002)))


async def _send_mutated(wire: _Wire, script: Script, tally: Tally) -> None:
    """Whatever comes of it, it is nothing of anybody else's."""
    sending = asyncio.create_task(_send(wire, script.mutated, script.rng))
    received = bytearray()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(script.rng.choice((0.05, 1))):
            while data := await wire.receive():
                received += data
    sending.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await sending
    foreign = {name.decode() for name in NAME.findall(received)} & (tally.names - {script.name})
    if foreign:
        raise Mixed(f"{foreign} reached another connection, in {bytes(received[:1000])!r}")


def _script(seed: str) -> Script:
    rng = random.Random(seed)
    name = f"{rng.getrandbits(64):016x}"
    asked = [_asked(rng, f"{name}-{number}") for number in range(rng.choice((1, 2, 3, 6, 12)))]
    ends = [number for number, each in enumerate(asked) if each.ends]
    if ends and rng.random() < 0.7:
        asked = asked[: ends[0] + 1]  # else what follows an end must stay without an answer
    bursts = []
    while asked:
        count = rng.choice((1, 1, 2, 4, 12))
        bursts.append(asked[:count])
        del asked[:count]
    total = sum(len(each.data) for burst in bursts for each in burst)
    ending = rng.choice(("wait", "wait", "wait", "half-close", "leave", "reset"))
    script = Script(seed, name, bursts, ending, rng.randrange(total), rng)
    if rng.random() < 0.15:
        script.mutated = _mutated(rng, b"".join(each.data for burst in bursts for each in burst))
    return script


def _asked(rng: random.Random, marker: str) -> Asked:
    if rng.random() < 0.03:
        data = rng.choice(BROKEN) % (marker.encode(), marker.encode())
        return Asked(data, "GET", "", marker, status=400, ends=True)
    how, method, pad = rng.choice(HOWS), rng.choice(METHODS), rng.choice(PADS)
    if rng.random() < 0.03:
        how, method = "raise", "GET"  # gunicorn's own answer to an error has a body, also for HEAD
    body = padding(marker, size)[:size] if (size := rng.choice(SIZES)) and method in ("POST", "PUT", "DELETE") else b""
    uri = f"/{how}/{marker}?pad={pad}" + ("&pause=0.02" if rng.random() < 0.1 else "")
    version = "1.0" if rng.random() < 0.04 else "1.1"
    last = version == "1.0" or rng.random() < 0.03
    fields = [f"X-Marker: {marker}", *(f"X-Field-{n}: {marker * n}" for n in range(rng.choice((0, 0, 1, 5, 20))))]
    fields += ["Connection: close"] if last and version == "1.1" else []
    framing, sent = _framed(rng, body, version)
    fields += framing
    rng.shuffle(fields)
    head = "\r\n".join([f"{method} {uri} HTTP/{version}", "Host: test", *fields, "", ""])
    read = {"ignore": b"", "part": body[:10]}.get(how, body)
    return Asked(
        head.encode("latin-1") + sent,
        method,
        uri,
        marker,
        status={"none": 204, "raise": 500}.get(how, 200),
        length=len(read),
        digest=hashlib.sha256(read).hexdigest(),
        pad=pad,
        ends=last or how == "raise",
    )


def _framed(rng: random.Random, body: bytes, version: str) -> tuple[list[str], bytes]:
    """The fields that announce `body` and what is sent for it."""
    if not body:
        return [], b""
    expect = ["Expect: 100-continue"] if version == "1.1" and rng.random() < 0.1 else []
    if version == "1.0" or rng.random() < 0.5:
        return [f"Content-Length: {len(body)}", *expect], body
    chunks: list[bytes] = []
    while body:
        size = rng.choice((1, 7, 300, 20_000, 70_000)) if len(chunks) < 50 else len(body)
        piece, body = body[:size], body[size:]
        chunks.append(b"%x%s\r\n%s\r\n" % (len(piece), rng.choice((b"", b"", b";a=b")), piece))
    return ["Transfer-Encoding: chunked", *expect], b"".join(chunks) + b"0\r\n\r\n"


def _mutated(rng: random.Random, data: bytes) -> bytes:
    """`data` with a few bytes changed, lost, doubled or out of place."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 3, 10))):
        place = rng.randrange(len(changed))
        length = rng.choice((1, 1, 2, 30))
        match rng.randrange(4):
            case 0:
                changed[place] = rng.randrange(256)
            case 1:
                del changed[place : place + length]
            case 2:
                changed[place:place] = changed[place : place + length]
            case 3:
                changed[place:place] = rng.choice((b"\r\n", b"\n", b"\r\n\r\n", b"\0", b" ", b"0\r\n\r\n", b":"))
        changed = changed or bytearray(b"\r\n")
    return bytes(changed)
