"""What storages that stand in front of another one have in common."""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import weakref
from typing import Protocol

from resilience.core.limiter import Charge, Decision, Limit
from resilience.greenlets import INTERRUPTIONS
from resilience.ports import LimitStorage, Taker

__all__ = ["Attendant", "Attended", "Inherited", "ask_whether_it_takes", "forget_after_fork", "taker_of"]

_PROBE_LIMIT = Limit(10, 1)
_PROBE_SCOPE = f"probe:{secrets.token_hex(4)}"

_new = tuple.__new__


def taker_of(storage: LimitStorage, scope: str, limit: Limit, floor: int = 0, lease: int = 0) -> Taker:
    """The storage's own fast path for one charge, or its `take`."""
    make = getattr(storage, "taker", None)
    if make is not None:
        taker: Taker = make(scope, limit, floor, lease)
        return taker
    decide = storage.take

    def take(subject: str, cost: int) -> Decision:
        return decide((_new(Charge, (scope, subject, limit, cost, floor, lease)),))

    return take


def ask_whether_it_takes(storage: LimitStorage) -> None:
    """Return if `storage` takes charges. Raises `StorageUnavailable` otherwise.

    A storage that knows better how to find out has a method `probe`. Every other one is charged for real, on a bucket of
    this process's own that is gone after a second: a server that is read-only or full answers questions, too.
    """
    probe = getattr(storage, "probe", None)
    if probe is not None:
        probe()
    else:
        storage.take((Charge(f"{_PROBE_SCOPE}:{os.getpid()}", "probe", _PROBE_LIMIT, 1),))


class Attended(Protocol):
    """What an `Attendant` looks after."""

    def attend(self, attendant: Attendant) -> float | None:
        """Do what is to be done now. Seconds until the next time; None when it was the last."""

    def left(self, attendant: Attendant) -> None:
        """Told when the attendant is gone, whatever the reason, unless that was asked for."""


class Attendant:
    """A daemon thread that looks after something again and again, and does not keep it alive: what nobody else has any
    longer is forgotten within a pause. `pause` is in seconds, until the first time."""

    def __init__(self, attended: Attended, *, pause: float, name: str) -> None:
        self._attended = weakref.ref(attended)
        self._pause = pause
        self._name = name
        self._process = os.getpid()
        self._dismissed = threading.Event()

    def start(self) -> bool:
        """Start the thread. False when there is none to be had."""
        try:
            threading.Thread(target=self._run, daemon=True, name=self._name).start()
        except RuntimeError:
            return False
        return True

    def dismiss(self) -> None:
        """End the thread, soon."""
        self._dismissed.set()

    def _run(self) -> None:
        try:
            with contextlib.suppress(*INTERRUPTIONS):
                self._attend()
        finally:
            if os.getpid() != self._process:
                # Under greenlets a forked child has copies of its parent's. As a thread this one is not known there, and
                # would be complained about if it ended.
                threading.Event().wait()

    def _attend(self) -> None:
        pause: float | None = self._pause
        try:
            while pause is not None and not self._dismissed.wait(pause) and os.getpid() == self._process:
                attended = self._attended()
                pause = None if attended is None else attended.attend(self)
                del attended  # or it would be kept until the next time
        finally:
            attended = self._attended()
            if attended is not None and os.getpid() == self._process:
                attended.left(self)


class Inherited(Protocol):
    """Something that a forked child inherits and must not take for its own."""

    def after_fork(self) -> None:
        """Told in the child. No other thread of the parent exists there; a lock may have been held by one."""


_inherited: weakref.WeakSet[Inherited] = weakref.WeakSet()


def forget_after_fork(owner: Inherited) -> None:
    """Call `owner.after_fork` in every forked child, for as long as `owner` exists."""
    _inherited.add(owner)


def _tell_all() -> None:
    for owner in list(_inherited):
        owner.after_fork()


os.register_at_fork(after_in_child=_tell_all)
