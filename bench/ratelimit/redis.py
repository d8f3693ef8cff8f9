"""One decision on a Redis-compatible server: one caller, and many greenlets of one process."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import limits
import redis
from limits.storage import storage_from_string
from limits.strategies import FixedWindowRateLimiter, MovingWindowRateLimiter

from bench.ratelimit.plan import Plan
from bench.ratelimit.rounds import at_least, crowd, in_patched_process, microseconds, servers_of
from bench.worker.figures import Numbers
from bench.worker.report import Column, Row, Section
from resilience import RateLimiter, open_storage
from tests.support.redis_server import running_redis

__all__ = ["alone", "busy", "run"]

GENEROUS = "100000000/minute"  # nothing is denied: every decision does its whole work
OURS = "seawall, a bucket for each greenlet"
HOT = "seawall, one bucket for all"
LEASED = "seawall, one bucket for all, lease=10000"
LEASED_LITTLE = "seawall, one bucket for all, lease=1000"
FIXED = "limits, fixed window"
MOVING = "limits, moving window"
ONE_CALLER = (OURS, FIXED, MOVING)
MANY = (OURS, HOT, LEASED_LITTLE, LEASED, FIXED, MOVING)
LEASES = {LEASED: 10_000, LEASED_LITTLE: 1_000}  # what one process spends here in some 20 ms, and in some 3
COLUMNS = (Column("us", "us a decision", 2), Column("decisions_per_second", "decisions/s"))


def run(plan: Plan) -> list[Section]:
    """Two tables for each server program: one caller, in plain threads and under gevent, and many greenlets."""
    sections = []
    for name, program in servers_of(plan).items():
        with running_redis(program) as server:
            sections.append(_one_caller(plan, name, server.uri))
            sections.append(_many_greenlets(plan, name, server.uri))
    return sections


def _one_caller(plan: Plan, name: str, uri: str) -> Section:
    rows = [Row(contender) for contender in ONE_CALLER if plan.takes(contender)]
    for _ in range(plan.rounds):
        for row in rows:
            row.rounds.append(
                {
                    "us": alone(row.contender, uri, plan.seconds),
                    "patched": in_patched_process("bench.ratelimit.redis:alone", row.contender, uri, plan.seconds),
                }
            )
    columns = (Column("us", "us a decision", 1), Column("patched", "under gevent, us", 1))
    return Section(f"One decision on {name}, one caller", columns, rows, compared="us", against=_first(rows))


def _many_greenlets(plan: Plan, name: str, uri: str) -> Section:
    rows = [Row(contender) for contender in MANY if plan.takes(contender)]
    for _ in range(plan.rounds):
        for row in rows:
            row.rounds.append(
                in_patched_process("bench.ratelimit.redis:busy", row.contender, uri, plan.greenlets, plan.seconds)
            )
    title = f"One decision on {name}, {plan.greenlets} greenlets of one process"
    section = Section(title, COLUMNS, rows, compared="us", against=_first(rows))
    at_least(section, f"{name}, {plan.greenlets} greenlets", 10, OURS, MOVING)
    at_least(section, f"{name}, {plan.greenlets} greenlets, with leases", 50, LEASED, MOVING)
    return section


def _first(rows: list[Row]) -> str:
    return rows[0].contender if rows else ""


def alone(contender: str, uri: str, seconds: float) -> float:
    """Microseconds a decision of a contender that nobody else keeps busy."""
    return microseconds(_call(contender, uri, buckets=1), seconds)


def busy(contender: str, uri: str, greenlets: int, seconds: float) -> Numbers:
    """The figures of one contender. Only in a process that gevent patched."""
    call = _call(contender, uri, buckets=1 if contender in (HOT, *LEASES) else greenlets)
    crowd(call, seconds / 5, greenlets=greenlets)  # connections, scripts, what is kept ready
    decided, elapsed = crowd(call, seconds, greenlets=greenlets)
    return {"us": elapsed / decided * 1e6, "decisions_per_second": decided / elapsed}


def _call(contender: str, uri: str, *, buckets: int) -> Callable[[], object]:
    with redis.Redis.from_url(uri) as client:
        client.flushall()  # the strategies of `limits` use the same keys for other things
    keys = itertools.cycle([f"198.51.100.{number}" for number in range(buckets)])
    if contender in (OURS, HOT, *LEASES):
        # What is timed is the decision, not the patience with a server that shares its processor with the callers.
        storage = open_storage(uri, timeout=5.0)
        limiter = RateLimiter(GENEROUS, name="bench", storage=storage, lease=LEASES.get(contender))
        try_acquire = limiter.try_acquire
        return lambda: try_acquire(next(keys))
    strategy = FixedWindowRateLimiter if contender == FIXED else MovingWindowRateLimiter
    # Their default pool holds 100 connections and raises when all are in use: with 200 greenlets half the calls would fail.
    hit = strategy(storage_from_string(uri, max_connections=400)).hit
    item = limits.parse(GENEROUS)
    return lambda: hit(item, next(keys))
