"""The smallest answer, as often as it can be given, by one worker."""

from __future__ import annotations

import subprocess
import sys

from bench.worker.contenders import GIN, OURS, STOCK, Contender
from bench.worker.equipment import ROOT
from bench.worker.figures import Numbers
from bench.worker.load import load
from bench.worker.report import Column, Row, Section, Target
from bench.worker.rounds import FAILURES, Bench, say
from bench.worker.servers import serving

__all__ = ["run"]

CEILING = "Flask's dispatch alone, no server"
UNRANKED = ("bjoern", GIN, CEILING)
"""Not in the race for the most: a C server that does one thing at a time, another language, no server."""

WARM_SECONDS = 1.0
TIMES_STOCK = 2.0
SHARE_OF_CEILING = 0.5


def run(bench: Bench) -> list[Section]:
    """Requests per second over keep-alive connections."""
    plan = bench.plan

    def once(contender: Contender) -> Numbers:
        with serving(contender) as server:
            load(server.url, connections=plan.pong_connections, seconds=WARM_SECONDS)
            before = server.processor_time()
            figures = load(server.url, connections=plan.pong_connections, seconds=plan.seconds)
            return {**figures, "processor_us": (server.processor_time() - before) / figures["requests"] * 1e6}

    rows = bench.measure(bench.contenders, once)
    rows.append(_ceiling(bench))
    rows.sort(key=lambda row: -(row.median("requests_per_second") or 0.0))
    section = Section(
        f"Flask answers `pong`: {plan.pong_connections} keep-alive connections, 1 worker",
        [
            Column("requests_per_second", "requests/s"),
            Column("p50_ms", "ms p50", 2),
            Column("p99_ms", "ms p99", 2),
            Column("processor_us", "us of processor time per request"),
            Column("errors", "errors"),
        ],
        rows,
        compared="requests_per_second",
        against=STOCK,
    )
    section.targets += _targets(section)
    return [section]


def _ceiling(bench: Bench) -> Row:
    row = Row(CEILING)
    command = [sys.executable, "-m", "bench.worker.dispatch", str(bench.plan.seconds)]
    for number in range(bench.plan.rounds):
        try:
            done = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=bench.plan.seconds + 60
            )
            row.rounds.append({"requests_per_second": float(done.stdout)})
        except FAILURES as problem:
            row.failure = f"{type(problem).__name__}: {problem}"
        say(f"  round {number + 1}, {CEILING}: {row.rounds[-1:] or row.failure}")
    return row


def _targets(section: Section) -> list[Target]:
    def rate(name: str) -> float | None:
        return section.median(name, "requests_per_second")

    ours = rate(OURS)
    targets = [
        _share("Flask `pong` beside stock gunicorn gevent", ours, rate(STOCK), TIMES_STOCK),
        _share("Flask `pong` beside Flask's bare dispatch", ours, rate(CEILING), SHARE_OF_CEILING),
    ]
    others = [row for row in section.rows if row.contender != OURS and not row.contender.startswith(UNRANKED)]
    best = max(others, key=lambda row: row.median("requests_per_second") or 0.0, default=None)
    if best is not None:
        what = f"Flask `pong` beside the fastest other concurrent server ({best.contender})"
        targets.append(_share(what, ours, best.median("requests_per_second"), 1.0))
    bjoern = next((row for row in section.rows if row.contender.startswith("bjoern")), None)
    if bjoern is not None:
        target = _share("Flask `pong` beside bjoern", ours, bjoern.median("requests_per_second"), 0.0)
        targets.append(Target(target.what, "reported", target.seen, target.met))
    return targets


def _share(what: str, ours: float | None, base: float | None, wanted: float) -> Target:
    if ours is None or not base:
        return Target(what, f">= {wanted:.2f} times", "-", None)
    return Target(what, f">= {wanted:.2f} times", f"{ours / base:.2f} times", ours / base >= wanted)
