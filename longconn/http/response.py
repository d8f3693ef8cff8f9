"""The answer to a request: gunicorn's rules about what may be in it, in one write where it can be.

It is also the exchange under way on its connection: whoever waits for the client in the middle of a body or of an answer
waits at the pace that is kept here.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, cast

from gunicorn import util
from gunicorn.http import wsgi
from gunicorn.http.errors import InvalidResponseHeader, InvalidResponseHeaderName
from gunicorn.http.message import TOKEN_RE

from longconn.core.pace import Pace
from longconn.core.states import Event, State
from longconn.errors import BodyTooSlow, Refusal
from longconn.http.body import ends_at_hand, has_been_read
from longconn.parking.lot import Expired
from longconn.parking.poller import READABLE, WRITABLE
from longconn.ports import Exchanges
from longconn.upgraded import UpgradeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from longconn.parking.connection import Connection
    from longconn.upgraded import Endpoint, UpgradedConnection

__all__ = ["Response"]

# What a field of a response is, by its name.
_ORDINARY = 0
_LENGTH = 1
_HOP = 2
_CONNECTION = 3
_UPGRADE = 4

_MOST_NAMES = 1024
_names: dict[str, int] = {}
_MOST_STATUSES = 256
_statuses: dict[str, int | None] = {}
_LARGEST_JOIN = 1_048_576
"""The largest piece of a body that is copied behind its head, so that both leave in one write."""

LARGEST_SENDFILE = 0x3FFFFFFF

_date_second = 0
_date = ""


def _http_date() -> str:
    global _date_second, _date
    now = int(time.time())
    if now != _date_second:
        _date = util.http_date(now)
        _date_second = now
    return _date


class Response(wsgi.Response):  # type: ignore[misc]  # gunicorn publishes no types
    """As gunicorn's, over a connection that parks."""

    version = wsgi.SERVER
    status: str | None = None
    status_code: int | None = None
    chunked = False
    must_close = False
    headers_sent = False
    response_length: int | None = None
    sent = 0
    upgrade = False
    _omits_body = False
    _omits_body_warned = False

    pace: Pace | None = None
    failure: Refusal | None = None
    """Why the client is not answered what the application says."""
    left_unread = False
    """Whether the answer was given before the request's body was there in full."""
    timeout: Any = None
    """What ends a request whose answer does not begin in time."""
    answered = False
    """Whether the answer is out, and only the little rest of the request's body is still waited for."""
    asked_to_upgrade = False
    """Whether the client wants to speak WebSocket from here on."""
    used_by_application = False
    """Whether the application has spoken to its client past the worker."""
    upgraded: Any = None
    """What the connection has become, when the application handed it over."""
    behind: tuple[Any, bytes] = (None, b"")
    """Where bytes are that have arrived behind the request: with its reader, or by themselves."""
    lent: Any = None
    """The socket that the application has been given."""
    _reading = True
    _waited = 0.0
    _waits_since = 0.0

    def __init__(self, request: Any, connection: Connection, serving: Exchanges) -> None:
        self.req = request
        self.connection = connection
        self.serving = serving
        self.cfg = serving.cfg
        self.headers: list[tuple[str, str]] = []

    @property
    def sock(self) -> Any:
        """The connection as a cooperative socket."""
        return self.serving.lend(self.connection)

    # The head.

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], None]:
        """PEP 3333's. Raises `TypeError`, `ValueError` and gunicorn's errors for what may not be in a response."""
        if exc_info is not None or self.status is not None:
            self._start_again(exc_info)
        code = _statuses[status] if status in _statuses else _check_status(status)
        self.status = status
        self.status_code = code
        self._process(headers)
        method = self.req.method
        if method == "HEAD" or code is None or code < 200 or code == 204 or code == 304:
            self._omits_body = self._response_omits_body(method, code)
            if self._omits_body and self._response_forbids_content_length(code):
                self.headers = [(name, value) for name, value in self.headers if name.lower() != "content-length"]
                self.response_length = None
        if self.response_length is None:
            self.chunked = self.is_chunked()
        return self.write

    def _start_again(self, exc_info: Any) -> None:
        if exc_info is None:
            raise AssertionError("Response headers already set!")
        try:
            if self.status and self.headers_sent:
                util.reraise(exc_info[0], exc_info[1], exc_info[2])
        finally:
            exc_info = None
        self.headers = []
        self.response_length = None
        self.chunked = self.upgrade = self._omits_body = False

    def _process(self, headers: list[tuple[str, str]]) -> None:
        keep = self.headers.append
        for name, value in headers:
            kind = _names.get(name)
            if kind is None:
                kind = _check_name(name)
            if not isinstance(value, str):
                raise TypeError(f"{value!r} is not a string")
            if not (value.isascii() and value.isprintable()) and not wsgi.HEADER_VALUE_RE.fullmatch(value):
                raise InvalidResponseHeader(repr(name))  # without the value, which may be a secret
            value = value.strip(" \t")
            if kind == _ORDINARY:
                keep((name, value))
            elif kind == _LENGTH:
                self.response_length = int(value)
                keep((name, value))
            elif kind == _CONNECTION:
                self.upgrade = self.upgrade or value.lower() == "upgrade"
            elif kind == _UPGRADE and value.lower() == "websocket":
                keep((name, value))

    def process_headers(self, headers: list[tuple[str, str]]) -> None:
        """Check and take over the application's fields."""
        self._process(headers)

    def _head(self) -> bytes:
        """The head, at the moment at which it is written: here it is decided whether the connection is kept."""
        connection = self.connection
        if self.failure is not None:
            raise self.failure  # the client hears of that, whatever the application has made of it
        if connection.state == State.READING_BODY:
            connection.lot.move(connection, Event.RESPOND)
        if not self.must_close and self.serving.must_close(connection):
            self.must_close = True
        request = self.req
        if self.asked_to_upgrade or self.status_code == 101:
            # What follows is meant for another protocol: it must not be taken for a request.
            self.must_close = True
        if self.timeout is not None:
            self.timeout.close()
        if not ends_at_hand(request):
            self.must_close = self.left_unread = True
        if self.upgrade:
            option = "upgrade"
        elif self.should_close():
            option = "close"
        else:
            option = "keep-alive"
        version = request.version
        status_line = f"HTTP/{version[0]}.{version[1]} {self.status}\r\n"
        lines = [status_line, f"Server: {self.version}\r\nDate: {_http_date()}\r\nConnection: {option}\r\n"]
        if self.chunked:
            lines.append("Transfer-Encoding: chunked\r\n")
        lines.extend([f"{name}: {value}\r\n" for name, value in self.headers])
        lines.append("\r\n")
        self.headers_sent = True
        return "".join(lines).encode("latin-1")

    def send_headers(self) -> None:
        """Write the head, if that has not been done."""
        if not self.headers_sent:
            self._send(self._head())

    # The body.

    def write(self, data: Any) -> None:
        """Write a piece of the body, the first one together with the head. Never more than Content-Length says."""
        if not isinstance(data, bytes):
            self.send_headers()
            raise TypeError(f"{data!r} is not a byte")
        head = b"" if self.headers_sent else self._head()
        if self._omits_body:
            if head:
                self._send(head)
            self._warn_of(data)
            return
        length = self.response_length
        if length is not None and len(data) > length - self.sent:
            data = data[: max(0, length - self.sent)]
        count = len(data)
        if not count:
            if head:
                self._send(head)
            return
        self.sent += count
        if self.chunked:
            data = b"%s%X\r\n%s\r\n" % (head, count, data)
        elif head:
            if count > _LARGEST_JOIN:
                self._send(head)
            else:
                data = head + data
        self._send(data)

    def _emit_body(self, data: bytes) -> None:
        self._send(b"%X\r\n%s\r\n" % (len(data), data) if self.chunked else data)

    def _warn_of(self, data: bytes) -> None:
        if data and not self._omits_body_warned:
            wsgi.log.warning(
                "WSGI app sent body bytes on a no-body response (method=%s status=%s); dropping per RFC 9110.",
                self.req.method,
                self.status_code,
            )
            self._omits_body_warned = True

    def close(self) -> None:
        """Write what the answer still needs to be whole."""
        data = b"" if self.headers_sent else self._head()
        if self.chunked:
            data += b"0\r\n\r\n"
        if data:
            self._send(data)

    def is_short(self) -> bool:
        """Whether less of the body was written than its Content-Length says."""
        length = self.response_length
        return length is not None and self.sent < length and not self._omits_body

    def _send(self, data: bytes) -> None:
        connection = self.connection
        if connection.state == State.CLOSED:
            raise connection.over()
        connection.write(data)

    def sendfile(self, respiter: Any) -> bool:
        """Let the kernel copy the file. False when it can not."""
        if self.connection.listener.secure or not self.can_sendfile() or not util.has_fileno(respiter.filelike):
            return False
        descriptor = respiter.filelike.fileno()
        try:
            offset = os.lseek(descriptor, 0, os.SEEK_CUR)
            length = self.response_length
            count = os.fstat(descriptor).st_size - offset if length is None else length
        except OSError:  # a pipe, or no longer a file
            return False
        if self._omits_body:
            self.send_headers()
            if count > 0:
                self._warn_of(b"file")
            return True
        head = b"" if self.headers_sent else self._head()
        if self.chunked:
            head += b"%X\r\n" % count if count > 0 else b""
        if head:
            self._send(head)
        moved = self._copy(descriptor, offset, count)
        self.sent += moved
        if self.chunked and count > 0:
            self._send(b"\r\n")
        if moved < count:
            self.must_close = True  # the file was shorter than was announced
        os.lseek(descriptor, offset, os.SEEK_SET)
        return True

    def _copy(self, descriptor: int, offset: int, count: int) -> int:
        connection = self.connection
        moved = 0
        while moved < count:
            try:
                sent = os.sendfile(
                    connection.fileno(), descriptor, offset + moved, min(count - moved, LARGEST_SENDFILE)
                )
            except BlockingIOError:
                connection.edges &= ~WRITABLE
                self.wait(connection, WRITABLE)
                continue
            if sent == 0:
                break
            moved += sent
            connection.lot.bytes_out += sent
            self.departed(sent)
        return moved

    def send_early_hints(self, headers: list[tuple[Any, Any]]) -> None:
        """`wsgi.early_hints`: write a 103 with `headers`, unless the answer has begun or the client speaks HTTP/1.0."""
        if self.headers_sent or self.req.version < (1, 1):
            return
        lines = ["HTTP/1.1 103 Early Hints\r\n"]
        for given_name, given_value in headers:
            name = given_name.decode("latin-1") if isinstance(given_name, bytes) else given_name
            value = given_value.decode("latin-1") if isinstance(given_value, bytes) else given_value
            if not TOKEN_RE.fullmatch(name):
                raise InvalidResponseHeaderName(repr(name))
            if not wsgi.HEADER_VALUE_RE.fullmatch(value):
                raise InvalidResponseHeader(repr(name))
            value = value.strip(" \t")
            lines.append(f"{name}: {value}\r\n")
        lines.append("\r\n")
        self._send("".join(lines).encode("latin-1"))

    def hand_over(self, endpoint: Endpoint, head: bytes | None = None) -> UpgradedConnection:
        """`environ["longconn.upgrade"]`: write `head` and give the connection to `endpoint` (see `longconn.upgraded`).

        The application then returns `longconn.upgraded.HANDLED`, or anything: it is not looked at. Raises `UpgradeError`
        when an answer has begun or the request's body has not been read, and `OSError` when the client is gone.
        """
        connection = self.connection
        if self.headers_sent or connection.state not in (State.RESPONDING, State.READING_BODY):
            raise UpgradeError("the answer has begun: hand the connection over before start_response is written")
        if not has_been_read(self.req):
            raise UpgradeError(
                "the request has a body that has not been read: read it before the connection is handed over"
            )
        if self.timeout is not None:
            self.timeout.close()
        if head:
            self._send(head)
        self.headers_sent = True
        self.upgraded = self.serving.upgrading.upgrade(connection, endpoint)
        return cast("UpgradedConnection", self.upgraded)

    @property
    def expires_in_use(self) -> bool:
        """Whether what the connection has become hears of its deadline while the application has not returned."""
        return self.upgraded is not None and bool(self.upgraded.expires_in_use)

    def expired(self) -> None:
        """The deadline of what the connection has become has passed."""
        self.upgraded.expired()

    def begin_upgraded(self) -> None:
        """Let the connection that was handed over park as what it has become, unless it does already."""
        if self.connection.attached is not self:
            return  # its application did not want to wait until it returns
        unreader, rest = self.behind
        self.behind = (None, b"")
        self.serving.upgrading.begin(
            self.connection, self.upgraded, rest if unreader is None else unreader.take_buffered()
        )

    # The pace.

    def arrived(self, count: int) -> None:
        """`count` bytes of the body have arrived."""
        if self.pace is not None and self._reading:
            self.pace.moved(self._waited, count)

    def departed(self, count: int) -> None:
        """`count` bytes of the answer have left."""
        if self.pace is not None and not self._reading:
            self.pace.moved(self._waited, count)

    def waited(self, now: float) -> float:
        """For how long, in seconds, somebody has waited for the client in this transfer."""
        return self._waited + now - self._waits_since if self.pace is not None else 0.0

    def is_slow(self, now: float) -> bool:
        """Whether somebody waits for the client, which moves less than the minimum rate."""
        return self.pace is not None and self.pace.slow(self.waited(now))

    def wait(self, connection: Connection, edge: int) -> None:
        """Wait for the client. Raises `BodyTooSlow` or `SlowReader` when it falls behind.

        The pace counts the time of these waits only: a client does not pay for an application that takes its time.
        """
        reading = edge == READABLE
        lot = connection.lot
        pace = self.pace
        if pace is None or self._reading != reading:
            settings = self.serving.settings
            gap, rate = (
                (settings.body_timeout, settings.body_rate)
                if reading
                else (settings.write_timeout, settings.write_rate)
            )
            self._waited = 0.0
            pace = self.pace = Pace(0.0, gap=gap, rate=rate)
            self._reading = reading
        started = self._waits_since = lot.now()
        try:
            lot.wait(connection, edge, started + pace.deadline() - self._waited)
        except Expired:
            if reading:
                self.failure = BodyTooSlow(
                    "the body of the request came too slowly: send it faster, or in smaller pieces"
                )
                raise self.failure from None
            connection.cut()
            raise connection.too_slow() from None
        finally:
            self._waited += lot.now() - started


def _check_status(status: Any) -> int | None:
    if not isinstance(status, str):
        raise TypeError(f"{status!r} is not a string")
    if not wsgi.STATUS_RE.fullmatch(status):
        raise ValueError(f"Invalid status {status!r}")
    code = int(status[:3])
    if len(_statuses) < _MOST_STATUSES:
        _statuses[status] = code
    return code


def _check_name(name: Any) -> int:
    if not isinstance(name, str):
        raise TypeError(f"{name!r} is not a string")
    if not TOKEN_RE.fullmatch(name):
        raise InvalidResponseHeaderName(repr(name))
    lower = name.lower()
    kind = _ORDINARY
    if lower == "content-length":
        kind = _LENGTH
    elif util.is_hoppish(name):
        kind = {"connection": _CONNECTION, "upgrade": _UPGRADE}.get(lower, _HOP)
    if len(_names) < _MOST_NAMES:
        _names[name] = kind
    return kind
