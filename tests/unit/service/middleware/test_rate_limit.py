from __future__ import annotations

import flask
import pytest
from flask.testing import FlaskClient

from service.errors import TooManyRequests
from service.lifecycle import Checks, Lifecycle
from service.middleware.rate_limit import RateLimit
from service.middleware.recovery import Recovery
from service.routes.health import create_blueprint
from tests.support.edge import serve


class Empty:
    """A bucket without tokens."""

    def acquire(self) -> None:
        raise TooManyRequests


@pytest.fixture
def client() -> FlaskClient:
    app = serve([Recovery(), RateLimit(Empty())], thing=lambda: "")
    app.register_blueprint(create_blueprint(Checks([]), Lifecycle()))
    admin = flask.Blueprint("admin", __name__, url_prefix="/admin")
    admin.add_url_rule("/circuits", "circuits", lambda: "")
    app.register_blueprint(admin)
    return app.test_client()


@pytest.mark.parametrize("path", ["/thing", "/unknown"])
def test_every_path_is_limited_whether_or_not_it_exists(client: FlaskClient, path: str) -> None:
    assert 429 == client.get(path).status_code


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/healthz", "/admin/circuits"])
def test_probes_and_operators_are_never_limited(client: FlaskClient, path: str) -> None:
    assert 200 == client.get(path).status_code
