"""The heads of requests: from the first byte of one to the moment at which its application can be called.

An incomplete head waits as bytes, without a greenlet. A plain one is read by `HeadReader`; about all others gunicorn's own
parser decides.
"""

from __future__ import annotations

import io
from typing import Any

from gunicorn.http import errors as gunicorn_errors
from gunicorn.http import message
from gunicorn.http.body import Body, ChunkedReader, LengthReader

from longconn import reasons
from longconn.core.states import Event, State
from longconn.errors import BodyTooLarge, HeadsTooLarge
from longconn.http.body import BodyUnreader, Incomplete, LimitedReader
from longconn.http.farewell import Farewell
from longconn.parking.addresses import ProxiedAddress, plain_address
from longconn.parking.connection import Connection
from longconn.parking.poller import GONE, READABLE
from longconn.ports import Exchanges

__all__ = ["FOLLOWING", "Heads"]

RECEIVED_AT_ONCE = 16_384
LARGEST_PREAMBLE = 600
"""The bytes of a PROXY protocol's preamble, at most: before its end no line tells when to look again."""


class _Following:
    """Attached to a connection whose next request has arrived with the last one."""


FOLLOWING = _Following()


class _StrictRequest(message.Request):  # type: ignore[misc]  # gunicorn publishes no types
    """Parsed by gunicorn's own parser in Python, whatever `http_parser` says: it decides about everything odd."""

    _parse_fast = message.Request._parse_python  # noqa: SLF001 - there is no setting for a single request


class Heads:
    """Reads the heads of one worker's requests, and hands each to `serving.exchange`."""

    def __init__(self, serving: Exchanges, farewell: Farewell) -> None:
        self._serving = serving
        self._farewell = farewell
        self._worker = serving.worker
        self._cfg = serving.cfg
        self._lot = serving.lot
        self._settings = serving.settings
        self._head_ticks = serving.head_ticks
        self._most_body = serving.settings.max_body
        self._proxied = serving.cfg.proxy_protocol != "off"
        self._longest_line = serving.cfg.limit_request_line if serving.cfg.limit_request_line > 0 else 1_048_576
        self._largest_head = self._head_limit()

    def _head_limit(self) -> int:
        cfg = self._cfg
        fields = cfg.limit_request_fields
        if not 0 < fields <= message.MAX_HEADERS:
            fields = message.MAX_HEADERS
        size = cfg.limit_request_field_size
        if size <= 0:
            size = message.DEFAULT_MAX_HEADERFIELD_SIZE
        line = cfg.limit_request_line or 1_048_576
        return int(fields * (size + 2) + 4 + min(line, 1_048_576))

    def read(self, connection: Connection) -> None:
        """Read what has arrived; serve the request when its head is whole."""
        if connection.listener.secure and connection.state == State.ACCEPTED:
            if not self._worker.by_gunicorn.shake_hands(connection):
                return
            self._lot.move(connection, Event.HANDSHAKEN)
            connection.deadline = self._lot.wheel.now_tick + self._head_ticks
        pending = connection.pending
        if connection.attached is FOLLOWING:
            connection.attached = None
            self._lot.drop(connection)
            self._head(connection, bytes(pending))
            return
        data = connection.receive(RECEIVED_AT_ONCE)
        if not data:
            if data is None:
                connection.edges &= ~GONE  # the end is read as b"": there is none
                self._stay(connection)
            else:
                self._left(connection)
            return
        lot = self._lot
        if connection.state != State.READING_HEAD:
            lot.move(connection, Event.BYTES)
            connection.since = lot.wheel.now_tick
            connection.deadline = lot.wheel.now_tick + self._head_ticks
        if pending is None:
            self._head(connection, data)
        else:
            known = len(pending)
            pending += data
            lot.head_bytes += len(data)
            self._more_head(connection, pending, known)

    def _head(self, connection: Connection, data: bytes) -> None:
        """`data` begins a request."""
        if self._proxied and connection.requests == 0:
            self._ask_gunicorn(connection, data)
        elif data.find(b"\r\n\r\n") < 0:
            self._lot.keep(connection, data)
            self._check_begin(connection, data, 0)
        else:
            request = connection.listener.reader.read(data, plain_address(connection.address), connection.requests + 1)
            if request is None:
                self._ask_gunicorn(connection, data)
            elif request.length or request.chunked:
                unreader = BodyUnreader(data[request.consumed :])
                self._with_body(connection, request, unreader)
            else:
                lot = self._lot
                lot.move(connection, Event.HEAD)
                request.body = io.BytesIO()
                rest = data[request.consumed :] if request.consumed < len(data) else b""
                self._serving.exchange(connection, request, None, rest)

    def _more_head(self, connection: Connection, pending: bytearray, known: int) -> None:
        """`pending` begins a request; its first `known` bytes were not enough."""
        if self._proxied and connection.requests == 0:
            if known < LARGEST_PREAMBLE or pending.find(b"\n", known) >= 0:
                self._ask_gunicorn(connection, bytes(pending))
            else:
                self._wait_for_more(connection)
        elif pending.find(b"\r\n\r\n", max(0, known - 3)) < 0:
            self._check_begin(connection, pending, known)
        else:
            data = bytes(pending)
            self._lot.drop(connection)
            self._head(connection, data)

    def _check_begin(self, connection: Connection, data: bytes | bytearray, known: int) -> None:
        """Refuse an incomplete head that no further bytes can mend; let it wait for more otherwise."""
        first_line_is_new = data.find(b"\n", 0, known) < 0
        if first_line_is_new:
            if data.find(b"\n", known) >= 0 or len(data) - 2 > self._longest_line:
                self._ask_gunicorn(connection, bytes(data))
                return
        else:
            tail = data[max(0, known - 1) :]
            if tail.count(b"\n") != tail.count(b"\r\n") + (tail[:1] == b"\n" and known > 0):
                self._ask_gunicorn(connection, bytes(data))
                return
        if len(data) > self._largest_head:
            error = gunicorn_errors.LimitRequestHeaders("max buffer headers")
            self._farewell.refuse_by_gunicorn(connection, None, error)
            return
        self._wait_for_more(connection)

    def _wait_for_more(self, connection: Connection) -> None:
        if self._lot.head_bytes > self._settings.head_memory and self._worker.relieve_heads(connection):
            self._farewell.refuse(
                connection,
                HeadsTooLarge("too many bytes of incomplete heads: send heads at once"),
                reasons.HEAD_TIMEOUT,
            )
        else:
            self._stay(connection)

    def _ask_gunicorn(self, connection: Connection, data: bytes) -> None:
        """Let gunicorn's own parser decide about `data`."""
        unreader = BodyUnreader(data)
        try:
            request = _StrictRequest(self._cfg, unreader, plain_address(connection.address), connection.requests + 1)
        except Incomplete:
            if connection.pending is None:
                self._lot.keep(connection, data)
            if len(data) > self._largest_head + 65_536:
                error = gunicorn_errors.LimitRequestHeaders("max buffer headers")
                self._farewell.refuse_by_gunicorn(connection, None, error)
                return
            self._wait_for_more(connection)
            return
        except (StopIteration, gunicorn_errors.NoMoreData):
            self._left(connection)
            return
        except Exception as error:  # noqa: BLE001 - gunicorn's own way to say what it refuses, and with which status
            if not isinstance(error, gunicorn_errors.ParseException) or isinstance(
                error, gunicorn_errors.InvalidProxyHeader
            ):
                # What a client can send to bring this about is the client's fault, whatever gunicorn takes it for.
                error = gunicorn_errors.InvalidProxyLine(str(error))
            self._farewell.refuse_by_gunicorn(connection, None, error)
            return
        self._lot.drop(connection)
        info = request.proxy_protocol_info
        if info:
            address = connection.address
            proxied = ProxiedAddress(address if isinstance(address, tuple) else ())
            proxied.info = info
            proxied.plain = address
            connection.address = proxied
        reader = request.body.reader
        request.chunked = isinstance(reader, ChunkedReader)
        request.length = 0 if request.chunked else reader.length
        if request.length or request.chunked:
            self._with_body(connection, request, unreader)
        else:
            self._lot.move(connection, Event.HEAD)
            self._serving.exchange(connection, request, None, unreader.take_buffered())

    def _with_body(self, connection: Connection, request: Any, unreader: BodyUnreader) -> None:
        self._lot.move(connection, Event.BODY_FOLLOWS)
        limit = self._most_body
        if 0 < limit < request.length:
            error = BodyTooLarge(f"the body has {request.length} bytes; at most {limit} are taken (LONGCONN_MAX_BODY)")
            connection.requests += 1
            self._farewell.refuse(connection, error, reasons.INVALID, request=request)
            return
        unreader.connection = connection
        request.unreader = unreader
        length = request.length
        if length and unreader.buf.getbuffer().nbytes >= length and not request._expected_100_continue:  # noqa: SLF001 - gunicorn's, and ours
            data = unreader.take_buffered()
            request.body = io.BytesIO(data[:length])
            self._lot.move(connection, Event.RESPOND)
            self._serving.exchange(connection, request, None, data[length:])
            return
        if not request.chunked:
            request.body = Body(LengthReader(unreader, length))
        else:
            reader = ChunkedReader(request, unreader)
            request.body = Body(LimitedReader(reader, limit, connection) if limit else reader)
        self._serving.exchange(connection, request, unreader, b"")

    def _left(self, connection: Connection) -> None:
        """The client has closed its side, and nothing is owed to it."""
        self._worker.log.debug("Closing connection.")
        self._lot.close(connection, reasons.CLIENT if not self._serving.closing else reasons.DRAIN)

    def _stay(self, connection: Connection) -> None:
        """Let it wait on, for as long as it still may."""
        lot = self._lot
        if connection.edges & (READABLE | GONE):
            lot.call_again(connection)
            return
        if connection.slot < 0 or connection.slot > connection.deadline:
            lot.wheel.schedule(connection, connection.deadline)
        lot.rest(connection)
