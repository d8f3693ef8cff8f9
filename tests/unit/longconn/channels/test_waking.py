"""Whoever sleeps is woken once for a burst of publications; whoever was killed is in nobody's way."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from longconn.channels.waking import Follower, Wakers
from tests.support.broker_conformance import PATIENCE, wait_until


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "channels"
    made.mkdir(mode=0o700)
    return made


@pytest.fixture
def wakers(folder: Path) -> Iterator[Wakers]:
    made = Wakers(folder)
    yield made
    made.close()


def test_one_that_is_awake_is_not_woken_again(folder: Path, wakers: Wakers) -> None:
    begun, go_on = threading.Event(), threading.Event()
    calls = []

    def heard() -> None:
        calls.append(True)
        begun.set()
        go_on.wait(PATIENCE)

    follower = Follower(folder, heard)
    follower.start()
    assert begun.wait(PATIENCE)
    for _ in range(100):
        wakers.wake()
    go_on.set()
    assert wait_until(lambda: len(calls) == 2)
    follower.stop()
    assert wait_until(lambda: not wakers.followers())
    assert 2 == len(calls)


def test_each_who_follows_has_a_number_and_gives_it_back(folder: Path, wakers: Wakers) -> None:
    followers = [Follower(folder, lambda: None) for _ in range(3)]
    for follower in followers:
        follower.start()
    assert ["0", "1", "2"] == [follower.name for follower in followers] == list(wakers.followers())
    followers[1].stop()
    followers[1].stop()
    assert wait_until(lambda: ["0", "2"] == list(wakers.followers()))
    again = Follower(folder, lambda: None)
    again.start()
    assert "1" == again.name
    for follower in (followers[0], followers[2], again):
        follower.stop()
    assert wait_until(lambda: not wakers.followers() and not list(folder.glob("s*")))


def test_a_folder_may_have_a_longer_path_than_a_socket(folder: Path) -> None:
    deep = folder / ("x" * 100)
    deep.mkdir(mode=0o700)
    told = threading.Event()
    follower = Follower(deep, told.set)
    follower.start()
    wakers = Wakers(deep)
    assert ["0"] == list(wakers.followers())
    assert told.wait(PATIENCE)
    told.clear()
    wakers.wake()
    assert told.wait(PATIENCE)
    follower.stop()
    assert wait_until(lambda: not wakers.followers())
    wakers.close()


def test_the_number_of_one_that_was_killed_is_taken_over(folder: Path, wakers: Wakers) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as left_behind:
        left_behind.bind(str(folder / "s0.1"))
    wakers.wake()
    follower = Follower(folder, lambda: None)
    assert "0" == follower.name
    follower.start()
    follower.stop()


def test_an_error_of_whoever_is_called_is_logged_and_it_is_called_again(
    folder: Path, wakers: Wakers, caplog: pytest.LogCaptureFixture
) -> None:
    calls = []

    def heard() -> None:
        calls.append(True)
        if len(calls) == 1:
            raise RuntimeError("not today")

    follower = Follower(folder, heard)
    follower.start()
    assert wait_until(lambda: len(calls) == 1 and "could not be handed on" in caplog.text)
    wakers.wake()
    assert wait_until(lambda: len(calls) >= 2)
    follower.stop()
    assert wait_until(lambda: not wakers.followers())


def test_one_that_was_told_to_end_says_so(folder: Path, wakers: Wakers) -> None:
    def leave() -> None:
        raise SystemExit

    follower = Follower(folder, leave)
    assert not follower.ended
    follower.start()
    assert wait_until(lambda: follower.ended and not wakers.followers())


def test_a_folder_that_was_removed_is_made_again_by_who_follows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longconn.channels.waking.LOOK", 0.01)
    told = threading.Event()
    follower = Follower(folder, told.set)
    follower.start()
    shutil.rmtree(folder)
    assert wait_until((folder / "s0.1").exists)
    wakers = Wakers(folder)
    told.clear()
    wakers.wake()
    assert told.wait(PATIENCE)
    follower.stop()
    assert wait_until(lambda: not wakers.followers())
    wakers.close()
