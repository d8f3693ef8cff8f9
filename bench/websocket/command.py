"""`python -m bench websocket`: WebSockets, events and channels beside flask-sock and gorilla/websocket, in one run.

The parts, in order: `idle` (memory of connections that wait), `echo` (messages per second), `broadcast` (one message to
everybody), `publish` (from one worker to another's clients), `attacks` (clients that mean ill). The tables go to the standard
output as Markdown, everything that was seen to var/bench/ as JSON. The exit status is 1 when a target was missed.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bench.websocket.comparison import Comparison
from bench.websocket.contenders import contenders
from bench.websocket.parts import attacks, broadcast, echo, idle, publish
from bench.websocket.plan import FULL, QUICK, Plan
from bench.worker.equipment import Equipment, build_go, compile_c
from bench.worker.processes import raise_descriptor_limit
from bench.worker.record import Record
from bench.worker.report import Section
from bench.worker.rounds import say

__all__ = ["PARTS", "main", "plan_of", "prepare"]

PARTS: Mapping[str, Callable[[Comparison], list[Section]]] = {
    "idle": idle.run,
    "echo": echo.run,
    "broadcast": broadcast.run,
    "publish": publish.run,
    "attacks": attacks.run,
}
HERE = Path(__file__).resolve().parent
PACKAGES = ("gunicorn", "gevent", "flask", "flask-sock", "simple-websocket", "websockets", "lmdb")
SPARE = 1_000
"""Descriptors that a server needs for anything but idle connections."""


def main(arguments: Sequence[str]) -> int:
    """Run what is asked for; 0 when it ran, 1 when a target was missed, 2 when it could not run."""
    options = _parser().parse_args(arguments)
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        _parser().error(f"no such part: {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that what was started is ended
    plan = plan_of(options, raise_descriptor_limit())
    equipment = prepare()
    if "clients" in equipment.missing:
        say(f"clients: {equipment.missing['clients']}")
        return 2
    taking_part = {name: one for name, one in contenders(equipment).items() if re.search(options.only, name)}
    comparison = Comparison(plan, taking_part)
    record = Record("websocket", plan, equipment, PACKAGES, options.output)
    for part in (part for part in PARTS if part in (options.parts or PARTS)):
        record.add(part, functools.partial(PARTS[part], comparison))
    missed = record.finish()
    return 0 if options.quick else missed  # its figures mean nothing


def prepare() -> Equipment:
    """Compile the clients and the peer in Go, unless they are there."""
    equipment = Equipment()
    compile_c(equipment, "clients", HERE / "native" / "clients.c")
    build_go(equipment, "gorilla", HERE / "peers" / "gorilla" / "main.go")
    return equipment


def plan_of(options: argparse.Namespace, descriptor_limit: int) -> Plan:
    """The sizes that the options ask for, none beyond what a process of `descriptor_limit` descriptors can hold."""
    plan = QUICK if options.quick else FULL
    asked = {
        "rounds": options.rounds,
        "seconds": options.seconds,
        "idle_connections": options.connections,
        "idle_seconds": options.hold,
    }
    plan = dataclasses.replace(plan, **{name: value for name, value in asked.items() if value is not None})
    room = max(1, descriptor_limit - SPARE)
    return dataclasses.replace(
        plan,
        idle_connections=min(plan.idle_connections, room),
        subscribers=tuple(min(count, room) for count in plan.subscribers),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench websocket", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="one short round of everything: does it run?")
    parser.add_argument("--rounds", type=int, help=f"rounds; medians are reported ({FULL.rounds})")
    parser.add_argument("--seconds", type=float, help=f"of each load ({FULL.seconds:g})")
    parser.add_argument("--connections", type=int, help=f"idle connections ({FULL.idle_connections:,})")
    parser.add_argument("--hold", type=float, help=f"seconds that `idle` holds them ({FULL.idle_seconds:g})")
    parser.add_argument("--only", default="", metavar="REGEX", help="only the contenders whose names match")
    parser.add_argument("--output", type=Path, help="where the JSON goes (var/bench/websocket-TIME.json)")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
