"""HTTP/1 over connections that park: what happens from the first byte of a request to the last of its answer."""

from __future__ import annotations

import contextvars
import errno
import logging
import ssl
from datetime import datetime
from typing import Any

import gevent
from gunicorn.glogging import Logger
from gunicorn.http.wsgi import FileWrapper
from gunicorn.workers.base_async import ALREADY_HANDLED

from longconn import reasons, scoreboard
from longconn.core.states import Event, State
from longconn.errors import ConnectionRefused, HeadTooSlow, Refusal, RequestTooLong
from longconn.http import environ as environs
from longconn.http.body import BodyUnreader, has_been_read
from longconn.http.farewell import Discarding, Farewell
from longconn.http.heads import FOLLOWING, Heads
from longconn.http.lending import LentSocket, lend, reclaim
from longconn.http.response import Response
from longconn.http.upgrading import Upgrading
from longconn.parking.addresses import ProxiedAddress, plain_address
from longconn.parking.connection import NEVER, Connection
from longconn.parking.lot import Lot
from longconn.upgraded import HANDLED

__all__ = ["Serving"]

_UPGRADED = int(
    State.UPGRADED
)  # compared for each message: with a member of an enumeration it takes four times as long

_LEFT = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.EBADF)


class Serving:
    """Serves the connections of one worker. `worker` is the gunicorn worker, `settings` a `longconn.Settings`."""

    def __init__(self, worker: Any, lot: Lot, settings: Any, *, render_refusal: Any = None) -> None:
        self.worker = worker
        self.cfg = worker.cfg
        self.log = worker.log
        self.lot = lot
        self.settings = settings
        self.closing = False
        """Whether the worker leaves: every answer says that its connection closes."""
        self.tally = lot.tally
        ticks = lot.wheel.ticks
        self.idle_ticks = ticks(settings.idle_timeout)
        self.head_ticks = ticks(settings.head_timeout)
        self.leaving_ticks = ticks(settings.linger)
        cfg = self.cfg
        self._keeps_alive = settings.idle_timeout > 0
        self._most_requests = settings.max_requests_per_connection or NEVER
        self._request_timeout = settings.request_timeout
        self._logs_access = self.log.access_log_enabled or type(self.log).access is not Logger.access
        debug = self.log.error_log.isEnabledFor(logging.DEBUG)
        default = cfg.settings["pre_request"]
        self._pre_request = None if default.get() is default.default and not debug else cfg.pre_request
        default = cfg.settings["post_request"]
        self._post_request = None if default.get() is default.default else cfg.post_request
        self.farewell = Farewell(worker, lot, render=render_refusal)
        self.upgrading = Upgrading(lot, self.log, self.farewell)
        self.heads = Heads(self, self.farewell)

    # From the queue.

    def attend(self, connection: Connection) -> None:
        """Do what `connection` is ready for. Called in a greenlet; returns when it waits again or is over."""
        try:
            if connection.state == _UPGRADED:
                self.upgrading.attend(connection)
            elif type(connection.attached) is Discarding:
                self.farewell.discard(connection)
            else:
                self.heads.read(connection)
        except (gevent.GreenletExit, gevent.Timeout):
            self._kill(connection)
        except SystemExit:
            self._kill(connection)
            if self.worker.aborting:
                raise  # gunicorn's master has had enough of this worker
        except OSError as error:
            self._broken(connection, error)
        except Exception:
            self.log.exception("Serving a connection failed")
            self.lot.close(connection, reasons.ERROR)

    def _kill(self, connection: Connection) -> None:
        if type(connection.attached) is not Discarding:  # its last words may still be on their way
            self.lot.close(connection, reasons.KILLED)

    def _broken(self, connection: Connection, error: OSError) -> None:
        if connection.state == State.CLOSED:
            return
        if error.errno not in _LEFT and not isinstance(error, (ConnectionError, ssl.SSLError)):
            self.log.error("Socket error processing request.", exc_info=error)
        else:
            self.log.debug("Connection given up: %r", error)
        self.lot.close(connection, reasons.RESET)

    # One request.

    def must_close(self, connection: Connection) -> bool:
        """Whether the answer that is about to be written is the last one of its connection."""
        return (
            self.closing
            or not self._keeps_alive
            or connection.requests >= self._most_requests
            or self.worker.restart_wanted
        )

    def lend(self, connection: Connection) -> Any:
        """The connection as a cooperative socket."""
        return lend(connection)

    def exchange(self, connection: Connection, request: Any, unreader: BodyUnreader | None, rest: bytes) -> None:
        """Have `request` answered; `rest` is what has arrived behind it."""
        connection.requests += 1
        self.tally[scoreboard.REQUESTS] += 1
        address = connection.address
        if type(address) is ProxiedAddress:
            request.proxy_protocol_info = address.info
        response = connection.attached = Response(request, connection, self)
        response.behind = (unreader, rest)
        keep = False
        try:
            # A context of its own for each request: the greenlet serves many, of many clients.
            keep = contextvars.Context().run(self._respond, connection, request, response)
        finally:
            lent = response.lent
            if lent is not None:
                reclaim(connection, lent)
                response.lent = None
                # Over TLS what was lent cannot be taken back: a method that was kept would reach the next request.
                taken = connection.listener.secure and response.used_by_application
                keep = keep and connection.fileno() >= 0 and not taken
            if connection.state != _UPGRADED:
                if connection.attached is response:
                    connection.attached = None
                if not keep:
                    self._end(connection, response)
        if keep:
            self._next(connection, unreader, rest)
        elif connection.state == _UPGRADED:
            response.begin_upgraded()

    def _next(self, connection: Connection, unreader: BodyUnreader | None, rest: bytes) -> None:
        """The answer is out and the connection is kept."""
        lot = self.lot
        if unreader is not None:
            rest = unreader.take_buffered()
        if rest:
            lot.move(connection, Event.NEXT)
            connection.since = lot.wheel.now_tick
            connection.deadline = lot.wheel.now_tick + self.head_ticks
            self._following(connection, rest)
        else:
            lot.move(connection, Event.ANSWERED)
            connection.since = lot.wheel.now_tick
            # Its head may have said that the connection is kept, before the worker was told to leave.
            lot.park(connection, self.leaving_ticks if self.closing else self.idle_ticks)

    def _following(self, connection: Connection, rest: bytes) -> None:
        # Others come first: one client's pipeline must not keep a greenlet, nor grow a stack.
        self.lot.keep(connection, rest)
        connection.attached = FOLLOWING
        self.lot.call_again(connection)

    def _respond(self, connection: Connection, request: Any, response: Response) -> bool:
        """Have the application answer. Whether the connection is kept afterwards."""
        started = datetime.now() if self._logs_access else None  # noqa: DTZ005 - as gunicorn, for a difference
        timeout = gevent.Timeout.start_new(self._request_timeout) if self._request_timeout else None
        response.timeout = timeout
        environ: dict[str, Any] = {}
        try:
            if self._pre_request is not None:
                self._pre_request(self.worker, request)
            environ = self._environ(connection, request, response)
            return self._run(connection, response, environ, started)
        except StopIteration:
            return False  # the application's way to say that it has spoken to the client itself
        except OSError as error:
            if response.failure is None:
                raise
            self.log.debug("Request given up: %r", error)
        except gevent.GreenletExit:
            self._cut_short(request, response, environ, started)
        except BaseException as error:  # whatever it is, the client hears of it
            if self.worker.aborting:
                raise
            self._fail(connection, response, error, in_time=error is not timeout)
        finally:
            if timeout is not None:
                timeout.close()
            if self._post_request is not None:
                self._run_post_request(request, environ, response)
        return False

    def _environ(self, connection: Connection, request: Any, response: Response) -> dict[str, Any]:
        listener = connection.listener
        environ = environs.build(listener.environ, request, plain_address(connection.address), listener.name)
        environ["wsgi.input"] = request.body
        environ["gunicorn.socket"] = LentSocket(connection, response)
        environ["wsgi.early_hints"] = response.send_early_hints
        environ["longconn.upgrade"] = response.hand_over
        if "HTTP_UPGRADE" in environ and environ["HTTP_UPGRADE"].lower() == "websocket":
            response.asked_to_upgrade = True
        return environ

    def _run(
        self, connection: Connection, response: Response, environ: dict[str, Any], started: datetime | None
    ) -> bool:
        request = response.req
        if request._expected_100_continue:  # noqa: SLF001 - gunicorn's
            connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.worker.count_request()
        body = self.worker.wsgi(environ, response.start_response)
        if body is HANDLED or body is ALREADY_HANDLED:
            return False
        if connection.state == _UPGRADED:
            self._dismiss(body)
            return False
        try:
            self._write(response, body)
            response.close()
        finally:
            if started is not None:
                self.log.access(response, request, environ, datetime.now() - started)  # noqa: DTZ005
            if hasattr(body, "close"):
                body.close()
        if response.is_short():
            # The client waits for the rest: whatever came next would be taken for it.
            connection.cut()
            return False
        return not response.should_close() and self._finish_body(request, response)

    def _dismiss(self, body: Any) -> None:
        """Close what an application has returned after it had handed its connection over."""
        try:
            if hasattr(body, "close"):
                body.close()
        except Exception:
            self.log.exception("Closing the response of a request that was upgraded failed")

    def _cut_short(self, request: Any, response: Response, environ: dict[str, Any], started: datetime | None) -> None:
        """The worker's time is over before the answer began, or in the middle of it."""
        if response.headers_sent:
            response.connection.cut()
            return
        response.failure = ConnectionRefused("the worker ends: try again", retry_after=self.settings.retry_after)
        if started is not None and environ:
            response.status = "503 Service Unavailable"
            self.log.access(response, request, environ, datetime.now() - started)  # noqa: DTZ005

    def _run_post_request(self, request: Any, environ: dict[str, Any], response: Response) -> None:
        try:
            self._post_request(self.worker, request, environ, response)  # type: ignore[misc]
        except Exception:
            self.log.exception("Exception in post_request hook")

    def _write(self, response: Response, body: Any) -> None:
        if isinstance(body, FileWrapper):
            response.write_file(body)
        elif type(body) in (list, tuple) and len(body) > 1 and all(type(item) is bytes for item in body):
            response.write(b"".join(body))
        else:
            for item in body:
                response.write(item)

    def _finish_body(self, request: Any, response: Response) -> bool:
        """Read what little is left of the body. Whether the next request can follow."""
        body = request.body
        if not hasattr(body, "reader"):
            return True
        if self.closing:
            return bool(has_been_read(request))
        response.answered = True
        try:
            while body.read(65_536):
                pass
        except Exception:  # noqa: BLE001 - where the next request would begin is not known
            return False
        return response.failure is None

    def _fail(self, connection: Connection, response: Response, error: BaseException, *, in_time: bool) -> None:
        if connection.state == _UPGRADED:
            self.log.error("Error handling request", exc_info=error)
            self.lot.close(connection, reasons.ERROR)
        elif response.headers_sent:
            # It has begun an answer, into which an error cannot be written.
            if in_time:
                self.log.error("Error handling request", exc_info=error)
            connection.cut()
        elif in_time:
            response.failure = response.failure or _Failed(error, response.req)
        else:
            response.failure = RequestTooLong(
                f"no answer within {self._request_timeout} s (LONGCONN_REQUEST_TIMEOUT)",
                retry_after=self.settings.retry_after,
            )

    def _end(self, connection: Connection, response: Response) -> None:
        """The connection does not go on after this exchange."""
        if connection.state == State.CLOSED or type(connection.attached) is Discarding:
            return
        failure = response.failure
        if failure is not None and not response.headers_sent and not response.used_by_application:
            if isinstance(failure, _Failed):
                self.farewell.refuse_by_gunicorn(connection, failure.request, failure.error, reason=reasons.ERROR)
            else:
                reason = {408: reasons.BODY_TIMEOUT, 503: reasons.KILLED}.get(failure.status, reasons.INVALID)
                self.farewell.refuse(connection, failure, reason, request=response.req)
            return
        reason = reasons.ANSWERED
        if self.closing:
            reason = reasons.DRAIN
        elif connection.requests >= self._most_requests:
            reason = reasons.MAXIMUM_REQUESTS
        self.farewell.linger(connection, reason)

    def expire(self, connection: Connection) -> None:
        """The deadline of a connection that waits has passed. In the hub: nothing here may block."""
        state = connection.state
        if state == State.READING_HEAD:
            self.farewell.refuse(
                connection,
                HeadTooSlow("the head of the request did not arrive in time: send it at once"),
                reasons.HEAD_TIMEOUT,
            )
        elif state == _UPGRADED:
            connection.deadline = NEVER
            connection.attached.expired()
        elif type(connection.attached) is Discarding:
            self.lot.close(connection, connection.attached.reason)
        elif connection.unread():
            # A request has arrived at the last moment, or the process did not run for a while.
            self.lot.call(connection)
        else:
            self.lot.close(connection, reasons.DRAIN if self.closing else reasons.IDLE)


class _Failed(Refusal):
    """The application raised `error`."""

    status = 500
    phrase = "Internal Server Error"

    def __init__(self, error: BaseException, request: Any) -> None:
        super().__init__("")
        self.error = error
        self.request = request
