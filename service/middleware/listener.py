"""Two listeners, two surfaces: the API on the public one, administration on the other, health on both."""

from __future__ import annotations

import flask
from werkzeug.exceptions import NotFound

from service.middleware.chain import ON_ADMIN_LISTENER
from service.middleware.current import current_request
from service.middleware.link import Proceed

__all__ = ["Listener"]

ADMIN_ROOT = "/admin"
HEALTH_BLUEPRINT = "health"


class Listener:
    """Unroutes requests for the surface that belongs to the other listener, so that they go the way of unknown paths.

    The worker knows the listener of each connection. Under other servers SERVER_PORT decides: the port that the
    connection came in on, as far as they do not take it from the Host field. Any port but the admin port is public.
    """

    def __init__(self, *, admin_port: int) -> None:
        self._admin_port = str(admin_port)

    def __call__(self, proceed: Proceed) -> flask.Response:
        """Answer the request, with 404 if it came in on the wrong listener."""
        request = current_request()
        on_admin_listener = request.environ.get(ON_ADMIN_LISTENER)
        if on_admin_listener is None:
            on_admin_listener = request.environ.get("SERVER_PORT") == self._admin_port
        if request.blueprint != HEALTH_BLUEPRINT and on_admin_listener != _is_administrative(request.path):
            # Not refused here: an answer that lacks what later links add to every 404 would give the surface away.
            request.url_rule = request.view_args = None
            request.routing_exception = NotFound()
        return proceed()


def _is_administrative(path: str) -> bool:
    # By path and not by view, since wrong methods and doubled slashes match no view and would still give it away.
    return path == ADMIN_ROOT or path.startswith(ADMIN_ROOT + "/")
