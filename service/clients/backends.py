"""Backends over HTTP: pooled keep-alive connections, every wait bounded, a circuit breaker of its own around each.

The breaker guards a generator that yields the answer first and then its body, so a circuit is settled when the whole
answer has arrived: a body that breaks off is a failure, a caller that goes away is neither success nor failure.
"""

from __future__ import annotations

import contextlib
import email.utils
import functools
import http.client
import ssl
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Final
from urllib.parse import urlsplit

import gevent
import structlog
import urllib3
from urllib3.exceptions import ConnectTimeoutError, EmptyPoolError, HTTPError, NewConnectionError, ReadTimeoutError

from resilience import CircuitBreaker, CircuitOpen
from resilience.core.events import PolicyEvent, StateChanged
from resilience.events import PROCESS_EVENTS
from service.clients.connections import Call, Connection, Connections, Waits, connections_to
from service.errors import BackendFailed, BackendSaturated, BackendTimedOut, CircuitIsOpen
from service.services.backends import Headers
from service.services.ports import BackendResponse
from service.settings import Settings

__all__ = ["CallerTooSlow", "HttpBackend", "build_backends", "seconds_to_wait"]

_log = structlog.get_logger("service.clients")

FAILURES: Final = frozenset({500, 502, 503, 504})
"""Statuses that say the backend is unwell. They are passed on like any other."""

RETRIED: Final = frozenset({"GET", "HEAD"})
"""Methods that may be sent again when a kept connection turns out to have been closed."""

CLOSED_WHILE_IDLE: Final = (http.client.RemoteDisconnected, ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError)

READ: Final = 65_536
"""Most bytes handed on in one piece. What has arrived is handed on at once, however little."""

SATURATED_RETRY_AFTER: Final = 1.0

WINDOW: Final = 60.0
"""Seconds of which the failure rate is taken."""

OPEN_TIME_GROWTH: Final = 2.0
LONGEST_OPEN_TIME: Final = 10
"""So many times the first open time is the longest one, whatever the backend asks for."""
OPEN_TIME_JITTER: Final = 0.1
"""Up to so large a share is added by chance, so that many hosts do not come back at one instant."""

LONGEST_WAIT: Final = 86_400.0
"""What a backend may ask for at most, in seconds."""


class CallerTooSlow(BackendTimedOut):
    """The time for the whole body was used up by the caller, who took what had arrived too slowly. The backend is not
    to blame, so its circuit ignores this."""


class _Answer:
    """A response on its connection: an iterator over the body as it arrives. Gives the connection back once when the
    response was read to its end, and discards it otherwise."""

    def __init__(
        self,
        backend: str,
        response: urllib3.HTTPResponse,
        connection: Connection,
        connections: Connections,
        *,
        until: float,
    ) -> None:
        self.status = response.status
        self.headers: Headers = tuple(response.headers.items())
        self.finished = False
        self._backend = backend
        self._response = response
        self._connection = connection
        self._connections = connections
        self._until = until
        if response.length_remaining == 0:
            self._finish()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self.finished:
            raise StopIteration
        try:
            chunk = self._read()
        except BaseException:
            self.close()
            raise
        if not chunk or self._response.length_remaining == 0:
            self._finish()
        if not chunk:
            raise StopIteration
        return chunk

    def close(self) -> None:
        """Discard the connection, unless the body has ended."""
        if not self.finished:
            self.finished = True
            self._response.close()
            self._connections.discard(self._connection)

    def __del__(self) -> None:
        # An answer that nobody reads must not keep its place in the pool.
        self.close()

    def _read(self) -> bytes:
        # A backend that is too slow runs out of time within a read; whoever does so between two reads is the caller.
        if time.monotonic() >= self._until:
            _log.warning("caller too slow", backend=self._backend)
            raise CallerTooSlow(f"the answer of backend {self._backend!r} was not taken in time")
        with _translated(self._backend):
            return self._response.read1(READ)

    def _finish(self) -> None:
        self.finished = True
        self._response.close()
        self._connections.take_back(self._connection)


class FailingAnswer(Exception):
    """Tells the breaker that the backend is unwell, and carries the answer around it. `retry_after` is for how many seconds
    the backend asks to be left alone, which an open circuit honours."""

    def __init__(self, answer: _Answer) -> None:
        super().__init__(f"status {answer.status}")
        self.answer = answer
        fields = (value for name, value in answer.headers if name.lower() == "retry-after")
        self.retry_after = seconds_to_wait(next(fields, ""), time.time())


def _is_not_the_backends_doing(error: BaseException) -> bool:
    # A timeout of the request's own is the backend's doing as much as one of ours: it was waited for.
    blamed = BackendFailed | BackendTimedOut | FailingAnswer | gevent.Timeout
    return isinstance(error, CallerTooSlow) or not isinstance(error, blamed)


class _GuardedBody:
    """The body behind the breaker's guard.

    When the last byte is here, the circuit is settled before that byte is handed on: a caller who is slow to take it
    says nothing about the backend.
    """

    def __init__(self, exchange: Generator[_Answer | bytes], answer: _Answer) -> None:
        self._exchange = exchange
        self._answer = answer
        self._settle_if_finished()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        chunk = next(self._exchange)
        assert isinstance(chunk, bytes)
        self._settle_if_finished()
        return chunk

    def close(self) -> None:
        """Break off. The connection is closed, and the circuit learns nothing."""
        self._exchange.close()

    def _settle_if_finished(self) -> None:
        if self._answer.finished:
            next(self._exchange, None)


def _log_move(name: str, event: PolicyEvent) -> None:
    """Tell the log that the circuit of the backend `name` has moved, in the words of the library: pybreaker's have only three
    states. Why it opened by itself is in the lines before."""
    if isinstance(event, StateChanged) and event.policy == name:
        expires_in = None if event.expires_in is None else round(event.expires_in, 3)
        said = {"reason": event.reason, "author": event.author, "expires_in": expires_in}
        told = {what: value for what, value in said.items() if value not in ("", None)}
        _log.warning("circuit changed", circuit=name, old=event.old, new=event.new, cause=event.cause, **told)


class HttpBackend:
    """One backend, called over up to `connections` keep-alive connections (per worker), each wait bounded by `waits`.

    `url` is the base URL: https verifies the certificate, the path is put before every target. `circuit` opens after
    `fail_max` failures in a row, or when `failure_rate` (0 to 1; None: whatever the rate) of the calls of the last minute
    failed; where hosts share it, for all of them when `quorum` of them find the backend ill. It lets a probe pass after
    `reset_timeout` seconds, later when the backend asks for that with Retry-After, and later each time that it fails again.

    Failures are: no connection, no answer in time, a broken answer, and the statuses 500, 502, 503 and 504. Everything
    else that may go wrong (all connections in use, a slow caller, a request that cannot be sent) is not the backend's doing
    and counts as neither failure nor success.
    """

    def __init__(
        self,
        name: str,
        url: str,
        *,
        connections: int,
        waits: Waits,
        fail_max: int,
        reset_timeout: float,
        failure_rate: float | None = None,
        quorum: int = 2,
    ) -> None:
        self.name = name
        self.circuit = CircuitBreaker(
            name=name,
            fail_max=fail_max,
            failure_rate=failure_rate,
            window_seconds=None if failure_rate is None else WINDOW,
            reset_timeout=reset_timeout,
            open_time_growth=OPEN_TIME_GROWTH,
            open_time_cap=reset_timeout * LONGEST_OPEN_TIME,
            open_time_jitter=OPEN_TIME_JITTER,
            quorum=quorum,
            throw_new_error_on_trip=False,
            ignore=(_is_not_the_backends_doing,),
        )
        self._end_log = PROCESS_EVENTS.listen(functools.partial(_log_move, name), StateChanged)
        parts = urlsplit(url)
        self._base_path = parts.path.rstrip("/")
        self._host = ("Host", parts.netloc)
        self._connections = connections_to(url, size=connections)
        self._waits = waits
        self._exchange: Callable[[Call], Generator[_Answer | bytes]] = self.circuit(self._unguarded_exchange)

    def forward(self, method: str, target: str, headers: Headers, body: bytes) -> BackendResponse:
        """Send the request to `target` below the base URL.

        `headers` hold neither Host nor Content-Length. The body of the response comes as it arrives and must be
        exhausted or closed; iterating it raises `BackendFailed` or `BackendTimedOut` when it breaks off. Raises these
        two, `BackendSaturated` when no connection is free in time, and `CircuitIsOpen`, which costs no waiting.
        """
        call = Call(method, self._base_path + target, (self._host, *headers), body)
        try:
            exchange = self._exchange(call)
            answer = next(exchange)
            assert isinstance(answer, _Answer)
        except FailingAnswer as failing:
            return BackendResponse(failing.answer.status, failing.answer.headers, failing.answer)
        except CircuitOpen as refusal:
            raise CircuitIsOpen(
                f"backend {self.name!r} has been failing and is left alone for a while; try again later",
                retry_after=refusal.retry_after,
            ) from refusal
        return BackendResponse(answer.status, answer.headers, _GuardedBody(exchange, answer))

    def close(self) -> None:
        """Close the idle connections, and log no moves any more; connections in use are closed when their answers end."""
        self._end_log()
        self._connections.close()

    def _unguarded_exchange(self, call: Call) -> Generator[_Answer | bytes]:
        answer = self._call(call)
        if answer.status in FAILURES:
            raise FailingAnswer(answer)
        with contextlib.closing(answer):
            yield answer
            yield from answer

    def _call(self, call: Call) -> _Answer:
        with _translated(self.name):
            connection = self._lend()
            try:
                if not connection.is_closed and call.method in RETRIED:
                    try:
                        return self._answer(connection, call)
                    except CLOSED_WHILE_IDLE:
                        connection = self._connections.replace(connection)
                return self._answer(connection, call)
            except BaseException:
                self._connections.discard(connection)
                raise

    def _lend(self) -> Connection:
        try:
            return self._connections.lend(self._waits.pool)
        except EmptyPoolError:
            raise BackendSaturated(
                f"all connections to backend {self.name!r} are in use; try again in a second",
                retry_after=SATURATED_RETRY_AFTER,
            ) from None

    def _answer(self, connection: Connection, call: Call) -> _Answer:
        response = connection.exchange(call, self._waits)
        until = time.monotonic() + self._waits.stream
        return _Answer(self.name, response, connection, self._connections, until=until)


def build_backends(settings: Settings) -> Mapping[str, HttpBackend]:
    """The configured backends by name. Call it in the worker, after greenlets have been given their sockets."""
    return {name: _build(name, url, settings) for name, url in settings.backends.items()}


def _build(name: str, url: str, settings: Settings) -> HttpBackend:
    return HttpBackend(
        name,
        url,
        connections=settings.backend_connections,
        waits=Waits(
            pool=settings.backend_pool_timeout,
            connect=settings.backend_connect_timeout,
            read=settings.backend_read_timeout,
            stream=settings.backend_stream_timeout,
        ),
        fail_max=settings.backend_fail_max,
        failure_rate=settings.backend_failure_rate,
        reset_timeout=settings.backend_reset_timeout,
        quorum=settings.backend_quorum,
    )


def seconds_to_wait(field: str, now: float) -> float | None:
    """What a Retry-After field says, in seconds after `now` (since 1970): it is a number of them or a date (RFC 9110,
    section 10.2.3). None when it says nothing that can be understood."""
    text = field.strip()
    if text.isascii() and text.isdigit():
        return min(float(text), LONGEST_WAIT)
    try:
        moment = email.utils.parsedate_to_datetime(text)
        return min(max(0.0, moment.timestamp() - now), LONGEST_WAIT)
    except (ValueError, OverflowError):
        return None


@contextlib.contextmanager
def _translated(backend: str) -> Iterator[None]:
    """What sockets, `http.client` and urllib3 raise, as errors of the service. The cause is for the log only."""
    try:
        yield
    except NewConnectionError as error:  # refused or not resolved, yet by its type a timeout
        raise _failed(backend, error) from error
    except (TimeoutError, ConnectTimeoutError, ReadTimeoutError) as error:
        _log.warning("backend timed out", backend=backend, cause=str(error))
        raise BackendTimedOut(f"backend {backend!r} did not answer in time; try again later") from error
    except (OSError, http.client.HTTPException, HTTPError) as error:
        raise _failed(backend, error) from error


def _failed(backend: str, error: Exception) -> BackendFailed:
    _log.warning("backend failed", backend=backend, cause=f"{type(error).__name__}: {error}")
    return BackendFailed(f"backend {backend!r} could not be reached or broke off; try again later")
