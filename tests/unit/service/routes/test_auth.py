"""`POST /api/v1/auth/token`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flask
import pytest
from flask.testing import FlaskClient

from resilience import MemoryStorage, RateLimiter, Resilience
from service.data.users import SqlUserRepository
from service.model import Caller
from service.routes.auth import create_auth_blueprint
from service.security.tokens import TokenSigner
from service.services.auth import AuthService
from service.services.users import NewUser, add_user
from tests.support.database import PASSWORD, migrated_sqlite, quick_hasher
from tests.support.routes import application

SIGNER = TokenSigner("a-secret-of-at-least-thirty-two-bytes", lifetime=600)
TRIES = 3


@pytest.fixture
def app(tmp_path: Path) -> Iterator[flask.Flask]:
    database = migrated_sqlite(tmp_path)
    users, hasher = SqlUserRepository(database), quick_hasher()
    add_user(users, hasher, NewUser(name="Ann", email="ann@example.com", role="admin", password=PASSWORD))
    limiter = RateLimiter(f"{TRIES}/hour", name="login", storage=MemoryStorage())
    app = application(create_auth_blueprint(AuthService(users, hasher, SIGNER), limiter))
    Resilience(app, storage=MemoryStorage())  # the limiter asks it who is calling
    yield app
    app.extensions["resilience"].close()
    hasher.close()
    database.close()


@pytest.fixture
def client(app: flask.Flask) -> FlaskClient:
    return app.test_client()


def sign_in(client: FlaskClient, username: object = "Ann", password: object = PASSWORD) -> Any:
    return client.post("/api/v1/auth/token", json={"username": username, "password": password})


def test_a_name_and_its_password_give_a_bearer_token_that_nobody_keeps(client: FlaskClient) -> None:
    response = sign_in(client)
    answer = response.get_json()
    token = answer.pop("access_token")
    assert (200, {"token_type": "Bearer", "expires_in": 600}) == (response.status_code, answer)
    assert Caller(user_id=1, role="admin") == SIGNER.verify(token)
    assert "no-store" == response.headers["Cache-Control"]


def test_a_wrong_name_and_a_wrong_password_get_the_same_answer(client: FlaskClient) -> None:
    answers = [sign_in(client, "Ann", "wrong"), sign_in(client, "Bob")]
    assert [401, 401] == [answer.status_code for answer in answers]
    assert answers[0].get_json() == answers[1].get_json()


def test_tries_for_one_name_are_limited_in_whatever_case(client: FlaskClient) -> None:
    statuses = [sign_in(client, name, "wrong").status_code for name in ("Ann", "ann", "ANN", "aNN")]
    assert [401, 401, 401, 429] == statuses
    assert 429 == sign_in(client).status_code


def test_tries_for_one_name_do_not_count_for_another(client: FlaskClient) -> None:
    statuses = [sign_in(client, name, "wrong").status_code for name in ("Ann", "Ann", "Ann", "Bob")]
    assert [401, 401, 401, 401] == statuses


def test_names_that_nobody_can_have_count_together(client: FlaskClient) -> None:
    statuses = [sign_in(client, name, "wrong").status_code for name in ("", "a b", "x" * 1000, "ä")]
    assert [401, 401, 401, 429] == statuses


def test_bodies_that_are_no_credentials_are_refused_without_using_up_tries(client: FlaskClient) -> None:
    for _ in range(TRIES + 1):
        response = client.post("/api/v1/auth/token", json={"username": 7, "extra": PASSWORD})
        assert 400 == response.status_code
    pointers = {error["pointer"] for error in response.get_json()["errors"]}
    assert {"/password", "/username", "/extra"} == pointers
    assert PASSWORD not in response.text
    assert 200 == sign_in(client).status_code


def test_another_type_of_body_is_refused(client: FlaskClient) -> None:
    response = client.post("/api/v1/auth/token", data={"username": "Ann", "password": PASSWORD})
    assert 415 == response.status_code


def test_signing_in_is_open_to_everyone(app: flask.Flask) -> None:
    assert getattr(app.view_functions["auth.issue_token"], "is_public", False) is True
