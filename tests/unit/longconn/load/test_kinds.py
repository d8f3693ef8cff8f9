"""What clients of each kind say, and what they make of what comes, in whatever pieces."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Close, Frame
from websockets.frames import Opcode as TheirOpcode
from websockets.http11 import Request as TheirRequest
from websockets.server import ServerProtocol
from websockets.streams import StreamReader

from longconn.core.event_stream import HEARTBEAT, encode_event, encode_retry
from longconn.core.frames import Opcode, encode_close, encode_frame
from longconn.load.kinds import EventStreams, Heard, KeepAlives, Kind, Refused, Request, WebSockets
from longconn.load.marks import Mark

REQUEST = Request("example:8000", "/ws/{number}?a=1", ("X-Number: {number}",), "since")
SWITCHED = (
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {}\r\n\r\n"
)
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"


def websockets(**options: Any) -> WebSockets:
    """WebSockets with a key and a mask that are no secrets."""
    return WebSockets(REQUEST, marked=True, nonce=bytes(16), mask=b"\1\2\3\4", **options)


def their_request(data: bytes) -> TheirRequest:
    """A request as the `websockets` library reads it."""
    reader = StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    parsing = TheirRequest.parse(reader.read_line)
    with pytest.raises(StopIteration) as done:
        next(parsing)
    request: TheirRequest = done.value.value
    return request


def heard(kind: Kind, pieces: list[bytes]) -> Heard:
    """The sum of what is heard in all pieces."""
    total, reading = Heard(), None
    for piece in pieces:
        if not piece:
            continue
        each = kind.read(piece, reading)
        reading = each.reading
        total = Heard(
            total.messages + each.messages,
            total.marks + each.marks,
            total.reply + each.reply,
            total.pings + each.pings,
            total.heartbeats + each.heartbeats,
            each.retry if each.retry is not None else total.retry,
            total.code or each.code,
            total.complaint or each.complaint,
            reading,
        )
    return total


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    """The data in pieces."""
    edges = [0, *sorted(each % (len(data) + 1) for each in cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


def test_another_implementation_agrees_to_the_handshake() -> None:
    kind = websockets(subprotocols=("a", "b"))
    request = their_request(kind.request(7, "18f-3"))
    assert "/ws/7?a=1&since=18f-3" == request.path
    assert ("example:8000", "7", "a, b") == tuple(
        request.headers[name] for name in ("Host", "X-Number", "Sec-WebSocket-Protocol")
    )
    server = ServerProtocol()
    response = server.accept(request)
    assert 101 == response.status_code
    greeting = kind.greet(response.serialize() + b"rest")
    assert greeting is not None
    assert b"rest" == greeting.rest


def test_the_head_may_come_in_pieces() -> None:
    kind = websockets()
    accept = SWITCHED.format("ICX+Yqv66kxgM0FcWaLWlFLwTAI=").encode()
    assert [None] * len(accept) == [kind.greet(accept[:end]) for end in range(len(accept))]
    assert kind.greet(accept) is not None


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", "answered 403"),
        (SWITCHED.format("bm8=").encode(), "Sec-WebSocket-Accept is wrong"),
        (b"SSH-2.0-OpenSSH\r\n", "not an answer of HTTP/1"),
    ],
)
def test_a_refusal_says_why(answer: bytes, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        websockets().greet(answer)


def test_what_is_said_first_names_the_connection_and_later_what_it_saw() -> None:
    kind = websockets(hello='{"subscribe": "room-{number}"}', hello_again='{"since": "{since}"}')
    said = [kind.hello(3, ""), kind.hello(3, "18f-9")]
    assert ['{"subscribe": "room-3"}', '{"since": "18f-9"}'] == [unmasked(frame) for frame in said]
    assert b"" == websockets().hello(3, "18f-9")


def unmasked(data: bytes) -> str:
    """The text of a client's frame, read by another implementation."""
    reader = StreamReader()
    reader.feed_data(data)
    parsing = Frame.parse(reader.read_exact, mask=True, max_size=None)
    with pytest.raises(StopIteration) as done:
        next(parsing)
    frame: Frame = done.value.value
    assert TheirOpcode.TEXT == frame.opcode
    return bytes(frame.data).decode()


@given(st.lists(st.integers(0, 400)))
def test_frames_may_come_in_any_pieces(cuts: list[int]) -> None:
    data = (
        encode_frame(Opcode.TEXT, b"1 1.5 x")
        + encode_frame(Opcode.PING, b"p")
        + encode_frame(Opcode.TEXT, b'{"id": "18f-', fin=False)
        + encode_frame(Opcode.PING, b"q")
        + encode_frame(Opcode.CONTINUATION, b'2"}')
        + encode_frame(Opcode.BINARY, b"3 2.5")
        + encode_frame(Opcode.TEXT, b"no number")
        + encode_close(1012, "restart")
    )
    mask = b"\1\2\3\4"
    expected = Heard(
        messages=4,
        marks=(Mark("", "", 1, 1.5, "1"), Mark("", "18f", 2, 0.0, "18f-2"), Mark("", "", 3, 2.5, "3")),
        reply=encode_frame(Opcode.PONG, b"p", mask=mask)
        + encode_frame(Opcode.PONG, b"q", mask=mask)
        + encode_close(1012, mask=mask),
        pings=2,
        code="1012",
    )
    assert expected == heard(websockets(), cut(data, cuts))


def test_a_close_without_a_code_is_answered_alike() -> None:
    assert Heard(reply=bytes.fromhex("888001020304"), code="1005") == websockets().read(b"\x88\x00", None)


def test_what_breaks_the_protocol_ends_it() -> None:
    broken = encode_frame(Opcode.TEXT, b"1 1.0") + b"\xff\x00"
    found = websockets().read(broken, None)
    assert (1, "protocol error 1002") == (found.messages, found.code)


def test_another_implementation_understands_the_goodbye() -> None:
    reader = StreamReader()
    reader.feed_data(websockets().goodbye())
    parsing = Frame.parse(reader.read_exact, mask=True, max_size=None)
    with pytest.raises(StopIteration) as done:
        next(parsing)
    assert Close(1000, "") == Close.parse(done.value.value.data)


def test_what_many_receive_alike_is_read_once() -> None:
    kind = websockets()
    data = encode_frame(Opcode.TEXT, b"1 1.0 x")
    assert kind.read(data, None) is kind.read(bytes(bytearray(data)), None)


def test_what_is_remembered_is_bounded() -> None:
    kind = websockets()
    for number in range(1_000):
        kind.read(encode_frame(Opcode.TEXT, b"%d 1.0" % number), None)
    assert len(kind._known) <= 64


def streams(*fields: bytes) -> EventStreams:
    """Event streams whose first has been answered."""
    kind = EventStreams(Request("a", "/events"), marked=True)
    assert kind.greet(STREAM + b"".join(fields) + b"\r\n") is not None
    return kind


EVENTS = (
    encode_retry(2.5)
    + encode_event("hello", id="18f-1")
    + HEARTBEAT
    + encode_event("2 1.5 first\nsecond", event="news", id="18f-2")
    + b"event: nothing\n\n"
    + encode_event("no number")
)
SEEN = Heard(
    messages=3,
    marks=(Mark("", "18f", 1, 0.0, "18f-1"), Mark("", "18f", 2, 1.5, "18f-2")),
    heartbeats=1,
    retry=2.5,
)


@given(st.lists(st.integers(0, 400)))
def test_events_may_come_in_any_pieces(cuts: list[int]) -> None:
    assert SEEN == heard(streams(), cut(EVENTS, cuts))


@given(st.lists(st.integers(0, 400)), st.lists(st.integers(0, 400)))
def test_events_in_chunks_may_come_in_any_pieces(cuts: list[int], chunks: list[int]) -> None:
    parts = [part for part in cut(EVENTS, chunks) if part]
    data = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
    assert SEEN == heard(streams(b"Transfer-Encoding: chunked\r\n"), cut(data, cuts))


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
def test_lines_end_in_three_ways(line_end: bytes) -> None:
    data = b"id: 5\ndata: a\ndata: b\n\n".replace(b"\n", line_end)
    assert Heard(1, (Mark("", "", 5, 0.0, "5"),)) == streams().read(data, None)


def test_the_last_chunk_is_the_end() -> None:
    assert "ended" == streams(b"Transfer-Encoding: chunked\r\n").read(b"0\r\n\r\n", None).code


def test_a_stream_says_what_it_saw_last() -> None:
    head = EventStreams(Request("a", "/events", (), "since"), marked=True).request(1, "18f-4")
    assert head.startswith(b"GET /events?since=18f-4 HTTP/1.1\r\n")
    assert b"\r\nLast-Event-ID: 18f-4\r\n" in head


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 503 x\r\n\r\n", "answered 503"),
        (b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n", "answered text/html instead"),
        (STREAM + b"Transfer-Encoding: chunked\r\n\r\n", "some streams come in chunks"),
    ],
)
def test_what_is_no_event_stream_is_refused(answer: bytes, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        streams().greet(answer)


def test_broken_chunks_are_refused() -> None:
    with pytest.raises(Refused, match="broken chunks"):
        streams(b"Transfer-Encoding: chunked\r\n").read(b"what\r\n", None)


def kept() -> KeepAlives:
    """Connections kept alive."""
    return KeepAlives(Request("a", "/"), marked=False)


ANSWERS = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\npong"
    b"HTTP/1.1 204 No Content\r\n\r\n"
    b"HTTP/1.1 503 x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
)


@given(st.lists(st.integers(0, 400)))
def test_answers_may_come_in_any_pieces(cuts: list[int]) -> None:
    assert Heard(4, complaint="answered 503") == heard(kept(), cut(ANSWERS, cuts))


def test_an_answer_that_is_the_last_ends_the_connection() -> None:
    last = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\na"
    assert (1, "ended") == (kept().read(last, None).messages, kept().read(last, None).code)
    with pytest.raises(Refused, match="keeps no connection open"):
        kept().greet(last)


def test_a_connection_is_open_when_its_first_answer_is_whole() -> None:
    assert kept().greet(ANSWERS[:-1][:40]) is None
    assert kept().greet(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\npong") is not None
    with pytest.raises(Refused, match="answered 503"):
        kept().greet(b"HTTP/1.1 503 x\r\nContent-Length: 0\r\n\r\n")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", "keeps no connection open"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "no number"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", "broken chunks"),
        (b"what is this", "not an answer"),
    ],
)
def test_an_answer_that_cannot_be_followed_is_refused(answer: bytes, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        kept().greet(answer)


def test_json_of_a_service_is_understood() -> None:
    text = json.dumps({"type": "message", "channel": "news", "id": "18f-2", "data": {"at": 5.0}})
    frame = encode_frame(Opcode.TEXT, text.encode())
    assert (Mark("news", "18f", 2, 5.0, "18f-2"),) == websockets().read(frame, None).marks
