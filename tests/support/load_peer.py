"""A server for the clients of `longconn.load` that has nothing of ours in it: WebSockets by the `websockets` library, event
streams and plain answers by asyncio. Run as a programme it writes its two ports, `{"ws": ..., "http": ...}`, and serves until
its input ends.

Messages are numbered from 1, fifty a second, and all are kept: what comes after `?since=7-12` begins with number 13.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

__all__ = ["LoadPeer", "load_peer"]

ROOT = Path(__file__).resolve().parents[2]
EVERY = 0.02
SHORT = 0.3
"""Seconds after which connections of /short end."""

STREAM = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"


@dataclass(frozen=True, slots=True)
class LoadPeer:
    """A server that is up."""

    ws: str
    http: str
    pid: int


@contextlib.contextmanager
def load_peer() -> Iterator[LoadPeer]:
    """A server in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.load_peer"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        ports = json.loads(process.stdout.readline())
        yield LoadPeer(f"ws://127.0.0.1:{ports['ws']}", f"http://127.0.0.1:{ports['http']}", process.pid)
    finally:
        process.stdin.close()
        process.stdout.close()
        process.kill()
        process.wait()


class _News:
    """Messages of which there is one more every so often, since the start."""

    def __init__(self) -> None:
        self._started = time.time()

    @property
    def newest(self) -> int:
        return int((time.time() - self._started) / EVERY)

    async def after(self, since: str, seconds: float, tell: Callable[[int, float], Awaitable[None]]) -> None:
        number = int(since.partition("-")[2]) if since else self.newest
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            while number < self.newest:
                number += 1
                await tell(number, self._started + number * EVERY)
            await asyncio.sleep(EVERY / 4)


class _WebSockets:
    def __init__(self, news: _News) -> None:
        self._news = news

    def answer(self, connection: ServerConnection, request: Request) -> Response | None:
        return connection.respond(403, "no\n") if request.path == "/refused" else None

    async def attend(self, connection: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            await self._attend(connection)

    async def _attend(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        parts = urlsplit(connection.request.path)
        since = parse_qs(parts.query).get("since", [""])[0]

        async def tell(number: int, at: float) -> None:
            await connection.send(json.dumps({"id": f"7-{number}", "at": at}))

        if parts.path == "/news":
            await self._news.after(since, 60.0, tell)
        elif parts.path == "/short":
            await self._news.after(since, SHORT, tell)
            await connection.close(1012, "restart")
        elif parts.path == "/asked":
            hello = json.loads(await connection.recv())
            await self._news.after(hello["since"], SHORT, tell)
            await connection.close(1001)
        elif parts.path == "/faulty":
            for number in (1, 2, 5, 5, 4, 6):
                await connection.send(f"{number} {time.time()}")
            await connection.send("no number")
            await connection.wait_closed()
        elif parts.path == "/two":
            for channel, number in (("a", 1), ("b", 5), ("a", 2), ("b", 7), ("a", 3), ("a", 3)):
                await connection.send(json.dumps({"channel": channel, "id": f"7-{number}"}))
            await connection.wait_closed()
        else:
            async for message in connection:
                await connection.send(message)


class _Http:
    def __init__(self, news: _News) -> None:
        self._news = news

    async def attend(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                target = urlsplit(head.split(" ")[1])
                if target.path == "/events":
                    await self._stream(writer, parse_qs(target.query), head)
                    break
                if target.path == "/silent":
                    await reader.read()
                    break
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\npong")
        writer.close()

    async def _stream(self, writer: asyncio.StreamWriter, query: dict[str, list[str]], head: str) -> None:
        chunked = "chunked" in query
        writer.write((STREAM + ("Transfer-Encoding: chunked\r\n\r\n" if chunked else "\r\n")).encode())
        last = head.partition("Last-Event-ID: ")[2].partition("\r\n")[0]

        def write(text: str) -> None:
            data = text.encode()
            writer.write(b"%x\r\n%s\r\n" % (len(data), data) if chunked else data)

        async def tell(number: int, at: float) -> None:
            write(f": heartbeat\n\nid: 7-{number}\ndata: {number} {at}\n\n")
            await writer.drain()

        await self._news.after(last, SHORT if "short" in query else 60.0, tell)
        write("retry: 50\n\n")
        writer.write(b"0\r\n\r\n" if chunked else b"")


async def _main() -> None:
    news = _News()
    sockets, plain = _WebSockets(news), _Http(news)
    async with (
        serve(
            sockets.attend,
            "127.0.0.1",
            0,
            process_request=sockets.answer,
            ping_interval=0.2,
            compression=None,
            max_size=None,
        ) as ws,
        await asyncio.start_server(plain.attend, "127.0.0.1", 0) as http,
    ):
        ports = {"ws": next(iter(ws.sockets)).getsockname()[1], "http": http.sockets[0].getsockname()[1]}
        print(json.dumps(ports), flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_main())
