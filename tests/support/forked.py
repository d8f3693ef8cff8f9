"""Scripts that fork processes over one file in shared memory. They run in a process of their own, never in pytest's.

A script begins with `PRELUDE`, to which a test file adds its imports, `storage(...)`, which opens a storage on the one file of
the test, and `stripes_of(storage)`, the locks of one. Then `start(work)` forks a child that does `work()` and leaves; what is
printed is what was seen.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

from tests.support.untraced import without_coverage

__all__ = ["PRELUDE", "ROOT", "killed_at_every_step", "run"]

ROOT = Path(__file__).parents[2]

PRELUDE = """
import errno, json, logging, os, random, signal, sys, time
from resilience.clock import SYSTEM_CLOCK
from resilience.errors import StorageBusy, StorageUnavailable
from resilience.storage import mutex
from resilience.storage.mutex import RecordLocks, RobustMutexes
from resilience.testing import FakeClock

signal.alarm(100)
PATH, KIND = sys.argv[1], {"mutexes": RobustMutexes, "records": RecordLocks}[sys.argv[2]]
life, lifeline = os.pipe()  # children that wait read it: it ends with the script, and so do they

def start(work):
    pid = os.fork()
    if pid == 0:
        signal.alarm(100)
        os.close(lifeline)
        try:
            work()
        finally:
            os._exit(1 if sys.exc_info()[0] else 0)
    return pid

def join(*pids):
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]

def take_and_leave_all_locks(storage):
    # What the tries answered. Each lock is free afterwards.
    stripes = stripes_of(storage)
    statuses = [stripes.try_lock(handle) for handle in stripes.handles]
    for handle, status in zip(stripes.handles, statuses, strict=True):
        if status:
            stripes.insist(handle, status)
        stripes.unlock(handle)
    return statuses

def all_locks_are_free(storage):
    return set(take_and_leave_all_locks(storage)) == {0}

def stopped_with(storage, lock):
    # The child that has the lock, and stands still.
    def hold():
        stripes = stripes_of(storage)
        assert 0 == stripes.try_lock(lock)
        os.kill(os.getpid(), signal.SIGSTOP)
        stripes.unlock(lock)
    holder = start(hold)
    while not mutex._is_stopped(holder):
        time.sleep(0.001)
    return holder

def noted_sleeps():
    # For how many seconds each wait on the system's clock was to be, from now on.
    slept, sleep = [], SYSTEM_CLOCK.sleep
    def noting(seconds):
        slept.append(seconds)
        sleep(seconds)
    SYSTEM_CLOCK.sleep = noting
    return slept

def noted_log():
    # What the library logs from now on.
    lines, handler = [], logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger("resilience").addHandler(handler)
    return lines
"""

_KILLED_AT_EVERY_STEP = """
def killed_at(step, work):
    left = step
    def trace(frame, event, argument):
        nonlocal left
        code = frame.f_code
        if code.co_filename not in FILES or (STEPS and code.co_name not in STEPS):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace
    def child():
        sys.settrace(trace)
        work()
    (code,) = join(start(child))
    assert code in (0, -signal.SIGKILL), code
    return code != 0

seen, deaths, steps, ended = set(), 0, 0, False
while not ended:
    prepare(STORAGE)
    begin()
    ended = not killed_at(steps, lambda: work(STORAGE))
    end()
    deaths += take_and_leave_all_locks(STORAGE).count(errno.EOWNERDEAD)
    seen.add(tuple(look(STORAGE)))
    after(STORAGE)
    steps += 1
print(json.dumps([sorted(seen), steps, deaths]))
"""

_NOTHING_ELSE = """
STEPS = set()
def begin():
    pass
def end():
    pass
def after(storage):
    pass
"""


def run(
    prelude: str, script: str, path: Path, kind: str = "mutexes", *, patched: bool = False, timeout: float = 100
) -> Any:
    """What the script says it saw, as JSON."""
    first = "from gevent import monkey; monkey.patch_all()\n" if patched else ""
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", first + prelude + textwrap.dedent(script), str(path), kind],
        cwd=ROOT,
        env=without_coverage(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert (0, "") == (finished.returncode, finished.stderr), finished.stderr
    return json.loads(finished.stdout)


def killed_at_every_step(prelude: str, script: str, path: Path, kind: str = "mutexes") -> list[list[Any]]:
    """Do `work(STORAGE)` in a child that is killed before its first bytecode, before its second, and so on, until it ends.

    Only the bytecodes of FILES count, and of these only those of the functions named in STEPS, if there are any. Each child
    is preceded by `prepare(STORAGE)` and `begin()`, and followed by `end()`, before all locks are taken and left, and
    `after(STORAGE)`. Returns what `look(STORAGE)` saw between them, each answer once. What a bytecode stores counts only
    after the next.
    """
    whole = prelude + _NOTHING_ELSE + textwrap.dedent(script)
    seen, steps, deaths = run(whole, _KILLED_AT_EVERY_STEP, path, kind)
    assert steps > 100
    assert kind == "records" or deaths > 50, "in so many cases it died with a lock"
    answers: list[list[Any]] = seen
    return answers
