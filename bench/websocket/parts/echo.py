"""Small messages that come back, as often as one worker can."""

from __future__ import annotations

from bench.websocket.clients import echo
from bench.websocket.comparison import Comparison, running
from bench.websocket.contenders import BLOCKING, BLOCKING_STOCK, GIN, OURS, PATHS, STOCK, THREADS
from bench.worker.contenders import Contender
from bench.worker.figures import Numbers, ratio
from bench.worker.report import Column, Section, Target

__all__ = ["run"]

WARM_SECONDS = 1.0
TIMES_STOCK = 3.0


def run(comparison: Comparison) -> list[Section]:
    """Messages per second, each connection waiting for its echo before it sends the next."""
    plan = comparison.plan

    def once(contender: Contender) -> Numbers:
        path = PATHS[contender.name]["echo"]
        with running(contender) as server:
            echo(server.port, path, connections=plan.echo_connections, seconds=WARM_SECONDS, payload=plan.payload)
            spent = server.processor_time()
            seen = echo(
                server.port, path, connections=plan.echo_connections, seconds=plan.seconds, payload=plan.payload
            )
            if seen["failed"]:
                raise RuntimeError(f"{seen['failed']:.0f} connections were cut")
            return {**seen, "processor_us": (server.processor_time() - spent) / seen["with_warming"] * 1e6}

    section = Section(
        f"Echo: {plan.echo_connections} connections, {plan.payload} bytes, 1 worker",
        [
            Column("messages_per_second", "messages/s"),
            Column("p50_ms", "ms p50", 2),
            Column("p99_ms", "ms p99", 2),
            Column("processor_us", "us of processor time per message", 1),
        ],
        comparison.measure((OURS, BLOCKING, BLOCKING_STOCK, STOCK, THREADS, GIN), once),
        compared="messages_per_second",
        against=STOCK,
    )
    section.notes.append("Gin may use all processors, a Python worker one.")
    section.targets += _targets(section)
    return [section]


def _targets(section: Section) -> list[Target]:
    def rate(name: str) -> float | None:
        return section.median(name, "messages_per_second")

    beside = {name: ratio(rate(OURS), rate(name)) for name in (STOCK, GIN)}
    shown = {name: "-" if times is None else f"{times:.2f} times" for name, times in beside.items()}
    stock = beside[STOCK]
    return [
        Target(
            f"echo, {OURS} beside {STOCK}",
            f">= {TIMES_STOCK:g} times",
            shown[STOCK],
            None if stock is None else stock >= TIMES_STOCK,
        ),
        Target(f"echo, {OURS} beside {GIN}", "reported", shown[GIN], None if beside[GIN] is None else True),
    ]
