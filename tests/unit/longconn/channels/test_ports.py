"""Positions are text that clients send back, and compare as the messages came."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longconn.channels.ports import Position

positions = st.builds(Position, st.integers(0, 2**64 - 1), st.integers(0, 10**18 - 1))


@given(positions)
def test_a_position_is_read_as_it_was_written(position: Position) -> None:
    assert position == Position.parse(str(position))


def test_a_later_life_comes_after_every_number_of_an_earlier_one() -> None:
    assert Position(1, 9) < Position(1, 10) < Position(2, 0)


@given(st.text(max_size=30))
def test_any_other_text_is_refused(text: str) -> None:
    try:
        position = Position.parse(text)
    except ValueError:
        return
    assert position == Position.parse(str(position))


@pytest.mark.parametrize(
    "text", ["", "-", "1-", "-1", "1-+1", "1- 1", "A-1", "0x1-1", "1-١", "1" * 17 + "-1", "1-" + "1" * 19]
)
def test_what_only_looks_like_a_position_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a position in a channel"):
        Position.parse(text)
