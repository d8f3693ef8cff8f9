"""What is written down of limits that hold in place of others."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience.core.overrides import (
    LONGEST_OVERRIDE,
    Override,
    checked_override,
    decode,
    encode,
    listed,
    with_listed,
    without_listed,
)

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=500)
TIMES = st.floats(0, 2**40)
OVERRIDES = st.builds(
    Override,
    TEXTS,
    st.none() | st.integers(1, 2**53),
    TIMES,
    TEXTS,
    st.text(st.characters(exclude_categories=["Cs"]), max_size=200),
)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


def checked(limits: Any = "5/second", **said: Any) -> Override:
    return checked_override(limits, **{"expires_in": 60, "now": 100.0, **said})


@given(OVERRIDES)
def test_what_is_written_is_read_again_and_finds_room_in_a_record(override: Override) -> None:
    assert override == decode(encode(override))
    longest = Override("\U0001f600" * 500, 2**53, 2**40 + 0.5, "\U0001f600" * 500, "x" * 200)
    assert len(encode(longest._replace(limits="x" * 500))) <= 4_000


@given(
    st.binary(max_size=100)
    | st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists).map(str).map(str.encode)
)
def test_junk_is_refused_in_words(text: bytes) -> None:
    for read in (decode, lambda text: listed(text, 0.0)):
        with pytest.raises(ValueError, match="another version, or another program, has written it"):
            read(text)


@pytest.mark.parametrize(
    "changed",
    [
        {"version": 2}, {"limits": None}, {"burst": 0}, {"burst": True}, {"until": "soon"}, {"until": True}, {"reason": 1},
        {"until": float("nan")}, {"until": 10**400}, {"author": None},
    ],
)  # fmt: skip
def test_a_record_with_a_part_of_another_kind_is_refused(changed: dict[str, Any]) -> None:
    record = {**json.loads(encode(Override("5/second", None, 1.0))), **changed}
    with pytest.raises(ValueError, match="has written it"):
        decode(json.dumps(record).encode())


def test_nested_beyond_measure_is_junk_too() -> None:
    with pytest.raises(ValueError, match="has written it"):
        decode(b"[" * 4_000)


def test_half_a_character_is_written_as_a_question_mark() -> None:
    assert "a?" == decode(encode(Override("1/second", None, 1.0, "a\ud800"))).reason


def test_an_override_holds_for_as_long_as_was_said() -> None:
    assert Override("5/second", 9, 160.0, "load", "anna") == checked(burst=9, reason="load", author="anna")


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ({"limits": ""}, "write limits such as"),
        ({"limits": 5}, "write limits such as"),
        ({"limits": "x" * 501}, "write limits such as"),
        ({"burst": 0}, "a whole number from 1"),
        ({"burst": True}, "a whole number from 1"),
        ({"expires_in": 0}, "seconds above 0, up to 2,592,000"),
        ({"expires_in": None}, "seconds above 0"),
        ({"expires_in": True}, "seconds above 0"),
        ({"expires_in": float("nan")}, "seconds above 0"),
        ({"expires_in": LONGEST_OVERRIDE + 1}, "30 days"),
        ({"reason": "x" * 501}, "at most 500 characters"),
        ({"reason": 5}, "at most 500 characters"),
        ({"author": "x" * 201}, "at most 200 characters"),
    ],
)
def test_what_cannot_be_ordered_is_refused_with_advice(said: dict[str, Any], advice: str) -> None:
    with pytest.raises(ValueError, match=advice):
        checked(**said)


@given(st.dictionaries(NAMES, st.floats(0.001, 1e9), max_size=8), st.floats(0, 1e9))
def test_the_list_names_what_still_stands(names: dict[str, float], now: float) -> None:
    text = None
    for name, until in names.items():
        text = with_listed(text, name, until, 0.0)
    assert {name: until for name, until in names.items() if until > now} == listed(text, now)


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=6))
def test_every_change_is_another_text(names: list[str]) -> None:
    text: bytes | None = None
    for name in names:
        before, text = text, with_listed(text, name, 10.0, 0.0)
        assert before != text


def test_a_name_is_taken_off_and_one_that_is_not_listed_changes_nothing() -> None:
    both = with_listed(with_listed(None, "a", 10.0, 0.0), "b", 20.0, 0.0)
    assert {"b": 20.0} == listed(without_listed(both, "a", 0.0), 0.0)
    assert without_listed(both, "c", 0.0) is both
    assert without_listed(None, "c", 0.0) is None


def test_more_than_fit_are_refused_and_those_whose_time_is_over_make_room() -> None:
    text = None
    for number in range(100):
        text = with_listed(text, f"limiter-{number:04}", 10.0, 0.0)
    with pytest.raises(ValueError, match="100 limiters are overridden, and no more can be: restore one first"):
        with_listed(text, "x" * 2_500, 10.0, 0.0)
    assert ["late"] == list(listed(with_listed(text, "late", 20.0, 15.0), 15.0))
