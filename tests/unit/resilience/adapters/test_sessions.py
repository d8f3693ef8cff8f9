"""Sessions of the admin page: a signed text, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience.adapters.sessions import LIFETIME, MOST_ENDED, Sessions

NOW = 1_800_000_000.0


def test_a_session_is_read_by_whoever_knows_the_token() -> None:
    text, session = Sessions("token").begin("anna", NOW)
    assert session == Sessions("token").read(text, NOW + 1)
    assert ("anna", NOW + LIFETIME) == (session.name, session.expires)


def test_another_token_makes_another_key() -> None:
    text, _ = Sessions("token").begin("anna", NOW)
    assert Sessions("token2").read(text, NOW) is None


def test_a_session_is_over_after_its_lifetime() -> None:
    sessions = Sessions("token")
    text, _ = sessions.begin("", NOW)
    assert [True, False] == [sessions.read(text, NOW + age) is not None for age in (LIFETIME - 1, LIFETIME)]


def test_an_ended_session_is_refused_and_others_are_not() -> None:
    sessions = Sessions("token")
    (first, ended), (second, _) = sessions.begin("", NOW), sessions.begin("", NOW)
    sessions.end(ended.id, NOW)
    assert [False, True] == [sessions.read(text, NOW) is not None for text in (first, second)]


def test_only_so_many_ended_sessions_are_remembered() -> None:
    sessions = Sessions("token")
    for number in range(MOST_ENDED + 5):
        sessions.end(str(number), NOW)
    assert MOST_ENDED == len(sessions._ended)
    sessions.end("later", NOW + LIFETIME + 1)
    assert ["later"] == list(sessions._ended), "those that are over by themselves need not be remembered"


def test_what_a_page_must_show_differs_by_session_and_is_no_part_of_the_cookie() -> None:
    sessions = Sessions("token")
    (text, one), (_, other) = sessions.begin("", NOW), sessions.begin("", NOW)
    assert one.csrf != other.csrf
    assert one.csrf not in text


@pytest.mark.parametrize("name", ["", "anna", "Änne 😀", "a.b|c", "x" * 64])
def test_every_name_comes_back_as_it_was(name: str) -> None:
    sessions = Sessions("token")
    text, _ = sessions.begin(name, NOW)
    read = sessions.read(text, NOW)
    assert read is not None
    assert name == read.name
    assert text.isascii()


@given(st.text(max_size=600))
def test_nothing_that_is_made_up_is_a_session(text: str) -> None:
    assert Sessions("token").read(text, NOW) is None


@given(st.integers(0, 80), st.characters(codec="ascii"))
def test_a_session_that_was_changed_is_none(place: int, character: str) -> None:
    sessions = Sessions("token")
    text, _ = sessions.begin("anna", NOW)
    changed = text[:place] + character + text[place + 1 :]
    assert (changed == text) == (sessions.read(changed, NOW) is not None)
