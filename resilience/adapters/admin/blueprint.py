"""The admin endpoint as a blueprint: which address leads where, and who is asked for a token before that."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any, Final

from flask import Blueprint, Response, current_app, request
from flask.sansio.blueprints import BlueprintSetupState
from werkzeug.exceptions import HTTPException, NotFound
from werkzeug.routing import RoutingException

from resilience.adapters.admin.access import NotThere, authorize, exists_here, is_there
from resilience.adapters.admin.audit import list_audit
from resilience.adapters.admin.circuits import (
    ACTIONS,
    change_circuit,
    list_circuits,
    merge_circuits,
    show_circuit,
    show_events,
)
from resilience.adapters.admin.events import Streams
from resilience.adapters.admin.limiters import (
    PARTS,
    describe_limiters,
    list_limiters,
    override_limiter,
    reset_limiter,
    restore_limiter,
)
from resilience.adapters.admin.page import redirect_to_page, show_page
from resilience.adapters.admin.policies import list_policies
from resilience.adapters.admin.session import login, logout, show_session
from resilience.adapters.options import PREFIX
from resilience.adapters.peers import Answers

__all__ = ["create_admin_blueprint"]

LARGEST_BODY: Final = 16_384
"""Bytes of a request: what is ordered is short."""

_OPEN: Final = frozenset({"show_page", "redirect_to_page", "login"})
"""Views that look for themselves whether they exist, and ask for no token."""

_ORDERS: Final = {"circuits": ACTIONS, "limiters": ("reset", "override", "restore")}

_LOG = logging.getLogger(__name__)


def create_admin_blueprint(
    *,
    name: str = "resilience_admin",
    url_prefix: str = "/admin",
    ends: Callable[[], bool] = lambda: False,
) -> Blueprint:
    """The admin endpoint, to be registered on an application that has `Resilience`.

    `name` is the blueprint's name, `url_prefix` where it is mounted ("/admin"). Without an admin token, and on listeners
    other than the admin port, its routes answer 404. `ends` says whether the process is about to stop: event streams, which
    would go on for minutes, end when it is true.
    """
    blueprint = Blueprint(name, __name__, url_prefix=url_prefix)
    streams = Streams(ends=ends, take_snapshot=_take_snapshot, parts=("circuits", *PARTS))

    def look_first() -> None:
        request.max_content_length = LARGEST_BODY
        view = (request.endpoint or "").rpartition(".")[2]
        if view in _OPEN:
            is_there()
        else:
            authorize()

    def answer_what_leads_nowhere() -> Any:
        # This matches no view of the blueprint's, would tell that there is something, and be answered as the application
        # answers people.
        error = request.routing_exception
        if error is None or not request.path.startswith(f"{url_prefix}/"):
            return None
        try:
            authorize()
        except NotThere:
            raise
        except HTTPException as refusal:
            error = refusal
        else:
            if isinstance(error, RoutingException):
                return None  # it leads somewhere, at another address
            error = _said_better(error, request.path.removeprefix(url_prefix))
        return _forbid_storing(current_app.make_response(_answer_error(error)))

    blueprint.before_request(look_first)
    blueprint.before_app_request(answer_what_leads_nowhere)
    blueprint.record_once(_check_application)
    blueprint.after_request(_forbid_storing)
    blueprint.register_error_handler(HTTPException, _answer_error)
    _route_page(blueprint)
    _route_policies(blueprint)
    blueprint.get("/events")(streams.show)
    return blueprint


def _route_page(blueprint: Blueprint) -> None:
    # Not "" but a route of its own: Flask would send on to an absolute address, which a proxy may not have.
    blueprint.add_url_rule("", view_func=redirect_to_page, strict_slashes=True)
    blueprint.get("/")(show_page)
    blueprint.post("/login")(login)
    blueprint.get("/session")(show_session)
    blueprint.post("/logout")(logout)


def _route_policies(blueprint: Blueprint) -> None:
    blueprint.get("/circuits")(list_circuits)
    blueprint.get("/circuits/<path:circuit>")(show_circuit)
    blueprint.get("/circuits/<path:circuit>/events")(show_events)
    actions = ",".join(map(repr, ACTIONS))
    blueprint.post(f"/circuits/<path:circuit>/<any({actions}):action>")(change_circuit)
    blueprint.get("/limiters")(list_limiters)
    blueprint.post("/limiters/<path:limiter>/reset")(reset_limiter)
    blueprint.post("/limiters/<path:limiter>/override")(override_limiter)
    blueprint.post("/limiters/<path:limiter>/restore")(restore_limiter)
    blueprint.get("/policies")(list_policies)
    blueprint.get("/audit")(list_audit)


def _take_snapshot(answers: Answers) -> dict[str, Any]:
    return {"circuits": merge_circuits(answers), **describe_limiters(answers)}


def _check_application(registered: BlueprintSetupState) -> None:
    """Raises `RuntimeError` where the library is not attached to the application yet."""
    application = registered.app.extensions.get("resilience")
    if application is None:
        raise RuntimeError(
            "the admin endpoint asks Resilience: call Resilience(app) before app.register_blueprint(...)"
        )
    if not application.options.admin_token:
        _LOG.warning("there is no admin endpoint without a token: set %sADMIN_TOKEN", PREFIX)


def _said_better(error: HTTPException, path: str) -> HTTPException:
    """An error of routing, with what to do about it where that is known."""
    _, kind, *rest = path.split("/")
    if request.method != "POST" or kind not in _ORDERS or len(rest) < 2:
        return error
    return NotFound(f"there is no order {rest[-1]!r} for {kind}: there is {', '.join(_ORDERS[kind])}")


def _forbid_storing(response: Response) -> Response:
    if exists_here():  # elsewhere the answer is as it is for every address that leads nowhere
        response.headers.setdefault("Cache-Control", "no-store")
    return response


def _answer_error(error: HTTPException) -> Any:
    """Say what went wrong as a problem document, unless the application has a way of its own to say it."""
    handlers = current_app.error_handler_spec[None][None]
    handler = handlers.get(HTTPException) or handlers.get(Exception)
    if handler is not None:
        return current_app.ensure_sync(handler)(error)
    if isinstance(error, NotThere) or error.response is not None or error.code is None:
        return error  # as if nobody had said anything
    document = {"type": "about:blank", "title": error.name, "status": error.code, "detail": error.description}
    fields = [(name, value) for name, value in error.get_headers() if name.lower() != "content-type"]
    return Response(json.dumps(document), error.code, fields, content_type="application/problem+json")
