"""Crowds of clients in processes of their own: many idle connections, or many that never finish their request."""

from __future__ import annotations

import contextlib
import json
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from bench.worker.processes import stop

__all__ = ["Crowd", "crowd", "split"]

ROOT = Path(__file__).resolve().parents[2]
PER_PROCESS = 8_000
"""Connections that one process holds at most: well below what its descriptors allow."""

PATIENCE = 180.0
"""Seconds that one order may take."""


def split(count: int, parts: int) -> list[int]:
    """`count` in as even parts as can be."""
    base, more = divmod(count, parts)
    return [base + (number < more) for number in range(parts)]


class Crowd:
    """Some holder processes that act as one."""

    def __init__(self, processes: list[subprocess.Popen[bytes]]) -> None:
        self.processes = processes

    def open(self, count: int) -> dict[str, float]:
        """Open `count` more connections: how many are `held` now and how many `failed`."""
        return self._order([f"open {part}" for part in split(count, len(self.processes))])

    def ask(self) -> dict[str, float]:
        """Ask on every connection: how many were `asked` and `answered`."""
        return self._order(["ask"] * len(self.processes))

    def count(self) -> int:
        """How many connections are open."""
        return int(self._order(["count"] * len(self.processes))["held"])

    def close(self) -> None:
        """Close all connections."""
        self._order(["close"] * len(self.processes))

    def _order(self, orders: list[str]) -> dict[str, float]:
        for process, order in zip(self.processes, orders, strict=True):
            assert process.stdin is not None
            process.stdin.write(f"{order}\n".encode())
            process.stdin.flush()
        total: dict[str, float] = {}
        for process in self.processes:
            for name, figure in _answer(process).items():
                total[name] = max(total.get(name, 0.0), figure) if name == "seconds" else total.get(name, 0.0) + figure
        return total


def _answer(process: subprocess.Popen[bytes]) -> dict[str, float]:
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], PATIENCE)[0]:
        raise TimeoutError(f"clients did not do as told within {PATIENCE:.0f} s")
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"a client process ended ({process.poll()})")
    answer: dict[str, float] = json.loads(line)
    return answer


@contextlib.contextmanager
def crowd(
    port: int, *, room: int, path: str = "/", unfinished: bool = False, drip: float = 10.0, at_once: int = 32
) -> Iterator[Crowd]:
    """Client processes for up to `room` connections to 127.0.0.1:port, each from source addresses of its own.

    Every connection asks for `path` once, or, `unfinished`, sends the beginning of a head and one more byte every
    `drip` seconds. `at_once` are under way at a time, over all processes.
    """
    count = -(-room // PER_PROCESS)
    processes: list[subprocess.Popen[bytes]] = []
    with contextlib.ExitStack() as stack:
        for number in range(count):
            options = {
                "port": port,
                "sources": [f"127.0.{1 + number}.{each}" for each in range(1, 5)],
                "path": path,
                "unfinished": unfinished,
                "drip": drip,
                "at_once": max(1, at_once // count),
            }
            process = subprocess.Popen(
                [sys.executable, "-m", "bench.worker.holder", json.dumps(options)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,
            )
            stack.callback(stop, process)
            processes.append(process)
        yield Crowd(processes)
