"""Rate limits as objects and as decorators."""

from __future__ import annotations

import functools
import hashlib
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

LONGEST_KEY = 128
"""Keys of more characters are kept as their BLAKE2b hash."""

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
    on one storage share their buckets. `title` is the name that callers see in header fields (default: `name`).

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
        title: str | None = None,
    ) -> None:
        if not name or not isinstance(name, str):
            raise ValueError(
                "name='': a rate limiter needs a name; buckets, header fields and the admin endpoint use it"
            )
        self.name = name
        self.title = name if title is None else title
        self.limits = parse_limits(limits, burst=burst)
        self.storage = storage
        self._key = key
        self._cost = cost if callable(cost) else _checked_cost(cost)
        # The period is part of the bucket's name, the rate is not: a changed rate keeps what the callers have left.
        self._scopes = tuple((f"{name}:{limit.period_microseconds}", limit) for limit in self.limits)
        self._counts = _Counts()

    def __repr__(self) -> str:
        return f"<RateLimiter {self.name}: {'; '.join(map(str, self.limits))}>"

    def try_acquire(self, key: str | tuple[object, ...] | None = None, *, cost: int | None = None) -> Decision:
        """Take `cost` tokens from the bucket of `key` if it holds them. Never waits, never raises for a denial.

        A cost of 0 looks without taking. Raises `StorageUnavailable` only for a storage without a stand-in.
        """
        scope = current_scope()
        subject = self._subject(key) if key is not None or self._key is not None else scope.caller()
        if len(subject) > LONGEST_KEY:
            subject = _shortened(subject)
        tokens = self._tokens() if cost is None else _checked_cost(cost)
        storage = self.storage if self.storage is not None else scope.storage
        # tuple.__new__: a named tuple's own constructor takes twice as long.
        decision = storage.take([tuple.__new__(Charge, (name, subject, limit, tokens)) for name, limit in self._scopes])
        if not decision.allowed:
            self._counts.denied += 1
        elif tokens:
            self._counts.allowed += 1
        scope.observe(self.name, self.title, decision)
        return decision

    def acquire(self, key: str | tuple[object, ...] | None = None, *, cost: int | None = None) -> Decision:
        """Take `cost` tokens or raise `RateLimited`, which carries the decision and the seconds to wait."""
        decision = self.try_acquire(key, cost=cost)
        if not decision.allowed:
            raise RateLimited(self.name, decision, title=self.title)
        return decision

    def __call__(self, function: Callable[P, T]) -> Callable[P, T]:
        """Guard `function`: every call takes from the bucket first and raises `RateLimited` when it is empty."""
        if inspect.iscoroutinefunction(function):
            raise TypeError(
                f"{_name_of(function)} is a coroutine function: call limiter.acquire() in it instead of decorating it"
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
        return LimiterSnapshot(
            self.name, tuple(map(str, self.limits)), storage.uri, self._counts.allowed, self._counts.denied
        )

    def count_with(self, other: RateLimiter) -> None:
        """Share the counts of `other`: two limiters of one name are listed as one."""
        self._counts = other._counts

    def _subject(self, key: str | tuple[object, ...] | None) -> str:
        if key is None:
            key = self._key() if callable(self._key) else self._key
        if isinstance(key, str):
            return key if type(key) is str else str.__str__(key)
        if isinstance(key, tuple):
            return "|".join(str(part).replace("\\", "\\\\").replace("|", "\\|") for part in key)
        raise TypeError(f"the key of rate limit {self.name!r} is {key!r}: a key is a string or a tuple")

    def _tokens(self) -> int:
        cost: Any = self._cost
        return _checked_cost(cost()) if callable(cost) else cost


class _Counts:
    """Decisions of one policy. Plain additions: exact under greenlets; under threads two that coincide may count once."""

    __slots__ = ("allowed", "denied")

    def __init__(self) -> None:
        self.allowed = 0
        self.denied = 0


_derived: dict[str, list[tuple[object, tuple[Limit, ...]]]] = {}


def _derived_name(function: Callable[..., Any], limits: tuple[Limit, ...]) -> tuple[str, str]:
    """Name and title of a limit that was given none.

    The same code under the same limits is the same policy, so that an application factory may run again. Other code of
    the same name (closures), or other limits, get a number.
    """
    title = str(getattr(function, "__name__", type(function).__name__))
    qualified = _name_of(function)
    # Flask names the views of its class-based views so; what they are in is the same for all of them.
    name = f"{getattr(function, '__module__', '')}.{qualified if qualified.endswith(title) else title}"
    identity = (getattr(function, "__code__", function), limits)
    siblings = _derived.setdefault(name, [])
    if identity not in siblings:
        siblings.append(identity)
    number = siblings.index(identity) + 1
    return (name, title) if number == 1 else (f"{name}#{number}", f"{title}-{number}")


def _name_of(function: Any) -> str:
    return str(getattr(function, "__qualname__", type(function).__qualname__))


def _shortened(subject: str) -> str:
    # Keys may come from callers: whatever they send, a bucket takes a bounded amount of memory.
    return "#" + hashlib.blake2b(subject.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


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

    `name` defaults to the function's qualified name with its module, made unique where several functions or limits have
    the same. Functions that are given one name share its buckets. Usable before an application exists and outside
    requests. The limiter itself is the attribute `limiter` of the decorated function.
    """
    if callable(limits):
        raise TypeError("rate_limit needs a limit: write @rate_limit('10/second')")

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        identity, title = (
            (name, name) if name is not None else _derived_name(function, parse_limits(limits, burst=burst))
        )
        limiter = RateLimiter(limits, name=identity, title=title, burst=burst, key=key, cost=cost, storage=storage)
        known = PROCESS_REGISTRY.limiters.get(identity)
        if isinstance(known, RateLimiter):
            limiter.count_with(known)  # one name is one policy, and is listed once
        PROCESS_REGISTRY.add_limiter(limiter)
        return limiter(function)

    return decorate
