"""From which pages a browser may open a connection that carries its user's cookies.

A browser sends cookies with a WebSocket handshake whatever page asked for it, and no same-origin rule keeps that page from
reading what comes back (OWASP: cross-site WebSocket hijacking). The `Origin` field tells which page it was.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Final, NamedTuple

__all__ = ["allowed", "check"]

_NAME: Final = r"(?:[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?\.?|\[[0-9A-Fa-f:.]+\])"
_ORIGIN: Final = re.compile(rf"([A-Za-z][A-Za-z0-9+.-]*)://({_NAME})(?::([0-9]{{1,5}}))?")
_HOST: Final = re.compile(rf"({_NAME})(?::([0-9]{{1,5}}))?")
_PATTERN: Final = re.compile(rf"([A-Za-z][A-Za-z0-9+.-]*)://(\*\.)?({_NAME})(?::([0-9]{{1,5}}))?")
_PORTS: Final = {"http": 80, "https": 443}
_WEB_SCHEMES: Final = {"ws": "http", "wss": "https"}


class _Origin(NamedTuple):
    scheme: str
    host: str
    port: int | None


def allowed(origin: str | None, host: str, scheme: str, extra: Collection[str] = ()) -> bool:
    """Whether a handshake with this `Origin` is let in.

    `origin`: the field, None when there is none, as with clients that are no browsers: those are let in, since they send no
    user's cookies unknown to them. `host`: the request's `Host` field. `scheme`: its "http" or "https" (or "ws", "wss").
    `extra`: foreign origins to let in, as `check` has them. `null`, which sandboxed pages and files send, is foreign.

    A page of https is of the same origin also where this side sees http, since TLS may end before it. Not the other way round:
    such a page could have been changed on its way.
    """
    if origin is None or "*" in extra:
        return True
    page = _parse(origin)
    if page is None:
        return False
    return _same(page, host, _WEB_SCHEMES.get(scheme, scheme)) or any(_matches(page, pattern) for pattern in extra)


def check(origins: Iterable[str]) -> tuple[str, ...]:
    """These as a tuple, if each can be an entry of `extra`: `https://app.example`, with a port if it is not the usual one;
    `https://*.example.com` for every name below that one, not itself; `*` for all. Raises `ValueError`."""
    checked = tuple(origins)
    for each in checked:
        if each != "*" and _PATTERN.fullmatch(each) is None:
            raise ValueError(
                f"not an origin: {each[:200]!r}; write it as a browser does, a scheme and a host without a path, such as "
                "https://app.example, https://app.example:8443, https://*.example.com, or * for all"
            )
    return checked


def _parse(text: str) -> _Origin | None:
    match = _ORIGIN.fullmatch(text)
    if match is None:
        return None
    scheme, host, port = match.groups()
    scheme = scheme.lower()
    return _Origin(scheme, host.lower(), int(port) if port else _PORTS.get(scheme))


def _same(page: _Origin, host: str, scheme: str) -> bool:
    match = _HOST.fullmatch(host)
    if match is None or page.scheme not in (scheme, "https"):
        return False
    name, port = match.groups()
    # A Host field without a port means the usual one of the scheme that the browser saw, which is the page's.
    ports = {int(port)} if port else {_PORTS.get(scheme), _PORTS["https"] if page.scheme == "https" else None}
    return name.lower() == page.host and page.port in ports


def _matches(page: _Origin, pattern: str) -> bool:
    match = _PATTERN.fullmatch(pattern)
    if match is None:
        return False
    scheme, below, host, port = match.groups()
    scheme, host = scheme.lower(), host.lower()
    if page.scheme != scheme or page.port != (int(port) if port else _PORTS.get(scheme)):
        return False
    return page.host.endswith("." + host) if below else page.host == host
