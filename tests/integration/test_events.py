"""What policies tell, among greenlets and over the processes of one host."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flask import Flask
from prometheus_client.parser import text_string_to_metric_families

from resilience import CircuitBreaker, MemoryStorage, RateLimiter, Resilience
from resilience.adapters.metrics import render_metrics

ROOT = Path(__file__).parents[2]

CROWD = """
    from gevent import monkey; monkey.patch_all()
    import gevent, time
    from resilience import MemoryStorage, RateLimiter
    from resilience.adapters.signals import limit_exceeded

    heard = []

    @limit_exceeded.connect
    def hear(policy, event):
        time.sleep(0.001)  # others run meanwhile
        heard.append(event)

    limiter = RateLimiter("1/day", name="demo", storage=MemoryStorage())
    def call(number):
        for _ in range(10):
            limiter.try_acquire(f"caller {number % 10}")
            time.sleep(0)

    gevent.joinall([gevent.spawn(call, number) for number in range(1_000)], raise_error=True)
    time.sleep(1.1)
    top = limiter.snapshot().top  # tells what is left
    print(sum(event.count for event in heard), limiter.snapshot().denied, sum(each.times for each in top), len(heard) < 100)
"""

SIBLING = """
    import sys
    from flask import Flask
    from resilience import CircuitBreaker, MemoryStorage, RateLimiter, Resilience

    breaker = CircuitBreaker(name="payments")
    limiter = RateLimiter("5/minute", name="api", key="k", storage=MemoryStorage())
    app = Flask("demo")
    Resilience(app, storage=MemoryStorage(), circuits=[breaker], limiters=[limiter], peer_directory=sys.argv[1])
    breaker.force_open()
    limiter.acquire()
    print("ready", flush=True)
    sys.stdin.read()
"""


@contextmanager
def sibling(directory: Path) -> Iterator[int]:
    """Another worker of the same application. Its process id."""
    command = [sys.executable, "-c", textwrap.dedent(SIBLING), str(directory)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert "ready\n" == process.stdout.readline()
        yield process.pid
    finally:
        process.stdin.close()
        process.stdout.close()
        assert 0 == process.wait(20)


def test_every_refusal_of_a_thousand_greenlets_is_told_once() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(CROWD)],
        capture_output=True, text=True, check=True, timeout=60, cwd=ROOT,
    )  # fmt: skip
    assert "9990 9990 9990 True" == done.stdout.strip()


def test_metrics_are_of_all_workers_of_the_host(tmp_path: Path) -> None:
    directory = tmp_path / "peers"
    app = Flask("demo")
    storage = MemoryStorage()
    limiter = RateLimiter("5/minute", name="api", key="k", storage=storage)
    circuit = CircuitBreaker(name="payments")
    Resilience(app, storage=storage, circuits=[circuit], limiters=[limiter], peer_directory=directory)
    application = app.extensions["resilience"]
    try:
        with sibling(directory) as pid:
            text = render_metrics(application).decode()
    finally:
        application.close()
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert (1, 0) == tuple(
        samples["resilience4j_circuitbreaker_state", "payments", state] for state in ("forced_open", "closed")
    )
    assert (1, 1) == tuple(
        samples["resilience_circuit_workers", "payments", state] for state in ("forced_open", "closed")
    )
    assert (0, 1) == tuple(
        samples["resilience_limit_decisions_total", "api", "allowed", str(worker)] for worker in (os.getpid(), pid)
    )
    assert 9 == samples["resilience4j_ratelimiter_available_permissions", "api"]  # each has a bucket of its own
