"""The opening handshake of RFC 6455, seen from the server: what a request asks for, and the head that answers it."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha1
from typing import Any, Final

__all__ = ["Handshake", "HandshakeRefused", "accept", "accept_key", "head"]

VERSION: Final = "13"

_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_FIELD_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_KEY: Final = re.compile(r"[A-Za-z0-9+/]{22}==")
_SALT: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

_NOT_OURS: Final = frozenset(
    {
        "connection",
        "content-length",
        "content-type",
        "keep-alive",
        "sec-websocket-accept",
        "sec-websocket-extensions",
        "sec-websocket-protocol",
        "transfer-encoding",
        "upgrade",
    }
)
"""Fields that a framework puts on every answer and that mean nothing, or something else, in the head of an upgrade."""


class HandshakeRefused(ValueError):
    """A request that opens no WebSocket: it is answered with `status`, `fields` and `message`, which says what to do."""

    def __init__(self, status: int, message: str, fields: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.fields = fields


@dataclass(frozen=True, slots=True)
class Handshake:
    """What a valid request asks for."""

    accept_key: str
    """What `Sec-WebSocket-Accept` has to say."""
    subprotocols: tuple[str, ...] = ()
    """Those that the client offers, the one it likes best first."""
    extensions: str = ""
    """The whole `Sec-WebSocket-Extensions`; `deflate.negotiate` reads it."""
    origin: str | None = None

    def choose(self, supported: Collection[str]) -> str:
        """The first subprotocol offered that is among `supported`; "" when none is."""
        return next((each for each in self.subprotocols if each in supported), "")


def accept(environ: Mapping[str, Any]) -> Handshake:
    """What a WSGI request asks for. Raises `HandshakeRefused` (RFC 6455, 4.2)."""
    if environ["REQUEST_METHOD"] != "GET":
        raise HandshakeRefused(405, "A WebSocket is opened with GET.", (("Allow", "GET"),))
    if "websocket" not in _words(environ.get("HTTP_UPGRADE", "")):
        raise HandshakeRefused(
            426,
            "This address speaks WebSocket only: open it with a WebSocket client (ws:// or wss://). If that is what you did, "
            "have the proxies in between pass on the fields Upgrade and Connection.",
            (("Upgrade", "websocket"),),
        )
    if "upgrade" not in _words(environ.get("HTTP_CONNECTION", "")):
        raise HandshakeRefused(
            400, "The field Connection does not say Upgrade: a proxy in between has to pass it on as it came."
        )
    if environ.get("SERVER_PROTOCOL") == "HTTP/1.0":
        raise HandshakeRefused(400, "A WebSocket is opened with HTTP/1.1: set proxy_http_version 1.1 in nginx.")
    if environ.get("CONTENT_LENGTH") not in (None, "", "0") or environ.get("HTTP_TRANSFER_ENCODING"):
        raise HandshakeRefused(400, "A request that opens a WebSocket has no body.")
    _check_version(environ.get("HTTP_SEC_WEBSOCKET_VERSION"))
    return Handshake(
        accept_key(_checked_key(environ.get("HTTP_SEC_WEBSOCKET_KEY"))),
        _subprotocols(environ.get("HTTP_SEC_WEBSOCKET_PROTOCOL", "")),
        environ.get("HTTP_SEC_WEBSOCKET_EXTENSIONS", ""),
        environ.get("HTTP_ORIGIN"),
    )


def accept_key(key: str) -> str:
    """What proves to a client that sent `key` that it was understood (4.2.2)."""
    return b64encode(sha1(key.encode() + _SALT, usedforsecurity=False).digest()).decode()


def head(
    handshake: Handshake,
    *,
    subprotocol: str = "",
    extensions: str = "",
    fields: Iterable[tuple[str, str]] = (),
) -> bytes:
    """The head of the 101 that opens the WebSocket.

    `subprotocol`: one of those offered, or "". `extensions`: what was agreed on (`Deflation.response`), or "". `fields`: what
    else the application says, such as cookies; those that belong to the handshake or to a body are left out.

    Raises `ValueError` for a subprotocol that was not offered, and for a field that cannot be one.
    """
    if subprotocol and subprotocol not in handshake.subprotocols:
        raise ValueError(
            f"the client did not offer the subprotocol {subprotocol!r}; it would end the connection (RFC 6455, 4.1)"
        )
    lines = [
        "HTTP/1.1 101 Switching Protocols",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Accept: {handshake.accept_key}",
    ]
    if subprotocol:
        lines.append(f"Sec-WebSocket-Protocol: {subprotocol}")
    if extensions:
        lines.append(f"Sec-WebSocket-Extensions: {extensions}")
    for name, value in fields:
        if _NAME.fullmatch(name) is None or _FIELD_VALUE.fullmatch(value) is None:
            raise ValueError(f"not a field of HTTP: {name[:100]!r}: {value[:100]!r}")
        if name.lower() not in _NOT_OURS:
            lines.append(f"{name}: {value}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def _words(field: str) -> list[str]:
    return [word.strip(" \t").lower() for word in field.split(",")]


def _check_version(version: str | None) -> None:
    ours = ("Sec-WebSocket-Version", VERSION)
    if version is None:
        raise HandshakeRefused(400, f"The field Sec-WebSocket-Version is missing; it has to say {VERSION}.", (ours,))
    if version.strip(" \t") != VERSION:
        raise HandshakeRefused(
            426, f"Only version {VERSION} of WebSocket is spoken here (RFC 6455).", (ours, ("Upgrade", "websocket"))
        )


def _checked_key(key: str | None) -> str:
    if key is None:
        raise HandshakeRefused(400, "The field Sec-WebSocket-Key is missing.")
    key = key.strip(" \t")
    if _KEY.fullmatch(key) is None:
        raise HandshakeRefused(400, "The field Sec-WebSocket-Key has to be 16 bytes in base64.")
    return key


def _subprotocols(field: str) -> tuple[str, ...]:
    if not field:
        return ()
    names = tuple(name for each in field.split(",") if (name := each.strip(" \t")))
    if not names or len(set(names)) < len(names) or not all(_NAME.fullmatch(name) for name in names):
        raise HandshakeRefused(
            400, "The field Sec-WebSocket-Protocol has to be a list of different names, with commas between them."
        )
    return names
