"""Who may see the admin endpoint, and who may change something there.

Either a request carries the admin token, or it comes from a browser that has shown it once and keeps a signed cookie. Browsers
send cookies along by themselves, so what changes something also needs a text that only our page can know, and the word of
the browser that the page is ours.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from flask import abort, g, request
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import NotFound, TooManyRequests, Unauthorized

from resilience.adapters.addresses import client_key
from resilience.adapters.flask import Application, current_application
from resilience.adapters.sessions import Session
from resilience.clock import epoch_seconds
from resilience.core.limiter import Charge, Limit, Refund, seconds_rounded_up
from resilience.decorators.policy import view_of
from resilience.errors import StorageUnavailable

__all__ = [
    "COOKIE",
    "CSRF_FIELD",
    "NotThere",
    "Visitor",
    "author_of",
    "authorize",
    "checked_name",
    "exists_here",
    "give_attempt_back",
    "is_same_origin",
    "is_there",
    "take_attempt",
    "token_is_right",
    "unauthorized",
]

COOKIE: Final = "resilience_admin"
CSRF_FIELD: Final = "X-Resilience-Csrf"
AUTHOR_FIELD: Final = "X-Resilience-Author"
LONGEST_NAME: Final = 64

_SCOPE = "admin:logins"
_FAILURES = Limit(5, 60)
_READING = ("GET", "HEAD", "OPTIONS")


class NotThere(NotFound):
    """There is no admin endpoint here, and nothing of the answer may tell that there is one elsewhere."""


class Visitor(NamedTuple):
    """Whoever was let in: `author` as the audit log names them, `session` where a cookie let them in."""

    author: str
    session: Session | None = None


def is_there() -> Application:
    """The current application, if the admin endpoint exists on the listener that the request came in on. Raises
    `NotThere`."""
    if not exists_here():
        raise NotThere
    return current_application()


def exists_here() -> bool:
    """Whether the current request came in where the admin endpoint exists."""
    options = current_application().options
    on_admin_port = options.admin_port is None or _listener_port(request.environ) == options.admin_port
    return bool(options.admin_token) and on_admin_port


def authorize() -> None:
    """Let the current request pass, and keep who it comes from. Raises what it is answered with otherwise."""
    application = is_there()
    session = _session(application)
    if "Authorization" not in request.headers and session is not None:
        if request.method not in _READING:
            _check_that_the_page_is_ours(session)
        g.resilience_visitor = Visitor(author_of(session.name or "page"), session)
        return
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token_is_right(application, given.strip()):
        g.resilience_visitor = Visitor(author_of(checked_name(request.headers.get(AUTHOR_FIELD, "")) or "token"))
        return
    if given.strip():
        take_attempt(application)
    raise unauthorized("the admin endpoint needs 'Authorization: Bearer <admin token>', or a login on its page")


def unauthorized(reason: str) -> Unauthorized:
    """The answer to who is not let in."""
    return Unauthorized(reason, www_authenticate=WWWAuthenticate("bearer", {"realm": "admin"}))


def token_is_right(application: Application, given: str) -> bool:
    """Whether `given` is the admin token. Takes the same time for every wrong one."""
    return hmac.compare_digest(given.encode(), str(application.options.admin_token).encode())


def take_attempt(application: Application) -> None:
    """Count an attempt to get in by the current address. Raises `TooManyRequests` when it has made too many.

    The buckets are the application's, so that all workers count together; while they are out of reach, this one counts.
    Whatever else is configured of limits, this one holds.
    """
    charges = [Charge(_SCOPE, _bucket(), _FAILURES, 1)]
    try:
        decision = view_of(application.storage, "local").take(charges)
    except StorageUnavailable:
        decision = application.own_buckets.take(charges)
    if not decision.allowed:
        wait = seconds_rounded_up(decision.retry_after or 0.0)
        raise TooManyRequests(f"too many wrong tokens from this address: try again in {wait} s", retry_after=wait)


def give_attempt_back(application: Application) -> None:
    """The attempt was none: the token was right."""
    refunds = [Refund(_SCOPE, _bucket(), _FAILURES, 1)]
    try:
        view_of(application.storage, "local").give_back(refunds)
    except StorageUnavailable:
        application.own_buckets.give_back(refunds)


def checked_name(value: Any) -> str:
    """What somebody calls themselves, if it may stand in an audit log. Answers 400 otherwise."""
    if not isinstance(value, str) or len(value) > LONGEST_NAME or not value.isprintable():
        abort(400, description=f"name: a text of at most {LONGEST_NAME} printable characters")
    return value.strip()


def author_of(name: str) -> str:
    """`name` with the address of the current request, as the audit log names people."""
    return f"{name} ({address()})"


def address() -> str:
    """Where the current request comes from. What it claims about itself is not asked: whoever guesses tokens would make up
    another address for each."""
    return request.remote_addr or "unix"


def _bucket() -> str:
    return client_key(request.remote_addr, None, 0)


def _session(application: Application) -> Session | None:
    text = request.cookies.get(COOKIE)
    return None if text is None or application.sessions is None else application.sessions.read(text, epoch_seconds())


def _check_that_the_page_is_ours(session: Session) -> None:
    if not hmac.compare_digest(request.headers.get(CSRF_FIELD, "").encode(), session.csrf.encode()):
        abort(403, description=f"{CSRF_FIELD} is missing or wrong: GET the session for it")
    if not is_same_origin():
        abort(403, description="the request comes from a page of another origin")


def is_same_origin(*, unless_said: bool = False) -> bool:
    """Whether the browser says that the current request comes from a page of this very host. Where it says nothing:
    `unless_said`."""
    origin, site = request.headers.get("Origin"), request.headers.get("Sec-Fetch-Site")
    if origin is not None:
        return urlsplit(origin).netloc.lower() == request.host.lower()
    return unless_said if site is None else site == "same-origin"


def _listener_port(environ: Mapping[str, Any]) -> int | None:
    """The port that the connection came in on, None for a Unix socket. What a client or a proxy claims is not asked."""
    listening = environ.get("gunicorn.socket")
    if listening is not None:
        name = listening.getsockname()
        return int(name[1]) if isinstance(name, tuple) else None
    port = str(environ.get("werkzeug.proxy_fix.orig", environ).get("SERVER_PORT", ""))
    return int(port) if port.isdecimal() else None
