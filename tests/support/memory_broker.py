"""A broker in memory, of one process: whoever follows it hears of a publication before `publish` returns."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from longconn.channels.ports import Held, History, HistoryLimits, Message, News, Position

__all__ = ["MemoryBroker"]


class MemoryBroker:
    """Keeps everything. `lose(count)` throws the oldest of the journal and of every history away."""

    def __init__(self, epoch: int = 0x18F) -> None:
        self.epoch = epoch
        self.largest = 4 << 20
        self.journal: list[Message] = []
        self.histories: defaultdict[str, list[Message]] = defaultdict(list)
        self.numbers: defaultdict[str, int] = defaultdict(int)
        self.quiet = False
        """Whether publications are told to nobody, until the next one that is."""
        self._followers: list[_Follower] = []

    def publish(
        self, channel: str, data: str | bytes, *, event: str = "", key: str = "", history: HistoryLimits, at: float
    ) -> Message:
        self.numbers[channel] += 1
        message = Message(channel, self.position(channel), data, event, key, at)
        self.journal.append(message)
        self.histories[channel] = [*self.histories[channel], message][-history.count :] if history.count else []
        if not self.quiet:
            self.tell()
        return message

    def tell(self) -> None:
        """Have those who follow look."""
        for follower in self._followers[:]:
            follower.heard()

    def lose(self, channel: str) -> None:
        """Throw away what is held of `channel`, in the journal too."""
        self.journal = [message for message in self.journal if message.channel != channel]
        self.histories[channel].clear()

    def cursor(self) -> int:
        return len(self.journal)

    def news(self, cursor: int, *, most: int = 1000) -> News:
        messages = tuple(self.journal[cursor : cursor + most])
        return News(messages, cursor + len(messages))

    def position(self, channel: str) -> Position:
        return Position(self.epoch, self.numbers[channel])

    def history(self, channel: str, since: Position | None, *, most: int | None = None, now: float) -> History:
        held = tuple(self.histories[channel])
        newest = self.position(channel)
        if since is None:
            return History(held[-most:] if most else held, complete=True, position=newest)
        after = tuple(message for message in held if message.position > since)
        oldest = held[0].position.number if held else newest.number + 1
        complete = since.epoch == self.epoch and since.number >= oldest - 1
        return History(after[-most:] if most else after, complete=complete, position=newest)

    def channels(self, *, most: int = 1000) -> tuple[Held, ...]:
        return tuple(
            Held(name, self.position(name), len(messages), 0, 0.0) for name, messages in sorted(self.histories.items())
        )[:most]

    def follow(self, heard: Callable[[], None]) -> Any:
        return _Follower(self._followers, heard)

    def followers(self) -> Mapping[str, int]:
        return {follower.name: os.getpid() for follower in self._followers}

    def close(self) -> None:
        self._followers.clear()


class _Follower:
    name = "the only one"
    ended = False

    def __init__(self, all_of_them: list[_Follower], heard: Callable[[], None]) -> None:
        self.heard = heard
        self._all = all_of_them

    def start(self) -> None:
        self._all.append(self)

    def stop(self) -> None:
        if self in self._all:
            self._all.remove(self)
