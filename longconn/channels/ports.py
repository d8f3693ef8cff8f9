"""What channels need of those that carry their messages, and of those that get them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, Self

__all__ = ["Broker", "Following", "Held", "History", "HistoryLimits", "Message", "News", "Position", "Wire"]


class Position(NamedTuple):
    """Where in a channel a message stands. Positions of one channel only grow.

    `epoch` names the storage's life: it is another one (and greater) after the storage was lost, so that an old position is
    never taken for a new one. `number` counts the messages of the channel from 1, without gaps; 0 is before the first.
    """

    epoch: int
    number: int

    def __str__(self) -> str:
        return f"{self.epoch:x}-{self.number}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The position that `str()` wrote. Raises `ValueError` for anything else."""
        epoch, dash, number = text.partition("-")
        if not (dash and 0 < len(epoch) <= 16 and 0 < len(number) <= 18 and number.isascii() and number.isdigit()):
            raise ValueError(f"not a position in a channel: {text[:40]!r}; it looks like 18f2a3b4c5-17")
        if not all(character in "0123456789abcdef" for character in epoch):
            raise ValueError(f"not a position in a channel: {text[:40]!r}; it looks like 18f2a3b4c5-17")
        return cls(int(epoch, 16), int(number))


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a channel. `data` is text or bytes; `event` names its kind (an SSE client's event name); messages of
    the same `key` replace each other in a queue that conflates; `at` is when it was published, in seconds since the
    epoch."""

    channel: str
    position: Position
    data: str | bytes
    event: str = ""
    key: str = ""
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class HistoryLimits:
    """What a channel keeps: at most `count` messages of `size` bytes together, none older than `age` seconds. With a count
    of 0 it keeps none."""

    count: int = 100
    size: int = 1_048_576
    age: float = 300.0


@dataclass(frozen=True, slots=True)
class History:
    """What a channel still holds after a position, oldest first. `complete` says whether nothing that came after the
    position is missing; `position` is the channel's newest, also where nothing is held."""

    messages: tuple[Message, ...]
    complete: bool
    position: Position


@dataclass(frozen=True, slots=True)
class News:
    """What has been published on any channel after a place in the broker's common order, oldest first.

    `cursor` is the place to ask from next. `missed`: some of it was thrown away before it was read here."""

    messages: tuple[Message, ...]
    cursor: int
    missed: bool = False


@dataclass(frozen=True, slots=True)
class Held:
    """What the broker keeps of one channel: its newest position, how many messages (`count`, of `size` bytes together), and
    when the newest was published, in seconds since the epoch."""

    channel: str
    position: Position
    count: int
    size: int
    at: float


class Following(Protocol):
    """One that is told of publications."""

    @property
    def name(self) -> str:
        """What the broker calls it: no other has this name at the same time."""
        ...

    @property
    def ended(self) -> bool:
        """Whether it is told no longer, stopped or not."""
        ...

    def start(self) -> None:
        """Begin to be told."""
        ...

    def stop(self) -> None:
        """Be told no longer. May be called twice."""
        ...


class Broker(Protocol):
    """Carries messages between the workers, and keeps each channel's history.

    Calls come from any thread, and return at once. All of them may raise `ChannelsUnavailable`. One made before a fork
    serves the child, too.
    """

    @property
    def epoch(self) -> int:
        """The present life of the storage."""
        ...

    @property
    def largest(self) -> int:
        """Bytes of data that one message may have."""
        ...

    def publish(
        self,
        channel: str,
        data: str | bytes,
        *,
        event: str = "",
        key: str = "",
        history: HistoryLimits,
        at: float,
    ) -> Message:
        """Add a message: for all, once, in one order for each channel. Raises `MessageRefused` for one that is too
        large."""
        ...

    def cursor(self) -> int:
        """The place after the newest message of all."""
        ...

    def news(self, cursor: int, *, most: int = 1000) -> News:
        """What came after `cursor`, at most `most` messages (fewer where they are large, one at least)."""
        ...

    def position(self, channel: str) -> Position:
        """The newest position of `channel`."""
        ...

    def history(self, channel: str, since: Position | None, *, most: int | None = None, now: float) -> History:
        """What `channel` holds after `since` (None: from its beginning, and then always complete), at most the newest
        `most`."""
        ...

    def channels(self, *, most: int = 1000) -> tuple[Held, ...]:
        """The channels that anything is known of, by name, at most `most` of them."""
        ...

    def follow(self, heard: Callable[[], None]) -> Following:
        """Have `heard` called, once `start` of what this returns is: at once, soon after each publication by whomever (once
        for several that come together), and now and then without one; always by one thread of its own (a greenlet where
        threads are greenlets)."""
        ...

    def followers(self) -> Mapping[str, int]:
        """Everybody on this broker who follows at present: the process ids by name."""
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...


class Wire(Protocol):
    """How one kind of subscriber hears: a message is encoded once and written to all of the kind that this worker has."""

    def encode(self, message: Message) -> Any:
        """What `write` needs; called once for each message and wire."""
        ...

    def write(self, subscribers: Sequence[Any], first: int, encoded: Any, message: Message, until: float) -> int:
        """Write to `subscribers[first:]`, without waiting for any, and stop when time.monotonic() passes `until` (looked at
        now and then, after one at least). Returns the index of the first that was not written to; `len(subscribers)` when
        all were."""
        ...

    def missed(self, subscriber: Any, channel: str, position: Position) -> None:
        """Some messages of `channel`, none of them newer than `position`, did not reach this subscriber and are held no
        longer: tell it. What it gets next comes after `position`."""
        ...
