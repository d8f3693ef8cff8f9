"""Ways in which a Redis-compatible server fails, each for as long as a `with` lasts."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from tests.support.dropped_packets import dropped_packets
from tests.support.redis_server import RedisServer

__all__ = ["Failure", "killed", "stopped", "unreachable"]

Failure = Callable[[RedisServer], AbstractContextManager[None]]


@contextlib.contextmanager
def stopped(server: RedisServer) -> Iterator[None]:
    """The process stands still; the kernel goes on taking bytes for it."""
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


@contextlib.contextmanager
def killed(server: RedisServer) -> Iterator[None]:
    """Nobody listens, and what was stored is gone."""
    server.stop()
    try:
        yield
    finally:
        server.start()


def unreachable(server: RedisServer) -> AbstractContextManager[None]:
    """Packets are lost."""
    return dropped_packets(server.pid)
