"""pybreaker's storages: its view of a circuit of ours, and the ones that callers bring along."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

import pybreaker

from resilience.core.breaker import (
    CLOSED,
    DISABLED,
    FORCED_CLOSED,
    FORCED_OPEN,
    HALF_OPEN,
    METRICS_ONLY,
    OPEN,
    Event,
    Outcome,
)
from resilience.decorators.standing import Standing

__all__ = ["ORDERS", "STATE_CLASSES", "WORDS", "CallersStorage", "CircuitWindow", "Seen", "refuse_unknown"]

ORDERS: Final = {OPEN: Event.OPEN, CLOSED: Event.CLOSE, HALF_OPEN: Event.HALF_OPEN}
"""What moves a circuit by hand to each state that pybreaker knows."""

WORDS: Final = {
    CLOSED: CLOSED,
    OPEN: OPEN,
    HALF_OPEN: HALF_OPEN,
    FORCED_OPEN: OPEN,
    FORCED_CLOSED: CLOSED,
    DISABLED: CLOSED,
    METRICS_ONLY: CLOSED,
}
"""Every state in pybreaker's words: whether calls pass."""

STATE_CLASSES: Final[dict[str, Any]] = {
    CLOSED: pybreaker.CircuitClosedState,
    OPEN: pybreaker.CircuitOpenState,
    HALF_OPEN: pybreaker.CircuitHalfOpenState,
}


class CircuitWindow(pybreaker.CircuitMemoryStorage):
    """pybreaker's view of a circuit of ours: a window, not a copy. `move` takes the state that the circuit is to move to."""

    def __init__(self, standing: Standing, move: Callable[[str], None]) -> None:
        pybreaker.CircuitBreakerStorage.__init__(self, "memory")
        self._standing = standing
        self._move = move

    @property
    def state(self) -> str:
        return WORDS[self._standing.present.circuit.state]

    @state.setter
    def state(self, state: str) -> None:
        if state != self.state:
            self._move(state)

    @property
    def counter(self) -> int:
        return self._standing.health.failures

    def increment_counter(self) -> None:
        self._standing.health.set_failures(self._standing.health.failures + 1)

    def reset_counter(self) -> None:
        self._standing.health.set_failures(0)

    @property
    def success_counter(self) -> int:
        return self._standing.present.circuit.successes

    def increment_success_counter(self) -> None:
        self._standing.amend(lambda circuit: replace(circuit, successes=circuit.successes + 1))

    def reset_success_counter(self) -> None:
        self._standing.amend(lambda circuit: replace(circuit, successes=0))

    @property
    def opened_at(self) -> datetime | None:
        moment = self._standing.opened_at
        return None if moment is None else datetime.now(UTC) - timedelta(seconds=self._standing.seconds() - moment)

    @opened_at.setter
    def opened_at(self, moment: datetime) -> None:
        standing = self._standing
        standing.opened_at = standing.seconds() - (datetime.now(UTC) - moment).total_seconds()
        if standing.own.circuit.state == OPEN:
            since, until = standing.opened_at, standing.opened_at + standing.policy.reset_timeout
            standing.amend(lambda circuit: replace(circuit, since=since, until=until))


class Seen(NamedTuple):
    """What a storage of pybreaker's tells that it was not told: the state, and how many seconds ago it opened."""

    state: str
    opened_ago: float | None


class CallersStorage:
    """A storage of pybreaker's that the caller brought along. It is the truth; the circuit here follows it."""

    def __init__(self, storage: pybreaker.CircuitBreakerStorage) -> None:
        self._storage = storage
        self._stored = CLOSED  # the state that it was last seen or told to be in

    def look(self) -> Seen | None:
        """What somebody else has made of it, if that is other than what it was last seen or told to be. Does I/O."""
        state = self._storage.state
        if state == self._stored:
            return None
        opened_at = self._storage.opened_at if state == OPEN else None
        return Seen(state, None if opened_at is None else max(0.0, (datetime.now(UTC) - opened_at).total_seconds()))

    def believe(self, seen: Seen) -> None:
        """What was seen is known from here on."""
        self._stored = seen.state

    def count(self, outcome: Outcome, *, half_open: bool) -> int | None:
        """Tell it the result of a call. The failures in a row that it knows of then, if that has changed. Does I/O."""
        storage = self._storage
        if outcome is Outcome.SUCCESS:
            storage.reset_counter()
            if half_open:
                storage.increment_success_counter()
            return 0
        if outcome is Outcome.FAILURE:
            storage.increment_counter()
            return storage.counter
        return None

    def tell(self, state: str) -> None:
        """Tell it of a move, unless it is the storage that told of this one. Does I/O."""
        word = WORDS[state]
        if self._stored == word:
            return
        storage = self._storage
        storage.reset_success_counter()
        if word == OPEN:
            storage.opened_at = datetime.now(UTC)
        elif word == CLOSED:
            storage.reset_counter()
        storage.state = word
        self._stored = word


def refuse_unknown(state: str) -> None:
    """Raises `ValueError` in pybreaker's words for a state that it does not know."""
    if state not in ORDERS:
        raise ValueError(f"Unknown state {state!r}, valid states: {', '.join(ORDERS)}")
