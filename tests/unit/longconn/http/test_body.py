"""Bodies: what has arrived first, then what still comes, and when the next request can follow."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.http.body import Body, ChunkedReader, LengthReader

from longconn.errors import BodyTooLarge
from longconn.http.body import LARGEST_REST, BodyUnreader, Incomplete, LimitedReader, ends_at_hand, has_been_read


class Wire:
    """Stands for a connection: gives its pieces one by one, and remembers how much was asked for."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = list(pieces)
        self.asked: list[int] = []
        self.attached = SimpleNamespace(failure=None)

    def read(self, size: int) -> bytes:
        self.asked.append(size)
        return self.pieces.pop(0) if self.pieces else b""


def unreader(data: bytes, wire: Wire | None = None) -> BodyUnreader:
    """What has arrived, and what will."""
    made = BodyUnreader(data)
    made.connection = wire  # type: ignore[assignment]
    return made


def chunked(data: bytes, *pieces: bytes) -> ChunkedReader:
    """The body of a request in chunks."""
    request = SimpleNamespace(limit_request_fields=100, limit_request_field_size=8190, trailers=[], parse_headers=None)
    return ChunkedReader(request, unreader(data, Wire(*pieces)))


def with_body(reader: Any, *, failed: bool = False) -> Any:
    body = Body(reader)
    body.failed = failed
    return SimpleNamespace(body=body)


def test_while_the_head_is_read_there_is_only_what_has_arrived() -> None:
    source = unreader(b"abc")
    assert b"abc" == source.read()
    with pytest.raises(Incomplete):
        source.read()


def test_what_has_arrived_comes_before_what_still_comes() -> None:
    source = unreader(b"abc", Wire(b"def", b"ghi"))
    assert [b"abc", b"def", b"ghi", b""] == [source.read() for _ in range(4)]


@pytest.mark.parametrize(
    ("wanted", "asked"), [(None, 8192), (0, 8192), (1, 8192), (100_000, 100_000), (50_000_000, 1_048_576)]
)
def test_as_much_is_read_at_once_as_is_wanted_within_bounds(wanted: int | None, asked: int) -> None:
    wire = Wire(b"a")
    unreader(b"", wire).chunk(wanted)
    assert [asked] == wire.asked


def test_a_body_of_a_known_length_ends_where_the_next_request_begins() -> None:
    source = unreader(b"abc", Wire(b"defGET /"))
    assert b"abcdef" == Body(LengthReader(source, 6)).read()
    assert b"GET /" == source.take_buffered()


@pytest.mark.parametrize("size", [1, 3, 4, 5, 100])
def test_a_body_in_chunks_within_its_limit_is_read_whole(size: int) -> None:
    wire = Wire()
    body = Body(LimitedReader(chunked(b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"), 5, wire))  # type: ignore[arg-type]
    assert b"abcde" == b"".join(iter(lambda: body.read(size), b""))
    assert wire.attached.failure is None


@pytest.mark.parametrize("size", [1, 4, 100])
def test_a_body_in_chunks_beyond_its_limit_is_refused(size: int) -> None:
    wire = Wire()
    body = Body(LimitedReader(chunked(b"3\r\nabc\r\n", b"3\r\ndef\r\n0\r\n\r\n"), 5, wire))  # type: ignore[arg-type]
    with pytest.raises(BodyTooLarge, match="a request's body may have 5 bytes"):
        b"".join(iter(lambda: body.read(size), b""))
    assert isinstance(wire.attached.failure, BodyTooLarge)


def test_a_body_that_was_there_in_full_is_at_hand_and_read() -> None:
    request = SimpleNamespace(body=io.BytesIO(b"abc"))
    assert (True, True) == (ends_at_hand(request), has_been_read(request))


@pytest.mark.parametrize(
    ("length", "at_hand", "read"),
    [(0, True, True), (1, True, False), (LARGEST_REST, True, False), (LARGEST_REST + 1, False, False)],
)
def test_a_little_rest_of_a_body_is_at_hand_and_none_is_read(length: int, at_hand: bool, read: bool) -> None:
    request = with_body(LengthReader(unreader(b"abc", Wire()), length))
    assert (at_hand, read) == (ends_at_hand(request), has_been_read(request))


def test_the_rest_of_a_body_that_failed_is_not_at_hand() -> None:
    assert not ends_at_hand(with_body(LengthReader(unreader(b"abc"), 3), failed=True))


@pytest.mark.parametrize("limit", [None, 1000])
def test_a_body_in_chunks_is_at_hand_when_its_last_chunk_has_been_read(limit: int | None) -> None:
    reader: Any = chunked(b"3\r\nabc\r\n0\r\n\r\n")
    request = with_body(reader if limit is None else LimitedReader(reader, limit, Wire()))  # type: ignore[arg-type]
    assert b"a" == request.body.reader.read(1)
    assert (False, False) == (ends_at_hand(request), has_been_read(request))
    assert b"bc" == request.body.read()
    assert (True, True) == (ends_at_hand(request), has_been_read(request))
