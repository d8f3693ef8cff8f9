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


def test_a_circuit_without_a_name_is_refused() -> None:
    with pytest.raises(ValueError, match="has no name: give it one"):
        Registry(circuits=[CircuitBreaker()])
