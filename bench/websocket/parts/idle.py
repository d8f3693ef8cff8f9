"""What a connection that waits costs the server in memory of its own, and in processor time for its heartbeats."""

from __future__ import annotations

import time

from bench.websocket.clients import crowd
from bench.websocket.comparison import Comparison, running
from bench.websocket.contenders import (
    BLOCKING,
    EVENTS,
    GIN,
    GIN_EVENTS,
    OURS,
    PATHS,
    STOCK,
    STOCK_EVENTS,
)
from bench.worker.contenders import Contender
from bench.worker.figures import Numbers
from bench.worker.report import Column, Section, Target

__all__ = ["run"]

WARM = 300
"""Connections that come and go before anything is measured, so that what is made only once is there."""

SETTLE = 1.0
WANTED = {OURS: 0.5, EVENTS: 0.5, BLOCKING: 20.0}
"""KiB."""

COLUMNS = (
    Column("kib_per_connection", "KiB per connection", 2),
    Column("mib", "MiB in all", 1),
    Column("processor", "% of a processor while idle", 1),
    Column("seconds", "s to connect all", 1),
    Column("held", "still there"),
)


def run(comparison: Comparison) -> list[Section]:
    """Growth of the worker's resident memory, its garbage collected, after the heartbeats of the plan's time."""
    plan = comparison.plan

    def once(contender: Contender) -> Numbers:
        path, events = PATHS[contender.name]["idle"], contender.name in (EVENTS, STOCK_EVENTS, GIN_EVENTS)
        with running(contender) as server, crowd(server.port, path, events=events) as clients:
            clients.open(WARM)
            clients.close()
            time.sleep(SETTLE)
            before = server.resident_after_collection()
            opened = clients.open(plan.idle_connections)
            time.sleep(SETTLE)
            started, spent = time.monotonic(), server.processor_time()
            time.sleep(plan.idle_seconds)
            spent, passed = server.processor_time() - spent, time.monotonic() - started
            after = server.resident_after_collection()
            held = clients.count()
            if held < plan.idle_connections:
                raise RuntimeError(f"only {held:,} of {plan.idle_connections:,} connections were held")
            return {
                "kib_per_connection": (after - before) / 1024 / held,
                "mib": after / 2**20,
                "processor": 100 * spent / passed,
                "seconds": opened["seconds"],
                "held": float(held),
            }

    count = f"{plan.idle_connections:,}"
    sockets = Section(
        f"Idle WebSockets: the worker's memory at {count}",
        COLUMNS,
        comparison.measure((OURS, BLOCKING, STOCK, GIN), once),
        compared="kib_per_connection",
        against=OURS,
    )
    sockets.notes.append(
        f"`{OURS}` and Gin's are in one channel (a hub) and are pinged every 25 s; the others are as their documentation "
        "shows them, without pings. Resident memory in user space; what the kernel keeps per socket is the same for all."
    )
    streams = Section(
        f"Idle streams of server-sent events: the worker's memory at {count}",
        COLUMNS,
        comparison.measure((EVENTS, STOCK_EVENTS, GIN_EVENTS), once),
        compared="kib_per_connection",
        against=EVENTS,
    )
    for section in (sockets, streams):
        section.targets += [
            _target(section, name, wanted) for name, wanted in WANTED.items() if section.row(name) is not None
        ]
    return [sockets, streams]


def _target(section: Section, name: str, wanted: float) -> Target:
    seen = section.median(name, "kib_per_connection")
    shown = "-" if seen is None else f"{seen:.2f} KiB"
    return Target(f"idle, {name}", f"<= {wanted:g} KiB", shown, None if seen is None else seen <= wanted)
