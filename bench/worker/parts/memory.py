"""What an idle keep-alive connection costs the server in memory of its own."""

from __future__ import annotations

import time

from bench.worker.contenders import GIN, OURS, STOCK, Contender
from bench.worker.crowd import crowd
from bench.worker.figures import Numbers
from bench.worker.report import Column, Section, Target
from bench.worker.rounds import Bench
from bench.worker.servers import serving

__all__ = ["run"]

WARM = 300
"""Connections that come and go before anything is measured, so that what is made only once is there."""

SETTLE = 1.0
WANTED = 0.5
"""KiB."""


def run(bench: Bench) -> list[Section]:
    """Growth of the worker's resident memory, each connection having asked once, its garbage collected."""
    count = bench.plan.idle_connections

    def once(contender: Contender) -> Numbers:
        with serving(contender) as server, crowd(server.port, room=count) as clients:
            clients.open(WARM)
            clients.close()
            time.sleep(SETTLE)
            before = server.resident_after_collection()
            opened = clients.open(count)
            time.sleep(SETTLE)
            after = server.resident_after_collection()
            held = clients.count()
            asked = clients.ask()
            if held < count:
                raise RuntimeError(f"only {held:,} of {count:,} connections were held")
            return {
                "kib_per_connection": (after - before) / 1024 / held,
                "mib": after / 2**20,
                "connections": float(held),
                "seconds": opened["seconds"],
                "answered_again": asked["answered"],
            }

    section = Section(
        f"Idle keep-alive connections: the worker's memory at {count:,}, each having asked once",
        [
            Column("kib_per_connection", "KiB per connection", 2),
            Column("mib", "MiB in all", 1),
            Column("seconds", "s to connect all"),
            Column("answered_again", "answered when asked again"),
        ],
        bench.measure((OURS, STOCK, GIN), once),
        compared="kib_per_connection",
        against=OURS,
    )
    section.notes.append(
        "Resident memory in user space, its garbage collected. What the kernel keeps per socket is the same for all."
    )
    seen = section.median(OURS, "kib_per_connection")
    section.targets.append(
        Target(
            f"idle keep-alive connection, user memory at {count:,}",
            f"<= {WANTED} KiB",
            "-" if seen is None else f"{seen:.2f} KiB",
            None if seen is None else seen <= WANTED,
        )
    )
    return [section]
