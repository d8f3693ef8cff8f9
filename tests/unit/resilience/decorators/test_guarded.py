"""What lasts longer than a function call: blocks and generators, and which calls belong to a probe."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator

import pytest

from resilience import CircuitBreaker, CircuitOpen
from tests.support.breakers import boom, breaker, fine


def half_open() -> CircuitBreaker:
    """With one place for a probe, which needs several."""
    circuit = breaker(success_threshold=10)
    circuit.half_open()
    return circuit


def stream(circuit: CircuitBreaker, inside: Callable[[], object] = fine) -> Generator[object, None, None]:
    """A block that a generator is suspended in."""
    with circuit.calling():
        yield inside()
        yield inside()


def test_whoever_takes_from_a_generator_has_no_part_in_the_probe_inside_of_it() -> None:
    circuit = half_open()
    values = stream(circuit)
    next(values)
    with pytest.raises(CircuitOpen):
        circuit.call(fine)
    list(values)
    assert "fine" == circuit.call(fine)


def test_what_a_generator_calls_inside_of_its_probe_belongs_to_it() -> None:
    circuit = half_open()
    assert ["fine", "fine"] == list(stream(circuit, lambda: circuit.call(fine)))


def test_generators_that_end_out_of_order_leave_nobody_inside_of_a_probe() -> None:
    one, other = half_open(), half_open()
    first, second = stream(one), stream(other)
    next(first)
    next(second)
    list(first)
    list(second)
    first = stream(one)
    next(first)
    with pytest.raises(CircuitOpen):
        one.call(boom)


def test_a_block_inside_of_a_context_manager_of_the_caller_s_is_one_with_what_it_calls() -> None:
    circuit = half_open()

    @contextlib.contextmanager
    def guarded() -> Iterator[None]:
        with circuit.calling():
            yield

    with guarded():
        assert "fine" == circuit.call(fine)

    def generator() -> Generator[str, None, None]:
        with contextlib.ExitStack() as stack:
            stack.enter_context(guarded())
            yield circuit.call(fine)

    values = generator()
    assert "fine" == next(values)
    with pytest.raises(CircuitOpen):
        circuit.call(fine)
    values.close()
    assert "fine" == circuit.call(fine)


def test_a_helper_that_opens_the_block_for_a_generator_makes_no_difference() -> None:
    circuit = half_open()

    def opened(stack: contextlib.ExitStack) -> None:
        stack.enter_context(circuit.calling())

    def generator() -> Generator[str, None, None]:
        with contextlib.ExitStack() as stack:
            opened(stack)
            yield circuit.call(fine)

    values = generator()
    assert "fine" == next(values)
    with pytest.raises(CircuitOpen):
        circuit.call(fine)
    values.close()


def test_a_closed_block_counts_as_neither_and_gives_its_place_back() -> None:
    circuit = half_open()
    values = stream(circuit)
    next(values)
    values.close()
    assert (1, 0) == (circuit.snapshot().ignored, circuit.snapshot().probes)
    circuit.close()
    values = stream(circuit)
    next(values)
    values.close()
    assert (2, "closed") == (circuit.snapshot().ignored, circuit.snapshot().state)


def test_a_forked_child_does_not_give_back_what_its_parent_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    circuit = half_open()
    values = stream(circuit)
    next(values)
    monkeypatch.setattr("os.getpid", lambda: -1)
    values.close()
    assert 1 == circuit.snapshot().probes
