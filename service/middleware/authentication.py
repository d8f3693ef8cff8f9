"""Who is asking: the bearer token, checked before any body is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import flask

from service.errors import Unauthenticated
from service.middleware.current import current_request
from service.middleware.link import Proceed
from service.model import Caller

__all__ = ["Authentication", "Authenticator"]

SCHEME = "bearer"
# Probes carry no credentials; the admin surface has a token of its own.
OPEN_BLUEPRINTS = frozenset({"admin", "connections", "health", "metrics"})


class Authenticator(Protocol):
    """Tells who a token speaks for."""

    def verify(self, token: str) -> Caller:
        """The caller. Raises `Unauthenticated` when the token does not hold."""


class Authentication:
    """Requires a bearer token of every view that is not marked public, and puts its owner into `flask.g.caller`. Where guests
    are admitted, one who shows no token is let through without a caller."""

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticator = authenticator

    def __call__(self, proceed: Proceed) -> flask.Response:
        """Answer the request if its caller is known or need not be. Raises `Unauthenticated` otherwise."""
        view = _closed_view()
        if view is not None:
            token = _bearer_token(flask.request.headers.get("Authorization", ""))
            if not token and getattr(view, "admits_guests", False) and "Authorization" not in flask.request.headers:
                return proceed()
            if not token:
                raise Unauthenticated("This needs a token: sign in, and send it as Authorization: Bearer <token>.")
            # If anyone further in calls this unauthenticated, it is the token that does not hold.
            flask.g.token_given = True
            flask.g.caller = self._authenticator.verify(token)
        return proceed()


def _closed_view() -> Callable[..., object] | None:
    """The view that is asked for, if it is not open to everyone."""
    request = current_request()
    if request.endpoint is None or request.blueprint in OPEN_BLUEPRINTS:
        return None  # no such route or method: the answer is 404 or 405 for everyone
    view = flask.current_app.view_functions[request.endpoint]
    return None if getattr(view, "is_public", False) else view


def _bearer_token(field: str) -> str:
    scheme, _, token = field.strip().partition(" ")
    return token.strip() if scheme.lower() == SCHEME else ""
