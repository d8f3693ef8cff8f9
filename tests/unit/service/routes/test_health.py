from __future__ import annotations

from collections.abc import Callable

import flask
import pytest
from flask.testing import FlaskClient

from service.lifecycle import Check, Checks, Lifecycle
from service.routes.health import create_blueprint


def fail() -> None:
    raise ValueError("secret host name")


def serve(lifecycle: Lifecycle, **checks: tuple[bool, Callable[[], object]]) -> FlaskClient:
    app = flask.Flask("test")
    chosen = [Check(name, critical, 1.0, function) for name, (critical, function) in checks.items()]
    app.register_blueprint(create_blueprint(Checks(chosen), lifecycle))
    return app.test_client()


@pytest.fixture
def lifecycle() -> Lifecycle:
    return Lifecycle()


def test_a_live_process_says_so_without_running_any_check(lifecycle: Lifecycle) -> None:
    response = serve(lifecycle, database=(True, fail)).get("/livez")
    assert (200, {"status": "live"}) == (response.status_code, response.json)


def test_a_draining_process_is_still_alive(lifecycle: Lifecycle) -> None:
    lifecycle.start_draining()
    assert 200 == serve(lifecycle).get("/livez").status_code


def test_a_process_is_ready_when_its_critical_checks_pass(lifecycle: Lifecycle) -> None:
    response = serve(lifecycle, database=(True, lambda: None), cache=(False, fail)).get("/readyz")
    assert (200, {"status": "ready"}) == (response.status_code, response.json)


def test_a_process_is_not_ready_when_a_critical_check_fails(lifecycle: Lifecycle) -> None:
    response = serve(lifecycle, database=(True, fail)).get("/readyz")
    assert (503, {"status": "failing"}) == (response.status_code, response.json)


def test_a_draining_process_is_not_ready_and_does_not_run_checks_to_say_so(lifecycle: Lifecycle) -> None:
    runs: list[int] = []
    client = serve(lifecycle, database=(True, lambda: runs.append(1)))
    lifecycle.start_draining()
    response = client.get("/readyz")
    assert (503, {"status": "draining"}, []) == (response.status_code, response.json, runs)


def test_verbose_readiness_lists_the_critical_checks_without_what_they_said(lifecycle: Lifecycle) -> None:
    response = serve(lifecycle, database=(True, fail), cache=(False, fail)).get("/readyz?verbose")
    assert response.json is not None
    assert {"database"} == response.json["checks"].keys()
    assert "failed" == response.json["checks"]["database"]["state"]
    assert "secret" not in response.text


@pytest.mark.parametrize(
    ("critical", "status", "word"), [(True, 503, "failing"), (False, 200, "ok")], ids=["critical", "optional"]
)
def test_health_reports_every_check_and_fails_for_critical_ones(
    lifecycle: Lifecycle, critical: bool, status: int, word: str
) -> None:
    response = serve(lifecycle, database=(True, lambda: None), cache=(critical, fail)).get("/healthz")
    assert response.json is not None
    assert (status, word) == (response.status_code, response.json["status"])
    states = {name: check["state"] for name, check in response.json["checks"].items()}
    assert {"database": "ok", "cache": "failed"} == states


def test_health_says_that_the_process_drains(lifecycle: Lifecycle) -> None:
    lifecycle.start_draining()
    response = serve(lifecycle).get("/healthz")
    assert (200, "draining") == (response.status_code, response.json and response.json["status"])


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/healthz"])
def test_no_answer_may_be_stored(lifecycle: Lifecycle, path: str) -> None:
    assert "no-store" == serve(lifecycle).get(path).headers["Cache-Control"]
