"""Greenlets inside one breaker run side by side, and a half-open circuit admits no more probes than permitted."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run_patched(program: str) -> list[str]:
    """The lines that `program` prints in a process that gevent patched before anything else was imported."""
    source = "from gevent import monkey; monkey.patch_all()\n" + textwrap.dedent(program)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", source], capture_output=True, text=True, check=True, timeout=60, cwd=ROOT
    )
    return done.stdout.splitlines()


def test_a_thousand_greenlets_wait_inside_one_breaker_at_once() -> None:
    printed = run_patched(
        """
        import gevent, time
        from resilience import CircuitBreaker

        breaker, inside, most = CircuitBreaker(name="demo"), 0, 0

        def wait():
            global inside, most
            inside += 1
            most = max(most, inside)
            time.sleep(0.1)
            inside -= 1

        gevent.joinall([gevent.spawn(breaker.call, wait) for _ in range(1_000)], raise_error=True)
        print(most, breaker.snapshot().succeeded)
        """
    )
    assert ["1000 1000"] == printed


@pytest.mark.alone
def test_of_a_crowd_only_the_permitted_probes_reach_the_backend_again() -> None:
    printed = run_patched(
        """
        import gevent, time
        from resilience import CircuitBreaker, CircuitOpen

        breaker = CircuitBreaker(name="demo", fail_max=1, reset_timeout=0.05, success_threshold=3, half_open_max_calls=3,
                                 throw_new_error_on_trip=False)
        inside = most = rejected = 0

        def fail():
            raise OSError

        def probe():
            global inside, most
            inside += 1
            most = max(most, inside)
            time.sleep(0.05)
            inside -= 1

        def caller():
            global rejected
            try:
                breaker.call(probe)
            except CircuitOpen:
                rejected += 1

        try:
            breaker.call(fail)
        except OSError:
            pass
        time.sleep(0.06)
        gevent.joinall([gevent.spawn(caller) for _ in range(500)], raise_error=True)
        print(most, rejected, breaker.current_state)
        """
    )
    assert ["3 497 closed"] == printed


def test_a_killed_or_timed_out_probe_gives_its_place_back() -> None:
    printed = run_patched(
        """
        import gevent, time
        from resilience import CircuitBreaker

        breaker = CircuitBreaker(name="demo", fail_max=1, reset_timeout=0.02, throw_new_error_on_trip=False)
        breaker.open()
        time.sleep(0.03)
        killed = gevent.spawn(breaker.call, time.sleep, 60)
        gevent.sleep(0)
        killed.kill()
        print(breaker.current_state, breaker.snapshot().ignored)
        with gevent.Timeout(0.01, False):
            breaker.call(time.sleep, 60)
        print(breaker.current_state, breaker.snapshot().failed)
        time.sleep(0.03)
        print(breaker.call(lambda: "healed"), breaker.current_state)
        """
    )
    assert ["half-open 1", "open 1", "healed closed"] == printed
