"""Where a client stands, as the text that it sends back."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longconn.channels.ports import Position
from longconn.streaming.positions import EARLIEST, MOST_CHANNELS, read_positions, write_positions
from tests.support.examples import many

POSITIONS = st.builds(Position, st.integers(0, 2**63), st.integers(0, 10**17))
NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)


def test_in_one_channel_it_is_the_position() -> None:
    assert "18f-7" == write_positions(["news"], [Position(0x18F, 7)])


def test_in_several_channels_it_names_each() -> None:
    text = write_positions(["news", "sport"], [Position(0x18F, 7), Position(0x18F, 0)])
    assert "1dd39950.18f-7,1a85efd2.18f-0" == text


@given(st.dictionaries(NAMES, POSITIONS, min_size=1, max_size=5))
@settings(max_examples=many(100))
def test_what_is_written_is_what_is_read_in_any_order_of_the_channels(places: dict[str, Position]) -> None:
    text = write_positions(list(places), list(places.values()))
    assert places == read_positions(text, list(reversed(places)))


def test_a_channel_of_which_nothing_is_told_is_left_out() -> None:
    text = write_positions(["a", "b"], [Position(1, 1), Position(1, 2)])
    assert {"b": Position(1, 2)} == read_positions(text, ["b", "c"])


def test_a_word_stands_for_all_that_is_held() -> None:
    assert {"a": EARLIEST, "b": EARLIEST} == read_positions("earliest", ["a", "b"])


@given(st.text("0123456789abcdef.-,", max_size=30))
@settings(max_examples=many(100))
def test_any_text_is_positions_or_is_refused_in_words(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert read_positions(text, ["a", "b"]) is not None


@pytest.mark.parametrize("text", ["", "7", "x-7", "18f-7", "18f-", ".18f-7x", "a.18f-7,", "1." * 3000])
def test_what_is_no_position_in_several_channels_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a position"):
        read_positions(text, ["a", "b"])


def test_channels_whose_digits_are_the_same_are_told_apart() -> None:
    places = {"plumless": Position(1, 3), "buckeroo": Position(1, 90), "news": Position(1, 7)}
    text = write_positions(list(places), list(places.values()))
    assert places == read_positions(text, list(places))
    assert {"buckeroo": Position(1, 90)} == read_positions(text, ["buckeroo"])


def test_as_many_channels_as_a_stream_may_have_are_understood() -> None:
    places = {f"channel-{number}": Position(2**44, 10**11 + number) for number in range(MOST_CHANNELS)}
    assert places == read_positions(write_positions(list(places), list(places.values())), list(places))
