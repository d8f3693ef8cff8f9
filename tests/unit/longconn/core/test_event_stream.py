"""Server-sent events: what is written is what a client reads, in whatever pieces it arrives."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longconn.core.event_stream import (
    HEARTBEAT,
    EventReader,
    StreamedEvent,
    StreamTooLarge,
    encode_comment,
    encode_event,
    encode_retry,
)
from tests.support.examples import many

TEXT = st.text(st.characters(codec="utf-8"), max_size=40)
ONE_LINE = TEXT.map(lambda text: text.replace("\r", "").replace("\n", "").replace("\0", "").lstrip("\ufeff"))
PIECES = st.lists(
    st.sampled_from([b"data: a", b"data", b"id: 7", b": x", b"\n", b"\r", b"\r\n", b"\xc3\xa9", b"retry: 5"])
)


def read(stream: bytes, *, at_once: int = 1 << 20) -> list[StreamedEvent]:
    reader = EventReader()
    pieces = [stream[first : first + at_once] for first in range(0, len(stream), at_once)]
    return [event for piece in pieces for event in reader.feed(piece)]


# What is written


def test_an_event_is_its_fields_and_an_empty_line() -> None:
    assert b"id: 1-2\nevent: news\ndata: hello\n\n" == encode_event("hello", event="news", id="1-2")


def test_every_line_of_the_data_is_a_field() -> None:
    assert b"data: a\ndata: b\ndata: \ndata: c\n\n" == encode_event("a\r\nb\r\rc")


def test_data_may_be_empty() -> None:
    assert [StreamedEvent("")] == read(encode_event(""))


@pytest.mark.parametrize("field", ["event", "id"])
@pytest.mark.parametrize("value", ["a\nb", "a\rb", "\r\n"])
def test_a_line_break_where_a_field_could_be_smuggled_in_is_refused(field: str, value: str) -> None:
    with pytest.raises(ValueError, match="a line break would begin another field"):
        encode_event("data", **{field: value})


def test_an_id_that_clients_would_ignore_is_refused() -> None:
    with pytest.raises(ValueError, match="NUL"):
        encode_event("data", id="a\0b")


def test_a_retry_is_in_whole_milliseconds() -> None:
    assert b"retry: 2500\n\n" == encode_retry(2.5)


def test_a_client_may_be_told_where_it_is_before_there_is_an_event() -> None:
    reader = EventReader()
    assert [] == reader.feed(encode_retry(1, id="18f-3"))
    assert (1.0, "18f-3") == (reader.retry, reader.id)


@pytest.mark.parametrize("seconds", [-1, float("nan")])
def test_a_retry_of_less_than_nothing_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="0 seconds or more"):
        encode_retry(seconds)


def test_a_comment_is_not_an_event_whatever_its_lines() -> None:
    reader = EventReader()
    assert [] == reader.feed(HEARTBEAT + encode_comment("two\r\ndata: lines"))
    assert 3 == reader.comments


@given(st.lists(st.tuples(TEXT, ONE_LINE, ONE_LINE), max_size=5), st.integers(1, 50))
@settings(max_examples=many(200))
def test_what_is_written_is_what_is_read(events: list[tuple[str, str, str]], at_once: int) -> None:
    stream = b"".join(encode_event(data, event=event, id=number) for data, event, number in events)
    last = ""
    expected = []
    for data, event, number in events:
        last = number or last
        expected.append(StreamedEvent(data.replace("\r\n", "\n").replace("\r", "\n"), event or "message", last))
    assert expected == read(stream, at_once=at_once)


# What is read


@given(PIECES, st.integers(1, 5))
@settings(max_examples=many(200))
def test_pieces_do_not_matter(pieces: list[bytes], at_once: int) -> None:
    stream = b"".join(pieces)
    assert read(stream) == read(stream, at_once=at_once)


@given(st.binary(max_size=200), st.integers(1, 20))
@settings(max_examples=many(200))
def test_any_bytes_are_a_stream(stream: bytes, at_once: int) -> None:
    assert read(stream) == read(stream, at_once=at_once)


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_every_kind_of_line_end_ends_a_line_at_once(end: bytes) -> None:
    assert [StreamedEvent("a")] == read(b"data: a" + end + end)


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"data\n\n", [StreamedEvent("")]),
        (b"data:a\ndata: b\n\n", [StreamedEvent("a\nb")]),
        (b"data:  a\n\n", [StreamedEvent(" a")]),
        (b"event: e\n\ndata: a\n\n", [StreamedEvent("a")]),
        (b"id: 1\n\ndata: a\n\n", [StreamedEvent("a", id="1")]),
        (b"id: 1\ndata: a\n\nid\ndata: b\n\n", [StreamedEvent("a", id="1"), StreamedEvent("b")]),
        (b"id: \0\ndata: a\n\n", [StreamedEvent("a")]),
        (b"\xef\xbb\xbfdata: a\n\n", [StreamedEvent("a")]),
        (b"other: x\ndata: a\n\n", [StreamedEvent("a")]),
        (b"data: unfinished\n", []),
    ],
)
def test_a_stream_is_read_as_the_standard_says(stream: bytes, expected: list[StreamedEvent]) -> None:
    assert expected == read(stream)


def test_the_reader_knows_when_to_come_back_and_from_where() -> None:
    reader = EventReader()
    reader.feed(b"retry: 1500\nid: 18f-3\n\nretry: soon\nretry: -1\n\n")
    assert (1.5, "18f-3") == (reader.retry, reader.id)


@pytest.mark.parametrize("stream", [b"data: " + b"x" * 100, b"data: 1234567890\n" * 10])
def test_an_event_that_does_not_end_is_given_up(stream: bytes) -> None:
    with pytest.raises(StreamTooLarge, match="more than 64 bytes"):
        EventReader(largest=64).feed(stream)
