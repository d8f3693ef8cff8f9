"""The error registry: every way in which the service refuses or fails, with its code, status and title.

    ServiceError
    ├── ValidationFailed        10001  400
    ├── NotFound                10002  404
    ├── Unauthenticated         10003  401
    ├── Forbidden               10004  403
    ├── MethodNotAllowed        10005  405
    ├── Conflict                10006  409
    ├── PayloadTooLarge         10007  413
    ├── UnsupportedMediaType    10008  415
    ├── RequestTooSlow          10009  408
    ├── PreconditionFailed      10012  412
    ├── PreconditionRequired    10028  428
    ├── TooManyRequests         10029  429
    ├── HeaderTooLarge          10031  431
    ├── Internal                20000  500
    ├── DatabaseFailed          20001  500
    ├── DatabaseBusy            20005  503
    ├── BackendFailed           20003  502
    ├── CircuitIsOpen           20004  503
    ├── BackendTimedOut         20006  504
    ├── RequestTimedOut         20007  504
    ├── BackendSaturated        20008  503
    ├── Overloaded              20009  503
    └── ChannelsUnavailable     20010  503

Codes 1xxxx are the caller's to mend, 2xxxx are ours. `detail` is for the caller and never holds SQL, a stack or a path.
This module imports nothing, so that every layer may raise what it defines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

__all__ = [
    "REGISTRY",
    "BackendFailed",
    "BackendSaturated",
    "BackendTimedOut",
    "ChannelsUnavailable",
    "CircuitIsOpen",
    "Conflict",
    "DatabaseBusy",
    "DatabaseFailed",
    "Forbidden",
    "HeaderTooLarge",
    "Internal",
    "MethodNotAllowed",
    "NotFound",
    "Overloaded",
    "PayloadTooLarge",
    "PreconditionFailed",
    "PreconditionRequired",
    "RequestTimedOut",
    "RequestTooSlow",
    "ServiceError",
    "TooManyRequests",
    "Unauthenticated",
    "UnsupportedMediaType",
    "ValidationFailed",
]


class ServiceError(Exception):
    """An answer other than success. Subclasses fix `code`, `status` and `title`.

    `detail` tells the caller what to do about it; `fields` names the offending members of the input as
    (JSON pointer, reason) pairs; `retry_after` is in seconds and becomes the Retry-After field.
    """

    code: ClassVar[int] = 20000
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"

    def __init__(
        self,
        detail: str = "",
        *,
        fields: Sequence[tuple[str, str]] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(detail or self.title)
        self.detail = detail or self.title
        self.fields = tuple(fields)
        self.retry_after = retry_after


class ValidationFailed(ServiceError):
    """The input does not have the form that the operation takes."""

    code, status, title = 10001, 400, "Validation failed"


class NotFound(ServiceError):
    """No such resource, or no such route."""

    code, status, title = 10002, 404, "Not found"


class Unauthenticated(ServiceError):
    """No credentials, or credentials that do not hold."""

    code, status, title = 10003, 401, "Unauthenticated"


class Forbidden(ServiceError):
    """The caller is known and may not do this."""

    code, status, title = 10004, 403, "Forbidden"


class MethodNotAllowed(ServiceError):
    """The route exists, with other methods."""

    code, status, title = 10005, 405, "Method not allowed"


class Conflict(ServiceError):
    """The change collides with something that exists."""

    code, status, title = 10006, 409, "Conflict"


class PayloadTooLarge(ServiceError):
    """The body is larger than the operation accepts."""

    code, status, title = 10007, 413, "Payload too large"


class UnsupportedMediaType(ServiceError):
    """The body is of a type that the operation does not read."""

    code, status, title = 10008, 415, "Unsupported media type"


class RequestTooSlow(ServiceError):
    """The request did not arrive in the time that there is for it."""

    code, status, title = 10009, 408, "Request too slow"


class PreconditionFailed(ServiceError):
    """The resource has changed since the caller read it."""

    code, status, title = 10012, 412, "Precondition failed"


class PreconditionRequired(ServiceError):
    """The operation would overwrite and the caller did not say which version it read."""

    code, status, title = 10028, 428, "Precondition required"


class TooManyRequests(ServiceError):
    """The caller has used up its quota for now."""

    code, status, title = 10029, 429, "Too many requests"


class HeaderTooLarge(ServiceError):
    """The header of the request is larger than the service takes, or there are too many unfinished ones."""

    code, status, title = 10031, 431, "Header too large"


class Internal(ServiceError):
    """A fault of ours that has no better name."""

    code, status, title = 20000, 500, "Internal error"


class DatabaseFailed(ServiceError):
    """The database refused or failed a statement."""

    code, status, title = 20001, 500, "Database error"


class DatabaseBusy(ServiceError):
    """The database did not take the statement in time; the same request may succeed later."""

    code, status, title = 20005, 503, "Database busy"


class BackendFailed(ServiceError):
    """The backend could not be reached or broke off."""

    code, status, title = 20003, 502, "Backend failed"


class CircuitIsOpen(ServiceError):
    """The backend has been failing and is being left alone for a while."""

    code, status, title = 20004, 503, "Circuit open"


class BackendTimedOut(ServiceError):
    """The backend did not answer in time."""

    code, status, title = 20006, 504, "Backend timed out"


class RequestTimedOut(ServiceError):
    """The request took longer than the service allows any request."""

    code, status, title = 20007, 504, "Request timed out"


class BackendSaturated(ServiceError):
    """All connections to the backend are in use."""

    code, status, title = 20008, 503, "Backend saturated"


class Overloaded(ServiceError):
    """The service has as much work of this kind as it takes on at once."""

    code, status, title = 20009, 503, "Overloaded"


class ChannelsUnavailable(ServiceError):
    """Messages cannot be carried or kept at the moment."""

    code, status, title = 20010, 503, "Channels unavailable"


def _registry() -> dict[int, type[ServiceError]]:
    registry: dict[int, type[ServiceError]] = {}
    for kind in ServiceError.__subclasses__():
        if kind.code in registry:
            raise TypeError(
                f"{kind.__name__} and {registry[kind.code].__name__} share code {kind.code}; give one another"
            )
        registry[kind.code] = kind
    return registry


REGISTRY: dict[int, type[ServiceError]] = _registry()
"""Every error class by its code."""
