"""Clients that mean ill: what they cost the server, how they are shown out, and what others notice."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Mapping

from bench.websocket.attackers import acquaint, deflate_bomb, fragment_flood, never_reading, ping_flood
from bench.websocket.clients import Talkers, talkers
from bench.websocket.comparison import Comparison, running
from bench.websocket.contenders import OURS, PATHS, STOCK
from bench.worker.contenders import Contender
from bench.worker.crowd import crowd
from bench.worker.figures import Numbers
from bench.worker.processes import forget_peak, mapped, peak, resident
from bench.worker.report import Column, Row, Section, Target

__all__ = ["ATTACKS", "run"]

HALF_OPEN = "half-open handshakes"
OTHERS, PACE_MS = 8, 10.0
"""Who else talks meanwhile: about 800 messages a second."""

ALONE = 3.0
"""Seconds that the others talk before an attack begins."""

MEANWHILE = 8.0
"""Seconds that they talk while it goes on; as long as before it where it just stands there."""

BEFORE = 0.5
"""Seconds of that before the attack."""

LIMIT = 1.0
"""MiB that a message, and a queue, may have."""

SLOWER_MS = 20.0
"""By how much others' p99 may grow: an attacker takes half of a small machine."""

EXPECTED: Mapping[str, tuple[int, ...]] = {
    "deflate bomb": (1009,),
    "fragment flood": (1009,),
    "ping flood": (0, 1008, 1013),
    "never-reading client": (0, 1008, 1013),
    HALF_OPEN: (0,),
}
"""Which close codes are right. Who does not read may never see its own."""

ATTACKS: Mapping[str, Callable[[int, str], int]] = {
    "deflate bomb": deflate_bomb,
    "fragment flood": fragment_flood,
    "ping flood": ping_flood,
    "never-reading client": functools.partial(never_reading, publish="/publish"),
}


def run(comparison: Comparison) -> list[Section]:
    """Each attack against a server of its own."""
    rows: list[Row] = []
    targets: list[Target] = []
    for attack in (*ATTACKS, HALF_OPEN):
        seen = comparison.measure((OURS, STOCK), functools.partial(_once, comparison, attack))
        targets += [_target(attack, row) for row in seen if row.contender == OURS]
        for row in seen:
            row.contender = f"{attack}: {row.contender}"
        rows += seen
    section = Section(
        "Attacks: one client each, but for half-open handshakes",
        [
            Column("growth_mib", "MiB more at the worst", 1),
            Column("code", "close code"),
            Column("p99_alone_ms", "others' ms p99 before", 1),
            Column("p99_ms", "meanwhile", 1),
            Column("max_ms", "ms worst", 0),
            Column("cut", "others cut"),
        ],
        rows,
    )
    section.notes.append("A close code of 0: none was seen, the connection was cut or is still there.")
    section.targets += targets
    return [section]


def _once(comparison: Comparison, attack: str, contender: Contender) -> Numbers:
    plan, paths = comparison.plan, PATHS[contender.name]
    path = {
        "deflate bomb": "/deflate" if contender.name == OURS else paths["echo"],
        "never-reading client": paths["hub"],
    }.get(attack, paths["echo"])
    with running(contender) as server:
        pid = int(server.get("/pid"))

        def others(seconds: float) -> contextlib.AbstractContextManager[Talkers]:
            return talkers(
                server.port,
                paths["echo"],
                connections=OTHERS,
                seconds=seconds,
                payload=plan.payload,
                pause_ms=PACE_MS,
            )

        with others(ALONE) as quiet:
            alone = quiet.result()
        if attack in ATTACKS:
            acquaint(server.port, path)
        server.json("/collect")
        before, mapped_before = resident(pid), mapped(pid)
        forget_peak(pid)
        code = 0
        if attack == HALF_OPEN:
            with crowd(server.port, room=plan.half_open, unfinished=True, at_once=256) as clients:
                clients.open(plan.half_open)
                with others(ALONE) as disturbed:
                    meanwhile = disturbed.result()
        else:
            with others(MEANWHILE) as disturbed:
                time.sleep(BEFORE)
                code = ATTACKS[attack](server.port, path)
                meanwhile = disturbed.result()
        # What channels keep is in memory that all workers share, up to a limit of its own.
        shared = max(0, mapped(pid) - mapped_before)
        return {
            "growth_mib": max(0, peak(pid) - before - shared) / 2**20,
            "shared_mib": shared / 2**20,
            "code": float(code),
            "p99_alone_ms": alone["p99_ms"],
            "p99_ms": meanwhile["p99_ms"],
            "max_ms": meanwhile["max_ms"],
            "cut": meanwhile["failed"],
        }


def _target(attack: str, row: Row) -> Target:
    seen = row.medians
    wanted = f"{_allowed(attack):g} MiB more at most, others' p99 {SLOWER_MS:g} ms more at most, none cut"
    if not seen:
        return Target(attack, wanted, "-", None)
    codes = {int(figures["code"]) for figures in row.rounds}
    met = (
        seen["growth_mib"] <= _allowed(attack)
        and codes <= set(EXPECTED[attack])
        and seen["p99_ms"] <= seen["p99_alone_ms"] + SLOWER_MS
        and not seen["cut"]
    )
    shown = ", ".join(str(code) for code in sorted(codes))
    return Target(
        attack,
        wanted,
        f"{seen['growth_mib']:.1f} MiB, code {shown}, p99 {seen['p99_alone_ms']:.1f} to {seen['p99_ms']:.1f} ms",
        met,
    )


def _allowed(attack: str) -> float:
    """MiB: twice the limit; for half-open handshakes the memory that all incomplete heads may have."""
    return 64.0 if attack == HALF_OPEN else 2 * LIMIT
