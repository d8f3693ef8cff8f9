"""What the tests of the circuit breaker have in common."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from resilience import CircuitBreaker
from resilience.core.events import PolicyEvent
from resilience.events import PROCESS_EVENTS
from resilience.testing import FakeClock


class Boom(Exception):
    """What the protected function raises."""


class Fine(Exception):
    """What the protected function raises when all is well."""


def boom() -> None:
    raise Boom


def fine() -> str:
    return "fine"


def breaker(clock: FakeClock | None = None, **options: Any) -> CircuitBreaker:
    options = {"reset_timeout": 10, "name": "demo", "throw_new_error_on_trip": False, **options}
    if not {"failure_rate", "slow_call_rate"} & set(options):
        options.setdefault("fail_max", 2)
    return CircuitBreaker(clock=clock or FakeClock(), **options)


def fail(circuit: CircuitBreaker, times: int = 1, error: BaseException | type[BaseException] = Boom) -> None:
    def function() -> None:
        raise error

    for _ in range(times):
        with contextlib.suppress(type(error) if isinstance(error, BaseException) else error):
            circuit.call(function)


@contextlib.contextmanager
def heard(*types: type[PolicyEvent]) -> Iterator[list[Any]]:
    """The events of these types that are told in the block."""
    events: list[Any] = []
    end = PROCESS_EVENTS.listen(events.append, *types)
    try:
        yield events
    finally:
        end()
