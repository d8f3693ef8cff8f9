"""The one module of the library that reads time."""

from __future__ import annotations

import time

__all__ = ["SYSTEM_CLOCK", "SystemClock", "epoch_seconds"]


class SystemClock:
    """The monotonic clock of the operating system."""

    seconds = staticmethod(time.monotonic)
    """Seconds since some fixed moment."""

    def microseconds(self) -> int:
        """Whole microseconds since some fixed moment."""
        return time.monotonic_ns() // 1_000

    def sleep(self, seconds: float) -> None:
        """Return when so much time has passed. Under greenlets others run meanwhile."""
        time.sleep(seconds)


SYSTEM_CLOCK = SystemClock()
"""Shared by every policy that is given no other clock."""


def epoch_seconds() -> float:
    """Seconds since 1970, to be shown to people. They jump when the machine's clock is set: nothing is decided by them."""
    return time.time()
