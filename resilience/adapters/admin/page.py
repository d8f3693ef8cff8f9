"""The admin page: three files, shown to everybody who reaches the listener, for they tell nothing without a login."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Final

from flask import Response, redirect, request
from werkzeug import Response as AnyResponse

from resilience.adapters.admin.access import is_there

__all__ = ["FILES", "redirect_to_page", "show_file"]

FILES: Final = {
    "": ("page.html", "text/html"),
    "page.js": ("page.js", "text/javascript"),
    "page.css": ("page.css", "text/css"),
}
"""What is served under which name, and as what."""

_FOLDER: Final = Path(__file__).parent
_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
_FIELDS: Final = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def show_file(name: str = "") -> AnyResponse:
    """One of the files of the page, under a policy that lets nothing else run in it, whatever somebody wrote as a reason."""
    is_there()
    content, tag = _read(FILES[name][0])
    response = Response(content, mimetype=FILES[name][1], headers=_FIELDS)
    response.set_etag(tag)
    return response.make_conditional(request)


def redirect_to_page() -> AnyResponse:
    """To the page's own address: what it refers to lies beside it."""
    is_there()
    answer = redirect(f"{request.path.rpartition('/')[2]}/", code=308)
    answer.autocorrect_location_header = False  # relative: a proxy may have it under another name
    return answer


@functools.cache
def _read(name: str) -> tuple[bytes, str]:
    content = (_FOLDER / name).read_bytes()
    return content, hashlib.sha256(content).hexdigest()[:32]
