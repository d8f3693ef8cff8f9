"""What an application may choose for the WebSockets of one endpoint."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from math import isfinite
from typing import Any, Literal, Self

from longconn.core.messages import MessageLimits
from longconn.core.outbox import OVERFLOWS

__all__ = ["Overflow", "WebSocketOptions"]

Overflow = Literal["disconnect", "drop-oldest", "conflate"]

_DAY = 86_400.0
_LARGEST = 1 << 40


@dataclass(frozen=True, slots=True, kw_only=True)
class WebSocketOptions:
    """The limits and habits of an endpoint's connections. Raises `ValueError` for what is out of range, with what is accepted.

    What a client may send: `message_bytes` is the largest message (inflated, too; above it the connection is closed with 1009),
    `fragments` the most pieces of one; `messages_per_second` is a limit for each connection such as "100/second" (above it:
    1008; "" for none).

    What a client must take: at most `queue_bytes` wait behind the message that is being written. When more would wait,
    `overflow` decides: "disconnect" closes the connection with `overflow_code`; "drop-oldest" throws away the oldest that
    have not begun; "conflate" lets a message take the place of the one of the same key that waits, and disconnects when that
    is not enough.

    Whether it lives: a ping goes out every `ping_interval` seconds (0 for none), and something must come back within
    `ping_timeout`. `idle_timeout` closes a connection (1000) that has said nothing for so long, pongs not counted; 0 for never.
    `close_timeout` is how long a close waits for the client's own.

    How it speaks: `compression` offers permessage-deflate, for messages of at least `compression_from` bytes. `allowed_origins`
    are pages of other origins that may connect; None: those of LONGCONN_ALLOWED_ORIGINS. `subprotocols` are those that the
    endpoint speaks, the one that it prefers first.
    """

    message_bytes: int = 1_048_576
    fragments: int = 1_024
    messages_per_second: str = ""
    queue_bytes: int = 1_048_576
    overflow: Overflow = "disconnect"
    overflow_code: int = 1013
    ping_interval: float = 25.0
    ping_timeout: float = 10.0
    idle_timeout: float = 0.0
    compression: bool = False
    compression_from: int = 256
    allowed_origins: tuple[str, ...] | None = None
    subprotocols: tuple[str, ...] = ()
    close_timeout: float = 5.0

    def __post_init__(self) -> None:
        self._check_whole("message_bytes", 1)
        self._check_whole("fragments", 1)
        self._check_whole("queue_bytes", 0)
        self._check_whole("compression_from", 0)
        self._check_seconds("ping_interval", 0.0)
        self._check_seconds("ping_timeout", 0.1)
        self._check_seconds("idle_timeout", 0.0)
        self._check_seconds("close_timeout", 0.1)
        if self.overflow not in OVERFLOWS:
            raise ValueError(f"overflow={self.overflow!r}: it is one of {', '.join(OVERFLOWS)}")
        if self.overflow_code not in (1008, 1013) and not 3000 <= self.overflow_code <= 4999:
            raise ValueError(f"overflow_code={self.overflow_code!r}: it is 1013, 1008 or one from 3000 to 4999")
        if not isinstance(self.messages_per_second, str):
            raise ValueError(  # noqa: TRY004 - one kind of error for whatever is wrong with an option
                f'messages_per_second={self.messages_per_second!r}: it is a limit such as "100/second", or ""'
            )
        for name in ("subprotocols", "allowed_origins"):
            self._check_texts(name)

    def _check_whole(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if type(value) is not int or not least <= value <= _LARGEST:
            raise ValueError(f"{name}={value!r}: it is a whole number from {least} to {_LARGEST}")

    def _check_seconds(self, name: str, least: float) -> None:
        value = getattr(self, name)
        if (
            not isinstance(value, int | float)
            or isinstance(value, bool)
            or not (isfinite(value) and (least <= value <= _DAY))
        ):
            raise ValueError(f"{name}={value!r}: it is a number of seconds from {least:g} to {_DAY:g}")

    def _check_texts(self, name: str) -> None:
        value: Any = getattr(self, name)
        if value is None and name == "allowed_origins":
            return
        if isinstance(value, str) or not isinstance(value, Iterable):
            raise ValueError(f"{name}={value!r}: it is several texts, such as [{value!r}]")  # noqa: TRY004 - as above
        texts = tuple(value)
        if not all(isinstance(text, str) and text for text in texts):
            raise ValueError(f"{name}={value!r}: it is several texts, none of them empty")
        object.__setattr__(self, name, texts)

    @classmethod
    def of(cls, options: dict[str, Any]) -> Self:
        """Those of a caller's keyword arguments. Raises `TypeError` for a name that is none, with those that are."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(options) - known)
        if unknown:
            raise TypeError(f"no option {', '.join(unknown)}: there are {', '.join(sorted(known))}")
        return cls(**options)

    @property
    def limits(self) -> MessageLimits:
        """What one message of a client may be."""
        return MessageLimits(message_bytes=self.message_bytes, fragments=self.fragments)
