"""Keep-alive connections to one backend, with a bound on every wait.

A timeout of a socket bounds one read, so a peer that sends a byte now and then could hold a connection for ever. Here
each read waits for the shorter of two: the longest silence allowed, and what is left of the time for the whole.
"""

from __future__ import annotations

import functools
import http.client
import io
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.util import SKIP_HEADER

from service.services.backends import Headers

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["Call", "Connection", "Connections", "Patience", "Waits", "connections_to"]

BLOCK: Final = 65_536
"""Bytes of a request body that are sent in one piece, each within the longest silence allowed."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request, ready to be sent: `target` is the whole path with the query, `headers` hold no Content-Length."""

    method: str
    target: str
    headers: Headers
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Waits:
    """How long a call may wait, in seconds.

    `pool`: for a free connection. `connect`: to be connected, the TLS handshake included. `read`: for the peer to take
    or give another byte, and for the whole head of the response once the request is out. `stream`: for a whole body,
    out or in.
    """

    pool: float
    connect: float
    read: float
    stream: float


class Patience:
    """How long an exchange may still wait: `silence` seconds at a time, and no longer than granted in all."""

    def __init__(self, *, silence: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._silence = silence
        self._clock = clock
        self._until = clock() + silence

    def grant(self, seconds: float) -> None:
        """What comes now may take `seconds` in all."""
        self._until = self._clock() + seconds

    def next_wait(self) -> float:
        """Seconds that the next read or write may take. Raises `TimeoutError` when the time is used up."""
        left = self._until - self._clock()
        if left <= 0:
            raise TimeoutError("too slow: the time for the whole of it is used up")
        return min(self._silence, left)


class _PatientReader(io.RawIOBase):
    """The receiving side of a socket; each read asks `patience` how long it may wait."""

    def __init__(self, incoming: io.RawIOBase, sock: socket.socket, patience: Patience) -> None:
        self._incoming = incoming
        self._sock = sock
        self._patience = patience
        self.at_end = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int | None:
        self._sock.settimeout(self._patience.next_wait())
        count = self._incoming.readinto(buffer)
        self.at_end = count == 0
        return count

    def close(self) -> None:
        self._incoming.close()
        super().close()


class _PatientResponse(http.client.HTTPResponse):
    """A response that is read with patience, interim answers (103 Early Hints and the like) skipped, and whose head
    must be there to its end."""

    def __init__(
        self,
        sock: socket.socket,
        debuglevel: int = 0,
        method: str | None = None,
        url: str | None = None,
        *,
        patience: Patience,
    ) -> None:
        super().__init__(sock, debuglevel, method, url)
        self._reader = _PatientReader(self.fp.detach(), sock, patience)
        self.fp = io.BufferedReader(self._reader)

    def begin(self) -> None:
        super().begin()
        if self._reader.at_end:  # the base takes the end of the connection for the end of the head
            raise http.client.HTTPException("the head of the response breaks off")

    def _read_status(self) -> tuple[str, int, str]:
        version, status, reason = super()._read_status()  # type: ignore[misc]  # not in the published types
        while 100 <= status < 200:
            if status == http.client.SWITCHING_PROTOCOLS:
                raise http.client.HTTPException("the backend switched protocols without being asked")
            http.client.parse_headers(self.fp)
            version, status, reason = super()._read_status()  # type: ignore[misc]  # as above
        return version, status, reason


class Connection(HTTPConnection):
    """One keep-alive connection. Opens itself when needed, also again after `close`."""

    def exchange(self, call: Call, waits: Waits) -> urllib3.HTTPResponse:
        """Send the request and read the head of the response, its body unread and undecoded.

        Raises what sockets, `http.client` and urllib3 raise; the connection must not be used again then, nor before
        its response has been read to the end.
        """
        if self.is_closed:
            self.timeout = waits.connect
            self.connect()
        self.timeout = waits.read
        patience = Patience(silence=waits.read)
        patience.grant(waits.stream)
        self._send(call, patience)
        patience.grant(waits.read)
        # The published type is that of a class; the base only calls it.
        self.response_class = functools.partial(_PatientResponse, patience=patience)  # type: ignore[assignment]
        response = self.getresponse()
        patience.grant(waits.stream)
        return response

    def _send(self, call: Call, patience: Patience) -> None:
        try:
            self.request(
                call.method,
                call.target,
                body=self._blocks(call.body, patience) if call.body else None,
                headers=_fields(call),
                preload_content=False,
                decode_content=False,
            )
        except (BrokenPipeError, ConnectionResetError):
            # A backend may answer (413, say) and close without reading the body; that answer may be readable still.
            if not call.body:
                raise

    def _blocks(self, body: bytes, patience: Patience) -> Iterator[bytes]:
        for start in range(0, len(body), BLOCK):
            self.sock.settimeout(patience.next_wait())
            yield body[start : start + BLOCK]


class _SecureConnection(Connection, HTTPSConnection):
    """A `Connection` under TLS, the certificate verified against the host name."""


class Connections(urllib3.HTTPConnectionPool):
    """The connections to one backend: at most `maxsize`, those not in use kept open."""

    ConnectionCls = Connection

    def lend(self, wait: float) -> Connection:
        """A connection, open if one is idle and still alive. Raises `urllib3.exceptions.EmptyPoolError` when all are
        lent for `wait` seconds. Whatever comes of it, it must be taken back or discarded."""
        connection = self._get_conn(timeout=wait)
        assert isinstance(connection, Connection)
        return connection

    def take_back(self, connection: Connection) -> None:
        """Make the connection free for the next caller. Its exchange must have come to its end without a fault."""
        self._put_conn(connection)

    def discard(self, connection: Connection) -> None:
        """Close the connection and make room for a new one.

        Closing alone would not do: the beginning of a head that could not be written to its end outlives it in the
        object, and would go out before the next caller's request.
        """
        connection.close()
        self._put_conn(None)

    def replace(self, connection: Connection) -> Connection:
        """Close the connection; a new one takes its place and must be taken back instead."""
        connection.close()
        replacement = self._new_conn()
        assert isinstance(replacement, Connection)
        return replacement


class _SecureConnections(Connections, urllib3.HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


def connections_to(url: str, *, size: int) -> Connections:
    """A pool of up to `size` connections to the host and port of `url`, under TLS for https.

    Certificates are verified against the system's authorities, or those that ``SSL_CERT_FILE`` names.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme == "https":
        context = ssl.create_default_context()
        return _SecureConnections(host, parts.port or 443, maxsize=size, block=True, ssl_context=context)
    return Connections(host, parts.port or 80, maxsize=size, block=True)


def _fields(call: Call) -> urllib3.HTTPHeaderDict:
    fields = urllib3.HTTPHeaderDict()
    for name, value in call.headers:
        fields.add(name, value)
    for name in ("Accept-Encoding", "User-Agent"):
        fields.setdefault(name, SKIP_HEADER)  # or the library would speak for a caller who sent none
    if call.body:
        fields["Content-Length"] = str(len(call.body))
    return fields
