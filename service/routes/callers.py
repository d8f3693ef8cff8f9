"""Who is making the current request."""

from __future__ import annotations

from flask import g

from service.errors import Unauthenticated
from service.model import Caller

__all__ = ["current_caller"]


def current_caller() -> Caller:
    """The caller whose token came with the request. Raises `Unauthenticated` when authentication saw none."""
    caller = g.get("caller")
    if not isinstance(caller, Caller):
        raise Unauthenticated("This needs a token: sign in, and send it as Authorization: Bearer <token>.")
    return caller
