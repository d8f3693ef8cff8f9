"""The socket that an application is given (`environ["gunicorn.socket"]`), made only if it is used."""

from __future__ import annotations

import _socket
import errno
import ssl
from typing import TYPE_CHECKING, Any

import gevent.socket

if TYPE_CHECKING:
    from longconn.parking.connection import Connection

__all__ = ["LentSocket", "TlsStream", "lend", "reclaim"]

_USES = frozenset({
    "detach", "dup", "fileno", "makefile", "recv", "recv_into", "recvmsg", "send", "sendall", "sendfile", "sendmsg",
    "shutdown",
})  # fmt: skip
"""With these an application speaks to its client past the worker, which then writes nothing more of its own."""


RECORD = 16_384
"""The largest record of TLS."""


class _Lent(gevent.socket.socket):
    """What the application gets: when it gives the descriptor away or closes it, the connection lets go of it first."""

    let_go: Any = None

    def _detach_socket(self, reason: str) -> None:
        let_go, self.let_go = self.let_go, None
        if let_go is not None:
            let_go()
        super()._detach_socket(reason)  # type: ignore[misc]  # gevent's, of which the stubs know nothing


class LentSocket:
    """Stands for the cooperative socket of a connection: the first use of any attribute makes it.

    Most requests never look at their socket, which would be the dearest part of their environment. It is the
    application's for the length of the request; afterwards it is closed for the application (not for the client), so that
    nobody can reach into what comes next on the connection.
    """

    __slots__ = ("_connection", "_exchange")

    def __init__(self, connection: Connection, exchange: Any) -> None:
        self._connection = connection
        self._exchange = exchange

    def __getattr__(self, name: str) -> Any:
        connection = self._connection
        if connection.attached is not self._exchange:
            raise OSError(errno.EBADF, "the request is over, and with it the use of its socket")
        if name in _USES:
            self._exchange.used_by_application = True
        return getattr(lend(connection), name)

    def __repr__(self) -> str:
        return f"<LentSocket of descriptor {self._connection.fileno()}>"


def lend(connection: Connection) -> Any:
    """The cooperative socket of `connection`, blocking as gunicorn's is. Belongs to the exchange under way."""
    exchange = connection.attached
    if exchange.lent is None:
        stream = connection.socket
        if isinstance(stream, TlsStream):
            exchange.lent = stream.tls
            stream.tls.settimeout(None)
        else:
            lent = _Lent(stream.family, stream.type, stream.proto, fileno=stream.fileno())

            def let_go() -> None:
                descriptor = connection.socket.fileno()
                connection.lot.forget(connection, descriptor)
                connection.socket.detach()

            lent.let_go = let_go
            exchange.lent = lent
    return exchange.lent


def reclaim(connection: Connection, lent: Any) -> None:
    """Take back what was lent. What the application still holds is a closed socket."""
    if isinstance(connection.socket, TlsStream):
        if lent.fileno() < 0:
            # The application has closed it. The table knows the connection by the number it had.
            connection.lot.forget(connection, connection.socket.descriptor)
        return
    if lent.fileno() >= 0:
        lent.let_go = None  # what the application still holds is a closed socket
        lent.detach()


class TlsStream:
    """A TLS connection as the engine uses it: without waiting, and with the errors of a plain socket."""

    __slots__ = ("descriptor", "tls")

    def __init__(self, tls: Any) -> None:
        self.tls = tls
        self.descriptor = int(tls.fileno())

    def fileno(self) -> int:
        """The descriptor underneath."""
        return int(self.tls.fileno())

    def recv(self, size: int) -> bytes:
        """As `socket.recv`. Raises `BlockingIOError` when nothing (whole) has arrived."""
        tls = self.tls
        tls.settimeout(0.0)
        try:
            data: bytes = tls.recv(size)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise BlockingIOError from None
        finally:
            tls.settimeout(None)  # an application that has it expects it to wait
        return data

    def send(self, data: Any) -> int:
        """As `socket.send`."""
        tls = self.tls
        tls.settimeout(0.0)
        # Python's `send` gives OpenSSL all of it and hears of nothing before all has left: a record at a time says how far it
        # got. OpenSSL wants a record that did not leave to come again as it was, and so it does.
        rest = memoryview(data)
        sent = 0
        while sent < len(rest):
            try:
                count = tls.send(rest[sent : sent + RECORD])
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                count = 0
            if not count:  # gevent's sockets say it so, where the standard library's raise
                break
            sent += count
        tls.settimeout(None)
        if not sent and len(rest):
            raise BlockingIOError
        return sent

    def setsockopt(self, *arguments: Any) -> None:
        """As `socket.setsockopt`."""
        self.tls.setsockopt(*arguments)

    def getsockopt(self, *arguments: Any) -> Any:
        """As `socket.getsockopt`."""
        return self.tls.getsockopt(*arguments)

    def shutdown(self, how: int) -> None:
        """As `socket.shutdown`, of the connection underneath: it goes on being TLS for what still arrives."""
        if self.tls.fileno() < 0:
            raise OSError(errno.EBADF, "the connection is closed")
        _socket_shutdown(self.tls.fileno(), how)

    def close(self) -> None:
        """As `socket.close`."""
        self.tls.close()


def _socket_shutdown(descriptor: int, how: int) -> None:
    twin = _socket.socket(fileno=descriptor)
    try:
        twin.shutdown(how)
    finally:
        twin.detach()
