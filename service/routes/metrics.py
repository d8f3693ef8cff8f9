"""What Prometheus reads: `GET /metrics` on the admin listener, with the admin token. Any worker answers for all."""

from __future__ import annotations

from collections.abc import Callable

import flask
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import NotFound, Unauthorized

__all__ = ["create_metrics_blueprint"]


def create_metrics_blueprint(
    render: Callable[[], bytes],
    *,
    media_type: str,
    token_is_right: Callable[[str], bool],
    on_admin_listener: Callable[[], bool],
) -> flask.Blueprint:
    """The blueprint `metrics`. `render` makes the answer, which is of `media_type`; `token_is_right`
    says whether a text is the admin token, and may refuse to; `on_admin_listener` says where the current request came in."""
    blueprint = flask.Blueprint("metrics", __name__)

    @blueprint.get("/metrics")
    def metrics() -> flask.Response:
        if not on_admin_listener():
            raise NotFound
        given = _given_token()
        if not given or not token_is_right(given):
            raise Unauthorized(
                "The metrics need the admin token: send it as Authorization: Bearer <admin token>.",
                www_authenticate=WWWAuthenticate("bearer", {"realm": "admin"}),
            )
        return flask.Response(render(), content_type=media_type, headers={"Cache-Control": "no-store"})

    return blueprint


def _given_token() -> str:
    scheme, _, given = flask.request.headers.get("Authorization", "").partition(" ")
    return given.strip() if scheme.lower() == "bearer" else ""
