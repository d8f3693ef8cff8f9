"""The thread that looks after the shared circuits of a process."""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable

import pytest

from resilience.decorators.rounds import Rounds


class Counting:
    """Counts its visits, and does something at each."""

    def __init__(self, then: Callable[[], None] = lambda: None) -> None:
        self.name = "counting"
        self.visits = 0
        self.visited = threading.Event()
        self._then = then

    def visit(self) -> None:
        self.visits += 1
        self.visited.set()
        self._then()


def fail() -> None:
    raise OSError("no answer")


def test_who_is_added_is_visited_also_after_another_one_failed(caplog: pytest.LogCaptureFixture) -> None:
    rounds, failing, other = Rounds(), Counting(fail), Counting()
    rounds.add(failing)
    rounds.add(other)
    attendant = rounds._attendant
    assert attendant is not None
    with caplog.at_level(logging.ERROR):
        assert 0 < (rounds.attend(attendant) or 0)
    assert (True, True) == (failing.visits > 0, other.visits > 0)
    assert "circuit 'counting' could not be looked after" in caplog.text
    rounds.remove(failing)
    rounds.remove(other)


def test_nobody_is_kept_alive_and_the_thread_ends_with_the_last_one() -> None:
    rounds, visited = Rounds(), Counting()
    rounds.add(visited)
    attendant = rounds._attendant
    assert attendant is not None
    assert 0 < (rounds.attend(attendant) or 0)
    del visited
    gc.collect()
    assert None is rounds.attend(attendant)
    assert None is rounds._attendant
    rounds.add(again := Counting())
    assert again.visited.wait(5)
    rounds.remove(again)


def test_a_forked_child_begins_with_nobody() -> None:
    rounds, visited = Rounds(), Counting()
    rounds.add(visited)
    rounds.after_fork()
    assert None is rounds._attendant
    rounds.add(visited)
    assert visited.visited.wait(5)
    rounds.remove(visited)
