"""What a process knows of records that it follows on a server, and who is to be told of news.

The record of a circuit is read by calls that must not wait: so its text is kept here, and a number that changes with it. While
nothing is heard, nothing is claimed to be known.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import weakref
from collections.abc import Callable
from typing import Any, Final

from resilience.greenlets import INTERRUPTIONS
from resilience.storage.nodes import stay_in_copy

__all__ = ["News", "Record", "Teller"]

_LOG = logging.getLogger(__name__)

_MOST_UNTOLD: Final = 10_000
"""What waits to be told; beyond that it is dropped: whoever listens has stopped."""


class Record:
    """A record that is followed: its `text` (None: there is none) if it is `known`, and the number in `cell` that changes
    with it."""

    __slots__ = ("__weakref__", "cell", "followers", "key", "known", "text")

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.text: bytes | None = None
        self.known = False
        self.cell = [0]
        self.followers: tuple[Callable[[], None] | None, ...] = ()
        """What each of those who follow wants to be called; None for nothing."""

    def learn(self, text: bytes | None) -> bool:
        """The text is this. Whether that is news."""
        if self.known and text == self.text:
            return False
        self.text, self.known = text, True
        self.cell[0] += 1
        return True

    def change(self, *, known: bool) -> None:
        """Make those who follow look."""
        if not known:
            self.known = False
        self.cell[0] += 1


class News:
    """The records that are followed, and the topics that are listened to. Safe to share between threads and greenlets."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Kept by those who follow them: one who is forgotten without a word takes its record along. Guarded by _lock, except
        # for a look.
        self._records: weakref.WeakValueDictionary[bytes, Record] = weakref.WeakValueDictionary()
        self._listeners: dict[bytes, tuple[Callable[[bytes], None], ...]] = {}  # likewise
        self._teller = Teller()

    def follow(self, key: bytes, told: Callable[[], None] | None) -> tuple[Record, bool]:
        """The record, and whether it was not followed before."""
        with self._lock:
            record = self._records.get(key)
            is_new = record is None
            if record is None:
                record = self._records[key] = Record(key)
            record.followers = (*record.followers, told)
        return record, is_new

    def leave(self, record: Record, told: Callable[[], None] | None) -> None:
        """One who followed with this `told` does not any longer."""
        with self._lock:
            followers = list(record.followers)
            with contextlib.suppress(ValueError):
                followers.remove(told)
            record.followers = tuple(followers)
            if not followers and self._records.get(record.key) is record:
                del self._records[record.key]

    @property
    def records(self) -> list[Record]:
        """All that are followed."""
        with self._lock:
            return list(self._records.values())

    def listen(self, channel: bytes, told: Callable[[bytes], None]) -> bool:
        """Whether nobody listened there before."""
        with self._lock:
            before = self._listeners.get(channel, ())
            self._listeners[channel] = (*before, told)
        return not before

    def turn_away(self, channel: bytes, told: Callable[[bytes], None]) -> bool:
        """One who listened there does not any longer. Whether nobody does now."""
        with self._lock:
            listeners = list(self._listeners.get(channel, ()))
            if told not in listeners:
                return False
            listeners.remove(told)
            if listeners:
                self._listeners[channel] = tuple(listeners)
            else:
                del self._listeners[channel]
        return not listeners

    @property
    def channels(self) -> list[bytes]:
        """Where somebody listens."""
        with self._lock:
            return list(self._listeners)

    def learn(self, key: bytes, text: bytes | None) -> None:
        """The record of that key has this text now."""
        record = self._records.get(key)
        if record is not None and record.learn(text):
            self._tell(record)

    def pass_on(self, channel: bytes, message: bytes) -> None:
        """There is a message."""
        for told in self._listeners.get(channel, ()):
            self._teller.tell(told, message)

    def change_all(self, *, known: bool) -> None:
        """Make everybody look: what was known is in doubt, or no longer."""
        for record in self.records:
            record.change(known=known)
            self._tell(record)

    def after_fork(self) -> None:
        """In a forked child: what is known was heard by the parent, whose threads are not here. Those who follow are made to
        look, so that the child begins to listen."""
        self._lock = threading.Lock()
        self._teller = Teller()
        for record in list(self._records.values()):
            record.change(known=False)

    def end(self) -> None:
        """Nothing is heard any more, until somebody looks."""
        self.change_all(known=False)
        self._teller.stop()

    def _tell(self, record: Record) -> None:
        for told in record.followers:
            if told is not None:
                self._teller.tell(told)


class Teller:
    """Calls what wants to be called, in order, in a thread of its own: a listener may take its time and ask the storage."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._untold: queue.SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...]] | None] | None = None

    def tell(self, told: Callable[..., Any], *about: Any) -> None:
        """Have `told` called, soon."""
        with self._lock:
            untold = self._untold
            is_new = untold is None
            if untold is None:
                untold = self._untold = queue.SimpleQueue()
                # The thread knows the queue alone: when nobody has the teller any longer it ends.
                weakref.finalize(self, untold.put, None).atexit = False
        if is_new:
            try:
                threading.Thread(target=_tell, args=(untold, os.getpid()), name="seawall-news", daemon=True).start()
            except RuntimeError as error:  # there are too many threads already, or the interpreter is ending
                _LOG.warning("nobody is told of news: %s", error)
                self.stop()
                return
        if untold.qsize() < _MOST_UNTOLD:
            untold.put((told, about))

    def stop(self) -> None:
        """End the thread when all is told. It starts again when there is more."""
        with self._lock:
            untold, self._untold = self._untold, None
        if untold is not None:
            untold.put(None)


def _tell(untold: queue.SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...]] | None], process: int) -> None:
    try:
        with contextlib.suppress(*INTERRUPTIONS):
            while (news := untold.get()) is not None and os.getpid() == process:
                told, about = news
                try:
                    told(*about)
                except Exception:  # noqa: BLE001  # it is no affair of the others
                    _LOG.exception("what was to be told of news has raised")
    finally:
        stay_in_copy(process)
