"""The scoreboard: whose row is whose, and counters that never go backwards, with processes that are made up."""

from __future__ import annotations

import itertools
import os
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
    close_code_field,
    closed_field,
    evicted_field,
    messages_field,
    refused_field,
    slow_field,
)
from tests.support.examples import many

CLOCK = "longconn.scoreboard.time.monotonic_ns"


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
        (messages_field("websocket in"), "messages websocket in"),
        (slow_field("conflated"), "slow consumers conflated"),
        (close_code_field(1000), "closed with 1000"),
        (close_code_field(1014), "closed with 1014"),
        (close_code_field(3999), "closed with 3xxx"),
        (close_code_field(4000), "closed with 4xxx"),
        (close_code_field(1004), "closed with other"),
        (close_code_field(5000), "closed with other"),
        (close_code_field(3), "closed with other"),
        (TURNS, "turn up to 100000 ns"),
        (scoreboard.GC_PAUSES - 1, "turn sum"),
        (scoreboard.COLLECTIONS, "gc generation 0"),
    ],
)
def test_a_number_and_its_name_agree(field: int, name: str) -> None:
    assert name == FIELDS[field]


def test_the_states_are_those_of_the_state_machine() -> None:
    assert [state.name for state in State] == [name.upper().replace(" ", "_") for name in STATE_NAMES]


@pytest.mark.parametrize("field_of", [closed_field, refused_field, evicted_field, messages_field, slow_field])
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
