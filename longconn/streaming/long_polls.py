"""Long polls: a request that is answered when a channel has something new. For clients that have nothing else."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from longconn.channels.ports import History, Message, Position
from longconn.streaming.encoding import text_of
from longconn.streaming.listening import Listener, ListenerWire
from longconn.upgraded import About, Endpoint, UpgradedConnection

__all__ = ["Describe", "LongPoll", "LongPollWire", "described", "document"]

Describe = Callable[[Message], Any]
"""What becomes of a message in an answer."""

MOST_QUEUED: Final = 1_048_576
LARGEST_ANSWER: Final = 1_048_576
"""Bytes of data, the last message not counted, that one answer has."""
ANSWERED_WITHIN: Final = 30.0
"""Seconds in which a client must have taken its answer."""


def described(message: Message) -> dict[str, Any]:
    """A message in an answer, where the application says nothing else."""
    return {
        "position": str(message.position),
        "data": text_of(message),
        "event": message.event,
        "key": message.key,
        "at": message.at,
    }


def document(history: History, most: int, describe: Describe = described) -> bytes:
    """The answer to a poll, as JSON: at most `most` messages and not much more than 1 MiB, the oldest first, each as `describe`
    has it; `position`, from which to ask next; and `complete`, false when messages before these are lost."""
    messages: list[Message] = []
    size = 0
    for message in history.messages[:most]:
        if size >= LARGEST_ANSWER:
            break
        messages.append(message)
        size += len(message.data)
    found = {
        "messages": [describe(message) for message in messages],
        "position": str(messages[-1].position if messages else history.position),
        "complete": history.complete,
    }
    return json.dumps(found, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


class LongPollConnection(UpgradedConnection):
    """One client that waits for an answer."""

    __slots__ = ()

    def kick(self, code: int = 1008, reason: str = "") -> None:  # noqa: ARG002 - HTTP has no such codes
        """End the poll, from any thread, as if nothing had come."""
        self.here(self.endpoint.answer, self, None)

    def drain(self, seconds: float) -> None:
        """The worker leaves: each poll is answered at a moment of its own, so that the clients do not all come back at once."""
        if not self.queued:
            self.wake_after(self.moment_to_leave(seconds))

    def expired(self) -> None:
        """Its deadline has passed. In the hub: no greenlet is needed for it."""
        self.endpoint.deadline(self)


class LongPoll(Endpoint):
    """One poll of `channel`, which waits for at most `seconds` and is answered with at most `most` messages.
    `describe(message)` says how one is shown, as what is to become JSON; it must not wait.

    `channels` are the hub's, a `longconn.channels.hub.Channels`. The connection ends with the answer: once another protocol
    has it, no request can follow.
    """

    kind = "poll"

    def __init__(
        self, channels: Any, channel: str, *, seconds: float, most: int, describe: Describe = described
    ) -> None:
        self.hub = channels
        self.channels = (channel,)
        self.head = b""
        """What its answer begins with, up to the Content-Length."""
        self._seconds = seconds
        self._most = most
        self._describe = describe
        self._position = Position(0, 0)

    @property
    def connection_class(self) -> type[UpgradedConnection]:
        """`LongPollConnection`."""
        return LongPollConnection

    def begin(self, connection: UpgradedConnection, since: Position | None, about: About | None = None) -> None:
        """Wait for what comes after `since` (None: from now on). `about` says who waits.

        Raises what `Channels.subscribe` raises; the connection is closed then.
        """
        if about is not None:
            connection.about = about
        connection.channels = self.channels
        try:
            history = self.hub.subscribe(connection, self.channels[0], WIRE, since=since)
        except BaseException:
            connection.end("error")
            raise
        self._position = history.position
        if history.messages or not history.complete:
            self.answer(connection, history)
        else:
            connection.wake_after(self._seconds)

    def wait(self, since: Position | None) -> bytes:
        """As `begin`, in the caller's greenlet or thread; returns the `document`. For servers that cannot park."""
        listener = Listener(MOST_QUEUED)
        try:
            history: History = self.hub.subscribe(listener, self.channels[0], LISTENERS, since=since)
            if not history.messages and history.complete:
                history = listener.get(self._seconds)
        except TimeoutError:
            pass  # nothing has come, and nothing is what the history has
        finally:
            self.hub.unsubscribe(listener, self.channels[0])
        return document(history, self._most, self._describe)

    def answer(self, connection: UpgradedConnection, history: History | None) -> None:
        """Answer the poll, with nothing for None, and end its connection. Does nothing when that has been done."""
        if not connection.alive or connection.busy().closing is not None:
            return
        self.hub.unsubscribe(connection, self.channels[0])
        found = history or History((), complete=True, position=self._position)
        body = document(found, self._most, self._describe)
        connection.busy().closing = "answered"
        connection.wake_after(ANSWERED_WITHIN)
        if connection.push_last(b"%sContent-Length: %d\r\n\r\n%s" % (self.head, len(body), body)):
            connection.end("answered")

    def drained(self, connection: UpgradedConnection) -> None:
        """The client has taken its answer."""
        connection.end("answered")

    def readable(self, connection: UpgradedConnection) -> None:
        """A client that waits has nothing to say: either it left, or what it says is thrown away."""
        if connection.receive() == b"":
            connection.end("client")

    def deadline(self, connection: UpgradedConnection) -> None:
        """Nothing has come; or the client does not take its answer."""
        if connection.queued:
            connection.end("write timeout")
        else:
            self.answer(connection, None)

    def closed(self, connection: UpgradedConnection, reason: str) -> None:  # noqa: ARG002 - it is the same for all
        """It has ended."""
        connection.busy().closing = None
        self.hub.unsubscribe(connection, self.channels[0])


class _Answers:
    """A message as the answer to a poll."""

    def encode(self, message: Message) -> History:
        """This message, and nothing else."""
        return History((message,), complete=True, position=message.position)

    def missed(self, channel: str, position: Position) -> History:
        """Some messages are gone: the answer says so."""
        del channel
        return History((), complete=False, position=position)


class LongPollWire:
    """How polls hear: the first message answers them. See `longconn.channels.ports.Wire`."""

    __slots__ = ()

    def encode(self, message: Message) -> History:
        """The answer."""
        return ANSWERS.encode(message)

    def write(self, subscribers: Sequence[Any], first: int, encoded: History, message: Message, until: float) -> int:
        """Answer those from the index `first` on, until the time is over."""
        del message
        for index in range(first, len(subscribers)):
            subscribers[index].endpoint.answer(subscribers[index], encoded)
            if time.monotonic() > until:
                return index + 1
        return len(subscribers)

    def missed(self, subscriber: Any, channel: str, position: Position) -> None:
        """Some messages are gone: the answer says so."""
        subscriber.endpoint.answer(subscriber, ANSWERS.missed(channel, position))


ANSWERS: Final = _Answers()
WIRE: Final = LongPollWire()
LISTENERS: Final = ListenerWire(ANSWERS)
