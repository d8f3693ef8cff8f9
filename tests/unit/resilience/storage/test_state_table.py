"""Texts in fixed places: found, changed, watched, given away; and read whole whatever a writer does meanwhile."""

from __future__ import annotations

import struct
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resilience.storage.state_table import KEY_SIZE, Content, DamagedError, StateTable
from tests.support.examples import many

START = 64
LONGEST = 21


def table(count: int = 4, longest: int = LONGEST) -> StateTable:
    return StateTable(bytearray(START + StateTable.size(count, longest)), START, count, longest)


def key(name: str) -> bytes:
    return name.encode().ljust(KEY_SIZE, b".")


def put(into: StateTable, name: str, text: bytes | None, until: float = 10.0, now: float = 0.0) -> int:
    place, since = into.place_to_give()
    assert since <= now
    assert into.give(place, key(name), now)
    into.write(place, text, until)
    return place


def test_fresh_memory_is_an_empty_table() -> None:
    fresh = table()
    assert (0, -1, (0, -inf)) == (len(fresh), fresh.find(key("a")), fresh.place_to_give())
    assert Content(0, None, 0.0) == fresh.read(3)


@pytest.mark.parametrize("text", [b"", b"a", b"\0" * LONGEST, b"\xff" * LONGEST, None])
def test_a_text_is_read_as_it_was_written(text: bytes | None) -> None:
    written = table()
    for place in range(4):
        written.write(place, text, 12.5)
    assert [Content(1, text, 12.5)] * 4 == [written.read(place) for place in range(4)]


def test_every_change_makes_the_number_one_larger() -> None:
    changed = table()
    numbers = []
    for text in (b"a", b"a", None, None, b"b"):
        changed.write(2, text, 1.0)
        numbers.append((changed.numbers[2], changed.read(2).number))
    assert [(number, number) for number in range(1, 6)] == numbers
    assert [0, 0, 5, 0] == list(changed.numbers)


def test_a_place_is_found_by_the_whole_key_and_by_its_beginning() -> None:
    several = table()
    for name in ("aa", "ba", "ab"):
        put(several, name, b"")
    assert [0, 1, 2, -1] == [several.find(key(name)) for name in ("aa", "ba", "ab", "a")]
    assert [0, 2] == list(several.places_of(b"a"))


def test_a_key_is_not_found_across_two_others() -> None:
    several = table()
    for each in (b"x" * 8 + b"y" * 8, b"z" * 16):
        several.give(several.place_to_give()[0], each, 0.0)
    assert -1 == several.find(b"y" * 8 + b"z" * 8)
    assert [] == list(several.places_of(b"yz"))


def test_free_places_are_given_first_and_then_the_one_whose_time_was_over_first() -> None:
    full = table(count=3)
    for name, until in (("a", 5.0), ("b", 3.0), ("c", 4.0)):
        put(full, name, b"text", until)
    assert (1, 3.0) == full.place_to_give()


def test_what_is_to_be_kept_is_not_given_away() -> None:
    full = table(count=1)
    put(full, "a", b"text", until=5.0)
    assert not full.give(0, key("b"), 4.9)
    assert (0, Content(full.numbers[0], b"text", 5.0)) == (full.find(key("a")), full.read(0))
    assert full.give(0, key("b"), 5.0)
    assert (-1, 0, None) == (full.find(key("a")), full.find(key("b")), full.read(0).text)


def test_a_key_gets_no_second_place() -> None:
    several = table()
    put(several, "a", b"")
    assert not several.give(1, key("a"), 0.0)
    assert (0, 1) == (several.find(key("a")), len(several))


def test_a_place_that_is_given_away_changes_its_number() -> None:
    """Whoever watched it comes and looks."""
    full = table(count=1)
    put(full, "a", None)
    before = full.numbers[0]
    full.give(0, key("b"), 20.0)
    assert before + 1 == full.numbers[0]


def test_numbers_of_two_tables_do_not_begin_alike() -> None:
    """Keys are made with a secret of their file. Whoever moves from one to the other sees that in the number."""
    one, other = table(), table()
    put(one, "a", b"")
    put(other, "b", b"")
    assert one.numbers[0] != other.numbers[0]


class Interrupted(list[int]):
    """Numbers that somebody changes a place of, each time after one was read."""

    def __init__(self, interrupted: StateTable, writes: list[bytes]) -> None:
        super().__init__(interrupted.numbers)
        self._numbers = interrupted.numbers
        self._table = interrupted
        self._writes = writes

    def __getitem__(self, place: int) -> int:  # type: ignore[override]
        number = self._numbers[place]
        if self._writes:
            text = self._writes.pop(0)
            self._table.numbers = self._numbers
            self._table.write(place, text, 1.0)
            self._table.numbers = self  # type: ignore[assignment]
        return number


def test_who_reads_while_others_write_reads_one_of_the_texts_whole() -> None:
    """Also when so many are written between two looks that the copy was written over."""
    for writes in range(1, 8):
        read = table(longest=4_000)
        read.write(0, b"0" * 4_000, 1.0)
        texts = [b"%d" % number * (4_000 - number) for number in range(1, writes + 1)]
        read.numbers = Interrupted(read, texts.copy())  # type: ignore[assignment]
        assert Content(writes + 1, texts[-1], 1.0) == read.read(0)


@pytest.mark.parametrize("offset", range(0, 20, 3))
def test_a_damaged_text_is_not_taken_for_one(offset: int) -> None:
    buffer = bytearray(StateTable.size(1, LONGEST))
    damaged = StateTable(buffer, 0, 1, LONGEST)
    damaged.write(0, b"a text of somebody's", 1.0)
    copies = 8 + KEY_SIZE
    second = copies + (len(buffer) - copies) // 2
    buffer[second + offset] ^= 0x40
    with pytest.raises(DamagedError):
        damaged.read(0)
    damaged.write(0, b"another", 1.0)
    assert b"another" == damaged.read(0).text


def test_a_damaged_place_makes_room_first() -> None:
    buffer = bytearray(StateTable.size(2, LONGEST))
    damaged = StateTable(buffer, 0, 2, LONGEST)
    for name in "ab":
        put(damaged, name, b"text", until=9.0)
    struct.pack_into("=Q", buffer, 8, damaged.numbers[1] + 1)  # a copy that nobody has written
    assert (1, -inf) == damaged.place_to_give()
    assert damaged.give(1, key("c"), 1.0)


@given(
    st.lists(
        st.tuples(st.sampled_from("abcdefg"), st.one_of(st.none(), st.binary(max_size=LONGEST)), st.floats(0, 9)),
        max_size=40,
    )
)
@settings(max_examples=many(60))
def test_a_table_is_a_dictionary_that_forgets_what_was_to_be_kept_the_shortest(
    changes: list[tuple[str, bytes | None, float]],
) -> None:
    kept: dict[str, Content] = {}
    real = table(count=3)
    for now, (name, text, keep) in enumerate(changes):
        place = real.find(key(name))
        assert (place >= 0) == (name in kept)
        if place < 0:
            place, since = real.place_to_give()
            if len(kept) == 3:
                first = min(kept.values(), key=lambda content: content.until)
                assert first.until == since
                if since > now:
                    assert not real.give(place, key(name), now)
                    continue
                given_up = next(each for each in kept if key(each) == real.key(place))
                assert kept.pop(given_up).until == first.until
            assert real.give(place, key(name), now)
        number = real.numbers[place]
        real.write(place, text, now + keep)
        kept[name] = Content(number + 1, text, now + keep)
        assert kept == {each: real.read(real.find(key(each))) for each in kept}
        assert len(kept) == len(real)
