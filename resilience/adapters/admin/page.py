"""The admin page: one file, shown to everybody who reaches the listener, for it tells nothing without a login."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from pathlib import Path
from typing import Final, NamedTuple

from flask import Response, redirect, request
from werkzeug import Response as AnyResponse

from resilience.adapters.admin.access import is_there

__all__ = ["redirect_to_page", "show_page"]

_FILE: Final = Path(__file__).with_name("page.html")
_PARTS: Final = {"script-src": rb"<script>(.*?)</script>", "style-src": rb"<style>(.*?)</style>"}
_FIELDS: Final = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


class _Page(NamedTuple):
    content: bytes
    tag: str
    policy: str


def show_page() -> AnyResponse:
    """The page, under a policy that lets nothing run in it but its own script, whatever somebody wrote as a reason."""
    is_there()
    page = _read()
    response = Response(page.content, mimetype="text/html", headers=_FIELDS)
    response.headers["Content-Security-Policy"] = page.policy
    response.set_etag(page.tag)
    return response.make_conditional(request)


def redirect_to_page() -> AnyResponse:
    """To the page's own address: what it asks for lies beside it."""
    is_there()
    answer = redirect(f"{request.path.rpartition('/')[2]}/", code=308)
    answer.autocorrect_location_header = False  # relative: a proxy may have it under another name
    return answer


@functools.cache
def _read() -> _Page:
    content = _FILE.read_bytes()
    policy = (
        "default-src 'none'",
        *(f"{directive} {_hashes(pattern, content)}" for directive, pattern in _PARTS.items()),
        "img-src 'self' data:",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
    return _Page(content, hashlib.sha256(content).hexdigest()[:32], "; ".join(policy))


def _hashes(pattern: bytes, content: bytes) -> str:
    """Its own script and style, by what they are: a hash of each (Content Security Policy Level 3, section 2.3.1)."""
    parts = re.findall(pattern, content, re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(part).digest()).decode() for part in parts)
    return " ".join(f"'sha256-{digest}'" for digest in digests)
