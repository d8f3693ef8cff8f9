"""`/api/v1/auth`: signing in."""

from __future__ import annotations

from collections.abc import Mapping

from flask import Blueprint, Response, jsonify, request

from resilience import RateLimiter, caller_key
from service.routes.access import public
from service.routes.bodies import json_object
from service.services.auth import AuthService
from service.services.members import Fault, check_members
from service.services.users import is_name

__all__ = ["create_auth_blueprint"]


def _anything(_: str) -> None:
    """Whether a user can have it is not said: it would be as good as a list of what to try."""


RULES: Mapping[str, Fault] = {"username": _anything, "password": _anything}


def create_auth_blueprint(auth_service: AuthService, login_limiter: RateLimiter) -> Blueprint:
    """The route that gives tokens. `login_limiter` counts the tries for each user name from each client's address."""
    blueprint = Blueprint("auth", __name__, url_prefix="/api/v1/auth")

    @blueprint.post("/token")
    @public
    def issue_token() -> Response:
        members = check_members(json_object(request), RULES, required=RULES)
        username, password = members["username"], members["password"]
        # Names that nobody can have share one bucket: they may be of any size and number.
        login_limiter.acquire((username.lower() if is_name(username) else "", caller_key()))
        token = auth_service.sign_in(username, password)
        response = jsonify(access_token=token.value, token_type="Bearer", expires_in=token.expires_in)  # noqa: S106 - a type
        response.headers["Cache-Control"] = "no-store"
        return response

    return blueprint
