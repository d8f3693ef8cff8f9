"""What can go wrong between a client and the worker. Each error knows the answer that the client gets for it."""

from __future__ import annotations

__all__ = [
    "BodyTooLarge",
    "BodyTooSlow",
    "ConnectionBusy",
    "ConnectionClosed",
    "ConnectionOver",
    "ConnectionRefused",
    "HeadTooSlow",
    "LongConnError",
    "Refusal",
    "SlowReader",
]


class LongConnError(Exception):
    """The base of all errors of this package."""


class Refusal(LongConnError):
    """A request or a connection that is answered with `status` and a close, without the application.

    `retry_after` is the number of seconds after which another try makes sense, or None.
    """

    status = 400
    phrase = "Bad Request"

    def __init__(self, detail: str, *, retry_after: int | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after = retry_after


class HeadTooSlow(Refusal):
    """The head of a request took longer than `LONGCONN_HEAD_TIMEOUT`."""

    status = 408
    phrase = "Request Timeout"


class BodyTooSlow(Refusal, OSError):
    """The body of a request stood still for `LONGCONN_BODY_TIMEOUT`, or came slower than `LONGCONN_BODY_RATE`.

    Raised where the application reads the body. An `OSError`, since that is what frameworks expect of a client that
    fails them; whatever they make of it, the client is answered 408.
    """

    status = 408
    phrase = "Request Timeout"


class BodyTooLarge(Refusal, OSError):
    """The body of a request is longer than `LONGCONN_MAX_BODY`."""

    status = 413
    phrase = "Content Too Large"


class HeadsTooLarge(Refusal):
    """The incomplete heads of this worker take more than `LONGCONN_HEAD_MEMORY`, and this one is the oldest."""

    status = 431
    phrase = "Request Header Fields Too Large"


class ConnectionRefused(Refusal):
    """There is no room for another connection."""

    status = 503
    phrase = "Service Unavailable"


class ClientConnectionsExceeded(ConnectionRefused):
    """This client has as many connections as one client may have."""

    status = 429
    phrase = "Too Many Requests"


class RequestTooLong(Refusal):
    """The application took longer than `LONGCONN_REQUEST_TIMEOUT` to begin its answer."""

    status = 504
    phrase = "Gateway Timeout"


class SlowReader(LongConnError, ConnectionResetError):
    """The client reads its answer slower than the settings allow. Its connection is cut."""


class ConnectionOver(LongConnError, ConnectionResetError):
    """The connection has been closed under whoever was using it: its client left, or the worker ends."""


class ConnectionBusy(LongConnError, RuntimeError):
    """Two greenlets wait for the same connection. Give each connection one greenlet that reads and writes it."""


class ConnectionClosed(LongConnError, RuntimeError):
    """The WebSocket has been closed, by either side: nothing more can be sent on it, nor received.

    `reason` is the close code, as flask-sock has it: 1006 when the connection ended without one. `message` is the text that
    came with it.
    """

    def __init__(self, reason: int = 1006, message: str = "") -> None:
        super().__init__(f"the connection has been closed: {int(reason)} {message or ''}".rstrip())
        self.reason = int(reason)
        self.message = message

    @property
    def code(self) -> int:
        """The close code."""
        return self.reason
