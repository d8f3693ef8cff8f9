"""Responses: what an application may answer, and what it may not, comes out as it does of the stock gevent worker."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest

from tests.support import longconn_app
from tests.support.gunicorn import eventually
from tests.support.longconn_app import pattern
from tests.support.longconn_server import Client, GunicornServer
from tests.support.longconn_sides import Outline, Sides, both_workers, exchange, outline

SOURCE = Path(longconn_app.__file__).read_bytes()


@pytest.fixture(scope="module")
def sides() -> Iterator[Sides]:
    with both_workers("--keep-alive", "5", "--graceful-timeout", "3") as both:
        yield both


def request(target: str, *fields: str, method: str = "GET", protocol: str = "HTTP/1.1") -> bytes:
    return "\r\n".join([f"{method} {target} {protocol}", "Host: a", *fields, "", ""]).encode()


def then_pong(target: str, *fields: str, method: str = "GET", protocol: str = "HTTP/1.1") -> bytes:
    return request(target, *fields, method=method, protocol=protocol) + request("/")


def answered(sides: Sides, target: str, *fields: str, method: str = "GET") -> Outline:
    """The same answer of both, after which both still answer on the same connection."""

    def ask(server: GunicornServer) -> Outline:
        with server.client(10.0) as client:
            reply = client.ask(target, *fields, method=method)
            assert b"pong" == client.ask("/").body
            return outline(reply)

    return sides.same(ask)


@pytest.mark.parametrize("route", ["/stream", "/write"])
@pytest.mark.parametrize("length", ["", "1"])
@pytest.mark.parametrize(("chunks", "size"), [(3, 10), (1, 0), (0, 10), (2, 100_000), (300, 7)])
def test_a_body_in_pieces_comes_whole(sides: Sides, route: str, length: str, chunks: int, size: int) -> None:
    *_, fields, body = answered(sides, f"{route}?chunks={chunks}&size={size}&length={length}")
    assert pattern(chunks * size) == body
    assert ("Content-Length" if length else "Transfer-Encoding") in dict(fields)


@pytest.mark.parametrize("route", ["/stream", "/write", "/large", "/file"])
def test_http_1_0_gets_no_chunks(sides: Sides, route: str) -> None:
    answer = sides.same(lambda server: exchange(server, request(route, protocol="HTTP/1.0")))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"Transfer-Encoding" not in head
    assert {"/file": SOURCE, "/large": pattern(1_000_000)}.get(route, pattern(30)) == body


@pytest.mark.parametrize(
    ("target", "method"),
    [
        ("/large?bytes=100", "HEAD"),
        ("/stream", "HEAD"),
        ("/stream?length=1", "HEAD"),
        ("/write", "HEAD"),
        ("/file", "HEAD"),
        (f"/file?length={len(SOURCE)}", "HEAD"),
        ("/missing", "HEAD"),
        ("/status?code=204+No+Content&body=unwanted", "GET"),
        ("/status?code=204+No+Content&length=0", "GET"),
        ("/status?code=304+Not+Modified&body=unwanted", "GET"),
        ("/status?code=304+Not+Modified&length=0", "HEAD"),
        ("/stream?status=204+No+Content", "GET"),
        ("/write?status=304+Not+Modified", "GET"),
        ("/status?code=205+Reset+Content", "GET"),
        ("/status?code=200", "GET"),
        ("/status?code=299+What+ever+%C3%A9", "GET"),
    ],
)
def test_a_response_without_body_has_none(sides: Sides, target: str, method: str) -> None:
    _, status, _, _, body = answered(sides, target, method=method)
    assert b"" == body
    raw = sides.same(lambda server: exchange(server, then_pong(target, method=method)))
    assert raw.endswith(b"pong")
    assert status in (200, 204, 205, 299, 304, 404)


@pytest.mark.parametrize(
    "after", ["", "&after=0", "&after=2", "&after=2&length=10", "&after=1&length=100", "&after=0&closing=1"]
)
@pytest.mark.parametrize("error", ["RuntimeError", "OSError", "BrokenPipeError", "TimeoutError", "StopIteration"])
def test_an_application_that_fails_is_answered_for_alike(sides: Sides, error: str, after: str) -> None:
    sides.same(lambda server: exchange(server, then_pong(f"/raise?error={error}{after}")))


def test_an_application_that_fails_before_it_answers_is_a_500_that_closes(sides: Sides) -> None:
    answer = sides.same(lambda server: exchange(server, then_pong("/raise")))
    assert answer.startswith(b"HTTP/1.1 500 Internal Server Error\r\nConnection: close\r\n")
    assert b"pong" not in answer
    for server in (sides.stock, sides.parking):
        wait_for_log(server, "Error handling request GET /raise")
        wait_for_log(server, "RuntimeError: raised before the first byte")


def test_an_application_that_fails_while_it_answers_leaves_its_answer_visibly_unfinished(sides: Sides) -> None:
    def ask(server: GunicornServer) -> bytes:
        with server.client() as client:
            client.send(request("/raise?after=2"))
            return client.rest()

    assert sides.same(ask).endswith(b"5\r\nchunk\r\n")
    for server in (sides.stock, sides.parking):
        wait_for_log(server, "RuntimeError: raised after some bytes")


def wait_for_log(server: GunicornServer, text: str) -> None:
    eventually(lambda: text in server.log())


def test_flask_answers_for_its_views(sides: Sides) -> None:
    assert 500 == answered(sides, "/flask/raise")[1]
    assert b"pong" == answered(sides, "/flask/")[4]
    assert pattern(50) == answered(sides, "/flask/stream?chunks=5&size=10")[4]


@pytest.mark.parametrize("error", ["SystemExit", "KeyboardInterrupt", "GeneratorExit", "gevent.Timeout", "Unusual"])
def test_an_application_that_would_end_its_process_ends_its_answer_only(sides: Sides, error: str) -> None:
    # The stock worker lives on as well, but leaves the client of a SystemExit waiting, and writes a second answer into the
    # middle of a first one.
    before = sides.parking.worker_pids()
    first = exchange(sides.parking, then_pong(f"/raise?error={error}"))
    assert first.startswith(b"HTTP/1.1 500 Internal Server Error\r\nConnection: close\r\n")
    assert b"pong" not in first
    middle = exchange(sides.parking, then_pong(f"/raise?error={error}&after=2"))
    assert middle.endswith(b"5\r\nchunk\r\n")
    assert 1 == middle.count(b"HTTP/1.1 ")
    assert b"pong" == sides.parking.get("/")[2]
    assert before == sides.parking.worker_pids()


WRONG = [
    *("none", "number", "text", "bytes", "list of text", "list of none", "list of numbers", "bytearray", "memoryview"),
    *("status bytes", "status number", "status short", "name bytes", "value bytes", "value number", "name space"),
    *("value lines", "length text", "length empty", "two lengths", "never started", "started twice"),
    *("status long", "status lines", "status empty", "field of three", "field of letters"),
]


@pytest.mark.parametrize("what", WRONG)
def test_an_application_that_breaks_the_rules_is_answered_for_alike(sides: Sides, what: str) -> None:
    answer = sides.same(lambda server: exchange(server, then_pong(f"/wrong?what={quote(what)}")))
    assert b"X-Two" not in answer
    assert b"pong" == sides.parking.get("/")[2]


@pytest.mark.parametrize("target", ["/tracked?chunks=5", "/tracked?chunks=0", "/tracked?length=1"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_stream_is_closed_when_it_has_ended(sides: Sides, target: str, method: str) -> None:
    name = f"{method} {target}"
    answered(sides, f"{target}&{urlencode({'name': name})}", method=method)
    assert 1 == len(sides.same(lambda server: json.loads(server.get("/events")[2])[name]))


@pytest.mark.parametrize("reset", [True, False])
def test_a_stream_is_closed_when_its_client_has_gone(sides: Sides, reset: bool) -> None:
    name = f"gone {reset}"
    for server in (sides.stock, sides.parking):
        client = Client(server.connect())
        client.send(request(f"/tracked?chunks=1000&size=100000&gap=0.01&{urlencode({'name': name})}"))
        client.exactly(1000)
        client.close(reset=reset)
        eventually(lambda server=server: json.loads(server.get("/events")[2]).get(name))  # type: ignore[misc]
        (event,) = json.loads(server.get("/events")[2])[name]
        assert int(event.removeprefix("closed after ")) < 1000


@pytest.mark.parametrize(
    "query",
    [
        "",
        "offset=100",
        f"length={len(SOURCE)}",
        "length=100",
        "offset=50&length=100",
        "length=0",
        f"offset={len(SOURCE)}&length=0",
        "wrapped=buffer",
        "wrapped=buffer&length=100",
        "wrapped=buffer&offset=100",
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_file_is_sent_as_far_as_it_is_announced(sides: Sides, query: str, method: str) -> None:
    body = answered(sides, f"/file?{query}", method=method)[4]
    wanted = dict(part.split("=") for part in query.split("&") if part)
    start = int(wanted.get("offset", 0))
    assert (b"" if method == "HEAD" else SOURCE[start:][: int(wanted.get("length", len(SOURCE)))]) == body


@pytest.mark.parametrize("query", ["length=1000000", "offset=1000000&length=5", "offset=1000000"])
def test_a_file_that_is_shorter_than_announced_ends_its_connection(sides: Sides, query: str) -> None:
    # The stock worker leaves the client waiting for the rest, or announces a chunk of a negative size.
    with sides.parking.client() as client:
        client.send(request(f"/file?{query}"))
        answer = client.until(b"\r\n\r\n")
        if query == "offset=1000000":
            assert b"Transfer-Encoding: chunked\r\n" in answer
            assert b"0\r\n\r\n" == client.exactly(5)
        else:
            assert (SOURCE if "offset" not in query else b"") == client.rest()


def test_a_large_file_reaches_a_slow_reader_whole(sides: Sides, tmp_path: Path) -> None:
    file = tmp_path / "large"
    file.write_bytes(pattern(8_000_000))

    def ask(server: GunicornServer) -> bool:
        with server.client(20.0) as client:
            client.send(request(f"/file?path={file}"))
            assert b"pong" == server.get("/")[2]  # meanwhile
            return client.response().body == pattern(8_000_000)

    assert sides.same(ask)


def test_a_file_is_sent_whole_where_sendfile_is_off_or_not_possible(tmp_path: Path) -> None:
    file = tmp_path / "large"
    file.write_bytes(pattern(1_000_000))
    for transport in ("", "tls", "unix"):
        arguments = [] if transport else ["--no-sendfile"]
        with both_workers("--keep-alive", "5", *arguments, tls=transport == "tls", unix=transport == "unix") as both:
            assert pattern(1_000_000)[7:] == answered(both, f"/file?path={file}&offset=7")[4]
            assert pattern(100) == answered(both, f"/file?path={file}&length=100")[4]


def test_a_large_answer_reaches_a_slow_reader_whole_while_others_are_served(sides: Sides) -> None:
    def ask(server: GunicornServer) -> bool:
        with server.client(20.0) as client:
            client.send(request("/large?bytes=20000000"))
            first = client.exactly(1000)
            assert b"pong" == server.get("/")[2]
            _, _, rest = first.partition(b"\r\n\r\n")
            return rest + client.exactly(20_000_000 - len(rest)) == pattern(20_000_000)

    assert sides.same(ask)


@pytest.mark.parametrize("count", [1, 3])
def test_early_hints_come_before_the_answer(sides: Sides, count: int) -> None:
    answer = sides.same(lambda server: exchange(server, then_pong(f"/hints?count={count}")))
    statuses = re.findall(rb"HTTP/1.1 (\d+ [A-Z][^\r]*)", answer)
    assert [b"103 Early Hints"] * count + [b"200 OK", b"200 OK"] == statuses
    assert answer.startswith(
        b"HTTP/1.1 103 Early Hints\r\nLink: </style-0.css>; rel=preload\r\nX-Hint: 0\r\n\r\nHTTP/1.1 "
    )


def test_early_hints_are_not_for_http_1_0(sides: Sides) -> None:
    answer = sides.same(lambda server: exchange(server, request("/hints", protocol="HTTP/1.0")))
    assert b"103" not in answer
    assert answer.endswith(b"hinted")


def test_early_hints_are_there_before_the_answer_is_ready(sides: Sides) -> None:
    def ask(server: GunicornServer) -> list[int]:
        with server.client() as client:
            client.send(request("/hints?count=2"))
            return [client.response().status for _ in range(3)]

    assert [103, 103, 200] == sides.same(ask)


FIELDS = [
    ("Set-Cookie", "a=1; Path=/"),
    ("X-Empty", ""),
    ("Set-Cookie", "b=2; Path=/"),
    ("x-case", " trimmed \t"),
    ("X-Latin", "\xe4\xf6"),
]


def test_the_fields_of_an_answer_come_in_order_and_as_they_were_given(sides: Sides) -> None:
    query = urlencode([*FIELDS, ("Content-Length", "9")], encoding="utf-8")
    answer = sides.same(lambda server: exchange(server, then_pong(f"/respond?{query}")))
    lines = answer.partition(b"\r\n\r\n")[0].split(b"\r\n")
    assert [f"{name}: {value.strip()}".encode("latin-1") for name, value in FIELDS] == lines[4:9]


@pytest.mark.parametrize(
    "field",
    [
        ("Connection", "close"),
        ("Connection", "upgrade"),
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Upgrade", "h2c"),
        ("Keep-Alive", "timeout=5"),
        ("Transfer-Encoding", "chunked"),
        ("TE", "trailers"),
        ("Trailer", "X"),
        ("Proxy-Authenticate", "Basic"),
        ("Server", "mine"),
        ("Date", "today"),
        ("Content-Length", "3"),
        ("Content-Length", "9"),
        ("Content-Length", "-1"),
        ("Content-Length", "009"),
        ("Content-Length", " 9 "),
        ("Content-Type", "text/plain"),
    ],
)
def test_a_field_that_means_something_to_the_server_is_taken_alike(sides: Sides, field: tuple[str, str]) -> None:
    sides.same(lambda server: exchange(server, request(f"/respond?{urlencode([field])}")))


def test_an_answer_that_is_shorter_than_it_says_is_not_made_up(sides: Sides) -> None:
    answer = sides.same(lambda server: exchange(server, request("/respond?Content-Length=100")))
    assert answer.endswith(b"\r\n\r\nresponded")


def test_an_answer_that_is_longer_than_it_says_is_cut(sides: Sides) -> None:
    answer = sides.same(lambda server: exchange(server, then_pong("/respond?Content-Length=3")))
    assert b"\r\n\r\nresHTTP/1.1 200 OK\r\n" in answer
    assert answer.endswith(b"pong")


def test_uploads_reach_flask_whole(sides: Sides) -> None:
    data = pattern(300_000)
    body = b'--limit\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + data + b"\r\n--limit--\r\n"

    def ask(server: GunicornServer) -> int:
        with server.client() as client:
            fields = ("Content-Type: multipart/form-data; boundary=limit",)
            reply = client.ask("/flask/upload", *fields, method="POST", body=body)
            assert b"pong" == client.ask("/").body
            return int(json.loads(reply.body)["file"]["length"])

    assert 300_000 == sides.same(ask)


def test_an_application_may_start_its_answer_again_until_it_has_begun(sides: Sides) -> None:
    answer = exchange(sides.parking, then_pong("/restart"))
    assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert b"X-Second: 2\r\n" in answer
    assert b"X-First" not in answer  # the stock worker sends the fields of both
    assert b"\r\n\r\nsorrHTTP/1.1 200 OK\r\n" in answer


def test_an_application_that_starts_again_too_late_is_cut(sides: Sides) -> None:
    answer = sides.same(lambda server: exchange(server, then_pong("/restart?late=1")))
    assert answer.endswith(b"5\r\nbegun\r\n")
    for server in (sides.stock, sides.parking):
        wait_for_log(server, "RuntimeError: a reason to start again")


def test_what_an_application_writes_to_its_errors_is_in_the_log(sides: Sides) -> None:
    for server in (sides.stock, sides.parking):
        server.get("/errors?text=written+to+errors+%C3%A9")
        wait_for_log(server, "written to errors é\n")


def test_the_socket_of_a_request_is_at_hand(sides: Sides) -> None:
    def ask(server: GunicornServer) -> list[bool]:
        with server.client() as client:
            for _ in range(2):
                ends = json.loads(client.ask("/socket").body)
                assert list(client.socket.getsockname()) == ends["peer"]
                assert list(client.socket.getpeername()) == ends["name"]
                assert ends["timeout"] is None
            return [client.ask("/").body == b"pong"]

    assert [True] == sides.same(ask)


@pytest.mark.parametrize("tls", [False, True])
def test_an_application_may_take_the_socket_and_speak_what_it_likes(tls: bool) -> None:
    with both_workers("--keep-alive", "5", tls=tls) as both:

        def ask(server: GunicornServer) -> list[bytes]:
            with server.client() as client:
                client.ask("/")
                client.send(request("/take"))
                switched = client.response()
                echoed = []
                for number in range(20):
                    data = b"message %d" % number * (number * 500 + 1)
                    client.send(data)
                    echoed.append(client.exactly(len(data)) == data)
                client.send(b"bye")
                assert client.ended()
                return [switched.raw, b"%d" % all(echoed)]

        assert b"1" == both.same(ask)[1]
        assert b"pong" == both.parking.get("/")[2]
        assert "Traceback" not in both.parking.log()
