from __future__ import annotations

import flask
import pytest
from flask.testing import FlaskClient

from service.lifecycle import Checks, Lifecycle
from service.middleware.listener import ON_ADMIN_LISTENER, Listener
from service.middleware.recovery import Recovery
from service.routes.health import create_blueprint
from tests.support.edge import serve

PUBLIC, ADMIN = "8000", "8001"


@pytest.fixture
def client() -> FlaskClient:
    app = serve([Recovery(), Listener(admin_port=int(ADMIN))], thing=lambda: "api")
    app.register_blueprint(create_blueprint(Checks([]), Lifecycle()))
    admin = flask.Blueprint("admin", __name__, url_prefix="/admin")
    admin.add_url_rule("/circuits", "circuits", lambda: "admin")
    app.register_blueprint(admin)
    app.add_url_rule("/metrics", "metrics", lambda: "metrics")
    app.add_url_rule("/metrical", "metrical", lambda: "api")
    return app.test_client()


@pytest.mark.parametrize(
    ("port", "path", "status"),
    [
        (PUBLIC, "/thing", 200),
        (PUBLIC, "/livez", 200),
        (PUBLIC, "/admin/circuits", 404),
        (PUBLIC, "/admin", 404),
        (PUBLIC, "/admin/", 404),
        (PUBLIC, "/%61dmin/circuits", 404),
        (PUBLIC, "/metrics", 404),
        (PUBLIC, "/metrical", 200),
        (ADMIN, "/thing", 404),
        (ADMIN, "/livez", 200),
        (ADMIN, "/admin/circuits", 200),
        (ADMIN, "/admin/other", 404),
        (ADMIN, "/metrics", 200),
        (ADMIN, "/metrical", 404),
        (ADMIN, "/administration", 404),
        ("80", "/thing", 200),
        ("80", "/admin/circuits", 404),
    ],
)
def test_each_listener_has_its_own_surface_and_both_have_health(
    client: FlaskClient, port: str, path: str, status: int
) -> None:
    assert status == client.get(path, environ_overrides={"SERVER_PORT": port}).status_code


def test_the_host_field_does_not_open_the_admin_surface(client: FlaskClient) -> None:
    headers = {"Host": f"localhost:{ADMIN}", "X-Forwarded-Port": ADMIN, "X-Forwarded-Host": f"localhost:{ADMIN}"}
    response = client.get("/admin/circuits", headers=headers, environ_overrides={"SERVER_PORT": PUBLIC})
    assert 404 == response.status_code


@pytest.mark.parametrize(("method", "path"), [("POST", "/admin/circuits"), ("OPTIONS", "/admin/circuits")])
def test_not_even_a_wrong_method_gives_the_admin_surface_away(client: FlaskClient, method: str, path: str) -> None:
    response = client.open(path, method=method, environ_overrides={"SERVER_PORT": PUBLIC})
    assert 404 == response.status_code
    assert "Allow" not in response.headers


def test_not_even_doubled_slashes_give_the_admin_surface_away(client: FlaskClient) -> None:
    overrides = {"SERVER_PORT": PUBLIC, "PATH_INFO": "//admin//circuits"}
    assert 404 == client.get("/", environ_overrides=overrides).status_code


def test_a_hidden_path_looks_like_an_unknown_one(client: FlaskClient) -> None:
    hidden = client.get("/admin/circuits", environ_overrides={"SERVER_PORT": PUBLIC})
    unknown = client.get("/nothing/here/at/all", environ_overrides={"SERVER_PORT": PUBLIC})
    assert hidden.json is not None
    assert unknown.json is not None
    assert {**unknown.json, "instance": ""} == {**hidden.json, "instance": ""}
    assert list(unknown.headers.keys()) == list(hidden.headers.keys())


@pytest.mark.parametrize(("on_admin_listener", "port", "status"), [(False, ADMIN, 404), (True, PUBLIC, 200)])
def test_what_the_worker_knows_counts_more_than_the_port(
    client: FlaskClient, on_admin_listener: bool, port: str, status: int
) -> None:
    overrides = {ON_ADMIN_LISTENER: on_admin_listener, "SERVER_PORT": port}
    assert status == client.get("/admin/circuits", environ_overrides=overrides).status_code
