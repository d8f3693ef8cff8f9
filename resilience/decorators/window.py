"""pybreaker's storage as a window on a circuit of this process."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pybreaker

from resilience.core.breaker import CLOSED, HALF_OPEN, OPEN, Circuit, Event, force
from resilience.ports import Clock

__all__ = ["FORCING", "CircuitWindow"]

FORCING = {OPEN: Event.FORCE_OPEN, CLOSED: Event.FORCE_CLOSED, HALF_OPEN: Event.FORCE_HALF_OPEN}
"""What moves a circuit to a state by hand."""


class CircuitWindow(pybreaker.CircuitMemoryStorage):
    """pybreaker's view of a circuit that lives in this process: a window, not a copy."""

    def __init__(self, circuit: Circuit, clock: Clock) -> None:
        pybreaker.CircuitBreakerStorage.__init__(self, "memory")
        self._circuit = circuit
        self._clock = clock

    @property
    def state(self) -> str:
        return self._circuit.state

    @state.setter
    def state(self, state: str) -> None:
        if state != self._circuit.state:
            force(self._circuit, FORCING[state], self._clock.seconds())

    @property
    def counter(self) -> int:
        return self._circuit.failures

    def increment_counter(self) -> None:
        self._circuit.failures += 1

    def reset_counter(self) -> None:
        self._circuit.failures = 0

    @property
    def success_counter(self) -> int:
        return self._circuit.successes

    def increment_success_counter(self) -> None:
        self._circuit.successes += 1

    def reset_success_counter(self) -> None:
        self._circuit.successes = 0

    @property
    def opened_at(self) -> datetime | None:
        if self._circuit.state == CLOSED and not self._circuit.opened_at:
            return None
        return datetime.now(UTC) - timedelta(seconds=self._clock.seconds() - self._circuit.opened_at)

    @opened_at.setter
    def opened_at(self, moment: datetime) -> None:
        self._circuit.opened_at = self._clock.seconds() - (datetime.now(UTC) - moment).total_seconds()
