"""An application with chosen middlewares and nothing else, for tests of the chain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flask

from service import problems
from service.app import Service
from service.middleware.link import Middleware, Proceed

__all__ = ["Link", "serve"]


class Link:
    """A middleware out of a function."""

    def __init__(self, function: Callable[[Proceed], flask.Response]) -> None:
        self._function = function

    def __call__(self, proceed: Proceed) -> flask.Response:
        return self._function(proceed)


def serve(links: Sequence[Middleware], **views: Callable[[], Any]) -> Service:
    """`links` around an application whose views are at ``/<name>``, for GET and POST, with problem documents."""
    app = Service(links)
    problems.register(app)
    for name, view in views.items():
        app.add_url_rule(f"/{name}", name, view, methods=["GET", "POST"])
    return app
