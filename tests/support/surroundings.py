"""A scope that a test dictates, in the place of a web application's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from resilience.core.limiter import Decision
from resilience.errors import RateLimited
from resilience.ports import LimitStorage, Stance
from resilience.scope import RESOLVERS

__all__ = ["Surroundings", "surrounded_by"]


class Surroundings:
    """A request by `address` with `verb`, whose response comes when the test calls `respond`."""

    def __init__(self, storage: LimitStorage, *, address: str = "192.0.2.1", verb: str | None = "GET") -> None:
        self.storage = storage
        self.address = address
        self.verb = verb
        self.wanted: Stance = "enforce"
        self.observed: list[tuple[str, tuple[str, ...], Decision]] = []
        self.refused: list[RateLimited] = []
        self.response: Any = None
        self._settling: list[Callable[[Any], None]] = []

    def caller(self) -> str:
        return self.address

    def method(self) -> str | None:
        return self.verb

    def stance(self) -> Stance:
        return self.wanted

    def observe(self, policy: str, titles: tuple[str, ...], decision: Decision) -> None:
        self.observed.append((policy, titles, decision))

    def refuse(self, rejection: RateLimited) -> None:
        self.refused.append(rejection)
        if self.response is not None:
            rejection.response = self.response

    def replacement(self, rejection: RateLimited) -> Any:
        return rejection.response

    def settle(self, then: Callable[[Any], None]) -> bool:
        self._settling.append(then)
        return True

    def respond(self, response: Any) -> None:
        """The response is made."""
        settling, self._settling = self._settling, []
        for then in settling:
            then(response)


@contextmanager
def surrounded_by(scope: Surroundings) -> Iterator[Surroundings]:
    """All calls happen in `scope`."""

    def resolve() -> Surroundings:
        return scope

    RESOLVERS.insert(0, resolve)
    try:
        yield scope
    finally:
        RESOLVERS.remove(resolve)
