"""permessage-deflate (RFC 7692) without context takeover, in either direction.

Every message is compressed by itself. So a connection keeps no compressor and no window (300 KiB of zlib's in the usual
settings), one compressor serves all connections of a process, and a message to many is compressed once.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from longconn.core.frames import CloseCode, ProtocolError

__all__ = ["Deflation", "Inflation", "compressed_limit", "negotiate"]

LEVEL: Final = 3
"""Of zlib's 1 to 9. JSON of 4 KB and text of 40 KB take 15 and 680 us; at the usual 6, 42 and 1,620 us for 6 % fewer bytes."""

END_OF_MESSAGE: Final = b"\x00\x00\xff\xff"
"""How a flushed block ends: the sender cuts it off, the receiver puts it back (7.2.1)."""

FINAL_BLOCKS: Final = 16
"""How often the stream of one message may end and begin anew. Nobody needs more than one; without a bound a message of many
tiny streams would cost its square."""

WINDOW: Final = 32_768
"""Bytes that a block may refer back to."""

_WORD: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_VALUE: Final = rf"[ \t]*+=[ \t]*+(?:{_WORD}|\"{_WORD}\")"
_OFFER: Final = re.compile(rf"[ \t]*+({_WORD})((?:[ \t]*+;[ \t]*+{_WORD}(?:{_VALUE})?)*+)[ \t]*+(?:,|$)")
_PARAMETER: Final = re.compile(rf";[ \t]*+({_WORD})(?:[ \t]*+=[ \t]*+\"?({_WORD})\"?)?")
_BITS: Final = frozenset({"8", "9", "10", "11", "12", "13", "14", "15"})

_compressors: dict[tuple[int, int], list[zlib._Compress]] = {}
"""Those that are not in use, by window and strategy. Taken and given back with one call each, which no thread interrupts, so
that two threads never hold the same one. A process with one thread has one."""


@dataclass(frozen=True, slots=True)
class Deflation:
    """What a client and this side agreed on. Equal agreements are the same object (see `negotiate`)."""

    response: str
    """What the answer to the handshake says of it (`Sec-WebSocket-Extensions`)."""
    window_bits: int = 15
    """The client's window is of 2 to this many bytes, from 8 to 15."""

    def compress(self, payload: bytes | bytearray | memoryview) -> bytes:
        """The payload of a compressed message, for one frame or many."""
        if not len(payload):
            return b"\x00"  # an empty block, as 7.2.3.6 has it: a flush with nothing to flush writes nothing
        # zlib has no window of 2**8. Without references to earlier bytes any window does.
        bits, strategy = (self.window_bits, 0) if self.window_bits > 8 else (9, zlib.Z_HUFFMAN_ONLY)
        idle = _compressors.setdefault((bits, strategy), [])
        try:
            compressor = idle.pop()
        except IndexError:
            compressor = zlib.compressobj(LEVEL, zlib.DEFLATED, -bits, zlib.DEF_MEM_LEVEL, strategy)
        # A full flush forgets what came before: the next message, whosesoever it is, does not refer to this one.
        data = compressor.compress(payload) + compressor.flush(zlib.Z_FULL_FLUSH)
        idle.append(compressor)
        return data[:-4]


class Inflation:
    """One compressed message that is arriving."""

    __slots__ = ("_inflater", "_streams", "_window")

    def __init__(self) -> None:
        self._inflater = zlib.decompressobj(-15)
        self._streams = 1
        self._window = b""

    def inflate(self, data: bytes, most: int, *, ended: bool) -> bytes:
        """What `data` stands for; `ended` with the message's last bytes.

        Never makes more than one byte more than `most`: raises `ProtocolError` with 1009 instead, and with 1007 for what is no
        deflate stream.
        """
        if ended:
            data += END_OF_MESSAGE
        try:
            inflated = self._inflater.decompress(data, most + 1)
            if self._inflater.eof:
                return self._next_stream(inflated, most)
        except zlib.error:
            raise ProtocolError(CloseCode.INVALID_DATA, "the compressed data is damaged") from None
        if len(inflated) > most or self._inflater.unconsumed_tail:
            raise _too_big()
        return inflated

    def _next_stream(self, inflated: bytes, most: int) -> bytes:
        """Go on after a block that says it is the last, which a sender may write at the end of a message (7.2.3.4)."""
        parts = [inflated]
        total = len(inflated)
        while self._inflater.eof and total <= most:
            rest = self._inflater.unused_data
            self._streams += 1
            if self._streams > FINAL_BLOCKS:
                raise ProtocolError(CloseCode.INVALID_DATA, "the compressed data ends too often")
            self._window = (self._window + parts[-1])[-WINDOW:]
            self._inflater = zlib.decompressobj(-15, zdict=self._window) if self._window else zlib.decompressobj(-15)
            parts.append(self._inflater.decompress(rest, most - total + 1))
            total += len(parts[-1])
        if total > most or self._inflater.unconsumed_tail:
            raise _too_big()
        return b"".join(parts)


def compressed_limit(limit: int) -> int:
    """The most bytes that a message of `limit` bytes may take on the wire when it is compressed: a little more than `limit`,
    for what cannot be compressed. Data that stands for nothing is bounded by it."""
    return limit + limit // 64 + 16_384


def negotiate(offer_field: str | None) -> Deflation | None:
    """What to answer to a client's `Sec-WebSocket-Extensions`, or None when it offers nothing that is understood.

    The first offer that can be met is taken; others, also malformed ones, are passed over (RFC 7692, 5.1 and 7).
    """
    if not offer_field or "permessage-deflate" not in offer_field:
        return None
    return _negotiate(offer_field)


@lru_cache(64)  # browsers all say the same
def _negotiate(offer_field: str) -> Deflation | None:
    for name, parameters in _offers(offer_field):
        if name == "permessage-deflate":
            deflation = _meet(parameters)
            if deflation is not None:
                return deflation
    return None


def _offers(field: str) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """The offers of a field, as far as it can be read. A part that cannot is left out, up to the next comma."""
    at = 0
    while at < len(field):
        match = _OFFER.match(field, at)
        if match is None:
            at = field.find(",", at) + 1 or len(field)
            continue
        yield match[1], _PARAMETER.findall(match[2])
        at = match.end()


def _meet(parameters: list[tuple[str, str]]) -> Deflation | None:
    names = [name for name, _ in parameters]
    if len(set(names)) < len(names):
        return None
    response = ["permessage-deflate", "server_no_context_takeover", "client_no_context_takeover"]
    window_bits = 15
    for name, value in parameters:
        match name:
            case "server_no_context_takeover" | "client_no_context_takeover" if not value:
                pass  # it is answered in any case
            case "server_max_window_bits" if value in _BITS:
                window_bits = int(value)
                response.append(f"server_max_window_bits={value}")
            case "client_max_window_bits" if value in _BITS:
                response.append(f"client_max_window_bits={value}")
            case "client_max_window_bits" if not value:
                pass  # it could keep to a smaller window, and need not
            case _:
                return None
    return _agreement("; ".join(response), window_bits)


@lru_cache(256)
def _agreement(response: str, window_bits: int) -> Deflation:
    return Deflation(response, window_bits)


def _too_big() -> ProtocolError:
    return ProtocolError(CloseCode.TOO_BIG, "the message is too big when it is decompressed")
