"""A question reaches every process that follows, and whoever asks learns who did not answer."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from longconn.channels.hub import Channels
from longconn.channels.lmdb_broker import LmdbBroker


@pytest.fixture
def hubs(tmp_path: Path) -> Iterator[list[Channels]]:
    """Three of one host; the last has not started."""
    made = [Channels(LmdbBroker(tmp_path / "channels")) for _ in range(3)]
    for hub in made[:2]:
        hub.start()
    yield made
    for hub in made:
        hub.close()


def test_all_who_have_started_are_heard_also_by_one_that_has_not(hubs: list[Channels]) -> None:
    for number, hub in enumerate(hubs):
        hub.answers("sum", lambda question, number=number: {"sum": question["to"] + number})  # type: ignore[misc]
    expected = [{"sum": 10, "pid": os.getpid()}, {"sum": 11, "pid": os.getpid()}]
    for hub in hubs:
        answers = hub.ask("sum", {"to": 10}, timeout=5)
        assert (expected, ()) == (sorted(answers, key=lambda answer: answer["sum"]), answers.silent)


def test_one_that_has_nothing_to_say_is_not_silent(hubs: list[Channels]) -> None:
    hubs[0].answers("who", lambda question: {"name": "first"})
    hubs[1].answers("who", lambda question: None)
    answers = hubs[2].ask("who", {}, timeout=5)
    assert (["first"], ()) == ([answer["name"] for answer in answers], answers.silent)


def test_one_that_takes_too_long_or_fails_is_named(hubs: list[Channels], caplog: pytest.LogCaptureFixture) -> None:
    over = threading.Event()
    hubs[0].answers("slow", lambda question: {"late": over.wait(5)})
    hubs[1].answers("slow", lambda question: question["nothing"])
    answers = hubs[2].ask("slow", {}, timeout=0.05)
    over.set()
    assert ([], (os.getpid(), os.getpid())) == (answers, answers.silent)
    assert "a question about slow was not answered" in caplog.text


def test_nobody_is_asked_where_nobody_has_started(tmp_path: Path) -> None:
    hub = Channels(LmdbBroker(tmp_path / "channels"))
    assert [] == hub.ask("who", {}, timeout=5)
    hub.close()


def test_questions_and_answers_are_no_channels_of_users(hubs: list[Channels]) -> None:
    hubs[0].ask("who", {}, timeout=5)
    assert () == hubs[0].broker.channels()
