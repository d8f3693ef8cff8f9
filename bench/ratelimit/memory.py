"""One decision in the memory of one process, allowed and denied."""

from __future__ import annotations

from collections.abc import Callable

import limits
import throttled
from limits.storage import storage_from_string
from limits.strategies import FixedWindowRateLimiter, MovingWindowRateLimiter, SlidingWindowCounterRateLimiter

from bench.ratelimit.plan import Plan
from bench.ratelimit.rounds import at_least, at_most, table, time_calls
from bench.worker.report import Section
from resilience import MemoryStorage, RateLimiter

__all__ = ["run"]

GENEROUS = 100_000_000  # a minute: nothing is denied, every decision does its whole work
SMALL = 60
OURS = "seawall, token bucket"
THEIRS = "throttled-py, token bucket"


def run(plan: Plan) -> list[Section]:
    """The tables of one process."""
    allowed = table("One decision in memory: allowed", time_calls(plan, _allowed()))
    at_most(allowed, "in memory: one decision", 1, OURS)
    at_least(allowed, "in memory: beside throttled-py", 3.5, OURS, THEIRS)
    denied = table("One decision in memory: denied", time_calls(plan, _denied()))
    return [allowed, denied]


def _allowed() -> dict[str, Callable[[], object]]:
    item = limits.parse(f"{GENEROUS}/minute")
    storage = storage_from_string("memory://")
    fixed, sliding = FixedWindowRateLimiter(storage), SlidingWindowCounterRateLimiter(storage)
    return {
        OURS: RateLimiter(f"{GENEROUS}/minute", name="bench", key="key", storage=MemoryStorage()).try_acquire,
        THEIRS: _throttled(GENEROUS).limit,
        "limits, fixed window": lambda: fixed.hit(item, "key"),
        "limits, fixed window, with the numbers for header fields": lambda: (
            fixed.hit(item, "key"),
            fixed.get_window_stats(item, "key"),
        ),
        "limits, sliding window counter": lambda: sliding.hit(item, "key"),
    }


def _denied() -> dict[str, Callable[[], object]]:
    item = limits.parse(f"{SMALL}/hour")
    storage = storage_from_string("memory://")
    fixed, moving = FixedWindowRateLimiter(storage), MovingWindowRateLimiter(storage)
    calls: dict[str, Callable[[], object]] = {
        OURS: RateLimiter(f"{SMALL}/hour", name="bench", key="key", storage=MemoryStorage()).try_acquire,
        THEIRS: _throttled(SMALL).limit,
        "limits, fixed window": lambda: fixed.hit(item, "key"),
        # A moving window keeps every hit: at a rate that denies nothing it would measure the growth of a list.
        "limits, moving window": lambda: moving.hit(item, "key"),
    }
    for call in calls.values():
        for _ in range(SMALL):
            call()
    return calls


def _throttled(amount: int) -> throttled.Throttled:
    quota = throttled.rate_limiter.per_hour(amount, burst=amount)
    return throttled.Throttled(key="key", using="token_bucket", quota=quota, store=throttled.store.MemoryStore())
