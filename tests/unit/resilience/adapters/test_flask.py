"""The Flask extension: decorators in views, fields, rejections, several applications in one process."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pybreaker
import pytest
from flask import Blueprint, Flask, Response, abort, copy_current_request_context, request
from flask.views import MethodView, View
from werkzeug.exceptions import HTTPException
from werkzeug.test import TestResponse

from resilience import (
    CircuitBreaker,
    Decision,
    Limit,
    MemoryStorage,
    RateLimited,
    RateLimiter,
    Rejected,
    Resilience,
    StorageUnavailable,
    circuit_breaker,
    rate_limit,
)
from resilience.adapters.flask import current_application
from resilience.adapters.peers import Peers
from resilience.core.limiter import Charge, Refund
from resilience.ports import Taker
from resilience.registry import PROCESS_REGISTRY
from resilience.scope import PROCESS, current_scope
from resilience.storage.state_address import open_state_storage
from resilience.storage.state_memory import MemoryStateStorage
from resilience.testing import FakeClock


@pytest.fixture(autouse=True)
def _empty_registry() -> Iterator[None]:
    PROCESS.forget()
    yield
    PROCESS_REGISTRY.clear()
    PROCESS.forget()


@rate_limit("2/minute", name="greeting")
def greet() -> str:
    return "hello"


def made(**options: Any) -> Flask:
    app = Flask("demo")
    app.get("/")(greet)
    Resilience(app, **{"storage": MemoryStorage(clock=FakeClock()), **options})
    return app


def test_a_view_is_limited_and_the_answers_say_so() -> None:
    client = made().test_client()
    first = client.get("/")
    assert (200, '"greeting";q=2;w=60', '"greeting";r=1;t=30') == (
        first.status_code, first.headers["RateLimit-Policy"], first.headers["RateLimit"]
    )  # fmt: skip
    client.get("/")
    refused = client.get("/")
    assert (429, "30", "application/problem+json") == (
        refused.status_code, refused.headers["Retry-After"], refused.content_type
    )  # fmt: skip
    assert ('"greeting";r=0;t=30', ["greeting"]) == (
        refused.headers["RateLimit"], refused.get_json()["violated-policies"]
    )  # fmt: skip


def test_every_client_address_has_a_bucket_of_its_own() -> None:
    client = made().test_client()
    addresses = ["192.0.2.1", "192.0.2.2", "192.0.2.1"]
    remaining = [client.get("/", environ_base={"REMOTE_ADDR": a}).headers["RateLimit"] for a in addresses]
    assert ['"greeting";r=1;t=30', '"greeting";r=1;t=30', '"greeting";r=0;t=60'] == remaining


def test_a_forged_forwarded_field_is_one_bucket_and_a_trusted_one_is_read() -> None:
    untrusting, trusting = made().test_client(), made(trusted_proxies=1).test_client()
    statuses = [untrusting.get("/", headers={"X-Forwarded-For": f"192.0.2.{n}"}).status_code for n in range(3)]
    assert [200, 200, 429] == statuses
    statuses = [trusting.get("/", headers={"X-Forwarded-For": f"192.0.2.{n}"}).status_code for n in range(3)]
    assert [200, 200, 200] == statuses


def test_fields_tell_each_policy_s_last_decision_once_however_many_there_were() -> None:
    app = made()
    per_message = RateLimiter("1000/second", name="messages")
    app.get("/many")(lambda: str([per_message.acquire().allowed for _ in range(500)]))
    client = app.test_client()
    with app.app_context():  # as every fixture does; `g` would outlive the request
        fields = [client.get("/many").headers["RateLimit-Policy"] for _ in range(3)]
    assert ['"messages";q=1000;w=1'] * 3 == fields


class One(View):
    decorators = [rate_limit("2/minute")]  # noqa: RUF012  # as Flask documents it

    def dispatch_request(self) -> str:
        return "one"


class Two(View):
    decorators = [rate_limit("1000/minute")]  # noqa: RUF012

    def dispatch_request(self) -> str:
        return "two"


def test_views_of_several_classes_have_a_bucket_each() -> None:
    app = made()
    app.add_url_rule("/one", view_func=One.as_view("one"))
    app.add_url_rule("/two", view_func=Two.as_view("two"))
    client = app.test_client()
    assert [200, 200, 429] == [client.get("/one").status_code for _ in range(3)]
    answer = client.get("/two")
    assert (200, '"two";q=1000;w=60') == (answer.status_code, answer.headers["RateLimit-Policy"])


def test_forgetting_the_extension_is_told_at_the_first_request() -> None:
    app = Flask("bare")
    app.testing = True
    app.get("/")(greet)
    with pytest.raises(RuntimeError, match=r"call Resilience\(app\)"):
        app.test_client().get("/")


def test_what_an_application_handled_before_stays_as_it_is() -> None:
    app = Flask("demo")
    app.register_error_handler(Rejected, lambda rejection: ("mine", 418))
    app.register_error_handler(pybreaker.CircuitBreakerError, lambda rejection: ("theirs", 419))
    Resilience(app, storage=MemoryStorage(clock=FakeClock()))
    app.get("/")(greet)
    opened = CircuitBreaker(name="opened")
    opened.open()
    app.get("/opened")(lambda: opened.call(str))
    client = app.test_client()
    assert [200, 200, 418] == [client.get("/").status_code for _ in range(3)]
    assert 419 == client.get("/opened").status_code


def test_applications_that_meet_in_one_folder_do_not_take_each_other_s_place(tmp_path: Path) -> None:
    folder = tmp_path / "peers"
    one, other = Flask("one"), Flask("other")
    for app in (one, other):
        Resilience(app, peer_directory=folder)
    assert 2 == len(list(folder.glob("*.sock")))
    with pytest.raises(ValueError, match="two applications of this process are named 'one'"):
        Resilience(Flask("one"), peer_directory=folder)
    for app in (one, other):
        app.extensions["resilience"].close()


def test_a_forked_worker_answers_from_its_first_request_on_and_serves_whatever_the_folder_is_like(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "peers"
    app = made(peer_directory=folder)
    child = os.fork()
    if child == 0:
        status = 1
        with contextlib.suppress(BaseException):
            served = app.test_client().get("/").status_code == 200
            found = any(path.name.startswith(f"{os.getpid()}.") for path in folder.glob("*.sock"))
            folder.chmod(0o755)
            other = Flask("other")
            other.get("/")(greet)
            Resilience(other)
            other.extensions["resilience"].peers = Peers(dict, directory=folder)
            status = 0 if served and found and other.test_client().get("/").status_code == 200 else 1
        os._exit(status)
    assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    app.extensions["resilience"].close()


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        ("draft", ["RateLimit-Policy", "RateLimit"]),
        ("legacy", ["X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset"]),
        ("off", []),
    ],
)
def test_which_fields_tell_of_limits_can_be_chosen(style: str, expected: list[str]) -> None:
    headers = made(headers=style).test_client().get("/").headers
    assert expected == [name for name, _ in headers if "RateLimit" in name]


def test_the_older_fields_tell_the_time_at_which_the_quota_is_whole() -> None:
    before = time.time()
    headers = made(headers="legacy").test_client().get("/").headers
    assert ("2", "1") == (headers["X-RateLimit-Limit"], headers["X-RateLimit-Remaining"])
    assert before + 30 <= int(headers["X-RateLimit-Reset"]) <= time.time() + 32


def test_fields_of_another_s_are_replaced() -> None:
    app = made()
    foreign = {"ratelimit": '"theirs";r=9', "X-RateLimit-Limit": "9", "Retry-After": "9", "X-Other": "kept"}
    app.add_url_rule("/proxied", "proxied", rate_limit("2/minute", name="ours")(lambda: ("hello", foreign)))
    headers = app.test_client().get("/proxied").headers
    assert ['"ours";r=1;t=30'] == headers.getlist("RateLimit")
    assert (None, "9", "kept") == (headers.get("X-RateLimit-Limit"), headers["Retry-After"], headers["X-Other"])


def test_an_open_circuit_is_a_503_with_retry_after() -> None:
    app = made()
    guarded = circuit_breaker("backend", fail_max=1, reset_timeout=7, open_time_jitter=0)(lambda: 1 / 0)
    app.get("/guarded")(lambda: str(guarded()))
    client = app.test_client()
    assert 500 == client.get("/guarded").status_code
    refused = client.get("/guarded")
    assert (503, "7", "Circuit open") == (
        refused.status_code, refused.headers["Retry-After"], refused.get_json()["title"]
    )  # fmt: skip


def test_the_application_may_render_rejections_itself() -> None:
    app = made()
    app.register_error_handler(Rejected, lambda rejection: (f"slow down, {rejection.policy}", rejection.status))
    client = app.test_client()
    answers = [client.get("/") for _ in range(3)]
    assert (429, "slow down, greeting") == (answers[2].status_code, answers[2].text)


def test_applications_in_one_process_keep_their_buckets_apart() -> None:
    one, other = made().test_client(), made().test_client()
    assert [200, 200, 429] == [one.get("/").status_code for _ in range(3)]
    assert 200 == other.get("/").status_code


def test_work_outside_of_requests_uses_the_first_application_s_storage() -> None:
    storage = MemoryStorage(clock=FakeClock())
    made(storage=storage)
    greet()
    assert 1 == len(storage)


def test_the_scope_of_a_request_is_its_application() -> None:
    app = made()
    with app.test_request_context(environ_base={"REMOTE_ADDR": "192.0.2.9"}):
        assert current_application() is current_scope()
        assert "192.0.2.9" == current_scope().caller()
    with app.app_context():
        assert "process" == current_scope().caller()
    assert "process" == current_scope().caller()


def test_an_application_s_own_policies_stand_beside_the_process_s() -> None:
    app = made(circuits=[CircuitBreaker(name="own")], limiters=[RateLimiter("1/second", name="own")])
    with app.app_context():
        rate_limit("1/second", name="later")(lambda: None)
        application = current_application()
        assert ["own"] == list(application.circuits())
        assert {"own", "later"} <= set(application.limiters())


def test_attaching_twice_is_refused() -> None:
    app = made()
    with pytest.raises(RuntimeError, match="once per application"):
        Resilience(app)


def test_an_application_without_the_extension_is_told_what_to_do() -> None:
    with Flask("bare").app_context(), pytest.raises(RuntimeError, match=r"call Resilience\(app\)"):
        current_application()


def test_options_come_from_the_constructor_the_configuration_and_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app = Flask("demo")
    app.config.update(RESILIENCE_TRUSTED_PROXIES="2", RESILIENCE_HEADERS="off")
    monkeypatch.setenv("RESILIENCE_TRUSTED_PROXIES", "3")
    Resilience(trusted_proxies=1, headers="both", admin_token="the-constructor-s").init_app(app)
    with app.app_context():
        options = current_application().options
    assert (3, "off", "the-constructor-s") == (options.trusted_proxies, options.headers, options.admin_token)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"RESILIENCE_HEADERS": "perhaps"}, "RESILIENCE_HEADERS='perhaps': choose one of draft"),
        ({"RESILIENCE_STORAGE_URI": "ftp://x"}, "'ftp' is no storage"),
        ({"RESILIENCE_DEFAULT_LIMITS": "often"}, "'often' is not a rate limit"),
    ],
)
def test_a_bad_value_stops_the_start_and_is_named(config: dict[str, str], reason: str) -> None:
    app = Flask("demo")
    app.config.update(config)
    with pytest.raises(ValueError, match=reason):
        Resilience(app)


@pytest.mark.parametrize("option", ["default_limits", "application_limits"])
def test_what_would_fail_in_every_request_stops_the_start(option: str) -> None:
    limits: dict[str, Any] = {option: lambda user: "1/minute"}
    with pytest.raises(ValueError, match="says no limits: it is called without arguments"):
        Resilience(Flask("demo"), **limits)
    cost: dict[str, Any] = {option: "5/minute", f"{option}_cost": 6}
    with pytest.raises(ValueError, match="cost=6 is above the burst of 5"):
        Resilience(Flask("demo"), **cost)


def test_an_unknown_option_is_refused_with_the_known_ones() -> None:
    with pytest.raises(TypeError, match=r"no option colour: it takes storage_uri"):
        Resilience(colour="blue")


def test_limits_of_an_application_can_come_from_its_configuration_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESILIENCE_DEFAULT_LIMITS", "1/hour")
    app = made()
    app.add_url_rule("/plain", "plain", lambda: "hello")
    assert [200, 429] == [app.test_client().get("/plain").status_code for _ in range(2)]


def test_closing_an_application_takes_its_socket_away(tmp_path: Path) -> None:
    folder = tmp_path / "peers"
    app = made(peer_directory=folder)
    with app.app_context():
        assert 1 == len(list(folder.glob("*.sock")))
        current_application().close()
        assert [] == list(folder.glob("*.sock"))


# -- refusals as the application wants them said ---------------------------------------------------------------------


def refused(app: Flask, path: str = "/") -> TestResponse:
    """The first refusal of a path."""
    client = app.test_client()
    for _ in range(5):
        answer = client.get(path)
        if answer.status_code != 200:
            return answer
    raise AssertionError("nothing was refused")


def limited(app: Flask, **options: Any) -> Flask:
    app.add_url_rule("/limited", "limited", rate_limit("1/minute", name="limited", **options)(lambda: "hello"))
    return app


def test_a_limit_may_have_words_of_its_own() -> None:
    answer = refused(limited(made(), response="slow down"), "/limited")
    assert (429, "slow down", "text/plain; charset=utf-8", "60") == (
        answer.status_code, answer.text, answer.content_type, answer.headers["Retry-After"]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "status", "body"),
    [
        ({"error": "busy"}, 429, b'{"error":"busy"}\n'),
        (("busy", 503), 503, b"busy"),
        (("busy", {"X-Why": "limit"}), 429, b"busy"),
        (Response("served anyway", 200), 200, b"served anyway"),
    ],
)
def test_a_limit_may_make_a_response_of_its_own(answer: Any, status: int, body: bytes) -> None:
    client = limited(made(), response=lambda rejection: answer).test_client()
    client.get("/limited")
    seen = client.get("/limited")
    assert (status, body) == (seen.status_code, seen.data)
    assert (status != 200) == ("Retry-After" in seen.headers)


def test_an_application_may_have_words_for_all_its_limits() -> None:
    app = limited(made(response=lambda rejection: f"{rejection.policy}: wait"), response="my own")
    assert ("greeting: wait", "my own") == (refused(app).text, refused(app, "/limited").text)


def test_whoever_wants_to_know_of_refusals_is_told_and_may_answer() -> None:
    heard: list[tuple[str, str]] = []

    def tell(rejection: RateLimited) -> tuple[str, int]:
        heard.append(("limit", rejection.policy))
        return "from the limit", 429

    app = limited(made(on_breach=lambda rejection: heard.append(("application", rejection.policy))), on_breach=tell)
    assert ("from the limit", "application/problem+json") == (refused(app, "/limited").text, refused(app).content_type)
    assert [("limit", "limited"), ("application", "limited"), ("application", "greeting")] == heard


def test_news_of_a_refusal_that_fail_change_nothing_about_it(caplog: pytest.LogCaptureFixture) -> None:
    app = made(on_breach=lambda rejection: 1 / 0)
    assert 429 == refused(app).status_code
    assert "on_breach raised for rate limit 'greeting'" in caplog.text


def test_whoever_is_told_of_a_refusal_may_abort() -> None:
    assert 403 == refused(made(on_breach=lambda rejection: abort(403))).status_code


def test_an_application_limit_is_refused_in_the_application_s_words_too() -> None:
    app = made(application_limits="1/minute", response="slow down", on_breach=lambda rejection: None)
    answer = refused(app)
    assert (429, "slow down", "60") == (answer.status_code, answer.text, answer.headers["Retry-After"])


def test_a_handler_for_refusals_goes_before_all_others() -> None:
    app = limited(made(on_breach=lambda rejection: "on breach", response="words"), response="own words")
    app.register_error_handler(429, lambda error: ("by status", 429))
    app.register_error_handler(RateLimited, lambda rejection: (f"handled: {rejection.response}", 429))
    assert ("handled: own words", "handled: on breach") == (refused(app, "/limited").text, refused(app).text)


def test_a_handler_for_429_or_every_http_error_says_refusals_too() -> None:
    by_status, by_kind = made(), made()
    by_status.register_error_handler(429, lambda error: (f"by status: {error.description}", 429))
    by_kind.register_error_handler(HTTPException, lambda error: ({"code": error.code}, error.code))
    assert "by status: rate limit 'greeting' exceeded: retry in 30.000 s" == refused(by_status).text
    assert ({"code": 429}, "30") == (refused(by_kind).get_json(), refused(by_kind).headers["Retry-After"])


def test_a_blueprint_that_handles_every_error_and_lets_http_ones_pass_lets_refusals_pass() -> None:
    blueprint = Blueprint("careful", __name__)
    blueprint.register_error_handler(Exception, lambda error: error if isinstance(error, HTTPException) else "boom")
    blueprint.add_url_rule("/passed", "passed", rate_limit("1/minute", name="passed")(lambda: "hello"))
    app = made()
    app.register_blueprint(blueprint)
    answer = refused(app, "/passed")
    assert (429, ["passed"], "60") == (
        answer.status_code, answer.get_json()["violated-policies"], answer.headers["Retry-After"]
    )  # fmt: skip


def dispatched(view: Callable[[], Any]) -> Callable[[], Any]:
    """As extensions for REST do, which answer every error by themselves."""

    def dispatch() -> Any:
        try:
            return view()
        except Exception as error:  # noqa: BLE001  # that is what they do
            if not isinstance(error, HTTPException):
                return {"message": "Internal Server Error"}, 500
            fields = {key: value for key, value in error.get_response().headers if key != "Content-Length"}
            return {"message": error.description}, error.code, {**fields, "Content-Type": "application/json"}

    return dispatch


def test_an_extension_that_answers_errors_by_itself_knows_refusals_as_http_errors() -> None:
    app = made(application_limits="5/minute")
    app.add_url_rule("/rest", "rest", dispatched(rate_limit("1/minute", name="rest")(lambda: "hello")))
    answer = refused(app, "/rest")
    assert (429, "60", "rate limit 'rest' exceeded: retry in 60.000 s") == (
        answer.status_code, answer.headers["Retry-After"], answer.get_json()["message"]
    )  # fmt: skip
    assert "RateLimit" in answer.headers


def test_outside_of_requests_a_refusal_is_no_http_error() -> None:
    greet()
    greet()
    with pytest.raises(RateLimited) as caught:
        greet()
    assert not isinstance(caught.value, HTTPException)


def test_a_refusal_of_a_request_can_be_sent_to_another_process() -> None:
    app = made()
    with app.test_request_context():
        greet()
        greet()
        with pytest.raises(RateLimited) as caught:
            greet()
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (type(caught.value), str(caught.value), 429) == (type(copy), str(copy), vars(copy)["code"])


ON_BREACH = [
    (lambda rejection: "slow down", b"slow down"),
    (lambda rejection: {"error": "busy"}, b'{"error":"busy"}\n'),
    (lambda rejection: ("busy", {"X-Why": "limit"}), b"busy"),
]


@pytest.mark.parametrize(("on_breach", "body"), ON_BREACH)
@pytest.mark.parametrize("where", ["view", "method", "before"])
def test_what_takes_the_place_of_a_view_is_a_refusal_unless_it_says_a_status(
    where: str, on_breach: Callable[[RateLimited], Any], body: bytes
) -> None:
    limiter = RateLimiter("1/minute", name="replaced", on_breach=on_breach)
    before: dict[str, Any] = {"application_limits": "9/minute", "route_limits": {"replaced": limiter}}
    app = made(**(before if where == "before" else {}))
    view: Callable[[], Any] = lambda: "hello"  # noqa: E731

    class Replaced(MethodView):
        get = staticmethod(limiter(view))

    app.add_url_rule(
        "/replaced",
        "replaced",
        {"view": limiter(view), "method": Replaced.as_view("replaced"), "before": view}[where],
    )
    for method in (app.test_client().get, app.test_client().head):
        answer = method("/replaced")
    assert (429, "60") == (answer.status_code, answer.headers["Retry-After"])
    assert body == app.test_client().get("/replaced").data


def test_what_takes_the_place_of_a_function_s_result_is_as_it_was_given() -> None:
    app = made()
    look = rate_limit("1/minute", name="look", on_breach=lambda rejection: "from memory")(lambda: "fresh")
    app.add_url_rule("/looked", "looked", lambda: {"seen": look()})
    client = app.test_client()
    assert [(200, {"seen": "fresh"}), (200, {"seen": "from memory"})] == [
        (answer.status_code, answer.get_json()) for answer in map(client.get, ["/looked", "/looked"])
    ]


def test_what_takes_the_place_of_a_view_outside_of_requests_is_as_it_was_given() -> None:
    app = made()
    shared = rate_limit("1/minute", name="both", on_breach=lambda rejection: "full")(lambda: "hello")
    app.add_url_rule("/both", "both", shared)
    with app.app_context():
        assert ["hello", "full"] == [shared(), shared()]


# -- switches --------------------------------------------------------------------------------------------------------


def test_in_shadow_mode_limits_count_and_refuse_nobody() -> None:
    limiter = RateLimiter("1/minute", name="explicit")
    app = limited(made(shadow=True, application_limits="1/minute", limiters=[limiter]))
    app.add_url_rule("/explicit", "explicit", lambda: str(limiter.acquire().allowed))
    client = app.test_client()
    answers = [client.get(path) for path in ("/", "/limited", "/explicit") for _ in range(3)]
    assert [200] * 9 == [answer.status_code for answer in answers]
    assert not any("RateLimit" in answer.headers for answer in answers)
    snapshots = {each.name: each.snapshot() for each in app.extensions["resilience"].limiters().values()}
    assert (2, 2, 8) == tuple(snapshots[name].shadow_denied for name in ("limited", "explicit", "demo:application"))


def test_switched_off_limits_count_nothing() -> None:
    storage = MemoryStorage(clock=FakeClock())
    app = limited(made(storage=storage, enabled=False, application_limits="1/minute", default_limits="1/minute"))
    client = app.test_client()
    answers = [client.get(path) for path in ("/", "/limited", "/nothing") for _ in range(3)]
    assert [200] * 6 + [404] * 3 == [answer.status_code for answer in answers]
    assert not any("RateLimit" in answer.headers for answer in answers)
    assert 0 == len(storage)


def test_a_filter_lets_requests_pass_every_limit_and_is_asked_once_for_each() -> None:
    asked: list[str] = []
    app = Flask("demo")
    resilience = Resilience(app, storage=MemoryStorage(clock=FakeClock()), application_limits="1/minute")
    limited(app)

    @resilience.request_filter
    def from_inside() -> bool:
        asked.append(request.remote_addr or "")
        return request.remote_addr == "10.0.0.1"

    client = app.test_client()
    for address, expected in (("10.0.0.1", [200, 200, 200]), ("192.0.2.1", [200, 429, 429])):
        environ = {"REMOTE_ADDR": address}
        assert expected == [client.get("/limited", environ_overrides=environ).status_code for _ in range(3)]
    assert ["10.0.0.1"] * 3 + ["192.0.2.1"] * 3 == asked


# -- who is calling --------------------------------------------------------------------------------------------------


def test_an_application_can_say_who_is_calling_for_limits_that_do_not() -> None:
    def who() -> str | tuple[object, ...] | None:
        name = request.headers.get("X-User")
        return ("user", name) if name else None

    client = made(key=who).test_client()
    headers = [{"X-User": "ada"}, {"X-User": "ada"}, {"X-User": "ada"}, {"X-User": "bob"}, {}, {}, {}]
    assert [200, 200, 429, 200, 200, 200, 429] == [client.get("/", headers=each).status_code for each in headers]


def test_whoever_says_who_is_calling_says_it_with_a_string_or_a_tuple() -> None:
    app = made(key=lambda: 42)
    app.testing = True
    with pytest.raises(TypeError, match="RESILIENCE_KEY returned 42: a key is a string, a tuple, or None"):
        app.test_client().get("/")


def test_ipv6_clients_are_told_apart_by_their_networks() -> None:
    client = made(ipv6_prefix=48).test_client()
    peers = ["2001:db8:1:2::1", "2001:db8:1:3::1", "2001:db8:1:4::1", "2001:db8:2::1"]
    assert [200, 200, 429, 200] == [client.get("/", environ_base={"REMOTE_ADDR": peer}).status_code for peer in peers]


@pytest.mark.parametrize("trusted_proxies", [0, 1])
def test_a_thousand_forged_fields_are_one_bucket(trusted_proxies: int) -> None:
    client = made(trusted_proxies=trusted_proxies).test_client()
    added = ", 198.51.100.7" * trusted_proxies
    statuses = [
        client.get("/", headers={"X-Forwarded-For": f"10.0.{n >> 8}.{n & 255}{added}"}).status_code
        for n in range(1_000)
    ]
    assert [200, 200] + [429] * 998 == statuses


def test_a_field_that_is_sent_several_times_is_read_as_one() -> None:
    client = made(trusted_proxies=1).test_client()
    fields = [("X-Forwarded-For", "10.0.0.9"), ("X-Forwarded-For", "10.0.0.8, 198.51.100.7")]
    other = [("X-Forwarded-For", "10.0.0.7"), ("X-Forwarded-For", "198.51.100.7")]
    assert [200, 200, 429] == [client.get("/", headers=headers).status_code for headers in (fields, other, fields)]


# -- faults known from elsewhere -------------------------------------------------------------------------------------


class Unreachable(MemoryStorage):
    """Decides `decisions` times, then is not there any more."""

    def __init__(self, decisions: int) -> None:
        super().__init__(clock=FakeClock())
        self.left = decisions

    def take(self, charges: Sequence[Charge]) -> Decision:
        if not self.left:
            raise StorageUnavailable("gone")
        self.left -= 1
        return super().take(charges)

    def taker(self, scope: str, limit: Limit, floor: int = 0, lease: int = 0) -> Taker:
        return lambda subject, cost: self.take([Charge(scope, subject, limit, cost, floor, lease)])

    def give_back(self, refunds: Sequence[Refund]) -> None:
        self.take([])


def test_the_numbers_of_the_fields_are_those_of_the_decision_and_cost_no_second_look() -> None:
    storage = Unreachable(1)
    answer = made(storage=storage).test_client().get("/")
    assert (200, '"greeting";r=1;t=30') == (answer.status_code, answer.headers["RateLimit"])


def test_a_store_that_fails_after_the_response_costs_nobody_the_response(caplog: pytest.LogCaptureFixture) -> None:
    app = limited(made(storage=Unreachable(1)), deduct_when=lambda response: response.status_code == 200)
    answer = app.test_client().get("/limited")
    assert (200, "hello") == (answer.status_code, answer.text)
    assert "a call was made and not counted: gone" in caplog.text


def test_a_condition_that_fails_after_the_response_costs_nobody_the_response(caplog: pytest.LogCaptureFixture) -> None:
    app = limited(made(), deduct_when=lambda response: 1 / 0)
    with caplog.at_level(logging.ERROR):
        assert 200 == app.test_client().get("/limited").status_code
    assert "ZeroDivisionError" in caplog.text


def test_what_cannot_be_given_back_costs_a_refused_caller_nothing_more(caplog: pytest.LogCaptureFixture) -> None:
    app = limited(made(storage=Unreachable(4), application_limits="9/minute"))
    assert 429 == refused(app, "/limited").status_code
    assert "tokens that were not used are lost: gone" in caplog.text


def test_only_refusals_carry_retry_after() -> None:
    plain, joking = made(), made()
    joking.register_error_handler(RateLimited, lambda rejection: ("busy", 418))
    assert [False, False, True] == ["Retry-After" in plain.test_client().get("/").headers for _ in range(3)]
    assert [False, False, False] == ["Retry-After" in joking.test_client().get("/").headers for _ in range(3)]


def test_a_handler_that_forgets_retry_after_is_helped_and_one_that_gives_it_is_believed() -> None:
    forgetful, knowing = made(), made()
    forgetful.register_error_handler(RateLimited, lambda rejection: ("busy", 429))
    knowing.register_error_handler(RateLimited, lambda rejection: ("busy", 503, {"Retry-After": "7"}))
    assert ("30", "7") == (refused(forgetful).headers["Retry-After"], refused(knowing).headers["Retry-After"])


def test_a_limit_that_counts_only_failures_counts_each_once_whatever_the_view_returns() -> None:
    answers: list[Any] = ["fine", ("no", 401), Response("no", 401), {"fine": True}, ("no", 401)]
    app = made()
    view = rate_limit("3/minute", name="login", deduct_when=lambda response: response.status_code == 401)
    app.add_url_rule("/login", "login", view(lambda: answers.pop(0)))
    client = app.test_client()
    statuses = [client.get("/login").status_code for _ in range(6)]
    assert [200, 401, 401, 200, 401, 429] == statuses


def test_a_view_that_fails_is_seen_by_what_counts_failures() -> None:
    app = made()
    view = rate_limit("1/minute", name="fragile", deduct_when=lambda response: response.status_code == 500)
    app.add_url_rule("/fragile", "fragile", view(lambda: str(1 / 0)))
    client = app.test_client()
    assert [500, 429] == [client.get("/fragile").status_code for _ in range(2)]


def test_a_response_that_is_made_twice_is_settled_once() -> None:
    seen: list[int] = []

    def deduct(response: Response) -> bool:
        seen.append(response.status_code)
        return True

    app = limited(made(), deduct_when=deduct)
    app.after_request(lambda response: abort(500) if response.status_code == 200 else response)
    app.test_client().get("/limited")
    assert [200] == seen


def test_work_that_goes_on_with_a_request_s_context_finds_its_application() -> None:
    app = made()
    seen: list[str] = []

    @app.get("/forked")
    def fork() -> str:
        worker = threading.Thread(target=copy_current_request_context(lambda: seen.append(greet())))
        worker.start()
        worker.join()
        return "done"

    answer = app.test_client().get("/forked")
    assert (200, ["hello"]) == (answer.status_code, seen)


def test_whoever_is_refused_too_often_can_be_shut_out() -> None:
    strikes = RateLimiter("2/hour", name="strikes")

    def strike(rejection: RateLimited) -> None:
        strikes.try_acquire()

    app = limited(made(on_breach=strike))
    app.before_request(lambda: None if strikes.peek().allowed else abort(403))
    client = app.test_client()
    assert [200, 429, 429, 403, 403] == [client.get("/limited").status_code for _ in range(5)]
    assert 403 == client.get("/").status_code
    assert 200 == client.get("/", environ_overrides={"REMOTE_ADDR": "192.0.2.9"}).status_code


def test_in_an_application_s_context_without_a_request_limits_work_as_anywhere() -> None:
    heard: list[str] = []
    app = made(on_breach=lambda rejection: heard.append(rejection.policy), key=lambda: "somebody")
    counted: list[int] = []

    def count(result: int) -> bool:
        counted.append(result)
        return True

    limiter = RateLimiter("1/minute", name="job", deduct_when=count)
    with app.app_context():
        greet()
        greet()
        with pytest.raises(RateLimited):
            greet()
        assert 42 == limiter(lambda: 42)()
    assert (["greeting"], [42]) == (heard, counted)


def test_a_limit_before_the_view_may_answer_in_its_place() -> None:
    app = made(application_limits=RateLimiter("1/minute", name="early", on_breach=lambda rejection: ("wait", 503)))
    client = app.test_client()
    assert [(200, "hello"), (503, "wait")] == [
        (answer.status_code, answer.text) for answer in map(client.get, ["/", "/"])
    ]


def test_who_is_calling_may_be_a_plain_string() -> None:
    client = made(key=lambda: request.headers.get("X-User")).test_client()
    assert [200, 200, 429, 200] == [client.get("/", headers={"X-User": name}).status_code for name in "aaab"]


# -- what processes share ----------------------------------------------------------------------------------------------


def test_without_an_address_every_process_keeps_its_circuits_to_itself() -> None:
    circuit = CircuitBreaker(name="alone")
    with made(circuits=[circuit]).app_context():
        assert ("memory://", "process") == (current_application().state.uri, current_application().reach)
    assert circuit.snapshot().shared is None


def test_circuits_are_kept_at_the_address_of_states_and_so_are_those_that_come_later(tmp_path: Path) -> None:
    first = CircuitBreaker(name="first")
    app = made(circuits=[first], state_uri=f"shm://{tmp_path}/state")
    with app.app_context():
        application = current_application()
    later, decorated = CircuitBreaker(name="later"), circuit_breaker("decorated")
    application.registry.add_circuit(later)
    decorated(greet)
    try:
        uri = application.state.uri
        assert {"first": uri, "later": uri, "decorated": uri} == {
            name: circuit.snapshot().shared for name, circuit in application.circuits().items()
        }
    finally:
        application.close()


def test_workers_that_share_memory_meet_also_where_no_folder_was_named(tmp_path: Path) -> None:
    app = made(state_uri=f"shm://{tmp_path}/state")
    with app.app_context():
        siblings = current_application().siblings
    folder = siblings.directory
    assert folder is not None
    assert [f"{os.getpid()}.{siblings.label}.sock"] == [path.name for path in folder.iterdir()]
    app.extensions["resilience"].close()
    assert not folder.exists()


def test_a_folder_that_nobody_named_and_that_cannot_be_used_keeps_nobody_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    open_to_all = tmp_path / "peers"
    open_to_all.mkdir(mode=0o755)
    (open_to_all / "1.demo.sock").touch()
    monkeypatch.setattr("resilience.adapters.flask.folder_of", lambda _: open_to_all)
    app = made(state_uri=f"shm://{tmp_path}/state")
    application = app.extensions["resilience"]
    answers = application.peers.ask({"tell": []})
    assert ([application.worker], ()) == (list(answers.by_worker), answers.unreached), "nobody in there is asked"
    assert (
        f"{application.worker} answers no other worker: {open_to_all} must be a folder of this user's"
        in answers.problem
    )
    assert "does not answer its siblings" in caplog.text
    assert 200 == app.test_client().get("/").status_code
    application.close()
    assert open_to_all.exists()


def test_a_storage_of_states_may_be_given_as_an_object(tmp_path: Path) -> None:
    state = open_state_storage(f"shm://{tmp_path}/state")
    with made(state=state).app_context():
        application = current_application()
    assert (state, "code") == (application.state, application.origins["state_uri"])
    application.close()


def test_a_storage_of_states_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match="'file' is no storage of state: use one of memory://"):
        made(state_uri="file:///tmp/state")


def test_closing_gives_both_storages_back() -> None:
    class Closable(MemoryStorage):
        closed = False

        def close(self) -> None:
            self.closed = True

    class ClosableState(MemoryStateStorage):
        closed = False

        def close(self) -> None:
            self.closed = True

    storage, state = Closable(), ClosableState()
    with made(storage=storage, state=state).app_context():
        current_application().close()
        assert current_application().is_closed
    assert (True, True) == (storage.closed, state.closed)


def test_the_commands_for_a_terminal_are_there() -> None:
    said = made().test_cli_runner().invoke(args=["resilience", "--help"])
    assert 0 == said.exit_code
    assert "circuits" in said.output
