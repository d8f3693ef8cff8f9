"""What the library needs from its surroundings, as Protocols."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from resilience.core.limiter import Charge, Decision

__all__ = ["Clock", "LimitStorage", "Scope"]


class Clock(Protocol):
    """A clock that never goes backwards. Only differences mean anything."""

    def seconds(self) -> float:
        """Seconds since some fixed moment."""

    def microseconds(self) -> int:
        """Whole microseconds since some fixed moment."""


@runtime_checkable
class LimitStorage(Protocol):
    """Where buckets live. One call is one decision over all charges, atomic, all or nothing."""

    @property
    def uri(self) -> str:
        """What it is, without credentials: for the admin endpoint and the logs."""

    def take(self, charges: Sequence[Charge]) -> Decision:
        """Take every charge or none. Raises `StorageUnavailable` when no decision could be had in time."""

    def close(self) -> None:
        """Give back connections. A closed storage may be used again and reconnects."""


class Scope(Protocol):
    """What the surroundings of a call supply: an application's storage, and who is calling."""

    @property
    def storage(self) -> LimitStorage:
        """Where limits without a storage of their own keep their buckets."""

    def caller(self) -> str:
        """The key of a limit that names none: the client's address in a web request."""

    def observe(self, policy: str, title: str, decision: Decision) -> None:
        """Told of every decision, so that an edge can render it under the policy's title."""
