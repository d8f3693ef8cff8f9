"""Messages of channels as the events of a stream."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import chain

from longconn.channels.ports import History, Message, Position
from longconn.core.event_stream import encode_event
from longconn.streaming.positions import write_positions

__all__ = ["MISSED", "Encode", "Encoding", "Event", "text_of"]

Encode = Callable[[Message], str]

MISSED = "missed"
"""The name of the event which says that messages were lost."""


def text_of(message: Message) -> str:
    """What a client that takes text gets: the data, and in base64 what was published as bytes."""
    data = message.data
    return data if isinstance(data, str) else base64.b64encode(data).decode("ascii")


class Event:
    """One event for clients that stand in several channels: what differs between them is its id, which has all their positions.

    Clients that have heard the same stand at the same place, so the text is made once for each place, and they share the tuple.
    """

    __slots__ = ("_channels", "_index", "_made", "_position", "_tail")

    def __init__(self, channels: Sequence[str], index: int, position: Position, tail: bytes) -> None:
        self._channels = channels
        self._index = index
        self._position = position
        self._tail = tail
        self._made: dict[tuple[Position, ...], tuple[tuple[Position, ...], bytes]] = {}

    def after(self, positions: tuple[Position, ...]) -> tuple[tuple[Position, ...], bytes]:
        """Where a client that stood at `positions` stands with this event, and the event as it gets it."""
        made = self._made.get(positions)
        if made is None:
            index = self._index
            reached = (*positions[:index], self._position, *positions[index + 1 :])
            frame = b"id: " + write_positions(self._channels, reached).encode("ascii") + b"\n" + self._tail
            made = self._made[positions] = (reached, frame)
        return made


class Encoding:
    """How the messages of `channels` look in one kind of stream. `encode(message)` gives the text, by default what was
    published. With one channel an event is bytes, the same for all; with several it is an `Event`."""

    __slots__ = ("_encode", "channels")

    def __init__(self, channels: tuple[str, ...] = (), encode: Encode | None = None) -> None:
        self.channels = channels
        self._encode: Encode = encode or text_of

    @property
    def may_wait(self) -> bool:
        """Whether it calls an application, which may let others run."""
        return self._encode is not text_of

    @property
    def several(self) -> bool:
        """Whether its clients are in more than one channel each."""
        return len(self.channels) > 1

    def encode(self, message: Message) -> bytes | Event:
        """The event of `message`."""
        event = message.event
        if event and ("\n" in event or "\r" in event):
            event = " ".join(event.split())
        return self._event(message.channel, message.position, self._encode(message), event)

    def missed(self, channel: str, position: Position) -> bytes | Event:
        """The event which says that messages of `channel` up to `position` are lost."""
        data = json.dumps({"channel": channel, "position": str(position)}, separators=(",", ":"))
        return self._event(channel, position, data, MISSED)

    def _event(self, channel: str, position: Position, data: str, event: str) -> bytes | Event:
        if not self.several:
            return encode_event(data, event=event, id=str(position))
        return Event(self.channels, self.channels.index(channel), position, encode_event(data, event=event))

    def following(
        self, channel: str, history: History, positions: tuple[Position, ...]
    ) -> Iterator[tuple[tuple[Position, ...], bytes]]:
        """What a client gets, event by event, that came back to `channel` at `positions` and found `history`, and where it
        stands with each. Clients of one channel have one position."""
        index = self.channels.index(channel) if self.several else 0
        found = [] if history.complete else [(before_first(history), self.missed(channel, before_first(history)))]
        for position, event in chain(found, ((message.position, self.encode(message)) for message in history.messages)):
            if isinstance(event, Event):
                yield event.after(positions)
            else:
                yield (position,), event
            positions = (*positions[:index], position, *positions[index + 1 :])


def before_first(history: History) -> Position:
    """The last position of which `history` has lost the message."""
    if not history.messages:
        return history.position
    epoch, number = history.messages[0].position
    return Position(epoch, max(0, number - 1))
