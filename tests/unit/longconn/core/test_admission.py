"""The rate of accepting, and who is closed first when the table is full."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as some

from longconn.core.admission import AcceptRate, victims
from longconn.core.states import State


@pytest.mark.parametrize(
    ("rate", "burst", "rows"),
    [
        pytest.param(
            10.0,
            3,
            [(5.0, 0.0), (5.0, 0.0), (5.0, 0.0), (5.0, 0.1), (5.0625, 0.0375), (5.1, 0.0), (5.15, 0.05), (9.0, 0.0),
             (9.0, 0.0), (9.0, 0.0), (9.0, 0.1)],
            id="three at once, then one every tenth of a second",
        ),
        pytest.param(2.0, 0, [(0.0, 0.0), (0.0, 0.0), (0.0, 0.5)], id="without a burst, a second's worth at once"),
        pytest.param(0.5, 0, [(0.0, 0.0), (0.0, 2.0), (2.0, 0.0)], id="at least one at once"),
    ],
)  # fmt: skip
def test_rows_of_time_are_admitted_as_written(rate: float, burst: int, rows: list[tuple[float, float]]) -> None:
    under_test = AcceptRate(rate, burst)
    assert [pytest.approx(wait) for _, wait in rows] == [under_test.take(now) for now, _ in rows]


@pytest.mark.parametrize(
    ("rate", "burst", "message"),
    [(0.0, 1, "rate=0.0"), (-1.0, 1, "rate=-1.0"), (float("nan"), 1, "rate=nan"), (float("inf"), 1, "rate=inf"),
     (1.0, -1, "burst=-1")],
)  # fmt: skip
def test_a_value_out_of_range_is_refused_with_its_name(rate: float, burst: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AcceptRate(rate, burst)


rates = some.floats(0.01, 100_000)
bursts = some.integers(1, 1_000)


@given(rates, bursts, some.floats(0, 1e7), some.lists(some.floats(0, 2), max_size=60))
def test_whoever_waits_as_long_as_it_was_told_is_admitted(
    rate: float, burst: int, start: float, gaps: list[float]
) -> None:
    under_test = AcceptRate(rate, burst)
    now = start
    for gap in gaps:
        now += gap
        wait = under_test.take(now)
        if wait:
            now += wait
            assert 0.0 == under_test.take(now)


@given(rates, some.integers(1, 30), some.lists(some.floats(0, 0.5), min_size=1, max_size=80))
def test_no_stretch_of_time_admits_more_than_the_burst_and_the_rate(rate: float, burst: int, gaps: list[float]) -> None:
    under_test = AcceptRate(rate, burst)
    now = 0.0
    admitted = []
    for gap in gaps:
        now += gap
        if under_test.take(now) == 0.0:
            admitted.append(now)
    for first, begin in enumerate(admitted):
        for last, end in enumerate(admitted[first:], first):
            assert last - first + 1 <= burst + rate * (end - begin + 2e-6)


@dataclass(frozen=True, slots=True)
class Connection:
    state: int
    since: int
    slow: bool = False


def ordered(connection: Connection) -> tuple[int, int] | None:
    """The specification: group and age, or None for those who are left alone."""
    if connection.state in {State.ACCEPTED, State.HANDSHAKING, State.READING_HEAD}:
        return 0, connection.since
    if connection.state in {State.READING_BODY, State.RESPONDING} and connection.slow:
        return 1, connection.since
    if connection.state == State.PARKED:
        return 2, connection.since
    return None


def test_incomplete_heads_go_first_then_slow_transfers_then_the_longest_parked() -> None:
    parked_long = Connection(State.PARKED, 1)
    parked = Connection(State.PARKED, 50)
    slow_answer = Connection(State.RESPONDING, 20, slow=True)
    slow_body = Connection(State.READING_BODY, 10, slow=True)
    silent = Connection(State.ACCEPTED, 90)
    handshaking = Connection(State.HANDSHAKING, 80)
    part_of_a_head = Connection(State.READING_HEAD, 70)
    spared = [
        Connection(State.RESPONDING, 0),
        Connection(State.READING_BODY, 0),
        Connection(State.UPGRADED, 0, slow=True),
        Connection(State.DRAINING, 0),
        Connection(State.CLOSED, 0),
    ]
    table = [parked, slow_answer, silent, parked_long, *spared, handshaking, part_of_a_head, slow_body]
    expected = [part_of_a_head, handshaking, silent, slow_body, slow_answer, parked_long, parked]
    for wanted in range(len(table) + 1):
        assert expected[:wanted] == victims(iter(table), wanted, 100)


def test_when_every_connection_works_nobody_is_closed() -> None:
    assert [] == victims([Connection(State.RESPONDING, 0), Connection(State.UPGRADED, 0)], 5, 100)


def test_an_empty_table_and_no_wish_have_no_victims() -> None:
    assert [] == victims([], 3, 100)
    assert [] == victims([Connection(State.PARKED, 0)], 0, 100)


connections = some.lists(
    some.builds(Connection, some.sampled_from([int(state) for state in State]), some.integers(0, 100), some.booleans()),
    max_size=60,
)


@given(connections, some.integers(0, 70))
def test_the_victims_are_the_first_of_the_sorted_table(table: list[Connection], wanted: int) -> None:
    ranked = sorted((rank, place) for place, rank in enumerate(map(ordered, table)) if rank is not None)
    expected = [id(table[place]) for _, place in ranked[:wanted]]
    assert expected == [id(connection) for connection in victims(table, wanted, 100)]


def test_waits_that_begin_after_now_are_equal() -> None:
    rounded_up, now = Connection(State.PARKED, 101), Connection(State.PARKED, 100)
    assert [rounded_up] == victims([rounded_up, now], 1, 100)
