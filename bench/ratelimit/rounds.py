"""How contenders are timed: in turn, several rounds, the median counts, and only ratios of one run mean anything."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from bench.ratelimit.plan import Plan
from bench.worker.figures import Numbers
from bench.worker.report import Column, Row, Section, Target
from tests.support.redis_server import server_programs

__all__ = [
    "DECISION",
    "at_least",
    "at_most",
    "crowd",
    "in_patched_process",
    "measure",
    "microseconds",
    "per_second",
    "servers_of",
    "table",
    "time_calls",
]

DECISION = Column("us", "us a decision", 2)
"""The column of nearly every table."""

_BATCH = 64


def microseconds(call: Callable[[], object], seconds: float) -> float:
    """Microseconds a call, over about `seconds`, the garbage collector off."""
    calls, elapsed = _timed(call, seconds)
    return elapsed / calls * 1e6


def crowd(call: Callable[[], object], seconds: float, *, greenlets: int) -> tuple[int, float]:
    """How many calls so many greenlets make together, and in how many seconds. Only in a process that gevent patched."""
    import gevent

    calls, started = [0], time.perf_counter()
    deadline = started + seconds

    def repeat() -> None:
        while time.perf_counter() < deadline:
            call()
            calls[0] += 1

    gevent.joinall([gevent.spawn(repeat) for _ in range(greenlets)], raise_error=True)
    return calls[0], time.perf_counter() - started


def per_second(call: Callable[[], object], seconds: float, *, greenlets: int) -> float:
    """Calls a second that so many greenlets make together. Only in a process that gevent patched."""
    calls, elapsed = crowd(call, seconds, greenlets=greenlets)
    return calls / elapsed


def _timed(call: Callable[[], object], seconds: float) -> tuple[int, float]:
    for _ in range(_BATCH):  # what happens once only: imports, connections, scripts that are sent
        call()
    gc.collect()
    gc.disable()
    try:
        calls, started = 0, time.perf_counter()
        while True:
            for _ in range(_BATCH):
                call()
            calls += _BATCH
            elapsed = time.perf_counter() - started
            if elapsed >= seconds:
                return calls, elapsed
    finally:
        gc.enable()


def measure(plan: Plan, contenders: Mapping[str, Callable[[], Numbers]]) -> list[Row]:
    """The figures of each contender that takes part: every one once, then again, so that a machine that slows down slows
    all of them."""
    rows = [Row(name) for name in contenders if plan.takes(name)]
    for _ in range(plan.rounds):
        for row in rows:
            row.rounds.append(contenders[row.contender]())
    return rows


def time_calls(plan: Plan, contenders: Mapping[str, Callable[[], object]]) -> list[Row]:
    """`measure` for plain calls: microseconds a call, under the name `us`."""
    return measure(plan, {name: _timer(call, plan.seconds) for name, call in contenders.items()})


def _timer(call: Callable[[], object], seconds: float) -> Callable[[], Numbers]:
    return lambda: {"us": microseconds(call, seconds)}


def table(title: str, rows: list[Row], *, column: Column = DECISION, note: str = "") -> Section:
    """A table of one figure, compared with the first row, which is ours."""
    against = rows[0].contender if rows else ""
    return Section(title, [column], rows, compared=column.name, against=against, notes=[note] if note else [])


def at_most(section: Section, what: str, wanted: float, row: str, *, name: str = "us", unit: str = "us") -> None:
    """Enter the target that a figure of one row is no more than `wanted`."""
    seen = section.median(row, name)
    shown = "" if seen is None else f"{seen:,.2f} {unit}"
    section.targets.append(Target(what, f"<= {wanted:g} {unit}", shown, None if seen is None else seen <= wanted))


def at_least(section: Section, what: str, wanted: float, ours: str, theirs: str, *, name: str = "us") -> None:
    """Enter the target that one row takes a `wanted`-th of the time of another, or less."""
    base, seen = section.median(theirs, name), section.median(ours, name)
    times = None if base is None or not seen else base / seen
    shown = "" if times is None else f"{times:,.1f} x"
    section.targets.append(Target(what, f">= {wanted:g} x", shown, None if times is None else times >= wanted))


def servers_of(plan: Plan) -> dict[str, str]:
    """The Redis-compatible server programs that take part, by name."""
    programs = server_programs()
    return programs if plan.every_server else dict(list(programs.items())[:1])


def in_patched_process(function: str, *arguments: Any, timeout: float = 120) -> Any:
    """What `module:function` returns in a new process that gevent patched before anything was imported. Arguments and
    result travel as JSON."""
    module, _, name = function.partition(":")
    code = (
        "from gevent import monkey; monkey.patch_all()\n"
        "import importlib, json, sys\n"
        f"function = getattr(importlib.import_module({module!r}), {name!r})\n"
        "print(json.dumps(function(*json.loads(sys.argv[1]))))\n"
    )
    command = [sys.executable, "-c", code, json.dumps(arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=timeout)
    return json.loads(done.stdout.splitlines()[-1])
