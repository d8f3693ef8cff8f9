"""How things are timed: in turn, several rounds, the median counts, and only ratios of one run mean anything."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

__all__ = ["Row", "print_table", "time_calls"]


class Row(NamedTuple):
    """One contender's figure, lower is better; `unit` says of what."""

    name: str
    figure: float
    unit: str


def time_calls(contenders: Mapping[str, Callable[[], object]], *, calls: int, rounds: int = 7) -> list[Row]:
    """Microseconds a call of each contender, in turn so that a machine that slows down slows all of them. The median."""
    figures: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            figures[name].append(_seconds(call, calls) / calls * 1e6)
    return [Row(name, statistics.median(values), "us") for name, values in figures.items()]


def _seconds(call: Callable[[], object], calls: int) -> float:
    gc.collect()
    gc.disable()
    try:
        started = time.perf_counter()
        for _ in range(calls):
            call()
        return time.perf_counter() - started
    finally:
        gc.enable()


def print_table(title: str, rows: list[Row]) -> None:
    """A Markdown table; the ratio is to the first row, which is ours."""
    print(f"\n### {title}\n\n| what | figure | times ours |\n|---|---|---|")
    for row in rows:
        print(f"| {row.name} | {row.figure:,.2f} {row.unit} | {row.figure / rows[0].figure:.1f} |", flush=True)
