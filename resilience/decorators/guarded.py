"""What lasts longer than a function call: generators under a guard, and calls inside of a probe."""

from __future__ import annotations

import contextlib
import inspect
import sys
import weakref
from collections.abc import Generator
from contextvars import ContextVar
from types import FrameType, TracebackType
from typing import Any, Final, Protocol

__all__ = ["Guard", "GuardedGenerator", "Probing", "Within", "is_within"]

_SUSPENDABLE: Final = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
_OPENER: Final = contextlib._GeneratorContextManager.__enter__.__code__  # noqa: SLF001  # the only name that it has
"""Who runs a context manager that is written as a generator, until its block begins."""


class Probing(Protocol):
    """A probe under way."""

    present: Any
    """What the circuit was when it began."""
    is_told: bool
    """Whether it is over: its result is known."""


class Within:
    """A context manager: the block is `probe`, and what it calls under the same circuit belongs to that. A `block` is the
    caller's own, and not a function that is called: where it is part of a generator, only what runs while the generator does is
    inside of it, and not whoever asks the generator for its next value.
    """

    __slots__ = ("_generator", "_probe")

    def __init__(self, probe: Probing, *, block: bool = False) -> None:
        # Nobody is kept by being remembered here: not a probe, which comes back when it is forgotten, nor a generator, which is
        # known by its number.
        self._probe = weakref.ref(probe)
        self._generator = _generator_around(sys._getframe(1)) if block else None  # noqa: SLF001  # no other way

    def __enter__(self) -> None:
        _under_way.set((*_alive(), self))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A block inside of a generator may end in another context than it began in, or after one that began later. Then it
        # is left in the first one, and means nothing when its probe is over.
        _under_way.set(tuple(each for each in _alive() if each is not self))

    @property
    def is_over(self) -> bool:
        """Whether the probe is."""
        probe = self._probe()
        return probe is None or probe.is_told

    def covers(self, present: object) -> bool:
        """Whether who asks runs inside of the block, and it is a probe of this very state."""
        probe = self._probe()
        return probe is not None and probe.present is present and not probe.is_told and self._is_running()

    def _is_running(self) -> bool:
        if self._generator is None:
            return True
        frame: FrameType | None = sys._getframe(1)  # noqa: SLF001  # as above
        while frame is not None and id(frame) != self._generator:
            frame = frame.f_back
        return frame is not None


_under_way: ContextVar[tuple[Within, ...]] = ContextVar("probes_under_way", default=())
"""The probes inside of which the current call may run."""


def is_within(present: object) -> bool:
    """Whether the current call runs inside of a probe of `present`, which is a circuit between two moves."""
    return any(each.covers(present) for each in _under_way.get())


def _alive() -> tuple[Within, ...]:
    return tuple(each for each in _under_way.get() if not each.is_over)


def _generator_around(frame: FrameType | None) -> int | None:
    """The number of the innermost frame that may be left in the middle and gone on with later, if there is one. That of a
    context manager is not looked at: it waits while its block runs."""
    while frame is not None:
        above = frame.f_back
        if frame.f_code.co_flags & _SUSPENDABLE and (above is None or above.f_code is not _OPENER):
            return id(frame)
        frame = above
    return None


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
