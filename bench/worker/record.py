"""What one run has seen: tables on the standard output as they come, and everything in a file after every part."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import time
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench.worker.equipment import ROOT, Equipment
from bench.worker.report import Section, Target, targets_markdown
from bench.worker.rounds import say

__all__ = ["Record", "versions_of"]


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """The versions of those packages that are installed here."""
    found = {}
    for name in packages:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


class Record:
    """The record of a run of `subject`, written to `path`, or where none is named to var/bench/SUBJECT-TIME.json.

    `plan` is a dataclass that has `rounds` and `seconds`.
    """

    def __init__(
        self, subject: str, plan: Any, equipment: Equipment, packages: Iterable[str], path: Path | None
    ) -> None:
        self._path = path or ROOT / "var" / "bench" / time.strftime(f"{subject}-%Y%m%d-%H%M%S.json")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._targets: list[Target] = []
        self._document: dict[str, Any] = {
            "when": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "python": platform.python_version(),
            "kernel": platform.release(),
            "processors": os.cpu_count(),
            "versions": {**equipment.versions, **versions_of(packages)},
            "missing": equipment.missing,
            "plan": dataclasses.asdict(plan),
            "seconds": {},
            "sections": [],
        }
        print(self._heading(), flush=True)

    def add(self, part: str, run: Callable[[], list[Section]]) -> None:
        """Run a part; print its tables and keep them."""
        say(f"{part} ...")
        started = time.monotonic()
        for section in run():
            print(f"\n{section.markdown()}", flush=True)
            self._targets += section.targets
            self._document["sections"].append({"part": part, **section.document()})
        self._document["seconds"][part] = round(time.monotonic() - started, 1)
        # After every part: whatever comes later, this has been seen.
        self._path.write_text(json.dumps(self._document, indent=1) + "\n", encoding="utf-8")

    def finish(self) -> int:
        """Print what was asked for and what was seen; 1 when a target was missed, else 0."""
        say(f"everything that was seen: {self._path}")
        if self._targets:
            print(f"\n{targets_markdown(self._targets)}")
        return int(any(target.met is False for target in self._targets))

    def _heading(self) -> str:
        document = self._document
        versions = ", ".join(f"{name} {number}" for name, number in sorted(document["versions"].items()))
        plan = document["plan"]
        shared = "Load and servers share the machine: compare ratios."
        lines = [
            f"Python {document['python']}, Linux {document['kernel']}, {document['processors']} processors; {versions}.",
            f"Medians of {plan['rounds']}; {plan['seconds']:g} s of load each. {shared}",
        ]
        lines += [f"Missing: {name} ({reason})." for name, reason in document["missing"].items()]
        return "\n".join(lines)
