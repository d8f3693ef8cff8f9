"""What is written down is read as it was, in parts of one page each."""

from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longconn.channels.ports import Message, Position
from longconn.channels.records import PART, About, State, data_length, moment, pack, part_keys, parts, place, unpack

labels = st.text(st.characters(codec="utf-8"), max_size=50)


@given(
    labels.filter(bool),
    st.integers(0, 2**63),
    st.text(st.characters(codec="utf-8")) | st.binary(),
    labels,
    labels,
    st.floats(0, 1e10),
)
def test_a_message_is_read_as_it_was_written(
    channel: str, number: int, data: str | bytes, event: str, key: str, at: float
) -> None:
    record = pack(channel.encode(), number, data, event=event, key=key, at=at)
    assert Message(channel, Position(7, number), data, event, key, at) == unpack(record, 7)
    assert (len(data.encode() if isinstance(data, str) else data), at) == (data_length(record), moment(record))


@pytest.mark.parametrize(("size", "count"), [(1, 1), (PART, 1), (PART + 1, 2), (3 * PART, 3)])
def test_each_part_fits_into_a_page(size: int, count: int) -> None:
    record = bytes(index % 251 for index in range(size))
    cut = list(parts(record))
    assert (record, count) == (b"".join(cut), len(cut))
    assert max(map(len, cut)) <= PART


def test_the_parts_of_a_record_come_before_the_next_record() -> None:
    keys = [*islice(part_keys(place(5)), 300), *islice(part_keys(place(6)), 300)]
    assert sorted(keys) == keys


@given(st.lists(st.integers(0, 2**64 - 1)))
def test_places_sort_as_numbers_do(numbers: list[int]) -> None:
    assert [place(number) for number in sorted(numbers)] == sorted(map(place, numbers))


def test_what_is_known_of_a_channel_is_read_as_it_was_written() -> None:
    state = State(11, 9, 3, 700, 1.5, 0.5, 300.0, 1_500, holds=True)
    assert (state, 7) == (State.unpack(state.pack()), state.count)
    about = About(1 << 60, 5, 6, 7)
    assert about == About.unpack(about.pack())
