"""The scoreboard with real processes: rows that live and die with them, and counters that never go backwards.

Processes are forked by scripts in a process of their own, never by pytest's. In a script, `start(age, work)` claims a row
and forks; the child begins it, does `work(row)`, says so, and stays until it is killed or the script ends.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]

PRELUDE = """
import json, os, signal, sys, time
from longconn import scoreboard
from longconn.scoreboard import *

signal.alarm(60)
life, lifeline = os.pipe()  # children read it: it ends with the script, and so do they

def serve(row, **fields):
    tally = row.tally()
    for name, value in fields.items():
        tally[getattr(scoreboard, name)] = value
    row.values[SLOT_STATE] = SERVING
    row.values[CONNECTIONS] = fields.get("CONNECTIONS", 0)
    row.publish(tally)

def start(age, work=serve, **fields):
    row = board.claim(age)
    done, say = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        os.close(lifeline)
        row.begin(os.getpid())
        work(row, **fields)
        os.write(say, b"1")
        os.read(life, 1)
        os._exit(0)
    os.close(say)
    assert os.read(done, 1)
    os.close(done)
    return pid

def kill(pid, *, reap=True):
    os.kill(pid, signal.SIGKILL)
    if reap:
        os.waitpid(pid, 0)
    else:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

def ages():
    return [row.age for row in board.rows()]
"""


def run(script: str) -> Any:
    """What the script says it saw, as JSON."""
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", PRELUDE + textwrap.dedent(script)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (0, "") == (finished.returncode, finished.stderr)
    return json.loads(finished.stdout)


def test_workers_forked_at_different_times_see_each_other() -> None:
    script = """
    board = Scoreboard()
    start(1, REQUESTS=10, CONNECTIONS=1)
    start(2, REQUESTS=20, CONNECTIONS=2)
    read, write = os.pipe()
    def look(row):
        serve(row, REQUESTS=40, CONNECTIONS=4)
        os.write(write, json.dumps([ages(), board.total(REQUESTS), board.total(CONNECTIONS)]).encode())
    start(3, look)
    print(os.read(read, 1000).decode())
    """
    assert [[1, 2, 3], 70, 7] == run(script)


def test_a_killed_worker_leaves_its_counters_and_its_row_is_used_again() -> None:
    script = """
    board = Scoreboard()
    first, second = start(1, REQUESTS=10, CONNECTIONS=1), start(2, REQUESTS=20, CONNECTIONS=2)
    kill(first)
    seen = [board.total(REQUESTS)]
    start(3, REQUESTS=5, CONNECTIONS=4)
    print(json.dumps([*seen, board.total(REQUESTS), board.total(CONNECTIONS), ages()]))
    """
    assert [30, 35, 6, [3, 2]] == run(script)


def test_a_killed_worker_that_is_not_reaped_yet_counts_as_gone() -> None:
    script = """
    board = Scoreboard()
    kill(start(1, REQUESTS=10), reap=False)
    start(2)
    print(json.dumps([ages(), board.total(REQUESTS)]))
    """
    assert [[2], 10] == run(script)


def test_a_killed_worker_that_is_not_replaced_is_skipped_once_it_has_been_silent() -> None:
    script = """
    board = Scoreboard()
    first, second = start(1, REQUESTS=10, CONNECTIONS=1), start(2, REQUESTS=20, CONNECTIONS=2)
    kill(first)
    seen = [ages()]
    scoreboard._SILENCE_NS = 0
    print(json.dumps([*seen, ages(), board.total(CONNECTIONS), board.total(REQUESTS)]))
    """
    assert [[1, 2], [2], 2, 30] == run(script)


@pytest.mark.parametrize("leave", ["row.values[SLOT_STATE] = DRAINING", "row.release()"])
def test_the_row_of_a_process_that_still_runs_is_not_used_again(leave: str) -> None:
    script = f"""
    board = Scoreboard()
    def leave(row):
        serve(row, REQUESTS=10)
        {leave}
    leaving = start(1, leave)
    start(2, REQUESTS=1)
    used = board._head[scoreboard._HIGH]
    kill(leaving)
    start(3, REQUESTS=2)
    print(json.dumps([used, board._head[scoreboard._HIGH], ages(), board.total(REQUESTS)]))
    """
    assert [2, 2, [3, 2], 13] == run(script)


def test_many_workers_after_each_other_take_no_more_rows_than_there_are_at_once() -> None:
    script = """
    board = Scoreboard(rows=2)
    steady = start(1, REQUESTS=1)
    for age in range(2, 102):
        kill(start(age, REQUESTS=1))
    print(json.dumps([ages(), board._head[scoreboard._HIGH], board.total(REQUESTS)]))
    """
    assert [[1, 101], 2, 101] == run(script)


def test_no_reader_ever_sees_a_counter_go_backwards_while_workers_come_and_go() -> None:
    script = """
    board = Scoreboard()
    report, say = os.pipe()
    if os.fork() == 0:
        signal.alarm(60)
        last = looks = backwards = 0
        while last < 1000 * 300:
            seen = board.total(REQUESTS)
            backwards += seen < last
            last, looks = seen, looks + 1
        os.write(say, json.dumps([backwards, last, looks > 100]).encode())
        os._exit(0)
    for age in range(300):
        kill(start(age, REQUESTS=1000))
    print(os.read(report, 1000).decode())
    """
    assert [0, 300_000, True] == run(script)


def test_no_reader_ever_sees_half_a_number() -> None:
    script = """
    board = Scoreboard()
    row = board.claim(1)
    row.begin(os.getpid())
    low, high = 0x0102030405060708, 0x7F7E7D7C7B7A7978
    report, say = os.pipe()
    reader = os.fork()
    if reader == 0:
        signal.alarm(60)
        values = next(board.rows()).values
        seen, until = set(), time.monotonic() + 0.5
        while time.monotonic() < until or not {low, high} <= seen:
            seen.update(values[scoreboard.PUBLISHED:])
            seen.add(values[CONNECTIONS])
        os.write(say, json.dumps(sorted(seen - {0, low, high})).encode())
        os._exit(0)
    while os.waitpid(reader, os.WNOHANG) == (0, 0):
        for number in (low, high):
            row.publish([number] * WIDTH)
            row.values[CONNECTIONS] = number
    print(os.read(report, 1000).decode())
    """
    assert [] == run(script)


def test_neither_gevent_nor_prometheus_is_imported() -> None:
    script = """
    print(json.dumps([name for name in ("gevent", "prometheus_client", "gunicorn") if name in sys.modules]))
    """
    assert [] == run(script)
