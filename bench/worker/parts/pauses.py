"""How long garbage collection stops the worker: with idle connections, and with as many objects as more of them would be."""

from __future__ import annotations

import time

from bench.worker.contenders import OURS, STOCK, Contender
from bench.worker.crowd import crowd
from bench.worker.figures import Numbers
from bench.worker.load import load
from bench.worker.report import Column, Section
from bench.worker.rounds import Bench
from bench.worker.servers import Server, serving

__all__ = ["run"]

VARIABLES = {"BENCH_PAUSES": "1"}
COLUMNS = [
    Column("opening_ms", "longest pause while they came, ms", 2),
    Column("longest_ms", "longest pause under load, ms", 2),
    Column("young_ms", "generation 0", 2),
    Column("middle_ms", "generation 1", 2),
    Column("old_ms", "generation 2", 2),
    Column("young", "collections of 0"),
    Column("middle", "of 1"),
    Column("old", "of 2"),
    Column("full_ms", "a full collection, forced, ms", 2),
]


def run(bench: Bench) -> list[Section]:
    """Pauses during a load of `pong`, and of a collection of everything that is not frozen."""
    return [_with_connections(bench), _with_stand_ins(bench)]


def _with_connections(bench: Bench) -> Section:
    count = bench.plan.idle_connections

    def once(contender: Contender) -> Numbers:
        with serving(contender, variables=VARIABLES) as server, crowd(server.port, room=count) as clients:
            server.json("/pauses")  # forget those of the start
            clients.open(count)
            return _pauses(bench, server)

    title = f"Garbage collection with {count:,} idle connections under a load of `pong`"
    return Section(title, COLUMNS, bench.measure((OURS, STOCK), once))


def _with_stand_ins(bench: Bench) -> Section:
    count = bench.plan.stand_ins

    def once(contender: Contender) -> Numbers:
        with serving(contender, variables=VARIABLES) as server:
            server.json("/pauses")
            server.get(f"/stand-ins?count={count}")
            return _pauses(bench, server)

    title = f"Garbage collection with {count:,} objects in the place of connections under a load of `pong`"
    return Section(title, COLUMNS, bench.measure((OURS, STOCK), once))


def _pauses(bench: Bench, server: Server) -> Numbers:
    time.sleep(0.5)
    opening = max(server.json("/pauses")["milliseconds"])
    load(server.url, connections=bench.plan.pong_connections, seconds=bench.plan.seconds)
    seen = server.json("/pauses")
    full = server.json("/collect")["milliseconds"]
    young, middle, old = seen["milliseconds"]
    counts = seen["collections"]
    return {
        "opening_ms": opening,
        "longest_ms": max(young, middle, old),
        "young_ms": young,
        "middle_ms": middle,
        "old_ms": old,
        "young": float(counts[0]),
        "middle": float(counts[1]),
        "old": float(counts[2]),
        "full_ms": full,
    }
