"""`memory://`: records of this process, shared by whoever was given the same storage. Not shared between workers."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, TypeVar

from resilience.clock import SYSTEM_CLOCK
from resilience.errors import StorageBusy, StorageUnavailable
from resilience.ports import Change, Clock, Following, Stored
from resilience.storage.state_records import check_left, check_record
from resilience.storage.wrapping import forget_after_fork

__all__ = ["MemoryStateStorage"]

T = TypeVar("T")

_RECORDS: Final = 10_000
"""Records, and as many groups of members, that are kept at most."""


class _Record(NamedTuple):
    text: bytes
    until: float


class _Watched:
    """The number that those who follow a record compare; as long as anybody does, there is one for each name."""

    __slots__ = ("__weakref__", "cell")

    def __init__(self) -> None:
        self.cell = [0]


class MemoryStateStorage:
    """Records in a dictionary of this process: for programs of one process, and for tests.

    Exact under threads and greenlets. A change is worked out without any lock and stored if nobody else was faster, else
    it is worked out again. At most `size` records are kept; those whose time is over make room, and where none is,
    `StorageUnavailable` is raised. A forked child goes on with a copy of its own.
    """

    uri = "memory://"
    spans_hosts = False

    def __init__(self, *, size: int = _RECORDS, clock: Clock = SYSTEM_CLOCK) -> None:
        if size < 1:
            raise ValueError(f"size={size}: a memory storage keeps at least one record")
        self._size = size
        self._clock = clock
        # Guards the dictionaries, for a comparison and a store. Nobody's code runs under it.
        self._lock = threading.RLock()
        self._is_storing = False
        self._records: dict[str, _Record] = {}
        self._left: dict[str, dict[str, _Record]] = {}
        self._watched: weakref.WeakValueDictionary[str, _Watched] = weakref.WeakValueDictionary()
        forget_after_fork(self)

    def __len__(self) -> int:
        return len(self._records)

    def __repr__(self) -> str:
        return f"<MemoryStateStorage: {len(self)} of at most {self._size} records>"

    def update(self, name: str, change: Change[T], *, keep: float) -> T:
        """Change the record `name`, atomically, and return the answer of `change`."""
        check_record(b"", keep)
        while True:
            known = self._records.get(name)
            now = self._clock.seconds()
            before = _text(known, now)
            after, answer = change(before, now)
            if after is before:
                return answer
            if after is not None:
                check_record(after, keep)
            if self._replace(name, known, None if after is None else _Record(after, now + keep), now):
                return answer

    def read(self, name: str) -> Stored:
        """The record `name` as it is now."""
        now = self._clock.seconds()
        return Stored(_text(self._records.get(name), now), now)

    def follow(self, name: str, told: Callable[[], None] | None = None) -> Following:  # noqa: ARG002  # nobody is told
        """Follow the record `name`."""
        with self._lock:
            watched = self._watched.get(name)
            if watched is None:
                watched = self._watched[name] = _Watched()
        return _Following(self, name, watched)

    def exchange(self, name: str, member: str, text: bytes, *, keep: float) -> dict[str, bytes]:
        """Leave `text` under `name` for `member`, for `keep` seconds, and return what every member has left there."""
        check_left(member, text, keep)
        now = self._clock.seconds()
        with self._lock:
            if name not in self._left and len(self._left) >= self._size:
                self._forget_members(now)
            left = {one: record for one, record in self._left.get(name, {}).items() if record.until > now}
            left[member] = _Record(text, now + keep)
            self._left[name] = left
        return {one: record.text for one, record in left.items()}

    def close(self) -> None:
        """Nothing to give back; the records stay."""

    def after_fork(self) -> None:
        """A thread that had the lock when the process was forked is not here to leave it."""
        self._lock = threading.RLock()
        self._is_storing = False

    def _replace(self, name: str, known: _Record | None, new: _Record | None, now: float) -> bool:
        """Store `new` unless the record is not the `known` one any more."""
        with self._lock:
            if self._is_storing:
                raise StorageBusy(
                    "memory:// was asked from within a change by the same thread, which cannot go on meanwhile. "
                    "Do not call circuits in signal handlers or in __del__"
                )
            self._is_storing = True
            try:
                if self._records.get(name) is not known:
                    return False
                if new is None:
                    self._records.pop(name, None)
                else:
                    if known is None and len(self._records) >= self._size:
                        self._make_room(now)
                    self._records[name] = new
                watched = self._watched.get(name)
                if watched is not None:
                    watched.cell[0] += 1
            finally:
                self._is_storing = False
        return True

    def _make_room(self, now: float) -> None:
        for name, record in list(self._records.items()):
            if record.until <= now:
                del self._records[name]
        if len(self._records) >= self._size:
            raise StorageUnavailable(
                f"memory:// holds {self._size:,} records that may not be forgotten: give a larger size"
            )

    def _forget_members(self, now: float) -> None:
        for name, left in list(self._left.items()):
            if all(record.until <= now for record in left.values()):
                del self._left[name]
        if len(self._left) >= self._size:
            raise StorageUnavailable(f"memory:// holds the members of {self._size:,} names: give a larger size")


class _Following:
    """A record of this process, watched."""

    __slots__ = ("_name", "_storage", "_watched", "cell")

    place = 0

    def __init__(self, storage: MemoryStateStorage, name: str, watched: _Watched) -> None:
        self._storage = storage
        self._name = name
        self._watched: _Watched | None = watched
        self.cell: Sequence[int] = watched.cell

    def read(self) -> Stored:
        """The record as it is."""
        return self._storage.read(self._name)

    def close(self) -> None:
        """Stop following."""
        self._watched = None


def _text(record: _Record | None, now: float) -> bytes | None:
    return None if record is None or record.until <= now else record.text
