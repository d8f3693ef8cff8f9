"""A clock that stands still, and a listener that remembers."""

from __future__ import annotations

from typing import Any

import pybreaker

__all__ = ["FakeClock", "RecordingListener"]


class FakeClock:
    """A clock that moves only when told to, also backwards. Starts at `start` seconds."""

    def __init__(self, start: float = 1_000.0) -> None:
        self._microseconds = round(start * 1_000_000)

    def seconds(self) -> float:
        """Now, in seconds."""
        return self._microseconds / 1_000_000

    def microseconds(self) -> int:
        """Now, in whole microseconds."""
        return self._microseconds

    def sleep(self, seconds: float) -> None:
        """Move by `seconds` at once."""
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        """Move by `seconds`, which may be negative."""
        self._microseconds += round(seconds * 1_000_000)


class RecordingListener(pybreaker.CircuitBreakerListener):
    """Remembers what a circuit breaker told it, in order, in `heard`."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, ...]] = []

    def before_call(self, cb: Any, func: Any, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002  # pybreaker's signature
        """A call was admitted."""
        self.heard.append(("before_call",))

    def success(self, cb: Any) -> None:  # noqa: ARG002
        """A call succeeded."""
        self.heard.append(("success",))

    def failure(self, cb: Any, exc: BaseException) -> None:  # noqa: ARG002
        """A call failed."""
        self.heard.append(("failure", type(exc).__name__))

    def state_change(self, cb: Any, old_state: Any, new_state: Any) -> None:  # noqa: ARG002
        """The circuit moved."""
        self.heard.append(("state_change", old_state.name if old_state else "", new_state.name))
