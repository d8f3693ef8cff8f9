"""What a circuit breaker costs, beside pybreaker."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import pybreaker

from bench.measure import Row, print_table, time_calls
from resilience import CircuitBreaker

__all__ = ["run"]


def _nothing() -> None:
    pass


def _rejected(breaker: Any) -> None:
    with contextlib.suppress(pybreaker.CircuitBreakerError):
        breaker.call(_nothing)


def _one_call() -> None:
    ours, theirs = CircuitBreaker(name="bench"), pybreaker.CircuitBreaker(name="bench")
    contenders = {"seawall": lambda: ours.call(_nothing), "pybreaker": lambda: theirs.call(_nothing)}
    print_table("One call through a closed circuit", time_calls(contenders, calls=50_000))
    ours.open()
    theirs.open()
    contenders = {"seawall": lambda: _rejected(ours), "pybreaker": lambda: _rejected(theirs)}
    print_table("One rejection by an open circuit", time_calls(contenders, calls=50_000))


def _greenlets(count: int) -> None:
    """Run by a process that gevent has patched: see `bench.__main__`."""
    import gevent

    rows = []
    for name, breaker in (("seawall", CircuitBreaker(name="bench")), ("pybreaker", pybreaker.CircuitBreaker())):
        call: Any = breaker.call
        started = time.perf_counter()
        gevent.joinall([gevent.spawn(call, time.sleep, 0.1) for _ in range(count)])
        rows.append(Row(name, time.perf_counter() - started, "s"))
    print_table(f"{count:,} greenlets, each waiting 100 ms inside one breaker", rows)


def run(*, greenlets: bool) -> None:
    """Print the tables: those of one caller, or the one of many greenlets."""
    if greenlets:
        _greenlets(1_000)
    else:
        _one_call()
