"""How long and how much: the sizes of one run."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["FULL", "QUICK", "Plan"]


@dataclass(frozen=True, slots=True)
class Plan:
    """The sizes of one run."""

    rounds: int
    """Each contender is timed so many times, in turn; medians are reported."""
    seconds: float
    """How long each contender is timed in a round, about."""
    greenlets: int
    every_server: bool = True
    """Whether every server program of the machine is asked, or the first one."""
    only: str = ""
    """A regular expression that the names of contenders match; empty: all."""

    def takes(self, contender: str) -> bool:
        """Whether this one takes part."""
        return re.search(self.only, contender) is not None


FULL = Plan(rounds=7, seconds=0.5, greenlets=200)
"""What the targets are about: five minutes, and the machine to itself."""

QUICK = Plan(rounds=1, seconds=0.02, greenlets=20, every_server=False)
"""Whether everything runs: the figures mean nothing."""
