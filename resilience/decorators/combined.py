"""Several rate limits as one: one decision over all of them."""

from __future__ import annotations

from resilience.core.limiter import Limit
from resilience.decorators.limiter import RateLimiter
from resilience.decorators.policy import Policy
from resilience.decorators.surface import COMBINERS, Surface
from resilience.decorators.tally import LimiterSnapshot
from resilience.ports import LimitStorage

__all__ = ["CombinedLimiter", "all_of"]


class CombinedLimiter(Surface):
    """Limits that are decided together, in one question to their storage, all or nothing: see `all_of`."""

    def __init__(self, *limiters: RateLimiter) -> None:
        self.limiters = limiters
        self.policies = tuple(policy for limiter in limiters for policy in limiter.policies)
        _check_together(self.policies)

    def __repr__(self) -> str:
        return f"<CombinedLimiter {self.name}>"

    @property
    def name(self) -> str:
        """The names of the limiters. A refusal names the one that refuses."""
        return " + ".join(limiter.name for limiter in self.limiters)

    @property
    def title(self) -> str:
        """The names that callers see."""
        return " + ".join(limiter.title for limiter in self.limiters)

    @property
    def limits(self) -> tuple[Limit, ...]:
        """All limits that are fixed, in order."""
        return tuple(limit for limiter in self.limiters for limit in limiter.limits)

    @property
    def storage(self) -> LimitStorage | None:
        """The storage of all; None where the current scope's is used."""
        return self.limiters[0].storage

    def snapshot(self, *, default_storage: LimitStorage | None = None) -> tuple[LimiterSnapshot, ...]:
        """What this process has counted for each; see `RateLimiter.snapshot`."""
        return tuple(limiter.snapshot(default_storage=default_storage) for limiter in self.limiters)


def all_of(*limiters: RateLimiter | CombinedLimiter) -> CombinedLimiter:
    """Several limiters as one: a call passes if all of them let it, else nothing is taken from any.

    Their keys may differ, such as one for each user and one for all; a `key` that is given to the combination is for the
    limiters without a key of their own, a `cost` for all. Each counts, is titled, exempts and answers a refusal for itself;
    the one with the longest wait refuses. Each lets a caller wait for its own turn no longer than it says itself, and the
    call is made when all turns have come. A turn that came earlier is used then: where limits with different keys wait,
    starts under one may bunch by as much as another one held back.

    Decorators directly on top of each other come to the same, unless one of them waits, smooths or has `deduct_when`.

    Raises `ValueError` if they are kept in different storages, decide differently while those are down, or share buckets.
    """
    members: list[RateLimiter] = []
    for limiter in limiters:
        members.extend(limiter.limiters if isinstance(limiter, CombinedLimiter) else (limiter,))
    return CombinedLimiter(*members)


COMBINERS.append(all_of)  # decorators on top of each other are one, too


def _check_together(policies: tuple[Policy, ...]) -> None:
    if not policies:
        raise ValueError("all_of() names no limiter: give at least one")
    names = [policy.name for policy in policies]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"two of the limiters are named {name!r} and share buckets: give one, with the sum of the costs"
            )
    first = policies[0]
    for policy in policies:
        if policy.storage is not first.storage:
            raise ValueError(
                f"{first.name!r} and {policy.name!r} are kept in different storages: what is decided at once is in one"
            )
        if policy.on_store_failure != first.on_store_failure or policy.clock is not first.clock:
            raise ValueError(
                f"{first.name!r} and {policy.name!r} differ in on_store_failure or clock: what is decided at once has one"
            )
