"""Rate limits as objects and as decorators."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, TypeVar

from resilience.core.limiter import Charge, Decision, Limit
from resilience.errors import RateLimited
from resilience.notation import LimitsLike, parse_limits
from resilience.ports import LimitStorage
from resilience.registry import PROCESS_REGISTRY
from resilience.scope import current_scope

__all__ = ["LimiterSnapshot", "RateLimiter", "rate_limit"]

P = ParamSpec("P")
T = TypeVar("T")

Key = str | tuple[object, ...] | Callable[[], "str | tuple[object, ...]"] | None
"""Whose bucket: a constant, a callable without arguments, or None for the current scope's caller (the client's address)."""


class LimiterSnapshot(NamedTuple):
    """A rate limiter as this process sees it. Counts are since the process started."""

    name: str
    limits: tuple[str, ...]
    storage: str
    allowed: int
    denied: int


class RateLimiter:
    """One or several limits under one name, decided together, all or nothing.

    `limits` is in the notation of the `limits` package ("100/second", "10/second; 1000/hour"), a `Limit`, or several;
    `burst` replaces every limit's bucket size. `key` says whose bucket, `cost` how many tokens (a number from 0, or a
    callable without arguments), `storage` where buckets live (default: the current scope's). Two limiters of one name
    on one storage share their buckets.

    Safe to share between threads and greenlets. Raises `ValueError` with the reason for values out of range.
    """

    def __init__(
        self,
        limits: LimitsLike,
        *,
        name: str,
        burst: int | None = None,
        key: Key = None,
        cost: int | Callable[[], int] = 1,
        storage: LimitStorage | None = None,
    ) -> None:
        if not name:
            raise ValueError(
                "name='': a rate limiter needs a name; buckets, header fields and the admin endpoint use it"
            )
        self.name = name
        self.limits = parse_limits(limits, burst=burst)
        self.storage = storage
        self._key = key
        self._cost = cost if callable(cost) else _checked_cost(cost)
        # The period is part of the bucket's name, the rate is not: a changed rate keeps what the callers have left.
        self._scopes = tuple((f"{name}:{limit.period_microseconds}", limit) for limit in self.limits)
        # Plain additions: exact under greenlets; under threads two that coincide may count once.
        self._allowed = 0
        self._denied = 0

    def __repr__(self) -> str:
        return f"<RateLimiter {self.name}: {'; '.join(map(str, self.limits))}>"

    def try_acquire(self, key: str | tuple[object, ...] | None = None, *, cost: int | None = None) -> Decision:
        """Take `cost` tokens from the bucket of `key` if it holds them. Never waits, never raises for a denial.

        A cost of 0 looks without taking. Raises `StorageUnavailable` only for a storage without a stand-in.
        """
        scope = current_scope()
        subject = self._subject(key) if key is not None or self._key is not None else scope.caller()
        tokens = self._tokens() if cost is None else _checked_cost(cost)
        storage = self.storage if self.storage is not None else scope.storage
        # tuple.__new__: a named tuple's own constructor takes twice as long.
        decision = storage.take([tuple.__new__(Charge, (name, subject, limit, tokens)) for name, limit in self._scopes])
        if decision.allowed:
            self._allowed += 1
        else:
            self._denied += 1
        scope.observe(self.name, decision)
        return decision

    def acquire(self, key: str | tuple[object, ...] | None = None, *, cost: int | None = None) -> Decision:
        """Take `cost` tokens or raise `RateLimited`, which carries the decision and the seconds to wait."""
        decision = self.try_acquire(key, cost=cost)
        if not decision.allowed:
            raise RateLimited(self.name, decision)
        return decision

    def __call__(self, function: Callable[P, T]) -> Callable[P, T]:
        """Guard `function`: every call takes from the bucket first and raises `RateLimited` when it is empty."""
        if inspect.iscoroutinefunction(function):
            raise TypeError(
                f"{function.__qualname__} is a coroutine function: call limiter.acquire() in it instead of decorating it"
            )

        @functools.wraps(function)
        def limited(*args: P.args, **kwargs: P.kwargs) -> T:
            self.acquire()
            return function(*args, **kwargs)

        limited.limiter = self  # type: ignore[attr-defined]  # lets callers reach the policy of a view
        return limited

    def snapshot(self, *, default_storage: LimitStorage | None = None) -> LimiterSnapshot:
        """What this process has counted. `default_storage` is where a limiter without a storage of its own counts, if
        the caller knows better than the current scope."""
        storage = default_storage if self.storage is None else self.storage
        if storage is None:
            storage = current_scope().storage
        return LimiterSnapshot(self.name, tuple(map(str, self.limits)), storage.uri, self._allowed, self._denied)

    def _subject(self, key: str | tuple[object, ...] | None) -> str:
        if key is None:
            key = self._key() if callable(self._key) else self._key
        if type(key) is str:
            return key
        if isinstance(key, tuple):
            return "|".join(str(part).replace("\\", "\\\\").replace("|", "\\|") for part in key)
        raise TypeError(f"the key of rate limit {self.name!r} is {key!r}: a key is a string or a tuple")

    def _tokens(self) -> int:
        cost: Any = self._cost
        return _checked_cost(cost()) if callable(cost) else cost


def _checked_cost(cost: object) -> int:
    if type(cost) is not int or cost < 0:
        raise ValueError(f"cost={cost!r}: a cost is a whole number from 0")
    return cost


def rate_limit(
    limits: LimitsLike | Limit,
    *,
    burst: int | None = None,
    key: Key = None,
    cost: int | Callable[[], int] = 1,
    name: str | None = None,
    storage: LimitStorage | None = None,
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Limit how often a function is called; see `RateLimiter` for the arguments.

    `name` defaults to the function's qualified name with its module. Usable before an application exists and outside
    requests. The limiter itself is the attribute `limiter` of the decorated function.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        identity = name if name is not None else f"{function.__module__}.{function.__qualname__}"
        limiter = RateLimiter(limits, name=identity, burst=burst, key=key, cost=cost, storage=storage)
        PROCESS_REGISTRY.add_limiter(limiter)
        return limiter(function)

    return decorate
