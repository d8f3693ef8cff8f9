"""Where a client stands in the channels of its stream, as the one text that it sends back as Last-Event-ID.

Of one channel it is the position itself, `18f2a3b4c5-17`. Of several it has the position in each, after eight digits that
stand for the channel's name: `5d41402a.18f2a3b4c5-17,...`. So a client may come back to the same channels in another order.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Final

from longconn.channels.ports import Position

__all__ = ["EARLIEST", "LONGEST", "read_positions", "write_positions"]

EARLIEST: Final = Position(0, 0)
"""Before everything that a channel has ever had."""

LONGEST: Final = 4096
"""Characters of a text that is looked at."""


def write_positions(channels: Sequence[str], positions: Sequence[Position]) -> str:
    """The text for `positions`, one for each of `channels`."""
    if len(channels) == 1:
        return str(positions[0])
    return ",".join([f"{_digits(channel)}.{position}" for channel, position in zip(channels, positions, strict=True)])


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
    return {channel: told[_digits(channel)] for channel in channels if _digits(channel) in told}


def _digits(channel: str) -> str:
    return f"{zlib.crc32(channel.encode()):08x}"
