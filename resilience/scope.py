"""What surrounds the current call: which storage its limits use, who is calling, who wants to know the decision.

An edge (the Flask extension) adds a resolver; without one, or outside its contexts, the process itself is the scope.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

from resilience.core.limiter import Decision
from resilience.errors import RateLimited
from resilience.ports import LimitStorage, Scope, Stance
from resilience.storage.address import open_storage

__all__ = ["PROCESS", "RESOLVERS", "ProcessScope", "caller_key", "current_scope", "resolve_scope_with"]


class ProcessScope:
    """The scope of calls that belong to no application: one storage and one caller for the whole process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._storage: LimitStorage | None = None  # guarded by _lock

    @property
    def storage(self) -> LimitStorage:
        """The one that `adopt` offered first, else the storage at RESILIENCE_STORAGE_URI, else `memory://`."""
        storage = self._storage
        if storage is None:
            on_failure: Any = os.environ.get("RESILIENCE_ON_STORE_FAILURE") or "local"
            opened = open_storage(os.environ.get("RESILIENCE_STORAGE_URI") or "memory://", on_store_failure=on_failure)
            with self._lock:
                if self._storage is None:
                    self._storage = opened
                storage = self._storage
        return storage

    def adopt(self, storage: LimitStorage) -> None:
        """Use an application's storage outside its contexts too, so that its background work shares its buckets.

        The first one offered stays.
        """
        with self._lock:
            if self._storage is None:
                self._storage = storage

    def forget(self) -> None:
        """Let go of the storage: for tests, and after a fork."""
        with self._lock:
            self._storage = None

    def caller(self) -> str:
        """Everyone is one caller."""
        return "process"

    def method(self) -> str | None:
        """There is no request."""
        return None

    def stance(self) -> Stance:
        """Limits hold."""
        return "enforce"

    def observe(self, policy: str, titles: tuple[str, ...], decision: Decision) -> None:
        """Nobody to tell."""

    def refuse(self, rejection: RateLimited) -> None:
        """The exception itself is the answer."""

    def replacement(self, rejection: RateLimited) -> Any:
        """What `on_breach` gave."""
        return rejection.response

    def settle(self, then: Callable[[Any], None]) -> bool:  # noqa: ARG002  # the Protocol's signature
        """There is no response to wait for."""
        return False


PROCESS = ProcessScope()
RESOLVERS: list[Callable[[], Scope | None]] = []
"""Asked in turn. Empty in a program without an edge: then the scope is `PROCESS`, and asking costs nothing."""


def resolve_scope_with(resolver: Callable[[], Scope | None]) -> None:
    """Ask `resolver` for the scope of each call first. It answers None when the call is none of its own."""
    if resolver not in RESOLVERS:
        RESOLVERS.append(resolver)


def current_scope() -> Scope:
    """The scope of the current call."""
    for resolver in RESOLVERS:
        scope = resolver()
        if scope is not None:
            return scope
    return PROCESS


def caller_key() -> str:
    """The key of whoever is calling, as limits without a key of their own use it: the client's address in a request.

    For keys of several parts: `key=lambda: (user_name(), caller_key())`.
    """
    return current_scope().caller()
