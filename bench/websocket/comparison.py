"""What one run has: its sizes and who takes part."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from bench.websocket.contenders import VARIABLES
from bench.websocket.plan import Plan
from bench.worker.contenders import Contender
from bench.worker.figures import Numbers
from bench.worker.report import Row
from bench.worker.rounds import measure
from bench.worker.servers import Server, serving

__all__ = ["Comparison", "running"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """A plan, and the contenders that take part by name."""

    plan: Plan
    contenders: dict[str, Contender]

    def measure(self, names: Iterable[str], once: Callable[[Contender], Numbers]) -> list[Row]:
        """Each contender's figures, as often as the plan says; those not taking part are passed over."""
        return measure(self.contenders, names, once, rounds=self.plan.rounds)


@contextlib.contextmanager
def running(contender: Contender, *, workers: int = 1) -> Iterator[Server]:
    """A contender that runs with what every server finds in its environment. Raises StartFailed."""
    with serving(contender, workers=workers, variables=VARIABLES) as server:
        yield server
