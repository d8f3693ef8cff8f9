"""How the three kinds of connections talk: what a client sends, and what it makes of what comes. Bytes in, values out.

What many connections receive alike is read once: a broadcast comes over each of them as the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

from longconn.core.event_stream import EventReader, StreamedEvent, StreamTooLarge
from longconn.core.frames import CloseCode, Opcode, ProtocolError, encode_close, encode_frame
from longconn.core.messages import MessageLimits, read
from longconn.load.answers import AnswerError, Chunks, Head, read_head
from longconn.load.marks import Mark, read_mark

__all__ = ["EventStreams", "Greeting", "Heard", "KeepAlives", "Kind", "Refused", "WebSockets"]

LIMITS = MessageLimits(message_bytes=268_435_456, fragments=1_048_576)
"""A client that measures takes what it is sent."""

REMEMBERED_SIZE = 4_096
REMEMBERED = 64
_BLOCK_END = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r(?!\n))")
"""The end of a line and of an empty one. A CR at the very end may be half of its line end; the LF that comes then is an empty
line before a block, which says nothing."""

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Refused(Exception):
    """A connection was not opened, or cannot go on; the message says why, in a few words that many have in common."""


class Greeting(NamedTuple):
    """The server agreed. The bytes in `rest` are the first of what it says then."""

    rest: bytes = b""


class Heard(NamedTuple):
    """What has come. `reading` is for the next call: what is not whole yet."""

    messages: int = 0
    marks: tuple[Mark, ...] = ()
    reply: bytes = b""
    """To be sent at once: answers to pings, and to a close."""
    pings: int = 0
    heartbeats: int = 0
    retry: float | None = None
    """Seconds after which the server wants the client back."""
    code: str = ""
    """The server has ended it, with this code."""
    complaint: str = ""
    """An answer that says that something went wrong; the connection goes on."""
    reading: Any = None


class Request(NamedTuple):
    """What is asked for. `{number}` in it is the number of the connection; what else is in braces is left as it is."""

    host: str
    """As the Host field says it."""
    target: str
    fields: tuple[str, ...] = ()
    resume: str = ""
    """The query parameter that says what a client that comes back has seen; "" for none."""

    def head(self, number: int, position: str, more: Sequence[str] = ()) -> bytes:
        """The head of a GET by connection `number`, whose last message was `position` ("" for none)."""
        target = self.target.replace("{number}", str(number))
        if self.resume and position:
            target += f"{'&' if '?' in target else '?'}{self.resume}={position}"
        own = [field.replace("{number}", str(number)) for field in self.fields]
        lines = [f"GET {target} HTTP/1.1", f"Host: {self.host}", *more, *own, "", ""]
        return "\r\n".join(lines).encode("latin-1")


class Kind(ABC):
    """How one kind talks. One object serves all connections of a process; it keeps nothing of any."""

    ended = "ended"
    """What an end is called that says nothing of itself."""
    reset = "reset"
    """What an end is called that was no orderly one."""
    asks = False
    """Whether the answer to the first request is what opens a connection."""

    def __init__(self, request: Request, *, marked: bool) -> None:
        self._request = request
        self._marked = marked
        self._known: dict[bytes, Heard] = {}

    @abstractmethod
    def request(self, number: int, position: str) -> bytes:
        """What is sent first."""

    @abstractmethod
    def greet(self, data: bytes) -> Greeting | None:
        """What to make of the beginning of the answer; None while it is not whole. Raises `Refused`."""

    def hello(self, number: int, position: str) -> bytes:  # noqa: ARG002 - for those that have one
        """What is sent when the server has agreed."""
        return b""

    def message(self, text: str) -> bytes | None:  # noqa: ARG002
        """How a client sends `text`; None: this kind's clients send nothing but requests."""
        return None

    def goodbye(self) -> bytes:
        """What is sent before the end."""
        return b""

    def read(self, data: bytes, reading: Any) -> Heard:
        """What `data` says, which is not empty. Raises `Refused` when it cannot be read."""
        if reading is not None:
            return self._read(data, reading)
        heard = self._known.get(data)
        if heard is None:
            heard = self._read(data, None)
            if heard.reading is None and len(data) <= REMEMBERED_SIZE:
                if len(self._known) >= REMEMBERED:
                    self._known.clear()
                self._known[data] = heard
        return heard

    @abstractmethod
    def _read(self, data: bytes, reading: Any) -> Heard: ...

    def _mark(self, message: str, identifier: str = "") -> tuple[Mark, ...]:
        mark = read_mark(message, identifier) if self._marked else None
        return () if mark is None else (mark,)


class WebSockets(Kind):
    """WebSocket. `nonce` (16 bytes) and `mask` (4 bytes) are drawn by the caller, once: nothing here needs a secret."""

    ended = "1006"
    reset = "1006"

    def __init__(
        self,
        request: Request,
        *,
        marked: bool,
        nonce: bytes,
        mask: bytes,
        hello: str = "",
        hello_again: str = "",
        subprotocols: Sequence[str] = (),
    ) -> None:
        super().__init__(request, marked=marked)
        key = base64.b64encode(nonce)
        self._accept = base64.b64encode(hashlib.sha1(key + GUID, usedforsecurity=False).digest()).decode()
        self._mask = mask
        self._hello = hello
        self._hello_again = hello_again or hello
        offered = [f"Sec-WebSocket-Protocol: {', '.join(subprotocols)}"] if subprotocols else []
        self._fields = [
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Key: {key.decode()}",
            *offered,
        ]

    def request(self, number: int, position: str) -> bytes:
        return self._request.head(number, position, self._fields)

    def greet(self, data: bytes) -> Greeting | None:
        head = _head(data)
        if head is None:
            return None
        if head.status != 101:
            raise Refused(f"answered {head.status}")
        if head.fields.get("sec-websocket-accept") != self._accept:
            raise Refused("Sec-WebSocket-Accept is wrong")
        return Greeting(head.rest)

    def hello(self, number: int, position: str) -> bytes:
        text = self._hello_again if position else self._hello
        text = text.replace("{number}", str(number)).replace("{since}", position)
        return self.message(text) if text else b""

    def message(self, text: str) -> bytes:
        return encode_frame(Opcode.TEXT, text.encode(), mask=self._mask)

    def goodbye(self) -> bytes:
        return encode_close(mask=self._mask)

    def _read(self, data: bytes, reading: Any) -> Heard:
        complaint = ""
        try:
            events, reading = read(data, reading, LIMITS, masked=False)
        except ProtocolError as error:
            events, reading, complaint = error.events, None, f"protocol error {error.code}"
        messages = pings = 0
        marks: list[Mark] = []
        reply, code = b"", ""
        for opcode, payload in events:
            if opcode == Opcode.TEXT or opcode == Opcode.BINARY:
                messages += 1
                marks += self._mark(payload if isinstance(payload, str) else payload.decode("latin-1"))
            elif opcode == Opcode.PING:
                pings += 1
                reply += encode_frame(Opcode.PONG, payload, mask=self._mask)
            elif opcode == Opcode.CLOSE:
                code = str(payload[0])
                reply += encode_close(payload[0], mask=self._mask)
        if complaint and not code:
            code = complaint
            reply += encode_close(CloseCode.PROTOCOL_ERROR, mask=self._mask)
        return Heard(messages, tuple(marks), reply, pings, code=code, reading=reading)


class _Stream(NamedTuple):
    """What of an event stream is not whole: where the chunk stands, and the text that has been read of an event."""

    chunks: Chunks
    pending: bytes


class EventStreams(Kind):
    """Server-sent events. Whether the streams come in chunks is seen at the first, and must hold for all."""

    def __init__(self, request: Request, *, marked: bool) -> None:
        super().__init__(request, marked=marked)
        self._chunked: bool | None = None

    def request(self, number: int, position: str) -> bytes:
        last = [f"Last-Event-ID: {position}"] if position else []
        return self._request.head(number, position, ["Accept: text/event-stream", "Cache-Control: no-store", *last])

    def greet(self, data: bytes) -> Greeting | None:
        head = _head(data)
        if head is None:
            return None
        if head.status != 200:
            raise Refused(f"answered {head.status}")
        kind = head.fields.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "text/event-stream":
            raise Refused(f"answered {kind or 'no type'} instead of text/event-stream")
        chunked = _chunked(head)
        if self._chunked is None:
            self._chunked = chunked
        elif self._chunked is not chunked:
            raise Refused("some streams come in chunks and some do not")
        return Greeting(head.rest)

    def _read(self, data: bytes, reading: _Stream | None) -> Heard:
        chunks, pending = reading or (Chunks(), b"")
        after: Chunks | None = chunks
        if self._chunked:
            try:
                data, after, _ = chunks.feed(data)
            except AnswerError:
                raise Refused("broken chunks") from None
        text, start = pending + data, 0
        messages, comments, retry = 0, 0, None
        marks: list[Mark] = []
        for end in [found.end() for found in _BLOCK_END.finditer(text)]:
            reader, block, start = EventReader(), text[start:end], end
            for event in _feed(reader, block + b"\n" if block.endswith(b"\r") else block):
                messages += 1
                marks += self._mark(event.data, event.id)
            comments += reader.comments
            retry = reader.retry if reader.retry is not None else retry
        pending = text[start:]
        left = _Stream(after, pending) if after is not None and (pending or any(after)) else None
        code = "" if after is not None else self.ended
        return Heard(messages, tuple(marks), heartbeats=comments, retry=retry, code=code, reading=left)


def _feed(reader: EventReader, block: bytes) -> list[StreamedEvent]:
    try:
        return reader.feed(block)
    except StreamTooLarge:
        raise Refused("an event that is too large") from None


class _Answer(NamedTuple):
    """What of an answer is not whole: its head so far; or, after it, the chunks, or how many bytes there are to come."""

    head: bytes = b""
    chunks: Chunks | None = None
    remaining: int = 0
    status: int = 0
    last: bool = False


class KeepAlives(Kind):
    """Plain requests over connections that stay open. A connection is open when its first answer has come whole."""

    asks = True

    def request(self, number: int, position: str) -> bytes:
        return self._request.head(number, position)

    def greet(self, data: bytes) -> Greeting | None:
        heard = self._read(data, None)
        if heard.complaint:
            raise Refused(heard.complaint)
        if heard.messages and heard.code:
            raise Refused("the server keeps no connection open")
        return Greeting() if heard.messages else None

    def _read(self, data: bytes, reading: _Answer | None) -> Heard:
        messages, complaint, code = 0, "", ""
        state = reading or _Answer()
        while (data or state.status) and not code:
            if not state.status:
                head = _head(state.head + data)
                if head is None:
                    state = _Answer(state.head + data)
                    break
                state, data = _body(head), head.rest
            state, data, over = _consume(state, data)
            if not over:
                break
            messages += 1
            if state.status >= 400:
                complaint = f"answered {state.status}"
            if state.last:
                code = self.ended
            state = _Answer()
        return Heard(messages, code=code, complaint=complaint, reading=state if any(state) else None)


def _consume(state: _Answer, data: bytes) -> tuple[_Answer, bytes, bool]:
    if state.chunks is None:
        taken = min(state.remaining, len(data))
        state = state._replace(remaining=state.remaining - taken)
        return state, data[taken:], not state.remaining
    try:
        _, chunks, rest = state.chunks.feed(data)
    except AnswerError:
        raise Refused("broken chunks") from None
    return state._replace(chunks=chunks), rest, chunks is None


def _body(head: Head) -> _Answer:
    last = "close" in head.fields.get("connection", "").lower()
    if _chunked(head):
        return _Answer(chunks=Chunks(), status=head.status, last=last)
    length = head.fields.get("content-length", "")
    if not length and head.status not in (204, 304):
        raise Refused("the server keeps no connection open")  # the end of the body would be the end of the connection
    if length and not (length.isascii() and length.isdigit() and len(length) < 16):
        raise Refused("a Content-Length that is no number")
    return _Answer(remaining=int(length or 0), status=head.status, last=last)


def _head(data: bytes) -> Head | None:
    try:
        return read_head(data)
    except AnswerError:
        raise Refused("not an answer of HTTP/1") from None


def _chunked(head: Head) -> bool:
    return "chunked" in head.fields.get("transfer-encoding", "").lower()
