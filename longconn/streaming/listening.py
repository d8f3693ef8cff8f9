"""Event streams and long polls on servers that cannot park a connection: each holds a greenlet or a thread that waits."""

from __future__ import annotations

import queue
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

from longconn.channels.ports import Message, Position
from longconn.core.event_stream import HEARTBEAT
from longconn.identity import Identity
from longconn.streaming.encoding import Event
from longconn.streaming.event_streams import EventStream, seconds_left

__all__ = ["Listener", "ListenerWire", "stream"]

_CHANCE = random.SystemRandom()  # of its own: an application that seeds `random` would have all workers act in step

_OVER: Final = None


class Listener:
    """One who waits for messages in a greenlet or thread of its own. What comes for it waits here, at most `limit` bytes."""

    __slots__ = ("_came", "_limit", "_queue", "_took", "over")

    def __init__(self, limit: int) -> None:
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._limit = limit
        self._came = 0
        self._took = 0
        self.over = False
        """Whether it has fallen too far behind."""

    def put(self, item: Any, size: int) -> None:
        """Let `item` of `size` bytes wait; from any thread that is always the same. Never waits itself."""
        if self.over:
            return
        # One side counts up what came and the other what it took: neither needs a lock.
        if self._came > self._took and self._came - self._took + size > self._limit:
            self.over = True
            self._queue.put((_OVER, 0))
            return
        self._came += size
        self._queue.put((item, size))

    def get(self, seconds: float) -> Any:
        """The next item, waiting for it. Raises `TimeoutError` when none comes in so many seconds, and `EOFError` behind the
        last one of a listener that has fallen too far behind."""
        try:
            item, size = self._queue.get(timeout=max(0.0, seconds))
        except queue.Empty:
            raise TimeoutError from None
        self._took += size
        if item is _OVER:
            raise EOFError
        return item


class Shown(Protocol):
    """How messages look to one kind of listener."""

    def encode(self, message: Message) -> Any:
        """What a listener gets."""
        ...

    def missed(self, channel: str, position: Position) -> Any:
        """What says that messages of `channel` up to `position` are lost."""
        ...


class ListenerWire:
    """How listeners hear, to whom messages look as `shown` has it. See `longconn.channels.ports.Wire`."""

    __slots__ = ("_shown",)

    def __init__(self, shown: Shown) -> None:
        self._shown = shown

    def encode(self, message: Message) -> Any:
        """What all of them get."""
        return self._shown.encode(message)

    def write(
        self,
        subscribers: Sequence[Listener],
        first: int,
        encoded: Any,
        message: Message,
        until: float,  # noqa: ARG002 - nothing here takes long
    ) -> int:
        """Give it to all of them."""
        size = len(message.data)
        for listener in subscribers[first:]:
            listener.put(encoded, size)
        return len(subscribers)

    def missed(self, subscriber: Listener, channel: str, position: Position) -> None:
        """Tell it what it can no longer have, and from where it can go on."""
        subscriber.put(self._shown.missed(channel, position), 0)


def stream(
    endpoint: EventStream,
    since: Mapping[str, Position] | None = None,
    *,
    lost: bool = False,
    identity: Identity | None = None,
) -> Iterator[bytes]:
    """The body of an event stream as `endpoint` would send it, for a server that writes what an iterator gives."""
    options = endpoint.options
    listener = Listener(options.queue_bytes)
    try:
        encoding = endpoint.wire.encoding
        beginning = endpoint.subscribe(listener, since, lost=lost, wire=ListenerWire(encoding))
        positions, frames = beginning.events(encoding)
        yield b"".join([beginning.hello, *frames])
        wait = options.heartbeat * _CHANCE.uniform(0.5, 1.0)  # those that came together do not beat together
        while (left := seconds_left(identity)) > 0:
            try:
                item = listener.get(min(wait, left))
            except TimeoutError:
                yield HEARTBEAT
            else:
                if isinstance(item, Event):
                    positions, item = item.after(positions)
                yield item
            wait = options.heartbeat
    except EOFError:
        return  # the client comes back with the last id that it got, and reads on from there
    finally:
        for name in endpoint.channels:
            endpoint.hub.unsubscribe(listener, name)
