"""Two listeners, two surfaces: the API on the public one, administration on the other, health on both."""

from __future__ import annotations

import flask
from werkzeug.exceptions import NotFound

from service.middleware.chain import Proceed
from service.middleware.current import current_request

__all__ = ["Listener"]

ADMIN_ROOT = "/admin"
HEALTH_BLUEPRINT = "health"


class Listener:
    """Unroutes requests for the surface that belongs to the other listener, so that they go the way of unknown paths.

    Under gunicorn SERVER_PORT is the port that the connection came in on; unlike the Host field, the caller cannot
    choose it. Any port but the admin port counts as public.
    """

    def __init__(self, *, admin_port: int) -> None:
        self._admin_port = str(admin_port)

    def __call__(self, proceed: Proceed) -> flask.Response:
        """Answer the request, with 404 if it came in on the wrong listener."""
        request = current_request()
        on_admin_listener = request.environ.get("SERVER_PORT") == self._admin_port
        if request.blueprint != HEALTH_BLUEPRINT and on_admin_listener != _is_administrative(request.path):
            # Not refused here: an answer that lacks what later links add to every 404 would give the surface away.
            request.url_rule = request.view_args = None
            request.routing_exception = NotFound()
        return proceed()


def _is_administrative(path: str) -> bool:
    # By path and not by view, since wrong methods and doubled slashes match no view and would still give it away.
    return path == ADMIN_ROOT or path.startswith(ADMIN_ROOT + "/")
