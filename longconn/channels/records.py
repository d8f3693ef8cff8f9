"""How messages and channels are written down: bytes from values and values from bytes, nothing else.

A message is a header, then channel, event, key and data one after the other. The database keeps it as one or more parts of
`PART` bytes, each of which fits into one page of its own: with pages of one size there is always one that fits, however
messages of many sizes come and go. The first part has the message's key in the database, each further part that key and its
own number.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from longconn.channels.errors import MessageRefused
from longconn.channels.ports import Message, Position

__all__ = ["PART", "About", "State", "data_length", "moment", "pack", "part_keys", "parts", "place", "unpack"]

PART: Final = 4080
"""Bytes of a page of 4,096 without its header of 16."""

_HEADER: Final = struct.Struct("<dQIBBBB")
_STATE: Final = struct.Struct("<QQQQdddQB")
_ABOUT: Final = struct.Struct("<QQQQ")
_PLACE: Final = struct.Struct(">Q")
_PART_NUMBER: Final = struct.Struct(">H")

_TEXT: Final = 1


def pack(channel: bytes, number: int, data: str | bytes, *, event: str, key: str, at: float) -> bytes:
    """The record of a message. Raises `MessageRefused` for text that cannot be encoded."""
    try:
        content = data.encode() if isinstance(data, str) else data
        event_bytes, key_bytes = event.encode(), key.encode()
    except UnicodeEncodeError as error:
        raise MessageRefused(f"this text cannot be sent: {error.reason} at character {error.start:,}") from None
    header = _HEADER.pack(
        at,
        number,
        len(content),
        _TEXT if isinstance(data, str) else 0,
        len(channel),
        len(event_bytes),
        len(key_bytes),
    )
    return b"".join((header, channel, event_bytes, key_bytes, content))


def unpack(record: bytes, epoch: int) -> Message:
    """The message of a whole record."""
    at, number, _length, kind, channel, event, key = _HEADER.unpack_from(record)
    event_from = _HEADER.size + channel
    key_from = event_from + event
    data_from = key_from + key
    data = record[data_from:]
    return Message(
        record[_HEADER.size : event_from].decode(),
        Position(epoch, number),
        data.decode() if kind & _TEXT else data,
        record[event_from:key_from].decode() if event else "",
        record[key_from:data_from].decode() if key else "",
        at,
    )


def data_length(first_part: bytes) -> int:
    """How many bytes of data the message has whose first part this is."""
    length: int = _HEADER.unpack_from(first_part)[2]
    return length


def moment(first_part: bytes) -> float:
    """When the message was published whose first part this is."""
    at: float = _HEADER.unpack_from(first_part)[0]
    return at


def place(*numbers: int) -> bytes:
    """A key of the database, which sorts as the numbers do."""
    return b"".join([_PLACE.pack(number) for number in numbers])


def parts(record: bytes) -> Iterator[bytes]:
    """A record as it is kept."""
    return (record[start : start + PART] for start in range(0, len(record), PART))


def part_keys(key: bytes) -> Iterator[bytes]:
    """The keys of a record's parts, without end."""
    yield key
    number = 0
    while True:
        number += 1
        yield key + _PART_NUMBER.pack(number)


@dataclass(slots=True)
class State:
    """What is kept of a channel beside its messages.

    `identity` is the channel's part of the keys of its messages; `number` is its newest, `first` the oldest that is held
    (`number + 1` when none is), `size` the bytes of data held, `at` when the newest was published and `oldest` when the
    oldest held was, `age` how long they are held. The channel stands in the queue of those that can be thrown away with
    `queued` (milliseconds), among those that hold messages or among the others (`holds`).
    """

    identity: int
    number: int = 0
    first: int = 1
    size: int = 0
    at: float = 0.0
    oldest: float = 0.0
    age: float = 0.0
    queued: int = 0
    holds: bool = False

    def pack(self) -> bytes:
        """As it is kept."""
        return _STATE.pack(
            self.identity, self.number, self.first, self.size, self.at, self.oldest, self.age, self.queued, self.holds
        )

    @classmethod
    def unpack(cls, record: bytes) -> State:
        """What `pack` made bytes of."""
        state = cls(*_STATE.unpack(record))
        state.holds = bool(state.holds)
        return state

    @property
    def count(self) -> int:
        """How many messages are held."""
        return self.number - self.first + 1

    @property
    def queue_key(self) -> bytes:
        """Its place in the queue: first all that hold messages, then the others, each from the longest without one."""
        return (b"h" if self.holds else b"n") + place(self.queued, self.identity)


@dataclass(slots=True)
class About:
    """What is kept of all channels together: the `next` place of the journal, the bytes that the journal holds, the bytes
    written since somebody looked how full the database is, and the highest number of all channels that were forgotten
    (`floor`)."""

    next: int
    journal: int = 0
    unchecked: int = 0
    floor: int = 0

    def pack(self) -> bytes:
        """As it is kept."""
        return _ABOUT.pack(self.next, self.journal, self.unchecked, self.floor)

    @classmethod
    def unpack(cls, record: bytes) -> About:
        """What `pack` made bytes of."""
        return cls(*_ABOUT.unpack(record))
