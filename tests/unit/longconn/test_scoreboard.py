"""The scoreboard: rows that live and die with real processes, and counters that never go backwards.

Processes are forked by scripts in a process of their own, never by pytest's. In a script, `start(age, work)` claims a row
and forks; the child begins it, does `work(row)`, says so, and stays until it is killed or the script ends.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from longconn import scoreboard
from longconn.core.histogram import Histogram
from longconn.core.states import State
from longconn.scoreboard import (
    ACCEPTED,
    BOOTING,
    CALLED_NS,
    CLOSE_REASONS,
    CONNECTIONS,
    COUNTERS,
    DRAINING,
    DURATION_BOUNDS,
    EVICT_REASONS,
    FIELDS,
    GREENLETS,
    HEARD_NS,
    MAXIMUM,
    PUBLISHED,
    REFUSE_REASONS,
    REQUESTS,
    SERVING,
    SLOT_STATE,
    STANDS_BY,
    STATE_NAMES,
    STATES,
    TURN_NS,
    TURNS,
    WIDTH,
    Row,
    Scoreboard,
    closed_field,
    evicted_field,
    refused_field,
)
from tests.support.examples import many

ROOT = Path(__file__).parents[3]
CLOCK = "longconn.scoreboard.time.monotonic_ns"

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


def rows_of(board: Scoreboard) -> list[int]:
    return [row.age for row in board.rows()]


# The fields


def test_every_field_has_one_name_and_every_name_one_field() -> None:
    assert len(FIELDS) == len(set(FIELDS))
    assert WIDTH >= len(FIELDS) > WIDTH - 8


def test_a_row_is_a_whole_number_of_cache_lines() -> None:
    assert 0 == WIDTH % 8


@pytest.mark.parametrize(
    ("field", "name"),
    [
        (CONNECTIONS, "connections"),
        (STANDS_BY, "stands by"),
        (CALLED_NS, "called ns"),
        (PUBLISHED, "state accepted"),
        (STATES + State.PARKED, "state parked"),
        (GREENLETS, "greenlets"),
        (COUNTERS, "accepted"),
        (closed_field("client"), "closed client"),
        (closed_field("upgraded"), "closed upgraded"),
        (refused_field("connections"), "refused connections"),
        (refused_field("invalid"), "refused invalid"),
        (evicted_field("parked"), "evicted parked"),
        (TURNS, "turn up to 100000 ns"),
        (scoreboard.GC_PAUSES - 1, "turn sum"),
        (scoreboard.COLLECTIONS, "gc generation 0"),
    ],
)
def test_a_number_and_its_name_agree(field: int, name: str) -> None:
    assert name == FIELDS[field]


def test_the_states_are_those_of_the_state_machine() -> None:
    assert [state.name for state in State] == [name.upper().replace(" ", "_") for name in STATE_NAMES]


@pytest.mark.parametrize("field_of", [closed_field, refused_field, evicted_field])
def test_an_unknown_reason_is_refused(field_of: Any) -> None:
    with pytest.raises(ValueError, match="not in tuple"):
        field_of("boredom")


def test_the_reasons_are_all_different() -> None:
    for reasons in (CLOSE_REASONS, REFUSE_REASONS, EVICT_REASONS):
        assert len(reasons) == len(set(reasons))


def test_a_board_without_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Scoreboard(rows=0)


# One process


def test_publishing_shows_the_tally_and_leaves_what_is_written_directly() -> None:
    board = Scoreboard()
    row = board.claim(1)
    row.begin(os.getpid())
    row.values[CONNECTIONS], row.values[MAXIMUM], row.values[TURN_NS] = 7, 100, 5
    before = list(row.values[:PUBLISHED])
    tally = row.tally()
    tally[GREENLETS], tally[REQUESTS], tally[CONNECTIONS] = 3, 11, 99
    row.publish(tally)

    assert before == list(row.values[:PUBLISHED])
    assert tally[PUBLISHED:] == list(row.values[PUBLISHED:])
    assert (7, 3, 11) == (board.total(CONNECTIONS), board.total(GREENLETS), board.total(REQUESTS))


def test_a_histogram_in_the_tally_is_a_histogram_in_the_totals() -> None:
    board = Scoreboard()
    row = board.claim(1)
    row.begin(os.getpid())
    tally = row.tally()
    Histogram(DURATION_BOUNDS, tally, TURNS).observe(3_000_000)
    row.publish(tally)
    seen = Histogram(DURATION_BOUNDS, board.counters(), TURNS)

    assert (1, 3_000_000, 5_000_000) == (seen.count, seen.sum, seen.quantile(1))


def test_a_row_is_booting_from_the_claim_on_and_has_been_heard_of_since_it_began() -> None:
    board = Scoreboard()
    row = board.claim(41)
    assert (BOOTING, 0, 41) == (row.values[SLOT_STATE], row.pid, row.age)

    row.begin(os.getpid())
    assert (BOOTING, os.getpid()) == (row.values[SLOT_STATE], row.pid)
    assert row.values[HEARD_NS] > 0
    assert [41] == rows_of(board)


def test_a_released_row_is_not_among_the_rows_and_stays_in_the_totals() -> None:
    board = Scoreboard()
    row = board.claim(1)
    row.begin(os.getpid())
    row.values[CONNECTIONS] = 5
    tally = row.tally()
    tally[REQUESTS] = 9
    row.publish(tally)
    row.release()

    assert ([], 0, 9) == (rows_of(board), board.total(CONNECTIONS), board.total(REQUESTS))


def test_a_full_board_gives_a_row_that_nobody_else_sees() -> None:
    board = Scoreboard(rows=1)
    board.claim(1).begin(os.getpid())
    row = board.claim(2)
    row.begin(os.getpid())
    row.values[SLOT_STATE] = SERVING
    row.publish([1] * WIDTH)

    assert (False, -1, [1], 0) == (row.shared, row.number, rows_of(board), board.total(REQUESTS))


def test_a_worker_and_those_who_see_it_agree_on_its_place() -> None:
    board = Scoreboard()
    claimed = [board.claim(age) for age in (7, 8, 9)]
    assert [0, 1, 2] == [row.number for row in claimed] == [row.number for row in board.rows()]
    assert [7, 8, 9] == [row.age for row in board.rows()]


def test_a_row_that_no_process_ever_began_is_given_away_after_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    board, now = Scoreboard(), 0
    monkeypatch.setattr(CLOCK, lambda: now)
    board.claim(1)
    now = 60_000_000_000
    board.claim(2)
    waiting = rows_of(board)
    now += 1
    board.claim(3)

    assert ([1, 2], [3, 2]) == (waiting, rows_of(board))


def test_a_worker_whose_row_was_given_away_goes_on_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    board, now = Scoreboard(), 0
    monkeypatch.setattr(CLOCK, lambda: now)
    late = board.claim(1)
    now = 61_000_000_000
    board.claim(2).begin(os.getpid())
    late.begin(os.getpid())
    late.values[CONNECTIONS] = 5
    late.publish([1] * WIDTH)
    late.release()

    assert (False, -1, [2], 0) == (late.shared, late.number, rows_of(board), board.total(CONNECTIONS))
    assert 0 == board.total(REQUESTS)


def test_another_process_with_the_number_of_a_dead_one_does_not_keep_its_row() -> None:
    board = Scoreboard()
    row = board.claim(1)
    row.begin(os.getpid())
    row.values[FIELDS.index("started")] -= 1  # this process did not start then
    board.claim(2)

    assert [2] == rows_of(board)


def test_a_process_of_another_user_keeps_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int, signal: int) -> None:
        raise PermissionError(pid, signal)

    board = Scoreboard()
    board.claim(1).begin(os.getpid())
    monkeypatch.setattr("longconn.scoreboard.os.kill", refuse)
    board.claim(2)

    assert [1, 2] == rows_of(board)


def test_where_proc_cannot_be_read_a_process_that_answers_to_its_number_keeps_its_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(path: Path) -> bytes:
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    board = Scoreboard()
    board.claim(1).begin(os.getpid())
    board.claim(2)

    assert [1, 2] == rows_of(board)


# Real processes


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


# Any sequence of workers


class Workers(RuleBasedStateMachine):
    """Workers come, count, leave and die in any order; the board must agree with a model that is a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.board = Scoreboard(rows=6)
        self.numbers = itertools.count(2**22 + 1)  # beyond any process of this machine
        self.processes: dict[int, Row] = {}
        self.present: set[int] = set()
        self.requests = 0
        self.last_seen = 0
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr("longconn.scoreboard.os.kill", self.look_for)
        self.patch.setattr(scoreboard, "_SILENCE_NS", 0)

    def look_for(self, pid: int, signal: int) -> None:
        if pid not in self.processes:
            raise ProcessLookupError(pid, signal)

    @precondition(lambda self: len(self.processes) < 6)
    @rule()
    def one_starts(self) -> None:
        pid = next(self.numbers)
        row = self.board.claim(pid)
        assert row.shared
        row.begin(pid)
        row.values[SLOT_STATE] = SERVING
        self.processes[pid] = row
        self.present.add(pid)

    @precondition(lambda self: self.processes)
    @rule(data=st.data(), requests=st.integers(0, 10**6))
    def one_counts(self, data: st.DataObject, requests: int) -> None:
        row = self.processes[data.draw(st.sampled_from(sorted(self.processes)))]
        tally = list(row.values)
        tally[REQUESTS] += requests
        tally[ACCEPTED] += 1
        row.publish(tally)
        self.requests += requests

    @precondition(lambda self: self.processes)
    @rule(data=st.data(), released=st.booleans())
    def one_leaves_but_runs_on(self, data: st.DataObject, released: bool) -> None:
        pid = data.draw(st.sampled_from(sorted(self.processes)))
        if released:
            self.processes[pid].release()
            self.present.discard(pid)
        elif pid in self.present:
            self.processes[pid].values[SLOT_STATE] = DRAINING

    @precondition(lambda self: self.processes)
    @rule(data=st.data())
    def one_dies(self, data: st.DataObject) -> None:
        pid = data.draw(st.sampled_from(sorted(self.processes)))
        del self.processes[pid]
        self.present.discard(pid)

    @invariant()
    def no_count_is_lost_or_counted_twice(self) -> None:
        assert self.requests == self.board.total(REQUESTS)

    @invariant()
    def no_two_processes_share_a_row(self) -> None:
        assert all(pid == row.pid for pid, row in self.processes.items())

    @invariant()
    def the_rows_are_those_of_the_workers_that_are_present(self) -> None:
        assert self.present == {row.pid for row in self.board.rows()}

    def teardown(self) -> None:
        self.patch.undo()


TestWorkers = Workers.TestCase
TestWorkers.settings = settings(max_examples=many(50), stateful_step_count=40, deadline=None)
