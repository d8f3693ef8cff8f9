"""Which views are open to callers without a token. All others are closed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

__all__ = ["admits_guests", "public"]

View = TypeVar("View", bound=Callable[..., object])


def public(view: View) -> View:
    """Let anyone call `view`. Put it outermost, below the route, so that other decorators do not hide the mark."""
    view.is_public = True  # type: ignore[attr-defined]  # the mark that authentication looks for on a view function
    return view


def admits_guests(view: View) -> View:
    """Let anyone call `view`, but check a token where there is one: a wrong one is refused. Put it where `public` would be."""
    view.admits_guests = True  # type: ignore[attr-defined]  # as above
    return view
