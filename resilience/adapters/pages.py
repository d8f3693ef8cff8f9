"""A page that is one file, under a policy that lets nothing run in it but its own script."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from pathlib import Path
from typing import Final, NamedTuple

from flask import Response, request

__all__ = ["OneFilePage"]

_PARTS: Final = {"script-src": rb"<script>(.*?)</script>", "style-src": rb"<style>(.*?)</style>"}
_FIELDS: Final = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


class _Content(NamedTuple):
    text: bytes
    tag: str
    policy: str


class OneFilePage:
    """The page in `file`, which is read when it is first asked for. `images` and `forms` are the sources that its policy allows
    for these (Content Security Policy Level 3)."""

    def __init__(self, file: Path, *, images: str, forms: str) -> None:
        self._file = file
        self._images = images
        self._forms = forms

    def answer(self) -> Response:
        """The page, or 304 where the browser has it. Within a request."""
        content = self._content
        response = Response(content.text, mimetype="text/html", headers=_FIELDS)
        response.headers["Content-Security-Policy"] = content.policy
        response.set_etag(content.tag)
        response.make_conditional(request)
        return response

    @functools.cached_property
    def _content(self) -> _Content:
        text = self._file.read_bytes()
        policy = (
            "default-src 'none'",
            *(f"{directive} {_hashes(pattern, text)}" for directive, pattern in _PARTS.items()),
            f"img-src {self._images}",
            "connect-src 'self'",
            f"form-action {self._forms}",
            "base-uri 'none'",
            "frame-ancestors 'none'",
        )
        return _Content(text, hashlib.sha256(text).hexdigest()[:32], "; ".join(policy))


def _hashes(pattern: bytes, text: bytes) -> str:
    """Its own script and style, by what they are: a hash of each (section 2.3.1)."""
    parts = re.findall(pattern, text, re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(part).digest()).decode() for part in parts)
    return " ".join(f"'sha256-{digest}'" for digest in digests)
