"""Event streams that stay parked: a client that listens costs what any parked connection costs, and nothing while it waits."""

from __future__ import annotations

import logging
import random
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import Any, ClassVar, Final, Self, cast
from weakref import WeakValueDictionary

from longconn import scoreboard
from longconn.channels.ports import History, Message, Position
from longconn.core.event_stream import HEARTBEAT, encode_comment, encode_retry
from longconn.errors import LongConnError
from longconn.identity import Identity
from longconn.streaming.encoding import Encode, Encoding, Event
from longconn.streaming.options import EventStreamOptions
from longconn.streaming.positions import write_positions
from longconn.upgraded import FIRST_OF_ENDPOINT, About, Endpoint, UpgradedConnection, push_all

__all__ = ["Ended", "EventStream", "EventStreamConnection", "EventStreamWire", "seconds_left"]

_CHANCE = random.SystemRandom()  # of its own: an application that seeds `random` would have all workers act in step

_log = logging.getLogger("gunicorn.error")

Ended = Callable[[UpgradedConnection, str], None]

MESSAGES_OUT: Final = scoreboard.messages_field("sse out")

# The endpoint's flag of a connection.
LEAVING = FIRST_OF_ENDPOINT
"""The worker leaves, and at its deadline the stream ends."""

PAGE: Final = 262_144
"""So many bytes of what it has missed are sent to a client at once."""
LARGEST_INPUT: Final = 65_536
MOST_SHARED: Final = 4_096
"""So many different callers are known at most whose streams share what is said of them; more simply do not share."""
_SOON: Final = 1.0
"""Seconds before its end in which a stream needs no heartbeat any more."""
_LOOKS_AT_CLOCK: Final = 0x1F
"""A loop over connections looks at the clock where these bits of its index are 0."""


class EventStreamConnection(UpgradedConnection):
    """One client that listens."""

    __slots__ = ()

    def kick(self, code: int = 1008, reason: str = "") -> None:
        """End the stream, from any thread, and tell the client why in a comment: an event stream has no codes."""
        self.here(self.endpoint.send_away, self, code, reason)

    def count_out(self, messages: int) -> None:
        """Count messages that this connection and others of its worker have been sent."""
        self.connection.lot.tally[MESSAGES_OUT] += messages

    def leave_with(self, words: bytes, cause: str) -> None:
        """End the stream with `words` behind all that waits. `cause` is one of `scoreboard.CLOSE_REASONS`."""
        if not self.alive or self.parting:
            return
        self.busy().closing = cause
        self.wake_after(self.endpoint.options.heartbeat)
        if self.push_last(words):
            self.end(cause)

    @property
    def parting(self) -> str:
        """Why it ends as soon as its last words have left; empty while it goes on."""
        return (self.underway is not None and self.underway.closing) or ""

    def give_up_after(self, seconds: float) -> None:
        """End it when its client has acknowledged nothing for so long of what was sent to it: then it has vanished."""
        try:
            self.connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))
        except (OSError, AttributeError):
            return  # a unix socket, or a system without such a thing: there the kernel's own patience counts

    @property
    def is_leaving(self) -> bool:
        """Whether the worker leaves, and this stream with it."""
        return bool(self.flags & LEAVING)

    def drain(self, seconds: float) -> None:
        """The worker leaves: each stream ends at a moment of its own, so that the clients do not all come back at once."""
        self.flags |= LEAVING
        self.wake_after(self.moment_to_leave(seconds))

    def expired(self) -> None:
        """Its deadline has passed. In the hub: no greenlet is needed for it."""
        self.endpoint.deadline(self)


class Beginning:
    """The begin of a stream: its first words `hello`, where the client stands (`positions`), and what it finds there."""

    __slots__ = ("_found", "hello", "positions")

    def __init__(self, hello: bytes, positions: tuple[Position, ...], found: Sequence[tuple[str, History]]) -> None:
        self.hello = hello
        self.positions = positions
        self._found = found

    @property
    def size(self) -> int:
        """Bytes of the messages that it finds."""
        return sum(len(message.data) for _, history in self._found for message in history.messages)

    @property
    def has_events(self) -> bool:
        """Whether it finds anything."""
        return any(history.messages or not history.complete for _, history in self._found)

    def events(self, encoding: Encoding, most: float = inf) -> tuple[tuple[Position, ...], list[bytes]]:
        """The events for it, of `most` bytes or a little more, and where it stands behind them."""
        stands, frames, size = self.positions, [], 0
        for name, history in self._found:
            for reached, frame in encoding.following(name, history, stands):
                stands = reached
                frames.append(frame)
                size += len(frame)
                if size >= most:
                    return stands, frames
        return stands, frames


class EventStream(Endpoint):
    """The event streams that hear the same channels in the same way: an endpoint that they share, see `EventStream.of`.

    `channels` are the hub's, a `longconn.channels.hub.Channels`; `names` are those that a client hears. `encode(message)` makes
    an event's text. `ended(connection, reason)` is called when a stream has ended, in the hub, where it must not wait.
    """

    kind = "sse"

    _alike: ClassVar[WeakValueDictionary[object, EventStream]] = WeakValueDictionary()

    def __init__(
        self,
        channels: Any,
        names: tuple[str, ...],
        *,
        options: EventStreamOptions,
        encode: Encode | None = None,
        ended: Ended | None = None,
    ) -> None:
        self.hub = channels
        self.channels = names
        self.options = options
        self.queue_bytes = options.queue_bytes
        self.overflow = options.overflow
        self.wire = EventStreamWire.of(names if len(names) > 1 else (), encode)
        self._ended = ended
        self._callers: dict[object, About] = {}

    @property
    def connection_class(self) -> type[UpgradedConnection]:
        """`EventStreamConnection`."""
        return EventStreamConnection

    @classmethod
    def of(
        cls,
        channels: Any,
        names: tuple[str, ...],
        *,
        options: EventStreamOptions,
        encode: Encode | None = None,
        ended: Ended | None = None,
    ) -> Self:
        """The endpoint of such streams: the one that there is, where there is one."""
        key = (cls, id(channels), names, options, encode, ended)
        alike = cls._alike.get(key)
        if alike is None:
            alike = cls._alike[key] = cls(channels, names, options=options, encode=encode, ended=ended)
        return cast("Self", alike)

    # A stream begins.

    def begin(
        self,
        connection: UpgradedConnection,
        since: Mapping[str, Position] | None = None,
        *,
        lost: bool = False,
        about: About | None = None,
    ) -> None:
        """Subscribe `connection` to the channels, and send it what it missed since the positions of `since`. `lost`: it said
        where it was, and nobody knows where that is. `about` says who it is.

        Raises what `Channels.subscribe` raises; the connection is closed then.
        """
        stream = cast("EventStreamConnection", connection)
        if about is not None:
            stream.about = self._shared(about)
        stream.channels = self.channels
        stream.give_up_after(self.options.heartbeat)
        # Those that came together do not beat together.
        self._wait(stream, self.options.heartbeat * _CHANCE.uniform(0.5, 1.0))
        try:
            self._send_beginning(stream, self.subscribe(stream, since, lost=lost))
        except BaseException:
            stream.end("error")
            raise

    def subscribe(
        self, subscriber: Any, since: Mapping[str, Position] | None, *, lost: bool = False, wire: Any = None
    ) -> Beginning:
        """Subscribe `subscriber`, and tell with which words its stream begins."""
        asked = since or {}
        found = [
            (name, self.hub.subscribe(subscriber, name, wire or self.wire, since=asked.get(name)))
            for name in self.channels
        ]
        positions = tuple([asked.get(name) or history.position for name, history in found])
        if lost:
            found = [(name, History(history.messages, False, history.position)) for name, history in found]
        # It gets an id before the first event: without, a client that is cut off now would come back as a new one.
        hello = encode_retry(self.options.retry, id=write_positions(self.channels, positions))
        return Beginning(hello, positions, found)

    def _send_beginning(self, stream: EventStreamConnection, beginning: Beginning) -> None:
        """Send a client what it has missed. Of much it gets a page at a time, as it takes them, and hears nothing new until
        it is up to date: what waits for it is the channels' history, and takes no memory here."""
        encoding = self.wire.encoding
        # What an application makes of a message may wait, and nothing new is to be written before the old meanwhile.
        while beginning.size > PAGE or (encoding.may_wait and beginning.has_events):
            for name in self.channels:
                self.hub.unsubscribe(stream, name)
            positions, frames = beginning.events(encoding, PAGE)
            since = dict(zip(self.channels, positions, strict=True))
            stream.push(b"".join([beginning.hello, *frames]))
            if not stream.alive:
                return
            if stream.queued:
                stream.busy().reading = since
                return
            beginning = self.subscribe(stream, since)
        positions, frames = beginning.events(encoding)
        stream.state_of_endpoint = positions if encoding.several else None
        stream.push(b"".join([beginning.hello, *frames]))

    def _shared(self, about: About) -> About:
        """One object for all callers of whom the same is said."""
        key = (about.user, about.identity, about.path, about.address)
        try:
            found = self._callers.get(key)
        except TypeError:  # a user may be anything, also what cannot be compared
            return about
        if found is None:
            if len(self._callers) >= MOST_SHARED:
                self._callers.clear()
            found = self._callers[key] = about
        return found

    # What happens to it.

    def readable(self, connection: UpgradedConnection) -> None:
        """A client of a stream has nothing to say: either it left, or what it says is thrown away."""
        received = connection.receive(LARGEST_INPUT)
        if received == b"":
            connection.end("client")
        elif received is not None and len(received) == LARGEST_INPUT:
            connection.end("invalid")

    def deadline(self, connection: UpgradedConnection) -> None:
        """A heartbeat is due, or the time of the stream is over."""
        stream = cast("EventStreamConnection", connection)
        if stream.parting:
            stream.end(stream.parting)  # it had its time to take the last words
            return
        if stream.is_leaving:
            again = self.options.retry * _CHANCE.uniform(0.5, 1.5)
            stream.leave_with(encode_retry(again), "drain")
            return
        left = seconds_left(stream.identity)
        if left <= 0:
            self.send_away(stream, 1008, "the authorization has expired")
        else:
            if left > _SOON and not stream.queued:  # otherwise it ends, or has something to read
                stream.push(HEARTBEAT)
            self._wait(stream, self.options.heartbeat)

    def send_away(self, connection: EventStreamConnection, code: int, reason: str) -> None:
        """End the stream, and tell the client why. On the loop's thread."""
        connection.leave_with(encode_comment(f"{code} {reason}".strip()), "killed")

    def drained(self, connection: UpgradedConnection) -> None:
        """All that waited has left, perhaps the last words, too."""
        stream = cast("EventStreamConnection", connection)
        if stream.parting:
            stream.end(stream.parting)
        elif stream.underway is not None and stream.underway.reading is not None:
            since, stream.underway.reading = stream.underway.reading, None
            stream.tidy()
            try:
                self._send_beginning(stream, self.subscribe(stream, since))
            except LongConnError:
                _log.exception("A client of an event stream cannot read on")
                stream.end("error")

    def closed(self, connection: UpgradedConnection, reason: str) -> None:
        """It has ended."""
        for name in self.channels:
            self.hub.unsubscribe(connection, name)
        underway = connection.busy()
        underway.closing = underway.reading = None
        if self._ended is not None:
            self._ended(connection, reason)

    @staticmethod
    def _wait(stream: EventStreamConnection, seconds: float) -> None:
        stream.wake_after(min(seconds, seconds_left(stream.identity)))


class EventStreamWire:
    """How event streams hear: an event is made once, whoever and however many get it. See `longconn.channels.ports.Wire`."""

    __slots__ = ("__weakref__", "encoding")

    _alike: ClassVar[WeakValueDictionary[object, EventStreamWire]] = WeakValueDictionary()

    def __init__(self, encoding: Encoding) -> None:
        self.encoding = encoding

    @classmethod
    def of(cls, names: tuple[str, ...] = (), encode: Encode | None = None) -> EventStreamWire:
        """The wire of streams that hear `names` together, none for those that hear one channel each: the one that there is,
        where there is one."""
        key = (names, encode)
        wire = cls._alike.get(key)
        if wire is None:
            wire = cls._alike[key] = cls(Encoding(names, encode))
        return wire

    def encode(self, message: Message) -> bytes | Event:
        """The event of `message`."""
        return self.encoding.encode(message)

    def write(
        self,
        subscribers: Sequence[EventStreamConnection],
        first: int,
        encoded: bytes | Event,
        message: Message,
        until: float,
    ) -> int:
        """Write to those from the index `first` on, until the time is over; returns how far it came."""
        if first >= len(subscribers):
            return len(subscribers)
        if isinstance(encoded, bytes):
            index = push_all(subscribers, first, encoded, message.key, until)
        else:
            index = self._write_each(subscribers, first, encoded, message.key, until)
        subscribers[first].count_out(index - first)
        return index

    @staticmethod
    def _write_each(
        subscribers: Sequence[EventStreamConnection], first: int, event: Event, key: str, until: float
    ) -> int:
        for index in range(first, len(subscribers)):
            connection = subscribers[index]
            connection.state_of_endpoint, frame = event.after(connection.state_of_endpoint)
            connection.push(frame, key)
            if not index & _LOOKS_AT_CLOCK and time.monotonic() >= until:
                return index + 1
        return len(subscribers)

    def missed(self, subscriber: EventStreamConnection, channel: str, position: Position) -> None:
        """Tell it what it can no longer have, and from where it can go on."""
        event = self.encoding.missed(channel, position)
        if isinstance(event, Event):
            subscriber.state_of_endpoint, event = event.after(subscriber.state_of_endpoint)
        subscriber.push(event)


def seconds_left(identity: Identity | None) -> float:
    """For how long the credentials of `identity` are good, from 0; infinity without an end."""
    if identity is None or identity.expires_at is None:
        return inf
    return max(0.0, identity.expires_at - time.time())
