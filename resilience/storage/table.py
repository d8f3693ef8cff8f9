"""Buckets in a block of bytes that several processes share: fixed places, no allocation, whole after a kill at any instant.

The block is rows of 16 places. A bucket's key says in which row it lives, and it lives nowhere else, so a look costs the
same however full the table is, and the table never grows. A row is

    16 bytes      for each place, which copy of its bucket counts: 0 none, the place is free; 1 the first; 2 the second
    16 x 16       the keys
    48            nothing, so that each record fills one cache line
    16 x 64       the records: two copies of level, stamp, unit and the moment at which the bucket is full again

Rules of this file: keys are digests, so none begins in the middle of others. The caller holds the row's lock. A place is
changed by writing what does not count, and then the one byte that makes it count: whoever is killed between two stores
leaves the bucket of before or the one of after.

Where a row is full, the bucket that is nearest to full makes room: what is forgotten first is what would be forgotten
soonest anyway, so a flood of keys, each used a little, displaces itself and not those who have used up their limit.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from typing import Any, Final

from resilience.core.limiter import Bucket, Limit, advance

__all__ = ["KEY_SIZE", "PLACES", "ROW_SIZE", "Table"]

PLACES: Final = 16
"""Buckets in a row."""

KEY_SIZE: Final = 16

ROW_SIZE: Final = 1344
"""Bytes in a row."""

_KEYS: Final = 16
_KEYS_END: Final = _KEYS + PLACES * KEY_SIZE
_RECORDS: Final = 320
_COPY_SIZE: Final = 32

# The place's number and the copy's, 1 or 2, are shifted into place: 64 bytes a record, 32 a copy.
_COPIES: Final = _RECORDS - _COPY_SIZE
_RECORD_SHIFT: Final = 6
_COPY_SHIFT: Final = 5

_BUCKET: Final = struct.Struct("=qqq")
_COPY: Final = struct.Struct("=qqqq")
_FULL_AT: Final = struct.Struct("=q")
_FULL_AT_OFFSET: Final = 24

_MICROSECONDS_SHIFT: Final = 10
"""The moment of being full is kept in units of 1,024 us: the slowest limits there are would not fit otherwise."""


class Table:
    """`rows` rows in `buffer`, from `start` on. Fresh memory, all zeros, is an empty table."""

    __slots__ = ("_buffer", "_find", "_pack", "_start", "_unpack", "rows")

    def __init__(self, buffer: mmap.mmap | bytearray, start: int, rows: int) -> None:
        self.rows = rows
        self._buffer = buffer
        self._start = start
        self._find = buffer.find
        self._pack = _COPY.pack_into
        # A plain tuple in the order of a bucket: making a named one of it would cost as much as reading it.
        self._unpack: Callable[[Any, int], Bucket] = _BUCKET.unpack_from  # type: ignore[assignment]

    def __len__(self) -> int:
        """Places in use."""
        return sum(
            PLACES - bytes(self._buffer[row : row + PLACES]).count(0)
            for row in range(self._start, self._start + self.rows * ROW_SIZE, ROW_SIZE)
        )

    def row_of(self, key: bytes) -> tuple[int, int]:
        """The number of the row in which `key` lives, and where that row begins."""
        number = int.from_bytes(key[:8], "little") % self.rows
        return number, self._start + number * ROW_SIZE

    def number_of(self, row: int) -> int:
        """The number of the row that begins at `row`."""
        return (row - self._start) // ROW_SIZE

    def find(self, row: int, key: bytes) -> int:
        """The place of `key` in the row that begins at `row`; -1 where it has none."""
        found = self._find(key, row + _KEYS, row + _KEYS_END)
        return -1 if found < 0 else (found - row - _KEYS) // KEY_SIZE

    def read(self, row: int, place: int) -> Bucket | None:
        """The bucket in `place`, None where there is none; also for place -1."""
        if place < 0:
            return None
        copy = self._buffer[row + place]
        if not copy:
            return None
        return self._unpack(self._buffer, row + _COPIES + (place << _RECORD_SHIFT) + (copy << _COPY_SHIFT))

    def write(self, row: int, place: int, key: bytes, limit: Limit, level: int, stamp: int) -> None:
        """Store the bucket of `key`: in `place`, where `find` found it, or in a place that is made free, for -1."""
        full_at = stamp - (level - limit.capacity) // limit.refill * limit.tick
        if place < 0:
            place = self._make_room(row, key)
        buffer = self._buffer
        copy = 2 if buffer[row + place] == 1 else 1
        self._pack(
            buffer,
            row + _COPIES + (place << _RECORD_SHIFT) + (copy << _COPY_SHIFT),
            level,
            stamp,
            limit.unit,
            full_at >> _MICROSECONDS_SHIFT,
        )
        buffer[row + place] = copy

    def spend(self, row: int, key: bytes, limit: Limit, spent: int, floor: int, now: int) -> tuple[bool, int]:
        """`decide` for one charge of `spent` parts: whether it is allowed, and the level then.

        `find`, `read`, `advance` and `write` in one: others wait for the row meanwhile, so calls are counted here.
        """
        buffer, copies = self._buffer, row + _COPIES
        found = self._find(key, row + _KEYS, row + _KEYS_END)
        place, copy, bucket = -1, 0, None
        if found >= 0:
            place = (found - row - _KEYS) // KEY_SIZE
            copy = buffer[row + place]
            if copy:
                bucket = self._unpack(buffer, copies + (place << _RECORD_SHIFT) + (copy << _COPY_SHIFT))
        level, stamp = advance(limit, bucket, now)
        if not spent:
            return True, level
        capacity = limit.capacity
        if level - spent < floor or spent > capacity:
            if bucket is not None and bucket[1] > now:  # the clock went backwards: from here on it counts again
                self.write(row, place, key, limit, level, stamp)
            return False, level
        level -= spent
        if place < 0:
            place = self._make_room(row, key)
        copy = 2 if copy == 1 else 1
        self._pack(
            buffer,
            copies + (place << _RECORD_SHIFT) + (copy << _COPY_SHIFT),
            level,
            stamp,
            limit.unit,
            stamp - (level - capacity) // limit.refill * limit.tick >> _MICROSECONDS_SHIFT,
        )
        buffer[row + place] = copy
        return True, level

    def clear(self, row: int, place: int) -> None:
        """Forget the bucket in `place`, if there is one; also for place -1."""
        if place >= 0:
            self._buffer[row + place] = 0

    def _make_room(self, row: int, key: bytes) -> int:
        buffer = self._buffer
        free = self._find(b"\0", row, row + PLACES)
        place = free - row if free >= 0 else min(range(PLACES), key=lambda place: self._full_at(row, place))
        buffer[row + place] = 0
        start = row + _KEYS + place * KEY_SIZE
        buffer[start : start + KEY_SIZE] = key
        return place

    def _full_at(self, row: int, place: int) -> int:
        copy = row + _COPIES + (place << _RECORD_SHIFT) + (self._buffer[row + place] << _COPY_SHIFT)
        full_at: int = _FULL_AT.unpack_from(self._buffer, copy + _FULL_AT_OFFSET)[0]
        return full_at
