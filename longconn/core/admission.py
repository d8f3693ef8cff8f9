"""Who comes in, and who has to go for it: the rate of accepting, and the order of closing when the table is full."""

from __future__ import annotations

from collections.abc import Iterable
from heapq import nsmallest
from math import ceil, isfinite
from typing import Final, Protocol, TypeVar

from longconn.core.states import State

__all__ = ["AcceptRate", "Candidate", "victims"]

_FORGIVEN = 1e-6
"""Seconds by which a connection may come early: who waits as long as it was told is not sent away over a rounding."""


class AcceptRate:
    """At most `rate` connections per second, of which `burst` may come at once.

    `rate` is above 0; `burst` is a whole number from 1, or 0 for what the rate gives in one second. Raises `ValueError`
    when one is out of range. Source of the algorithm: the generic cell rate algorithm (ITU-T I.371), whose whole state is
    the moment at which the burst is complete again.
    """

    __slots__ = ("_full", "_interval", "_tolerance")

    def __init__(self, rate: float, burst: int = 0) -> None:
        if not (rate > 0 and isfinite(rate)):
            raise ValueError(f"rate={rate!r}: connections per second, above 0")
        if burst < 0:
            raise ValueError(f"burst={burst!r}: a whole number from 1, or 0 for a second's worth")
        self._interval = 1 / rate
        self._tolerance = ((burst or ceil(rate)) - 1) * self._interval
        self._full = 0.0

    def take(self, now: float) -> float:
        """0.0 when a connection is admitted at `now` (seconds of a monotonic clock), and it counts from then on.

        Otherwise the seconds until one would be admitted, and nothing is counted.
        """
        full = max(self._full, now)
        wait = full - self._tolerance - now
        if wait > _FORGIVEN:
            return wait
        self._full = full + self._interval
        return 0.0


class Candidate(Protocol):
    """What `victims` looks at."""

    @property
    def state(self) -> int:
        """Its `State`."""

    @property
    def since(self) -> int:
        """The tick at which its wait in that state began."""

    @property
    def slow(self) -> bool:
        """Whether its transfer is below the minimum rate; asked only where the application runs."""


AnyCandidate = TypeVar("AnyCandidate", bound=Candidate)

_HEAD, _TRANSFER, _PARKED, _SPARED = range(4)
_RANK_OF: Final[dict[State, int]] = {
    State.ACCEPTED: _HEAD,
    State.HANDSHAKING: _HEAD,
    State.READING_HEAD: _HEAD,
    State.READING_BODY: _TRANSFER,
    State.RESPONDING: _TRANSFER,
    State.PARKED: _PARKED,
    State.UPGRADED: _SPARED,
    State.DRAINING: _SPARED,  # goes by itself in a moment
    State.CLOSED: _SPARED,
}
_RANKS: Final = tuple(_RANK_OF[state] for state in State)


def victims(connections: Iterable[AnyCandidate], wanted: int, now_tick: int) -> list[AnyCandidate]:
    """At most `wanted` connections to close when the table is full, the first to go first.

    First incomplete heads (no byte yet, TLS handshake, part of a head), the oldest first: who is honest sends a head at
    once. Then transfers below the minimum rate, the oldest first. Then keep-alive connections, the longest-parked first:
    their clients expect a close at any time. Never a connection that works, never one of another protocol. A wait that
    begins after `now_tick`, because the caller rounds up, counts as begun now; equals go in the order given.

    One pass over `connections`, so ask for many at once: at 100,000 a pass takes milliseconds.
    """
    ranks: tuple[list[AnyCandidate], ...] = ([], [], [])
    for connection in connections:
        rank = _RANKS[connection.state]
        if rank == _SPARED or (rank == _TRANSFER and not connection.slow):
            continue
        ranks[rank].append(connection)

    def began(connection: AnyCandidate) -> int:
        return min(connection.since, now_tick)

    chosen: list[AnyCandidate] = []
    for found in ranks:
        if len(chosen) < wanted:
            chosen += nsmallest(wanted - len(chosen), found, key=began)
    return chosen
