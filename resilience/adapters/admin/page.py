"""The admin page: one file, shown to everybody who reaches the listener, for it tells nothing without a login."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from flask import redirect, request
from werkzeug import Response as AnyResponse

from resilience.adapters.admin.access import is_there
from resilience.adapters.pages import OneFilePage

__all__ = ["redirect_to_page", "show_page"]

_PAGE: Final = OneFilePage(Path(__file__).with_name("page.html"), images="'self' data:", forms="'self'")


def show_page() -> AnyResponse:
    """The page, under a policy that lets nothing run in it but its own script, whatever somebody wrote as a reason."""
    is_there()
    return _PAGE.answer()


def redirect_to_page() -> AnyResponse:
    """To the page's own address: what it asks for lies beside it."""
    is_there()
    answer = redirect(f"{request.path.rpartition('/')[2]}/", code=308)
    answer.autocorrect_location_header = False  # relative: a proxy may have it under another name
    return answer
