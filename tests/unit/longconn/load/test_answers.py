"""Heads, and bodies in chunks."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longconn.load.answers import AnswerError, Chunks, Head, read_head


def test_a_head_is_read_with_what_follows_it() -> None:
    data = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nX-A: 1\r\nx-a:2\r\n\r\nrest"
    assert Head(101, {"upgrade": "websocket", "x-a": "1, 2"}, b"rest") == read_head(data)


def test_a_head_that_is_not_whole_is_waited_for() -> None:
    whole = b"HTTP/1.0 200 OK\r\nA: b\r\n\r\n"
    assert [None] * len(whole) == [read_head(whole[:end]) for end in range(len(whole))]
    assert Head(200, {"a": "b"}, b"") == read_head(whole)


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-x",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 999 x\r\n\r\n",
        b"HTTP/1.1 200x\r\n\r\n",
        b"HTTP/1.1 " + b"a" * 65_600,
    ],
)
def test_what_is_no_answer_is_told_apart(data: bytes) -> None:
    with pytest.raises(AnswerError):
        read_head(data)


def chunked(parts: list[bytes]) -> bytes:
    """A body of these chunks."""
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=5), st.binary(max_size=5), st.lists(st.integers(0, 300)))
def test_chunks_may_come_in_any_pieces(parts: list[bytes], rest: bytes, cuts: list[int]) -> None:
    data = chunked(parts) + rest
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    reading: Chunks | None = Chunks()
    body, after = b"", b""
    for start, end in itertools.pairwise(edges):
        if reading is None:
            after += data[start:end]
            continue
        more, reading, after = reading.feed(data[start:end])
        body += more
    assert (b"".join(parts), None, rest) == (body, reading, after)


def test_between_two_chunks_nothing_is_kept() -> None:
    assert (b"abc", Chunks(), b"") == Chunks().feed(b"3;name=value\r\nabc\r\n")


@pytest.mark.parametrize("data", [b"x\r\n", b"\r\n", b"-1\r\n", b"0x3\r\nabc\r\n", b"1" * 1_100])
def test_what_is_no_chunk_is_told_apart(data: bytes) -> None:
    with pytest.raises(AnswerError):
        Chunks().feed(data)
