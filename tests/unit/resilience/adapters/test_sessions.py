"""Sessions of the admin page: a signed text, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience import StorageUnavailable
from resilience.adapters.sessions import LIFETIME, MOST_ENDED, Sessions
from resilience.ports import Stored
from resilience.storage.state_memory import MemoryStateStorage

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


def test_an_ended_session_is_refused_by_processes_that_begin_later() -> None:
    shared = MemoryStateStorage()
    text, session = Sessions("token", shared).begin("anna", NOW)
    other, _ = Sessions("token", shared).begin("bert", NOW)
    assert Sessions("token", shared).keep_ended(session, NOW)
    later = Sessions("token", shared)
    assert [False, True] == [later.read(each, NOW) is not None for each in (text, other)]


def test_that_a_session_was_ended_is_kept_no_longer_than_it_would_have_lasted() -> None:
    kept = []

    class Watched(MemoryStateStorage):
        def update(self, name: str, change: Any, *, keep: float) -> Any:
            kept.append(keep)
            return super().update(name, change, keep=keep)

    sessions = Sessions("token", Watched())
    _, session = sessions.begin("anna", NOW)
    assert [True, True] == [sessions.keep_ended(session, NOW + age) for age in (LIFETIME - 60, LIFETIME)]
    assert [60.0] == kept


def test_while_the_state_is_out_of_reach_a_process_goes_by_what_it_was_told() -> None:
    class Gone(MemoryStateStorage):
        def read(self, name: str) -> Stored:
            raise StorageUnavailable("gone")

        def update(self, name: str, change: Any, *, keep: float) -> Any:
            raise StorageUnavailable("gone")

    sessions = Sessions("token", Gone())
    text, session = sessions.begin("anna", NOW)
    assert session == sessions.read(text, NOW)
    sessions.end(session.id, NOW)
    assert sessions.read(text, NOW) is None
    assert [False, False] == [each.keep_ended(session, NOW) for each in (sessions, Sessions("token"))]


def test_only_so_many_ended_sessions_are_remembered() -> None:
    sessions = Sessions("token")
    for number in range(MOST_ENDED + 5):
        sessions.end(str(number), NOW)
    assert MOST_ENDED == len(sessions._ended)
    sessions.end("later", NOW + LIFETIME + 1)
    assert ["later"] == list(sessions._ended), "those that are over by themselves need not be remembered"


def test_what_a_page_must_show_is_no_session() -> None:
    sessions = Sessions("token")
    _, session = sessions.begin("", NOW)
    assert sessions.read(f"csrf.{session.id}.{session.csrf}", NOW) is None
    assert sessions.read(f"{session.id}.{session.csrf}", NOW) is None


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
