"""Which policies exist."""

from __future__ import annotations

import pytest

from resilience import CircuitBreaker, RateLimiter
from resilience.registry import Registry


def test_policies_are_found_by_name_and_forgotten_on_request() -> None:
    circuit, limiter = CircuitBreaker(name="a"), RateLimiter("1/second", name="b")
    registry = Registry(circuits=[circuit], limiters=[limiter])
    registry.add_circuit(circuit)
    assert ({"a": circuit}, {"b": limiter}) == (registry.circuits, registry.limiters)
    registry.clear()
    assert ({}, {}) == (registry.circuits, registry.limiters)


def test_a_second_circuit_of_one_name_is_refused() -> None:
    with pytest.raises(ValueError, match="another circuit is named 'a' already"):
        Registry(circuits=[CircuitBreaker(name="a"), CircuitBreaker(name="a")])


@pytest.mark.parametrize("name", [".", "..", "../limiters", "a/./b", "a/.."])
def test_a_name_that_an_address_cannot_carry_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"a circuit cannot be named .* choose another name"):
        Registry(circuits=[CircuitBreaker(name=name)])
    with pytest.raises(ValueError, match=r"a rate limiter cannot be named .* choose another name"):
        Registry(limiters=[RateLimiter("1/second", name=name)])


@pytest.mark.parametrize("name", ["...", ".a", "a..b", "a/.b", "%2e", " . "])
def test_dots_that_are_part_of_a_name_are_none_of_that(name: str) -> None:
    assert {name} == set(Registry(circuits=[CircuitBreaker(name=name)]).circuits)


def test_a_circuit_without_a_name_is_refused() -> None:
    with pytest.raises(ValueError, match="has no name: give it one"):
        Registry(circuits=[CircuitBreaker()])
