from __future__ import annotations

from collections.abc import Callable

import flask
import gevent
import pytest
from structlog.testing import capture_logs

from resilience import RateLimiter, Resilience
from service import errors, logs, problems
from service.app import Service
from service.middleware.access_log import AccessLog
from service.middleware.link import Middleware, Proceed
from service.middleware.rate_limit import RateLimit
from service.middleware.recovery import Recovery
from tests.support.edge import serve


def raising(error: BaseException) -> Middleware:
    def link(proceed: Proceed) -> flask.Response:
        raise error

    return link


def view_raising(error: BaseException) -> Callable[[], str]:
    def view() -> str:
        raise error

    return view


@pytest.mark.parametrize(
    ("error", "code"),
    [(errors.RequestTimedOut(), 20007), (errors.Unauthenticated(), 10003), (ValueError("secret"), 20000)],
)
def test_what_a_link_raises_is_answered_like_what_a_view_raises(error: Exception, code: int) -> None:
    by_link = serve([Recovery(), raising(error)]).test_client().get("/thing")
    by_view = serve([Recovery()], thing=view_raising(error)).test_client().get("/thing")
    assert by_link.json == by_view.json
    assert by_link.json is not None
    assert code == by_link.json["code"]
    assert "secret" not in by_link.text


def test_refusals_carry_what_is_added_after_every_request() -> None:
    limiter = RateLimiter("1/minute", burst=1, name="default")
    app = Service([Recovery(), RateLimit(limiter)])
    Resilience(app)
    problems.register(app)
    client = app.test_client()
    assert [404, 429] == [client.get("/thing").status_code for _ in range(2)]
    response = client.get("/thing")
    assert '"default";r=0' in response.headers["RateLimit"]
    assert "RateLimit-Policy" in response.headers
    assert "Retry-After" in response.headers


def test_a_hook_that_fails_after_the_request_is_a_500_and_logged() -> None:
    logs.configure()
    app = serve([AccessLog(), Recovery()], thing=lambda: "fine")

    @app.after_request
    def broken(response: flask.Response) -> flask.Response:
        raise ValueError("secret")

    with capture_logs() as logged:
        response = app.test_client().get("/thing", buffered=True)
    assert 500 == response.status_code
    assert "secret" not in response.text
    assert "unexpected error" == logged[0]["event"]
    assert ("request", 500) == (logged[-1]["event"], logged[-1]["status"])


def test_a_timeout_that_someone_left_uncaught_is_a_500() -> None:
    app = serve([Recovery()], thing=view_raising(gevent.Timeout(3)))
    with capture_logs() as logged:
        response = app.test_client().get("/thing")
    assert response.json is not None
    assert (500, 20000) == (response.status_code, response.json["code"])
    assert "timeout of 3 s" in str(logged[0]["exc_info"])


@pytest.mark.parametrize(
    "error", [SystemExit(), gevent.GreenletExit(), KeyboardInterrupt()], ids=lambda e: type(e).__name__
)
def test_what_ends_a_greenlet_or_the_process_passes(error: BaseException) -> None:
    app = serve([Recovery()], thing=view_raising(error))
    with pytest.raises(type(error)):
        app.test_client().get("/thing")
