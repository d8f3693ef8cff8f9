"""One message to everybody, the next one when all have it."""

from __future__ import annotations

from bench.websocket.clients import fan
from bench.websocket.comparison import Comparison, running
from bench.websocket.contenders import GIN, OURS, PATHS, STOCK
from bench.worker.contenders import Contender
from bench.worker.figures import Numbers, ratio
from bench.worker.report import Column, Section, Target

__all__ = ["run"]

PATH = "/publish"


def run(comparison: Comparison) -> list[Section]:
    """Deliveries per second to each number of subscribers, and how long a delivery takes from the publication."""
    return [_to(comparison, count) for count in comparison.plan.subscribers]


def _to(comparison: Comparison, count: int) -> Section:
    plan = comparison.plan
    messages = max(5, plan.deliveries // count)

    def once(contender: Contender) -> Numbers:
        with running(contender) as server:
            spent = server.processor_time()
            seen = fan(
                server.port,
                PATHS[contender.name]["hub"],
                subscribers=count,
                messages=messages,
                payload=plan.payload,
                publish=PATH,
            )
            return {**seen, "processor_seconds": server.processor_time() - spent}

    section = Section(
        f"Broadcast: {messages:,} messages of {plan.payload} bytes to {count:,} subscribers, 1 worker",
        [
            Column("deliveries_per_second", "deliveries/s"),
            Column("p50_ms", "ms p50 of a delivery", 1),
            Column("p99_ms", "ms p99", 1),
            Column("last_ms", "ms to the last subscriber", 1),
            Column("worst_ms", "ms worst", 1),
            Column("processor_seconds", "s of processor time", 1),
        ],
        comparison.measure((OURS, STOCK, GIN), once),
        compared="deliveries_per_second",
        against=GIN,
    )
    times = ratio(section.median(OURS, "deliveries_per_second"), section.median(GIN, "deliveries_per_second"))
    section.targets.append(
        Target(
            f"broadcast to {count:,}, {OURS} beside the hub of {GIN}",
            ">= 1 times",
            "-" if times is None else f"{times:.2f} times",
            None if times is None else times >= 1,
        )
    )
    return section
