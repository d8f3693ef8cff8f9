"""Heads: whatever HeadReader takes, gunicorn's Python parser takes too and understands in the same way."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.http import message
from gunicorn.http.body import Body, ChunkedReader
from gunicorn.http.errors import ParseException
from gunicorn.http.unreader import IterUnreader
from gunicorn.http.wsgi import Response
from hypothesis import example, given, settings
from hypothesis import strategies as some

from longconn.http import head
from longconn.http.head import HeadReader, Request
from tests.support.examples import many

FRIEND = ("127.0.0.1", 50000)
STRANGER = ("203.0.113.9", 50000)
PEERS: tuple[object, ...] = (FRIEND, STRANGER, ("::1", 50000, 0, 0), "", b"", None)

SAME = (
    "method", "uri", "path", "query", "fragment", "version", "headers", "trailers", "scheme", "must_close",
    "_expected_100_continue", "proxy_protocol_info", "peer_addr", "remote_addr", "req_number", "limit_request_line",
    "limit_request_fields", "limit_request_field_size", "max_buffer_headers",
)  # fmt: skip
"""Attributes that both have."""

WRK = b"GET / HTTP/1.1\r\nHost: 127.0.0.1:8000\r\n\r\n"
CURL = b"GET /ping HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\n\r\n"
BROWSER = (
    b"GET /orders/4711?page=2&sort=date HTTP/1.1\r\nHost: shop.example\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64; "
    b"rv:133.0) Gecko/20100101 Firefox/133.0\r\nAccept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
    b"\r\nAccept-Language: en-US,en;q=0.7,de;q=0.3\r\nAccept-Encoding: gzip, deflate, br, zstd\r\nReferer: https://"
    b"shop.example/orders?page=1\r\nConnection: keep-alive\r\nCookie: session=a.b.c; _ga=GA1.2; theme=dark\r\n"
    b"Upgrade-Insecure-Requests: 1\r\nSec-Fetch-Dest: document\r\nSec-Fetch-Mode: navigate\r\n\r\n"
)
CHROME = (
    b'GET / HTTP/1.1\r\nHost: shop.example\r\nConnection: keep-alive\r\nsec-ch-ua: "Chromium";v="131", "Not_A Brand";'
    b'v="24"\r\nsec-ch-ua-mobile: ?0\r\nsec-ch-ua-platform: "Linux"\r\nDNT: 1\r\nCookie: a=b\r\nCookie: c=d\r\n\r\n'
)
NGINX = (
    b"POST /api/orders HTTP/1.0\r\nHost: shop.example\r\nX-Real-IP: 203.0.113.9\r\nX-Forwarded-For: 203.0.113.9\r\n"
    b"X-Forwarded-Proto: https\r\nConnection: close\r\nContent-Length: 18\r\nContent-Type: application/json\r\n"
    b'Authorization: Bearer a.b.c\r\n\r\n{"quantity": 1234}'
)
CHUNKED = (
    b"PUT /upload HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n"
    b"5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\nGET / HTTP/1.1\r\n\r\n"
)
WEBSOCKET = (
    b"GET /live HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nOrigin: http://a\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
ORDINARY = {
    "wrk": WRK,
    "curl": CURL,
    "a browser": BROWSER,
    "another browser": CHROME,
    "nginx": NGINX,
    "chunks": CHUNKED,
    "a websocket": WEBSOCKET,
    "no header": b"GET / HTTP/1.1\r\n\r\n",
    "pipelined": WRK + CURL,
    "HTTP/1.0": b"GET / HTTP/1.0\r\n\r\n",
    "HTTP/1.0 that stays": b"GET / HTTP/1.0\r\nHost: a\r\nConnection: Keep-Alive\r\n\r\n",
    "HTTP/1.1 that goes": b"HEAD / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    "an empty body": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
    "no space after the colon": b"GET / HTTP/1.1\r\nHost:a\r\nAccept:*/*\r\nCookie:a=b\r\n\r\n",
    "an empty value": b"GET / HTTP/1.1\r\nHost: a\r\nAccept:\r\nX-Nothing: \r\n\r\n",
    "white space around values": b"GET / HTTP/1.1\r\nHost: \t a \t\r\nAccept:  b  c  \r\nX-Tab: a\tb\r\n\r\n",
    "latin-1 values": b"GET / HTTP/1.1\r\nHost: a\r\nX-City: M\xfcnchen\r\nUser-Agent: \xa0a\x85\xad\xa0\r\n\r\n",
    "unknown names": b"GET / HTTP/1.1\r\nhost: a\r\nX-Api-Version: 2\r\nhOst-LIKE: b\r\n\r\n",
    "underscores": b"GET / HTTP/1.1\r\nHost: a\r\nApi_Key: b\r\nScript_Name: /shop\r\nAccept: */*\r\n\r\n",
    "other methods": b"PROPFIND /dav HTTP/1.1\r\nHost: a\r\n\r\n",
    "everything in a path": b"GET /a:b/%00;c//d?e=f?g&h=/#i?j#k HTTP/1.1\r\nHost: a\r\n\r\n",
    "a path of two slashes": b"GET //a:b@c/[d?e//f#g HTTP/1.1\r\nHost: a\r\n\r\n",
    "OPTIONS of a path": b"OPTIONS /a HTTP/1.1\r\nHost: a\r\n\r\n",
    "repeated fields": b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: b\r\nX-Forwarded-For: c\r\nVia: d\r\nVia: e\r\n\r\n",
}

UNUSUAL = {
    "a folded value": b"GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n",
    "a value folded with a tab": b"GET / HTTP/1.1\r\nHost: a\r\n\tb\r\n\r\n",
    "a folded first line": b"GET / HTTP/1.1\r\n Host: a\r\n\r\n",
    "LF after the request line": b"GET / HTTP/1.1\nHost: a\r\n\r\n",
    "LF after a header": b"GET / HTTP/1.1\r\nHost: a\nAccept: b\r\n\r\n",
    "LF as the empty line": b"GET / HTTP/1.1\r\nHost: a\r\n\nGET /b HTTP/1.1\r\n\r\n",
    "CR in a value": b"GET / HTTP/1.1\r\nHost: a\rb\r\n\r\n",
    "CR at the end of a value": b"GET / HTTP/1.1\r\nHost: a\r\r\n\r\n",
    "NUL in a value": b"GET / HTTP/1.1\r\nHost: a\0b\r\n\r\n",
    "NUL in a known field": b"GET / HTTP/1.1\r\nHost: \0\r\n\r\n",
    "DEL in a value": b"GET / HTTP/1.1\r\nX-Other: \x7f\r\n\r\n",
    "an empty name": b"GET / HTTP/1.1\r\n: a\r\n\r\n",
    "no colon": b"GET / HTTP/1.1\r\nHost\r\n\r\n",
    "a space before the colon": b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
    "a name that is no token": b"GET / HTTP/1.1\r\nHo(st: a\r\n\r\n",
    "a name that upper() would make ASCII": b"GET / HTTP/1.1\r\n\xdf: a\r\n\r\n",
    "a second Host": b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
    "a second Content-Type": b"GET / HTTP/1.1\r\nContent-Type: a\r\ncontent-type: b\r\n\r\n",
    "a second Content-Length": b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na",
    "both framings": b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks in HTTP/1.0": b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked twice": b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "chunked in two fields": b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
    "a coding without chunks": b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n",
    "a length with a sign": b"POST / HTTP/1.1\r\nContent-Length: +1\r\n\r\na",
    "a length with a list": b"POST / HTTP/1.1\r\nContent-Length: 1, 1\r\n\r\na",
    "a length in superscript": b"POST / HTTP/1.1\r\nContent-Length: \xb2\r\n\r\na",
    "a length that is a fraction": b"POST / HTTP/1.1\r\nContent-Length: \xbd\r\n\r\na",
    "an empty length": b"POST / HTTP/1.1\r\nContent-Length:\r\n\r\na",
    "a length of 5,000 digits": b"POST / HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
    "another expectation": b"POST / HTTP/1.1\r\nExpect: miracles\r\nContent-Length: 1\r\n\r\na",
    "two spaces in the request line": b"GET  / HTTP/1.1\r\n\r\n",
    "a space in the target": b"GET /a b HTTP/1.1\r\n\r\n",
    "a tab in the target": b"GET /a\tb HTTP/1.1\r\n\r\n",
    "bytes beyond ASCII in the target": b"GET /\xe9 HTTP/1.1\r\n\r\n",
    "a relative target": b"GET a HTTP/1.1\r\n\r\n",
    "no target": b"GET HTTP/1.1\r\n\r\n",
    "an asterisk": b"GET * HTTP/1.1\r\n\r\n",
    "no version": b"GET /\r\n\r\n",
    "HTTP/2.0": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/0.9": b"GET / HTTP/0.9\r\n\r\n",
    "a lower case version": b"GET / http/1.1\r\n\r\n",
    "a lower case method": b"get / HTTP/1.1\r\n\r\n",
    "a short method": b"GO / HTTP/1.1\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\r\n\r\n",
    "nothing": b"\r\n\r\n",
    "an unfinished head": b"GET / HTTP/1.1\r\nHost: a\r\n",
}

CONFIGURATIONS: tuple[dict[str, Any], ...] = (
    {},
    {"header_map": "refuse"},
    {"header_map": "dangerous"},
    {"forwarder_headers": "*"},
    {"forwarded_allow_ips": "*"},
    {"forwarded_allow_ips": "203.0.113.0/24"},
    {"limit_request_line": 0, "limit_request_fields": 3, "limit_request_field_size": 24},
    {"limit_request_line": 30, "limit_request_fields": 0, "limit_request_field_size": 0},
    {"permit_unconventional_http_method": True, "permit_unconventional_http_version": True},
    {"casefold_http_method": True},
    {"secure_scheme_headers": {"X_SCHEME": "https", "HOST": "a"}},
    {"secure_scheme_headers": {"CONTENT-LENGTH": "5", "CONNECTION": "close"}},
    {"secure_scheme_headers": {}},
    {"proxy_protocol": "auto"},
)


def configured(**values: Any) -> Config:
    config = Config()
    for name, value in values.items():
        config.set(name, value)
    return config


def reader(**values: Any) -> HeadReader:
    return HeadReader(configured(**values), secure=False)


def by_gunicorn(data: bytes, address: object = FRIEND, number: int = 2, **values: Any) -> tuple[Any, bytes]:
    """The request as gunicorn's Python parser reads it and the bytes it leaves. Raises as the parser does."""
    unreader = IterUnreader([data])
    request = message.Request(configured(http_parser="python", **values), unreader, address, number)
    return request, unreader.take_buffered()


class Compared:
    """HeadReader and gunicorn's Python parser under one configuration."""

    def __init__(self, **values: Any) -> None:
        self.reader = reader(**values)
        self.config = configured(http_parser="python", **values)
        self.taken = 0

    def check(self, data: bytes, address: object = FRIEND, number: int = 2) -> Request | None:
        """Fails unless gunicorn's parser understands `data` as the reader does, if the reader takes it at all."""
        request = self.reader.read(data, address, number)
        if request is None:
            return None
        self.taken += 1
        unreader = IterUnreader([data])
        try:
            expected = message.Request(self.config, unreader, address, number)
        except (ParseException, StopIteration) as error:
            pytest.fail(f"gunicorn refuses what the reader takes: {data!r}: {error!r}")
        assert [getattr(expected, name) for name in SAME] == [getattr(request, name) for name in SAME], data
        assert unreader.take_buffered() == data[request.consumed :], data
        body = expected.body.reader
        assert isinstance(body, ChunkedReader) == request.chunked, data
        assert (0 if request.chunked else body.length) == request.length, data
        assert expected.should_close() == request.closes == request.should_close(), data
        return request


@pytest.mark.parametrize("peer", PEERS, ids=repr)
@pytest.mark.parametrize("data", ORDINARY.values(), ids=ORDINARY)
def test_ordinary_heads_are_read_and_mean_the_same_to_gunicorn(data: bytes, peer: object) -> None:
    compared = Compared()
    assert compared.check(data, peer) is not None
    assert compared.check(data, peer) is not None  # the second time, from memory
    assert compared.check(data, peer, number=1) is not None


@pytest.mark.parametrize("data", UNUSUAL.values(), ids=UNUSUAL)
def test_unusual_heads_are_left_to_gunicorn(data: bytes) -> None:
    assert reader().read(data, FRIEND, 2) is None


@pytest.mark.parametrize("values", CONFIGURATIONS, ids=repr)
def test_under_every_configuration_a_head_that_is_read_means_the_same_to_gunicorn(values: dict[str, Any]) -> None:
    compared = Compared(**values)
    for data in [*ORDINARY.values(), *UNUSUAL.values()]:
        for peer in PEERS:
            compared.check(data, peer, number=1)
            compared.check(data, peer)
    assert compared.taken


SMALL = (
    b"GET /a?b#c HTTP/1.1\r\nHost: a\r\nX-B: c\r\n\r\n",
    b"PUT / HTTP/1.1\r\nContent-Length: 10\r\nAccept:\r\n\r\n",
    b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n",
    b"GET / HTTP/1.0\r\nExpect: 100-continue\r\nX-Forwarded-Proto: https\r\n\r\n",
)


EVERY = 100 // many(100)
"""Of single faults, every so-manieth is tried. It shares no factor with the 513 of a place: each byte has its turn."""


def single_faults(data: bytes) -> Iterator[bytes]:
    """Every byte put in at, put in place of, and taken from every place."""
    for place in range(len(data) + 1):
        yield data[:place] + data[place + 1 :]
        for byte in range(256):
            yield data[:place] + bytes((byte,)) + data[place:]
            yield data[:place] + bytes((byte,)) + data[place + 1 :]


@pytest.mark.parametrize("data", SMALL, ids=repr)
def test_no_single_byte_makes_a_difference_that_only_gunicorn_sees(data: bytes) -> None:
    compared = Compared()
    for changed in itertools.islice(single_faults(data), 0, None, EVERY):
        compared.check(changed)


FIELDS = [
    line for source in (*ORDINARY.values(), *UNUSUAL.values()) for line in source.split(b"\r\n\r\n")[0].split(b"\r\n")[1:]
] + [
    b"X-Forwarded-Proto: http", b"X-Forwarded-Proto: https", b"X-Forwarded-Protocol: ssl", b"X-Forwarded-Ssl: on",
    b"X-Forwarded-Ssl: off", b"X_Forwarded_Proto: https", b"Script_Name: /a", b"Path_Info: /b", b"_: a", b"X_SCHEME: https",
    b"Expect: 100-Continue", b"Connection: keep-alive", b"Connection: Close", b"Connection: keep-alive, Upgrade",
    b"Content-Length: 0005", b"Transfer-Encoding: Chunked", b"Transfer-Encoding: gzip, chunked", b"Host:",
    b"Transfer-Encoding: identity", b"Connection: \tclose\t", b"X-Long: " + b"a" * 300, b"User-Agent: " + b"b" * 300,
    b"X-" + b"c" * 80 + b": d",
]  # fmt: skip
REQUEST_LINES = [source.split(b"\r\n")[0] for source in (*ORDINARY.values(), *UNUSUAL.values())] + [
    b"CONNECT /a HTTP/1.1", b"CONNECT a:1 HTTP/1.1", b"GET //a/b HTTP/1.1", b"GET http://a/b?c HTTP/1.1",
    b"GET http://[a/ HTTP/1.1", b"OPTIONS * HTTP/1.1", b"GET / HTTP/1.2", b"AAAAAAAAAAAAAAAAAAAAA / HTTP/1.1",
]  # fmt: skip
STUFF = [
    b"\r",
    b"\n",
    b"\r\n",
    b"\r\n ",
    b"\n\n",
    b"\r\n\r\n",
    b"\0",
    b" ",
    b"\t",
    b":",
    b"_",
    b"\x7f",
    b"\xa0",
    b"\xff",
    b"#",
]


@some.composite
def heads(draw: some.DrawFn) -> bytes:
    """Lines that make sense and lines that do not, put together and then damaged in a few places."""
    lines = [draw(some.sampled_from(REQUEST_LINES)), *draw(some.lists(some.sampled_from(FIELDS), max_size=5))]
    data = b"\r\n".join(lines) + draw(
        some.sampled_from([b"\r\n\r\n", b"\r\n\r\nGET / HTTP/1.1\r\n\r\n", b"\n\r\n\r\n"])
    )
    for _ in range(draw(some.sampled_from([0, 0, 1, 2]))):
        place = draw(some.integers(0, len(data)))
        stuff = draw(some.sampled_from(STUFF) | some.binary(min_size=1, max_size=2))
        data = data[:place] + stuff + data[place + draw(some.integers(0, 2)) :]
    return data


COMPARED = [Compared(**values) for values in CONFIGURATIONS]


@settings(max_examples=many(1500))
@given(heads(), some.sampled_from(COMPARED), some.sampled_from(PEERS), some.sampled_from([1, 2]))
@example(WRK, COMPARED[0], FRIEND, 1)
def test_any_head_that_is_read_means_the_same_to_gunicorn(
    data: bytes, compared: Compared, peer: object, number: int
) -> None:
    compared.check(data, peer, number)


@pytest.mark.parametrize(
    ("values", "fits", "exceeds"),
    [
        (
            {"limit_request_line": 20},
            b"GET /123456 HTTP/1.1\r\n\r\n",
            b"GET /1234567 HTTP/1.1\r\n\r\n",
        ),
        (
            {"limit_request_line": 100_000},
            b"GET /" + b"a" * (8190 - 14) + b" HTTP/1.1\r\n\r\n",
            b"GET /" + b"a" * (8190 - 13) + b" HTTP/1.1\r\n\r\n",
        ),
        (
            {"limit_request_fields": 2},
            b"GET / HTTP/1.1\r\nHost: a\r\nVia: b\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\nVia: b\r\nVia: b\r\n\r\n",
        ),
        (
            {"limit_request_field_size": 12},
            b"GET / HTTP/1.1\r\nHost: 1234\r\nVia: 12345\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: 12345\r\nVia: 1\r\n\r\n",
        ),
    ],
    ids=["request line", "longest request line", "fields", "field"],
)
def test_limits_are_gunicorns_to_the_byte(values: dict[str, Any], fits: bytes, exceeds: bytes) -> None:
    compared = Compared(**values)
    assert compared.check(fits) is not None
    assert compared.reader.read(exceeds, FRIEND, 2) is None
    with pytest.raises(ParseException):
        by_gunicorn(exceeds, **values)


@pytest.mark.parametrize(
    "values",
    [
        {"http_parser": "python"},
        {"permit_obsolete_folding": True},
        {"strip_header_spaces": True},
        {"limit_request_line": 5},
    ],
    ids=repr,
)
def test_configurations_that_only_gunicorn_should_serve_leave_every_head_to_it(values: dict[str, Any]) -> None:
    assert reader(**values).read(WRK, FRIEND, 2) is None


def test_the_fast_parser_is_not_stood_in_for_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(message, "_fast_parser_available", False)
    assert reader(http_parser="fast").read(WRK, FRIEND, 2) is None
    assert reader(http_parser="auto").read(WRK, FRIEND, 2) is not None


def test_with_the_proxy_protocol_the_first_head_is_left_to_gunicorn() -> None:
    under_test = reader(proxy_protocol="auto")
    assert under_test.read(WRK, FRIEND, 1) is None
    assert under_test.read(WRK, FRIEND, 2) is not None


def test_a_secure_listener_makes_secure_requests() -> None:
    request = HeadReader(configured(), secure=True).read(WRK, FRIEND, 1)
    assert request is not None
    assert request.scheme == "https"


@pytest.mark.parametrize(("peer", "scheme"), [(FRIEND, "https"), (STRANGER, "http"), (None, "https")])
def test_only_a_trusted_peer_sets_the_scheme(peer: object, scheme: str) -> None:
    under_test = reader()
    for _ in range(2):
        request = under_test.read(NGINX, peer, 1)
        assert request is not None
        assert scheme == request.scheme


def test_schemes_that_contradict_each_other_are_left_to_gunicorn() -> None:
    data = b"GET / HTTP/1.1\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Ssl: off\r\n\r\n"
    assert reader().read(data, FRIEND, 1) is None
    assert reader().read(data, STRANGER, 1) is not None
    data = b"GET / HTTP/1.1\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Proto: https\r\n\r\n"
    assert reader().read(data, FRIEND, 1) is None


def test_a_scheme_field_that_would_be_dropped_for_its_underscore_is_left_to_gunicorn() -> None:
    under_test = reader(secure_scheme_headers={"X_SCHEME": "https"})
    assert under_test.read(b"GET / HTTP/1.1\r\nX_Scheme: https\r\n\r\n", FRIEND, 1) is None


def test_requests_share_nothing_that_can_change() -> None:
    under_test = reader()
    first, second = under_test.read(CURL, FRIEND, 1), under_test.read(CURL, FRIEND, 2)
    assert first is not None
    assert second is not None
    first.headers.clear()
    first.trailers.append(("A", "b"))
    first.force_close()
    assert [("HOST", "127.0.0.1:8000"), ("USER-AGENT", "curl/8.5.0"), ("ACCEPT", "*/*")] == second.headers
    assert [] == second.trailers
    assert not second.should_close()
    assert first.should_close()


def test_what_requests_share_is_what_gunicorn_sets_alike_for_all() -> None:
    request, _ = by_gunicorn(WRK)
    kind = reader()._kind
    assert kind is not None
    shared = {name for name in vars(request) if name in vars(kind)} - {"body", "unreader", "scheme"}
    # What gunicorn adds some day is to be looked at: a list or a dict would be shared by all requests.
    assert {
        "_expected_100_continue", "_fast_limit_request_line", "_use_fast", "cfg", "limit_request_field_size",
        "limit_request_fields", "limit_request_line", "max_buffer_headers", "must_close", "proxy_protocol_info",
    } == shared  # fmt: skip
    assert shared | head._PER_REQUEST == vars(request).keys()


def test_gunicorns_body_readers_and_responses_work_with_the_request() -> None:
    request = reader().read(CHUNKED, FRIEND, 1)
    assert request is not None
    unreader = IterUnreader([CHUNKED[request.consumed :]])
    request.body = Body(ChunkedReader(request, unreader))
    assert request.body.read() == b"hello"
    assert [("X-SUM", "1")] == request.trailers
    assert unreader.take_buffered() == b"GET / HTTP/1.1\r\n\r\n"
    response = Response(request, None, request.cfg)
    response.start_response("204 No Content", [])
    assert not response.should_close()


def test_only_a_reader_makes_requests() -> None:
    with pytest.raises(TypeError, match="HeadReader makes the requests"):
        Request()


def asking(name: str, value: str) -> bytes:
    return f"GET / HTTP/1.1\r\nHost: a\r\n{name}: {value}\r\n\r\n".encode("latin-1")


def remembered(under_test: HeadReader) -> set[str]:
    return {*under_test._lines, *under_test._older_lines}


@pytest.mark.parametrize(
    "name",
    ["Cookie", "Authorization", "Proxy-Authorization", "Referer", "X-Forwarded-For", "X-Api-Key", "Sec-WebSocket-Key"],
)
def test_values_that_may_be_secret_are_not_remembered(name: str) -> None:
    under_test = reader()
    for _ in range(3):
        assert under_test.read(asking(name, "secret"), FRIEND, 1) is not None
    assert remembered(under_test) == {"Host: a"}
    assert not any("secret" in known for known in under_test._names)


def test_what_is_remembered_is_bounded_however_many_lines_names_and_peers_come() -> None:
    under_test = reader()
    for number in range(5000):
        assert (
            under_test.read(asking("User-Agent", f"{number}"), (f"10.0.{number >> 8}.{number & 255}", 1), 1) is not None
        )
        assert under_test.read(asking(f"X-{number}", "a"), FRIEND, 1) is not None
        assert under_test.read(asking("X-Forwarded-Proto", "https"), (f"10.0.{number}", 1), 1) is not None
    assert under_test.read(asking("X-" + "n" * 100, "a"), FRIEND, 1) is not None
    assert under_test.read(asking("User-Agent", "a" * 300), FRIEND, 1) is not None
    assert len(under_test._lines) <= head._MOST_LINES
    assert len(under_test._older_lines) <= head._MOST_LINES
    assert len(under_test._names) <= head._MOST_NAMES
    assert len(under_test._peers) <= head._MOST_PEERS
    assert max(map(len, under_test._names)) <= head._LONGEST_NAME + 1
    assert max(map(len, remembered(under_test))) <= head._LONGEST_LINE


def test_a_line_in_use_is_remembered_through_a_flood_of_others() -> None:
    under_test = reader()
    first = under_test.read(WRK, FRIEND, 1)
    assert first is not None
    for number in range(3000):
        under_test.read(asking("User-Agent", f"{number}"), FRIEND, 1)
        if number % 100 == 0:
            again = under_test.read(WRK, FRIEND, 1)
            assert again is not None
            assert first.headers[0] is again.headers[0]
