"""A name for each request, to find it by in every log it touches."""

from __future__ import annotations

import os
import re

import flask
import structlog

from service.middleware.current import current_request, current_scratch
from service.middleware.link import Proceed

__all__ = ["RequestId"]

FIELD = "X-Request-ID"
VARIABLE = "HTTP_X_REQUEST_ID"
# What can go into a log line, a header and a shell command as it is. Anything else is the caller's text, not an id.
ACCEPTED = re.compile(r"[A-Za-z0-9._-]{1,128}")


class RequestId:
    """Takes the caller's X-Request-ID, or makes one: `flask.g.request_id`, every log line, and the response."""

    def __call__(self, proceed: Proceed) -> flask.Response:
        """Name the request, answer it, echo the name."""
        given = current_request().environ.get(VARIABLE, "")
        request_id = given if ACCEPTED.fullmatch(given) else os.urandom(16).hex()
        current_scratch().request_id = request_id
        structlog.contextvars.bind_contextvars(request_id=request_id)
        response = proceed()
        response.headers[FIELD] = request_id
        return response
