"""`python -m bench worker`: the parking worker beside its peers, everything in one run.

The parts, in order: `memory` (idle connections), `pong` (requests per second), `waiting` (a 100 ms route), `slow` (slow
clients), `many` (a crowd over several workers), `storm` (all connect at once), `allocations`, `pauses` (garbage collection).
The tables go to the standard output as Markdown, everything that was seen to var/bench/ as JSON. The exit status is 1 when
a target was missed.
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

from bench.worker.contenders import contenders
from bench.worker.equipment import prepare
from bench.worker.parts import allocations, many, memory, pauses, pong, slow, storm, waiting
from bench.worker.plan import FULL, QUICK, Plan
from bench.worker.processes import raise_descriptor_limit
from bench.worker.record import Record
from bench.worker.report import Section
from bench.worker.rounds import Bench, say

__all__ = ["PARTS", "main", "plan_of"]

PARTS: Mapping[str, Callable[[Bench], list[Section]]] = {
    "memory": memory.run,
    "pong": pong.run,
    "waiting": waiting.run,
    "slow": slow.run,
    "many": many.run,
    "storm": storm.run,
    "allocations": allocations.run,
    "pauses": pauses.run,
}
OWN = ("gunicorn", "gunicorn_h1c", "gevent", "greenlet", "flask", "werkzeug")
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
    parts = options.parts or list(PARTS)
    equipment = prepare(peers="pong" in parts)
    if "wrk" in equipment.missing:
        say(f"wrk: {equipment.missing['wrk']}")
        return 2
    taking_part = {name: one for name, one in contenders(equipment).items() if re.search(options.only, name)}
    bench = Bench(plan, equipment, taking_part, chosen=bool(options.only))
    record = Record("worker", plan, equipment, OWN, options.output)
    for part in (part for part in PARTS if part in parts):
        record.add(part, functools.partial(PARTS[part], bench))
    return record.finish()


def plan_of(options: argparse.Namespace, descriptor_limit: int) -> Plan:
    """The sizes that the options ask for, none beyond what a process of `descriptor_limit` descriptors can hold."""
    plan = QUICK if options.quick else FULL
    asked = {
        "rounds": options.rounds,
        "seconds": options.seconds,
        "waiting_seconds": options.seconds,
        "idle_connections": options.connections,
        "crowd_connections": options.crowd,
        "crowd_workers": options.workers,
        "crowd_seconds": options.hold,
    }
    plan = dataclasses.replace(plan, **{name: value for name, value in asked.items() if value is not None})
    room = max(1, descriptor_limit - SPARE)
    return dataclasses.replace(
        plan,
        idle_connections=min(plan.idle_connections, room),
        slow_clients=min(plan.slow_clients, room),
        storm_connections=min(plan.storm_connections, room),
        waiting_connections=tuple(min(count, room) for count in plan.waiting_connections),
        crowd_connections=min(plan.crowd_connections, plan.crowd_workers * room),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench worker", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="one short round of everything: does it run?")
    parser.add_argument("--rounds", type=int, help="rounds; medians are reported (5)")
    parser.add_argument("--seconds", type=float, help="of each load (6; 15 on the route that waits)")
    parser.add_argument("--connections", type=int, help="idle connections of `memory` and `pauses` (15,000)")
    parser.add_argument("--crowd", type=int, help="connections of `many` (100,000)")
    parser.add_argument("--workers", type=int, help="workers of `many` (6)")
    parser.add_argument("--hold", type=float, help="seconds that `many` holds its connections (600)")
    parser.add_argument("--only", default="", metavar="REGEX", help="only the servers whose names match")
    parser.add_argument("--output", type=Path, help="where the JSON goes (var/bench/worker-TIME.json)")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
