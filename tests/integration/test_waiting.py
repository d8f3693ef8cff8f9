"""Real greenlets, threads and signals before one limit: turns come in time, are given back, and nothing gets stuck."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

from resilience import MemoryStorage, RateLimiter
from tests.support.untraced import without_coverage

ROOT = Path(__file__).parents[2]


def run(program: str, *, patched: bool) -> Any:
    """What `program` prints, as JSON; in a process that gevent patched before anything else was imported, or in a plain one."""
    patch = "from gevent import monkey; monkey.patch_all()\n" if patched else ""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", patch + textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        cwd=ROOT,
        env=without_coverage(),
    )
    return json.loads(done.stdout)


def test_greenlets_wait_for_their_turns_and_others_run_meanwhile() -> None:
    began, ticks = run(
        """
        import gevent, json, time
        from resilience import MemoryStorage, RateLimiter

        limiter = RateLimiter("100/second", burst=1, name="demo", key="all", storage=MemoryStorage(), wait=30)
        began, ticks, start = [], 0, time.monotonic()

        def call(place):
            limiter.acquire()
            began.append((place, time.monotonic() - start))

        def tick():
            global ticks
            while len(began) < 60:
                ticks += 1
                time.sleep(0.01)

        gevent.joinall([gevent.spawn(call, place) for place in range(60)] + [gevent.spawn(tick)], raise_error=True)
        print(json.dumps([began, ticks]))
        """,
        patched=True,
    )
    assert list(range(60)) == [place for place, _ in began], "in the order of asking"
    # The bucket began to fill after the start was noted: a turn is never early, however late it may be.
    assert all(moment >= place * 0.01 for place, moment in began)
    assert ticks > 10


def test_a_greenlet_that_is_timed_out_or_killed_gives_its_turn_back() -> None:
    seen = run(
        """
        import gevent, json
        from resilience import MemoryStorage, RateLimiter

        limiter = RateLimiter("1/minute", name="demo", key="all", storage=MemoryStorage(), wait=600)
        limiter.acquire()
        seen = []

        try:
            with gevent.Timeout(0.05):
                limiter.acquire()
        except gevent.Timeout:
            seen.append(limiter.peek().quotas[0].level >= 0)

        waiting = gevent.spawn(limiter.acquire)
        gevent.sleep(0.02)
        seen.append(limiter.peek().quotas[0].level < 0)
        waiting.kill()
        seen.append(limiter.peek().quotas[0].level >= 0)

        crowd = [gevent.spawn(limiter.acquire) for _ in range(5)]
        gevent.sleep(0.02)
        for caller in reversed(crowd):  # the last comes first: nobody counts on it
            caller.kill()
        seen.append(limiter.peek().quotas[0].level >= 0)
        seen.append(limiter.snapshot().allowed == 1)
        print(json.dumps(seen))
        """,
        patched=True,
    )
    assert [True] * 5 == seen


def test_threads_wait_for_their_turns() -> None:
    limiter = RateLimiter("200/second", burst=1, name="demo", key="all", storage=MemoryStorage(), wait=30)
    start = time.monotonic()
    began: list[float] = []

    def call() -> None:
        for _ in range(10):
            limiter.acquire()
            began.append(time.monotonic() - start)

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (80, True) == (len(began), all(moment >= place * 0.005 for place, moment in enumerate(sorted(began))))


def test_threads_are_given_just_the_burst() -> None:
    limiter = RateLimiter("500 per day", name="demo", key="all", storage=MemoryStorage())
    both = RateLimiter("500 per day; 600 per 2 days", name="both", key="all", storage=MemoryStorage())
    allowed: list[int] = []

    def call() -> None:
        allowed.append(sum(limiter.try_acquire().allowed + both.try_acquire().allowed * 1_000 for _ in range(500)))

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 500 + 500_000 == sum(allowed)


def test_a_signal_that_interrupts_a_wait_or_a_decision_leaves_nothing_behind() -> None:
    seen = run(
        """
        import json, signal, time
        from resilience import MemoryStorage, RateLimiter

        class Alarm(BaseException): ...

        interruptions = 0

        def ring(*_):
            global interruptions
            interruptions += 1
            raise Alarm

        signal.signal(signal.SIGALRM, ring)
        storage = MemoryStorage()
        patient = RateLimiter("1/minute", name="patient", key="all", storage=storage, wait=600)
        patient.acquire()
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        try:
            patient.acquire()
        except Alarm:
            pass
        given_back = patient.peek().quotas[0].level >= 0

        one = RateLimiter("1000000/second", name="one", key="all", storage=storage)
        two = RateLimiter("1000000/second; 1000000/hour", name="two", key="all", storage=storage)
        stuck, end = 0, time.monotonic() + 1.5
        while time.monotonic() < end:
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.00005, 0.00005)
                while True:
                    one.try_acquire()
                    two.try_acquire()
                    one.refund()
            except Alarm:
                pass
            try:
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Alarm:
                pass
            stuck += storage._turn != [None]
        print(json.dumps([given_back, stuck, interruptions > 100]))
        """,
        patched=False,
    )
    assert [True, 0, True] == seen
