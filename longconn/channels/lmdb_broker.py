"""The broker of one host: an LMDB database in shared memory, and no server.

A publication is one transaction: the journal that all workers read, the channel's history and the channel's number. So
whoever is killed in the middle of one leaves all of it or nothing. What the workers read is theirs to read at any time:
readers and writers do not wait for each other, and writers wait for each other for some microseconds.

The database is bounded. The journal is trimmed by bytes; each history by count, bytes and age. When the database is nearly
full all the same, the journal goes down to its newest messages, then the histories go that are longest without a message,
then channels that hold none are forgotten. The channels of a forgotten name begin again above all numbers there ever were
(`About.floor`), so positions never go backwards.

Nothing here switches greenlets: a transaction is over before anybody else runs on this thread.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from longconn.channels import database
from longconn.channels.database import Database
from longconn.channels.errors import ChannelsUnavailable, MessageRefused
from longconn.channels.ports import Held, History, HistoryLimits, Message, News, Position
from longconn.channels.tables import Tables
from longconn.channels.waking import LOOK, Follower, Wakers

__all__ = ["LmdbBroker"]

SIZE: Final = 128 << 20
JOURNAL: Final = 16 << 20
SMALLEST: Final = 1 << 20

_FULL: Final = 0.75
"""Of the whole size: above it, room is made. The rest is for what readers still look at, and for making room itself."""
_ROOMY: Final = 0.65
"""Room is made until this much is in use."""
GIVING_UP: Final = 1.0
"""Seconds for which there may be no room although there should be, until all that is there is given up."""
PATIENCE: Final = 1.5
"""Seconds for which a publication tries again."""
_TIGHT: Final = ((0.2, _FULL), (0.5, 0.5), (0.8, 0.1), (GIVING_UP, 0.0))
"""How much of the size may stay after so many seconds without room."""
_STEPS: Final = 300
"""Messages that one transaction throws away at most: all others who write wait for it."""
_BATCHES: Final = 60
_BYTES_FOR_A_CHANNEL: Final = 1024
"""One name is kept for each so many bytes of the size."""

_brokers: weakref.WeakSet[LmdbBroker] = weakref.WeakSet()

T = TypeVar("T")


class LmdbBroker:
    """Channels of all processes that name the same `folder`. Nothing is opened before it is needed.

    `size` bytes is the most that everything takes together (at least 1 MiB; less, with a warning, where the file system has
    less than twice as much), `journal_bytes` the part of it that workers may lag behind by (at most a quarter). The largest
    message has a 32nd of the size.

    Raises `ValueError` for other numbers. Every method raises `ChannelsUnavailable` when the folder cannot be used.
    """

    def __init__(self, folder: Path | str, *, size: int = SIZE, journal_bytes: int | None = None) -> None:
        if size < SMALLEST:
            raise ValueError(f"size={size!r}: channels need {SMALLEST:,} bytes at least")
        most = size // 4
        if journal_bytes is None:
            journal_bytes = min(JOURNAL, size // 8)
        if not 4096 <= journal_bytes <= most:
            raise ValueError(f"journal_bytes={journal_bytes!r}: from 4,096 to a quarter of the size, {most:,}")
        self.folder = Path(folder)
        self.size = size - size % 4096
        self.journal_bytes = journal_bytes
        self._database: Database | None = None
        self._wakers: Wakers | None = None
        self._looked = 0.0
        self._opening = _thread.RLock()
        _brokers.add(self)

    def __repr__(self) -> str:
        return f"<LmdbBroker {self.folder}>"

    @property
    def largest(self) -> int:
        """Bytes of data that one message may have."""
        return self._current().size // 32

    # What a broker does.

    @property
    def epoch(self) -> int:
        """The present life of the storage."""
        return self._current().epoch

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
        largest = self.largest
        if 4 * len(data) > largest and (length := _length(data)) > largest:
            raise MessageRefused(
                f"a message of {length:,} bytes is too large: these channels take {largest:,}. Send where the whole of it can "
                "be fetched, or give the channels more room (LONGCONN_CHANNELS_SIZE)"
            )
        message, full = self._try(
            lambda tables: tables.publish(
                channel,
                data,
                event=event,
                key=key,
                limits=history,
                at=at,
            ),
            write=True,
        )
        self._waking().wake()
        if full:
            # No more than a part of it: the next publication goes on.
            self._make_room(_FULL, _ROOMY, batches=1)
        return message

    def cursor(self) -> int:
        """The place after the newest message of all."""
        return self._try(lambda tables: tables.about().next)

    def news(self, cursor: int, *, most: int = 1000) -> News:
        """What came after `cursor`, at most `most` messages (fewer where they are large, one at least)."""
        return self._try(lambda tables: tables.news(cursor, most))

    def position(self, channel: str) -> Position:
        """The newest position of `channel`."""
        return self._try(lambda tables: tables.position(channel))

    def history(self, channel: str, since: Position | None, *, most: int | None = None, now: float) -> History:
        """What `channel` holds after `since` (None: from its beginning, and then always complete), at most the newest
        `most`."""
        return self._try(lambda tables: tables.history(channel, since, most, now))

    def channels(self, *, most: int = 1000) -> tuple[Held, ...]:
        """The channels that anything is known of, by name, at most `most` of them."""
        return self._try(lambda tables: tables.channels(most))

    def follow(self, heard: Callable[[], None]) -> Follower:
        """Have `heard` called, once `start` of what this returns is: at once, soon after each publication by whomever (once
        for several that come together), and now and then without one; always by one thread of its own (a greenlet where
        threads are greenlets)."""
        self._current()
        return Follower(self.folder, heard)

    def followers(self) -> dict[str, int]:
        """Everybody on this broker who follows at present: the process ids by name."""
        return self._waking().followers()

    def close(self) -> None:
        """Give back what it holds. It is opened again when it is used again."""
        with self._opening:
            held, self._database = self._database, None
            if held is not None:
                database.release(held)
            wakers, self._wakers = self._wakers, None
            if wakers is not None:
                wakers.close()

    # How it keeps the database open, and what it does about a full one.

    def _current(self) -> Database:
        """The database of the folder as it is now: opened again after a fork, and after somebody has removed the files."""
        held = self._database
        now = time.monotonic()
        if held is not None and not held.closed and now - self._looked < LOOK:
            return held
        with self._opening:
            held = self._database
            if held is None or held.closed or not held.is_current():
                self.close()
                held = self._database = database.opened(self.folder, self.size, self.journal_bytes)
            else:
                held.keep_up()
            self._looked = now
            return held

    def _waking(self) -> Wakers:
        self._current()  # wakers are those of the folder as it is now
        wakers = self._wakers
        if wakers is None:
            with self._opening:
                wakers = self._wakers = self._wakers or Wakers(self.folder)
        return wakers

    def _try(self, work: Callable[[Tables], T], *, write: bool = False) -> T:
        import lmdb  # opening the database says so if there is none

        began = 0.0
        while True:
            held = self._current()
            try:
                with held.lock:
                    if held.closed:  # somebody has forked, or removed the files
                        continue
                    with held.environment.begin(write=write) as transaction:
                        return work(Tables(held, transaction))
            except lmdb.Error as error:
                now = time.monotonic()
                began = began or now
                if now - began > PATIENCE or not self._helped(held, error, now - began, write=write):
                    raise ChannelsUnavailable(f"the channels in {self.folder} do not answer: {error}") from error

    def _helped(self, held: Database, error: Exception, waited: float, *, write: bool) -> bool:
        """Do about an error what can be done, the longer it lasts the more of it. Returns whether to try again."""
        import lmdb

        if isinstance(error, lmdb.MapResizedError):  # by a process that was given more room than this one
            held.keep_up()
            with held.lock:
                if not held.closed:
                    held.environment.set_mapsize(0)
        elif isinstance(error, lmdb.ReadersFullError):
            self._make_room(_FULL, _ROOMY, batches=1)
        elif not write:
            return False
        elif waited < GIVING_UP:
            # The map is full, or the file system is (which has several names in LMDB, one being an error of the device).
            # Mostly somebody was interrupted while it read, and holds back every page that was written since. It needs some
            # time of the processor, which this gives it.
            database.pause()
            held.keep_up()
            tight = next(enough for seconds, enough in _TIGHT if waited <= seconds)
            self._make_room(min(tight, _FULL), min(tight, _ROOMY), batches=_BATCHES)
        else:
            # Nothing helps: somebody was stopped while it read, or others have filled the file system, where even deleting
            # needs a page. What is here is given up for what comes.
            database.begin_anew(held)
            self._looked = 0.0
        return True

    def _make_room(self, full: float, roomy: float, *, batches: int) -> None:
        """Throw away what is too old. When more than the part `full` of the size is in use after that, throw away the
        oldest until `roomy` is. Where there is no room for that either, the next one tries again."""
        import lmdb

        held = self._current()
        now = time.time()
        most_channels = held.size // _BYTES_FOR_A_CHANNEL
        with held.lock, contextlib.suppress(lmdb.Error):
            if held.closed:
                return
            environment = held.environment
            environment.reader_check()  # of those that were killed while they read
            # One transaction after the other, so that other processes have their turn in between.
            for _ in range(batches):
                with environment.begin(write=True) as transaction:
                    tables = Tables(held, transaction)
                    more = tables.expire(now, _STEPS)
                    enough = int(held.size * (roomy if tables.used > held.size * full else full))
                    more = tables.make_room(enough, most_channels, _STEPS) or more
                    if more:
                        tables.look_again()
                if not more:
                    break


def _after_fork() -> None:
    """What the parent had open was closed before the fork; and whoever held a lock in it is not here to let it go."""
    for broker in list(_brokers):
        broker._opening = _thread.RLock()  # noqa: SLF001 - of this module
        broker._database = None  # noqa: SLF001


os.register_at_fork(after_in_child=_after_fork)


def _length(data: str | bytes) -> int:
    return len(data) if isinstance(data, bytes) else len(data.encode(errors="replace"))
