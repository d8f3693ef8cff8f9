"""Garbage collection in a worker that holds many long-lived objects: made rare, and its pauses measured.

CPython stops everything while it collects. A collection of the oldest generation looks at every container that lives, and
parked connections are containers that live long: the pause grows with what is held, not with what is done. `tune` takes
what the application made at boot out of all collections and makes the rest rarer. Objects without cycles, and a parked
connection is one, are freed at once by their reference counts in any case.

Choice and figures: docs/decisions/0008-garbage-collection.md.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from typing import Final

__all__ = ["THRESHOLDS", "PauseMeter", "tune"]

THRESHOLDS: Final = (10_000, 5, 20)
"""After how many more objects the youngest generation is collected, and after how many collections of one the next."""


def tune() -> None:
    """Collect once, exempt everything that is left from collection for good, and collect the rest less often.

    To be called in a worker, after the fork and when the application has been loaded.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)


class PauseMeter:
    """Calls `on_pause(seconds, generation)` after each collection of garbage in this process, on whatever thread it ran.

    `generation` is 0, 1 or 2; 2 is a full collection. `clock` gives seconds.
    """

    __slots__ = ("_began", "_clock", "_on_pause")

    def __init__(
        self, on_pause: Callable[[float, int], None], *, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._on_pause = on_pause
        self._clock = clock
        self._began: float | None = None

    def start(self) -> None:
        """Begin to measure. May be called again."""
        if self._hear not in gc.callbacks:
            gc.callbacks.append(self._hear)

    def stop(self) -> None:
        """Measure no more. May be called again."""
        if self._hear in gc.callbacks:
            gc.callbacks.remove(self._hear)

    def _hear(self, phase: str, details: Mapping[str, int]) -> None:
        # No two collections overlap: the interpreter sees to it.
        if phase == "start":
            self._began = self._clock()
        elif self._began is not None:
            self._on_pause(self._clock() - self._began, details["generation"])
