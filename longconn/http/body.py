"""The body of a request, as it comes off its connection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gunicorn.http.body import ChunkedReader, LengthReader
from gunicorn.http.unreader import Unreader

from longconn.errors import BodyTooLarge

if TYPE_CHECKING:
    from longconn.parking.connection import Connection

__all__ = ["BodyUnreader", "Incomplete", "LimitedReader", "ends_at_hand", "has_been_read"]

LARGEST_CHUNK = 1_048_576
SMALLEST_CHUNK = 8_192
LARGEST_REST = 65_536
"""How much of a body that the application has not read is read for the sake of the next request."""


class Incomplete(Exception):
    """A head is not there in full yet."""


class BodyUnreader(Unreader):  # type: ignore[misc]  # gunicorn publishes no types
    """What gunicorn's readers take their bytes from: first those that have arrived, then those of the connection.

    While the head is read (`connection` is None) there is nothing but what has arrived, and wanting more raises
    `Incomplete`.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.buf.write(data)
        self.connection: Connection | None = None
        self.sock: Any = None

    def chunk(self, size_hint: int | None = None) -> bytes:
        """The next bytes, b"" at the end. Raises `Incomplete`, `BodyTooSlow`, `OSError`."""
        connection = self.connection
        if connection is None:
            raise Incomplete
        return connection.read(min(max(size_hint or 0, SMALLEST_CHUNK), LARGEST_CHUNK))


class LimitedReader:
    """A reader of chunks that gives no more than `limit` bytes. Raises `BodyTooLarge` instead."""

    def __init__(self, reader: ChunkedReader, limit: int, connection: Connection) -> None:
        self._reader = reader
        self._left = limit
        self._limit = limit
        self._connection = connection

    @property
    def parser(self) -> Any:
        """None when the last chunk has been read."""
        return self._reader.parser

    def read(self, size: int) -> bytes:
        """As gunicorn's readers."""
        data: bytes = self._reader.read(min(size, self._left + 1))
        self._left -= len(data)
        if self._left < 0:
            failure = BodyTooLarge(f"a request's body may have {self._limit} bytes (LONGCONN_MAX_BODY)")
            self._connection.attached.failure = failure
            raise failure
        return data


def has_been_read(request: Any) -> bool:
    """Whether nothing of the request's body is still to be read off its connection."""
    reader = getattr(request.body, "reader", None)
    if reader is None:
        return True  # it was there in full
    return bool(reader.length == 0) if isinstance(reader, LengthReader) else reader.parser is None


def ends_at_hand(request: Any) -> bool:
    """Whether the request's body has been read, or what is left is so little that it can be waited for, so that the next
    request can follow."""
    reader = getattr(request.body, "reader", None)
    if reader is None:
        return True  # it was there in full
    if request.body.failed:
        return False
    if not isinstance(reader, LengthReader):
        return reader.parser is None  # of a chunked body
    return bool(reader.length <= LARGEST_REST)
