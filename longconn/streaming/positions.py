"""Where a client stands in the channels of its stream, as the one text that it sends back as Last-Event-ID.

Of one channel it is the position itself, `18f2a3b4c5-17`. Of several it has the position in each, after eight digits that
stand for the channel's name (sixteen where the eight are those of another one, too): `5d41402a.18f2a3b4c5-17,...`. So a client
may come back to the same channels in another order.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Final

from longconn.channels.ports import Position

__all__ = ["EARLIEST", "LONGEST", "MOST_CHANNELS", "read_positions", "write_positions"]

EARLIEST: Final = Position(0, 0)
"""Before everything that a channel has ever had."""

MOST_CHANNELS: Final = 128
"""Channels of one stream: the text has all their positions, and comes back in one field of a head."""
LONGEST: Final = 8000
"""Characters of a text that is looked at: more than it ever has for so many channels, and less than servers take of a field."""


def write_positions(channels: Sequence[str], positions: Sequence[Position]) -> str:
    """The text for `positions`, one for each of `channels`."""
    if len(channels) == 1:
        return str(positions[0])
    names = _digits(tuple(channels))
    return ",".join([f"{name}.{position}" for name, position in zip(names, positions, strict=True)])


def read_positions(text: str, channels: Sequence[str]) -> Mapping[str, Position]:
    """The positions in those of `channels` of which `text` tells; the word `earliest` tells of all.

    Raises `ValueError` when it is no such text, or a single position where there are several channels.
    """
    if text == "earliest":
        return dict.fromkeys(channels, EARLIEST)
    if len(text) > LONGEST:
        raise ValueError(f"not a position in an event stream: {text[:40]!r}... is too long")
    if "." not in text:
        if len(channels) != 1:
            raise ValueError(f"not a position in {len(channels)} channels: {text[:40]!r} has one, and no name")
        return {channels[0]: Position.parse(text)}
    told: dict[str, Position] = {}
    for part in text.split(","):
        digits, _, position = part.partition(".")
        told[digits] = Position.parse(position)
    found: dict[str, Position] = {}
    for channel, usual in zip(channels, _digits(tuple(channels)), strict=True):
        # It may have been told beside a channel that it has to be told apart from, which is not asked for now.
        reached = told.get(usual) or told.get(_more_digits(channel))
        if reached is not None:
            found[channel] = reached
    return found


@lru_cache(maxsize=1024)
def _digits(channels: tuple[str, ...]) -> tuple[str, ...]:
    """What stands for each of `channels`, for no two the same."""
    digits = [f"{zlib.crc32(channel.encode()):08x}" for channel in channels]
    uses = Counter(digits)
    return tuple(
        [few if uses[few] == 1 else _more_digits(channel) for channel, few in zip(channels, digits, strict=True)]
    )


def _more_digits(channel: str) -> str:
    return blake2b(channel.encode(), digest_size=8).hexdigest()
