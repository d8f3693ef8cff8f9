"""The frames of RFC 6455: how one is written, what a close says, and which close codes there are.

Reading them is in `messages.py`, since what a frame may be depends on the message it belongs to.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final

try:
    from websockets.speedups import apply_mask
except ImportError:  # a platform for which no compiled wheel exists
    from websockets.utils import apply_mask

__all__ = [
    "LONGEST_REASON",
    "CloseCode",
    "Opcode",
    "ProtocolError",
    "apply_mask",
    "encode_close",
    "encode_frame",
    "may_be_received",
    "may_be_sent",
    "parse_close",
    "shortened",
]

LONGEST_REASON: Final = 123
"""Bytes of UTF-8 that the reason of a close may have: what a control frame holds after the code."""

LONGEST_CONTROL: Final = 125
"""Bytes that a control frame may carry (5.5)."""


class Opcode(IntEnum):
    """What a frame is (11.8)."""

    CONTINUATION = 0x0
    TEXT = 0x1
    BINARY = 0x2
    CLOSE = 0x8
    PING = 0x9
    PONG = 0xA


class CloseCode(IntEnum):
    """Why a connection ends (7.4.1 and IANA's registry). An application has 3000 to 4999 to itself: 3000 to 3999 are for
    libraries that register them, 4000 to 4999 for anybody."""

    NORMAL = 1000
    GOING_AWAY = 1001
    """The server shuts down, or the page is left."""
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    NO_STATUS = 1005
    """The peer's close said no code. Never sent."""
    ABNORMAL = 1006
    """The connection ended without a close. Never sent."""
    INVALID_DATA = 1007
    """A text that is not UTF-8, or compressed data that is none."""
    POLICY_VIOLATION = 1008
    TOO_BIG = 1009
    MANDATORY_EXTENSION = 1010
    INTERNAL_ERROR = 1011
    SERVICE_RESTART = 1012
    """Come back at once, to a newer worker."""
    TRY_AGAIN_LATER = 1013
    BAD_GATEWAY = 1014


class ProtocolError(ValueError):
    """The peer broke the protocol or a limit; the connection closes with `code` and `reason`.

    `events` are what it had sent in good order before, as `messages.read` would have returned them.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{reason} (close code {int(code)})")
        self.code = int(code)
        self.reason = reason
        self.events: list[tuple[int, Any]] = []


def may_be_received(code: int) -> bool:
    """Whether a close frame may carry `code`: a registered one, or one of 3000 to 4999 (7.4.2)."""
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999


def may_be_sent(code: int) -> bool:
    """Whether an application may close with `code`: as received, except 1010, which is for clients."""
    return may_be_received(code) and code != CloseCode.MANDATORY_EXTENSION


_TEXT_HEADS: Final = tuple(bytes((0x81, length)) for length in range(126))
_BINARY_HEADS: Final = tuple(bytes((0x82, length)) for length in range(126))


def encode_frame(
    opcode: int,
    payload: bytes | bytearray | memoryview,
    *,
    fin: bool = True,
    compressed: bool = False,
    mask: bytes | None = None,
) -> bytes:
    """The bytes of one frame. A memoryview is of bytes.

    `fin`: it is the last (or only) frame of its message. `compressed`: the message is, which only its first frame says
    (RFC 7692). `mask`: the four random bytes of a frame that a client sends; None for a server's.

    Raises `ValueError` for a control frame of more than 125 bytes.
    """
    length = len(payload)
    if length < 126 and fin and not compressed and mask is None:
        if opcode == 1:
            return _TEXT_HEADS[length] + payload
        if opcode == 2:
            return _BINARY_HEADS[length] + payload
    if opcode >= 8 and length > LONGEST_CONTROL:
        raise ValueError(f"a control frame carries at most {LONGEST_CONTROL} bytes, and this one has {length}")
    first = opcode | (0x80 if fin else 0) | (0x40 if compressed else 0)
    masked = 0 if mask is None else 0x80
    if length < 126:
        head = bytes((first, masked | length))
    elif length < 65_536:
        head = bytes((first, masked | 126)) + length.to_bytes(2)
    else:
        head = bytes((first, masked | 127)) + length.to_bytes(8)
    if mask is None:
        return head + payload
    return b"".join((head, mask, apply_mask(payload, mask)))


def encode_close(code: int = CloseCode.NORMAL, reason: str = "", *, mask: bytes | None = None) -> bytes:
    """The bytes of a close frame; with `CloseCode.NO_STATUS` of one that says neither code nor reason.

    Raises `ValueError` for a code that must not be sent and for a reason that does not fit.
    """
    if code == CloseCode.NO_STATUS and not reason:
        return encode_frame(Opcode.CLOSE, b"", mask=mask)
    if not may_be_received(code):
        raise ValueError(
            f"{code} is not a close code that can be sent: use 1000 to 1014 (RFC 6455, 7.4.1) or 3000 to 4999"
        )
    text = reason.encode()
    if len(text) > LONGEST_REASON:
        raise ValueError(f"the reason of a close has at most {LONGEST_REASON} bytes of UTF-8, and this one {len(text)}")
    return encode_frame(Opcode.CLOSE, int(code).to_bytes(2) + text, mask=mask)


def shortened(reason: str) -> str:
    """As much of `reason` as a close frame carries."""
    return reason.encode()[:LONGEST_REASON].decode(errors="ignore")


def parse_close(payload: bytes) -> tuple[int, str]:
    """The code and the reason that a close frame carries; 1005 and nothing when it carries neither.

    Raises `ProtocolError`.
    """
    if not payload:
        return 1005, ""
    if len(payload) == 1:
        raise ProtocolError(CloseCode.PROTOCOL_ERROR, "half a close code")
    code = int.from_bytes(payload[:2])
    if not may_be_received(code):
        raise ProtocolError(CloseCode.PROTOCOL_ERROR, f"{code} is not a close code that may be sent")
    try:
        return code, payload[2:].decode()
    except UnicodeDecodeError:
        raise ProtocolError(CloseCode.INVALID_DATA, "the reason of the close is not UTF-8") from None
