"""Channels in memory, for tests of what is built on them: kept in order, carried to nobody."""

from __future__ import annotations

from longconn.channels.ports import History, Message, Position

__all__ = ["HeldChannels"]


class HeldChannels:
    """Keeps what is published. `failure` is raised instead, when there is one; `complete` is what histories say."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.failure: Exception | None = None
        self.complete = True

    @property
    def position(self) -> Position:
        """Of the newest message."""
        return Position(5, len(self.messages))

    def publish(self, channel: str, data: str, *, event: str = "", key: str = "") -> Position:
        if self.failure is not None:
            raise self.failure
        self.messages.append(Message(channel, Position(5, len(self.messages) + 1), data, event, key, 12.3456))
        return self.position

    def history(self, channel: str, since: Position | None = None, most: int | None = None) -> History:
        if self.failure is not None:
            raise self.failure
        held = [each for each in self.messages if since is None or each.position > since]
        return History(tuple(held[-most:] if most else held), complete=self.complete, position=self.position)
