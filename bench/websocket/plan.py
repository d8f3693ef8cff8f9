"""How long and how much: the sizes of one run."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FULL", "QUICK", "Plan"]


@dataclass(frozen=True, slots=True)
class Plan:
    """The sizes of one run. Times are in seconds, payloads in bytes."""

    rounds: int
    seconds: float
    """How long one load lasts."""
    idle_connections: int
    idle_seconds: float
    """How long idle connections are held before their memory is looked at: longer than a heartbeat."""
    subscribers: tuple[int, ...]
    deliveries: int
    """Of each broadcast: divided by the subscribers, that is how many messages are published."""
    published: int
    """Messages from one worker to the clients of another, at `publish_rate` a second."""
    half_open: int
    """Handshakes that never end."""
    echo_connections: int = 64
    payload: int = 64
    publish_rate: int = 1_000
    listeners: int = 50


FULL = Plan(
    rounds=5,
    seconds=6.0,
    idle_connections=15_000,
    idle_seconds=35.0,
    subscribers=(1_000, 10_000),
    deliveries=500_000,
    published=10_000,
    half_open=20_000,
)
"""What the targets are about. Takes about an hour and all of the machine."""

QUICK = Plan(
    rounds=1,
    seconds=2.0,
    idle_connections=2_000,
    idle_seconds=1.0,
    subscribers=(200,),
    deliveries=10_000,
    published=1_000,
    half_open=1_000,
)
"""Whether everything runs: the figures mean little."""
