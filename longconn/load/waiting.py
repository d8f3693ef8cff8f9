"""How long a client that was closed waits before it comes back."""

from __future__ import annotations

__all__ = ["MOST", "delay"]

MOST = 30.0
"""Seconds that it waits at most, whatever it is told."""


def delay(failures: int, base: float, chance: float, *, told: float | None = None) -> float:
    """Seconds to wait after `failures` tries in a row that failed (0: it was open until now).

    `base` seconds is the most after the first end, doubled with each failure up to 30 s; `chance` (0 to 1, drawn anew each
    time) picks a moment within that. `told` is what a server asked for (`retry:` of an event stream), in seconds: it is obeyed
    the first time. Source: "full jitter" in Marc Brooker, Exponential Backoff And Jitter (AWS Architecture Blog, 2015).
    """
    if told is not None and failures == 0:
        return min(told, MOST)
    return chance * min(MOST, base * 2.0 ** min(failures, 16))
