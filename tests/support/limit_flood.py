"""A process that asks for a token of as many random callers as it is told to, and watches what that costs.

As a program: arguments are a JSON object, the fields of `Task`; prints a JSON list of `Reading`s, one for every tenth of
the callers. As a module: `flooded` runs it.
"""

from __future__ import annotations

if __name__ == "__main__":
    from gevent import monkey

    monkey.patch_all()

# In a process of its own everything below is imported patched.
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.untraced import without_coverage

__all__ = ["Reading", "Task", "flooded"]


@dataclass(frozen=True)
class Task:
    """`keys` callers, each of whom takes one token of a limit of `burst` every `period` seconds, by `greenlets` at once."""

    uri: str
    keys: int
    period: float
    burst: int = 1
    greenlets: int = 1
    pause: float = 0.0
    """Seconds to let pass after each tenth."""
    on_store_failure: str = "local"
    server: str = ""
    """The server's own address, where its memory is to be watched."""
    timeout: float = 20.0


class Reading(NamedTuple):
    """How things stand after so many `asked`. Memory is in bytes."""

    asked: int
    allowed: int
    process: int
    """Memory of the process that asks."""
    server: int
    """Memory that the server says it uses."""
    stored: int
    """Keys on the server."""
    expiring: int
    """Those of them that have a time to live."""
    failures: int
    """How often the storage failed, so that a stand-in decided."""


def flooded(task: Task, timeout: float = 100.0) -> list[Reading]:
    """What a process of its own reads while it does this."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.limit_flood", json.dumps(asdict(task))],
        cwd=Path(__file__).parents[2],
        env=without_coverage(),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=timeout,
    )
    return [Reading(*row) for row in json.loads(done.stdout)]


def _resident() -> int:
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _main(task: Task) -> None:
    import secrets

    import gevent
    import redis

    from resilience.core.limiter import Limit
    from resilience.decorators.limiter import RateLimiter
    from resilience.storage.address import open_storage

    mode: Any = task.on_store_failure
    storage: Any = open_storage(task.uri, timeout=task.timeout, on_store_failure=mode)
    limiter = RateLimiter(Limit(task.burst, task.period), name=f"flood-{os.getpid()}", storage=storage)
    client = redis.Redis.from_url(task.server, decode_responses=True) if task.server else None
    allowed = 0

    def ask(count: int) -> None:
        nonlocal allowed
        for _ in range(count):
            decision = limiter.try_acquire(secrets.token_hex(8))
            allowed += decision.allowed  # added when it is there: others run while it is on its way

    def read(asked: int) -> Reading:
        memory = keys = expiring = 0
        if client is not None:
            memory = client.info("memory")["used_memory"]
            space = client.info("keyspace").get("db0", {})
            keys, expiring = space.get("keys", 0), space.get("expires", 0)
        snapshot = getattr(storage, "snapshot", None)
        failures = 0 if snapshot is None else snapshot().failures
        return Reading(asked, allowed, _resident(), memory, keys, expiring, failures)

    readings = []
    share = task.keys // 10 // task.greenlets
    for tenth in range(1, 11):
        gevent.sleep(task.pause if tenth > 1 else 0.0)
        gevent.joinall([gevent.spawn(ask, share) for _ in range(task.greenlets)], raise_error=True)
        readings.append(read(tenth * share * task.greenlets))
    print(json.dumps(readings), flush=True)
    storage.close()


if __name__ == "__main__":
    _main(Task(**json.loads(sys.argv[1])))
