"""Requests: what the stock gevent worker understands, and how, the parking worker understands just so."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from tests.support.longconn_server import Client, GunicornServer
from tests.support.longconn_sides import Sides, both_workers, comparable, exchange, outline

KEEP = ("--keep-alive", "5")
SMUGGLED = b"\r\n\r\nsmuggled"
"""How the body of an answer begins that nothing should have asked for."""

LINES = b"".join(b"line %d\n" % number for number in range(4000))

# The stock worker reads with gunicorn's Python parser where texts of refusals are compared, as the parking worker does
# when it refuses: the one in C says the same things in other words, and accepts two kinds of invalid heads.
STRICT = ("--http-parser", "python")


@pytest.fixture(scope="module")
def sides() -> Iterator[Sides]:
    with both_workers(*KEEP, stock=STRICT) as both:
        yield both


def chunked(body: bytes, size: int) -> bytes:
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def with_length(target: str, body: bytes) -> bytes:
    return f"POST {target} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def with_chunks(target: str, body: bytes, size: int) -> bytes:
    return f"POST {target} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".encode() + chunked(body, size)


def statuses_of(answers: bytes) -> list[bytes]:
    return re.findall(rb"HTTP/1\.[01] (\d{3}) ", answers)


def head(*lines: str) -> bytes:
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


@pytest.mark.parametrize("how", ["read", "sized", "lines", "line", "each"])
@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_a_body_arrives_whole_however_it_is_sent_and_read(sides: Sides, how: str, framing: str) -> None:
    target = f"/body?how={how}"
    request = with_length(target, LINES) if framing == "length" else with_chunks(target, LINES, 1000)

    def ask(server: GunicornServer) -> list[Any]:
        with server.client() as client:
            client.send(request)
            first = json.loads(client.response().body)
            return [first["length"], first["sha256"], client.ask("/").body]

    assert [len(LINES), hashlib.sha256(LINES).hexdigest(), b"pong"] == sides.same(ask)


@pytest.mark.parametrize("how", ["partly", "not"])
@pytest.mark.parametrize("framing", ["length", "chunks"])
@pytest.mark.parametrize("lines", [1, 1000])
def test_what_the_application_leaves_of_a_body_is_not_taken_for_a_request(
    sides: Sides, how: str, framing: str, lines: int
) -> None:
    body = b"GET /status?body=smuggled HTTP/1.1\r\n\r\n" * lines
    target = f"/body?how={how}"
    request = with_length(target, body) if framing == "length" else with_chunks(target, body, 777)

    def ask(server: GunicornServer) -> int:
        with server.client() as client:
            client.send(request)
            first = client.response()
            # The parking worker reads a rest only that is small and there; else it says that the connection closes.
            if first.keeps:
                assert b"pong" == client.ask("/").body
            else:
                assert server is sides.parking
                assert client.ended()
            return int(json.loads(first.body)["length"])

    assert (3 if how == "partly" else 0) == sides.same(ask)


def test_a_body_may_come_byte_by_byte(sides: Sides) -> None:
    def ask(server: GunicornServer) -> Any:
        with server.client() as client:
            for byte in with_chunks("/body", b"Seawall", 3) + with_length("/body", b"Seawall"):
                client.send(bytes([byte]))
            return [json.loads(client.response().body)["length"] for _ in range(2)]

    assert [7, 7] == sides.same(ask)


def test_extensions_and_trailers_of_chunks_are_understood(sides: Sides) -> None:
    body = b'4;name=value\r\nSeaw\r\n3 ; other="quoted \\" ;"\r\nall\r\n000;last\r\nX-Trailer: kept\r\nX-Other: too\r\n\r\n'
    request = head("POST /body HTTP/1.1", "Host: a", "Transfer-Encoding: chunked") + body

    def ask(server: GunicornServer) -> list[Any]:
        with server.client() as client:
            client.send(request + head("GET / HTTP/1.1", "Host: a"))
            return [json.loads(client.response().body)["length"], client.response().body]

    assert [7, b"pong"] == sides.same(ask)


BROKEN = [
    b"zz\r\nSeawall\r\n0\r\n\r\n",
    b"-1\r\nSeawall\r\n0\r\n\r\n",
    b"0x7\r\nSeawall\r\n0\r\n\r\n",
    b"\r\nSeawall\r\n0\r\n\r\n",
    b"7\nSeawall\n0\n\n",
    b"7\r\nSeawallXX0\r\n\r\n",
    b"7;a=\x00\r\nSeawall\r\n0\r\n\r\n",
    b"7\r\nSeawall\r\n0\r\nX-Trailer\r\n\r\n",
    b"7\r\nSeawall\r\n0\r\nContent-Length: 5\r\n\r\n",
    b"7\r\nSeawall\r\n0\r\n",
    b"7\r\nSea",
    b"fffffffffffffffffffff\r\nSeawall",
]


@pytest.mark.parametrize("body", BROKEN)
def test_a_broken_chunked_body_is_refused_and_nothing_after_it_is_answered(sides: Sides, body: bytes) -> None:
    request = head("POST /body HTTP/1.1", "Host: a", "Transfer-Encoding: chunked") + body
    answer = sides.same(
        lambda server: exchange(server, request + head("GET /status?body=smuggled HTTP/1.1", "Host: a"))
    )
    assert SMUGGLED not in answer


@pytest.mark.parametrize("body", BROKEN)
def test_nothing_after_a_broken_chunked_body_is_answered_though_nobody_has_read_it(sides: Sides, body: bytes) -> None:
    request = head("POST /body?how=not HTTP/1.1", "Host: a", "Transfer-Encoding: chunked") + body
    smuggled = head("GET /status?body=smuggled HTTP/1.1", "Host: a")
    stock, parking = (exchange(server, request + smuggled) for server in (sides.stock, sides.parking))
    assert [b"200"] == statuses_of(parking)
    assert b"Connection: close\r\n" in parking
    assert b"200" == statuses_of(stock)[0]
    assert SMUGGLED not in stock + parking


@pytest.mark.parametrize("how", ["read", "sized", "line", "not"])
def test_a_body_that_ends_early_is_what_came_of_it(sides: Sides, how: str) -> None:
    request = head(f"POST /body?how={how} HTTP/1.1", "Host: a", "Content-Length: 100") + b"Seawall"

    def ask(server: GunicornServer) -> tuple[int, bytes]:
        with server.client() as client:
            client.send(request)
            client.finish()
            reply = client.response()
            assert client.ended()
            return reply.status, reply.body

    status, body = sides.same(ask)
    assert (200, 0 if how == "not" else 7) == (status, json.loads(body)["length"])


def test_a_client_that_expects_100_is_told_to_continue(sides: Sides) -> None:
    def ask(server: GunicornServer) -> list[Any]:
        with server.client() as client:
            client.send(head("POST /expect HTTP/1.1", "Host: a", "Content-Length: 7", "Expect: 100-Continue"))
            interim = client.response()
            client.send(b"Seawall")
            return [interim.raw, client.response().body, client.ask("/").body]

    assert [b"HTTP/1.1 100 Continue\r\n\r\n", b"expected 7", b"pong"] == sides.same(ask)


def test_a_client_that_expects_100_and_does_not_wait_gets_both(sides: Sides) -> None:
    request = head("POST /expect HTTP/1.1", "Host: a", "Content-Length: 7", "Expect: 100-continue") + b"Seawall"
    answer = sides.same(lambda server: exchange(server, request))
    assert [b"100", b"200"] == statuses_of(answer)


def test_no_other_expectation_is_met(sides: Sides) -> None:
    request = head("POST /expect HTTP/1.1", "Host: a", "Content-Length: 7", "Expect: the-unexpected")
    answer = sides.same(lambda server: exchange(server, request + b"Seawall"))
    assert answer.startswith(b"HTTP/1.1 417 Expectation Failed\r\n")


def test_an_expectation_of_http_1_0_is_not_heard(sides: Sides) -> None:
    request = head("POST /expect HTTP/1.0", "Content-Length: 7", "Expect: 100-continue") + b"Seawall"
    answer = sides.same(lambda server: exchange(server, request))
    assert answer.startswith(b"HTTP/1.0 200 OK\r\n")


PIPELINED = [
    head("GET / HTTP/1.1", "Host: a"),
    with_length("/body", b"first"),
    head("HEAD /large?bytes=100 HTTP/1.1", "Host: a"),
    with_chunks("/body", b"second", 2),
    head("GET /slow?seconds=0.05 HTTP/1.1", "Host: a"),
    head("GET /stream?chunks=5 HTTP/1.1", "Host: a"),
    with_length("/body?how=not", b"GET / HTTP/1.1\r\n\r\n"),
    head("GET /status?code=204+No+Content HTTP/1.1", "Host: a"),
    head("GET /missing HTTP/1.1", "Host: a"),
    head("GET /file?length=300 HTTP/1.1", "Host: a"),
    head("GET /hints HTTP/1.1", "Host: a"),
    head("GET /large?bytes=300000 HTTP/1.1", "Host: a"),
    head("GET /close HTTP/1.1", "Host: a", "Connection: close"),
    head("GET /raise HTTP/1.1", "Host: a"),
]


@pytest.mark.parametrize("piece", [1_000_000, 7, 1])
def test_pipelined_requests_are_answered_in_order_however_they_are_split(sides: Sides, piece: int) -> None:
    data = b"".join(PIPELINED)

    def ask(server: GunicornServer) -> bytes:
        with server.client(10.0) as client:
            for start in range(0, len(data), piece):
                client.send(data[start : start + piece])
            return hide_dates(client.rest())

    answers = sides.same(ask)
    statuses = statuses_of(answers)
    # The last request comes after one that ends the connection: it has no answer.
    assert b"200 200 200 200 200 200 200 204 404 200 103 200 200 200" == b" ".join(statuses)


def hide_dates(data: bytes) -> bytes:
    return b"\r\n".join(line for line in data.split(b"\r\n") if not line.startswith(b"Date: "))


@pytest.mark.parametrize(
    ("lines", "protocol", "keeps"),
    [
        (["GET / HTTP/1.0"], "HTTP/1.0", False),
        (["GET / HTTP/1.0", "Connection: keep-alive"], "HTTP/1.0", True),
        (["GET / HTTP/1.0", "Connection: Keep-Alive"], "HTTP/1.0", True),
        (["GET / HTTP/1.0", "Connection: close"], "HTTP/1.0", False),
        (["GET /stream HTTP/1.0", "Connection: keep-alive"], "HTTP/1.0", False),
        (["GET / HTTP/1.1", "Host: a"], "HTTP/1.1", True),
        (["GET / HTTP/1.1"], "HTTP/1.1", True),
        (["GET / HTTP/1.1", "Host: a", "Connection: close"], "HTTP/1.1", False),
        (["GET / HTTP/1.1", "Host: a", "Connection: CLOSE"], "HTTP/1.1", False),
        (["GET / HTTP/1.1", "Host: a", "Connection: close, upgrade"], "HTTP/1.1", True),
        (["GET / HTTP/1.1", "Host: a", "Connection: upgrade"], "HTTP/1.1", True),
        (["GET / HTTP/1.1", "Host: a", "Connection: keep-alive", "Connection: close"], "HTTP/1.1", True),
        (["GET /close HTTP/1.1", "Host: a"], "HTTP/1.1", True),
        (["CONNECT a:80 HTTP/1.1", "Host: a:80"], "HTTP/1.1", False),
    ],
)
def test_the_connection_is_kept_or_closed_alike(sides: Sides, lines: list[str], protocol: str, keeps: bool) -> None:
    def ask(server: GunicornServer) -> Any:
        with server.client() as client:
            client.send(head(*lines))
            first = client.response()
            if first.keeps:
                return outline(first), client.ask("/").body
            return outline(first), client.ended()

    (actual, *_, fields, _), after = sides.same(ask)
    assert (protocol, "keep-alive" if keeps else "close") == (actual, dict(fields)["Connection"])
    assert (b"pong" if keeps else True) == after


TARGETS = [
    "GET http://host.example:81/echo?a=b#c HTTP/1.1",
    "GET //double//slash/../environ?x HTTP/1.1",
    "GET /echo;parameter?query?more#fragment HTTP/1.1",
    "GET /%65cho%2f%C3%A4%20%?%20 HTTP/1.1",
    "OPTIONS * HTTP/1.1",
    "OPTIONS /echo HTTP/1.1",
    "PROPFIND /echo HTTP/1.1",
    "M-SEARCH /echo HTTP/1.1",
    "DELETE /echo HTTP/1.1",
    "GET /echo HTTP/1.9",
]


@pytest.mark.parametrize("line", TARGETS)
def test_request_targets_and_methods_are_understood_alike(sides: Sides, line: str) -> None:
    sides.same(lambda server: exchange(server, head(line, "Host: a")))


INVALID = [
    head("GET / HTTP/2.0", "Host: a"),
    head("GET / HTTP/1.10", "Host: a"),
    head("GET / http/1.1", "Host: a"),
    head("GET  / HTTP/1.1", "Host: a"),
    head("GET /a b HTTP/1.1", "Host: a"),
    head("GET", "Host: a"),
    head("get / HTTP/1.1", "Host: a"),
    head("G@T / HTTP/1.1", "Host: a"),
    head("GE / HTTP/1.1", "Host: a"),
    head("GET * HTTP/1.1", "Host: a"),
    head("GET host:80 HTTP/1.1", "Host: a"),
    head("GET /\xe4 HTTP/1.1", "Host: a"),
    head("GET / HTTP/1.1", "Host: a", "Host: b"),
    head("GET / HTTP/1.1", "Host: a", "Content-Type: a", "Content-Type: b"),
    head("GET / HTTP/1.1", "Host : a"),
    head("GET / HTTP/1.1", " Host: a"),
    head("GET / HTTP/1.1", "Host: a", "Folded: a", " b"),
    head("GET / HTTP/1.1", "Host: a", ": b"),
    head("GET / HTTP/1.1", "Host: a", "No colon"),
    head("GET / HTTP/1.1", "Host: a", "Control: a\x01b"),
    head("GET / HTTP/1.1", "Host: a", "Null: a\x00b"),
    head("GET / HTTP/1.1", "Host: a", "Return: a\rb"),
    head("GET / HTTP/1.1", "Host: a", "N\xe4me: a"),
    b"GET / HTTP/1.1\nHost: a\n\n",
    b"GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n",
    b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    head("POST / HTTP/1.1", "Host: a", "Content-Length: 1", "Content-Length: 1") + b"a",
    head("POST / HTTP/1.1", "Host: a", "Content-Length: 1, 1") + b"a",
    head("POST / HTTP/1.1", "Host: a", "Content-Length: +1") + b"a",
    head("POST / HTTP/1.1", "Host: a", "Content-Length: -1") + b"a",
    head("POST / HTTP/1.1", "Host: a", "Content-Length: 0x1") + b"a",
    head("POST / HTTP/1.1", "Host: a", "Content-Length:") + b"a",
    head("POST / HTTP/1.1", "Host: a", "Content-Length: \xb2") + b"aa",
    head("POST / HTTP/1.1", "Host: a", "Content-Length: 5", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
    head("POST / HTTP/1.1", "Host: a", "Transfer-Encoding: chunked, chunked") + b"0\r\n\r\n",
    head("POST / HTTP/1.1", "Host: a", "Transfer-Encoding: chunked, gzip") + b"0\r\n\r\n",
    head("POST / HTTP/1.1", "Host: a", "Transfer-Encoding: identity") + b"a",
    head("POST / HTTP/1.1", "Host: a", "Transfer-Encoding: gzip") + b"a",
    head("POST / HTTP/1.1", "Host: a", "Transfer-Encoding: xchunked") + b"0\r\n\r\n",
    head("POST / HTTP/1.0", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
]


@pytest.mark.parametrize("request_", INVALID)
def test_an_invalid_request_is_refused_in_the_same_words_and_nothing_after_it_is_answered(
    sides: Sides, request_: bytes
) -> None:
    smuggled = head("GET /status?body=smuggled HTTP/1.1", "Host: a")
    answer = sides.same(lambda server: exchange(server, request_ + smuggled))
    assert answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 5"))
    assert SMUGGLED not in answer
    assert b"Connection: close\r\n" in answer


def test_an_invalid_request_after_valid_ones_leaves_their_answers_alone(sides: Sides) -> None:
    valid = head("GET / HTTP/1.1", "Host: a")
    answer = sides.same(lambda server: exchange(server, valid * 3 + head("GET / HTTP/9.9") + valid))
    assert 3 == answer.count(b"HTTP/1.1 200 OK\r\n")
    assert 1 == answer.count(b"HTTP/1.1 400 Bad Request\r\n")


def test_one_empty_line_before_a_request_is_overlooked(sides: Sides) -> None:
    request = b"\r\n" + head("GET / HTTP/1.1", "Host: a")
    assert 2 == sides.same(lambda server: exchange(server, request * 2)).count(b"pong")


def test_a_part_of_a_head_gets_no_answer(sides: Sides) -> None:
    assert b"" == sides.same(lambda server: exchange(server, b"GET / HTTP/1.1\r\nHost: a\r\n"))


WEBSOCKET = [
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version: 13",
]
H2C = ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"]


def test_what_follows_an_offer_of_http_2_where_that_is_off_is_the_next_request(sides: Sides) -> None:
    data = head("GET / HTTP/1.1", "Host: a", *H2C) + head("GET /missing HTTP/1.1", "Host: a")
    answer = sides.same(lambda server: exchange(server, data))
    assert [b"200", b"404"] == statuses_of(answer)


@pytest.mark.parametrize("target", ["/", "/status?code=426+Upgrade+Required", "/missing", "/stream"])
def test_nothing_that_follows_a_websocket_handshake_that_is_not_accepted_is_taken_for_a_request(
    sides: Sides, target: str
) -> None:
    # The stock worker answers it, whatever the client thinks it speaks by then.
    smuggled = head("GET /status?body=smuggled HTTP/1.1", "Host: a")
    frames = b"\x81\x85abcd\x29\x04\x0f\x08\x0e" * 3 + b"\r\n\r\n"
    for rest in (smuggled, frames, frames + smuggled):
        answer = exchange(sides.parking, head(f"GET {target} HTTP/1.1", "Host: a", *WEBSOCKET) + rest)
        assert 1 == len(statuses_of(answer))
        assert b"Connection: close\r\n" in answer


@pytest.mark.parametrize("fields", [WEBSOCKET, H2C], ids=["websocket", "h2c"])
def test_what_follows_a_refused_upgrade_is_not_answered(sides: Sides, fields: list[str]) -> None:
    refused = head("GET / HTTP/1.1", "Host: a", *fields, "Content-Length: 1", "Transfer-Encoding: chunked")
    smuggled = head("GET /status?body=smuggled HTTP/1.1", "Host: a")
    answer = sides.same(lambda server: exchange(server, refused + smuggled * 5))
    assert 1 == answer.count(b"HTTP/1.1 ")
    assert SMUGGLED not in answer


@pytest.fixture(scope="module")
def limited() -> Iterator[Sides]:
    limits = ("--limit-request-line", "200", "--limit-request-fields", "5", "--limit-request-field_size", "100")
    with both_workers(*KEEP, *limits, stock=STRICT) as both:
        yield both


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (["GET /status?" + "a" * (200 - 21) + " HTTP/1.1", "Host: a"], b"200"),
        (["GET /status?" + "a" * (200 - 20) + " HTTP/1.1", "Host: a"], b"414"),
        (["GET /" + "a" * 5000 + " HTTP/1.1", "Host: a"], b"414"),
        (["GET / HTTP/1.1", *[f"A{number}: a" for number in range(5)]], b"200"),
        (["GET / HTTP/1.1", *[f"A{number}: a" for number in range(6)]], b"431"),
        (["GET / HTTP/1.1", *[f"A{number}: a" for number in range(600)]], b"431"),
        (["GET / HTTP/1.1", *[f"A_{number}: a" for number in range(6)]], b"200"),
        (["GET / HTTP/1.1", "A: " + "a" * (100 - 5)], b"200"),
        (["GET / HTTP/1.1", "A: " + "a" * (100 - 4)], b"431"),
        (["GET / HTTP/1.1", "A: " + "a" * 5000], b"431"),
    ],
)
def test_the_limits_of_a_head_are_where_the_stock_worker_has_them(
    limited: Sides, lines: list[str], status: bytes
) -> None:
    answer = limited.same(lambda server: exchange(server, head(*lines)))
    assert status == answer[9:12]


def test_a_head_without_end_is_refused_at_its_limit(limited: Sides) -> None:
    def ask(server: GunicornServer) -> int:
        with server.client() as client:
            client.send(b"GET / HTTP/1.1\r\n" + b"A: aaaaaaaa\r\n" * 100)
            if client.silent(0.5):  # the stock worker looks at the limit when it reads on
                client.send(b"A: aaaaaaaa\r\n")
            return client.response().status

    assert 431 == limited.same(ask)


UNDERSCORED = head("GET /environ HTTP/1.1", "Host: a", "X-Good: 1", "X_Bad: 2", "X-Bad: 3", "Connection: close")


@pytest.mark.parametrize(("policy", "seen"), [("drop", {"1", "3"}), ("refuse", set()), ("dangerous", {"1", "2,3"})])
def test_field_names_with_underscores_fare_as_header_map_says(policy: str, seen: set[str]) -> None:
    with both_workers(*KEEP, "--header-map", policy, stock=STRICT) as both:

        def ask(server: GunicornServer) -> tuple[int, dict[str, str]]:
            with server.client() as client:
                client.send(UNDERSCORED)
                reply = client.response()
            environ = json.loads(reply.body) if reply.status == 200 else {}
            return reply.status, {key: value for key, value in environ.items() if key.startswith("HTTP_X")}

        status, found = both.same(ask)
        assert (200 if seen else 400, seen) == (status, set(found.values()))
        raw = both.same(lambda server: exchange(server, head("GET / HTTP/1.1", "A_: b", "A_: c")))
        assert (b"400" if policy == "refuse" else b"200") == raw[9:12]


@pytest.fixture(scope="module")
def proxied() -> Iterator[Sides]:
    config = "secure_scheme_headers = {'X-FORWARDED-PROTO': 'https', 'X-FORWARDED-SSL': 'on'}\n"
    arguments = ("--forwarded-allow-ips", "127.0.0.1,127.1.0.0/16", "--forwarder-headers", "SCRIPT_NAME,REMOTE_USER")
    with both_workers(*KEEP, *arguments, config=config, stock=STRICT) as both:
        yield both


@pytest.mark.parametrize(
    ("source", "fields", "expected"),
    [
        ("127.0.0.1", ["X-Forwarded-Proto: https"], {"wsgi.url_scheme": "https"}),
        ("127.0.0.1", ["X-Forwarded-Proto: http"], {"wsgi.url_scheme": "http"}),
        ("127.0.0.1", ["X-Forwarded-Proto: HTTPS"], {"wsgi.url_scheme": "http"}),
        ("127.0.0.1", ["X-Forwarded-Ssl: on"], {"wsgi.url_scheme": "https"}),
        ("127.0.0.1", ["X-Forwarded-Ssl: on", "X-Forwarded-Proto: https"], {"wsgi.url_scheme": "https"}),
        ("127.1.2.3", ["X-Forwarded-Proto: https"], {"wsgi.url_scheme": "https"}),
        ("127.0.0.2", ["X-Forwarded-Proto: https"], {"wsgi.url_scheme": "http", "HTTP_X_FORWARDED_PROTO": "https"}),
        ("127.0.0.1", ["SCRIPT_NAME: /env"], {"SCRIPT_NAME": "/env", "PATH_INFO": "iron"}),
        ("127.0.0.1", ["REMOTE_USER: root"], {"HTTP_REMOTE_USER": "root"}),
        ("127.0.0.2", ["SCRIPT_NAME: /env"], {"SCRIPT_NAME": "", "PATH_INFO": "/environ"}),
        ("127.0.0.2", ["REMOTE_USER: root"], {"SCRIPT_NAME": ""}),
        ("127.0.0.1", ["X-Forwarded-For: 10.0.0.1"], {"HTTP_X_FORWARDED_FOR": "10.0.0.1"}),
    ],
)
def test_what_a_proxy_forwards_is_believed_of_trusted_peers_only(
    proxied: Sides, source: str, fields: list[str], expected: dict[str, str]
) -> None:
    request = head("GET /environ HTTP/1.1", "Host: a", *fields)

    def ask(server: GunicornServer) -> dict[str, Any]:
        with server.client(source=source) as client:
            client.send(request)
            reply = client.response()
        assert source == (json.loads(reply.body)["REMOTE_ADDR"] if reply.status == 200 else source)
        return (
            comparable(json.loads(reply.body)) if reply.status == 200 else {"PATH_INFO": "iron", "SCRIPT_NAME": "/env"}
        )

    actual = proxied.same(ask)
    assert expected == {key: actual[key] for key in expected}


@pytest.mark.parametrize(
    ("source", "fields", "status"),
    [
        ("127.0.0.1", ["X-Forwarded-Proto: https", "X-Forwarded-Ssl: off"], b"400"),
        ("127.0.0.1", ["X-Forwarded-Proto: https", "X-Forwarded-Proto: http"], b"400"),
        ("127.0.0.2", ["X-Forwarded-Proto: https", "X-Forwarded-Ssl: off"], b"200"),
        ("127.0.0.1", ["SCRIPT_NAME: /other"], b"500"),
        ("127.0.0.2", ["SCRIPT_NAME: /other"], b"200"),
    ],
)
def test_what_a_proxy_contradicts_itself_in_is_refused(
    proxied: Sides, source: str, fields: list[str], status: bytes
) -> None:
    request = head("GET / HTTP/1.1", "Host: a", *fields)
    assert status == proxied.same(lambda server: exchange(server, request, source=source))[9:12]


@pytest.mark.parametrize(
    ("arguments", "request_", "status"),
    [
        (["--permit-obsolete-folding"], head("GET /echo HTTP/1.1", "Host: a", "Folded: a", "\t b"), b"200"),
        (["--strip-header-spaces"], head("GET /echo HTTP/1.1", "Host : a"), b"200"),
        (["--permit-unconventional-http-method"], head("get /echo HTTP/1.1", "Host: a"), b"200"),
        (["--casefold-http-method", "--permit-unconventional-http-method"], head("get /echo HTTP/1.1"), b"200"),
        (["--permit-unconventional-http-version"], head("GET /echo HTTP/1.7", "Host: a"), b"200"),
        (["--http-parser", "fast"], head("GET /echo HTTP/1.1", "Host: a"), b"200"),
        (["--http-parser", "python"], head("GET /echo HTTP/1.1", "Host: a"), b"200"),
        (["--limit-request-line", "0"], head("GET /status?" + "a" * 20000 + " HTTP/1.1", "Host: a"), b"200"),
    ],
)
def test_settings_of_the_parser_hold(arguments: Sequence[str], request_: bytes, status: bytes) -> None:
    with both_workers(*KEEP, *arguments) as both:
        assert status == both.same(lambda server: exchange(server, request_))[9:12]


def test_without_keep_alive_every_answer_closes() -> None:
    with both_workers("--keep-alive", "0") as both:

        def ask(server: GunicornServer) -> Any:
            with server.client() as client:
                client.send(head("GET / HTTP/1.1", "Host: a") * 2)
                return outline(client.response()), client.ended()

        (*_, fields, body), ended = both.same(ask)
        assert ("close", b"pong", True) == (dict(fields)["Connection"], body, ended)


def test_an_idle_connection_is_closed_after_keep_alive_without_a_word() -> None:
    with both_workers("--keep-alive", "1") as both:

        def ask(server: GunicornServer) -> Any:
            with server.client() as client:
                return client.ask("/").body, client.silent(0.4), client.ended(within=5.0)

        assert (b"pong", True, True) == both.same(ask)


def test_a_client_may_go_at_any_moment_and_others_do_not_notice(sides: Sides) -> None:
    def ask(server: GunicornServer) -> bytes:
        data = with_chunks("/body", LINES[:2000], 100)
        for length in range(0, len(data), 97):
            client = Client(server.connect())
            client.send(data[:length])
            client.close(reset=length % 2 == 0)
        return server.get("/")[2]

    assert b"pong" == sides.same(ask)
    assert "Traceback" not in sides.parking.log()
