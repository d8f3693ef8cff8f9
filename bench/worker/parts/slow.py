"""Slow clients: many that never finish the head of their request. What do the others notice?"""

from __future__ import annotations

import time

from bench.worker.contenders import GIN, OURS, STOCK, Contender
from bench.worker.crowd import crowd
from bench.worker.figures import Numbers
from bench.worker.load import load
from bench.worker.report import Column, Section, Target
from bench.worker.rounds import Bench
from bench.worker.servers import serving

__all__ = ["run"]

PATIENT = {"LONGCONN_HEAD_TIMEOUT": "3600"}
"""Else the slow clients would be closed after 10 s, and what is measured would not be there."""

OTHERS, PACE_MS = 50, 25
"""Who else asks: about 2,000 requests/s, far from all that any of them can do, so that waiting is what the figure shows."""

DRIP = 10.0
"""Seconds after which a slow client sends its next byte."""

WANTED = 1.1


def run(bench: Bench) -> list[Section]:
    """The p99 of others without the slow clients and with them, in turn, on one server."""
    count = bench.plan.slow_clients

    def once(contender: Contender) -> Numbers:
        with (
            serving(contender, variables=PATIENT) as server,
            crowd(server.port, room=count, unfinished=True, drip=DRIP, at_once=256) as clients,
        ):

            def others() -> dict[str, float]:
                return load(server.url, connections=OTHERS, seconds=bench.plan.seconds, pace_ms=PACE_MS)

            load(server.url, connections=OTHERS, seconds=1)
            without = others()
            clients.open(count)
            time.sleep(1)
            with_them = others()
            parked = clients.count()
            clients.close()
            time.sleep(1)
            after = others()  # the mean of before and after: a machine that drifts is no slow client
            base = (without["p99_ms"] + after["p99_ms"]) / 2
            return {
                "p99_without_ms": base,
                "p99_with_ms": with_them["p99_ms"],
                "p50_without_ms": (without["p50_ms"] + after["p50_ms"]) / 2,
                "p50_with_ms": with_them["p50_ms"],
                "times": with_them["p99_ms"] / base,
                "parked": float(parked),
                "errors": without["errors"] + with_them["errors"] + after["errors"],
            }

    section = Section(
        f"{count:,} slow clients in mid-header: what {OTHERS} others with about {1000 * OTHERS // PACE_MS:,} requests/s notice",
        [
            Column("p99_without_ms", "ms p99 without", 2),
            Column("p99_with_ms", "ms p99 with", 2),
            Column("times", "with / without", 2),
            Column("p50_without_ms", "ms p50 without", 2),
            Column("p50_with_ms", "ms p50 with", 2),
            Column("parked", "still parked at the end"),
            Column("errors", "errors"),
        ],
        bench.measure((OURS, STOCK, GIN), once),
    )
    seen = section.median(OURS, "times")
    section.targets.append(
        Target(
            f"others' p99 with {count:,} slow clients",
            f"<= {WANTED} times that without",
            "-" if seen is None else f"{seen:.2f} times",
            None if seen is None else seen <= WANTED,
        )
    )
    return [section]
