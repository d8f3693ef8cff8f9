"""Whatever goes wrong further in becomes an answer."""

from __future__ import annotations

import flask
import gevent

from service.middleware.link import Proceed

__all__ = ["Recovery"]


class Recovery:
    """Turns exceptions into problem documents, the way that the application's error handlers say.

    `SystemExit` and `GreenletExit` pass: whoever raises those wants the worker or the greenlet to end.
    """

    def __call__(self, proceed: Proceed) -> flask.Response:
        """Answer the request, whatever happens."""
        try:
            return proceed()
        except gevent.Timeout as leaked:
            # A BaseException, which no handler would see: a timeout that the code which set it did not catch.
            failure: Exception = RuntimeError(f"a gevent timeout of {leaked.seconds} s was left uncaught")
            failure.__cause__ = leaked
        except Exception as error:  # noqa: BLE001 - every failure has an answer; the handler logs the unexpected ones
            failure = error
        application = flask.current_app
        # Through finalize_request, so that fields added after a request (RateLimit) are on refusals too.
        return application.finalize_request(application.handle_user_exception(failure), from_error_handler=True)
