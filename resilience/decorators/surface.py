"""What one limiter and several together offer their callers."""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType, TracebackType
from typing import Any, ParamSpec, TypeVar

from resilience.clock import epoch_seconds
from resilience.core.events import LimitReset
from resilience.core.limiter import Decision
from resilience.decorators.attempt import Attempt
from resilience.decorators.buckets import peek, refund, reset
from resilience.decorators.claims import keyed
from resilience.decorators.policy import KeyLike, Policy, checked_wait
from resilience.events import PROCESS_EVENTS
from resilience.scope import current_scope

__all__ = ["COMBINERS", "Surface", "name_of"]

P = ParamSpec("P")
T = TypeVar("T")

COMBINERS: list[Callable[..., Surface]] = []
"""What makes one of several. It knows all that this module is below of, so it says itself that it is there."""

_GUARDED: weakref.WeakKeyDictionary[Callable[..., Any], tuple[Surface, Callable[..., Any]]] = (
    weakref.WeakKeyDictionary()
)
"""By each decorated function: by what it is limited, and what it calls. An attribute would not do: other decorators copy
those."""


class Surface:
    """The verbs of rate limits. All ask one question that is decided at once, over all limits, all or nothing."""

    policies: tuple[Policy, ...]
    """What decides, in order."""

    def attempt(self, key: KeyLike | None = None, *, cost: int | None = None, wait: float | None = 0.0) -> Attempt:
        """As `try_acquire`, with all that can still be done: see why it is refused, give back what it took."""
        attempt = Attempt(self.policies, key, cost, wait)
        attempt.wait()
        if not attempt.settle_later():
            attempt.settle_unseen()
        return attempt

    def try_acquire(self, key: KeyLike | None = None, *, cost: int | None = None) -> Decision:
        """Take `cost` tokens from the bucket of `key` if it holds them. Never waits, never raises for a denial.

        A cost of 0 looks without taking. Raises `StorageUnavailable` only for a storage without a stand-in.
        """
        return self.attempt(key, cost=cost).decision

    def acquire(self, key: KeyLike | None = None, *, cost: int | None = None, wait: float | None = None) -> Decision:
        """Take `cost` tokens or raise `RateLimited`, which carries the decision and the seconds to wait.

        Where the limit, or `wait` in its place, lets the caller wait for its turn, this returns when it has come. The turn
        is reserved at once, in the order of asking; whoever would have to wait longer is refused at once. A caller that is
        interrupted meanwhile gives its turn back.
        """
        attempt = self._admitted(key, cost, wait)
        if not attempt.decision.allowed:
            raise attempt.refuse()
        if not attempt.settle_later():
            attempt.settle_unseen()
        return attempt.decision

    def _admitted(self, key: KeyLike | None, cost: int | None, wait: float | None) -> Attempt:
        attempt = Attempt(self.policies, key, cost, None if wait is None else checked_wait(wait))
        attempt.wait()
        return attempt

    def peek(self, key: KeyLike | None = None, *, cost: int | None = None) -> Decision:
        """What `try_acquire` would say now. Takes nothing and counts nothing."""
        return peek(self.policies, key, cost)

    def refund(self, key: KeyLike | None = None, *, cost: int | None = None) -> None:
        """Give `cost` tokens back to the bucket of `key`, as if they had not been taken; a bucket is never more than full.

        Within any span of time, as much as was given back may pass on top of what the limit says. Raises
        `StorageUnavailable` only for a storage without a stand-in.
        """
        refund(self.policies, key, cost)

    def reset(self, key: KeyLike | None = None, *, author: str = "") -> None:
        """Fill the bucket of `key`; the event says that `author` did. Raises `StorageUnavailable` only for a storage without a
        stand-in."""
        reset(self.policies, key)
        scope = current_scope()
        for policy, given in keyed(self.policies, key):
            subject = policy.subject(given, scope)
            PROCESS_EVENTS.emit(LimitReset(policy=policy.name, at=epoch_seconds(), key=subject, author=author))

    def __enter__(self) -> Decision:
        """`with limiter:` takes as `acquire` does. Leaving gives nothing back: a limit counts what begins."""
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is held."""

    @contextmanager
    def held(
        self, key: KeyLike | None = None, *, cost: int | None = None, wait: float | None = None
    ) -> Iterator[Decision]:
        """`with limiter.held(key, cost=2) as decision:`, for what `with limiter:` cannot say."""
        yield self.acquire(key, cost=cost, wait=wait)

    def __call__(self, function: Callable[P, T]) -> Callable[P, T]:
        """Guard `function`: every call takes first, and raises `RateLimited` when it may not be made.

        A function that is nothing but guarded by another limit is guarded by both at once, if they can be decided so.
        """
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            kind = "a coroutine" if inspect.iscoroutinefunction(function) else "an async generator"
            raise TypeError(
                f"{name_of(function)} is {kind} function: call limiter.acquire() in it instead of decorating it"
            )
        limiter, called = self._joined(function)
        limited = functools.wraps(function)(limiter._guarded(called))  # noqa: SLF001  # one of its own kind
        limited.limiter = limiter  # type: ignore[attr-defined]  # lets callers reach the policy of a view
        _GUARDED[limited] = limiter, called
        return limited

    def _joined(self, function: Callable[P, T]) -> tuple[Surface, Callable[P, T]]:
        """What limits `function`, and what is to be called: with the limit that it has already, if both can be one."""
        # What is no plain function is none of ours, and may have no hash.
        known = _GUARDED.get(function) if isinstance(function, FunctionType) else None
        if known is None:
            return self, function
        inner, called = known
        if not all(policy.takes_at_once for policy in (*self.policies, *inner.policies)):
            return self, function
        try:
            return COMBINERS[0](self, inner), called
        except ValueError:
            return self, function  # kept elsewhere, say: each decides for itself, this one first

    def _guarded(self, function: Callable[P, T]) -> Callable[P, T]:
        def limited(*args: P.args, **kwargs: P.kwargs) -> T:
            attempt = self._admitted(None, None, None)
            if not attempt.decision.allowed:
                rejection = attempt.refuse()
                if attempt.is_replaced:
                    return attempt.replacement()  # type: ignore[no-any-return]  # what on_breach gives in place of a result
                raise rejection
            settled = attempt.settle_later()
            result = function(*args, **kwargs)
            if not settled:
                attempt.settle(result)
            return result

        return limited


def name_of(function: Any) -> str:
    """What to call a function in a message."""
    return str(getattr(function, "__qualname__", type(function).__qualname__))
