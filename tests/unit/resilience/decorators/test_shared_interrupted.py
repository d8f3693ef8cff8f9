"""A call that is interrupted while it waits for the storage of a shared circuit: a request's timeout, or a greenlet's end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import pytest

from resilience import CircuitBreaker
from resilience.core.record import decode
from resilience.errors import StorageUnavailable
from resilience.ports import Change
from resilience.storage.state_memory import MemoryStateStorage
from resilience.testing import FakeClock

T = TypeVar("T")


class Interrupted(BaseException):
    """As gevent.Timeout is: no Exception."""


class InterruptedStorage(MemoryStateStorage):
    """Interrupts whoever asks for the `at`-th change from now on, before it is made or `after`."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock=clock)
        self.at: int | None = None
        self.after = False
        self.asked = 0
        self.error: type[BaseException] = Interrupted

    def update(self, name: str, change: Change[T], *, keep: float) -> T:
        self.asked += 1
        interrupts = self.asked == self.at
        if interrupts and not self.after:
            raise self.error
        answer = super().update(name, change, keep=keep)
        if interrupts:
            raise self.error
        return answer


@pytest.fixture
def clock() -> FakeClock:
    """Of the process and the storage."""
    return FakeClock()


@pytest.fixture
def storage(clock: FakeClock) -> InterruptedStorage:
    """Which interrupts nobody yet."""
    return InterruptedStorage(clock)


@pytest.fixture
def breaker(clock: FakeClock, storage: InterruptedStorage) -> Iterator[CircuitBreaker]:
    """One with a single place for probes, whose lease lasts, and which is about to half-open."""
    breaker = CircuitBreaker(
        fail_max=1, reset_timeout=1, probe_lease=600, name="interrupted", state_storage=storage, clock=clock
    )
    breaker.open()
    clock.advance(2)
    storage.asked = 0
    yield breaker
    breaker.close()


def work(fails: bool) -> None:
    """What is called."""
    if fails:
        raise OSError("the backend is ill")


@pytest.mark.parametrize("fails", [False, True], ids=["success", "failure"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_the_result_of_a_probe_that_was_interrupted_while_it_was_told_is_told_later(
    breaker: CircuitBreaker, storage: InterruptedStorage, after: bool, fails: bool
) -> None:
    storage.at, storage.after = 2, after  # the first change gives leave, the second one tells the result
    with pytest.raises(Interrupted):
        breaker.call(work, fails)
    breaker._standing.visit()
    seen = breaker.snapshot()
    assert ("open" if fails else "closed", 0) == (seen.state, seen.probes)


def test_who_is_interrupted_before_leave_was_given_takes_no_place(
    breaker: CircuitBreaker, storage: InterruptedStorage
) -> None:
    storage.at = 1
    with pytest.raises(Interrupted):
        breaker.call(work, False)
    breaker.call(work, False)
    assert "closed" == breaker.snapshot().state


def test_whose_leave_was_given_when_nobody_waited_any_longer_its_place_comes_back_with_the_next_round(
    breaker: CircuitBreaker, storage: InterruptedStorage
) -> None:
    storage.at, storage.after = 1, True
    with pytest.raises(Interrupted):
        breaker.call(work, False)
    assert 1 == breaker.snapshot().probes
    breaker._standing.visit()
    assert 0 == breaker.snapshot().probes
    breaker.call(work, False)
    assert "closed" == breaker.snapshot().state


def test_leave_that_was_given_by_a_storage_that_did_not_say_so_comes_back_when_it_does(
    breaker: CircuitBreaker, storage: InterruptedStorage
) -> None:
    storage.at, storage.after, storage.error = 1, True, StorageUnavailable
    breaker.call(work, False)  # alone
    assert 1 == decode(storage.read("circuit:interrupted").text).circuit.handed_out
    storage.at, storage.after = 3, False  # and when it is to be told of that, it is away once more
    breaker._standing.visit()
    assert 1 == len(decode(storage.read("circuit:interrupted").text).circuit.probes)
    breaker._standing.visit()
    assert () == decode(storage.read("circuit:interrupted").text).circuit.probes
