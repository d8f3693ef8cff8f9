"""Login and logout of the admin page: the token is shown once, and becomes a cookie that no script can read."""

from __future__ import annotations

from typing import Any

from flask import Response, abort, jsonify, request

from resilience.adapters.admin.access import (
    COOKIE,
    REFUSED,
    author_of,
    checked_name,
    is_same_origin,
    is_there,
    unauthorized,
)
from resilience.adapters.admin.orders import read_json, record, visitor
from resilience.adapters.flask import current_application
from resilience.adapters.sessions import LIFETIME, Session
from resilience.clock import epoch_seconds

__all__ = ["login", "logout", "show_session"]


def login() -> Response:
    """Begin a session for whoever knows the token. At most five wrong ones a minute and address."""
    application = is_there()
    if not is_same_origin(unless_said=True):
        abort(403, description="the request comes from a page of another origin")
    body = read_json()
    token = body.get("token") if isinstance(body, dict) else None
    if not isinstance(token, str):
        abort(400, description='the body is a JSON object: {"token": "<admin token>"}, and "name" if you like')
    name = checked_name(body.get("name", ""))
    assert application.attempts is not None  # there is a token
    assert application.sessions is not None
    if not application.attempts.is_right(token, request.remote_addr):
        record("login", "admin", outcome="refused", author=author_of(name or "somebody"), detail="wrong token")
        raise unauthorized(REFUSED)
    text, session = application.sessions.begin(name, epoch_seconds())
    record("login", "admin", author=author_of(name or "page"))
    response = jsonify(_described(session))
    response.set_cookie(
        COOKIE, text, max_age=LIFETIME, path=_path(), secure=request.is_secure, httponly=True, samesite="Strict"
    )
    return response


def show_session() -> Response:
    """Who is asking, and what a page needs so that it may change something."""
    who = visitor()
    if who.session is None:
        return jsonify(author=who.author, csrf=None, expires_in=None)
    return jsonify(_described(who.session))


def logout() -> Response:
    """End the session of the current request: in every worker that can be reached, and, where the state is shared, in all that
    begin later. Without one nothing happens."""
    application, session = current_application(), visitor().session
    if session is not None and application.sessions is not None:
        is_kept = application.sessions.keep_ended(session, epoch_seconds())
        answers = application.peers.ask({"do": "end session", "session": session.id, "tell": []})
        detail = "" if is_kept or application.reach == "process" else "not kept for workers that begin later"
        record("logout", "admin", detail=detail, unreached=answers.unreached)
    response = jsonify({})
    response.delete_cookie(COOKIE, path=_path(), secure=request.is_secure, httponly=True, samesite="Strict")
    return response


def _described(session: Session) -> dict[str, Any]:
    return {
        "author": session.name or "page",
        "csrf": session.csrf,
        "expires_in": round(session.expires - epoch_seconds(), 1),
    }


def _path() -> str:
    """Where the admin endpoint is mounted: nothing else of the host gets the cookie."""
    return request.script_root + request.path.rpartition("/")[0]
