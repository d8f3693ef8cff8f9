"""From one worker to the clients of another: how long it takes, and whether all comes, once and in order."""

from __future__ import annotations

import contextlib
import http.client
import time
from collections.abc import Iterator

from bench.websocket.clients import listeners
from bench.websocket.comparison import Comparison, running
from bench.websocket.contenders import OURS
from bench.worker.contenders import Contender
from bench.worker.figures import Numbers
from bench.worker.report import Column, Section, Target
from bench.worker.servers import Server

__all__ = ["run"]

WANTED_MS = 5.0
TRIES = 60
"""Connections that are made to find two workers."""


def run(comparison: Comparison) -> list[Section]:
    """Published on worker A at a pace, heard by clients of worker B; the messages say when they were published."""
    plan = comparison.plan

    def once(contender: Contender) -> Numbers:
        with running(contender, workers=2) as server, _two_workers(server) as (publisher, other):
            with listeners(
                server.port, "/greeted", connections=plan.listeners, messages=plan.published, worker=other
            ) as heard:
                time.sleep(0.5)
                publisher.request("POST", f"/paced?count={plan.published}&rate={plan.publish_rate}")
                answer = publisher.getresponse()
                rate = float(answer.read())
                seen = heard.result(10.0)
            return {**seen, "messages_per_second": rate}

    section = Section(
        f"Publish on worker A, {plan.listeners} clients on worker B, {plan.published:,} messages",
        [
            Column("messages_per_second", "messages/s"),
            Column("p50_ms", "ms p50", 2),
            Column("p99_ms", "ms p99", 2),
            Column("max_ms", "ms worst", 2),
            Column("lost", "lost"),
            Column("repeated", "doubled or out of order"),
        ],
        comparison.measure((OURS,), once),
    )
    row = section.row(OURS)
    seen = row.medians if row is not None else {}
    met, shown = None, "-"
    if row is not None and row.rounds:
        wrong = sum(figures["lost"] + figures["repeated"] for figures in row.rounds)
        met = seen["p99_ms"] <= WANTED_MS and not wrong
        shown = f"{seen['p99_ms']:.2f} ms, {wrong:,.0f} lost, doubled or out of order in all rounds"
    section.targets.append(
        Target(
            f"publish on A, heard on B, {plan.publish_rate:,} messages/s",
            f"p99 <= {WANTED_MS:g} ms, none lost or doubled",
            shown,
            met,
        )
    )
    return [section]


@contextlib.contextmanager
def _two_workers(server: Server) -> Iterator[tuple[http.client.HTTPConnection, int]]:
    """A connection to one worker, and the process id of another."""
    with contextlib.ExitStack() as stack:
        first: http.client.HTTPConnection | None = None
        mine = 0
        for _ in range(TRIES):
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120.0)
            stack.callback(connection.close)
            connection.request("GET", "/pid")
            pid = int(connection.getresponse().read())
            if first is None:
                first, mine = connection, pid
            elif pid != mine:
                yield first, pid
                return
        raise RuntimeError(f"one worker answered all of {TRIES} connections")
