"""The circuit breaker as a decorator."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any, Final, ParamSpec, TypeVar, Unpack

from resilience.decorators.breaker import CircuitBreaker, refuse_coroutine
from resilience.decorators.options import BreakerOptions
from resilience.registry import PROCESS_REGISTRY

__all__ = ["circuit_breaker"]

P = ParamSpec("P")
T = TypeVar("T")

DEFAULTS: Final[BreakerOptions] = {
    "throw_new_error_on_trip": False,
    "open_time_growth": 2.0,
    "open_time_jitter": 0.1,
}
"""Where the decorator does not begin as pybreaker does."""

_creating = threading.Lock()


def circuit_breaker(name: str, **options: Unpack[BreakerOptions]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Guard functions with the circuit `name`; see `CircuitBreaker` for the options.

    All functions of one name in a process share one circuit: it stands for what they call. The call that trips the
    circuit raises its own exception, and the open time doubles with every opening without a recovery in between, to ten times
    `reset_timeout`, with up to a tenth more by chance. The breaker itself is the attribute `circuit` of the decorated function.
    Raises `ValueError` for values out of range, or when the name is in use with other options, and `TypeError` for a coroutine
    function.
    """
    if not isinstance(name, str):
        raise TypeError("circuit_breaker needs a name: write @circuit_breaker('payments')")
    breaker = _breaker_of(name, options)

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        refuse_coroutine(function)
        call = breaker.call

        @functools.wraps(function)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
            return call(function, *args, **kwargs)

        guarded.circuit = breaker  # type: ignore[attr-defined]  # lets callers reach the circuit of a function
        return guarded

    return decorate


def _breaker_of(name: str, options: BreakerOptions) -> CircuitBreaker:
    """The breaker of that name in this process, which is made if there is none."""
    with _creating:
        begun: dict[str, Any] = {**DEFAULTS, **options}
        wanted = CircuitBreaker(name=name, **begun)
        wanted.call_default(DEFAULTS.keys() - options.keys())
        known = PROCESS_REGISTRY.circuits.get(name)
        if known is None:
            PROCESS_REGISTRY.add_circuit(wanted)
            return wanted
        others = wanted.differences(known) if isinstance(known, CircuitBreaker) else ["it is of another kind"]
        if not isinstance(known, CircuitBreaker) or others:
            raise ValueError(
                f"the circuit {name!r} exists with other options ({', '.join(others)}): use the same ones, or another name."
                " Where modules are loaded anew, or between tests, PROCESS_REGISTRY.clear() forgets it"
            )
        return known
