"""What a type checker sees of the circuit breaker: a guarded function keeps its parameters and its result.

mypy reads this file with everything else; an error that is expected and missing is an error (unused ignore).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import assert_type

import pybreaker
import pytest

from resilience import CircuitBreaker, CircuitOpen, circuit_breaker
from resilience.registry import PROCESS_REGISTRY, Circuit

circuit = CircuitBreaker(name="typed", throw_new_error_on_trip=False)


def price(article: str, *, amount: int = 1) -> float:
    return len(article) * amount


def pages(count: int) -> Iterator[str]:
    yield from map(str, range(count))


@pytest.fixture(autouse=True)
def _empty_registry() -> Iterator[None]:
    yield
    PROCESS_REGISTRY.clear()


def test_a_call_takes_what_the_function_takes_and_returns_what_it_returns() -> None:
    assert_type(circuit.call(price, "pear", amount=2), float)
    assert_type(circuit.call(pages, 3), Iterator[str])


def test_a_call_with_other_arguments_is_an_error() -> None:
    with pytest.raises(TypeError):
        circuit.call(price, "pear", weight=2)  # type: ignore[call-arg]  # the mistake
    with pytest.raises(TypeError):
        circuit.call(price, 5)  # type: ignore[arg-type]  # the mistake


def test_a_decorated_function_keeps_its_type() -> None:
    decorated = circuit_breaker("typed", fail_max=3)(price)
    assert_type(decorated("pear", amount=2), float)
    with pytest.raises(TypeError):
        decorated(article=5)  # type: ignore[arg-type]  # the mistake
    bare, called = circuit(price), circuit()(price)
    assert_type(bare("pear"), float)
    assert_type(called("pear", amount=2), float)
    with pytest.raises(TypeError):
        bare("pear", weight=2)  # type: ignore[call-arg]  # the mistake


def test_the_decorator_knows_its_options() -> None:
    decorate = circuit_breaker("options", failure_rate=0.5, window_seconds=10.0, ignore=[KeyError])
    function: Callable[[int], Iterator[str]] = decorate(pages)
    assert ["0", "1"] == list(function(2))
    with pytest.raises(TypeError):
        circuit_breaker("wrong", fail_maximum=3)  # type: ignore[call-arg]  # the mistake


def test_it_is_what_pybreaker_and_the_registry_take() -> None:
    theirs: pybreaker.CircuitBreaker = circuit
    ours: Circuit = circuit
    assert theirs.name == ours.name


def test_a_rejection_carries_a_number() -> None:
    circuit.force_open()
    try:
        with pytest.raises(CircuitOpen) as caught:
            circuit.call(price, "pear")
        assert_type(caught.value.retry_after, float)
    finally:
        circuit.close()
