"""Calls passed on to backends: which backend, what of a request goes further, and what of an answer comes back.

The functions are pure. They decide everything that a caller could try to bend: the path, which must stay below the
backend's base URL, and the header fields, which must not carry one connection's terms or this service's credentials
over to the next.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, unquote

from service.errors import NotFound, ValidationFailed
from service.services.ports import Backend

__all__ = ["Backends", "Headers", "Origin", "believed_addresses", "request_headers", "response_headers", "target_below"]

Headers = tuple[tuple[str, str], ...]
"""Header fields in order; a name may occur more than once."""

HOP_BY_HOP: Final = frozenset(
    {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "http2-settings"}
)
"""Fields about one connection (RFC 9110, 7.6.1). `Proxy-*` and whatever `Connection` names are such fields too."""

REPLACED_IN_REQUESTS: Final = frozenset(
    {
        "host",  # the backend's own
        "content-length",  # recomputed from the body
        "expect",  # the body has already been received
        "authorization",  # the credentials of this service, consumed here
        "forwarded",  # claims about the way here, which only this service can make
        "x-real-ip",
    }
)

REPLACED_IN_RESPONSES: Final = frozenset({"date", "server"})
"""The server writes its own; a second one would contradict it."""

WITHOUT_BODY: Final = frozenset({204, 304})

TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
FIELD_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
LONGEST_SHOWN: Final = 64
"""Characters of a field's name that an error repeats."""
DIGITS: Final = re.compile(r"[0-9]{1,18}")

MALFORMED_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
CONTROL: Final = re.compile(r"[\x00-\x20\x7f]")
LINE_OR_NUL: Final = re.compile(r"[\r\n\x00]")
SEPARATOR: Final = re.compile(r"[/\\]")
PRINTABLE: Final = "".join(chr(code) for code in range(0x21, 0x7F))
DECODINGS: Final = 3
"""How often a path segment may be percent-encoded over itself before nobody can mean it."""


class Backends:
    """The configured backends by name."""

    def __init__(self, backends: Mapping[str, Backend]) -> None:
        self._backends = backends

    def find(self, name: str) -> Backend:
        """The backend of that name. Raises `NotFound`, naming those that there are."""
        try:
            return self._backends[name]
        except KeyError:
            raise NotFound(f"no backend is named {name!r}; {self._known()}") from None

    def _known(self) -> str:
        if not self._backends:
            return "none is configured: set BACKENDS__<name>=<base URL>"
        return f"configured: {', '.join(sorted(self._backends))}"


@dataclass(frozen=True, slots=True)
class Origin:
    """How a request reached this service, as its backend is told.

    `clients` are the addresses it came through, farthest first (`believed_addresses`). Where the request id or the
    trace is None, nothing here knows better than the caller, and the caller's own fields go on.
    """

    clients: str
    scheme: str
    host: str
    request_id: str | None = None
    traceparent: str | None = None
    tracestate: str | None = None


def target_below(target: str, prefix: str) -> str:
    """The path below `prefix` with the query of the request target `target`, as percent-encoded by the caller.

    `target` is what the request line says, its bytes as Latin-1 text; `prefix` is the decoded path of the route, such
    as ``/api/v1/backends/demo``. What printable ASCII can say is kept byte for byte, the rest is percent-encoded. The
    result begins with exactly one slash. Raises `ValidationFailed` for a path that a backend could take for one
    outside its base URL (dot segments, also behind encoded slashes or several encodings), that holds an encoded
    line break or NUL, or that is not percent-encoded properly.
    """
    path, mark, query = _origin_form(target).partition("?")
    if CONTROL.search(target) or "#" in target:
        raise _refused("percent-encode spaces, control characters and #")
    if MALFORMED_ESCAPE.search(path):
        raise _refused("every % must begin an escape such as %20; write a percent sign as %25")
    segments = path.split("/")
    depth = prefix.count("/") + 1
    if [unquote(segment) for segment in segments[:depth]] != prefix.split("/"):
        raise _refused("write the part up to the backend's name without encoded slashes")
    below = segments[depth:]
    if len(below) > 1 and not below[0]:
        raise _refused("it must not begin with two slashes")
    for segment in below:
        _check_segment(segment)
    return quote("/" + "/".join(below) + mark + query, safe=PRINTABLE, encoding="latin-1")


def believed_addresses(peer: str | None, forwarded_for: str, trusted_proxies: int) -> str:
    """The value of X-Forwarded-For for the next hop: the address of the socket after those that trusted proxies added.

    `forwarded_for` is the field as it came in; each of our own `trusted_proxies` has added one entry on its right, and
    whatever stands left of those is anybody's invention. Entries are written without ports; where the farthest one
    believed is no address, none is. So the first address of the result is the client whom the rate limit counts.
    """
    believed = [_address(entry) for entry in forwarded_for.split(",")[-trusted_proxies:]] if trusted_proxies else []
    if believed and believed[0] is None:
        believed = []
    return ", ".join(address for address in (*believed, peer) if address)


def request_headers(headers: Iterable[tuple[str, str]], origin: Origin) -> Headers:
    """The fields of a request that go on to a backend, with `origin` told in X-Forwarded-*, X-Request-ID and
    traceparent. Host and Content-Length are left to the client, Authorization stays here.

    Raises `ValidationFailed` for a field that no request may hold: a name that is not a token, a value with control
    characters. Some servers let such fields in, and what follows a line break would be another request.
    """
    told = _told(origin)
    replaced = REPLACED_IN_REQUESTS | {name.lower() for name, _ in told}
    if origin.traceparent is not None:
        replaced |= {"tracestate"}
    kept = [
        (name, value)
        for name, value in _end_to_end(headers)
        if name.lower() not in replaced and not name.lower().startswith("x-forwarded-")
    ]
    for name, value in (*kept, *told):
        if not _is_field(name, value):
            raise ValidationFailed(
                f"the header field {name[:LONGEST_SHOWN]!r} is malformed; correct it or leave it out"
            )
    return (*kept, *told)


def response_headers(headers: Iterable[tuple[str, str]], status: int) -> Headers:
    """The fields of a backend's response that go back to the caller. Repeated fields stay repeated.

    Fields that no HTTP server may send (a name that is not a token, a value with control characters) are dropped, and
    so is a Content-Length that does not describe the body which is passed on.
    """
    headers = tuple(headers)
    chunked = any(name.lower() == "transfer-encoding" for name, _ in headers)
    kept = [
        (name, value)
        for name, value in _end_to_end(headers)
        if name.lower() not in REPLACED_IN_RESPONSES | {"content-length"} and _is_field(name, value)
    ]
    lengths = {value.strip() for name, value in headers if name.lower() == "content-length"}
    if len(lengths) == 1 and not chunked and status not in WITHOUT_BODY:
        kept += [("Content-Length", length) for length in lengths if DIGITS.fullmatch(length)]
    return tuple(kept)


def _address(entry: str) -> str | None:
    """The address in an entry of X-Forwarded-For, with or without a port; None when there is none."""
    text = entry.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    else:
        text = text.partition("%")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(address).partition("%")[0]


def _origin_form(target: str) -> str:
    """`target` without the scheme and authority of the absolute form (RFC 9112, 3.2.2)."""
    if target.startswith("/"):
        return target
    _, _, rest = target.partition("://")
    _, slash, path = rest.partition("/")
    return slash + path


def _check_segment(segment: str) -> None:
    """Refuse what a backend that decodes once more than it should, or knows other separators, takes for a way out."""
    decoded = segment
    for _ in range(DECODINGS):
        _check_decoded(decoded)
        following = unquote(decoded, encoding="latin-1")
        if following == decoded:
            return
        decoded = following
    raise _refused(f"it is percent-encoded more than {DECODINGS - 1} times over")


def _check_decoded(segment: str) -> None:
    if LINE_OR_NUL.search(segment):
        raise _refused("it holds an encoded line break or NUL")
    # Some servers cut parameters off a segment (`..;x`) before they resolve the dots.
    if any(part.partition(";")[0] in (".", "..") for part in SEPARATOR.split(segment)):
        raise _refused("resolve . and .. before sending")


def _refused(advice: str) -> ValidationFailed:
    return ValidationFailed(f"this path cannot be passed on to a backend: {advice}")


def _end_to_end(headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    headers = tuple(headers)
    named = {
        option.strip().lower() for name, value in headers if name.lower() == "connection" for option in value.split(",")
    }
    dropped = HOP_BY_HOP | named
    return [(name, value) for name, value in headers if not _is_hop_by_hop(name.lower(), dropped)]


def _is_hop_by_hop(name: str, dropped: frozenset[str]) -> bool:
    return name in dropped or name.startswith("proxy-")


def _is_field(name: str, value: str) -> bool:
    """Whether it is a header field as RFC 9110 has them (5.1, 5.5)."""
    return TOKEN.fullmatch(name) is not None and FIELD_VALUE.fullmatch(value) is not None


def _told(origin: Origin) -> Headers:
    told = (
        ("X-Forwarded-For", origin.clients),
        ("X-Forwarded-Proto", origin.scheme),
        ("X-Forwarded-Host", origin.host),
        ("X-Request-ID", origin.request_id),
        ("traceparent", origin.traceparent),
        ("tracestate", origin.tracestate),
    )
    return tuple((name, value) for name, value in told if value)
