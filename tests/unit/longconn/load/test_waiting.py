"""When a client comes back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longconn.load.waiting import MOST, delay


@pytest.mark.parametrize(("failures", "expected"), [(0, 2.0), (1, 4.0), (3, 16.0), (4, 30.0), (10_000, 30.0)])
def test_the_longest_wait_doubles_with_each_failure_up_to_half_a_minute(failures: int, expected: float) -> None:
    assert expected == delay(failures, 2.0, 1.0)


def test_chance_picks_any_moment_within_the_wait() -> None:
    assert [0.0, 0.5, 2.0] == [delay(1, 1.0, chance) for chance in (0.0, 0.25, 1.0)]


def test_what_the_server_asks_for_is_obeyed_once() -> None:
    assert 4.5 == delay(0, 1.0, 0.0, told=4.5)
    assert 0.0 == delay(1, 1.0, 0.0, told=4.5)


@given(st.integers(0), st.floats(0, 1e6), st.floats(0, 1), st.none() | st.floats(0, 1e9))
def test_no_wait_is_longer_than_half_a_minute(failures: int, base: float, chance: float, told: float | None) -> None:
    assert 0.0 <= delay(failures, base, chance, told=told) <= MOST
