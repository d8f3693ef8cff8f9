"""Heads of requests, read in a few microseconds.

gunicorn's Python parser decides what a valid request is and takes 30 to 100 microseconds for it. Almost all heads are
plain: `HeadReader.read` recognises those with the string methods and dictionaries that run in C and returns what
gunicorn's parser would have returned. Whatever is not surely plain it leaves to gunicorn's parser by returning None, so
it never has to refuse anything, and never decides about anything odd.

The rules are those of `gunicorn.http.message` (RFC 9110 section 5, RFC 9112 sections 2 to 6); the tests compare the two
on random and mutated heads. gunicorn_h1c takes longer than this, once its result is turned into what gunicorn's workers
need, and has to be checked for what it accepts and gunicorn's Python parser does not: it is not used.
"""

from __future__ import annotations

import re
import sys
from typing import Any, Final

from gunicorn.http import message
from gunicorn.http.errors import ParseException
from gunicorn.http.unreader import IterUnreader

__all__ = ["HeadReader", "Request"]

_END: Final = b"\r\n\r\n"

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})
_METHOD: Final = re.compile(r"[A-Z0-9!$%&'*+\-.^_`|~]{3,20}")
"""What gunicorn takes without `permit_unconventional_http_method`."""

_VERSIONS: Final = {"HTTP/1.1": (1, 1), "HTTP/1.0": (1, 0)}

_FRAMING: Final = frozenset({"CONNECTION", "CONTENT-LENGTH", "EXPECT", "TRANSFER-ENCODING"})
_SINGLE: Final = _FRAMING | {"HOST", "CONTENT-TYPE"}
"""A head that repeats one of these is left to gunicorn's parser."""

_MOST_DIGITS: Final = 18

_COMMON_NAMES: Final = (
    "Accept", "Accept-Charset", "Accept-Encoding", "Accept-Language", "Access-Control-Request-Headers",
    "Access-Control-Request-Method", "Authorization", "Cache-Control", "Connection", "Content-Encoding",
    "Content-Length", "Content-Type", "Cookie", "DNT", "Date", "Expect", "Forwarded", "From", "Host", "Idempotency-Key",
    "If-Match", "If-Modified-Since", "If-None-Match", "If-Range", "If-Unmodified-Since", "Keep-Alive", "Last-Event-ID",
    "Max-Forwards", "Origin", "Pragma", "Priority", "Proxy-Authorization", "Range", "Referer", "Sec-CH-UA",
    "Sec-CH-UA-Mobile", "Sec-CH-UA-Platform", "Sec-Fetch-Dest", "Sec-Fetch-Mode", "Sec-Fetch-Site", "Sec-Fetch-User",
    "Sec-WebSocket-Extensions", "Sec-WebSocket-Key", "Sec-WebSocket-Protocol", "Sec-WebSocket-Version", "TE", "Trailer",
    "Transfer-Encoding", "Upgrade", "Upgrade-Insecure-Requests", "User-Agent", "Via", "X-Forwarded-For",
    "X-Forwarded-Host", "X-Forwarded-Port", "X-Forwarded-Proto", "X-Real-IP", "X-Request-ID", "X-Requested-With",
    "traceparent", "tracestate", "sec-ch-ua", "sec-ch-ua-mobile", "sec-ch-ua-platform",
)  # fmt: skip

_MOST_NAMES: Final = 1024
_LONGEST_NAME: Final = 64

_REMEMBERED: Final = frozenset({
    "ACCEPT", "ACCEPT-CHARSET", "ACCEPT-ENCODING", "ACCEPT-LANGUAGE", "CACHE-CONTROL", "CONNECTION", "CONTENT-TYPE",
    "DNT", "HOST", "ORIGIN", "PRAGMA", "PRIORITY", "SEC-CH-UA", "SEC-CH-UA-MOBILE", "SEC-CH-UA-PLATFORM",
    "SEC-FETCH-DEST", "SEC-FETCH-MODE", "SEC-FETCH-SITE", "SEC-FETCH-USER", "SEC-WEBSOCKET-EXTENSIONS",
    "SEC-WEBSOCKET-VERSION", "TE", "UPGRADE", "UPGRADE-INSECURE-REQUESTS", "USER-AGENT", "X-FORWARDED-HOST",
    "X-FORWARDED-PORT", "X-FORWARDED-PROTO", "X-REQUESTED-WITH",
})  # fmt: skip
"""Fields whose lines come again and again and hold nothing personal. Never a cookie, a credential, an address, a
referrer or a field this module has not heard of: what is remembered outlives its request."""

_MOST_LINES: Final = 512
_LONGEST_LINE: Final = 256

_MOST_PEERS: Final = 1024

_PER_REQUEST: Final = frozenset({
    "body", "fragment", "headers", "method", "path", "peer_addr", "query", "remote_addr", "req_number", "scheme",
    "trailers", "unreader", "uri", "version",
})  # fmt: skip


class _Unsure(Exception):
    """gunicorn's parser is to decide."""


class _Underscore(Exception):
    """A field name holds an underscore: what becomes of it depends on the peer and on `header_map`."""


class Request(message.Request):  # type: ignore[misc] # gunicorn has no types
    """A request whose head has been read, with the attributes that gunicorn's parser would have left.

    `body` and `unreader` are None until the owner of the connection sets them.
    """

    consumed: int
    """Bytes of the head, its empty line included."""
    length: int = 0
    """Bytes of the body, 0 when there is none or when its end is marked by chunks."""
    chunked: bool = False
    """Whether the body comes in chunks."""
    closes: bool
    """What `should_close()` says before anyone calls `force_close()`."""

    def __init__(self) -> None:
        raise TypeError("HeadReader makes the requests")

    def should_close(self) -> bool:
        """Whether the connection is over after the response."""
        return self.closes or self.must_close

    def expect_continue(self) -> None:
        """The client waits for 100 Continue before it sends the body; in HTTP/1.0 there is no such thing."""
        self._expected_100_continue = self.version == (1, 1)

    def trusted(self) -> bool:
        """Whether the peer may set forwarding and scheme headers."""
        return bool(self._peer_is_trusted_proxy())


class HeadReader:
    """Reads the plain heads of one listener.

    `cfg` is gunicorn's configuration, read once; `secure` says whether the connections are TLS. With
    `http_parser = "python"`, or with `permit_obsolete_folding` or `strip_header_spaces`, every head is left to gunicorn.

    Lines and names seen before are kept in dictionaries of bounded size: at most 2 x 512 lines of up to 256 characters,
    under 1 MiB. Not for use by several threads at once.
    """

    def __init__(self, cfg: Any, *, secure: bool) -> None:
        self._kind = _kind(cfg, secure=secure)
        self._first_has_preamble = cfg.proxy_protocol != "off"
        self._schemes: dict[str, str] = dict(cfg.secure_scheme_headers)
        self._forwarders = frozenset(cfg.forwarder_headers)
        self._header_map: str = cfg.header_map
        self._notable = _FRAMING | self._schemes.keys()
        self._single = _SINGLE | self._schemes.keys()
        self._names = {f"{name}:": name.upper() for common in _COMMON_NAMES for name in (common, common.lower())}
        self._lines: dict[str, tuple[str, str]] = {}
        self._older_lines: dict[str, tuple[str, str]] = {}
        self._peers: dict[object, bool] = {}
        if self._kind is not None:
            self._longest_request_line = self._kind.limit_request_line or sys.maxsize
            self._most_fields: int = self._kind.limit_request_fields
            self._longest_field: int = self._kind.limit_request_field_size - len("\r\n")

    def read(self, data: bytes, address: object, number: int) -> Request | None:
        """The request that begins `data`, or None when gunicorn's parser is to decide.

        `data` starts with the first byte of the request and holds its whole head; more may follow. `address` is the peer
        as `accept` gave it, `number` counts the requests of the connection from 1.
        """
        kind = self._kind
        if kind is None or (number == 1 and self._first_has_preamble):
            return None
        end = data.find(_END)
        if end < 0:
            return None
        first, _, block = data[:end].decode("latin-1").partition("\r\n")
        request = object.__new__(kind)
        request.consumed = end + 4
        request.peer_addr = request.remote_addr = address
        request.req_number = number
        request.trailers = []
        try:
            self._request_line(request, first)
            request.headers = self._headers(request, block) if block else []
        except _Unsure:
            return None
        return request

    def _request_line(self, request: Request, line: str) -> None:
        """Reads the request line: a common kind of method, a path, HTTP/1.0 or 1.1."""
        parts = line.split(" ")
        if len(parts) != 3 or len(line) > self._longest_request_line:
            raise _Unsure
        method, uri, version = parts
        numbers = _VERSIONS.get(version)
        if numbers is None or (method not in _METHODS and not _plain_method(method)):
            raise _Unsure
        # Printable ASCII without the space, which has been split at.
        if uri[:1] != "/" or not (uri.isascii() and uri.isprintable()):
            raise _Unsure
        request.method = method
        request.uri = uri
        rest, _, request.fragment = uri.partition("#")
        request.path, _, request.query = rest.partition("?")
        request.version = numbers
        request.closes = numbers == (1, 0)

    def _headers(self, request: Request, block: str) -> list[tuple[str, str]]:
        lines = block.split("\r\n")
        if len(lines) > self._most_fields:
            raise _Unsure
        if len(block) > self._longest_field and max(map(len, lines)) > self._longest_field:
            raise _Unsure
        known, learn = self._lines.get, self._learn
        try:
            headers = [known(line) or learn(line) for line in lines]
        except _Underscore:
            headers = self._mapped(request, lines)
        fields = dict(headers)
        if len(fields) != len(headers):
            self._require_repeatable(headers)
        if not self._notable.isdisjoint(fields):
            self._apply(request, fields)
        return headers

    def _learn(self, line: str) -> tuple[str, str]:
        """The pair of a line that is not among the recent ones."""
        name, _, value = line.partition(" ")
        upper = self._names.get(name)
        if upper is None or not line.isprintable():
            return self._pair(line)
        if upper not in _REMEMBERED or len(line) > _LONGEST_LINE:
            # The space is the only white space that is printable.
            return upper, value.strip()
        pair = self._older_lines.get(line)
        if pair is None:
            pair = upper, value.strip()
        # Two generations: lines in use move on to the next one, and a flood of new lines cannot push them out for long.
        if len(self._lines) >= _MOST_LINES:
            self._older_lines, self._lines = self._lines, {}
        self._lines[line] = pair
        return pair

    def _pair(self, line: str) -> tuple[str, str]:
        """The pair of any line, by gunicorn's own expressions."""
        name, colon, value = line.partition(":")
        if not colon or not message.TOKEN_RE.fullmatch(name):
            raise _Unsure
        value = value.strip(" \t")
        if message.RFC9110_5_5_INVALID_AND_DANGEROUS.search(value):
            raise _Unsure
        if "_" in name:
            raise _Underscore
        upper = name.upper()
        if len(self._names) < _MOST_NAMES and len(name) <= _LONGEST_NAME:
            self._names[f"{name}:"] = upper
        return upper, value

    def _mapped(self, request: Request, lines: list[str]) -> list[tuple[str, str]]:
        """The headers when a name holds an underscore, by gunicorn's `header_map` and `forwarder_headers`."""
        headers = []
        for line in lines:
            try:
                headers.append(self._learn(line))
            except _Underscore:
                name, _, value = line.partition(":")
                if self._keeps(request, name.upper()):
                    headers.append((name.upper(), value.strip(" \t")))
        return headers

    def _keeps(self, request: Request, name: str) -> bool:
        if name in self._schemes:
            raise _Unsure
        if (name in self._forwarders or "*" in self._forwarders) and self._trusts(request):
            return True
        if self._header_map == "refuse":
            raise _Unsure
        return self._header_map == "dangerous"

    def _require_repeatable(self, headers: list[tuple[str, str]]) -> None:
        seen: set[str] = set()
        for name, _ in headers:
            if name in seen and name in self._single:
                raise _Unsure
            seen.add(name)

    def _apply(self, request: Request, fields: dict[str, str]) -> None:
        """What the fields say about the connection, the body and the scheme; each of these came at most once."""
        connection = fields.get("CONNECTION")
        if connection is not None:
            option = connection.lower()
            if option == "close":
                request.closes = True
            elif option == "keep-alive":
                request.closes = False
        if "CONTENT-LENGTH" in fields or "TRANSFER-ENCODING" in fields:
            _frame(request, fields.get("CONTENT-LENGTH"), fields.get("TRANSFER-ENCODING"))
        expectation = fields.get("EXPECT")
        if expectation is not None:
            if expectation.lower() != "100-continue":
                raise _Unsure
            request.expect_continue()
        if not self._schemes.keys().isdisjoint(fields) and self._trusts(request):
            self._apply_scheme(request, fields)

    def _apply_scheme(self, request: Request, fields: dict[str, str]) -> None:
        scheme = None
        for name, secure in self._schemes.items():
            value = fields.get(name)
            if value is not None:
                found = "https" if value == secure else "http"
                if scheme is not None and found != scheme:
                    raise _Unsure
                request.scheme = scheme = found

    def _trusts(self, request: Request) -> bool:
        """`Request.trusted`, remembered by address: gunicorn parses the address and compares it with each network."""
        address = request.peer_addr
        host = address[0] if isinstance(address, tuple) else None
        trusted = self._peers.get(host)
        if trusted is None:
            if len(self._peers) >= _MOST_PEERS:
                self._peers.clear()
            trusted = self._peers[host] = request.trusted()
        return trusted


def _plain_method(method: str) -> bool:
    # After a CONNECT the connection is a tunnel: gunicorn's rules for it are not repeated here.
    return _METHOD.fullmatch(method) is not None and method != "CONNECT"


def _frame(request: Request, length: str | None, coding: str | None) -> None:
    """How the body ends: after `length` bytes, or with its chunks. Any other pair of fields is left to gunicorn."""
    if coding is None:
        # isdigit() alone would take the superscripts of latin-1; a Content-Length of more digits is never serious.
        if length is None or not (length.isdigit() and length.isascii()) or len(length) > _MOST_DIGITS:
            raise _Unsure
        request.length = int(length)
    else:
        if length is not None or coding.lower() != "chunked" or request.version == (1, 0):
            raise _Unsure
        request.chunked = True


def _kind(cfg: Any, *, secure: bool) -> type[Request] | None:
    """The class of a reader's requests: what is the same for all of them is set once, on the class.

    The values are those which gunicorn's parser leaves after a head that sets nothing, so limits are computed by
    gunicorn. None when gunicorn is to read all heads.
    """
    if cfg.http_parser == "python" or cfg.permit_obsolete_folding or cfg.strip_header_spaces:
        return None
    try:
        sample = message.Request(cfg, IterUnreader([b"GET / HTTP/1.1\r\n\r\n"]), ("", 0), 2)
    except (ParseException, RuntimeError):
        # A limit below any request, or http_parser = "fast" without gunicorn_h1c: gunicorn will say so.
        return None
    shared = {name: value for name, value in vars(sample).items() if name not in _PER_REQUEST}
    shared |= {"body": None, "unreader": None, "scheme": "https" if secure else "http"}
    return type("Request", (Request,), shared)
