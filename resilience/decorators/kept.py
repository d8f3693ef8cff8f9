"""Where a circuit is kept: the interface, and the circuit of one process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, NamedTuple, Protocol

from resilience.core.breaker import (
    OPEN,
    BreakerPolicy,
    Circuit,
    Event,
    Outcome,
    Permit,
    Refusal,
    admit,
    expire,
    force,
    settle,
    trip,
)

__all__ = [
    "STILL",
    "ByHand",
    "Granted",
    "Identity",
    "Keeper",
    "OwnCircuit",
    "Tripped",
    "View",
    "Watched",
    "moved_by_hand",
    "opens",
]

Identity = tuple[str, int, int]
"""Tells one stretch of a circuit's life between two moves from every other: which record, under which generation of the common
one, and which generation of its own."""


class View(NamedTuple):
    """A circuit as it is for this process. Its times are in seconds of the clock of the place where it is kept, which is
    `ahead` of the process's."""

    circuit: Circuit
    identity: Identity
    ahead: float = 0.0


class Watched(NamedTuple):
    """Numbers that change when the circuit has, each at its place in its cells, and what they were when it was looked at."""

    cells: Sequence[int]
    place: int
    heard: int
    host_cells: Sequence[int]
    host_place: int
    host_heard: int


STILL: Final = Watched((0,), 0, 0, (0,), 0, 0)
"""Nobody changes it unseen."""


class ByHand(NamedTuple):
    """A move that somebody ordered."""

    event: Event
    reason: str = ""
    author: str = ""
    expires_in: float | None = None


class Tripped(NamedTuple):
    """What became of a circuit that was to open: whether it did, and whether for every host that shares it."""

    opened: bool
    for_all: bool


class Granted(NamedTuple):
    """Leave for one call, and the record that gave it."""

    permit: Permit
    identity: Identity


class Keeper(Protocol):
    """The place where a circuit is kept. Every method may raise `StorageUnavailable`, but those of the process's own."""

    def view(self) -> View:
        """The circuit as it is for this process, as far as is known here: nothing is waited for."""

    def admit(self, policy: BreakerPolicy) -> Granted | Refusal:
        """Ask for leave for one call."""

    def settle(self, policy: BreakerPolicy, leave: Granted, outcome: Outcome, chance: float, pause: float) -> bool:
        """Tell the result of a probe. True if the circuit opened by it."""

    def trip(self, policy: BreakerPolicy, identity: Identity, chance: float, pause: float) -> Tripped:
        """Open the circuit if it is closed and still what it was at `identity`."""

    def force(self, policy: BreakerPolicy, order: ByHand) -> None:
        """Move it by hand."""


def opens(before: Circuit, after: Circuit) -> bool:
    """Whether a step has opened the circuit."""
    return after.state == OPEN and after.generation != before.generation


def moved_by_hand(circuit: Circuit, policy: BreakerPolicy, order: ByHand, now: float) -> Circuit:
    """The circuit after somebody's order."""
    return force(
        circuit, policy, order.event, now, reason=order.reason, author=order.author, expires_in=order.expires_in
    )


class OwnCircuit:
    """The circuit of one process. The caller holds whatever lock it needs."""

    def __init__(self, circuit: Circuit, seconds: Callable[[], float]) -> None:
        self.circuit = circuit
        self._seconds = seconds

    def backdate(self, policy: BreakerPolicy, moment: float) -> None:
        """It opened at that moment."""
        self.circuit = replace(self.circuit, since=moment, until=moment + policy.reset_timeout)

    def view(self) -> View:
        self.circuit = expire(self.circuit, self._seconds())
        return View(self.circuit, ("own", 0, self.circuit.generation))

    def admit(self, policy: BreakerPolicy) -> Granted | Refusal:
        self.circuit, answer = admit(self.circuit, policy, self._seconds())
        return answer if isinstance(answer, Refusal) else Granted(answer, ("own", 0, self.circuit.generation))

    def settle(self, policy: BreakerPolicy, leave: Granted, outcome: Outcome, chance: float, pause: float) -> bool:
        before = self.circuit
        self.circuit = settle(before, policy, leave.permit, outcome, self._seconds(), chance=chance, pause=pause)
        return opens(before, self.circuit)

    def trip(self, policy: BreakerPolicy, identity: Identity, chance: float, pause: float) -> Tripped:
        before = self.circuit
        if identity != ("own", 0, before.generation):
            return Tripped(opened=False, for_all=True)
        self.circuit = trip(before, policy, before.generation, self._seconds(), chance=chance, pause=pause)
        return Tripped(opened=opens(before, self.circuit), for_all=True)

    def force(self, policy: BreakerPolicy, order: ByHand) -> None:
        self.circuit = moved_by_hand(self.circuit, policy, order, self._seconds())
