"""Just enough of an application to call a blueprint."""

from __future__ import annotations

from typing import get_args

import flask

from service import problems
from service.model import Caller, Role, User

__all__ = ["application", "signed_in_as"]


def application(*blueprints: flask.Blueprint) -> flask.Flask:
    """An application that serves the blueprints, answers errors as problems, and believes who a caller says to be."""
    app = flask.Flask("test")
    app.config["MAX_CONTENT_LENGTH"] = 1_000_000
    problems.register(app)
    app.before_request(_believe)
    for blueprint in blueprints:
        app.register_blueprint(blueprint)
    return app


def signed_in_as(user: User) -> dict[str, str]:
    """The fields of a request that `user` makes."""
    return {"X-Caller": f"{user.id} {user.role}"}


def _believe() -> None:
    user_id, _, role = flask.request.headers.get("X-Caller", "").partition(" ")
    known: dict[str, Role] = {known: known for known in get_args(Role)}
    if role in known:
        flask.g.caller = Caller(user_id=int(user_id), role=known[role])
