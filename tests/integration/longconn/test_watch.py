"""A real loop of gevent's, in a process of its own, watched while it turns, sleeps, and is made to stand still."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]

PREPARED = """
from gevent import monkey; monkey.patch_all()
import json, os, time
import gevent
from gevent.monkey import get_original
from longconn.scoreboard import TURN_NS, WIDTH
from longconn.watch import LoopWatch

pause = get_original("time", "sleep")
reports, turns, values = [], [], [0] * WIDTH

def hear(text):
    reports.append((time.monotonic(), text))

def new_watch(threshold=0.1):
    return LoopWatch(gevent.get_hub().loop, values=values, threshold=threshold, on_turn=turns.append, report=hear)

def threads():
    return len(os.listdir("/proc/self/task"))

def stand_still(seconds):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass

def tell(**results):
    print(json.dumps(results))

watch = new_watch()
watch.start()
gevent.sleep(0.05)
"""


def run(program: str) -> Any:
    """What `program` tells, run after PREPARED."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PREPARED + textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=ROOT,
    )
    assert (0, "") == (done.returncode, done.stderr)
    return json.loads(done.stdout)


def test_who_blocks_the_loop_is_named_within_a_fifth_of_a_second_of_the_beginning() -> None:
    told = run(
        """
        began = []

        def busy_view():
            began.append(time.monotonic())
            stand_still(0.3)

        guilty = gevent.spawn(busy_view)
        guilty.name = "view-17"
        guilty.join()
        gevent.sleep(0.01)
        tell(reports=[(when - began[0], text) for when, text in reports], blocked=watch.blocked, longest=max(turns))
        """
    )
    (first, stack), (second, end) = told["reports"]
    assert 0.1 <= first < 0.2, first
    assert "in stand_still (<string>:" in stack
    assert '<Greenlet "view-17" at 0x' in stack
    assert ["in busy_view", "in stand_still"] == [line[line.index(" in ") + 1 :] for line in stack.splitlines()[1:]]
    assert 0.3 <= second < 1.0
    assert end.startswith("The event loop runs again, after 0.3")
    assert 1 == told["blocked"]
    assert 0.3 <= told["longest"] < 1.0


def test_a_loop_that_sleeps_or_turns_quickly_is_never_reported() -> None:
    told = run(
        """
        gevent.sleep(0.5)
        asleep = values[TURN_NS]
        for _ in range(50):
            gevent.sleep(0.005)
            stand_still(0.002)
        tell(reports=len(reports), blocked=watch.blocked, turns=len(turns), longest=max(turns), awake=bool(values[TURN_NS]))
        """
    )
    assert (0, 0) == (told["reports"], told["blocked"])
    assert 50 <= told["turns"]
    assert told["longest"] < 0.1
    assert told["awake"] is True


def test_a_loop_that_sleeps_has_no_turn() -> None:
    told = run(
        """
        seen = []
        get_original("_thread", "start_new_thread")(lambda: (pause(0.1), seen.append(values[TURN_NS])), ())
        gevent.sleep(0.3)
        tell(seen=seen)
        """
    )
    assert [0] == told["seen"]


def test_stop_ends_the_thread_and_leaves_the_row_alone() -> None:
    told = run(
        """
        during = threads()
        started = time.monotonic()
        watch.stop()
        watch.stop()
        took = time.monotonic() - started
        pause(0.05)
        counted, values[TURN_NS] = len(turns), 7
        gevent.sleep(0.05)
        tell(during=during, after=threads(), took=took, more_turns=len(turns) - counted, value=values[TURN_NS])
        """
    )
    assert 1 == told["during"] - told["after"]
    assert told["took"] < 0.5
    assert (0, 7) == (told["more_turns"], told["value"])


def test_a_watch_can_start_again() -> None:
    told = run(
        """
        watch.stop()
        watch.start()
        watch.start()
        gevent.sleep(0.01)
        gevent.spawn(stand_still, 0.2).join()
        gevent.sleep(0.01)
        tell(reports=len(reports), threads=threads())
        """
    )
    assert 2 == told["reports"]


def test_a_long_turn_is_reported_once_and_counted_once_however_long_it_lasts() -> None:
    told = run(
        """
        gevent.spawn(stand_still, 0.7).join()
        gevent.sleep(0.01)
        tell(reports=[text for _, text in reports], blocked=watch.blocked)
        """
    )
    assert ["has stood still", "runs again"] == [
        next(words for words in ("has stood still", "runs again") if words in text) for text in told["reports"]
    ]
    assert 1 == told["blocked"]


def test_the_greenlet_is_told_from_others_whatever_it_runs() -> None:
    """Among them one that waits without ever having run Python code, which shows no frame either."""
    told = run(
        """
        import functools, gc, greenlet
        from gevent.event import Event

        class Callback:
            def method(self):
                stand_still(0.15)

        waiting = [gevent.spawn(Event().wait), gevent.spawn(gevent.sleep, 60), gevent.spawn(stand_still, 0)]
        gevent.sleep(0.01)
        gc.collect()
        named = []
        for made in (Callback().method, functools.partial(stand_still, 0.15)):
            guilty = gevent.spawn(made)
            guilty.join()
            gevent.sleep(0.01)
            named.append(f"at {id(guilty):#x}" in reports[-2][1])
        plain = greenlet.greenlet(lambda: stand_still(0.15), gevent.get_hub())
        gevent.get_hub().loop.run_callback(plain.switch)
        gevent.sleep(0.01)
        named.append(f"at {id(plain):#x}" in reports[-2][1])
        timer = gevent.get_hub().loop.timer(0)
        timer.start(stand_still, 0.15)
        gevent.sleep(0.05)
        timer.close()
        named.append("in <Hub" in reports[-2][1])
        stand_still(0.15)
        gevent.sleep(0.01)
        named.append(f"at {id(greenlet.getcurrent()):#x}" in reports[-2][1])
        tell(named=named, reports=[text.splitlines()[0] for _, text in reports])
        """
    )
    assert [True] * 5 == told["named"], told["reports"]


def test_a_report_keeps_no_frame_alive() -> None:
    told = run(
        """
        import weakref

        class Thing:
            pass

        def hold():
            thing = Thing()
            gone.append(weakref.ref(thing))
            stand_still(0.15)

        gone = []
        gevent.spawn(hold).join()
        gevent.sleep(0.01)
        tell(reports=len(reports), gone=gone[0]() is None)
        """
    )
    assert {"reports": 2, "gone": True} == told


def test_a_report_that_fails_is_not_the_last_one() -> None:
    told = run(
        """
        watch.stop()
        texts = []

        def report(text):
            texts.append(text)
            if "runs again" not in text and len(texts) == 1:
                raise OSError

        second = LoopWatch(gevent.get_hub().loop, values=values, threshold=0.1, on_turn=turns.append, report=report)
        second.start()
        gevent.sleep(0.01)
        for _ in range(2):
            gevent.spawn(stand_still, 0.15).join()
            gevent.sleep(0.01)
        tell(stacks=sum("has stood still" in text for text in texts), blocked=second.blocked)
        """
    )
    assert {"stacks": 2, "blocked": 2} == told


def test_a_threshold_of_0_measures_without_a_thread() -> None:
    told = run(
        """
        watch.stop()
        pause(0.05)
        before = threads()
        measuring = new_watch(threshold=0)
        measuring.start()
        counted = len(turns)
        gevent.sleep(0.01)
        gevent.spawn(stand_still, 0.15).join()
        gevent.sleep(0.01)
        tell(threads=threads() - before, reports=len(reports), blocked=measuring.blocked, more=len(turns) > counted)
        """
    )
    assert {"threads": 0, "reports": 0, "blocked": 0, "more": True} == told


def test_a_forked_child_does_not_write_to_its_parent_s_row() -> None:
    told = run(
        """
        import mmap

        watch.stop()
        shared = mmap.mmap(-1, 8 * WIDTH)
        values = memoryview(shared).cast("q")
        parent = new_watch()
        parent.start()
        gevent.sleep(0.01)
        child = os.fork()
        if child == 0:
            values[TURN_NS] = 7
            gevent.sleep(0.05)
            parent.stop()
            os._exit(0 if values[TURN_NS] == 7 else 1)
        status = get_original("os", "waitpid")(child, 0)[1]  # meanwhile the parent's loop does not turn
        tell(status=status)
        """
    )
    assert 0 == told["status"]
