"""The clients' side: `native/clients.c` as functions."""

from __future__ import annotations

import contextlib
import json
import select
import subprocess
from collections.abc import Iterator
from typing import Any

from bench.worker.equipment import BUILT
from bench.worker.figures import Numbers
from bench.worker.processes import stop

__all__ = ["Crowd", "Listeners", "Talkers", "crowd", "echo", "fan", "listeners", "talkers"]

PROGRAM = str(BUILT / "clients")
PATIENCE = 180.0
"""Seconds that an order may take, beyond what it is asked to take."""


def fan(port: int, path: str, *, subscribers: int, messages: int, payload: int, publish: str) -> Numbers:
    """One message after the other to all subscribers: deliveries a second, and the times (ms) of their way.

    Raises RuntimeError when some delivery does not come.
    """
    process = _start("fan", port, path, subscribers, messages, payload, publish)
    try:
        seen = _finished(process, PATIENCE)
    finally:
        stop(process)
    return {
        "deliveries_per_second": seen["deliveries"] / seen["seconds"],
        "p50_ms": seen["p50_ms"],
        "p99_ms": seen["p99_ms"],
        "last_ms": seen["last_ms"],
        "worst_ms": seen["worst_ms"],
        "failed": float(seen["failed"]),
    }


class Talkers:
    """Connections whose messages come back, at work."""

    def __init__(self, process: subprocess.Popen[bytes], seconds: float) -> None:
        self.process = process
        self._seconds = seconds

    def result(self) -> Numbers:
        """Wait for their end: messages a second, and the times (ms) of their echoes."""
        seen = _finished(self.process, self._seconds + PATIENCE)
        return {
            "messages_per_second": seen["messages"] / seen["seconds"],
            "messages": float(seen["messages"]),
            "with_warming": float(seen["with_warming"]),
            "p50_ms": seen["p50_ms"],
            "p99_ms": seen["p99_ms"],
            "max_ms": seen["max_ms"],
            "failed": float(seen["failed"]),
        }


@contextlib.contextmanager
def talkers(
    port: int, path: str, *, connections: int, seconds: float, payload: int, pause_ms: float = 0
) -> Iterator[Talkers]:
    """Connections that each send a text and wait for its echo, for some seconds; with `pause_ms` between the two."""
    process = _start("echo", port, path, connections, seconds, payload, pause_ms)
    try:
        yield Talkers(process, seconds)
    finally:
        stop(process)


def echo(port: int, path: str, *, connections: int, seconds: float, payload: int, pause_ms: float = 0) -> Numbers:
    """The same from their start to their end."""
    with talkers(port, path, connections=connections, seconds=seconds, payload=payload, pause_ms=pause_ms) as running:
        return running.result()


class Listeners:
    """Clients of one worker, that listen."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def result(self, seconds: float) -> Numbers:
        """What they have heard, when they have heard all: in `seconds` and some patience."""
        seen = _finished(self._process, seconds + PATIENCE)
        return {name: float(figure) for name, figure in seen.items()}


@contextlib.contextmanager
def listeners(port: int, path: str, *, connections: int, messages: int, worker: int) -> Iterator[Listeners]:
    """Clients that the worker with this process id has greeted, and that expect so many messages. They are connected."""
    process = _start("listen", port, path, connections, messages, worker)
    try:
        _line(process, PATIENCE)
        yield Listeners(process)
    finally:
        stop(process)


class Crowd:
    """Clients that stay, answer pings and say nothing."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def open(self, count: int) -> dict[str, float]:
        """Open that many more: how many are `held` now, how many `failed`, in how many `seconds`."""
        return self._order(f"open {count}")

    def count(self) -> int:
        """How many are open."""
        return int(self._order("count")["held"])

    def close(self) -> None:
        """Close all."""
        self._order("close")

    def _order(self, order: str) -> dict[str, float]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{order}\n".encode())
        self._process.stdin.flush()
        answer: dict[str, float] = _line(self._process, PATIENCE)
        return answer


@contextlib.contextmanager
def crowd(port: int, path: str, *, events: bool = False) -> Iterator[Crowd]:
    """A process for clients that stay: WebSockets, or streams of `events`."""
    process = _start("hold", port, path, "events" if events else "websocket")
    try:
        yield Crowd(process)
    finally:
        stop(process)


def _start(order: str, port: int, *arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [PROGRAM, order, str(port), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def _line(process: subprocess.Popen[bytes], seconds: float) -> Any:
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], seconds)[0]:
        raise TimeoutError(f"clients did not do as told within {seconds:.0f} s")
    line = process.stdout.readline()
    if not line:
        assert process.stderr is not None
        raise RuntimeError(f"the clients ended: {process.stderr.read().decode(errors='replace').strip()[-300:]}")
    return json.loads(line)


def _finished(process: subprocess.Popen[bytes], seconds: float) -> dict[str, Any]:
    try:
        output, complaints = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        stop(process)
        raise RuntimeError("the clients did not end") from None
    if process.returncode:
        raise RuntimeError(f"the clients failed: {complaints.decode(errors='replace').strip()[-300:]}")
    seen: dict[str, Any] = json.loads(output.splitlines()[-1])
    return seen
