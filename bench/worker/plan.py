"""How long and how much: the sizes of one run."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FULL", "QUICK", "Plan"]


@dataclass(frozen=True, slots=True)
class Plan:
    """The sizes of one run. Times are in seconds."""

    rounds: int
    seconds: float
    """How long one load lasts."""
    idle_connections: int
    waiting_connections: tuple[int, ...]
    waiting_seconds: float
    """How long the load lasts on the route that waits: long beside the seconds that one answer takes there, since what is
    under way at the end counts for nothing."""
    slow_clients: int
    crowd_connections: int
    crowd_workers: int
    crowd_seconds: float
    """How long the great crowd of idle connections is held."""
    storm_connections: int
    allocation_requests: int
    stand_ins: int
    pong_connections: int = 64


FULL = Plan(
    rounds=5,
    seconds=6.0,
    idle_connections=15_000,
    waiting_connections=(1_000, 5_000, 10_000),
    waiting_seconds=15.0,
    slow_clients=10_000,
    crowd_connections=100_000,
    crowd_workers=6,
    crowd_seconds=600.0,
    storm_connections=10_000,
    allocation_requests=2_000,
    stand_ins=100_000,
)
"""What the targets are about. Takes about an hour and all of the machine."""

QUICK = Plan(
    rounds=1,
    seconds=2.0,
    idle_connections=3_000,
    waiting_connections=(1_000,),
    waiting_seconds=3.0,
    slow_clients=1_000,
    crowd_connections=6_000,
    crowd_workers=6,
    crowd_seconds=10.0,
    storm_connections=2_000,
    allocation_requests=500,
    stand_ins=20_000,
)
"""Whether everything runs: the figures mean little."""
