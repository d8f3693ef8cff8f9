"""The Flask application that every Python server runs: the same file, the same routes.

It is also imported by the peers, in an environment of their own: it needs Flask and the standard library, nothing else.
The instruments (allocations, pauses) are there only when the environment asks for them: they cost time.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import time
from typing import Any

from flask import Flask, Response, jsonify, request

__all__ = ["application", "counted"]

WAIT = 0.1
"""Seconds that `/waiting` waits."""

application = Flask(__name__)


@application.get("/")
def pong() -> str:
    """The least that a route can do."""
    return "pong"


@application.get("/waiting")
def waiting() -> str:
    """A route that waits for something else, as for a database. Cooperative where the server has patched `time`."""
    time.sleep(WAIT)
    return "pong"


@application.get("/livez")
def livez() -> str:
    """What an orchestrator asks."""
    return "alive"


@application.get("/pid")
def pid() -> str:
    """Who answers."""
    return str(os.getpid())


@application.get("/collect")
def collect() -> Response:
    """Collect garbage; how long that took (ms), and how many blocks of memory live on."""
    started = time.perf_counter()
    gc.collect()
    return jsonify(milliseconds=(time.perf_counter() - started) * 1e3, blocks=sys.getallocatedblocks())


counting: Any = None
"""The library that counts allocations, when the environment asks for it."""


def counted() -> dict[str, int]:
    """Blocks and bytes allocated so far, and how many of the bytes in blocks too large for CPython's own pools."""
    names = {"blocks": "allocated_blocks", "bytes": "allocated_bytes", "large": "allocated_in_large_blocks"}
    return {short: getattr(counting, name)() for short, name in names.items()}


if os.environ.get("BENCH_ALLOCATIONS"):
    # The library's functions are called with the GIL held, as what they count is allocated with it held.
    counting = ctypes.PyDLL(os.environ["BENCH_ALLOCATIONS"])
    for name in ("allocated_blocks", "allocated_bytes", "allocated_in_large_blocks"):
        getattr(counting, name).restype = ctypes.c_ulonglong
    counting.count_allocations()

    @application.get("/allocations")
    def allocations() -> Response:
        """How many blocks and bytes were allocated since the start, freed since or not."""
        return jsonify(counted())


if os.environ.get("BENCH_PAUSES"):
    pauses: list[tuple[int, float]] = []  # generation, seconds
    started_at = [0.0]
    kept: dict[int, object] = {}

    class StandIn:
        """As many fields as the state of a connection needs; nothing behind them."""

        __slots__ = (
            "address",
            "buffer",
            "deadline",
            "next",
            "previous",
            "requests",
            "since",
            "slot",
            "socket",
            "state",
        )

        def __init__(self, number: int) -> None:
            self.socket = bytearray()
            self.address = ("127.0.0.1", number)
            self.previous = self.next = self.buffer = None
            self.deadline = self.slot = self.since = self.requests = self.state = number

    def _note(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            started_at[0] = time.perf_counter()
        else:
            pauses.append((info["generation"], time.perf_counter() - started_at[0]))

    gc.callbacks.append(_note)

    @application.get("/pauses")
    def show_pauses() -> Response:
        """The longest pause (ms) and the number of collections of each generation since this was asked last."""
        seen, pauses[:] = list(pauses), []
        longest = [max((seconds for of, seconds in seen if of == generation), default=0.0) for generation in range(3)]
        return jsonify(
            milliseconds=[seconds * 1e3 for seconds in longest],
            collections=[sum(of == generation for of, _ in seen) for generation in range(3)],
        )

    @application.get("/stand-ins")
    def stand_ins() -> str:
        """Keep `count` objects like those of parked connections."""
        for number in range(int(request.args["count"])):
            kept[number] = StandIn(number)
        return str(len(kept))
