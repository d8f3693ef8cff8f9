"""The current request and its scratch space themselves, and not Flask's proxies for them.

Each look through a proxy takes longer than what most links of the chain do with what they see.
"""

from __future__ import annotations

from typing import Any, cast

import flask

__all__ = ["current_request", "current_scratch"]


def current_request() -> flask.Request:
    """What `flask.request` stands for."""
    return cast("flask.Request", cast("Any", flask.request)._get_current_object())  # noqa: SLF001 - documented for this


def current_scratch() -> Any:
    """What `flask.g` stands for."""
    return cast("Any", flask.g)._get_current_object()  # noqa: SLF001 - documented for this
