"""The demo page at `/`: one file, a chat over a WebSocket and live counters over server-sent events."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from pathlib import Path
from typing import Final, NamedTuple

from flask import Blueprint, Response, request

from service.routes.access import public

__all__ = ["create_demo_blueprint"]

FILE: Final = Path(__file__).with_name("demo.html")
PARTS: Final = {"script-src": rb"<script>(.*?)</script>", "style-src": rb"<style>(.*?)</style>"}
FIELDS: Final = {
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


def create_demo_blueprint() -> Blueprint:
    """The route of the page, which everybody may see: what it shows is asked for as a guest."""
    blueprint = Blueprint("demo", __name__)

    @blueprint.get("/")
    @public
    def show_page() -> Response:
        page = _read()
        response = Response(page.content, mimetype="text/html", headers=FIELDS)
        response.headers["Content-Security-Policy"] = page.policy
        response.set_etag(page.tag)
        response.make_conditional(request)
        return response

    return blueprint


@functools.cache
def _read() -> _Page:
    content = FILE.read_bytes()
    policy = (
        "default-src 'none'",
        *(f"{directive} {_hashes(pattern, content)}" for directive, pattern in PARTS.items()),
        "img-src data:",
        "connect-src 'self'",
        "form-action 'none'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
    return _Page(content, hashlib.sha256(content).hexdigest()[:32], "; ".join(policy))


def _hashes(pattern: bytes, content: bytes) -> str:
    """Its own script and style, by what they are: a hash of each (Content Security Policy Level 3, section 2.3.1)."""
    parts = re.findall(pattern, content, re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(part).digest()).decode() for part in parts)
    return " ".join(f"'sha256-{digest}'" for digest in digests)
