"""The chain around every request: which middlewares there are, and in which order.

A middleware is called with `proceed`, which runs everything further in and returns its response. This module is light
to import, so that the gunicorn master can check names without loading the application.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from service.middleware.link import Middleware, Proceed
from service.settings import Settings, SettingsError

if TYPE_CHECKING:
    from service.middleware.authentication import Authenticator
    from service.middleware.rate_limit import Limiter

__all__ = ["CHAIN", "Middleware", "Proceed", "build_chain", "compose", "refuse_unknown_names"]

CHAIN = (
    "request_id",
    "trace",
    "access_log",
    "recovery",
    "listener",
    "authentication",
    "rate_limit",
    "request_timeout",
)
"""Outermost first. What is further out still runs when something further in fails: the id and the trace are fixed
before anything is logged, every failure is turned into an answer inside the access log, and a request is turned away
for its listener, its credentials or its rate before its body is read."""


def build_chain(settings: Settings, *, authenticator: Authenticator, limiter: Limiter) -> list[Middleware]:
    """The links that `settings.middleware_off` leaves, outermost first. Raises `SettingsError` for a name not in it."""
    from service.middleware.access_log import AccessLog
    from service.middleware.authentication import Authentication
    from service.middleware.listener import Listener
    from service.middleware.rate_limit import RateLimit
    from service.middleware.recovery import Recovery
    from service.middleware.request_id import RequestId
    from service.middleware.request_timeout import RequestTimeout
    from service.middleware.trace import Tracing

    refuse_unknown_names(settings.middleware_off)
    links: dict[str, Middleware] = {
        "request_id": RequestId(),
        "trace": Tracing(),
        "access_log": AccessLog(trusted_proxies=settings.trusted_proxies),
        "recovery": Recovery(),
        "listener": Listener(admin_port=settings.admin_port),
        "authentication": Authentication(authenticator),
        "rate_limit": RateLimit(limiter),
        "request_timeout": RequestTimeout(seconds=settings.request_timeout),
    }
    return [links[name] for name in CHAIN if name not in settings.middleware_off]


def compose(links: Sequence[Middleware], innermost: Proceed) -> Proceed:
    """One callable out of the chain, put together once."""
    proceed = innermost
    for link in reversed(links):
        proceed = functools.partial(link, proceed)
    return proceed


def refuse_unknown_names(names: Collection[str]) -> None:
    """Raise `SettingsError` unless every name is one of the chain."""
    unknown = [name for name in names if name not in CHAIN]
    if unknown:
        raise SettingsError(
            f"middleware_off: no middleware is named {', '.join(unknown)}; there are {', '.join(CHAIN)}"
        )
