"""Who may see the admin endpoint, and who may change something there.

Either a request carries the admin token, or it comes from a browser that has shown it once and keeps a signed cookie. Browsers
send cookies along by themselves, so what changes something also needs a text that only our page can know, and the word of
the browser that the page is ours.
"""

from __future__ import annotations

import hmac
import unicodedata
from collections.abc import Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

from flask import abort, g, request
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import NotFound, Unauthorized

from resilience.adapters.flask import Application, current_application
from resilience.adapters.sessions import Session
from resilience.clock import epoch_seconds

__all__ = [
    "COOKIE",
    "CSRF_FIELD",
    "REFUSED",
    "NotThere",
    "Visitor",
    "author_of",
    "authorize",
    "checked_name",
    "exists_here",
    "is_same_origin",
    "is_there",
    "token_is_right",
    "unauthorized",
]

COOKIE: Final = "resilience_admin"
CSRF_FIELD: Final = "X-Resilience-Csrf"
AUTHOR_FIELD: Final = "X-Resilience-Author"
LONGEST_NAME: Final = 64
REFUSED: Final = "this is not the admin token"

_PARENTHESES = frozenset("()")
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
    if scheme.lower() == "bearer" and given.strip():
        if not token_is_right(given.strip()):
            raise unauthorized(REFUSED)
        g.resilience_visitor = Visitor(author_of(checked_name(_author()) or "token"))
        return
    raise unauthorized("the admin endpoint needs 'Authorization: Bearer <admin token>', or a login on its page")


def unauthorized(reason: str) -> Unauthorized:
    """The answer to who is not let in."""
    return Unauthorized(reason, www_authenticate=WWWAuthenticate("bearer", {"realm": "admin"}))


def token_is_right(given: str) -> bool:
    """Whether `given` is the admin token. Raises `TooManyRequests`, right or wrong, where too many wrong ones came from the
    address of the current request. What is refused is in the audit log."""
    attempts = current_application().attempts
    if attempts is None or not given:
        return False
    is_right = attempts.is_right(given, request.remote_addr)
    if not is_right:
        attempts.note(request.remote_addr)
    return is_right


def checked_name(value: Any) -> str:
    """What somebody calls themselves, if it may stand in an audit log. Answers 400 otherwise."""
    if not isinstance(value, str) or len(value) > LONGEST_NAME or not value.isprintable():
        abort(400, description=f"name: a text of at most {LONGEST_NAME} printable characters")
    if not _PARENTHESES.isdisjoint(unicodedata.normalize("NFKC", value)):
        abort(400, description="name: leave the parentheses out, in which the audit log has the address")
    return value.strip()


def author_of(name: str) -> str:
    """`name` with the address of the current request, as the audit log names people."""
    return f"{name} ({address()})"


def address() -> str:
    """Where the current request comes from. What it claims about itself is not asked: whoever guesses tokens would make up
    another address for each."""
    return request.remote_addr or "unix"


def _author() -> str:
    """Whom the field names. Beyond ASCII it is UTF-8: percent-encoded behind UTF-8'', as RFC 8187 says, or as it is."""
    try:
        said = request.headers.get(AUTHOR_FIELD, "").encode("latin-1").decode()  # WSGI hands on the bytes as latin-1
        return unquote(said[7:], errors="strict") if said[:7].lower() == "utf-8''" else said
    except UnicodeError:
        abort(400, description=f"{AUTHOR_FIELD}: this is no UTF-8; write Jürgen as UTF-8''J%C3%BCrgen")


def _session(application: Application) -> Session | None:
    text = request.cookies.get(COOKIE)
    return None if text is None or application.sessions is None else application.sessions.read(text, epoch_seconds())


def _check_that_the_page_is_ours(session: Session) -> None:
    if not hmac.compare_digest(request.headers.get(CSRF_FIELD, "").encode(), session.csrf.encode()):
        abort(403, description=f"{CSRF_FIELD} is missing or wrong: GET the session for it")
    if not is_same_origin():
        abort(403, description="the request comes from a page of another origin")


def is_same_origin(*, unless_said: bool = False) -> bool:
    """Whether the browser says that the current request comes from a page of this very origin, and nothing that it says
    speaks against. Where it says nothing: `unless_said`.

    Behind a proxy that ends TLS the scheme of the request may be another one than the browser's. `Sec-Fetch-Site`, which
    browsers send along over https, knows the browser's; without it the schemes have to agree.
    """
    origin, site = request.headers.get("Origin"), request.headers.get("Sec-Fetch-Site")
    if site is not None and site != "same-origin":
        return False
    if origin is None:
        return unless_said if site is None else True
    scheme, _, host = origin.lower().partition("://")
    return host == request.host.lower() and (site is not None or scheme == request.scheme)


def _listener_port(environ: Mapping[str, Any]) -> int | None:
    """The port that the connection came in on, None for a Unix socket. What a client or a proxy claims is not asked."""
    listening = environ.get("gunicorn.socket")
    if listening is not None:
        name = listening.getsockname()
        return int(name[1]) if isinstance(name, tuple) else None
    port = str(environ.get("werkzeug.proxy_fix.orig", environ).get("SERVER_PORT", ""))
    return int(port) if port.isdecimal() else None
