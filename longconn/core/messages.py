"""Messages out of bytes: RFC 6455 as its receiver sees it, and RFC 7692 where it was agreed on.

Between two messages nothing is kept. While one is incomplete, so is a `Reading`: it holds the part of a head that has arrived,
or the unmasked (and inflated) bytes of the message so far. Whatever can be refused is refused with the first byte that shows
it: a head by its first byte, a length when it is announced, a text in the middle of a frame.
"""

from __future__ import annotations

from codecs import utf_8_decode
from dataclasses import dataclass
from typing import Any, Final

from longconn.core.deflate import Inflation, compressed_limit
from longconn.core.frames import LONGEST_CONTROL, CloseCode, Opcode, ProtocolError, apply_mask, parse_close

__all__ = ["Event", "MessageLimits", "Reading", "read"]


Event = tuple[int, Any]
"""An opcode and what came with it: a str for TEXT, bytes for BINARY, PING and PONG, a code and a reason for CLOSE."""

CONTINUATION: Final = int(Opcode.CONTINUATION)
TEXT: Final = int(Opcode.TEXT)
BINARY: Final = int(Opcode.BINARY)
CLOSE: Final = int(Opcode.CLOSE)
PING: Final = int(Opcode.PING)
PONG: Final = int(Opcode.PONG)

FIN: Final = 0x80
COMPRESSED: Final = 0x40
RESERVED: Final = 0x30

BETWEEN_FRAMES: Final = -1

_WHOLE: Final = frozenset({FIN | TEXT, FIN | BINARY, FIN | PING, FIN | PONG})
"""First bytes of frames that are a message, a ping or a pong by themselves."""


@dataclass(frozen=True, slots=True)
class MessageLimits:
    """How much one message may be: bytes, counted after inflating, and frames that it comes in. Both from 1."""

    message_bytes: int = 1_048_576
    fragments: int = 1_024


def read(
    data: bytes,
    reading: Reading | None,
    limits: MessageLimits,
    *,
    inflate: bool = False,
    masked: bool = True,
) -> tuple[list[Event], Reading | None]:
    """The events that `data` completes, in order, and what to give to the next call.

    `reading` is what the last call returned, None for the first: None says that nothing is incomplete. `inflate`: compression
    was agreed on. `masked`: the peer is a client, which must mask what it sends as a server must not. These and `limits` stay
    the same for all of a connection. After a CLOSE nothing is read: what followed it is dropped, and what comes is not wanted.

    Raises `ProtocolError`, whose `events` are those before the fault. The connection is then to be closed, and not read again.
    """
    if reading is None:
        length = len(data) - 6
        # One whole small message in one frame: nearly all that a server ever gets.
        if masked and 0 <= length < 126 and data[1] == 0x80 | length and length <= limits.message_bytes:
            if data[0] == 0x81:
                try:
                    return [(1, apply_mask(data[6:], data[2:6]).decode())], None
                except UnicodeDecodeError:
                    raise _not_utf8() from None
            if data[0] == 0x82:
                return [(2, apply_mask(data[6:], data[2:6]))], None
    events: list[Event] = []
    try:
        if reading is None:
            at = _take_whole_frames(data, limits, masked, events)
            if at == len(data):
                return events, None
            data = data[at:]
            reading = Reading(limits, inflate=inflate, masked=masked)
        reading.take(data, events)
    except ProtocolError as error:
        error.events = events
        raise
    return events, reading if reading.incomplete else None


def _take_whole_frames(data: bytes, limits: MessageLimits, masked: bool, events: list[Event]) -> int:
    """Append the messages, pings and pongs at the beginning of `data` that are one frame each, not compressed, and all there.
    Returns where anything else begins. What is left to `Reading` costs several times as much."""
    at = 0
    end = len(data)
    mask_bit, mask_bytes = (0x80, 4) if masked else (0, 0)
    while end - at >= 2 + mask_bytes and data[at] in _WHOLE:
        opcode = data[at] & 0x0F
        payload = at + 2 + mask_bytes
        length = data[at + 1] ^ mask_bit  # over 127 when the bit is not as it has to be
        if length == 126 and opcode <= BINARY and end - at >= 4:
            length = data[at + 2] << 8 | data[at + 3]
            payload += 2
            if length < 126:
                break
        elif length >= 126:
            break
        stop = payload + length
        if stop > end or (length > limits.message_bytes and opcode <= BINARY):
            break
        content = data[payload:stop]
        if masked:
            content = apply_mask(content, data[payload - 4 : payload])
        events.append((TEXT, _decoded(content)) if opcode == TEXT else (opcode, content))
        at = stop
    return at


class Reading:
    """A frame or a message of which a part has arrived. Made by `read`."""

    __slots__ = (
        "_buffer",
        "_final",
        "_fragments",
        "_held",
        "_inflate",
        "_inflation",
        "_left",
        "_limits",
        "_mask",
        "_masked",
        "_opcode",
        "_valid",
        "_wire_bytes",
    )

    def __init__(self, limits: MessageLimits, *, inflate: bool, masked: bool) -> None:
        self._limits = limits
        self._inflate = inflate
        self._masked = masked
        self._held = b""  # of a head, or of a control frame, that is not whole
        self._left = BETWEEN_FRAMES  # bytes to come of the payload of the present frame
        self._final = False
        self._mask = b""  # turned so that it begins with what the next byte needs
        self._opcode = CONTINUATION  # of the message
        self._fragments = 0  # frames of the message that have begun; 0 between messages
        self._wire_bytes = 0  # of the message, as announced by the heads of its frames
        self._inflation: Inflation | None = None
        self._buffer = bytearray()  # what has arrived of the message, unmasked and inflated
        self._valid = 0  # how many bytes of the buffer are known to be whole characters

    @property
    def incomplete(self) -> bool:
        """Whether something is awaited: the rest of a frame, or further frames of a message."""
        return bool(self._held or self._fragments)

    @property
    def awaited(self) -> int:
        """How many bytes are still to come of the frame that has begun; 0 between frames."""
        return max(0, self._left)

    @property
    def held_bytes(self) -> int:
        """How many bytes it holds in memory, besides itself."""
        return len(self._held) + len(self._buffer)

    def take(self, data: bytes, events: list[Event]) -> None:
        """Append the events that `data` completes. Raises `ProtocolError`."""
        if self._held:
            data = self._held + data
            self._held = b""
        at = 0
        end = len(data)
        while at < end:
            if self._left == BETWEEN_FRAMES:
                payload = self._head(data, at)
                if payload < 0:
                    self._held = data[at:]
                    return
                if data[at] & 8:
                    at = payload + (data[at + 1] & 127)
                    if self._control(data, payload, at, events):
                        return
                    continue
                at = payload
            at = self._payload(data, at, events)

    def _head(self, data: bytes, at: int) -> int:
        """Check the head of a frame as far as it is there, and take note of a data frame. Returns where its payload begins,
        or -1 when the head, or a control frame, is not whole."""
        first = data[at]
        self._check_first_byte(first)
        if len(data) < at + 2:
            return -1
        second = data[at + 1]
        if (second >= 0x80) is not self._masked:
            raise _violation("a frame that is not masked" if self._masked else "a frame that is masked")
        size_bytes = {126: 2, 127: 8}.get(second & 127, 0)
        payload = at + 2 + size_bytes
        if first & 8:
            if size_bytes:
                raise _violation(f"a control frame of more than {LONGEST_CONTROL} bytes")
            payload += 4 * self._masked
            return payload if payload + (second & 127) <= len(data) else -1
        if len(data) < payload:
            return -1
        length = int.from_bytes(data[at + 2 : payload]) if size_bytes else second & 127
        if size_bytes and length < (126 if size_bytes == 2 else 65_536):
            raise _violation("a length that is written longer than it needs to be")
        self._check_limits(first, length)
        if self._masked:
            payload += 4
            if len(data) < payload:
                return -1
            self._mask = data[payload - 4 : payload]
        self._begin_frame(first, length)
        return payload

    def _check_first_byte(self, first: int) -> None:
        opcode = first & 0x0F
        if opcode & 8:
            if opcode > PONG:
                raise _violation(f"opcode {opcode}, which is not in use")
            if first & 0x70 or not first & FIN:
                raise _violation("a control frame with a reserved bit, or one that is fragmented")
            return
        if opcode > BINARY:
            raise _violation(f"opcode {opcode}, which is not in use")
        if first & RESERVED or (first & COMPRESSED and (opcode == CONTINUATION or not self._inflate)):
            raise _violation("a reserved bit that means nothing here")
        if opcode == CONTINUATION and not self._fragments:
            raise _violation("a continuation of nothing")
        if opcode != CONTINUATION and self._fragments:
            raise _violation("a new message inside another")

    def _check_limits(self, first: int, length: int) -> None:
        """Refuse what will be too much, before any of it is kept."""
        limit = self._limits.message_bytes
        if first & COMPRESSED or self._inflation is not None:
            too_big = self._wire_bytes + length > compressed_limit(limit)
        else:
            too_big = len(self._buffer) + length > limit
        if too_big:
            raise ProtocolError(CloseCode.TOO_BIG, f"a message may have {limit} bytes")
        if self._fragments >= self._limits.fragments:
            raise ProtocolError(CloseCode.TOO_BIG, f"a message may come in {self._limits.fragments} frames")

    def _begin_frame(self, first: int, length: int) -> None:
        if not self._fragments:
            self._opcode = first & 0x0F
            if first & COMPRESSED:
                self._inflation = Inflation()
        self._fragments += 1
        self._wire_bytes += length
        self._final = first >= FIN
        self._left = length

    def _control(self, data: bytes, begin: int, end: int, events: list[Event]) -> bool:
        """Take a whole control frame. Returns whether it was a close."""
        payload = data[begin:end]
        opcode = data[begin - (6 if self._masked else 2)] & 0x0F
        if self._masked:
            payload = apply_mask(payload, data[begin - 4 : begin])
        if opcode != CLOSE:
            events.append((opcode, payload))
            return False
        events.append((CLOSE, parse_close(payload)))
        self._forget_message()
        self._left = BETWEEN_FRAMES
        return True

    def _payload(self, data: bytes, at: int, events: list[Event]) -> int:
        """Take what is there of the payload of the present frame. Returns where the rest of `data` begins."""
        chunk = data[at : at + self._left]
        at += len(chunk)
        self._left -= len(chunk)
        if self._masked:
            mask = self._mask
            turn = len(chunk) & 3
            chunk = apply_mask(chunk, mask)
            if turn:
                self._mask = mask[turn:] + mask[:turn]
        ended = not self._left and self._final
        if self._inflation is not None:
            chunk = self._inflation.inflate(chunk, self._limits.message_bytes - len(self._buffer), ended=ended)
        if not self._left:
            self._left = BETWEEN_FRAMES
        if ended:
            self._end_message(chunk, events)
        elif chunk:
            self._buffer += chunk
            if self._opcode == TEXT:
                self._check_text()
        return at

    def _end_message(self, last: bytes, events: list[Event]) -> None:
        payload: bytes | bytearray = last
        if self._buffer:
            self._buffer += last
            payload = self._buffer
        if self._opcode == BINARY:
            events.append((BINARY, bytes(payload)))
        else:
            events.append((TEXT, _decoded(payload)))
        self._forget_message()

    def _check_text(self) -> None:
        """Check what has arrived since the last check; a character of which the end is missing waits for the next one."""
        unchecked = self._buffer[self._valid :]
        try:
            _, count = utf_8_decode(unchecked, "strict", False)
        except UnicodeDecodeError:
            raise _not_utf8() from None
        tail = unchecked[count:]
        if len(tail) > 1 and tail[0] == 0xED and tail[1] >= 0xA0:
            raise _not_utf8()  # half of a surrogate, of which Python is sure only at its end
        self._valid += count

    def _forget_message(self) -> None:
        self._opcode = CONTINUATION
        self._fragments = 0
        self._wire_bytes = 0
        self._inflation = None
        self._buffer = bytearray()
        self._valid = 0


def _violation(what: str) -> ProtocolError:
    return ProtocolError(CloseCode.PROTOCOL_ERROR, what)


def _decoded(payload: bytes | bytearray) -> str:
    try:
        return payload.decode()
    except UnicodeDecodeError:
        raise _not_utf8() from None


def _not_utf8() -> ProtocolError:
    return ProtocolError(CloseCode.INVALID_DATA, "a text that is not UTF-8")
