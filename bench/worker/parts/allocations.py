"""What a request allocates: blocks and bytes, counted where CPython allocates them."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys

from bench.worker.contenders import OURS, STOCK, Contender
from bench.worker.equipment import ROOT
from bench.worker.figures import Numbers
from bench.worker.report import Column, Row, Section
from bench.worker.rounds import FAILURES, Bench, say
from bench.worker.servers import serving

__all__ = ["run"]

ALONE = "Flask's dispatch alone"
WARM = 200


def run(bench: Bench) -> list[Section]:
    """Ours, stock, and Flask without a server: the difference is the server's."""
    lacks = bench.equipment.lacks("allocations.so")
    if lacks:
        say(f"  left out: {lacks}")
        return []
    variables = {"BENCH_ALLOCATIONS": bench.equipment.built("allocations.so")}
    requests = bench.plan.allocation_requests

    def once(contender: Contender) -> Numbers:
        with serving(contender, variables=variables) as server:
            return _count(server.port, requests)

    rows = bench.measure((OURS, STOCK), once)
    alone = _alone(variables, requests)
    rows.append(alone)
    base = alone.medians
    for row in rows:
        if base and row is not alone:
            row.rounds = [
                {
                    **figures,
                    "server_blocks": figures["blocks"] - base["blocks"],
                    "server_bytes": figures["bytes"] - base["bytes"],
                }
                for figures in row.rounds
            ]
    section = Section(
        "What one `pong` allocates (CPython's allocator; blocks from its free lists and C libraries' own are not counted)",
        [
            Column("blocks", "blocks", 1),
            Column("bytes", "bytes"),
            Column("large", "of them in blocks > 512"),
            Column("server_blocks", "blocks beyond Flask's", 1),
            Column("server_bytes", "bytes beyond Flask's"),
            Column("left", "blocks left per request after collection", 3),
        ],
        rows,
        compared="bytes",
        against=STOCK,
    )
    return [section]


def _count(port: int, requests: int) -> Numbers:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def ask(path: str) -> bytes:
        connection.request("GET", path)
        return connection.getresponse().read()

    try:
        for _ in range(WARM):
            ask("/")
        for path in ("/allocations", "/collect"):  # what only their first time allocates
            ask(path)
        living = json.loads(ask("/collect"))["blocks"]
        idle, before = json.loads(ask("/allocations")), json.loads(ask("/allocations"))
        for _ in range(requests):
            ask("/")
        after = json.loads(ask("/allocations"))
        left = json.loads(ask("/collect"))["blocks"] - living
    finally:
        connection.close()

    def each(name: str) -> float:
        looking = before[name] - idle[name]  # the cost of asking for the count once
        return float(after[name] - before[name] - looking) / requests

    return {"blocks": each("blocks"), "bytes": each("bytes"), "large": each("large"), "left": left / requests}


def _alone(variables: dict[str, str], requests: int) -> Row:
    row = Row(ALONE)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "bench.worker.dispatch", "--allocations", str(requests)],
            cwd=ROOT,
            env=variables,
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        row.rounds.append(json.loads(done.stdout))
    except FAILURES as problem:
        row.failure = f"{type(problem).__name__}: {problem}"
    return row
