"""A circuit as the text that several processes keep it under."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from resilience.core.breaker import STATES, Circuit, Event, Permit, Vote
from resilience.core.record import LONGEST, Record, decode, encode

seconds = some.floats(0, 1e12, allow_nan=False)
numbers = some.integers(0, 10**9)


@some.composite
def circuits(draw: Any) -> Circuit:
    generation = draw(numbers)
    return Circuit(
        state=draw(some.sampled_from(STATES)),
        generation=generation,
        since=draw(seconds),
        until=draw(some.none() | seconds),
        openings=draw(numbers),
        successes=draw(numbers),
        handed_out=draw(numbers),
        probes=tuple(Permit(generation, *each) for each in draw(some.lists(some.tuples(numbers, seconds), max_size=5))),
        votes=tuple(Vote(*each) for each in draw(some.lists(some.tuples(some.text(max_size=20), seconds), max_size=5))),
        event=draw(some.none() | some.sampled_from(Event)),
        reason=draw(some.text(some.characters(exclude_categories=["Cs"]), max_size=100)),
        author=draw(some.text(some.characters(exclude_categories=["Cs"]), max_size=50)),
    )


@given(some.builds(Record, circuits(), numbers))
def test_every_circuit_comes_back_as_it_was_written(record: Record) -> None:
    assert record == decode(encode(record))


def test_no_record_is_a_new_circuit() -> None:
    assert Record(Circuit()) == decode(None)


def test_what_is_as_in_a_new_circuit_is_left_out() -> None:
    assert {"version": 1, "state": "closed", "since": 0.0} == json.loads(encode(Record(Circuit())))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"\xff\xfe", "no JSON"),
        (b"junk", "no JSON"),
        (b"[" * 4_000, "no JSON"),
        (b"[]", "not of version 1"),
        (b'{"version":2,"state":"closed","since":0}', "not of version 1"),
        (b'{"version":1,"since":0}', "KeyError"),
        (b'{"version":1,"state":"ajar","since":0}', "no state is named 'ajar'"),
        (b'{"version":1,"state":"closed","since":"0"}', "'0' are no seconds"),
        (b'{"version":1,"state":"closed","since":NaN}', "nan are no seconds"),
        (b'{"version":1,"state":"closed","since":true}', "True are no seconds"),
        (b'{"version":1,"state":"closed","since":0,"generation":-1}', "-1 is no whole number"),
        (b'{"version":1,"state":"closed","since":0,"generation":1.5}', "1.5 is no whole number"),
        (b'{"version":1,"state":"closed","since":0,"reason":3}', "3 is no text"),
        (b'{"version":1,"state":"closed","since":0,"event":"BOO"}', "KeyError"),
        (b'{"version":1,"state":"closed","since":0,"probes":[1]}', "TypeError"),
        (b'{"version":1,"state":"closed","since":0,"votes":7}', "TypeError"),
    ],
)
def test_what_is_not_ours_is_refused_and_shown(text: bytes, why: str) -> None:
    with pytest.raises(ValueError, match="not the record of a circuit") as caught:
        decode(text)
    assert why in str(caught.value)


def test_fifty_probes_and_the_longest_reason_fit_into_a_record() -> None:
    probes = tuple(Permit(10**9, number, 1_795_445_424.683309) for number in range(1_000_000, 1_000_050))
    text = encode(Record(Circuit("half-open", 10**9, 1.7e9, probes=probes, reason="é" * 500, author="a" * 100)))
    assert LONGEST >= len(text)


def test_a_record_that_no_storage_would_take_is_refused() -> None:
    probes = tuple(Permit(1, number, 1_795_445_424.683309) for number in range(500))
    with pytest.raises(ValueError, match="allow fewer probes at once"):
        encode(Record(Circuit("half-open", 1, probes=probes)))


def test_what_was_said_is_cut_where_there_is_no_room_for_it() -> None:
    probes = tuple(Permit(1, number, 1_795_445_424.683309) for number in range(1_000_000, 1_000_050))
    circuit = Circuit("half-open", 1, probes=probes, reason='"' * 500, author="\U0001f600" * 400)
    text = encode(Record(circuit))
    found = decode(text).circuit
    assert (probes, '"' * 250 + "…", True) == (found.probes, found.reason, LONGEST >= len(text))


def test_half_a_pair_of_surrogates_is_a_question_mark() -> None:
    assert "a?b" == decode(encode(Record(Circuit(reason="a\ud800b")))).circuit.reason
