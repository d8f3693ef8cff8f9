"""The limit on every request, whatever it asks for."""

from __future__ import annotations

from typing import Protocol

import flask

from service.middleware.current import current_request
from service.middleware.link import Proceed

__all__ = ["Limiter", "RateLimit"]

# Probes must never be refused for someone else's load, nor the operator who comes to look at it.
UNLIMITED_BLUEPRINTS = frozenset({"admin", "connections", "health", "metrics"})


class Limiter(Protocol):
    """A rate limit."""

    def acquire(self) -> object:
        """Take one from the caller's bucket. Raises when it is empty."""


class RateLimit:
    """Takes from the caller's bucket before anything else is done for the request."""

    def __init__(self, limiter: Limiter) -> None:
        self._limiter = limiter

    def __call__(self, proceed: Proceed) -> flask.Response:
        """Answer the request if its caller's bucket allows it. What the limiter raises becomes the answer otherwise."""
        if current_request().blueprint not in UNLIMITED_BLUEPRINTS:
            self._limiter.acquire()
        return proceed()
