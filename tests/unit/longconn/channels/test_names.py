"""What a channel may be called, and which channels a pattern means."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longconn.channels.errors import ChannelNameError
from longconn.channels.names import checked_label, checked_name, matcher


@pytest.mark.parametrize("name", ["a", "room:7", "user/ann@example.org", "größe", "部屋", "x" * 200, "é" * 100, "*"])
def test_a_name_is_printable_and_at_most_200_bytes(name: str) -> None:
    assert name == checked_name(name)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "is empty"),
        ("a b", "without spaces"),
        ("a\u3000b", "without spaces"),
        ("a\n", "printable"),
        ("\0ask", "printable"),
        ("a\u202eb", "printable"),
        ("\ud800", "printable"),
        ("x" * 201, "too long"),
        ("é" * 101, "too long"),
        (b"a", "is text, not bytes"),
        (None, "is text, not NoneType"),
    ],
    ids=repr,
)
def test_other_names_are_refused_with_the_reason(name: Any, reason: str) -> None:
    with pytest.raises(ChannelNameError, match=reason):
        checked_name(name)


@given(st.text())
def test_any_text_is_a_name_or_is_refused(text: str) -> None:
    try:
        name = checked_name(text)
    except ChannelNameError:
        return
    assert 1 <= len(name.encode()) <= 200


def test_an_event_may_have_spaces_and_may_be_missing() -> None:
    assert ("", "price update") == (checked_label("", "event"), checked_label("price update", "event"))


@pytest.mark.parametrize(
    ("text", "reason"), [("a\nb", "is made of printable"), ("x" * 201, "too long"), (7, "is text, not int")], ids=repr
)
def test_an_event_that_would_break_a_line_is_refused(text: Any, reason: str) -> None:
    with pytest.raises(ChannelNameError, match=f"event of a message.*{reason}|{reason}"):
        checked_label(text, "event")


@pytest.mark.parametrize(
    ("pattern", "fits", "does_not"),
    [
        ("room:7", "room:7", "room:77"),
        ("room:*", "room:", "rooms:7"),
        ("*", "anything", ""),
        ("a*b**c", "abc", "abcd"),
        ("user.*", "user.ann", "userxann"),
        ("[ab]?", "[ab]?", "a1"),
    ],
)
def test_only_a_star_stands_for_something_else(pattern: str, fits: str, does_not: str) -> None:
    assert matcher(pattern)(fits)
    assert pattern == "*" or not matcher(pattern)(does_not)


@pytest.mark.parametrize("pattern", ["", "a b", "a\n", None], ids=repr)
def test_a_pattern_that_no_name_could_fit_is_refused(pattern: Any) -> None:
    with pytest.raises(ChannelNameError, match="no pattern for channels"):
        matcher(pattern)
