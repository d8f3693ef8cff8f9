from __future__ import annotations

import flask
import pytest
import structlog

from service.middleware.request_id import RequestId
from tests.support.edge import serve


@pytest.mark.parametrize("given", ["a", "Req-1.2_3", "x" * 128])
def test_a_plain_id_is_taken_and_echoed(given: str) -> None:
    app = serve([RequestId()], thing=lambda: flask.g.request_id)
    response = app.test_client().get("/thing", headers={"X-Request-ID": given})
    assert (given, given) == (response.text, response.headers["X-Request-ID"])


@pytest.mark.parametrize("given", ["", "x" * 129, "two words", 'a"b', "a;b", "a,b", "ümlaut", "a\tb"])
def test_anything_else_is_replaced(given: str) -> None:
    app = serve([RequestId()], thing=lambda: flask.g.request_id)
    response = app.test_client().get("/thing", headers={"X-Request-ID": given})
    made = response.headers["X-Request-ID"]
    assert response.text == made
    assert made != given
    assert 32 == len(made)


def test_each_request_without_an_id_gets_another() -> None:
    client = serve([RequestId()], thing=lambda: "").test_client()
    assert 20 == len({client.get("/thing").headers["X-Request-ID"] for _ in range(20)})


def test_every_line_that_is_logged_meanwhile_carries_the_id() -> None:
    app = serve([RequestId()], thing=lambda: structlog.contextvars.get_contextvars())
    response = app.test_client().get("/thing", headers={"X-Request-ID": "abc"})
    assert {"request_id": "abc"} == response.json
