"""A hundred thousand idle connections over several workers, held for minutes, while `/livez` is asked."""

from __future__ import annotations

import time

from bench.worker.contenders import GIN, OURS, STOCK, Contender
from bench.worker.crowd import Crowd, crowd
from bench.worker.figures import Numbers
from bench.worker.load import start_load
from bench.worker.processes import available_memory, descriptors, resident, share, slab
from bench.worker.report import Column, Section, Target
from bench.worker.rounds import Bench, say
from bench.worker.servers import Server, serving

__all__ = ["run"]

VARIABLES = {"LONGCONN_IDLE_TIMEOUT": "3600"}
ASKERS, PACE_MS = 20, 100
"""`/livez` is asked about 200 times a second, on a new connection every time, as probes do."""

LOOK = 60.0
"""Seconds between two looks at what is held."""

WANTED_MS = 20.0
EVEN = 0.05


def run(bench: Bench) -> list[Section]:
    """One round, whatever the plan says of rounds: it is long."""
    plan = bench.plan

    def once(contender: Contender) -> Numbers:
        with (
            serving(contender, workers=plan.crowd_workers, variables=VARIABLES) as server,
            crowd(server.port, room=plan.crowd_connections, at_once=256) as clients,
        ):
            return _hold(bench, server, clients)

    section = Section(
        f"{plan.crowd_connections:,} idle connections over {plan.crowd_workers} workers for {plan.crowd_seconds:.0f} s",
        [
            Column("held", "held to the end"),
            Column("answered", "answered when asked again"),
            Column("p99_ms", "`/livez` ms p99", 2),
            Column("max_ms", "ms worst", 2),
            Column("errors", "errors"),
            Column("server_mib", "server MiB (PSS)"),
            Column("kib_per_connection", "KiB per connection", 2),
            Column("slab_kib", "kernel KiB per connection, both ends", 2),
            Column("machine_mib", "machine MiB, both ends"),
            Column("spread", "furthest worker from even, %", 1),
        ],
        bench.measure((OURS, STOCK, GIN) if bench.chosen else (OURS,), once, rounds=1),
    )
    section.targets += _targets(section, plan.crowd_connections, plan.crowd_seconds)
    return [section]


def _hold(bench: Bench, server: Server, clients: Crowd) -> Numbers:
    plan = bench.plan
    own_before = {pid: descriptors(pid) for pid in server.workers}
    before, slab_before, free_before = share(server.processes), slab(), available_memory()
    holders_before = sum(resident(process.pid) for process in clients.processes)
    opened = clients.open(plan.crowd_connections)
    say(f"  {opened['held']:,.0f} held after {opened['seconds']:.0f} s, {opened['failed']:,.0f} failed")
    after = share(server.processes)
    loads = [descriptors(pid) - own_before.get(pid, 0) for pid in server.workers]
    figures: dict[str, float] = {
        "server_mib": after / 2**20,
        "kib_per_connection": (after - before) / 1024 / max(1.0, opened["held"]),
        "slab_kib": (slab() - slab_before) / 1024 / max(1.0, opened["held"]),
        "machine_mib": (free_before - available_memory()) / 2**20,
        "clients_mib": (sum(resident(process.pid) for process in clients.processes) - holders_before) / 2**20,
        "spread": 100 * max(abs(load - sum(loads) / len(loads)) for load in loads) / (sum(loads) / len(loads)),
        "failed": opened["failed"],
    }
    probe = start_load(
        f"{server.url}livez",
        connections=ASKERS,
        seconds=plan.crowd_seconds,
        pace_ms=PACE_MS,
        headers=("Connection: close",),
    )
    try:
        _watch(server, clients, plan.crowd_seconds)
        livez = probe.result()
    finally:
        probe.stop()
    figures |= {name: livez[name] for name in ("p50_ms", "p99_ms", "max_ms", "errors", "requests")}
    figures["server_mib_at_the_end"] = share(server.processes) / 2**20
    figures["held"] = float(clients.count())
    figures["answered"] = clients.ask()["answered"]
    return figures


def _watch(server: Server, clients: Crowd, seconds: float) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(LOOK, left))
        memory = share(server.processes) / 2**20
        say(f"  {max(0.0, end - time.monotonic()):.0f} s to go: {clients.count():,} held, server {memory:,.0f} MiB")


def _targets(section: Section, count: int, seconds: float) -> list[Target]:
    row = section.row(OURS)
    seen = row.medians if row is not None else {}
    held, p99, spread = seen.get("held"), seen.get("p99_ms"), seen.get("spread")
    memory = seen.get("server_mib")
    return [
        Target(
            f"idle connections held for {seconds:.0f} s",
            f"{count:,}",
            "-" if held is None else f"{held:,.0f} in {memory:,.0f} MiB",
            None if held is None else held >= count and seen["answered"] >= count,
        ),
        Target(
            "p99 of `GET /livez` meanwhile",
            f"<= {WANTED_MS:.0f} ms",
            "-" if p99 is None else f"{p99:.2f} ms",
            None if p99 is None else p99 <= WANTED_MS,
        ),
        Target(
            "workers' shares of the connections",
            f"within {EVEN:.0%} of even",
            "-" if spread is None else f"{spread:.1f} %",
            None if spread is None else spread <= 100 * EVEN,
        ),
    ]
