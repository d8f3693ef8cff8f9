"""What the library needs from its surroundings, as Protocols."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from resilience.core.limiter import Charge, Decision, Limit, Refund

if TYPE_CHECKING:
    from resilience.errors import RateLimited

__all__ = ["Clock", "LimitStorage", "QuickStorage", "Scope", "Stance", "Taker"]

Stance = Literal["enforce", "shadow", "skip"]
"""What the surroundings want of limits: enforce them; decide, count and log but reject nothing; or leave the call alone."""

Taker = Callable[[str, int], Decision]
"""Decides one charge: takes the subject and the cost in tokens."""


class Clock(Protocol):
    """A clock that never goes backwards. Only differences mean anything."""

    def seconds(self) -> float:
        """Seconds since some fixed moment."""

    def microseconds(self) -> int:
        """Whole microseconds since some fixed moment."""

    def sleep(self, seconds: float) -> None:
        """Return when so much time has passed. Under greenlets others run meanwhile."""


@runtime_checkable
class LimitStorage(Protocol):
    """Where buckets live. One call is one decision over all charges, atomic, all or nothing."""

    @property
    def uri(self) -> str:
        """What it is, without credentials: for the admin endpoint and the logs."""

    def take(self, charges: Sequence[Charge]) -> Decision:
        """Take every charge or none. Raises `StorageUnavailable` when no decision could be had in time."""

    def give_back(self, refunds: Sequence[Refund]) -> None:
        """Give tokens back, or fill buckets. Raises `StorageUnavailable` when that could not be had in time."""

    def close(self) -> None:
        """Give back connections. A closed storage may be used again and reconnects."""


@runtime_checkable
class QuickStorage(LimitStorage, Protocol):
    """A storage that decides one charge with less ado than `take` does: the path of nearly every request."""

    def taker(self, scope: str, limit: Limit, floor: int = 0, lease: int = 0) -> Taker:
        """What decides `take([Charge(scope, subject, limit, cost, floor, lease)])`, given the subject and the cost."""


class Scope(Protocol):
    """What the surroundings of a call supply: an application's storage, who is calling, what becomes of a refusal."""

    @property
    def storage(self) -> LimitStorage:
        """Where limits without a storage of their own keep their buckets."""

    def caller(self) -> str:
        """The key of a limit that names none: the client's address in a web request."""

    def method(self) -> str | None:
        """The HTTP method of the request; None outside of requests."""

    def stance(self) -> Stance:
        """What to do with this call; asked once for each decision."""

    def observe(self, policy: str, titles: tuple[str, ...], decision: Decision) -> None:
        """Told of every decision that counts, so that an edge can render it: one title for each quota of `decision`.

        `titles` is one and the same object for one policy, so that what is made of it can be kept.
        """

    def replacement(self, rejection: RateLimited) -> Any:
        """What a refused function returns when `on_breach` gave something."""

    def refuse(self, rejection: RateLimited) -> None:
        """Told of a refusal just before it is raised; may set `rejection.response`."""

    def settle(self, then: Callable[[Any], None]) -> bool:
        """Call `then` with the response of the current request when it is made. False, and no call, outside of requests."""
