"""The demo page at `/`: one file, a chat over a WebSocket and live counters over server-sent events."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from flask import Blueprint, Response

from resilience.adapters.pages import OneFilePage
from service.routes.access import public

__all__ = ["create_demo_blueprint"]

PAGE: Final = OneFilePage(Path(__file__).with_name("demo.html"), images="data:", forms="'none'")


def create_demo_blueprint() -> Blueprint:
    """The route of the page, which everybody may see: what it shows is asked for as a guest."""
    blueprint = Blueprint("demo", __name__)

    @blueprint.get("/")
    @public
    def show_page() -> Response:
        return PAGE.answer()

    return blueprint
