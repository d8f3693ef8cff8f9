"""What an attacker costs: a caller far above the limit, whose every request is refused, on Redis."""

from __future__ import annotations

from collections.abc import Callable

import limits
import redis
from limits.storage import storage_from_string
from limits.strategies import FixedWindowRateLimiter, MovingWindowRateLimiter

from bench.ratelimit.plan import Plan
from bench.ratelimit.rounds import crowd, in_patched_process, servers_of
from bench.worker.report import Column, Row, Section
from resilience import RateLimiter, open_storage
from tests.support.redis_server import running_redis

__all__ = ["attack", "run"]

LIMIT = "60/hour"
OURS = "seawall"
FIXED = "limits, fixed window"
MOVING = "limits, moving window"
COLUMNS = (
    Column("us", "us a denial", 2),
    Column("decisions_per_second", "denials/s"),
    Column("calls", "commands to the server a denial", 3),
)


def run(plan: Plan) -> list[Section]:
    """One table for each server program: so many greenlets that are all refused."""
    sections = []
    for name, program in servers_of(plan).items():
        rows = [Row(contender) for contender in (OURS, FIXED, MOVING) if plan.takes(contender)]
        with running_redis(program) as server:
            for _ in range(plan.rounds):
                for row in rows:
                    row.rounds.append(
                        in_patched_process(
                            "bench.ratelimit.denials:attack", row.contender, server.uri, plan.greenlets, plan.seconds
                        )
                    )
        title = f"Denials on {name}, {plan.greenlets} greenlets of one caller above {LIMIT}"
        note = "seawall remembers a denial until it could change, at most 1 s: nobody is asked again before."
        against = rows[0].contender if rows else ""
        sections.append(Section(title, COLUMNS, rows, compared="us", against=against, notes=[note]))
    return sections


def attack(contender: str, uri: str, greenlets: int, seconds: float) -> dict[str, float]:
    """The figures of one contender. Only in a process that gevent patched."""
    call = _call(contender, uri)
    for _ in range(100):
        call()
    server = redis.Redis.from_url(uri)
    before = _commands(server)
    decided, elapsed = crowd(call, seconds, greenlets=greenlets)
    asked = _commands(server) - before
    return {"us": elapsed / decided * 1e6, "decisions_per_second": decided / elapsed, "calls": asked / decided}


def _call(contender: str, uri: str) -> Callable[[], object]:
    if contender == OURS:
        # What is timed is the denial, not the patience with a server that shares its processor with 200 greenlets.
        return RateLimiter(LIMIT, name="denials", key="attacker", storage=open_storage(uri, timeout=5.0)).try_acquire
    strategy = FixedWindowRateLimiter if contender == FIXED else MovingWindowRateLimiter
    # Their default pool holds 100 connections and raises when all are in use: with 200 greenlets half the calls would fail.
    limiter = strategy(storage_from_string(uri, max_connections=400))
    item = limits.parse(LIMIT)
    return lambda: limiter.hit(item, contender)


def _commands(server: redis.Redis) -> int:
    """Commands that the server has run, scripts counted once and not by what they do."""
    statistics = server.info("commandstats")
    return sum(int(statistics[name]["calls"]) for name in ("cmdstat_evalsha", "cmdstat_eval") if name in statistics)
