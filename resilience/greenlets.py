"""The one module of the library that knows that greenlets exist. Without greenlets installed it knows of none."""

from __future__ import annotations

try:
    from greenlet import GreenletExit
except ImportError:  # plain threads
    INTERRUPTIONS: tuple[type[BaseException], ...] = (GeneratorExit, KeyboardInterrupt, SystemExit)
else:
    INTERRUPTIONS = (GeneratorExit, KeyboardInterrupt, SystemExit, GreenletExit)

__all__ = ["INTERRUPTIONS"]

# gevent.Timeout is a BaseException too and is deliberately absent: a call that took too long has failed.
