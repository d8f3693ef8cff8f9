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
    return run_plain("from gevent import monkey; monkey.patch_all()\n" + textwrap.dedent(program))


def run_plain(program: str) -> list[str]:
    """The lines that `program` prints in a process of its own."""
    source = textwrap.dedent(program)
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
            time.sleep(1)  # the whole crowd has come by then, on a slow machine too
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


def test_no_call_of_a_thousand_greenlets_or_of_eight_threads_is_lost_from_a_window() -> None:
    program = """
        import gevent, random, sys, threading, time
        from resilience import CircuitBreaker

        breaker = CircuitBreaker(name="demo", failure_rate=1.0, window_calls=10_000, minimum_calls=10_000,
                                 throw_new_error_on_trip=False)

        def succeed():
            time.sleep(random.random() / 100)

        def fail():
            succeed()
            raise OSError

        def caller(number):
            for call in range(5):
                try:
                    breaker.call(fail if (number + call) % 5 == 0 else succeed)
                except OSError:
                    pass

        {run}
        snapshot = breaker.snapshot()
        print(snapshot.succeeded, snapshot.failed, snapshot.own_window["calls"], snapshot.own_window["failed"])
        """
    greenlets = "gevent.joinall([gevent.spawn(caller, number) for number in range(1_000)], raise_error=True)"
    assert ["4000 1000 5000 1000"] == run_patched(program.replace("{run}", greenlets))
    threads = textwrap.dedent("""\
        sys.setswitchinterval(1e-5)
        threads = [threading.Thread(target=lambda: [caller(number) for number in range(25)]) for _ in range(8)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]""").replace("\n", "\n        ")
    assert ["800 200 1000 200"] == run_plain(program.replace("{run}", threads))


def test_a_probe_gives_its_place_back_however_it_ends() -> None:
    printed = run_patched(
        """
        import contextlib, gevent, time
        from resilience import CircuitBreaker

        def numbers():
            yield 1
            time.sleep(60)

        def leave_generator(breaker):
            chunks = breaker.call(numbers)
            next(chunks)
            chunks.close()

        def forget_generator(breaker):
            next(breaker.call(numbers))

        def kill(breaker):
            greenlet = gevent.spawn(breaker.call, time.sleep, 60)
            gevent.sleep(0)
            greenlet.kill()

        def time_out(breaker):
            with gevent.Timeout(0.01, False), breaker.calling():
                time.sleep(60)

        def fail(breaker):
            with contextlib.suppress(OSError):
                breaker.call(open, "/does/not/exist")

        def ask_to_end(breaker):
            with contextlib.suppress(SystemExit):
                breaker.call(exit)

        for end in (leave_generator, forget_generator, kill, time_out, fail, ask_to_end):
            breaker = CircuitBreaker(name="demo", reset_timeout=0.01, throw_new_error_on_trip=False)
            breaker.open()
            time.sleep(0.02)
            end(breaker)
            state = breaker.snapshot()
            time.sleep(0.02)
            print(end.__name__, state.state, state.probes, breaker.call(lambda: "healed"))
        """
    )
    assert [
        "leave_generator half-open 0 healed",
        "forget_generator half-open 0 healed",
        "kill half-open 0 healed",
        "time_out open 0 healed",
        "fail open 0 healed",
        "ask_to_end half-open 0 healed",
    ] == printed
