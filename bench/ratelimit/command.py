"""`python -m bench ratelimit`: the rate limiter beside its peers, everything in one run.

The parts, in order: `memory` (one process), `shm` (one host, one and two busy processes), `redis` (one caller, 200
greenlets, leases), `denials` (an attacker on Redis), `flask` (what a limit adds to a request). The tables go to the
standard output as Markdown, everything that was seen to var/bench/ as JSON. The exit status is 1 when a target was missed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench.ratelimit.plan import FULL, QUICK, Plan
from bench.worker.report import Section, Target, targets_markdown

__all__ = ["PARTS", "main", "plan_of", "run_part"]

PARTS = ("memory", "shm", "redis", "denials", "flask")
ROOT = Path(__file__).parents[2]
_VERSIONS = ("limits", "Flask-Limiter", "throttled-py", "flask", "gevent", "redis", "hiredis", "lmdb")


def main(arguments: Sequence[str]) -> int:
    """Run what is asked for; 0 when it ran and no target was missed, else 1."""
    parser = _parser()
    options = parser.parse_args(arguments)
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}")
    plan = plan_of(options)
    document = _beginning(plan)
    print(_heading(document), flush=True)
    targets: list[Target] = []
    for part in (part for part in PARTS if part in (options.parts or PARTS)):
        started = time.monotonic()
        for section in run_part(part, plan):
            print(f"\n{section.markdown()}", flush=True)
            targets += section.targets
            document["sections"].append({"part": part, **section.document()})
        document["seconds"][part] = round(time.monotonic() - started, 1)
    _write(document, options.output)
    if targets:
        print(f"\n{targets_markdown(targets)}")
    if options.quick:
        return 0  # its figures mean nothing
    return int(any(target.met is False for target in targets))


def run_part(part: str, plan: Plan) -> list[Section]:
    """The tables of one part. It is imported when it is asked for: each needs other packages."""
    run: Callable[[Plan], list[Section]] = importlib.import_module(f"bench.ratelimit.{part}").run
    return run(plan)


def plan_of(options: argparse.Namespace) -> Plan:
    """The sizes that the options ask for."""
    asked = {"rounds": options.rounds, "seconds": options.seconds, "greenlets": options.greenlets, "only": options.only}
    plan = QUICK if options.quick else FULL
    return dataclasses.replace(plan, **{name: value for name, value in asked.items() if value is not None})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench ratelimit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="one short round of everything: does it run?")
    parser.add_argument("--rounds", type=int, help=f"rounds; medians are reported ({FULL.rounds})")
    parser.add_argument("--seconds", type=float, help=f"of each contender in a round ({FULL.seconds:g})")
    parser.add_argument("--greenlets", type=int, help=f"that ask at the same time ({FULL.greenlets})")
    parser.add_argument("--only", metavar="REGEX", help="only the contenders whose names match")
    parser.add_argument("--output", type=Path, help="where the JSON goes (var/bench/ratelimit-TIME.json)")
    return parser


def _beginning(plan: Plan) -> dict[str, Any]:
    versions = {}
    for name in _VERSIONS:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return {
        "when": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "processors": os.cpu_count(),
        "versions": {**versions, **_servers()},
        "plan": dataclasses.asdict(plan),
        "seconds": {},
        "sections": [],
    }


def _servers() -> dict[str, str]:
    from tests.support.redis_server import server_programs

    said = {}
    for name, program in server_programs().items():
        done = subprocess.run([program, "--version"], capture_output=True, text=True, check=True, timeout=10)
        said[f"{name} server"] = done.stdout.partition("v=")[2].partition(" ")[0]
    return said


def _heading(document: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in document["versions"].items())
    plan = document["plan"]
    return (
        f"{document['when']}: Python {document['python']}, Linux {document['kernel']}, {document['processors']} processors; "
        f"{versions}.\nMedians of {plan['rounds']}; {plan['seconds']:g} s of each contender in a round. Contenders and servers "
        "share the machine: compare ratios."
    )


def _write(document: dict[str, Any], asked: Path | None) -> None:
    path = asked or ROOT / "var" / "bench" / time.strftime("ratelimit-%Y%m%d-%H%M%S.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(f"everything that was seen: {path}", file=sys.stderr)
