"""What is read and written within one transaction of the database.

    journal    place in the common order -> message        for the workers, trimmed by bytes
    history    channel's identity, number -> message       for clients that come back, trimmed by count, bytes and age
    channels   name -> State; 0xff -> About                what is known of each channel, and of all together
    queue      moment, channel's identity -> name          whose history goes first when there is no room

A channel's place in the queue is that of some earlier message, and put right only when its turn has come: so a publication
need not touch the queue.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any, Final

from longconn.channels.database import Database
from longconn.channels.ports import Held, History, HistoryLimits, Message, News, Position
from longconn.channels.records import About, State, data_length, moment, pack, part_keys, parts, place, unpack

__all__ = ["Tables"]

_ABOUT: Final = b"\xff"
"""The key of what is about all channels: no name in UTF-8 has this byte."""
_KEY: Final = 8
"""Bytes of the key of a message's first part in the journal; twice that in the history."""
_MOST_READ: Final = 4 << 20
"""Bytes that one reading of news takes, one message at least."""
_BATCH: Final = 300
"""Steps of throwing away that one transaction makes at most: writers wait for it."""
_LOOKS: Final = 64
"""How often somebody looks how full the database is while as much is written as it takes."""
_NOTHING: Final = HistoryLimits(count=0)
_STRIDE: Final = 16
"""Messages thrown away between two looks at how much is in use."""


class Tables:
    """The tables of `database` within `transaction`."""

    __slots__ = ("_database", "_transaction")

    def __init__(self, database: Database, transaction: Any) -> None:
        self._database = database
        self._transaction = transaction

    # Publishing.

    def publish(
        self,
        channel: str,
        data: str | bytes,
        *,
        event: str,
        key: str,
        limits: HistoryLimits,
        at: float,
    ) -> tuple[Message, bool]:
        """Add a message to all that keeps it. Returns it, and whether it is time to look how full the database is."""
        name = channel.encode()
        about = self.about()
        state = self._state(name) or State(about.next, number=about.floor, first=about.floor + 1)
        state.number += 1
        record = pack(name, state.number, data, event=event, key=key, at=at)
        self._put(self._database.journal, place(about.next), record, append=True)
        about.next += 1
        about.journal += len(record)
        about.unchecked += len(record)
        if about.journal > self._database.journal_bytes:
            self._trim_journal(about, self._database.journal_bytes, _BATCH)
        self._keep(name, state, record, limits, at)
        full = about.unchecked > self._database.size // _LOOKS
        if full:
            about.unchecked = 0
        self._transaction.put(_ABOUT, about.pack(), db=self._database.channels)
        return Message(channel, Position(self._database.epoch, state.number), data, event, key, at), full

    def _keep(self, name: bytes, state: State, record: bytes, limits: HistoryLimits, at: float) -> None:
        """Keep `record`, the newest of its channel, as far as `limits` allow, and throw away what they do not allow any
        longer."""
        size = data_length(record)
        kept = limits.count >= 1 and limits.age > 0 and size <= limits.size
        if not kept and state.first == state.number:
            state.first += 1
        else:
            # Also one that cannot be kept goes behind those that are: so they are trimmed away with it, and leave no gap.
            if state.first == state.number:
                state.oldest = at
            state.size += size
            self._put(self._database.history, place(state.identity, state.number), record)
            if not kept or state.count > limits.count or state.size > limits.size or state.oldest < at - limits.age:
                self._trim(state, limits if kept else _NOTHING, at)
        state.at = at
        state.age = limits.age
        self._save(name, state)

    def _trim(self, state: State, limits: HistoryLimits, now: float) -> None:
        cursor = self._transaction.cursor(self._database.history)
        cursor.set_range(place(state.identity, state.first))
        for trimmed in count():
            if state.first > state.number:
                return
            value = cursor.value()
            state.oldest = moment(value)
            fits = state.count <= limits.count and state.size <= limits.size and state.oldest >= now - limits.age
            if fits or trimmed == _BATCH:
                return
            state.size -= data_length(value)
            state.first += 1
            _delete(cursor, 2 * _KEY)

    def _drop(self, state: State, before: int, most: int | None = None) -> int:
        """Throw away the messages of a channel below number `before`, at most `most` of them. Returns how many that
        were."""
        if state.first >= before:
            return 0
        cursor = self._transaction.cursor(self._database.history)
        cursor.set_range(place(state.identity, state.first))
        dropped = 0
        while state.first < before and dropped != most:
            state.size -= data_length(cursor.value())
            state.first += 1
            dropped += 1
            _delete(cursor, 2 * _KEY)
        if state.first < before:
            state.oldest = moment(cursor.value())
        return dropped

    def _save(self, name: bytes, state: State) -> None:
        """Write down what is known of a channel, and have it stand in the right part of the queue."""
        holds = state.first <= state.number
        if holds != state.holds or state.queued == 0:
            queue = self._database.queue
            self._transaction.delete(state.queue_key, db=queue)
            state.holds = holds
            state.queued = max(1, _milliseconds(state.at))
            self._transaction.put(state.queue_key, name, db=queue)
        self._transaction.put(name, state.pack(), db=self._database.channels)

    def _put(self, table: Any, key: bytes, record: bytes, *, append: bool = False) -> None:
        for part_key, part in zip(part_keys(key), parts(record), strict=False):
            self._transaction.put(part_key, part, db=table, append=append)

    def _trim_journal(self, about: About, journal_bytes: int, most: int) -> int:
        """Throw away the oldest of the journal, not its newest, until it has `journal_bytes`. Returns how many that
        were."""
        cursor = self._transaction.cursor(self._database.journal)
        newest = place(about.next - 1)
        trimmed = 0
        found = cursor.first()
        while found and about.journal > journal_bytes and trimmed < most and cursor.key() < newest:
            about.journal -= _delete(cursor, _KEY)
            trimmed += 1
            found = bool(cursor.key())
        return trimmed

    # Reading.

    def about(self) -> About:
        """What is kept of all channels together."""
        record = self._transaction.get(_ABOUT, db=self._database.channels)
        return About.unpack(record) if record else About(self._database.first_place)

    def position(self, channel: str) -> Position:
        """The newest position of `channel`."""
        state = self._state(channel.encode())
        return Position(self._database.epoch, state.number if state else self.about().floor)

    def news(self, cursor: int, most: int) -> News:
        """What the journal has from place `cursor` on, at most `most` messages."""
        following = self.about().next
        if cursor == following:
            return News((), cursor)
        reading = self._transaction.cursor(self._database.journal)
        wanted = place(cursor)
        missed = cursor > following or not reading.set_range(wanted) or reading.key() != wanted
        if missed and not reading.first():
            return News((), following, missed=True)
        messages: list[Message] = []
        here = int.from_bytes(reading.key()[:_KEY], "big")
        size = 0
        for record in _records(reading, _KEY):
            messages.append(unpack(record, self._database.epoch))
            size += len(record)
            if len(messages) >= most or size >= _MOST_READ:
                break
        return News(tuple(messages), here + len(messages), missed)

    def history(self, channel: str, since: Position | None, most: int | None, now: float) -> History:
        """What `channel` holds after `since`, at most the newest `most` messages."""
        epoch = self._database.epoch
        state = self._state(channel.encode())
        if state is None:
            # Nothing is known of it: perhaps there never was a message, perhaps it was forgotten.
            floor = self.about().floor
            return History((), since is None or since == Position(epoch, floor), Position(epoch, floor))
        position = Position(epoch, state.number)
        known = since is not None and since.epoch == epoch and since.number <= state.number
        start = since.number + 1 if since is not None and known else state.first
        complete = since is None or (known and start >= state.first)
        first = max(start, state.first)
        if most is not None and state.number - first + 1 > most:
            first = state.number + 1 - most
            complete = since is None
        messages: tuple[Message, ...] = ()
        if first <= state.number:
            held = self._held(state, first)
            messages = tuple(message for message in held if message.at >= now - state.age)
            complete = complete and (since is None or len(messages) == len(held))
        return History(messages, complete, position)

    def channels(self, most: int) -> tuple[Held, ...]:
        """The channels that anything is known of, those left out that no user can name."""
        cursor = self._transaction.cursor(self._database.channels)
        found: list[Held] = []
        more = cursor.set_range(b"\x01")
        while more and len(found) < most and cursor.key() != _ABOUT:
            state = State.unpack(cursor.value())
            position = Position(self._database.epoch, state.number)
            found.append(Held(cursor.key().decode(), position, state.count, state.size, state.at))
            more = cursor.next()
        return tuple(found)

    def _held(self, state: State, first: int) -> list[Message]:
        cursor = self._transaction.cursor(self._database.history)
        cursor.set_range(place(state.identity, first))
        epoch = self._database.epoch
        wanted = state.number - first + 1
        return [unpack(record, epoch) for record, _ in zip(_records(cursor, 2 * _KEY), range(wanted), strict=False)]

    def _state(self, name: bytes) -> State | None:
        record = self._transaction.get(name, db=self._database.channels)
        return State.unpack(record) if record else None

    # Making room.

    @property
    def used(self) -> int:
        """Bytes of the pages that hold anything."""
        database = self._database
        pages = 0
        page = 0
        for table in (database.journal, database.history, database.channels, database.queue):
            counts = self._transaction.stat(table)
            page = counts["psize"]
            pages += counts["branch_pages"] + counts["leaf_pages"] + counts["overflow_pages"]
        return pages * page

    def look_again(self) -> None:
        """Have the next publication go on with making room."""
        about = self.about()
        about.unchecked = self._database.size
        self._transaction.put(_ABOUT, about.pack(), db=self._database.channels)

    def expire(self, now: float, most: int) -> bool:
        """Throw away histories that are too old as a whole, `most` messages at most. Returns whether there may be more."""
        steps = 0
        while steps < most:
            turn = self._longest_without(b"h")
            if turn is None or turn[1].at >= now - turn[1].age:
                return False
            steps += self._empty(*turn)
        return True

    def make_room(self, enough: int, most_channels: int, most: int) -> bool:
        """Throw away the oldest until `enough` bytes are used and `most_channels` are known, `most` messages at most. Returns
        whether there is more to do."""
        about = self.about()
        steps = 0
        more = True
        while more and steps < most:
            if self.used > enough:
                thrown = self._trim_journal(about, 0, _STRIDE) or self._empty_oldest() or self._forget(about)
            elif self._transaction.stat(self._database.channels)["entries"] > most_channels:
                thrown = self._forget(about) or self._empty_oldest()
            else:
                thrown = 0
            more = thrown > 0
            steps += thrown
        self._transaction.put(_ABOUT, about.pack(), db=self._database.channels)
        return more

    def _empty_oldest(self) -> int:
        """Throw away the history that is longest without a message, or its oldest messages. Returns how many that were."""
        turn = self._longest_without(b"h")
        return self._empty(*turn) if turn else 0

    def _empty(self, name: bytes, state: State) -> int:
        dropped = self._drop(state, state.number + 1, _STRIDE)
        self._save(name, state)
        return dropped

    def _forget(self, about: About) -> int:
        """Forget the channel that is longest without a message, of those that hold none. Returns how many that were: 1 or
        0."""
        turn = self._longest_without(b"n")
        if turn is None:
            return 0
        name, state = turn
        about.floor = max(about.floor, state.number)
        self._transaction.delete(state.queue_key, db=self._database.queue)
        self._transaction.delete(name, db=self._database.channels)
        return 1

    def _longest_without(self, part: bytes) -> tuple[bytes, State] | None:
        """The channel that is longest without a message, in one part of the queue; those found in the wrong place are put
        right."""
        queue = self._database.queue
        cursor = self._transaction.cursor(queue)
        while cursor.set_range(part) and cursor.key()[:1] == part:
            name = cursor.value()
            state = self._state(name)
            assert state is not None, "a channel stands in the queue for as long as it is known"
            newest = max(1, _milliseconds(state.at))
            if state.queued == newest:
                return name, state
            cursor.delete()
            state.queued = newest
            self._transaction.put(state.queue_key, name, db=queue)
            self._transaction.put(name, state.pack(), db=self._database.channels)
        return None


def _records(cursor: Any, key_length: int) -> Iterator[bytes]:
    """The whole records from where `cursor` stands."""
    record = b""
    for key, value in cursor.iternext():
        if len(key) == key_length:
            if record:
                yield record
            record = value
        else:
            record += value
    if record:
        yield record


def _delete(cursor: Any, key_length: int) -> int:
    """Delete the record that `cursor` stands at, so that it stands at the next. Returns how many bytes it had."""
    size = 0
    for part in count():
        if part and len(cursor.key()) <= key_length:
            break
        size += len(cursor.value())
        if not cursor.delete():
            break
    return size


def _milliseconds(at: float) -> int:
    return min(max(1, int(at * 1000)), 2**63)
