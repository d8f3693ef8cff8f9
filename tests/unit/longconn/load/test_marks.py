"""What messages say of themselves, and what is wrong with the next one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longconn.load.marks import Fault, Mark, judge, numbered, read_mark

FORMS = [
    pytest.param("17 1700000000.25 xxx", "", Mark("", "", 17, 1700000000.25, "17"), id="text"),
    pytest.param("17 1700000000", "", Mark("", "", 17, 1700000000.0, "17"), id="text-alone"),
    pytest.param('{"n": 3, "at": 5.5}', "", Mark("", "", 3, 5.5, "3"), id="n"),
    pytest.param('{"id": "18f-3", "channel": "news"}', "", Mark("news", "18f", 3, 0.0, "18f-3"), id="position"),
    pytest.param('{"id": 4, "data": {"at": 2}}', "", Mark("", "", 4, 2.0, "4"), id="time-in-data"),
    pytest.param(
        '{"id": "a-1", "at": 9, "data": "7 1.5 x"}', "", Mark("", "a", 1, 9.0, "a-1"), id="time-of-the-message"
    ),
    pytest.param('{"id": "a-1", "data": "7 1.5 x"}', "", Mark("", "a", 1, 1.5, "a-1"), id="time-in-text-in-data"),
    pytest.param("hello", "18f2a3-9", Mark("", "18f2a3", 9, 0.0, "18f2a3-9"), id="event-id"),
    pytest.param("5 1.0 x", "b-9", Mark("", "b", 9, 1.0, "b-9"), id="event-id-before-text"),
    pytest.param("5 1.0 x", "news=b-9", Mark("", "", 5, 1.0, "5"), id="event-id-of-another-form"),
]


@pytest.mark.parametrize(("message", "identifier", "expected"), FORMS)
def test_a_message_says_its_number(message: str, identifier: str, expected: Mark) -> None:
    assert expected == read_mark(message, identifier)


@pytest.mark.parametrize(
    "message", ["", "hello", "17", "17 soon", "{", "{}", '{"n": true}', '{"id": "-3"}', '["n"]', "x17 1.0", "-1 1.0 "]
)
def test_a_message_without_a_number_says_none(message: str) -> None:
    assert read_mark(message) is None


@given(st.text())
def test_no_message_is_too_odd_to_be_looked_at(message: str) -> None:
    read_mark(message, message)
    read_mark("{" + message)


@given(st.integers(0, 10**18 - 1), st.floats(0, 10**11), st.integers(1, 200))
def test_a_numbered_text_is_read_back(number: int, at: float, size: int) -> None:
    text = numbered(number, at, size)
    mark = read_mark(text)
    assert mark is not None
    assert (number, True) == (mark.number, abs(mark.at - at) < 1e-5 * max(1.0, at))
    assert len(text) >= size


def at(number: int, epoch: str = "") -> Mark:
    """The mark of a message with this number."""
    return Mark("", epoch, number, 0.0, str(number))


VERDICTS = [
    pytest.param(None, at(7), Fault(), id="the-first"),
    pytest.param(at(7), at(8), Fault(), id="the-next"),
    pytest.param(at(7), at(9), Fault(lost=1), id="one-left-out"),
    pytest.param(at(7), at(107), Fault(lost=99), id="many-left-out"),
    pytest.param(at(7), at(7), Fault(doubled=1), id="again"),
    pytest.param(at(7), at(3), Fault(disordered=1), id="an-older-one"),
    pytest.param(at(7, "18f"), at(1, "190"), Fault(restarted=1), id="another-life"),
    pytest.param(at(7, "fff"), at(1, "1000"), Fault(restarted=1), id="another-life-with-one-more-digit"),
    pytest.param(at(1, "190"), at(8, "18f"), Fault(disordered=1), id="an-earlier-life"),
]


@pytest.mark.parametrize(("last", "mark", "expected"), VERDICTS)
def test_what_is_wrong_is_named(last: Mark | None, mark: Mark, expected: Fault) -> None:
    assert expected == judge(last, mark)


@given(st.lists(st.integers(1, 40), unique=True, min_size=1).map(sorted))
def test_what_never_comes_is_what_is_counted_as_lost(numbers: list[int]) -> None:
    lost, last = 0, None
    for number in numbers:
        lost += judge(last, at(number)).lost
        last = at(number)
    assert numbers[-1] - numbers[0] + 1 - len(numbers) == lost


def test_a_message_in_json_may_be_nested_without_end() -> None:
    assert read_mark('{"a":' * 100_000) is None
