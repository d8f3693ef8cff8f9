"""Server-sent events as text: what a server writes and how a client reads it.

Source: WHATWG HTML, "Server-sent events", sections "Parsing an event stream" and "Interpreting an event stream". Lines end
with LF, CR or CR LF; an empty line ends an event; a line that begins with a colon is a comment, which keeps the connection
in use and which no application sees.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

__all__ = [
    "HEARTBEAT",
    "EventReader",
    "StreamTooLarge",
    "StreamedEvent",
    "encode_comment",
    "encode_event",
    "encode_retry",
]

HEARTBEAT: Final = b":\n\n"
"""The shortest comment."""

_LINE_END: Final = re.compile(r"\r\n|\n|\r")


def encode_event(data: str, *, event: str = "", id: str = "") -> bytes:  # noqa: A002 - the field's name
    """One event. `data` may have any number of lines; `event` is what a browser listens for, "message" when empty; `id` is what
    the client sends as Last-Event-ID when it comes back.

    Raises `ValueError` when `event` or `id` has a line break, or `id` a NUL, at which clients ignore it.
    """
    lines = []
    if id:
        _check("id", id)
        if "\0" in id:
            raise ValueError(f"id={id!r}: clients ignore an id with a NUL")
        lines.append(f"id: {id}\n")
    if event:
        _check("event", event)
        lines.append(f"event: {event}\n")
    if "\n" in data or "\r" in data:
        lines.extend([f"data: {line}\n" for line in _LINE_END.split(data)])
    else:
        lines.append(f"data: {data}\n")
    lines.append("\n")
    return "".join(lines).encode("utf-8", "replace")


def encode_retry(seconds: float, *, id: str = "") -> bytes:  # noqa: A002 - the field's name
    """Have the client wait so long, from 0 seconds, before it comes back, from now on; with `id` it knows where it is, although
    no event has come. Raises `ValueError` below 0, and as `encode_event` for the id."""
    if not seconds >= 0:
        raise ValueError(f"retry={seconds!r}: a client waits for 0 seconds or more")
    _check("id", id)
    place = f"id: {id}\n" if id else ""
    return f"retry: {round(seconds * 1000)}\n{place}\n".encode()


def encode_comment(text: str = "") -> bytes:
    """A comment. Whatever lines it has, no client takes them for fields."""
    if not text:
        return HEARTBEAT
    return ("".join(f": {line}\n" for line in _LINE_END.split(text)) + "\n").encode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class StreamedEvent:
    """An event as an application gets it. `id` is the last one that came, with this event or with an earlier one."""

    data: str
    event: str = "message"
    id: str = ""


class StreamTooLarge(ValueError):
    """An event has more bytes than the reader takes."""


class EventReader:
    """Reads the stream of one connection, in whatever pieces it arrives.

    `largest` is the most bytes that an incomplete event may have. `retry` is how many seconds the server last asked the client
    to wait before it comes back, None when it never did; `id` is what to send as Last-Event-ID then; `comments` counts the
    comments, which are how a quiet stream shows that it lives.
    """

    __slots__ = (
        "_after_return",
        "_data",
        "_event",
        "_largest",
        "_rest",
        "_size",
        "_started",
        "comments",
        "id",
        "retry",
    )

    def __init__(self, *, id: str = "", largest: int = 16_777_216) -> None:  # noqa: A002 - the field's name
        self.id = id
        self.retry: float | None = None
        self.comments = 0
        self._largest = largest
        self._rest = b""
        self._data: list[str] = []
        self._event = ""
        self._size = 0
        self._started = False
        self._after_return = False

    def feed(self, received: bytes) -> list[StreamedEvent]:
        """The events that are complete now. Raises `StreamTooLarge`."""
        received = self._rest + received
        if not self._started:
            if len(received) < 3 and b"\xef\xbb\xbf".startswith(received):
                self._rest = received  # it may become a byte order mark, which is not the text's
                return []
            self._started = True
            received = received.removeprefix(b"\xef\xbb\xbf")
        events: list[StreamedEvent] = []
        for line in self._lines(received):
            if line:
                self._take(line)
            elif (event := self._finish()) is not None:
                events.append(event)
        if self._size + len(self._rest) > self._largest:
            raise StreamTooLarge(f"an event of more than {self._largest} bytes")
        return events

    def _lines(self, received: bytes) -> list[bytes]:
        """The complete lines. A CR ends one at once, and a LF that comes next belongs to it."""
        if self._after_return and received:
            received = received.removeprefix(b"\n")
            self._after_return = False
        if b"\r" in received:
            self._after_return = received.endswith(b"\r")
            received = received.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, self._rest = received.split(b"\n")
        return lines

    def _take(self, line: bytes) -> None:
        self._size += len(line)
        if self._size > self._largest:
            raise StreamTooLarge(f"an event of more than {self._largest} bytes")
        if line.startswith(b":"):
            self.comments += 1
            return
        field, _, value = line.decode("utf-8", "replace").partition(":")
        value = value.removeprefix(" ")
        match field:
            case "data":
                self._data.append(value)
            case "event":
                self._event = value
            case "id" if "\0" not in value:
                self.id = value
            case "retry" if value.isascii() and value.isdigit() and len(value) < 16:
                self.retry = int(value) / 1000

    def _finish(self) -> StreamedEvent | None:
        data, event = self._data, self._event
        self._data, self._event, self._size = [], "", 0
        return StreamedEvent("\n".join(data), event or "message", self.id) if data else None


def _check(field: str, value: str) -> None:
    if "\n" in value or "\r" in value:
        raise ValueError(f"{field}={value!r}: a line break would begin another field")
