"""How a channel's messages reach the WebSockets of one endpoint: encoded once, written to each."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import gevent

from longconn.channels.ports import Message, Position
from longconn.core.deflate import Deflation
from longconn.core.frames import Opcode
from longconn.upgraded import push_all
from longconn.websocket.connection import frame_of

if TYPE_CHECKING:
    from longconn.websocket.options import WebSocketOptions

__all__ = ["Encoded", "WebSocketWire"]

_log = logging.getLogger("gunicorn.error")


class Encoded:
    """A message as frames: one for all that agreed on the same compression, made when the first of them needs it."""

    __slots__ = ("_frames", "_from", "_opcode", "_payload", "plain")

    def __init__(self, opcode: int, payload: bytes, compression_from: int) -> None:
        self._opcode = opcode
        self._payload = payload
        self._from = compression_from
        self.plain = frame_of(opcode, payload, None, 0)
        self._frames: dict[Deflation | None, bytes] = {None: self.plain}

    def frame(self, deflation: Deflation | None) -> bytes:
        """The frame for a connection that has agreed on `deflation`."""
        frame = self._frames.get(deflation)
        if frame is None:
            frame = self._frames[deflation] = frame_of(self._opcode, self._payload, deflation, self._from)
        return frame


class WebSocketWire:
    """A `longconn.channels.ports.Wire` for the WebSockets of one endpoint.

    `encode(message)` makes what the clients see of a message, None for one that they are not to see; without it they see the
    message's data. `missed(connection, channel, position)` is told
    when some of it is lost for a connection.
    """

    __slots__ = ("_compression_from", "_encode", "_missed", "_plain")

    def __init__(
        self,
        options: WebSocketOptions,
        encode: Callable[[Message], Any] | None,
        missed: Callable[[Any, str, Position], None],
    ) -> None:
        self._plain = not options.compression
        self._compression_from = options.compression_from
        self._encode = encode
        self._missed = missed

    def encode(self, message: Message) -> Encoded | None:
        """Its frames; None when nobody is to hear it, or when the application cannot encode it, which is logged."""
        try:
            data = message.data if self._encode is None else self._encode(message)
            return None if data is None else self._frames(data)
        except (Exception, gevent.Timeout):  # noqa: BLE001 - the application's own
            _log.exception("A message of channel %r could not be encoded: nobody hears it", message.channel)
            return None

    def _frames(self, data: Any) -> Encoded:
        if isinstance(data, dict | list):
            data = json.dumps(data, separators=(",", ":"), ensure_ascii=False)
        if isinstance(data, str):
            return Encoded(Opcode.TEXT, data.encode(), self._compression_from)
        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(f"a message is text, bytes, a dict or a list, and this is of type {type(data).__name__}")
        return Encoded(Opcode.BINARY, bytes(data), self._compression_from)

    def write(
        self, subscribers: Sequence[Any], first: int, encoded: Encoded | None, message: Message, until: float
    ) -> int:
        """Push the message to `subscribers[first:]` until the moment `until`; returns how far it came."""
        if encoded is None or first >= len(subscribers):
            return len(subscribers)
        if self._plain:
            index = push_all(subscribers, first, encoded.plain, message.key, until)
        else:
            index = self._write_each(subscribers, first, encoded, message.key, until)
        subscribers[first].count_out(index - first)
        return index

    @staticmethod
    def _write_each(subscribers: Sequence[Any], first: int, encoded: Encoded, key: str, until: float) -> int:
        for index in range(first, len(subscribers)):
            connection = subscribers[index]
            connection.push(encoded.frame(connection.about.agreed), key)
            if not index & 0x1F and time.monotonic() >= until:
                return index + 1
        return len(subscribers)

    def missed(self, subscriber: Any, channel: str, position: Position) -> None:
        """Tell the application that some of `channel` is lost for this connection."""
        self._missed(subscriber, channel, position)
