"""Connections that gunicorn's own code serves: HTTP/2, with TLS or without, and the uwsgi protocol. And the TLS handshake,
which tells them apart."""

from __future__ import annotations

import _socket
import os
import ssl
from collections.abc import Callable
from typing import Any

import gevent
import gevent.socket
from gunicorn import sock as gunicorn_sock
from gunicorn.http2 import negotiation

from longconn import reasons, scoreboard
from longconn.core.states import Event, State
from longconn.http.lending import TlsStream
from longconn.parking.connection import Connection
from longconn.ports import Host

__all__ = ["GUNICORNS", "ByGunicorn", "stop_reading"]


class _Gunicorns:
    """Attached to a connection that gunicorn's own code serves: HTTP/2, or a protocol that is not HTTP."""

    def is_slow(self, now: float) -> bool:
        """Its transfers are not measured."""
        del now
        return False

    def waited(self, now: float) -> float:
        """Nor are its waits."""
        del now
        return 0.0


GUNICORNS = _Gunicorns()


class ByGunicorn:
    """Serves, with the code of `worker`'s base classes, what this package leaves to gunicorn.

    Each such connection has a greenlet of its own for as long as it lives.
    """

    def __init__(self, worker: Host) -> None:
        self._worker = worker
        self._lot = worker.lot
        self._cfg: Any = worker.cfg
        self._context: Any = gunicorn_sock.ssl_context(self._cfg) if self._cfg.is_ssl else None
        self._serves_all = getattr(self._cfg, "protocol", "http") != "http"
        self._may_be_h2c = self._cfg.http2_cleartext != "off"
        self._handshake_timeout = worker.longconn_settings.handshake_timeout

    def takes(self, connection: Connection) -> bool:
        """Whether all of this connection, of which no byte has been read, is gunicorn's."""
        if (
            not (self._serves_all or self._may_be_h2c)
            or connection.state != State.ACCEPTED
            or connection.listener.secure
        ):
            return False
        cfg, address = self._cfg, connection.address
        return bool(
            self._serves_all
            or negotiation.prior_knowledge_allowed(cfg, address)
            or negotiation.upgrade_allowed(cfg, address)
        )

    def serve(self, connection: Connection) -> None:
        """Let gunicorn serve it to its end."""
        lot = self._lot
        lot.move(connection, Event.BYTES)
        client = self._cooperative(connection)
        descriptor = client.fileno()
        try:
            self._give(connection, "other", self._worker.handle, connection.listener, client, connection.address)
        finally:
            lot.forget(connection, descriptor)  # gunicorn has closed it
            lot.close(connection, reasons.CLIENT)

    @staticmethod
    def _cooperative(connection: Connection) -> Any:
        plain = connection.socket
        connection.socket = gevent.socket.socket(plain.family, plain.type, plain.proto, fileno=plain.detach())
        return connection.socket

    def _give(self, connection: Connection, kind: str, function: Callable[..., object], *arguments: Any) -> None:
        field = scoreboard.KINDS + scoreboard.KIND_NAMES.index(kind)
        self._lot.move(connection, Event.UPGRADE)
        connection.attached = GUNICORNS
        self._lot.tally[field] += 1
        try:
            function(*arguments)
        except (gevent.GreenletExit, gevent.Timeout):
            self._worker.log.debug("A connection was cut")
        finally:
            self._lot.tally[field] -= 1

    def shake_hands(self, connection: Connection) -> bool:
        """Do the TLS handshake. False when the connection needs nothing more: it failed, or was HTTP/2 and is over."""
        lot = self._lot
        lot.move(connection, Event.HANDSHAKE)
        wheel = lot.wheel
        # What is left of the time since the accept.
        left = max(0.1, (connection.deadline - wheel.now_tick) * wheel.resolution)
        client = self._cooperative(connection)
        descriptor = client.fileno()
        timeout = gevent.Timeout.start_new(min(left, self._handshake_timeout))
        try:
            tls = self._context.wrap_socket(
                client,
                server_side=True,
                suppress_ragged_eofs=self._cfg.suppress_ragged_eofs,
                do_handshake_on_connect=False,
            )
            connection.socket = TlsStream(tls)
            tls.do_handshake()
        except gevent.Timeout as raised:
            lot.forget(connection, descriptor)
            lot.close(connection, reasons.HANDSHAKE_TIMEOUT)
            if raised is not timeout:
                raise
            return False
        except (OSError, ssl.SSLError, ValueError) as error:
            self._worker.log.debug("TLS handshake failed: %s", error)
            lot.forget(connection, descriptor)
            lot.close(connection, reasons.RESET)
            return False
        finally:
            timeout.close()
        if connection.state == State.CLOSED:
            return False
        if not gunicorn_sock.is_http2_negotiated(tls):
            return True
        tls.settimeout(None)
        try:
            self._give(connection, "http2", self._worker.handle_http2, connection.listener, tls, connection.address)
        finally:
            lot.close(connection, reasons.CLIENT)
        return False


def stop_reading(connection: Connection) -> None:
    """Let gunicorn's code on this connection see an end: it finishes its streams and says goodbye."""
    try:
        twin = _socket.socket(fileno=os.dup(connection.fileno()))
    except OSError:
        return
    try:
        twin.shutdown(_socket.SHUT_RD)
    except OSError:
        return
    finally:
        twin.close()
