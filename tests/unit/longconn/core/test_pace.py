"""A transfer that is too slow: rows of time and bytes, and properties of its deadline."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as some

from longconn.core.pace import Pace

seconds = some.floats(0, 1e4)


def test_without_a_rate_the_deadline_is_the_last_movement_and_the_gap() -> None:
    pace = Pace(100.0, gap=30.0, rate=0.0)
    assert 130.0 == pace.deadline()
    pace.moved(120.0, 1)
    assert 150.0 == pace.deadline()
    assert not pace.slow(1e9)


def test_nothing_moved_is_no_movement() -> None:
    pace = Pace(100.0, gap=30.0, rate=0.0)
    pace.moved(120.0, 0)
    assert 130.0 == pace.deadline()


def test_below_the_rate_the_deadline_comes_before_the_gap() -> None:
    pace = Pace(100.0, gap=30.0, rate=100.0)
    assert 105.0 == pace.deadline()
    pace.moved(104.0, 200)
    assert 107.0 == pace.deadline()
    pace.moved(106.0, 10_000)
    assert 136.0 == pace.deadline()


def test_without_a_gap_only_the_rate_counts() -> None:
    pace = Pace(0.0, gap=inf, rate=10.0, grace=1.0)
    pace.moved(0.5, 100)
    assert 11.0 == pace.deadline()


@pytest.mark.parametrize(("now", "expected"), [(100.0, False), (102.0, False), (102.01, True), (109.0, True)])
def test_a_transfer_is_slow_while_it_is_below_the_rate_also_within_the_grace(now: float, expected: bool) -> None:
    pace = Pace(100.0, gap=30.0, rate=100.0, grace=5.0)
    pace.moved(100.0, 200)
    assert expected == pace.slow(now)


movements = some.lists(some.tuples(some.floats(0, 50), some.integers(0, 100_000)), max_size=20)


@given(seconds, some.floats(0.1, 100), some.floats(0.1, 1e6), some.floats(0, 20), movements)
def test_the_deadline_is_the_earlier_of_gap_and_rate_and_never_moves_back(
    started: float, gap: float, rate: float, grace: float, moved: list[tuple[float, int]]
) -> None:
    pace = Pace(started, gap=gap, rate=rate, grace=grace)
    now = last = started
    total = 0
    deadline = pace.deadline()
    for wait, count in moved:
        now += wait
        pace.moved(now, count)
        total += count
        last = now if count else last
        assert pytest.approx(min(last + gap, started + grace + total / rate)) == pace.deadline()
        assert deadline <= pace.deadline()
        deadline = pace.deadline()


@given(some.floats(0.5, 100), some.floats(1, 1e4), some.floats(0, 20), some.integers(1, 10**6))
def test_a_client_that_trickles_as_slowly_as_it_may_is_cut_off_in_a_time_bound_by_the_size(
    gap: float, rate: float, grace: float, size: int
) -> None:
    pace = Pace(0.0, gap=gap, rate=rate, grace=grace)
    left = size
    while left:
        piece = min(left, max(1, size // 50))
        pace.moved(pace.deadline(), piece)
        left -= piece
    assert pace.deadline() <= (grace + size / rate) * (1 + 1e-9)
