"""What an application may choose for an event stream."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Any

from longconn.core.outbox import OVERFLOWS

__all__ = ["EventStreamOptions"]

_DAY = 86_400.0
_LARGEST = 1 << 40


@dataclass(frozen=True, slots=True, kw_only=True)
class EventStreamOptions:
    """The habits of an event stream. Raises `ValueError` for what is out of range, with what is accepted.

    `retry` is how many seconds (0 to 86400) a client waits before it comes back.

    `heartbeat`: after so many seconds (1 to 3600) a comment goes out, by which proxies and the client see that the stream
    lives, and by which a client is noticed that has vanished: what it has not acknowledged when the next one is due ends its
    stream.

    `queue_bytes` (0 or more) wait at most behind the event that is being written. When more would wait, `overflow` decides:
    "disconnect" ends the stream, and the client comes back and reads on where it was; "drop-oldest" throws away the oldest
    events; "conflate" lets an event take the place of the one of the same key, and disconnects when that is not enough.
    """

    retry: float = 3.0
    heartbeat: float = 15.0
    queue_bytes: int = 1_048_576
    overflow: str = "disconnect"

    def __post_init__(self) -> None:
        _check_seconds("retry", self.retry, 0.0, _DAY)
        _check_seconds("heartbeat", self.heartbeat, 1.0, 3600.0)
        if type(self.queue_bytes) is not int or not 0 <= self.queue_bytes <= _LARGEST:
            raise ValueError(f"queue_bytes={self.queue_bytes!r}: it is a whole number from 0 to {_LARGEST}")
        if self.overflow not in OVERFLOWS:
            raise ValueError(f"overflow={self.overflow!r}: it is one of {', '.join(OVERFLOWS)}")


def _check_seconds(name: str, value: Any, least: float, most: float) -> None:
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not (isfinite(value) and least <= value <= most)
    ):
        raise ValueError(f"{name}={value!r}: it is a number of seconds from {least:g} to {most:g}")
