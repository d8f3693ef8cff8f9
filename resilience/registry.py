"""Which policies exist. Decorators enter theirs in the registry of the process; an application may add its own."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from resilience.ports import LimitStorage, StateStorage

__all__ = ["PROCESS_REGISTRY", "Circuit", "Limiter", "Registry", "check_name"]

_DOTS = (".", "..")


class Circuit(Protocol):
    """What the registry and the admin endpoint need of a circuit breaker."""

    @property
    def name(self) -> str | None:
        """Under which it is listed."""

    def snapshot(self) -> Any:
        """Its state as a named tuple, with the fields of `CircuitSnapshot`."""

    def share(self, state_storage: StateStorage) -> None:
        """Keep it in this storage from now on, unless it was made with one of its own."""

    # What an operator orders. Each keeps the `reason` and the `author`; `expires_in` is in seconds, None: without an end.

    def open(self, *, reason: str = "", author: str = "", expires_in: float | None = None) -> object:
        """Reject calls from now on, until the open time is over."""

    def half_open(self, *, reason: str = "", author: str = "") -> None:
        """Let probes pass."""

    def close(self, *, reason: str = "", author: str = "") -> None:
        """Let calls pass."""

    def force_open(self, *, reason: str = "", author: str = "", expires_in: float | None = None) -> None:
        """Reject every call."""

    def force_closed(self, *, reason: str = "", author: str = "", expires_in: float | None = None) -> None:
        """Let every call pass, however many fail."""

    def disable(self, *, reason: str = "", author: str = "", expires_in: float | None = None) -> None:
        """Let every call pass and count none."""

    def metrics_only(self, *, reason: str = "", author: str = "", expires_in: float | None = None) -> None:
        """Let every call pass, and tell when the circuit would have opened."""

    def reset(self, *, reason: str = "", author: str = "") -> None:
        """Close and forget every count."""

    def forget(self) -> None:
        """Forget every count that this process has, and leave the circuit where it is."""


class Limiter(Protocol):
    """What the registry and the admin endpoint need of a rate limiter."""

    @property
    def name(self) -> str:
        """Under which it is listed."""

    def snapshot(self, *, default_storage: LimitStorage | None = None) -> Any:
        """Its counts as a named tuple; see `RateLimiter.snapshot`."""

    def available(self, *, default_storage: LimitStorage | None = None) -> int | None:
        """What is left in its bucket, if it has one for all; see `RateLimiter.available`."""


class Registry:
    """Policies by name. Safe to share between threads and greenlets."""

    def __init__(self, *, circuits: Iterable[Circuit] = (), limiters: Iterable[Limiter] = ()) -> None:
        self._lock = threading.Lock()
        self._circuits: dict[str, Circuit] = {}  # replaced, never changed: readers take no lock
        self._limiters: dict[str, Limiter] = {}
        self._state_storage: StateStorage | None = None  # of every circuit that has none of its own
        for circuit in circuits:
            self.add_circuit(circuit)
        for limiter in limiters:
            self.add_limiter(limiter)

    @property
    def circuits(self) -> Mapping[str, Circuit]:
        """Every circuit breaker by name."""
        return self._circuits

    @property
    def limiters(self) -> Mapping[str, Limiter]:
        """Every rate limiter by name."""
        return self._limiters

    def add_circuit(self, circuit: Circuit) -> None:
        """Enter a circuit breaker. Raises `ValueError` if it has no name, another one has it, or the admin endpoint could not
        be asked for it (`.` and `..` between slashes)."""
        name = circuit.name
        if not name:
            raise ValueError(f"{circuit!r} has no name: give it one, so that the admin endpoint can list it")
        check_name("circuit", name)
        with self._lock:
            known = self._circuits.get(name)
            if known is not None and known is not circuit:
                raise ValueError(f"another circuit is named {name!r} already: choose another name or share that one")
            self._circuits = {**self._circuits, name: circuit}
            state_storage = self._state_storage
        if state_storage is not None:
            circuit.share(state_storage)

    def share(self, state_storage: StateStorage) -> None:
        """Keep every circuit, those that are entered later included, in `state_storage`, unless it was made with one of its
        own. What is shared already moves there."""
        with self._lock:
            self._state_storage = state_storage
            circuits = list(self._circuits.values())
        for circuit in circuits:
            circuit.share(state_storage)

    def add_limiter(self, limiter: Limiter) -> None:
        """Enter a rate limiter. A later one of the same name takes its place: an application factory may run again. Raises
        `ValueError` for a name that the admin endpoint could not be asked for (`.` and `..` between slashes)."""
        check_name("rate limiter", limiter.name)
        with self._lock:
            self._limiters = {**self._limiters, limiter.name: limiter}

    def clear(self) -> None:
        """Forget all: for tests."""
        with self._lock:
            self._circuits, self._limiters, self._state_storage = {}, {}, None


def check_name(kind: str, name: str) -> None:
    """Raise `ValueError` for a name that no address of the admin endpoint can carry: `.` or `..`, also between slashes.

    Browsers, proxies and curl take these out of an address, however they are encoded, so that an order would go elsewhere.
    """
    if any(part in _DOTS for part in name.split("/")):
        raise ValueError(
            f"a {kind} cannot be named {name!r}: {' and '.join(map(repr, _DOTS))} lead elsewhere in the addresses of the admin "
            "endpoint; choose another name"
        )


PROCESS_REGISTRY = Registry()
"""Where decorators enter their policies."""
