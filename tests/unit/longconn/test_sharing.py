"""Workers hand on to each other who is told of newcomers, by a scoreboard and bells that all of them share."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator, Sequence

import pytest

from longconn import scoreboard
from longconn.scoreboard import CALLED_NS, CONNECTIONS, HEARD_NS, SERVING, SLOT_STATE, STANDS_BY, TURN_NS, Scoreboard
from longconn.sharing import Bells, Sharing


@pytest.fixture
def bells() -> Iterator[Bells]:
    made = Bells(4)
    yield made
    made.close()


def is_rung(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


class Crew:
    """Workers that hold `connections`, of which the first `standing` stand by."""

    def __init__(self, bells: Bells, connections: Sequence[int], standing: int = 2) -> None:
        board = Scoreboard()
        self.rows = [board.claim(number) for number in range(len(connections))]
        for row, held in zip(self.rows, connections, strict=True):
            row.values[SLOT_STATE] = SERVING
            row.values[HEARD_NS] = time.monotonic_ns()
            row.values[CONNECTIONS] = held
            row.values[STANDS_BY] = row.number < standing
        self.parts = [Sharing(board, row, bells) for row in self.rows]

    def standing(self) -> list[int]:
        return [row.number for row in self.rows if row.values[STANDS_BY]]

    def called(self) -> list[int]:
        """Who has been called, and by the bell."""
        assert [bool(row.values[CALLED_NS]) for row in self.rows] == [is_rung(part.bell) for part in self.parts]
        return [row.number for row in self.rows if row.values[CALLED_NS]]


# Bells


def test_a_bell_that_is_rung_can_be_heard_until_it_is_silenced(bells: Bells) -> None:
    assert not is_rung(bells.descriptor(1))
    bells.ring(1)
    bells.ring(1)
    assert [False, True, False, False] == [is_rung(bells.descriptor(number)) for number in range(4)]
    bells.silence(1)
    bells.silence(1)
    assert not is_rung(bells.descriptor(1))


def test_more_workers_than_bells_share_them_and_a_worker_without_a_number_has_one(bells: Bells) -> None:
    assert bells.descriptor(1) == bells.descriptor(5)
    assert bells.descriptor(-1) == bells.descriptor(3)


def test_no_program_that_a_worker_starts_inherits_a_bell(bells: Bells) -> None:
    assert not any(os.get_inheritable(bells.descriptor(number)) for number in range(4))


def test_where_there_is_no_eventfd_a_bell_is_a_pipe_that_never_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "eventfd")
    bells = Bells(1)
    try:
        for _ in range(20_000):  # more than a pipe holds
            bells.ring(0)
        while is_rung(bells.descriptor(0)):
            bells.silence(0)
        bells.ring(0)
        assert is_rung(bells.descriptor(0))
    finally:
        bells.close()


# Who stands by


def test_the_two_emptiest_should_stand_by_and_the_earlier_row_of_equals(bells: Bells) -> None:
    crew = Crew(bells, [7, 5, 9, 5, 5])
    assert [False, True, False, True, False] == [part.should_stand_by() for part in crew.parts]


@pytest.mark.parametrize(
    ("field", "ago_ns"),
    [
        pytest.param(TURN_NS, 10_000_000, id="in the middle of a long turn"),
        pytest.param(CALLED_NS, 10_000_000, id="called and did not come"),
        pytest.param(HEARD_NS, 600_000_000, id="not heard of"),
    ],
)
def test_who_does_not_react_does_not_count(bells: Bells, field: int, ago_ns: int) -> None:
    crew = Crew(bells, [0, 1, 2])
    crew.rows[0].values[field] = time.monotonic_ns() - ago_ns
    assert crew.parts[2].should_stand_by()


@pytest.mark.parametrize("state", [scoreboard.BOOTING, scoreboard.DRAINING, scoreboard.LEFT])
def test_who_does_not_serve_does_not_count(bells: Bells, state: int) -> None:
    crew = Crew(bells, [0, 1, 2])
    crew.rows[0].values[SLOT_STATE] = state
    assert crew.parts[2].should_stand_by()
    assert 1 == crew.parts[1].quota(1, 64)


def test_who_stands_back_calls_the_next(bells: Bells) -> None:
    crew = Crew(bells, [9, 5, 4, 3])
    assert crew.parts[0].stand_back()
    assert [1] == crew.standing()
    assert [3] == crew.called()


def test_nobody_is_called_when_two_others_stand_by(bells: Bells) -> None:
    crew = Crew(bells, [5, 4, 9, 3], standing=3)
    assert crew.parts[2].stand_back()
    assert [0, 1] == crew.standing()
    assert [] == crew.called()


def test_who_is_the_emptiest_of_those_that_stand_by_waits_for_an_emptier_one(bells: Bells) -> None:
    crew = Crew(bells, [5, 9, 1, 1])
    assert not crew.parts[0].stand_back()
    assert [0, 1] == crew.standing()
    assert [2] == crew.called()
    crew.rows[2].values[STANDS_BY] = 1
    assert crew.parts[0].stand_back()


def test_who_leaves_waits_for_nobody(bells: Bells) -> None:
    crew = Crew(bells, [0, 9, 1, 1])
    assert crew.parts[0].stand_back(leaving=True)
    assert [1] == crew.standing()
    assert [2] == crew.called()


def test_somebody_stands_by_in_whatever_order_all_stand_back(bells: Bells) -> None:
    crew = Crew(bells, [3, 1, 2, 1], standing=4)
    for part in [crew.parts[1], *crew.parts, *crew.parts]:
        part.stand_back()
    assert [1] == crew.standing()


# Calls


@pytest.mark.parametrize(
    ("connections", "waiting", "beyond", "expected"),
    [
        pytest.param([5, 5, 5, 5], 1, 1, [], id="nobody else has a share"),
        pytest.param([5, 5, 5, 5], 3, 1, [1, 2], id="one for each that is left"),
        pytest.param([5, 5, 5, 5], 50, 13, [1, 2, 3], id="all in a storm"),
        pytest.param([5, 9, 9, 2], 2, 0, [3], id="the emptiest"),
        pytest.param([5, 9, 9, 2], 9, 2, [3], id="but not those that have more than all will have"),
    ],
)
def test_those_are_called_that_have_a_share(
    bells: Bells, connections: list[int], waiting: int, beyond: int, expected: list[int]
) -> None:
    crew = Crew(bells, connections, standing=1)
    crew.parts[0].call(waiting, beyond=beyond)
    assert expected == crew.called()


def test_nobody_is_called_twice_before_coming(bells: Bells) -> None:
    crew = Crew(bells, [5, 0], standing=1)
    crew.parts[0].call(1, beyond=0)
    since = crew.rows[1].values[CALLED_NS]
    crew.parts[1].hush()
    crew.parts[0].call(1, beyond=0)
    assert not is_rung(crew.parts[1].bell)
    assert since == crew.rows[1].values[CALLED_NS]
    crew.parts[1].came()
    crew.parts[0].call(1, beyond=0)
    assert [1] == crew.called()


def test_who_stands_by_and_is_awake_is_not_called(bells: Bells) -> None:
    crew = Crew(bells, [5, 0])
    crew.rows[1].values[TURN_NS] = time.monotonic_ns()
    crew.parts[0].call(1, beyond=0)
    assert [] == crew.called()


def test_the_dead_are_not_called(bells: Bells) -> None:
    crew = Crew(bells, [5, 0], standing=1)
    crew.rows[1].values[HEARD_NS] = time.monotonic_ns() - 600_000_000
    crew.parts[0].call(1, beyond=0)
    assert [] == crew.called()


def test_a_worker_that_was_called_and_does_not_come_is_not_waited_for_long(bells: Bells) -> None:
    crew = Crew(bells, [5, 0], standing=1)
    assert 0 == crew.parts[0].quota(1, 64)
    crew.parts[0].call(1, beyond=0)
    crew.rows[1].values[CALLED_NS] -= 100_000_000
    assert 1 <= crew.parts[0].quota(1, 64)


def test_a_worker_that_has_no_row_on_the_board_shares_nevertheless(bells: Bells) -> None:
    board = Scoreboard(rows=1)
    shown, hidden = board.claim(1), board.claim(2)
    shown.values[SLOT_STATE] = SERVING
    shown.values[HEARD_NS] = time.monotonic_ns()
    hidden.values[CONNECTIONS] = 9
    assert -1 == hidden.number
    assert 0 == Sharing(board, hidden, bells).quota(1, 64)
    assert Sharing(board, hidden, bells).should_stand_by()
