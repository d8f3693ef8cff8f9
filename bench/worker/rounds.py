"""Rounds: every contender once, then every contender again, so that a machine that slows down slows all of them."""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from bench.worker.contenders import Contender
from bench.worker.equipment import Equipment
from bench.worker.figures import Numbers
from bench.worker.plan import Plan
from bench.worker.report import Row

__all__ = ["FAILURES", "Bench", "measure", "say"]

FAILURES = (OSError, RuntimeError, ValueError, http.client.HTTPException, subprocess.SubprocessError)
"""What a server, a client or the machine may do to a measurement. A mistake of the benchmark is none of these."""


@dataclass(slots=True)
class Bench:
    """What one run has: its sizes, its equipment, and who takes part."""

    plan: Plan
    equipment: Equipment
    contenders: dict[str, Contender]
    chosen: bool = False
    """The contenders were named: then even the longest part is done with all of them."""

    def measure(
        self, names: Iterable[str], once: Callable[[Contender], Numbers], *, rounds: int | None = None
    ) -> list[Row]:
        """Each contender's figures, `rounds` (the plan's, by default) of them; those not taking part are passed over."""
        return measure(self.contenders, names, once, rounds=rounds or self.plan.rounds)


def measure(
    contenders: Mapping[str, Contender], names: Iterable[str], once: Callable[[Contender], Numbers], *, rounds: int
) -> list[Row]:
    """The figures of those of `names` that are among `contenders`. Who fails in the first round is not asked again."""
    rows = [Row(name) for name in names if name in contenders]
    for number in range(rounds):
        for row in rows:
            if row.rounds or not row.failure:
                _one(row, contenders[row.contender], once, number)
    return rows


def _one(row: Row, contender: Contender, once: Callable[[Contender], Numbers], number: int) -> None:
    if contender.missing:
        row.failure = contender.missing
        return
    busy, started = os.getloadavg()[0], time.monotonic()
    try:
        figures = once(contender)
    except FAILURES as problem:
        row.failure = f"{type(problem).__name__}: {problem}"
        say(f"  round {number + 1}, {row.contender}: {row.failure}")
        return
    row.rounds.append({**figures, "load_average_before": busy})
    shown = ", ".join(f"{name} {figure:,.5g}" for name, figure in figures.items())
    say(f"  round {number + 1}, {row.contender} ({time.monotonic() - started:.0f} s): {shown}")


def say(text: str) -> None:
    """Tell whoever waits how far it is. Not part of the result."""
    print(text, file=sys.stderr, flush=True)
