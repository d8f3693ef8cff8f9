"""What one rate-limit decision costs, beside the `limits` package."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable

import limits
from limits.storage import storage_from_string
from limits.strategies import FixedWindowRateLimiter, MovingWindowRateLimiter, SlidingWindowCounterRateLimiter

from bench.measure import Row, print_table, time_calls
from resilience import MemoryStorage, RateLimiter
from resilience.storage.redis import RedisStorage
from tests.support.redis_server import running_redis, server_programs

__all__ = ["run"]

GENEROUS = "100000000/minute"  # nothing is denied: every decision does its whole work


def _peers(uri: str) -> dict[str, Callable[[], object]]:
    # Their default pool holds 100 connections and raises when all are in use: with 200 greenlets half the calls would fail.
    options = {"max_connections": 400} if uri.startswith("redis") else {}
    storage = storage_from_string(uri, **options)
    item = limits.parse(GENEROUS)
    fixed, sliding = FixedWindowRateLimiter(storage), SlidingWindowCounterRateLimiter(storage)
    return {
        "limits, fixed window": lambda: fixed.hit(item, "key"),
        "limits, fixed window, with the numbers for header fields": lambda: (
            fixed.hit(item, "key"),
            fixed.get_window_stats(item, "key"),
        ),
        "limits, sliding window counter": lambda: sliding.hit(item, "key"),
    }


def _memory() -> None:
    ours = RateLimiter(GENEROUS, name="bench", key="key", storage=MemoryStorage())
    one = limits.parse("60/minute")
    moving = MovingWindowRateLimiter(storage_from_string("memory://"))
    contenders = {"seawall, token bucket, with the numbers for header fields": ours.try_acquire, **_peers("memory://")}
    # A moving window keeps every hit: at a rate that denies nothing it would measure the growth of a list.
    contenders["limits, moving window at 60 a minute (denies)"] = lambda: moving.hit(one, "key")
    print_table("One decision in memory", time_calls(contenders, calls=20_000))


def _one_caller(name: str, uri: str) -> None:
    ours = RateLimiter(GENEROUS, name="bench", key="key", storage=RedisStorage(uri, timeout=2.0))
    contenders = {"seawall, token bucket, with the numbers for header fields": ours.try_acquire, **_peers(uri)}
    print_table(f"One decision on {name}, one caller", time_calls(contenders, calls=1_000))


def _two_hundred_greenlets(name: str, uri: str) -> None:
    """Run by a process that gevent has patched: see `bench.__main__`."""
    import gevent

    ours = RateLimiter(GENEROUS, name="bench", key="key", storage=RedisStorage(uri, timeout=5.0))
    contenders = {"seawall, token bucket, with the numbers for header fields": ours.try_acquire, **_peers(uri)}
    rows = []
    for contender, call in contenders.items():
        started = time.perf_counter()
        gevent.joinall([gevent.spawn(_repeat, call) for _ in range(200)], raise_error=True)
        rows.append(Row(contender, (time.perf_counter() - started) / 10_000 * 1e6, "us"))
    print_table(f"One decision on {name}, 200 greenlets (10,000 decisions)", rows)


def _repeat(call: Callable[[], object]) -> None:
    for _ in range(50):
        call()


def run(*, greenlets: bool) -> None:
    """Print the tables: those of one caller, or those of many greenlets."""
    if not greenlets:
        _memory()
    for name, program in server_programs().items():
        with running_redis(program) as server:
            (_two_hundred_greenlets if greenlets else _one_caller)(name, server.uri)
    if shutil.which("redis-server") is None:
        print("\n(no redis-server on this machine: Valkey alone was measured)", file=sys.stderr)
