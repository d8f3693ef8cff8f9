"""Places are given in the order of asking, and none is ever lost."""

from __future__ import annotations

import threading
from collections.abc import Callable

import gevent
import pytest

from resilience.storage.places import Places


def started(function: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=function)
    thread.start()
    return thread


def waiting(places: Places, count: int) -> None:
    while len(places._waiting) < count:
        threading.Event().wait(0.001)


def test_there_are_as_many_as_there_are() -> None:
    places = Places(2)
    assert [True, True, False] == [places.acquire(timeout=0) for _ in range(3)]
    places.release()
    assert places.acquire(timeout=0)


def test_whoever_waited_longest_is_next_also_before_one_who_asks_at_once() -> None:
    places = Places(1)
    order: list[int] = []
    assert places.acquire(timeout=0)

    def caller(number: int) -> None:
        assert places.acquire(timeout=5)
        order.append(number)
        places.release()

    threads = []
    for number in range(3):
        threads.append(started(lambda number=number: caller(number)))  # type: ignore[misc]  # a default of a lambda
        waiting(places, number + 1)
    places.release()
    assert places.acquire(timeout=5), "the one who gave it back comes after those who waited"
    assert [0, 1, 2] == order
    for thread in threads:
        thread.join()


def test_one_who_gave_up_is_passed_over() -> None:
    places = Places(1)
    assert places.acquire(timeout=0)
    assert not places.acquire(timeout=0.001)
    places.release()
    assert places.acquire(timeout=0)


@pytest.mark.parametrize("handed_over", [False, True])
def test_one_who_is_interrupted_loses_no_place(handed_over: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    places = Places(1)
    assert places.acquire(timeout=0)

    def interrupted(self: threading.Event, timeout: float | None = None) -> bool:
        if handed_over:
            places.release()
        raise gevent.Timeout

    with monkeypatch.context() as patched:
        patched.setattr(threading.Event, "wait", interrupted)
        with pytest.raises(gevent.Timeout):
            places.acquire(timeout=5)
    if not handed_over:
        places.release()
    assert [True, False] == [places.acquire(timeout=0), places.acquire(timeout=0)]
