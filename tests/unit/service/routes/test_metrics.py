from __future__ import annotations

import flask
import pytest
from flask.testing import FlaskClient

from service import problems
from service.routes.metrics import create_metrics_blueprint

TOKEN = "testing-only-token-of-the-administrator"


def serve(*, on_admin_listener: bool = True) -> FlaskClient:
    app = flask.Flask("test")
    problems.register(app)
    app.register_blueprint(
        create_metrics_blueprint(
            lambda: b"requests_total 1.0\n",
            media_type="text/plain; version=0.0.4",
            token_is_right=lambda given: given == TOKEN,
            on_admin_listener=lambda: on_admin_listener,
        )
    )
    return app.test_client()


def test_with_the_admin_token_they_are_what_is_rendered() -> None:
    response = serve().get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
    assert (200, b"requests_total 1.0\n") == (response.status_code, response.data)
    assert "text/plain; version=0.0.4" == response.content_type
    assert "no-store" == response.headers["Cache-Control"]


def test_the_word_before_the_token_is_read_in_any_case() -> None:
    assert 200 == serve().get("/metrics", headers={"Authorization": f"bearer {TOKEN}"}).status_code


@pytest.mark.parametrize("field", [None, "", "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}é"])
def test_without_it_the_caller_is_challenged(field: str | None) -> None:
    response = serve().get("/metrics", headers={} if field is None else {"Authorization": field})
    assert (401, "application/problem+json") == (response.status_code, response.mimetype)
    assert "Bearer realm=admin" == response.headers["WWW-Authenticate"]
    assert b"requests_total" not in response.data


def test_on_any_other_listener_they_do_not_exist() -> None:
    response = serve(on_admin_listener=False).get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
    assert 404 == response.status_code
