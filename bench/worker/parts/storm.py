"""An accept storm: all clients at once, as after a restart of whatever stands before the service."""

from __future__ import annotations

import json
import subprocess
import time

from bench.worker.contenders import GIN, OURS, STOCK, Contender
from bench.worker.figures import Numbers
from bench.worker.load import load
from bench.worker.report import Column, Section, Target
from bench.worker.rounds import Bench, say
from bench.worker.servers import serving

__all__ = ["run"]

LIMIT = 60
"""Seconds after which a storm is over, whoever still waits."""


def run(bench: Bench) -> list[Section]:
    """Connect, ask once, keep all open until all are answered."""
    count = bench.plan.storm_connections
    lacks = bench.equipment.lacks("storm")
    if lacks:
        say(f"  left out: {lacks}")
        return []

    def once(contender: Contender, workers: int = 1) -> Numbers:
        with serving(contender, workers=workers) as server:
            load(server.url, connections=8, seconds=1)
            time.sleep(0.5)
            return _storm(bench.equipment.built("storm"), server.port, count)

    rows = bench.measure((OURS, STOCK, GIN), once)
    both = bench.measure((OURS,), lambda contender: once(contender, workers=2))
    for row in both:
        row.contender = f"{OURS}, 2 workers"  # Gin's one process uses both processors: so can we
    section = Section(
        f"Accept storm: {count:,} connects as fast as they come, each asks once, 1 worker",
        [
            Column("seconds", "s until all are answered", 2),
            Column("connecting_seconds", "s to send all connects", 2),
            Column("answered", "answered"),
            Column("refused", "refused or reset"),
            Column("p50_ms", "ms p50"),
            Column("p99_ms", "ms p99"),
            Column("max_ms", "ms worst"),
        ],
        [*rows, *both],
        compared="seconds",
        against=GIN,
    )
    for row in [row for row in section.rows if row.contender.startswith(OURS)]:
        served = min((figures["answered"] for figures in row.rounds), default=None)
        refused = max((figures["refused"] for figures in row.rounds), default=0.0)
        shown = "-" if served is None else f"{served:,.0f} answered, {refused:,.0f} refused in the worst round"
        met = None if served is None else served >= count and refused == 0
        section.targets.append(
            Target(f"accept storm, {row.contender}", f"all {count:,} answered, none refused", shown, met)
        )
    return [section]


def _storm(program: str, port: int, count: int) -> Numbers:
    done = subprocess.run(
        [program, str(port), str(count), str(LIMIT)], capture_output=True, text=True, check=True, timeout=LIMIT + 30
    )
    seen = json.loads(done.stdout)
    return {
        "seconds": seen["seconds"],
        "connecting_seconds": seen["connecting"],
        "answered": float(seen["answered"]),
        "refused": float(seen["refused"] + seen["reset"] + seen["other"]),
        "p50_ms": seen["p50"],
        "p99_ms": seen["p99"],
        "max_ms": seen["max"],
    }
