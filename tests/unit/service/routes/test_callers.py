"""Who is asking."""

from __future__ import annotations

import flask
import pytest

from service.errors import Unauthenticated
from service.model import Caller
from service.routes.callers import current_caller

app = flask.Flask("test")


def test_the_caller_is_who_authentication_found() -> None:
    with app.test_request_context():
        flask.g.caller = Caller(user_id=7, role="member")
        assert Caller(user_id=7, role="member") == current_caller()


@pytest.mark.parametrize("found", [None, "7"])
def test_a_request_without_a_caller_is_refused(found: object) -> None:
    with app.test_request_context():
        flask.g.caller = found
        with pytest.raises(Unauthenticated, match="Authorization: Bearer"):
            current_caller()


def test_a_request_that_nobody_authenticated_is_refused() -> None:
    with app.test_request_context(), pytest.raises(Unauthenticated):
        current_caller()
