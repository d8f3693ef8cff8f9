"""What a circuit breaker costs, beside pybreaker and circuitbreaker in the same run.

A row is a contender; the first one of a table is ours, and the ratio of the others is to it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import circuitbreaker
import pybreaker
import redis

from bench.measure import Row, print_table, time_calls
from resilience import CircuitBreaker, open_state_storage
from tests.support.redis_server import RedisServer, running_redis, server_programs

__all__ = ["run"]

CALLS = 20_000
ROUNDS = 7
CALLERS = 1_000
WAIT = 0.1
PLAIN = "a plain call of the function, no breaker"
CONSECUTIVE = "seawall, failures in a row"
_REFUSALS = (pybreaker.CircuitBreakerError, circuitbreaker.CircuitBreakerError)


def _nothing() -> None:
    pass


def _raise() -> None:
    raise ConnectionError("gone")


def _rejected(breaker: Any) -> Callable[[], None]:
    def call() -> None:
        try:  # noqa: SIM105  # contextlib.suppress takes half as long as the rejection
            breaker.call(_nothing)
        except _REFUSALS:
            pass

    return call


def _closed(breaker: Any) -> Callable[[], object]:
    return lambda: breaker.call(_nothing)


def _one_call() -> None:
    plain: Callable[[], object] = lambda: _nothing()  # noqa: E731  # the same lambda that every contender pays for
    contenders: dict[str, Callable[[], object]] = {
        CONSECUTIVE: _closed(CircuitBreaker(name="bench")),
        "seawall, failure rate over 100 calls": _closed(CircuitBreaker(name="rate", failure_rate=0.5)),
        "seawall, failure rate over 10 seconds": _closed(
            CircuitBreaker(name="seconds", failure_rate=0.5, window_calls=None, window_seconds=10)
        ),
        "seawall, failure and slow call rate over 100 calls": _closed(
            CircuitBreaker(name="slow", failure_rate=0.5, slow_call_rate=0.5, slow_call_duration=1)
        ),
        "pybreaker": _closed(pybreaker.CircuitBreaker(name="bench")),
        "circuitbreaker": _closed(circuitbreaker.CircuitBreaker(name="bench")),
        PLAIN: plain,
    }
    print_table("One call through a closed circuit", time_calls(contenders, calls=50_000))


def _one_rejection() -> None:
    ours = CircuitBreaker(name="bench")
    theirs = pybreaker.CircuitBreaker(name="bench")
    others = circuitbreaker.CircuitBreaker(name="bench", failure_threshold=1, recovery_timeout=3_600)
    ours.open()
    theirs.open()
    with contextlib.suppress(ConnectionError):
        others.call(_raise)
    contenders = {
        "seawall": _rejected(ours),
        "pybreaker": _rejected(theirs),
        "circuitbreaker": _rejected(others),
    }
    print_table("One rejection by an open circuit, raised and caught", time_calls(contenders, calls=50_000))


@contextlib.contextmanager
def _server() -> Iterator[RedisServer]:
    with running_redis(next(iter(server_programs().values()))) as server:
        yield server


def _shared() -> None:
    """A closed circuit that workers and hosts share. What the server was asked meanwhile is printed below the table."""
    with _server() as server, contextlib.ExitStack() as stack:
        client = stack.enter_context(contextlib.closing(redis.Redis(port=server.port)))
        breakers: dict[str, Any] = {CONSECUTIVE: CircuitBreaker(name="alone")}
        for uri in ("shm://seawall-bench-breaker", server.uri):
            storage = stack.enter_context(contextlib.closing(open_state_storage(uri)))
            breakers[f"seawall, shared through {uri.partition(':')[0]}"] = CircuitBreaker(
                name="shared", state_storage=storage
            )
        stored = pybreaker.CircuitRedisStorage(pybreaker.STATE_CLOSED, client, namespace="bench")
        breakers["pybreaker, shared through redis"] = pybreaker.CircuitBreaker(name="shared", state_storage=stored)
        *ours, theirs = breakers
        for name in ours:
            breakers[name].call(_nothing)  # a circuit joins with its first call
        time.sleep(1)
        asked, started = _commands(client), time.monotonic()
        rows = time_calls({name: _closed(breakers[name]) for name in ours}, calls=CALLS)
        during, took = _commands(client) - asked - 1, time.monotonic() - started  # INFO itself is one
        asked = _commands(client)
        time.sleep(took)
        idle = _commands(client) - asked - 1
        rows += time_calls({theirs: _closed(breakers[theirs])}, calls=500)
        print_table("One call through a closed circuit that is shared", rows)
        print(
            f"\nCommands that Redis was sent while {ROUNDS * CALLS:,} of our calls went through it: {during}; "
            f"in as long a time without a call: {idle}."
        )


def _commands(client: Any) -> int:
    return int(client.info("stats")["total_commands_processed"])


def _crowd(title: str, run_all: Callable[[Callable[..., Any]], None]) -> None:
    rows = []
    contenders: tuple[tuple[str, Any], ...] = (
        ("seawall", CircuitBreaker(name="crowd")),
        ("circuitbreaker", circuitbreaker.CircuitBreaker(name="crowd")),
        ("pybreaker", pybreaker.CircuitBreaker()),
    )
    for name, breaker in contenders:
        started = time.perf_counter()
        run_all(breaker.call)
        rows.append(Row(name, time.perf_counter() - started, "s"))
    print_table(title, rows)


def _run_threads(call: Callable[..., Any]) -> None:
    threads = [threading.Thread(target=call, args=(time.sleep, WAIT)) for _ in range(CALLERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _run_greenlets(call: Callable[..., Any]) -> None:
    """In a process that gevent has patched: see `bench.__main__`."""
    import gevent

    gevent.joinall([gevent.spawn(call, time.sleep, WAIT) for _ in range(CALLERS)])


def run(*, greenlets: bool) -> None:
    """Print the tables: those of one caller and of many threads, or the one of many greenlets."""
    if greenlets:
        _crowd(f"{CALLERS:,} greenlets, each waiting 100 ms inside one breaker", _run_greenlets)
        return
    _one_call()
    _one_rejection()
    _shared()
    _crowd(f"{CALLERS:,} threads, each waiting 100 ms inside one breaker", _run_threads)
