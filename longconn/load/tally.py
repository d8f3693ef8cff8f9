"""What clients have seen, as numbers that can be added up over processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from itertools import takewhile
from typing import Any

from longconn.core.histogram import Histogram

__all__ = ["BOUNDS", "Tally", "histogram"]

FINENESS = 1.1
"""How much greater each bound of a histogram is than the one before: a percentile is at most so much too high."""

SECOND = 1_000_000_000
BOUNDS = tuple(
    takewhile(lambda bound: bound <= 300 * SECOND, (round(10_000 * FINENESS**step) for step in range(1_000)))
)
"""Nanoseconds, from 10 us to 282 s."""


def histogram() -> Histogram:
    """An empty one, of nanoseconds."""
    return Histogram(BOUNDS)


@dataclass(slots=True)
class Tally:
    """What has been counted since the start, but for the first four, which say how things are now."""

    wanted: int = 0
    """Connections that are to be held."""
    open: int = 0
    """Connections that are open."""
    opening: int = 0
    """Connections that are being made."""
    settled: int = 0
    """Connections that were open once, or were given up: when all are, the opening is over."""
    opened: int = 0
    """Times that a connection was opened."""
    reopened: int = 0
    """Of these, times that one came back."""
    messages: int = 0
    """Messages, events or answers that came."""
    sent: int = 0
    """Messages or requests that were sent."""
    lost: int = 0
    doubled: int = 0
    disordered: int = 0
    restarted: int = 0
    unnumbered: int = 0
    """Messages that say no number, although the check wants one."""
    pings: int = 0
    """Pings that were answered."""
    heartbeats: int = 0
    """Comments in event streams."""
    received_bytes: int = 0
    processor: float = 0.0
    """Seconds of a processor that the clients used."""
    memory: int = 0
    """Bytes that the client processes take."""
    busiest: float = 0.0
    """The greatest share of a processor that one client process used for a moment: near 1.0, times are the client's own."""
    failed: Counter[str] = field(default_factory=Counter)
    """Tries that failed, by reason."""
    ended: Counter[str] = field(default_factory=Counter)
    """Connections that the server ended, by close code, or "ended" and "reset" where there are none. 1006 is WebSocket's for an
    end without a code."""
    connecting: Histogram = field(default_factory=histogram)
    """How long it took to open a connection."""
    delivery: Histogram = field(default_factory=histogram)
    """How long messages were under way: from what they say of when they were sent, or from a request to its answer."""

    def add(self, other: Tally) -> None:
        """Add what `other` counted. The greatest share of a processor stays the greatest."""
        for each in fields(self):
            mine, theirs = getattr(self, each.name), getattr(other, each.name)
            if isinstance(mine, Histogram):
                mine.cells[:] = [one + more for one, more in zip(mine.cells, theirs.cells, strict=True)]
            elif isinstance(mine, Counter):
                mine.update(theirs)
            else:
                setattr(self, each.name, max(mine, theirs) if each.name == "busiest" else mine + theirs)

    def as_json(self) -> dict[str, Any]:
        """As JSON takes it; histograms as their cells that are not 0."""
        return {
            each.name: _cells(value) if isinstance(value, Histogram) else value
            for each in fields(self)
            for value in [getattr(self, each.name)]
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Tally:
        """What `as_json` said."""
        tally = cls()
        for name, found in value.items():
            mine = getattr(tally, name)
            if isinstance(mine, Histogram):
                for cell, count in found.items():
                    mine.cells[int(cell)] = count
            else:
                setattr(tally, name, Counter(found) if isinstance(mine, Counter) else found)
        return tally


def _cells(counted: Histogram) -> dict[str, int]:
    return {str(cell): count for cell, count in enumerate(counted.cells) if count}
