"""Every error as one kind of document: RFC 9457 `application/problem+json`, out of the error registry.

What an error says about its inside (SQL, a stack, a path, another library's message) goes to the log, never into a
document.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from email.utils import formatdate
from http import HTTPStatus
from typing import Any

import flask
import orjson
import structlog
from gunicorn.http import errors as parsing
from gunicorn.http.errors import ParseException
from werkzeug.exceptions import HTTPException, MethodNotAllowed, RequestEntityTooLarge

from longconn import errors as parking
from resilience import CircuitOpen, RateLimited, Rejected
from service import errors, logs

__all__ = ["MEDIA_TYPE", "problem_document", "refusal", "register"]

MEDIA_TYPE = "application/problem+json"
TYPE = "urn:seawall:problem:{code}"
QUOTA_EXCEEDED = "https://iana.org/assignments/http-problem-types#quota-exceeded"
CHALLENGE = 'Bearer realm="seawall"'

# What Werkzeug and Flask raise themselves, in this service's words.
BY_STATUS: Mapping[int, tuple[type[errors.ServiceError], str]] = {
    400: (errors.ValidationFailed, "The request cannot be read. Check that its body is complete and well formed."),
    401: (errors.Unauthenticated, "This needs a token: sign in, and send it as Authorization: Bearer <token>."),
    403: (errors.Forbidden, "The caller may not do this."),
    404: (errors.NotFound, "Nothing is served at this path."),
    405: (errors.MethodNotAllowed, "This path does not take this method."),
    409: (errors.Conflict, "The change collides with something that exists."),
    412: (errors.PreconditionFailed, "The resource has changed. Read it again, then try again."),
    413: (errors.PayloadTooLarge, "The body is too large."),
    415: (errors.UnsupportedMediaType, "Send the body as application/json, and say so in Content-Type."),
    428: (errors.PreconditionRequired, "Send If-Match with the ETag of the version that you read."),
    429: (errors.TooManyRequests, "Too many requests. Wait before the next one."),
}

# What never reaches the application. No detail repeats what was sent. gunicorn's first, where the status is not 400.
REFUSALS: Mapping[type[Exception], tuple[HTTPStatus, str]] = {
    parsing.LimitRequestLine: (HTTPStatus.REQUEST_URI_TOO_LONG, "The address is too long."),
    parsing.LimitRequestHeaders: (
        HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
        "The header has too many fields, or fields that are too long.",
    ),
    parsing.ExpectationFailed: (HTTPStatus.EXPECTATION_FAILED, "Only the expectation 100-continue is known."),
    parsing.ForbiddenProxyRequest: (HTTPStatus.FORBIDDEN, "This address may not speak the PROXY protocol."),
    parsing.UnsupportedTransferCoding: (HTTPStatus.NOT_IMPLEMENTED, "The only transfer coding is chunked."),
    # The worker's own.
    parking.HeadTooSlow: (HTTPStatus.REQUEST_TIMEOUT, "The head of the request did not come in time. Send it at once."),
    parking.BodyTooSlow: (HTTPStatus.REQUEST_TIMEOUT, "The body of the request came too slowly, or not at all."),
    parking.BodyTooLarge: (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The body is too large."),
    parking.HeadsTooLarge: (
        HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
        "Too many bytes of unfinished headers are waiting here. Send the header at once.",
    ),
    parking.ClientConnectionsExceeded: (
        HTTPStatus.TOO_MANY_REQUESTS,
        "This client has as many connections as one client may have. Use those.",
    ),
    parking.ConnectionRefused: (
        HTTPStatus.SERVICE_UNAVAILABLE,
        "There is no room for this at the moment, or this process is about to end. Try again.",
    ),
    parking.RequestTooLong: (HTTPStatus.GATEWAY_TIMEOUT, "The request took too long. Ask for less at once."),
}
# The nearest of the registry, where the status has one of its own.
KINDS: Mapping[HTTPStatus, type[errors.ServiceError]] = {
    HTTPStatus.REQUEST_TIMEOUT: errors.RequestTooSlow,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: errors.PayloadTooLarge,
    HTTPStatus.TOO_MANY_REQUESTS: errors.TooManyRequests,
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: errors.HeaderTooLarge,
    HTTPStatus.SERVICE_UNAVAILABLE: errors.Overloaded,
    HTTPStatus.GATEWAY_TIMEOUT: errors.RequestTimedOut,
}
# Of the same family in gunicorn, and nothing that the caller could mend.
OUR_FAULTS = (parsing.ConfigurationProblem, parsing.InvalidResponseHeader, parsing.InvalidResponseHeaderName)
UNREADABLE = HTTPStatus.BAD_REQUEST, "The request is not well-formed HTTP/1.1, or says in two ways where its body ends."
FAULT = HTTPStatus.INTERNAL_SERVER_ERROR, "Something went wrong on our side. The trace id finds it in the logs."

_log = structlog.get_logger("service.problems")


def register(app: flask.Flask) -> None:
    """Answer every exception that a request of `app` raises with a problem document."""
    app.register_error_handler(errors.ServiceError, _answer_service_error)
    app.register_error_handler(HTTPException, _answer_http_exception)
    app.register_error_handler(Rejected, _answer_rejection)
    app.register_error_handler(ParseException, _answer_unreadable_body)
    app.register_error_handler(Exception, _answer_fault)


def problem_document(error: errors.ServiceError, **members: Any) -> flask.Response:
    """The response for `error` to the current request. `members` are added to the document or replace its own."""
    trace, request_id = flask.g.get("trace"), flask.g.get("request_id")
    document: dict[str, Any] = {
        "type": TYPE.format(code=error.code),
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "instance": flask.request.path,
        "code": error.code,
    }
    if trace is not None:
        document["trace_id"] = trace.trace_id
    if request_id is not None:
        document["request_id"] = request_id
    if error.fields:
        document["errors"] = [{"pointer": pointer, "detail": detail} for pointer, detail in error.fields]
    document.update(members)
    app = flask.current_app
    response = app.response_class(app.json.dumps(document), document["status"], mimetype=MEDIA_TYPE)
    response.headers["Cache-Control"] = "no-store"
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(_whole_seconds(error.retry_after))
    if isinstance(error, errors.Unauthenticated):
        given = "token_given" in flask.g
        response.headers["WWW-Authenticate"] = f'{CHALLENGE}, error="invalid_token"' if given else CHALLENGE
    return response


def refusal(error: BaseException, request: Any, address: Any) -> bytes:
    """The whole response, after which the connection closes, to what never reached the application. Logs it, too.

    `error` is why, `request` gunicorn's request as far as there is one, `address` where the connection comes from.
    """
    status, detail = _refusal(error)
    kind = KINDS.get(status) or (errors.ValidationFailed if status < 500 else errors.Internal)
    trace_id, request_id = os.urandom(16).hex(), os.urandom(16).hex()
    document = {
        "type": TYPE.format(code=kind.code),
        "title": kind.title if status in (kind.status, 400) else status.phrase,
        "status": status.value,
        "detail": detail,
        "code": kind.code,
        "trace_id": trace_id,
        "request_id": request_id,
    }
    body = orjson.dumps(document)
    method = getattr(request, "method", None)
    if status == HTTPStatus.INTERNAL_SERVER_ERROR:
        _log.error("unexpected error", trace_id=trace_id, request_id=request_id, exc_info=error)
    line = {
        "event": "request",
        "method": method,
        "route": None,
        "path": getattr(request, "path", None),
        "client": address[0] if isinstance(address, tuple) else None,
        "request_id": request_id,
        "trace_id": trace_id,
        "status": status.value,
        "latency_ms": None,
        "bytes": 0 if method == "HEAD" else len(body),
        "refused": type(error).__name__,
    }
    # Who is turned away at the door may come a thousand times a second. The metrics count them.
    turned_away = isinstance(error, parking.ConnectionRefused) and request is None
    logs.emit("debug" if turned_away else "info", line)
    wait = getattr(error, "retry_after", None)
    retry_after = "" if wait is None else f"Retry-After: {_whole_seconds(wait)}\r\n"
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\n"
        f"Date: {formatdate(time.time(), usegmt=True)}\r\n"
        "Connection: close\r\n"
        f"Content-Type: {MEDIA_TYPE}\r\n"
        f"Content-Length: {len(body)}\r\n"
        "Cache-Control: no-store\r\n"
        f"{retry_after}"
        f"X-Request-ID: {request_id}\r\n"
        f"X-Trace-Id: {trace_id}\r\n\r\n"
    )
    return head.encode() + (b"" if method == "HEAD" else body)


def _refusal(error: BaseException) -> tuple[HTTPStatus, str]:
    if isinstance(error, OUR_FAULTS) or not isinstance(error, (ParseException, parking.Refusal)):
        return FAULT
    return next((answer for kind, answer in REFUSALS.items() if isinstance(error, kind)), UNREADABLE)


def _whole_seconds(wait: float) -> int:
    # Never early, and never 0, which would have every client back at once.
    return max(1, math.ceil(wait))


def _answer_service_error(error: errors.ServiceError) -> flask.Response:
    if error.status >= 500:
        # A 500 is a fault and needs its stack; the others say that someone else is slow, down or busy.
        cause = error.__cause__ or error.__context__
        details = {
            "kind": type(error).__name__,
            "detail": error.detail,
            "cause": type(cause).__name__ if cause else None,
        }
        if error.status == 500:
            _log.error("request failed", **details, exc_info=error)
        else:
            _log.warning("request failed", **details)
    return problem_document(error)


def _answer_http_exception(error: HTTPException) -> Any:
    if error.response is not None or error.code is None or error.code < 400:
        return error  # a redirect, or a response made by hand
    known = BY_STATUS.get(error.code)
    if known is not None:
        kind, usual = known
        response = problem_document(kind(_detail_of(error) or usual))
    else:
        nearest = errors.ValidationFailed if error.code < 500 else errors.Internal
        response = problem_document(nearest(error.description or ""), status=error.code, title=error.name)
    for name, value in error.get_headers():
        if name.lower() != "content-type":
            response.headers[name] = value
    return response


def _detail_of(error: HTTPException) -> str | None:
    if isinstance(error, MethodNotAllowed) and error.valid_methods:
        return f"This path takes {', '.join(sorted(error.valid_methods))}."
    if isinstance(error, RequestEntityTooLarge) and flask.request.max_content_length is not None:
        return f"The body may hold at most {flask.request.max_content_length} bytes."
    # What Werkzeug says by default is replaced; what someone wrote for this very case stays.
    return None if error.description == type(error).description else error.description


def _answer_unreadable_body(_: ParseException) -> flask.Response:
    # gunicorn parses the chunks of a body when the body is read, which is in the middle of a view.
    kind, detail = BY_STATUS[400]
    return problem_document(kind(detail))


def _answer_rejection(error: Rejected) -> flask.Response:
    wait = error.retry_after
    advice = "Waiting does not help." if wait is None else f"Try again in {_whole_seconds(wait)} s."
    if isinstance(error, RateLimited):
        return problem_document(
            errors.TooManyRequests(f"The limit {error.policy} is used up. {advice}", retry_after=wait),
            **{"type": QUOTA_EXCEEDED, "violated-policies": [error.policy]},
        )
    if isinstance(error, CircuitOpen):
        detail = f"{error.policy} has been failing and is being left alone for a while. {advice}"
        return problem_document(errors.CircuitIsOpen(detail, retry_after=wait))
    return problem_document(errors.Overloaded(f"The policy {error.policy} refused. {advice}", retry_after=wait))


def _answer_fault(error: Exception) -> flask.Response:
    _log.error("unexpected error", method=flask.request.method, path=flask.request.path, exc_info=error)
    return problem_document(errors.Internal("Something went wrong on our side. The trace id finds it in the logs."))
