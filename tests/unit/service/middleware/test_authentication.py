from __future__ import annotations

import io
from typing import Any

import flask
import pytest
from flask.testing import FlaskClient

from service.errors import Unauthenticated
from service.lifecycle import Checks, Lifecycle
from service.middleware.authentication import Authentication
from service.middleware.recovery import Recovery
from service.model import Caller
from service.routes.access import public
from service.routes.health import create_blueprint
from tests.support.edge import serve

ALICE = Caller(user_id=7, role="member")


class OneToken:
    """Knows one token."""

    def verify(self, token: str) -> Caller:
        if token != "good":
            raise Unauthenticated("The token's signature is not ours.")
        return ALICE


@pytest.fixture
def client() -> FlaskClient:
    def body() -> Any:
        return flask.request.get_data()

    def gone() -> Any:
        raise Unauthenticated

    app = serve(
        [Recovery(), Authentication(OneToken())],
        private=lambda: {"user_id": flask.g.caller.user_id, "role": flask.g.caller.role},
        open=public(lambda: ("caller" in flask.g and "known") or "anyone"),
        body=body,
        gone=gone,
    )
    app.register_blueprint(create_blueprint(Checks([]), Lifecycle()))
    return app.test_client()


def ask(client: FlaskClient, authorization: str | None, path: str = "/private") -> Any:
    return client.get(path, headers={} if authorization is None else {"Authorization": authorization})


@pytest.mark.parametrize("field", ["Bearer good", "bearer good", "BEARER  good "])
def test_a_valid_token_tells_the_view_who_is_asking(client: FlaskClient, field: str) -> None:
    assert {"user_id": 7, "role": "member"} == ask(client, field).json


@pytest.mark.parametrize("field", [None, "", "Basic Z29vZDpnb29k", "good", "Bearer", "Bearer ", "Token good"])
def test_without_a_bearer_token_the_answer_asks_for_one(client: FlaskClient, field: str | None) -> None:
    response = ask(client, field)
    assert (401, 10003) == (response.status_code, response.json["code"])
    assert 'Bearer realm="seawall"' == response.headers["WWW-Authenticate"]


@pytest.mark.parametrize("field", ["Bearer bad", "Bearer good,Bearer good", "Bearer good good"])
def test_a_token_that_does_not_hold_is_called_invalid(client: FlaskClient, field: str) -> None:
    response = ask(client, field)
    assert 401 == response.status_code
    assert 'Bearer realm="seawall", error="invalid_token"' == response.headers["WWW-Authenticate"]


def test_a_view_that_finds_the_tokens_user_gone_calls_the_token_invalid(client: FlaskClient) -> None:
    response = ask(client, "Bearer good", "/gone")
    assert 401 == response.status_code
    assert 'error="invalid_token"' in response.headers["WWW-Authenticate"]


@pytest.mark.parametrize("field", [None, "Bearer bad", "Bearer good"])
def test_a_public_view_does_not_look_at_tokens(client: FlaskClient, field: str | None) -> None:
    assert "anyone" == ask(client, field, "/open").text


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/healthz"])
def test_health_needs_no_token(client: FlaskClient, path: str) -> None:
    assert 200 == ask(client, None, path).status_code


def test_an_unknown_path_is_404_for_everyone(client: FlaskClient) -> None:
    assert 404 == ask(client, None, "/nothing").status_code


def test_a_wrong_method_is_405_for_everyone(client: FlaskClient) -> None:
    assert 405 == client.delete("/private").status_code


def test_a_refused_request_is_answered_before_its_body_is_read(client: FlaskClient) -> None:
    stream = io.BytesIO(b"12345")
    response = client.post("/body", input_stream=stream, headers={"Content-Length": "5"})
    assert (401, 0) == (response.status_code, stream.tell())
