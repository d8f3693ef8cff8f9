"""Answers: byte for byte what gunicorn's own would be, in as few writes as can be."""

from __future__ import annotations

import io
import re
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.http import wsgi
from gunicorn.http.errors import InvalidResponseHeader, InvalidResponseHeaderName
from hypothesis import example, given
from hypothesis import strategies as some

from longconn.core.states import State, advance
from longconn.errors import BodyTooSlow, ConnectionOver
from longconn.http import response as responses
from longconn.http.response import Response
from longconn.upgraded import Endpoint, UpgradeError

CFG = Config()
GIVEN = [("Content-Type", "text/plain")]


class Wire:
    """Stands for a connection: takes down what is written, one item a write."""

    def __init__(self) -> None:
        self.state: int = State.RESPONDING
        self.writes: list[bytes] = []
        self.listener = SimpleNamespace(secure=False)
        self.lot = self
        self.attached: Any = None

    def write(self, data: bytes) -> None:
        self.writes.append(bytes(data))

    def move(self, connection: Wire, event: int) -> None:
        self.state = advance(self.state, event)

    def unread(self) -> int:
        return 0

    def over(self) -> ConnectionOver:
        return ConnectionOver("over")

    def fileno(self) -> int:
        return -1


class Hosting:
    """Stands for what serves the connection."""

    cfg = CFG

    def __init__(self, *, closes: bool = False) -> None:
        self.closes = closes
        self.upgrading = SimpleNamespace(upgrade=lambda connection, endpoint: (connection, endpoint))

    def must_close(self, connection: Any) -> bool:
        return self.closes


def asked(method: str = "GET", version: tuple[int, int] = (1, 1), *, closes: bool = False, body: Any = None) -> Any:
    """What both kinds of responses want to know of a request."""
    return SimpleNamespace(
        method=method, version=version, should_close=lambda: closes, headers=[], body=body or io.BytesIO()
    )


def answering(request: Any = None, wire: Wire | None = None, **hosting: Any) -> tuple[Response, Wire]:
    wire = wire or Wire()
    return Response(request or asked(), wire, Hosting(**hosting)), wire  # type: ignore[arg-type]


def fields(data: bytes) -> list[bytes]:
    """The lines of a head, without the one that depends on the time."""
    return [line for line in data.split(b"\r\n\r\n")[0].split(b"\r\n") if not line.startswith(b"Date: ")]


class Socket:
    """Stands for the socket that gunicorn's response writes to."""

    def __init__(self) -> None:
        self.data = b""

    def sendall(self, data: bytes) -> None:
        self.data += data


def told(response: Any, status: Any, headers: Any, body: list[Any]) -> object:
    """Answers as an application does. None, or the type of the error."""
    try:
        write = response.start_response(status, headers)
        for piece in body:
            write(piece)
        response.close()
    except Exception as error:  # noqa: BLE001
        return type(error)
    return None


def without_date(data: bytes) -> bytes:
    return re.sub(rb"\r\nDate: [^\r]*", b"", data)


STATUSES = ["200 OK", "200", "204 No Content", "304 Not Modified", "102 Processing", "404 Not Found", "500 ",
            "205 Reset", "100 Continue", "2000 OK", "20 OK", "200  OK", "200 O\nK", "200 \xe9", "", 200, None]  # fmt: skip
NAMES = ["Content-Type", "X-A", "x-a", "Content-Length", "content-length", "Connection", "Upgrade", "Transfer-Encoding",
         "Server", "Date", "Keep-Alive", "Trailer", "Set-Cookie", "X A", "", "X\n", "X-\xe9", 5]  # fmt: skip
VALUES = ["a", " a\t", "", "5", "0", "3", "-1", "x", "close", "upgrade", "Upgrade", "websocket", "WebSocket", "keep-alive",
          "chunked", "a\r\nb", "a\nb", "\x00", "\x7f", "\xe9", "€", "a\tb", 5, None]  # fmt: skip


@given(
    method=some.sampled_from(["GET", "HEAD", "POST", "CONNECT"]),
    version=some.sampled_from([(1, 0), (1, 1)]),
    closes=some.booleans(),
    status=some.sampled_from(STATUSES),
    headers=some.lists(some.tuples(some.sampled_from(NAMES), some.sampled_from(VALUES)), max_size=4),
    body=some.lists(some.sampled_from([b"", b"a", b"hello", b"x" * 100, "text", None]), max_size=4),
)
@example("GET", (1, 1), False, "200 OK", [("Content-Length", "5")], [b"hello", b"more"])
@example("GET", (1, 1), False, "200 OK", [], [b"hello", "text"])
@example("HEAD", (1, 1), False, "200 OK", [("Content-Length", "5")], [])
def test_it_writes_what_gunicorn_writes(
    method: str, version: tuple[int, int], closes: bool, status: Any, headers: Any, body: list[Any]
) -> None:
    request = asked(method, version, closes=closes)
    socket = Socket()
    theirs = wsgi.Response(request, socket, CFG)
    ours, wire = answering(request)
    assert told(theirs, status, headers, body) == told(ours, status, headers, body)
    assert without_date(socket.data) == without_date(b"".join(wire.writes))
    if theirs.status is not None:
        assert (theirs.status, theirs.sent, theirs.headers_sent) == (ours.status, ours.sent, ours.headers_sent)
        assert theirs.should_close() == ours.should_close()


def test_head_and_body_leave_in_one_write() -> None:
    response, wire = answering()
    response.start_response("200 OK", [*GIVEN, ("Content-Length", "5")])(b"hello")
    response.close()
    (written,) = wire.writes
    assert written.endswith(b"\r\nConnection: keep-alive\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello")


def test_a_large_piece_is_not_copied_behind_its_head() -> None:
    response, wire = answering()
    response.start_response("200 OK", [("Content-Length", "2000000")])(bytes(2_000_000))
    assert [False, True] == [len(written) == 2_000_000 for written in wire.writes]


def test_without_a_length_it_comes_in_chunks_and_an_empty_piece_ends_nothing() -> None:
    response, wire = answering()
    write = response.start_response("200 OK", GIVEN)
    for piece in (b"one", b"", b"three"):
        write(piece)
    response.close()
    head, _, body = b"".join(wire.writes).partition(b"\r\n\r\n")
    assert b"Transfer-Encoding: chunked" in head
    assert b"3\r\none\r\n5\r\nthree\r\n0\r\n\r\n" == body


@pytest.mark.parametrize(
    "method_and_status", [("HEAD", "200 OK"), ("GET", "204 No Content"), ("GET", "304 Not Modified")]
)
def test_what_may_have_no_body_has_none_and_the_log_says_so_once(
    method_and_status: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    method, status = method_and_status
    response, wire = answering(asked(method))
    write = response.start_response(status, [("Content-Length", "5")])
    write(b"hello")
    write(b"again")
    response.close()
    assert b"".join(wire.writes).endswith(b"\r\n\r\n")
    assert 1 == sum("no-body response" in record.message for record in caplog.records)


def test_a_second_start_needs_an_error() -> None:
    response, _ = answering()
    response.start_response("200 OK", GIVEN)
    with pytest.raises(AssertionError, match="Response headers already set!"):
        response.start_response("200 OK", GIVEN)


def test_an_answer_may_start_again_as_long_as_nothing_was_written() -> None:
    response, wire = answering()
    response.start_response("200 OK", [("Content-Length", "100"), ("X-A", "a")])
    try:
        raise RuntimeError("too bad")  # noqa: TRY301
    except RuntimeError:
        response.start_response("500 Oh", [("Content-Length", "3")], sys.exc_info())
    response.write(b"bad")
    assert [b"HTTP/1.1 500 Oh", b"Server: gunicorn", b"Connection: keep-alive", b"Content-Length: 3"] == fields(
        wire.writes[0]
    )


def test_an_error_after_the_first_byte_is_raised_again() -> None:
    response, _ = answering()
    response.start_response("200 OK", GIVEN)(b"a")
    error = RuntimeError("too bad")
    with pytest.raises(RuntimeError, match="too bad"):
        response.start_response("500 Oh", [], (RuntimeError, error, None))


def test_what_is_invalid_is_named_without_its_value() -> None:
    response, _ = answering()
    with pytest.raises(InvalidResponseHeader, match="X-Token") as caught:
        response.start_response("200 OK", [("X-Token", "secret\r\n")])
    assert "secret" not in str(caught.value)
    with pytest.raises(InvalidResponseHeaderName):
        answering()[0].start_response("200 OK", [("X Token", "a")])


@pytest.mark.parametrize("what", ["the worker leaves", "another protocol was asked for", "a long body is unread"])
def test_an_answer_says_that_it_is_the_last(what: str) -> None:
    reader = SimpleNamespace(parser=object())
    unread = SimpleNamespace(reader=reader, failed=False) if "unread" in what else None
    response, wire = answering(asked(body=unread), closes="leaves" in what)
    response.asked_to_upgrade = "protocol" in what
    response.start_response("200 OK", [("Content-Length", "0")])
    response.close()
    assert b"Connection: close" in fields(wire.writes[0])
    assert response.should_close()
    assert ("unread" in what) == response.left_unread


def test_whether_it_is_the_last_is_decided_when_its_head_is_written() -> None:
    response, wire = answering()
    write = response.start_response("200 OK", [("Content-Length", "2")])
    response.serving.closes = True  # type: ignore[attr-defined]
    write(b"a")
    response.serving.closes = False  # type: ignore[attr-defined]
    write(b"b")
    assert b"Connection: close" in fields(wire.writes[0])
    assert response.should_close()


def test_a_body_that_still_comes_is_over_for_the_state_when_the_answer_begins() -> None:
    wire = Wire()
    wire.state = State.READING_BODY
    response, _ = answering(wire=wire)
    response.start_response("200 OK", [])
    before = wire.state
    response.close()
    assert (State.READING_BODY, State.RESPONDING) == (before, wire.state)


def test_a_failure_of_the_client_comes_before_what_the_application_makes_of_it() -> None:
    response, wire = answering()
    response.failure = BodyTooSlow("too slow")
    write = response.start_response("200 OK", GIVEN)
    with pytest.raises(BodyTooSlow):
        write(b"a")
    assert [] == wire.writes


def test_on_a_connection_that_has_closed_it_says_so() -> None:
    response, wire = answering()
    write = response.start_response("200 OK", GIVEN)
    wire.state = State.CLOSED
    with pytest.raises(ConnectionResetError):
        write(b"a")


def test_early_hints_equal_gunicorns() -> None:
    hints = [("Link", "</a.css>; rel=preload"), (b"X-\xe9"[:2] + b"B", b" \xe9 ")]
    socket = Socket()
    wsgi._make_early_hints_callback(asked(), socket, wsgi.Response(asked(), socket, CFG))(hints)
    response, wire = answering()
    response.send_early_hints(hints)
    assert [socket.data] == wire.writes


@pytest.mark.parametrize("hint", [("X A", "b"), ("X-A", "b\r\nc")])
def test_early_hints_are_checked(hint: tuple[str, str]) -> None:
    response, wire = answering()
    with pytest.raises((InvalidResponseHeader, InvalidResponseHeaderName)):
        response.send_early_hints([hint])
    assert [] == wire.writes


def test_early_hints_come_neither_late_nor_to_old_clients() -> None:
    old, wire = answering(asked(version=(1, 0)))
    old.send_early_hints([("Link", "a")])
    late, _ = answering(wire=wire)
    late.start_response("200 OK", [])(b"a")
    late.send_early_hints([("Link", "a")])
    assert not any(b"103" in written for written in wire.writes)


def test_a_connection_is_handed_over_with_the_head_of_its_protocol() -> None:
    response, wire = answering()
    endpoint = Endpoint()
    made: Any = response.hand_over(endpoint, b"HTTP/1.1 101 Go\r\n\r\n")
    assert (wire, endpoint) == made
    assert ([b"HTTP/1.1 101 Go\r\n\r\n"], True) == (wire.writes, response.headers_sent)


def test_a_connection_may_be_handed_over_without_a_head() -> None:
    response, wire = answering()
    response.hand_over(Endpoint())
    assert [] == wire.writes


def test_a_connection_is_not_handed_over_when_its_answer_has_begun() -> None:
    response, wire = answering()
    response.start_response("200 OK", GIVEN)(b"a")
    with pytest.raises(UpgradeError, match="the answer has begun"):
        response.hand_over(Endpoint(), b"HTTP/1.1 101 Go\r\n\r\n")
    assert 1 == len(wire.writes)


@pytest.mark.parametrize("state", [State.PARKED, State.UPGRADED, State.DRAINING, State.CLOSED])
def test_a_connection_is_not_handed_over_outside_of_its_request(state: State) -> None:
    wire = Wire()
    wire.state = state
    with pytest.raises(UpgradeError):
        answering(wire=wire)[0].hand_over(Endpoint())


def test_a_connection_is_not_handed_over_with_an_unread_body() -> None:
    unread = SimpleNamespace(reader=SimpleNamespace(parser=object()), failed=False)
    with pytest.raises(UpgradeError, match="has a body that has not been read"):
        answering(asked(body=unread))[0].hand_over(Endpoint())


@pytest.fixture
def _empty_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses, "_names", {})
    monkeypatch.setattr(responses, "_statuses", {})


@pytest.mark.usefixtures("_empty_caches")
def test_what_is_remembered_of_names_and_statuses_is_bounded() -> None:
    for number in range(2000):
        response, wire = answering()
        response.start_response(f"200 Number {number}", [(f"X-{number}", "a")])
        response.close()
        assert f"X-{number}: a".encode() in fields(wire.writes[0])
    assert (1024, 256) == (len(responses._names), len(responses._statuses))
