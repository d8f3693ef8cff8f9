"""Two listeners, two surfaces: the API on the public one, administration on the other, health on both."""

from __future__ import annotations

from typing import TYPE_CHECKING

import flask
from werkzeug.exceptions import NotFound

from service.middleware.current import current_request
from service.middleware.link import Proceed

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

__all__ = ["ON_ADMIN_LISTENER", "Listener", "came_in_on_admin_listener"]

ON_ADMIN_LISTENER = "longconn.reserved_listener"
"""Where the worker puts into a request's environment whether it came in on the reserved listener: the admin listener."""

ADMIN_ROOT = "/admin"
METRICS = "/metrics"
HEALTH_BLUEPRINT = "health"


class Listener:
    """Unroutes requests for the surface that belongs to the other listener, so that they go the way of unknown paths."""

    def __init__(self, *, admin_port: int) -> None:
        self._admin_port = admin_port

    def __call__(self, proceed: Proceed) -> flask.Response:
        """Answer the request, with 404 if it came in on the wrong listener."""
        request = current_request()
        on_admin_listener = came_in_on_admin_listener(request.environ, self._admin_port)
        if request.blueprint != HEALTH_BLUEPRINT and on_admin_listener != _is_administrative(request.path):
            # Not refused here: an answer that lacks what later links add to every 404 would give the surface away.
            request.url_rule = request.view_args = None
            request.routing_exception = NotFound()
        return proceed()


def came_in_on_admin_listener(environ: WSGIEnvironment, admin_port: int) -> bool:
    """Whether a request came in on the admin listener.

    The worker knows the listener of each connection. Under other servers SERVER_PORT decides: the port that the
    connection came in on, as far as they do not take it from the Host field. Any port but the admin port is public.
    """
    known = environ.get(ON_ADMIN_LISTENER)
    return bool(environ.get("SERVER_PORT") == str(admin_port) if known is None else known)


def _is_administrative(path: str) -> bool:
    # By path and not by view, since wrong methods and doubled slashes match no view and would still give it away.
    return path in (ADMIN_ROOT, METRICS) or path.startswith((ADMIN_ROOT + "/", METRICS + "/"))
