"""No request takes for ever."""

from __future__ import annotations

import flask
import gevent

from service.errors import RequestTimedOut
from service.middleware.link import Proceed

__all__ = ["RequestTimeout"]


class RequestTimeout:
    """Interrupts a request in its greenlet after `seconds`, wherever it waits, which frees what it holds.

    The time ends when the response begins: bodies that are streamed have limits of their own.
    """

    def __init__(self, *, seconds: float) -> None:
        self._seconds = seconds

    def __call__(self, proceed: Proceed) -> flask.Response:
        """Answer the request in time. Raises `RequestTimedOut` otherwise."""
        timeout = gevent.Timeout.start_new(self._seconds)
        try:
            return proceed()
        except gevent.Timeout as raised:
            if raised is not timeout:  # set by someone further in, for a reason of their own
                raise
            raise RequestTimedOut(
                f"The request was given up after {self._seconds:g} s. Try again, or ask for less at once."
            ) from None
        finally:
            timeout.close()
