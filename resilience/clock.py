"""The one module of the library that reads time."""

from __future__ import annotations

import time

__all__ = ["SYSTEM_CLOCK", "SystemClock"]


class SystemClock:
    """The monotonic clock of the operating system."""

    def seconds(self) -> float:
        """Seconds since some fixed moment."""
        return time.monotonic()

    def microseconds(self) -> int:
        """Whole microseconds since some fixed moment."""
        return time.monotonic_ns() // 1_000

    def sleep(self, seconds: float) -> None:
        """Return when so much time has passed. Under greenlets others run meanwhile."""
        time.sleep(seconds)


SYSTEM_CLOCK = SystemClock()
"""Shared by every policy that is given no other clock."""
