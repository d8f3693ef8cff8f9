"""A route that waits 100 ms for something else, with many clients at once."""

from __future__ import annotations

from bench.worker.contenders import GIN, OURS, STOCK, Contender
from bench.worker.figures import Numbers
from bench.worker.load import load
from bench.worker.report import Column, Section, Target
from bench.worker.rounds import Bench
from bench.worker.servers import serving

__all__ = ["run"]

TIMES_STOCK = 2.0
P99_OF_P50 = 2.0
MAX_OF_P50 = 3.0


def run(bench: Bench) -> list[Section]:
    """One table per number of connections."""
    return [_section(bench, connections) for connections in bench.plan.waiting_connections]


def _section(bench: Bench, connections: int) -> Section:
    def once(contender: Contender) -> Numbers:
        with serving(contender) as server:
            load(server.url, connections=8, seconds=1)
            # wrk connects all at once and counts from the first request on: the storm of its start is in the figures.
            before = server.processor_time()
            figures = load(f"{server.url}waiting", connections=connections, seconds=bench.plan.waiting_seconds)
            figures["processor_us"] = (server.processor_time() - before) / figures["requests"] * 1e6
            shape = {
                "p99_of_p50": figures["p99_ms"] / figures["p50_ms"],
                "max_of_p50": figures["max_ms"] / figures["p50_ms"],
            }
            return {**figures, **shape}

    section = Section(
        f"A route that waits 100 ms: {connections:,} keep-alive connections, 1 worker",
        [
            Column("requests_per_second", "requests/s"),
            Column("p50_ms", "ms p50"),
            Column("p99_ms", "ms p99"),
            Column("max_ms", "ms worst"),
            Column("p99_of_p50", "p99 / p50", 2),
            Column("max_of_p50", "worst / p50", 2),
            Column("processor_us", "us of processor time per request"),
            Column("errors", "errors"),
        ],
        bench.measure((OURS, STOCK, GIN), once),
        compared="requests_per_second",
        against=STOCK,
    )
    section.targets += _targets(section, connections, last=connections == max(bench.plan.waiting_connections))
    return section


def _targets(section: Section, connections: int, *, last: bool) -> list[Target]:
    row = section.row(OURS)
    if row is None:
        return []
    seen, at = row.medians, f"100 ms route at {connections:,}"
    stock = section.median(STOCK, "requests_per_second")
    targets = [
        _at_most(f"{at}: errors", seen.get("errors"), 0.0),
        _at_most(f"{at}: p99 / p50", seen.get("p99_of_p50"), P99_OF_P50),
        _at_most(f"{at}: worst / p50", seen.get("max_of_p50"), MAX_OF_P50),
    ]
    if last:
        times = seen["requests_per_second"] / stock if seen and stock else None
        shown = "-" if times is None else f"{times:.2f} times"
        met = None if times is None else times >= TIMES_STOCK
        targets.insert(0, Target(f"{at}: requests beside stock", f">= {TIMES_STOCK:.1f} times", shown, met))
    return targets


def _at_most(what: str, seen: float | None, limit: float) -> Target:
    shown = "-" if seen is None else f"{seen:.2f}"
    return Target(what, f"<= {limit:g}", shown, None if seen is None else seen <= limit)
