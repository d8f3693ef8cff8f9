from __future__ import annotations

import json
import types
from collections.abc import Callable
from typing import Any

import flask
import gevent
import pydantic
import pytest
import werkzeug.exceptions
from flask.testing import FlaskClient
from gunicorn.http import errors as parsing
from structlog.testing import capture_logs

from longconn import errors as parking
from resilience import CircuitBreaker, RateLimiter, Resilience
from resilience.errors import Rejected
from service import errors, logs, problems
from service.middleware.trace import Trace

SECRET = "SELECT password FROM users"


def serve(view: Callable[[], Any]) -> FlaskClient:
    """An application with the library and the problem documents, whose only view is `view`."""
    app = flask.Flask("test")
    app.config["MAX_CONTENT_LENGTH"] = 10
    Resilience(app)
    problems.register(app)

    @app.before_request
    def identify() -> None:
        flask.g.trace = Trace(trace_id="a" * 32, span_id="b" * 16, sampled=False)
        flask.g.request_id = "request-1"

    app.add_url_rule("/thing", "thing", view, methods=["GET", "POST"])
    return app.test_client()


def raising(error: BaseException) -> Callable[[], object]:
    def view() -> object:
        raise error

    return view


def test_an_error_is_a_document_with_everything_that_the_registry_says() -> None:
    error = errors.ValidationFailed("Two members are wrong.", fields=[("/name", "too long"), ("/email", "missing")])
    response = serve(raising(error)).get("/thing")
    assert (400, "application/problem+json") == (response.status_code, response.mimetype)
    assert {
        "type": "urn:seawall:problem:10001",
        "title": "Validation failed",
        "status": 400,
        "detail": "Two members are wrong.",
        "instance": "/thing",
        "code": 10001,
        "trace_id": "a" * 32,
        "request_id": "request-1",
        "errors": [{"pointer": "/name", "detail": "too long"}, {"pointer": "/email", "detail": "missing"}],
    } == response.json


@pytest.mark.parametrize("kind", errors.REGISTRY.values(), ids=lambda kind: kind.__name__)
def test_every_error_of_the_registry_has_its_own_status_and_code(kind: type[errors.ServiceError]) -> None:
    response = serve(raising(kind())).get("/thing")
    assert response.json is not None
    assert (kind.status, kind.status, kind.code) == (
        response.status_code,
        response.json["status"],
        response.json["code"],
    )


@pytest.mark.parametrize(("seconds", "field"), [(0.0, "1"), (0.01, "1"), (1.0, "1"), (1.2, "2"), (59.5, "60")])
def test_retry_after_is_never_early_and_never_at_once(seconds: float, field: str) -> None:
    response = serve(raising(errors.DatabaseBusy("busy", retry_after=seconds))).get("/thing")
    assert field == response.headers["Retry-After"]


def test_without_a_wait_that_helps_there_is_no_retry_after() -> None:
    assert "Retry-After" not in serve(raising(errors.NotFound())).get("/thing").headers


def test_an_error_document_may_not_be_stored() -> None:
    assert "no-store" == serve(raising(errors.NotFound())).get("/thing").headers["Cache-Control"]


def test_an_unknown_path_is_the_same_kind_of_document() -> None:
    response = serve(raising(errors.NotFound())).get("/other")
    assert response.json is not None
    assert (404, 10002, "/other") == (response.status_code, response.json["code"], response.json["instance"])


def test_a_wrong_method_names_the_right_ones() -> None:
    response = serve(raising(errors.NotFound())).delete("/thing")
    assert response.json is not None
    assert (405, 10005) == (response.status_code, response.json["code"])
    assert {"GET", "HEAD", "OPTIONS", "POST"} == set(response.headers["Allow"].split(", "))
    assert "GET, HEAD" in response.json["detail"]


def test_a_body_that_is_too_large_is_told_the_limit() -> None:
    response = serve(lambda: flask.request.get_data()).post("/thing", data=b"x" * 11)
    assert response.json is not None
    assert (413, 10007) == (response.status_code, response.json["code"])
    assert "10 bytes" in response.json["detail"]


@pytest.mark.parametrize(
    ("body", "media_type", "status", "code"),
    [(b"{", "application/json", 400, 10001), (b"a=b", "text/plain", 415, 10008)],
)
def test_a_body_that_is_not_json_is_told_so(body: bytes, media_type: str, status: int, code: int) -> None:
    response = serve(lambda: flask.request.get_json()).post("/thing", data=body, content_type=media_type)
    assert response.json is not None
    assert (status, code) == (response.status_code, response.json["code"])


def test_what_a_view_says_to_an_aborted_request_stays() -> None:
    response = serve(lambda: flask.abort(404, description="no circuit is named 'x'")).get("/thing")
    assert response.json is not None
    assert "no circuit is named 'x'" == response.json["detail"]


def test_a_status_outside_the_registry_is_kept() -> None:
    response = serve(raising(werkzeug.exceptions.RequestedRangeNotSatisfiable(length=7))).get("/thing")
    assert response.json is not None
    assert (416, 416, 10001) == (response.status_code, response.json["status"], response.json["code"])
    assert "bytes */7" == response.headers["Content-Range"]


def test_a_redirect_is_not_an_error() -> None:
    response = serve(lambda: flask.abort(flask.redirect("/elsewhere"))).get("/thing")
    assert (302, "/elsewhere") == (response.status_code, response.headers["Location"])


def test_a_missing_token_is_challenged() -> None:
    response = serve(raising(errors.Unauthenticated())).get("/thing")
    assert 'Bearer realm="seawall"' == response.headers["WWW-Authenticate"]


def test_a_token_that_does_not_hold_is_challenged_as_such() -> None:
    def view() -> object:
        flask.g.token_given = True
        raise errors.Unauthenticated

    response = serve(view).get("/thing")
    assert 'Bearer realm="seawall", error="invalid_token"' == response.headers["WWW-Authenticate"]


def test_a_challenge_made_elsewhere_stays() -> None:
    challenge = werkzeug.datastructures.WWWAuthenticate("bearer", {"realm": "admin"})
    response = serve(raising(werkzeug.exceptions.Unauthorized(www_authenticate=challenge))).get("/thing")
    assert ["Bearer realm=admin"] == response.headers.getlist("WWW-Authenticate")


def test_a_rate_limit_names_its_policy_and_the_wait() -> None:
    limiter = RateLimiter("1/minute", burst=1, name="orders", key="someone")

    def view() -> object:
        limiter.acquire()
        limiter.acquire()
        return "unreached"

    response = serve(view).get("/thing")
    assert response.json is not None
    assert (429, 10029, ["orders"]) == (response.status_code, response.json["code"], response.json["violated-policies"])
    assert "https://iana.org/assignments/http-problem-types#quota-exceeded" == response.json["type"]
    assert 58 <= int(response.headers["Retry-After"]) <= 60


def test_an_open_circuit_is_a_503_with_the_time_until_it_lets_calls_through() -> None:
    breaker = CircuitBreaker(name="payments", fail_max=1, reset_timeout=30.0)
    breaker.open()
    response = serve(lambda: breaker.call(lambda: "unreached")).get("/thing")
    assert response.json is not None
    assert (503, 20004) == (response.status_code, response.json["code"])
    assert 29 <= int(response.headers["Retry-After"]) <= 30
    assert "payments" in response.json["detail"]


def test_any_other_refusal_of_the_library_is_a_503() -> None:
    response = serve(raising(Rejected("no", policy="bulkhead", retry_after=None))).get("/thing")
    assert response.json is not None
    assert (503, 20009) == (response.status_code, response.json["code"])
    assert "Retry-After" not in response.headers


@pytest.mark.parametrize("error", [ValueError(SECRET), KeyError(SECRET), RuntimeError(SECRET)])
def test_an_unexpected_error_is_logged_with_its_stack_and_says_nothing_of_itself(error: Exception) -> None:
    with capture_logs() as logged:
        response = serve(raising(error)).get("/thing")
    assert response.json is not None
    assert (500, 20000) == (response.status_code, response.json["code"])
    assert SECRET not in response.text
    assert [("error", "unexpected error", error)] == [(e["log_level"], e["event"], e["exc_info"]) for e in logged]


def test_an_error_of_a_model_is_a_fault_of_ours_and_does_not_show_its_input() -> None:
    def view() -> object:
        return pydantic.TypeAdapter(int).validate_python(SECRET)

    response = serve(view).get("/thing")
    assert response.json is not None
    assert (500, 20000) == (response.status_code, response.json["code"])
    assert SECRET not in response.text


def test_a_fault_of_the_database_is_logged_with_its_cause_and_does_not_tell() -> None:
    error = errors.DatabaseFailed()
    error.__cause__ = ValueError(SECRET)
    with capture_logs() as logged:
        response = serve(raising(error)).get("/thing")
    assert SECRET not in response.text
    assert [("error", error, "ValueError")] == [(e["log_level"], e["exc_info"], e["cause"]) for e in logged]


def test_being_busy_is_logged_without_a_stack() -> None:
    with capture_logs() as logged:
        serve(raising(errors.DatabaseBusy("busy"))).get("/thing")
    assert [("warning", False)] == [(entry["log_level"], "exc_info" in entry) for entry in logged]


def test_what_the_caller_did_wrong_is_not_logged_as_a_failure() -> None:
    with capture_logs() as logged:
        serve(raising(errors.NotFound())).get("/thing")
    assert [] == logged


def test_an_answer_to_head_has_no_body() -> None:
    response = serve(raising(errors.NotFound())).head("/thing")
    assert (404, b"") == (response.status_code, response.data)


def refused(error: BaseException, request: object = None) -> tuple[bytes, dict[str, Any]]:
    """The head and the document of the response to what never reached the application."""
    head, _, body = problems.refusal(error, request, ("192.0.2.1", 4711)).partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in head.split(b"\r\n")
    document: dict[str, Any] = json.loads(body)
    return head, document


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (parsing.InvalidRequestLine("<script>"), 400, 10001),
        (parsing.InvalidHeader("<script>"), 400, 10001),
        (parsing.LimitRequestLine(9000, 8190), 414, 10001),
        (parsing.LimitRequestHeaders("<script>"), 431, 10031),
        (parsing.ExpectationFailed("<script>"), 417, 10001),
        (parsing.ForbiddenProxyRequest("<script>"), 403, 10001),
        (parsing.UnsupportedTransferCoding("<script>"), 501, 20000),
        (parsing.ConfigurationProblem("<script>"), 500, 20000),
        (parsing.InvalidResponseHeader("<script>"), 500, 20000),
        (ValueError("<script>"), 500, 20000),
        (gevent.Timeout(1), 500, 20000),
        (parking.HeadTooSlow("<script>"), 408, 10009),
        (parking.BodyTooSlow("<script>"), 408, 10009),
        (parking.BodyTooLarge("<script>"), 413, 10007),
        (parking.HeadsTooLarge("<script>"), 431, 10031),
        (parking.ConnectionRefused("<script>"), 503, 20009),
        (parking.ClientConnectionsExceeded("<script>"), 429, 10029),
        (parking.RequestTooLong("<script>"), 504, 20007),
        (parking.Refusal("<script>"), 400, 10001),
    ],
)
def test_what_never_reached_the_application_is_answered_and_logged_in_the_same_form(
    error: BaseException, status: int, code: int
) -> None:
    logs.configure(level="debug")
    with capture_logs() as logged:
        head, document = refused(error)
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    assert (status, code) == (document["status"], document["code"])
    assert "script" not in str(document)
    line = logged[-1]
    assert ("request", None, status, "192.0.2.1") == (line["event"], line["route"], line["status"], line["client"])
    assert (document["trace_id"], document["request_id"]) == (line["trace_id"], line["request_id"])
    assert (status == 500) == any(entry["log_level"] == "error" for entry in logged)


def test_no_two_refusals_have_the_same_ids() -> None:
    documents = [refused(parsing.InvalidRequestLine(""))[1] for _ in range(2)]
    assert 2 == len({document["trace_id"] for document in documents})
    assert 2 == len({document["request_id"] for document in documents})


@pytest.mark.parametrize(("wait", "field"), [(0, b"1"), (3, b"3"), (None, None)])
def test_who_finds_no_room_is_told_when_to_come_again(wait: int | None, field: bytes | None) -> None:
    head, _ = refused(parking.ConnectionRefused("no room", retry_after=wait))
    found = [line.partition(b": ")[2] for line in head.split(b"\r\n") if line.startswith(b"Retry-After")]
    assert ([] if field is None else [field]) == found


def test_a_refusal_of_a_head_request_has_no_body() -> None:
    request = types.SimpleNamespace(method="HEAD", path="/thing")
    head, _, body = problems.refusal(parking.RequestTooLong(""), request, None).partition(b"\r\n\r\n")
    assert b"" == body
    assert b"Content-Length: " in head


@pytest.mark.parametrize(
    ("error", "request_known", "level"),
    [
        (parking.ConnectionRefused(""), False, "debug"),
        (parking.ConnectionRefused(""), True, "info"),
        (parking.HeadTooSlow(""), False, "info"),
    ],
)
def test_who_is_turned_away_at_the_door_does_not_fill_the_log(
    error: Exception, request_known: bool, level: str
) -> None:
    logs.configure(level="debug")
    with capture_logs() as logged:
        problems.refusal(error, types.SimpleNamespace() if request_known else None, None)
    assert [level] == [entry["log_level"] for entry in logged]
