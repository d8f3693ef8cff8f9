"""Passwords as Argon2id hashes, computed in native threads: one takes tens of milliseconds of a core."""

from __future__ import annotations

import os
import secrets
import sys
import threading
from collections.abc import Callable
from typing import TypeVar

import argon2
import structlog
from argon2.exceptions import InvalidHashError, VerificationError, VerifyMismatchError

from service.errors import Overloaded
from service.threads import LineIsFull, NativeThreads

__all__ = ["PARAMETERS", "PasswordHasher"]

T = TypeVar("T")

PARAMETERS = argon2.Parameters(
    type=argon2.Type.ID, version=19, salt_len=16, hash_len=32, time_cost=2, memory_cost=19_456, parallelism=1
)
"""OWASP's baseline. 19 MiB for each thread of each worker stay affordable, and one lane takes one core, not several."""

RETRY_AFTER = 1.0
LOWEST_PRIORITY = 19

log = structlog.get_logger(__name__)


class PasswordHasher:
    """`PasswordHasher` of the ports. `threads` passwords are worked on at once, `waiting` more may stand in line."""

    def __init__(self, *, threads: int, waiting: int, parameters: argon2.Parameters = PARAMETERS) -> None:
        self._argon2 = argon2.PasswordHasher.from_parameters(parameters)
        self._threads = NativeThreads(threads, waiting=waiting)
        self._nobodys_hash = self._argon2.hash(secrets.token_urlsafe())

    def hash(self, password: str) -> str:
        """The salted hash, in PHC string format. Raises `Overloaded` when the line is full."""
        return self._in_thread(lambda: self._argon2.hash(password))

    def verify(self, password_hash: str | None, password: str) -> bool:
        """Whether the password matches. None costs the same time and is False. Raises `Overloaded` as `hash` does."""
        stored = self._nobodys_hash if password_hash is None else password_hash
        try:
            matches = self._in_thread(lambda: self._matches(stored, password))
        except (InvalidHashError, VerificationError):
            log.exception("a stored password hash cannot be read; give its owner a new password")
            return False
        return matches and password_hash is not None

    def close(self) -> None:
        """Finish the passwords under way and end the threads."""
        self._threads.close()

    def _matches(self, password_hash: str, password: str) -> bool:
        try:
            return self._argon2.verify(password_hash, password)
        except VerifyMismatchError:
            return False

    def _in_thread(self, work: Callable[[], T]) -> T:
        try:
            return self._threads.run(lambda _: _behind_the_loop(work))
        except LineIsFull as error:
            raise Overloaded(
                "Too many passwords are being checked right now. Try again in a moment.", retry_after=RETRY_AFTER
            ) from error


def _behind_the_loop(work: Callable[[], T]) -> T:
    """Do `work` at the lowest priority: where all cores are busy hashing, the event loops must not wait their turn."""
    if sys.platform == "linux":  # elsewhere a thread has no priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)
    return work()
