"""What lasts longer than a function call: generators under a guard, and calls inside of a probe."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from contextvars import ContextVar
from typing import Any, Protocol

__all__ = ["Guard", "GuardedGenerator", "is_within", "within"]

_under_way: ContextVar[tuple[tuple[object, object], ...]] = ContextVar("probes_under_way", default=())
"""The half-open circuits inside of which the current call runs, each with the time of its life: what it calls under the same
circuit belongs to the same probe."""


@contextlib.contextmanager
def within(breaker: object, present: object) -> Iterator[None]:
    """The block is a probe of `breaker`, at `present`."""
    token = _under_way.set((*_under_way.get(), (breaker, present)))
    try:
        yield
    finally:
        # A block inside of a generator may end in another context than it began in, which has nothing to put back.
        with contextlib.suppress(ValueError):
            _under_way.reset(token)


def is_within(breaker: object, present: object) -> bool:
    """Whether the current call runs inside of a probe of `breaker` at `present`."""
    return any(each[0] is breaker and each[1] is present for each in _under_way.get())


class Guard(Protocol):
    """What is told how a call has ended. Exactly one of these is called, once."""

    def succeed(self) -> None:
        """It came to its end."""

    def fail(self, error: BaseException) -> None:
        """It raised. May raise in its place."""

    def leave(self) -> None:
        """It was broken off by who asked for it."""

    def abandon(self) -> None:
        """The garbage collector found it. Any lock may be held: nothing may be waited for."""


class GuardedGenerator(Generator[Any, Any, Any]):
    """A generator whose call is settled when it ends, however it ends."""

    def __init__(self, guard: Guard, generator: Generator[Any, Any, Any]) -> None:
        self._guard: Guard | None = guard
        self._generator = generator

    def send(self, value: Any) -> Any:
        try:
            return self._generator.send(value)
        except StopIteration:
            self._succeed()
            raise
        except BaseException as error:
            self._fail(error)
            raise

    def throw(self, *error: Any) -> Any:
        try:
            return self._generator.throw(*error)
        except StopIteration:
            self._succeed()
            raise
        except BaseException as raised:
            self._fail(raised)
            raise

    def close(self) -> None:
        try:
            self._generator.close()
        finally:
            guard, self._guard = self._guard, None
            if guard is not None:
                guard.leave()

    def __del__(self) -> None:
        # Never started, or dropped half-way: a permit that is not given back would be a probe lost.
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.abandon()

    def _succeed(self) -> None:
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.succeed()

    def _fail(self, error: BaseException) -> None:
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.fail(error)
