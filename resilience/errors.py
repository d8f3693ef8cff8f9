"""The error family of the library.

    ResilienceError
    ├── Rejected(retry_after)       the call was not made
    │   ├── RateLimited             429  the bucket does not hold the cost
    │   └── CircuitOpen             503  (in resilience.decorators.refusal: it is a pybreaker.CircuitBreakerError too)
    └── StorageUnavailable          the shared storage did not answer; the policy decides what follows
        └── StorageBusy             it did not answer this caller; to others it may

A `Rejected` carries everything that an HTTP edge needs: `status`, `retry_after` in seconds, and the policy's name.
Of the library it knows the core's values only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resilience.core.limiter import Decision

__all__ = ["RateLimited", "Rejected", "ResilienceError", "StorageBusy", "StorageUnavailable"]


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

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions are rebuilt from their message alone unless they say otherwise, and a process pool sends them so.
        return _restored, (type(self), self.args, dict(self.__dict__))


class RateLimited(Rejected):
    """A rate limit refused the call.

    `decision` holds the numbers behind it, `title` is the refusing policy's name for callers, `titles` one name for each
    quota of the decision. `response` is what the policy wants to be answered, None for the usual problem document.
    """

    status = 429

    def __init__(
        self,
        policy: str,
        decision: Decision,
        *,
        title: str | None = None,
        titles: tuple[str, ...] | None = None,
    ) -> None:
        wait = decision.retry_after
        advice = "the cost is above the burst, so no wait helps" if wait is None else f"retry in {wait:.3f} s"
        self.title = policy if title is None else title
        self.titles = (self.title,) * len(decision.quotas) if titles is None else titles
        super().__init__(f"rate limit {self.title!r} exceeded: {advice}", policy=policy, retry_after=wait)
        self.decision = decision
        self.response: Any = None


class StorageUnavailable(ResilienceError):
    """A shared storage did not answer in time or refused. The cause is chained."""


class StorageBusy(StorageUnavailable):
    """What this caller asked for is held by someone else: the bucket is locked by a process that stands still, say. Says
    nothing about the rest of the storage."""


def _restored(kind: type[Rejected], arguments: tuple[Any, ...], state: dict[str, Any]) -> Rejected:
    error = kind.__new__(kind, *arguments)
    error.__dict__.update(state)
    return error
