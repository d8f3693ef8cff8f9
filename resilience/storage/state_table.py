"""Short texts in a block of bytes that several processes share: read without a lock, whole after a kill at any instant.

The block is, one behind the other,

    8 bytes a place     its number, which every change of the text makes one larger: whoever watches a place compares it
    16 bytes a place    its key, all zeros where the place is free
    two copies a place  checksum, length, until when the text is to be kept, and the text. The number's last bit says which
                        of the two counts; number 0 says that there is no text yet

Rules of this file: who writes holds the lock of the place, who gives one away that of the directory too. A text is changed
by writing the copy that does not count, and then the number: whoever is killed between two stores leaves the text of before
or the one of after, and who reads meanwhile reads the one or the other. A number never becomes smaller, also when the place
is given away, so whoever watched it sees that. The checksum is for processors that let others see stores in another order:
what does not fit is read again.
"""

from __future__ import annotations

import mmap
import struct
import zlib
from collections.abc import Iterator
from math import inf
from typing import Final, NamedTuple

__all__ = ["KEY_SIZE", "Content", "DamagedError", "StateTable"]

KEY_SIZE: Final = 16

_HEAD: Final = struct.Struct("=IId")
_FIRST_SEEN: Final = struct.Struct("=QId")
_NOTHING: Final = 0xFFFF_FFFF
"""The length of no text."""
_FREE: Final = bytes(KEY_SIZE)
_TRIES: Final = 100


class DamagedError(Exception):
    """What a place holds is nothing that this code has written."""


class Content(NamedTuple):
    """What a place held while its number was `number`: the text, None for none, and until when it is to be kept."""

    number: int
    text: bytes | None
    until: float


class StateTable:
    """`count` places for texts of up to `longest` bytes in `buffer`, from `start` on, which is a multiple of 8.

    Fresh memory, all zeros, is an empty table.
    """

    __slots__ = ("_buffer", "_copies", "_copy_size", "_keys", "_keys_end", "_longest", "count", "numbers")

    def __init__(self, buffer: mmap.mmap | bytearray, start: int, count: int, longest: int) -> None:
        self.count = count
        self._buffer = buffer
        self._longest = longest
        self._copy_size = _copy_size(longest)
        self._keys = start + 8 * count
        self._keys_end = self._keys + KEY_SIZE * count
        self._copies = self._keys_end
        self.numbers = memoryview(buffer)[start : self._keys].cast("Q")

    def __len__(self) -> int:
        """Places that are not free."""
        return sum(self.key(place) != _FREE for place in range(self.count))

    @staticmethod
    def size(count: int, longest: int) -> int:
        """Bytes of a table of so many places."""
        return count * (8 + KEY_SIZE + 2 * _copy_size(longest))

    def key(self, place: int) -> bytes:
        """The key that has the place; all zeros where it is free."""
        start = self._keys + KEY_SIZE * place
        return bytes(self._buffer[start : start + KEY_SIZE])

    def find(self, key: bytes) -> int:
        """The place of `key`; -1 where it has none."""
        return next(self.places_of(key), -1)

    def places_of(self, beginning: bytes) -> Iterator[int]:
        """The places of all keys that begin so."""
        found = self._buffer.find(beginning, self._keys, self._keys_end)
        while found >= 0:
            place, rest = divmod(found - self._keys, KEY_SIZE)
            if not rest:
                yield place
            found = self._buffer.find(beginning, found + 1, self._keys_end)

    def read(self, place: int) -> Content:
        """What the place holds. Raises `DamagedError` where that cannot be read, however often."""
        buffer, numbers = self._buffer, self.numbers
        for _ in range(_TRIES):
            number = numbers[place]
            if not number:
                return Content(0, None, 0.0)
            start = self._copies + (2 * place + (number & 1)) * self._copy_size
            checksum, length, until = _HEAD.unpack_from(buffer, start)
            start += _HEAD.size
            text = b"" if length == _NOTHING else bytes(buffer[start : start + min(length, self._longest)])
            if number == numbers[place] and checksum == _checksum(number, length, until, text):
                return Content(number, None if length == _NOTHING else text, until)
        raise DamagedError

    def write(self, place: int, text: bytes | None, until: float) -> None:
        """Change what the place holds, and its number."""
        number = self.numbers[place] + 1
        content, length = (b"", _NOTHING) if text is None else (text, len(text))
        start = self._copies + (2 * place + (number & 1)) * self._copy_size
        _HEAD.pack_into(self._buffer, start, _checksum(number, length, until, content), length, until)
        start += _HEAD.size
        self._buffer[start : start + len(content)] = content
        self.numbers[place] = number

    def place_to_give(self) -> tuple[int, float]:
        """The place that is to make room first, and from when on it may: a free one at any time, else the one whose text was
        to be kept until the earliest moment."""
        free = self.find(_FREE)
        if free >= 0:
            return free, -inf
        return min(((place, self._until(place)) for place in range(self.count)), key=lambda each: each[1])

    def give(self, place: int, key: bytes, now: float) -> bool:
        """Give the place to `key`. False, and nothing is changed, where that has one already, or the place's text is to be
        kept still."""
        if self.find(key) >= 0 or (self.key(place) != _FREE and self._until(place) > now):
            return False
        # First nobody finds it, then there is nothing in it, then it is the new one's.
        self._set_key(place, _FREE)
        if not self.numbers[place]:
            # Somewhere, so that whoever moves here from another file does not take the number for that of there.
            self.numbers[place] = int.from_bytes(key[:5], "little")
        self.write(place, None, now)
        self._set_key(place, key)
        return True

    def _until(self, place: int) -> float:
        try:
            return self.read(place).until
        except DamagedError:
            return -inf  # of no use to anybody

    def _set_key(self, place: int, key: bytes) -> None:
        start = self._keys + KEY_SIZE * place
        self._buffer[start : start + KEY_SIZE] = key


def _copy_size(longest: int) -> int:
    return -(-(_HEAD.size + longest) // 8) * 8


def _checksum(number: int, length: int, until: float, text: bytes) -> int:
    return zlib.crc32(text, zlib.crc32(_FIRST_SEEN.pack(number, length, until)))
