"""The error family of the library.

    ResilienceError
    ├── Rejected(retry_after)       the call was not made
    │   ├── RateLimited             429  the bucket does not hold the cost
    │   └── CircuitOpen             503  (in resilience.decorators.breaker: it is a pybreaker.CircuitBreakerError too)
    └── StorageUnavailable          the shared storage did not answer; the policy decides what follows

A `Rejected` carries everything that an HTTP edge needs: `status`, `retry_after` in seconds, and the policy's name.
Of the library it knows the core's values only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from resilience.core.limiter import Decision

__all__ = ["RateLimited", "Rejected", "ResilienceError", "StorageUnavailable"]


class ResilienceError(Exception):
    """Base of every error that this library raises on purpose."""


class Rejected(ResilienceError):
    """The protected call was not made.

    `policy` is the name of the policy that refused, `retry_after` the seconds after which a try can succeed (None
    when no wait helps), `status` the HTTP status that says the same.
    """

    status = 503

    def __init__(self, message: str, *, policy: str, retry_after: float | None) -> None:
        super().__init__(message)
        self.policy = policy
        self.retry_after = retry_after


class RateLimited(Rejected):
    """A rate limit refused the call. `decision` holds the numbers behind it."""

    status = 429

    def __init__(self, policy: str, decision: Decision) -> None:
        wait = decision.retry_after
        advice = "the cost is above the burst, so no wait helps" if wait is None else f"retry in {wait:.3f} s"
        super().__init__(f"rate limit {policy!r} exceeded: {advice}", policy=policy, retry_after=wait)
        self.decision = decision


class StorageUnavailable(ResilienceError):
    """A shared storage did not answer in time or refused. The cause is chained."""
