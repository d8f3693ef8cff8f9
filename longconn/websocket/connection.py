"""A WebSocket, as its application has it: from here messages are sent and channels joined."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from longconn import scoreboard
from longconn.core.frames import CloseCode, Opcode, encode_close, encode_frame, may_be_sent
from longconn.core.states import State
from longconn.errors import ConnectionClosed
from longconn.upgraded import FIRST_OF_ENDPOINT, MUTE, UpgradedConnection

if TYPE_CHECKING:
    from longconn.channels.ports import History, Position
    from longconn.core.deflate import Deflation

__all__ = ["Closing", "Sendable", "WebSocketConnection"]

Sendable = str | bytes | bytearray | memoryview | dict[str, Any] | list[Any]

# The endpoint's flags of a connection.
OPENED = FIRST_OF_ENDPOINT
"""The application has been told of it."""
AWAITS_PONG = FIRST_OF_ENDPOINT << 1
"""A ping is out, and nothing has come since."""
LEAVING = FIRST_OF_ENDPOINT << 2
"""The worker leaves, and at its deadline it says goodbye."""
ENDS_WHEN_WRITTEN = FIRST_OF_ENDPOINT << 3
"""Both sides have said goodbye, or nothing more is wanted of the client: it ends when the last frame has left."""

MESSAGES_OUT = scoreboard.messages_field("websocket out")

_UPGRADED = int(State.UPGRADED)
_TEXT = int(Opcode.TEXT)
_BINARY = int(Opcode.BINARY)

PING = encode_frame(Opcode.PING, b"")


class Closing:
    """How a connection ends: with what code, and for which of `scoreboard.CLOSE_REASONS`."""

    __slots__ = ("cause", "code", "reason")

    def __init__(self, code: int, reason: str, cause: str) -> None:
        self.code = code
        self.reason = reason
        self.cause = cause


class WebSocketConnection(UpgradedConnection):
    """One client. What the application keeps of it is in `state`, which is its own.

    `send`, `close`, `kick` and `ping` may be called from any greenlet and any thread, `join` and `leave` from any greenlet (on
    other servers than the parking worker: in the handlers). None of them waits.
    """

    __slots__ = ()

    expires_in_use = (
        True  # a handler that blocks keeps nobody from being pinged, nor from hearing that the worker leaves
    )

    # Who it is. What is not here is any upgraded connection's: `id`, `user`, `identity`, `arguments`, `path`, `since`, `alive`,
    # `queued`, `channels`.

    @property
    def state(self) -> Any:
        """Whatever the application puts there; None at first."""
        return self.state_of_endpoint

    @state.setter
    def state(self, state: Any) -> None:
        self.state_of_endpoint = state

    @property
    def subprotocol(self) -> str:
        """The subprotocol that was agreed on, "" for none."""
        return self.about.subprotocol

    @property
    def address(self) -> str:
        """The client's host, as the application knows it (behind a proxy: what was passed on)."""
        return self.host

    def __repr__(self) -> str:
        return f"<WebSocketConnection {self.id} {self.path} of {self.user!r} from {self.host}>"

    # Sending.

    def send(self, data: Sendable, *, key: str = "") -> None:
        """Send a message: text for a str, binary for bytes, the shortest JSON for a dict or a list.

        What the client does not take at once waits, see `WebSocketOptions.queue_bytes`; with `overflow="conflate"` it takes the
        place of a message of the same `key` that waits. Raises `ConnectionClosed` when the connection has ended or is being
        closed, and `TypeError` for other data.
        """
        connection = self.connection
        if self.flags & MUTE or connection.state != _UPGRADED:
            raise self.over()
        frame = (
            encode_frame(_TEXT, data.encode())
            if type(data) is str and self.about.agreed is None
            else self._frame_of(data)
        )
        lot = connection.listener.lot
        if lot.is_here():
            lot.tally[MESSAGES_OUT] += 1
            self.push(frame, key)
        else:
            lot.write_from_thread(self, len(frame), self._send, frame, key)

    def _send(self, frame: bytes, key: str) -> None:
        self.connection.lot.tally[MESSAGES_OUT] += 1
        self.push(frame, key)

    def count_out(self, messages: int) -> None:
        """Count messages that this connection and others of its worker have been sent."""
        self.connection.lot.tally[MESSAGES_OUT] += messages

    def _frame_of(self, data: Sendable) -> bytes:
        if isinstance(data, str):
            opcode, payload = _TEXT, data.encode()
        elif isinstance(data, bytes | bytearray):
            opcode, payload = _BINARY, bytes(data)
        elif isinstance(data, memoryview):
            opcode, payload = _BINARY, data.tobytes()
        elif isinstance(data, dict | list):
            opcode, payload = _TEXT, json.dumps(data, separators=(",", ":"), ensure_ascii=False).encode()
        else:
            raise TypeError(f"a message is text, bytes, a dict or a list, and this is of type {type(data).__name__}")
        return frame_of(opcode, payload, self.deflation, self.endpoint.options.compression_from)

    @property
    def deflation(self) -> Deflation | None:
        """How messages are compressed, if that was agreed on."""
        return self.about.agreed  # type: ignore[no-any-return]

    @property
    def goodbye(self) -> tuple[int, str] | None:
        """With what code and reason it ends, once that is known; None before."""
        closing = None if self.underway is None else self.underway.closing
        return None if closing is None else (int(closing.code), str(closing.reason))

    def over(self) -> ConnectionClosed:
        """What is raised when nothing more can be sent."""
        return ConnectionClosed(*(self.goodbye or (CloseCode.ABNORMAL, "the connection has ended")))

    def ping(self) -> None:
        """Send a ping now. A client that does not answer within `ping_timeout` is given up. Raises `ConnectionClosed`."""
        if self.flags & MUTE or self.connection.state != _UPGRADED:
            raise self.over()
        self.here(self.send_ping)

    def send_ping(self) -> None:
        if self.flags & MUTE or self.connection.state != _UPGRADED:
            return
        self.flags |= AWAITS_PONG
        self.push_control(PING, "ping")
        if not self.flags & LEAVING:  # then the deadline is that of the goodbye
            self.wake_after(self.endpoint.options.ping_timeout)

    # Closing.

    def close(self, code: int = 1000, reason: str = "") -> None:  # type: ignore[override]  # of another protocol, and it says more
        """Say goodbye with `code` and `reason` when all that waits has been sent. The connection ends when the client has said
        goodbye, too, or after `close_timeout`. Does nothing when it has ended or is being closed.

        Raises `ValueError` for a code that must not be sent, or a reason of more than 123 bytes.
        """
        self._check_close(code, reason)
        self.here(self.begin_close, code, reason, "upgraded")

    def kick(self, code: int = 1008, reason: str = "") -> None:
        """As `close`, for those who look after the service."""
        self._check_close(code, reason)
        self.here(self.begin_close, code, reason, "killed")

    @staticmethod
    def _check_close(code: int, reason: str) -> None:
        if not may_be_sent(code):
            raise ValueError(
                f"{code!r} is no close code that can be sent: use 1000, 1001, 1003, 1007 to 1014, 3000 to 4999"
            )
        encode_close(code, reason)

    def begin_close(self, code: int, reason: str, cause: str) -> None:
        """Send the close frame; `cause` is one of `scoreboard.CLOSE_REASONS`. On the loop's thread."""
        if self.flags & MUTE or self.connection.state != _UPGRADED:
            return
        underway = self.busy()
        underway.closing = Closing(code, reason, cause)
        self.wake_after(self.endpoint.options.close_timeout)
        self.push_last(encode_close(code, reason))
        underway.unsent = self.queued

    def fail(self, code: int, reason: str, cause: str = "invalid") -> None:
        """Send a close frame in place of all that waits, and end: nothing more of the client's is read."""
        if self.connection.state != _UPGRADED:
            return
        if self.flags & MUTE:  # it has been said before
            self.end(self.cause(cause))
            return
        self.busy().closing = Closing(code, reason, cause)
        self._end_after(encode_close(code, reason))

    def answer_close(self, code: int, reason: str) -> None:
        """The client has said goodbye."""
        if self.flags & MUTE:
            self.flags |= ENDS_WHEN_WRITTEN
            if not self.queued:
                self.end(self.cause("client"))
            return
        self.busy().closing = Closing(code, reason, "client")
        self._end_after(encode_close(code if code != CloseCode.MANDATORY_EXTENSION else CloseCode.NORMAL))

    def _end_after(self, frame: bytes) -> None:
        self.flags |= ENDS_WHEN_WRITTEN
        self.wake_after(self.endpoint.options.close_timeout)
        if self.push_last(frame, at_once=True):
            self.end(self.cause("client"))
        elif self.underway is not None:
            self.underway.unsent = self.queued

    @property
    def takes(self) -> bool:
        """Whether the client, which has been told goodbye, has taken some of what waits since this was looked at. What it says
        does not count: one that says much and takes nothing would stay for ever."""
        underway, queued = self.underway, self.queued
        if underway is None or not queued:
            return False
        before, underway.unsent = underway.unsent, queued
        return queued < before

    def cause(self, otherwise: str) -> str:
        """Why it ends, one of `scoreboard.CLOSE_REASONS`, or `otherwise` where nothing was said."""
        closing = None if self.underway is None else self.underway.closing
        return otherwise if closing is None else str(closing.cause)

    # Channels.

    def join(self, channel: str, *, since: Position | str | None = None) -> History:
        """Hear what is published on `channel` from now on; with `since`, what came after that position first: it is sent at
        once, in order, before anything new. The history that is returned says whether nothing was missed (`complete`) and where
        the channel stands (`position`).

        Raises `ChannelForbidden` when this user may not, `ChannelError`s, and `ConnectionClosed`.
        """
        if self.flags & MUTE or self.connection.state != _UPGRADED:
            raise self.over()
        history: History = self.endpoint.join(self, channel, since)
        return history

    def leave(self, channel: str) -> None:
        """Hear nothing more of `channel`. Does nothing when it was not joined."""
        self.endpoint.leave(self, channel)

    # The engine's.

    def drain(self, seconds: float) -> None:
        """The worker leaves: at a moment of its own it says goodbye; the engine's."""
        self.flags |= LEAVING
        if not self.flags & MUTE:
            self.wake_after(self.moment_to_leave(seconds))

    def abandon(self) -> None:
        """The worker's time is over, and it has not ended: what can still be said is that; the engine's."""
        self.fail(self.endpoint.code_of_leaving(self), "", "drain")

    def expired(self) -> None:
        """Its deadline has passed; the engine's."""
        self.endpoint.deadline(self)


def frame_of(opcode: int, payload: bytes, deflation: Deflation | None, compression_from: int) -> bytes:
    """The one frame of a message, compressed where that was agreed on and the message is worth it."""
    if deflation is not None and len(payload) >= compression_from:
        return encode_frame(opcode, deflation.compress(payload), compressed=True)
    return encode_frame(opcode, payload)
