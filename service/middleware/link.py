"""What a link of the chain is: called with `proceed`, which runs everything further in and returns its response."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from flask import Response

__all__ = ["Middleware", "Proceed"]

Proceed = Callable[[], "Response"]


class Middleware(Protocol):
    """One link of the chain."""

    def __call__(self, proceed: Proceed) -> Response:
        """Answer the current request, with the help of `proceed` or without."""
