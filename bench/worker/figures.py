"""What was seen, as numbers: medians of rounds, ratios, and what wrk and the other load programmes print."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence

__all__ = ["Numbers", "medians", "percentile", "ratio", "wrk_numbers"]

Numbers = Mapping[str, float]
"""Named figures of one round. The unit is the end of the name: `p99_ms`, `bytes_per_connection`."""

SOCKET_ERRORS = ("connect", "read", "write", "timeout")


def medians(rounds: Sequence[Numbers]) -> dict[str, float]:
    """The median of each figure over the rounds that have it, in order of first sight. Empty when there was no round."""
    names = dict.fromkeys(name for figures in rounds for name in figures)
    return {name: statistics.median(figures[name] for figures in rounds if name in figures) for name in names}


def ratio(figure: float | None, base: float | None) -> float | None:
    """How many times `base`; None when either is missing or the base is nought."""
    if figure is None or not base:
        return None
    return figure / base


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that `share` (0 to 1) of all do not exceed: nearest rank. Raises ValueError when there is none."""
    if not values:
        raise ValueError("no values: there is no percentile of nothing")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def wrk_numbers(output: str) -> dict[str, float]:
    """The figures in what wrk printed with `report.lua`: its last line that is JSON.

    `errors` are socket errors and answers of 400 and above. Raises ValueError when wrk printed no such line.
    """
    line = next((line for line in reversed(output.splitlines()) if line.startswith("{")), None)
    if line is None:
        raise ValueError(f"wrk printed no result: {output!r}")
    seen = json.loads(line)
    return {
        "requests_per_second": seen["requests"] / seen["seconds"] if seen["seconds"] else 0.0,
        "requests": float(seen["requests"]),
        "p50_ms": seen["p50"],
        "p99_ms": seen["p99"],
        "max_ms": seen["max"],
        "errors": float(sum(seen[kind] for kind in SOCKET_ERRORS) + seen["status"]),
    }
