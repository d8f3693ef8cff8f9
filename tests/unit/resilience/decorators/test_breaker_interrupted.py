"""What comes in the middle of everything: signal handlers, finalizers, and exceptions that they raise."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Generator, Iterator
from types import FrameType
from typing import Any

import pytest

from resilience import CircuitBreaker, CircuitOpen
from resilience.decorators.telling import Telling
from resilience.errors import StorageBusy
from resilience.testing import FakeClock, RecordingListener
from tests.support.breakers import Boom, boom, breaker, fail, fine


class Alarm(BaseException):
    """What a signal handler raises."""


class BusyClock(FakeClock):
    """Calls `handler` once, when it is asked in the middle of what is done under the lock of `circuit`."""

    circuit: CircuitBreaker | None = None
    handler: Callable[[], object] | None = None
    handled = 0

    def seconds(self) -> float:
        if self.handler is not None and self.circuit is not None and self.circuit._standing.lock._is_owned():
            handler, self.handler = self.handler, None
            self.handled += 1
            handler()
        return super().seconds()


def interrupted_at(clock: BusyClock, handler: Callable[[], object] | None, **options: Any) -> CircuitBreaker:
    clock.circuit = breaker(clock, **options)
    clock.handler = handler
    return clock.circuit


def test_a_call_that_fails_in_the_middle_of_a_failure_counts_as_well() -> None:
    clock = BusyClock()
    circuit = interrupted_at(clock, lambda: fail(circuit), fail_max=5)
    fail(circuit)
    assert (1, 2, 2) == (clock.handled, circuit.snapshot().failures, circuit.snapshot().failed)


def test_the_failure_that_came_in_the_middle_may_be_the_one_that_opens() -> None:
    clock = BusyClock()
    circuit = interrupted_at(clock, lambda: fail(circuit), fail_max=2)
    fail(circuit)
    assert "open" == circuit.snapshot().state


def test_a_call_in_the_middle_of_the_question_for_a_probe_is_refused() -> None:
    clock = BusyClock()
    seen: list[object] = []

    def handler() -> None:
        with pytest.raises(CircuitOpen) as caught:
            circuit.call(fine)
        seen.append(caught.value.retry_after)

    circuit = interrupted_at(clock, None)
    circuit.half_open()
    clock.handler = handler
    assert "fine" == circuit.call(fine)
    assert ([1.0], "closed") == (seen, circuit.snapshot().state)


def test_a_block_that_is_found_by_the_garbage_collector_in_the_middle_of_a_question_gives_its_place_back() -> None:
    clock = BusyClock()
    circuit = interrupted_at(clock, None, half_open_max_calls=2, success_threshold=9)
    circuit.half_open()

    def stream() -> Generator[int, None, None]:
        with circuit.calling():
            yield 1

    values = stream()
    next(values)
    clock.handler = values.close
    circuit.call(fine)
    assert (1, 0) == (clock.handled, circuit.snapshot().probes)


def test_the_result_of_a_probe_that_ends_in_the_middle_of_another_question_counts_with_the_next() -> None:
    clock = BusyClock()
    circuit = interrupted_at(clock, None, half_open_max_calls=2)
    circuit.half_open()
    block = circuit.calling()
    block.__enter__()
    clock.handler = lambda: block.__exit__(None, None, None)
    with contextlib.suppress(CircuitOpen):
        circuit.call(circuit.snapshot)
    assert "closed" == circuit.snapshot().state


def test_an_order_or_a_look_in_the_middle_of_a_change_is_refused_and_says_why() -> None:
    clock = BusyClock()

    def handler() -> None:
        for ask in (circuit.force_open, circuit.snapshot, circuit.forget):
            with pytest.raises(StorageBusy, match="'demo' was asked by a signal handler"):
                ask()

    circuit = interrupted_at(clock, handler)
    fail(circuit)
    assert (1, "closed") == (clock.handled, circuit.snapshot().state)


def test_a_handler_in_the_middle_of_telling_waits_for_nobody() -> None:
    circuit = breaker()
    telling: Telling = circuit._telling
    circuit.add_listener(RecordingListener())
    with telling._lock:
        fail(circuit, 2)
    assert "open" == circuit.snapshot().state


@pytest.mark.parametrize("function", [fine, boom], ids=["success", "failure"])
@pytest.mark.parametrize("listeners", [[], [RecordingListener()]], ids=["quiet", "heard"])
def test_whichever_function_of_the_library_a_probe_is_interrupted_in_its_place_comes_back(
    function: Callable[[], object], listeners: list[RecordingListener]
) -> None:
    for number in range(1, 1_000):
        clock = FakeClock()
        circuit = breaker(clock, fail_max=1, listeners=listeners)
        fail(circuit)
        clock.advance(10)
        with raising_at(number) as reached, contextlib.suppress(Alarm, Boom):
            circuit.call(function)
        snapshot = circuit.snapshot()
        assert (0, False) == (snapshot.probes, circuit._telling._publishing), reached
        if not reached:
            assert 20 <= number
            return
    pytest.fail("not reached")


@contextlib.contextmanager
def raising_at(number: int) -> Iterator[list[str]]:
    """Raise `Alarm` at the beginning of the `number`-th function of the library that is called in the block; which it was. That
    is where Python runs signal handlers."""
    count, reached = 0, []

    def profile(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        if event == "call" and "/resilience/decorators/" in frame.f_code.co_filename.split("/tests/")[0]:
            count += frame.f_code.co_name != "__del__"
            if count == number and frame.f_code.co_name != "__del__":
                sys.setprofile(None)
                reached.append(f"{frame.f_code.co_filename}:{frame.f_lineno}")
                raise Alarm

    sys.setprofile(profile)
    try:
        yield reached
    finally:
        sys.setprofile(None)
