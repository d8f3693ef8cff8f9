"""Limits of the application, of blueprints and of routes: which apply to what, decided together before the view."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from flask import Blueprint, Flask, Response, abort, g
from flask.testing import FlaskClient
from flask.typing import ResponseReturnValue
from flask.views import MethodView, View
from werkzeug.routing import Rule

from resilience import MemoryStorage, RateLimited, RateLimiter, Resilience, all_of, rate_limit
from resilience.core.limiter import Charge, Decision
from resilience.registry import PROCESS_REGISTRY
from resilience.scope import PROCESS
from resilience.testing import FakeClock


@pytest.fixture(autouse=True)
def _empty_registry() -> Iterator[None]:
    PROCESS.forget()
    yield
    PROCESS_REGISTRY.clear()
    PROCESS.forget()


class Counting(MemoryStorage):
    """Remembers how many charges each decision was about."""

    def __init__(self) -> None:
        super().__init__(clock=FakeClock())
        self.decisions: list[int] = []

    def take(self, charges: Sequence[Charge]) -> Decision:
        self.decisions.append(len(charges))
        return super().take(charges)


def made(**options: Any) -> tuple[Flask, Resilience]:
    app = Flask("demo")
    resilience = Resilience(app, **{"storage": MemoryStorage(clock=FakeClock()), **options})
    for path in ("/one", "/other"):
        app.add_url_rule(path, path[1:], lambda: "hello", methods=["GET", "POST"])
    return app, resilience


def statuses(client: FlaskClient, path: str, times: int, method: str = "GET", address: str = "192.0.2.1") -> list[int]:
    environ = {"REMOTE_ADDR": address}
    return [client.open(path, method=method, environ_overrides=environ).status_code for _ in range(times)]


def remaining(response: Any) -> dict[str, int]:
    """What RateLimit says is left, by title."""
    states = [state.split(";") for state in response.headers["RateLimit"].split(", ")]
    return {state[0].strip('"'): int(state[1].removeprefix("r=")) for state in states}


# -- the application's -----------------------------------------------------------------------------------------------


def test_an_application_limit_is_one_bucket_per_client_for_everything() -> None:
    app, _ = made(application_limits="3/minute")
    client = app.test_client()
    assert [200, 200, 404, 429] == [client.get(path).status_code for path in ("/one", "/other", "/nothing", "/one")]
    assert [200] == statuses(client, "/one", 1, address="192.0.2.2")


def test_whoever_tries_paths_and_methods_that_do_not_exist_is_counted_and_refused() -> None:
    app, _ = made(application_limits="2/minute", default_limits="1/minute")
    client = app.test_client()
    assert [404, 405, 429, 429] == [
        client.open(path, method=method).status_code
        for path, method in (("/nothing", "GET"), ("/one", "DELETE"), ("/nothing", "GET"), ("/one", "DELETE"))
    ]


def test_an_application_limit_is_taken_once_beside_a_limit_of_the_view() -> None:
    app, _ = made(application_limits="10/minute")
    app.add_url_rule("/limited", "limited", rate_limit("5/minute", name="limited")(lambda: "hello"))
    answer = app.test_client().get("/limited")
    assert {"application": 9, "limited": 4} == remaining(answer)


def test_limits_of_several_periods_hold_together() -> None:
    app, _ = made(application_limits=["2/minute", "3/hour"])
    assert [200, 200, 429] == statuses(app.test_client(), "/one", 3)


def test_several_limiters_with_keys_of_their_own_are_decided_together_all_or_nothing() -> None:
    each, all_together = RateLimiter("2/minute", name="each"), RateLimiter("3/minute", name="together", key="everyone")
    app, _ = made(application_limits=[each, all_together])
    client = app.test_client()
    assert [200, 200, 429] == statuses(client, "/one", 3, address="192.0.2.1")
    assert [200, 429] == statuses(client, "/one", 2, address="192.0.2.2")
    assert {"each": 1, "together": 0} == remaining(
        client.get("/one", environ_overrides={"REMOTE_ADDR": "192.0.2.3"})
    ) | {"each": 1}


def test_limiters_that_were_combined_before_are_taken_as_they_are() -> None:
    together = all_of(RateLimiter("9/minute", name="loose"), RateLimiter("2/minute", name="tight"))
    app, _ = made(application_limits=together)
    client = app.test_client()
    assert {"loose": 8, "tight": 1} == remaining(client.get("/one"))
    assert [200, 429] == [client.get(path).status_code for path in ("/other", "/one")]


# -- defaults --------------------------------------------------------------------------------------------------------


def test_a_default_limit_is_a_bucket_per_client_and_route() -> None:
    app, _ = made(default_limits="2/minute")
    client = app.test_client()
    assert [200, 200, 429] == statuses(client, "/one", 3)
    assert [200, 200, 429] == statuses(client, "/other", 3)
    assert [404] * 4 == statuses(client, "/nothing", 4)


def test_a_route_with_a_limit_of_its_own_is_not_under_the_default() -> None:
    app, _ = made(default_limits="1/minute")
    app.add_url_rule("/limited", "limited", rate_limit("3/minute", name="limited")(lambda: "hello"))
    client = app.test_client()
    assert [200, 200, 200, 429] == statuses(client, "/limited", 4)
    assert '"limited";q=3;w=60' == client.get("/limited").headers["RateLimit-Policy"]


def test_a_limit_for_some_methods_leaves_the_default_to_the_others() -> None:
    app, _ = made(default_limits="2/minute")
    view = rate_limit("1/minute", name="writing", methods=["POST"])(lambda: "hello")
    app.add_url_rule("/mixed", "mixed", view, methods=["GET", "POST"])
    client = app.test_client()
    assert [200, 429] == statuses(client, "/mixed", 2, method="POST")
    assert [200, 200, 429] == statuses(client, "/mixed", 3)


def test_the_answer_to_head_by_a_class_s_limited_method_is_not_under_the_default() -> None:
    app, _ = made(default_limits="1/minute")

    class Getting(MethodView):
        @rate_limit("3/minute", name="getting")
        def get(self) -> str:
            return "hello"

    app.add_url_rule("/getting", view_func=Getting.as_view("getting"))
    assert [200, 200, 200, 429] == statuses(app.test_client(), "/getting", 4, method="HEAD")


class Limited(View):
    decorators = [rate_limit("3/minute")]  # noqa: RUF012  # as Flask documents it

    def dispatch_request(self) -> ResponseReturnValue:
        return "hello"


class Partly(MethodView):
    @rate_limit("3/minute")
    def get(self) -> ResponseReturnValue:
        return "hello"

    def post(self) -> ResponseReturnValue:
        return "hello"


def test_views_of_classes_have_limits_of_their_own_too() -> None:
    app, _ = made(default_limits="1/minute")
    app.add_url_rule("/limited", view_func=Limited.as_view("limited"))
    app.add_url_rule("/partly", view_func=Partly.as_view("partly"))
    client = app.test_client()
    assert [200, 200, 200, 429] == statuses(client, "/limited", 4)
    assert [200, 200, 200, 429] == statuses(client, "/partly", 4)
    assert [200, 429] == statuses(client, "/partly", 2, method="POST")


def test_a_default_limit_can_be_a_bucket_per_method() -> None:
    app, _ = made(default_limits="1/minute", default_limits_per_method=True)
    client = app.test_client()
    assert [200, 429] == statuses(client, "/one", 2)
    assert [200, 429] == statuses(client, "/one", 2, method="POST")


def test_a_default_limit_can_be_left_out_and_cost_more() -> None:
    trusted = [False]
    app, _ = made(
        default_limits="4/minute", default_limits_exempt_when=lambda: trusted[0], default_limits_cost=lambda: 2
    )
    client = app.test_client()
    assert [200, 200, 429] == statuses(client, "/one", 3)
    trusted[0] = True
    answer = client.get("/one")
    assert (200, False) == (answer.status_code, "RateLimit" in answer.headers)


def test_a_default_limit_can_be_taken_from_only_when_the_response_says_so() -> None:
    answers = iter([200, 401, 200, 401, 401, 200])
    app, _ = made(default_limits="2/minute", default_limits_deduct_when=lambda response: response.status_code == 401)
    app.add_url_rule("/login", "login", lambda: ("answer", next(answers)))
    assert [200, 401, 200, 401, 429, 429] == statuses(app.test_client(), "/login", 6)


def test_a_default_limit_can_be_a_function_of_whoever_asks() -> None:
    plan = ["2/minute"]
    app, _ = made(default_limits=lambda: plan[0])
    client = app.test_client()
    assert [200, 200, 429] == statuses(client, "/one", 3, address="192.0.2.1")
    plan[0] = "4/minute"
    assert [200, 200, 200, 200, 429] == statuses(client, "/one", 5, address="192.0.2.2")


def test_a_limiter_as_default_is_one_bucket_for_all_such_routes() -> None:
    app, _ = made(default_limits=RateLimiter("3/minute", name="all together"))
    client = app.test_client()
    assert [200, 200] == statuses(client, "/one", 2)
    assert [200, 429] == statuses(client, "/other", 2)


# -- routes ----------------------------------------------------------------------------------------------------------


def test_the_limits_of_all_routes_can_stand_in_one_place() -> None:
    app, _ = made(default_limits="1/minute", route_limits={"one": "2/minute; 3/hour"})
    client = app.test_client()
    assert [200, 200, 429] == statuses(client, "/one", 3)
    assert [200, 429] == statuses(client, "/other", 2)


def test_an_endpoint_that_does_not_exist_is_complained_of_once(caplog: pytest.LogCaptureFixture) -> None:
    app, _ = made(route_limits={"oen": "2/minute"})
    with caplog.at_level(logging.ERROR):
        assert [200, 200] == statuses(app.test_client(), "/one", 2)
    (record,) = caplog.records
    assert "'oen'" in record.getMessage()


# -- blueprints ------------------------------------------------------------------------------------------------------


def blueprint(name: str, *, nested: Blueprint | None = None, limited: bool = False) -> Blueprint:
    made = Blueprint(name, __name__, url_prefix=f"/{name}")
    made.add_url_rule("/one", "one", lambda: "hello")
    made.add_url_rule("/two", "two", lambda: "hello")
    if limited:
        made.add_url_rule("/limited", "limited", rate_limit("3/minute", name=f"{name} limited")(lambda: "hello"))
    if nested is not None:
        made.register_blueprint(nested)
    return made


def test_a_blueprint_s_limit_is_one_bucket_for_all_its_views_decorated_or_not() -> None:
    app, resilience = made(default_limits="1/minute")
    users = blueprint("users", limited=True)
    resilience.limit_blueprint(users, "3/minute")
    app.register_blueprint(users)
    client = app.test_client()
    paths = ("/users/one", "/users/two", "/users/limited", "/users/one")
    assert [200, 200, 200, 429] == [client.get(path).status_code for path in paths]
    assert [200, 429] == statuses(client, "/one", 2)


def test_a_blueprint_s_limit_holds_for_blueprints_nested_in_it() -> None:
    app, resilience = made()
    inner = blueprint("inner")
    outer = blueprint("outer", nested=inner)
    resilience.limit_blueprint(outer, "3/minute")
    resilience.limit_blueprint(inner, "2/minute")
    app.register_blueprint(outer)
    client = app.test_client()
    assert [200, 200, 429] == statuses(client, "/outer/inner/one", 3)
    assert [200, 429] == statuses(client, "/outer/two", 2)


def test_a_blueprint_s_limit_can_be_a_bucket_per_route_instead_of_the_default() -> None:
    app, resilience = made(default_limits="1/minute")
    inner = blueprint("inner")
    users = blueprint("users", limited=True, nested=inner)
    resilience.limit_blueprint(users, "2/minute", per_route=True)
    app.register_blueprint(users)
    client = app.test_client()
    assert [200, 200, 429] == statuses(client, "/users/one", 3)
    assert [200, 200, 429] == statuses(client, "/users/two", 3)
    assert [200, 200, 429] == statuses(client, "/users/inner/one", 3)
    assert [200, 200, 200, 429] == statuses(client, "/users/limited", 4)


def test_the_nearest_blueprint_says_what_each_route_has_to_itself() -> None:
    app, resilience = made()
    inner = blueprint("inner")
    outer = blueprint("outer", nested=inner)
    resilience.limit_blueprint(outer, "1/minute", per_route=True)
    resilience.limit_blueprint(inner, "2/minute", per_route=True)
    app.register_blueprint(outer)
    client = app.test_client()
    assert [200, 200, 429] == statuses(client, "/outer/inner/one", 3)
    assert [200, 429] == statuses(client, "/outer/one", 2)


def test_a_blueprint_may_have_several_limits_under_names() -> None:
    app, resilience = made()
    users = blueprint("users")
    resilience.limit_blueprint(users, "5/minute")
    resilience.limit_blueprint(users, "2/minute", name="everyone", key="everyone", cost=1)
    app.register_blueprint(users)
    client = app.test_client()
    assert [200] == statuses(client, "/users/one", 1, address="192.0.2.1")
    assert [200, 429] == statuses(client, "/users/one", 2, address="192.0.2.2")
    with pytest.raises(ValueError, match="named 'everyone' already: say others with name="):
        resilience.limit_blueprint(users, "1/minute", name="everyone")
    with pytest.raises(ValueError, match="no limit for blueprint 'users'"):
        resilience.limit_blueprint(users, None, name="other")


def test_a_blueprint_may_be_limited_when_requests_have_been_served() -> None:
    app, resilience = made()
    users = blueprint("users")
    app.register_blueprint(users)
    client = app.test_client()
    assert [200, 200] == statuses(client, "/users/one", 2)
    resilience.limit_blueprint(users, "1/minute")
    assert [200, 429] == statuses(client, "/users/one", 2)


def test_a_blueprint_s_limit_that_cannot_be_decided_with_the_others_is_refused_and_forgotten() -> None:
    app, resilience = made(application_limits="5/minute")
    users = blueprint("users")
    app.register_blueprint(users)
    with pytest.raises(ValueError, match="kept in different storages"):
        resilience.limit_blueprint(users, "1/minute", storage=MemoryStorage())
    assert [200, 200] == statuses(app.test_client(), "/users/one", 2)


def test_hooks_that_were_there_before_run_before_limits() -> None:
    app = Flask("demo")
    app.before_request(lambda: abort(401))
    resilience = Resilience(app, storage=MemoryStorage(clock=FakeClock()))
    users = blueprint("users")
    app.register_blueprint(users)
    resilience.limit_blueprint(users, "1/minute")
    assert [401, 401] == statuses(app.test_client(), "/users/one", 2)


def test_limits_of_blueprints_hold_in_every_application_that_has_them() -> None:
    users = blueprint("users")
    resilience = Resilience(storage=MemoryStorage(clock=FakeClock()))
    resilience.limit_blueprint(users, "1/minute")
    clients = []
    for name in ("first", "second"):
        app = Flask(name)
        app.register_blueprint(users)
        resilience.init_app(app)
        clients.append(app.test_client())
    assert [200, 429] == statuses(clients[0], "/users/one", 2)
    assert [429] == statuses(clients[1], "/users/one", 1), "one storage, one blueprint, one bucket"


# -- exemptions ------------------------------------------------------------------------------------------------------


def test_a_view_can_be_exempt_from_what_it_did_not_ask_for() -> None:
    app, resilience = made(application_limits="1/minute", default_limits="1/minute")

    @app.get("/ping")
    @resilience.exempt
    def ping() -> str:
        return "pong"

    @app.get("/limited")
    @resilience.exempt
    @rate_limit("2/minute", name="its own")
    def limited() -> str:
        return "hello"

    client = app.test_client()
    assert [200] * 3 == statuses(client, "/ping", 3)
    assert [200, 200, 429] == statuses(client, "/limited", 3), "what it asked for holds"
    assert [200, 429] == statuses(client, "/one", 2)


def test_a_view_can_be_exempt_from_some_kinds_of_limits() -> None:
    app, resilience = made(application_limits="3/minute", default_limits="1/minute")

    @app.get("/ping")
    @resilience.exempt(kinds=["default"])
    def ping() -> str:
        return "pong"

    assert [200, 200, 200, 429] == statuses(app.test_client(), "/ping", 4)
    with pytest.raises(ValueError, match="choose from application, blueprint, default, route"):
        resilience.exempt(ping, kinds=["meta"])  # type: ignore[list-item]


def test_an_exempt_view_stays_so_under_other_decorators_and_as_a_class() -> None:
    app, resilience = made(default_limits="1/minute")
    resilience.exempt(Partly)
    app.add_url_rule("/partly", view_func=Partly.as_view("partly"))
    exempt = resilience.exempt(lambda: "pong")
    app.add_url_rule("/wrapped", "wrapped", rate_limit("9/minute", name="outer")(exempt))
    client = app.test_client()
    assert [200] * 3 == statuses(client, "/partly", 3, method="POST")
    assert [200] * 3 == statuses(client, "/wrapped", 3)


def test_a_blueprint_can_be_exempt_with_all_that_is_nested_in_it() -> None:
    app, resilience = made(default_limits="1/minute")
    inner = blueprint("inner")
    outer = resilience.exempt(blueprint("outer", nested=inner))
    app.register_blueprint(outer)
    client = app.test_client()
    assert [200] * 3 == statuses(client, "/outer/one", 3)
    assert [200] * 3 == statuses(client, "/outer/inner/one", 3)


def test_static_files_are_never_limited_nor_are_a_blueprint_s(tmp_path: Path) -> None:
    (tmp_path / "page.txt").write_text("hello")
    app = Flask("demo", static_folder=tmp_path, static_url_path="/static")
    Resilience(app, storage=MemoryStorage(clock=FakeClock()), application_limits="1/minute", default_limits="1/minute")
    pages = Blueprint("pages", __name__, static_folder=tmp_path, static_url_path="/static", url_prefix="/pages")
    app.register_blueprint(pages)
    client = app.test_client()
    for path in ("/static/page.txt", "/pages/static/page.txt"):
        for _ in range(3):
            with client.get(path) as answer:
                assert (200, b"hello") == (answer.status_code, answer.data)


def test_a_view_that_is_only_called_static_is_limited() -> None:
    app = Flask("demo", static_folder=None)
    Resilience(app, storage=MemoryStorage(clock=FakeClock()), default_limits="1/minute")
    app.add_url_rule("/static", "static", lambda: "hello")
    app.add_url_rule("/dotted", "no.blueprint.static", lambda: "hello")
    client = app.test_client()
    assert [200, 429] == statuses(client, "/static", 2)
    assert [200, 429] == statuses(client, "/dotted", 2)


def test_methods_that_callers_make_up_are_one() -> None:
    app, _ = made(default_limits="2/minute", default_limits_per_method=True)
    app.url_map.add(Rule("/any", endpoint="any"))
    app.view_functions["any"] = lambda: "hello"
    client = app.test_client()
    made_up = [client.open("/any", method=f"MADEUP{number}").status_code for number in range(3)]
    assert ([200, 200, 429], [200]) == (made_up, statuses(client, "/any", 1))


def test_what_flask_answers_to_options_by_itself_is_under_the_application_s_limit_alone() -> None:
    app, _ = made(application_limits="3/minute", default_limits="1/minute")
    client = app.test_client()
    assert [200, 200, 200, 429] == statuses(client, "/one", 4, method="OPTIONS")


# -- together --------------------------------------------------------------------------------------------------------


def test_all_of_them_are_one_decision() -> None:
    storage = Counting()
    app, resilience = made(storage=storage, application_limits="10/minute", route_limits={"users.one": "5/minute"})
    users = blueprint("users")
    resilience.limit_blueprint(users, "7/minute")
    app.register_blueprint(users)
    answer = app.test_client().get("/users/one")
    assert [3] == storage.decisions
    assert {"application": 9, "users": 6, "users.one": 4} == remaining(answer)


def test_what_one_of_them_refuses_is_taken_from_none() -> None:
    app, _ = made(application_limits="10/minute", default_limits="1/minute")
    client = app.test_client()
    assert [200, 429, 429] == [client.get("/one").status_code for _ in range(3)]
    assert {"application": 8, "default": 0} == remaining(client.get("/other"))


def test_a_request_that_its_view_s_limit_refuses_takes_nothing_from_those_before() -> None:
    app, _ = made(application_limits="5/minute")
    app.add_url_rule("/limited", "limited", rate_limit("1/minute", name="limited")(lambda: "hello"))
    client = app.test_client()
    answers = [client.get("/limited") for _ in range(6)]
    assert [200, 429, 429, 429, 429, 429] == [answer.status_code for answer in answers]
    # Each refusal shows what was left before it was given back, and never more than there is.
    assert [4, 3, 3, 3, 3, 3] == [remaining(answer)["application"] for answer in answers]
    assert {"application": 3} == remaining(client.get("/one"))


def test_a_refusal_that_the_view_bears_is_a_request_that_was_served() -> None:
    app, _ = made(application_limits="5/minute")
    limiter = RateLimiter("1/minute", name="inner")
    app.add_url_rule("/degraded", "degraded", lambda: "full" if limiter.try_acquire().allowed else "degraded")
    client = app.test_client()
    assert [4, 3, 2] == [remaining(client.get("/degraded"))["application"] for _ in range(3)]


BEARING: list[tuple[int, Callable[[RateLimited], Any]]] = [
    (404, lambda rejection: ("not here", 404)),
    (418, lambda rejection: ("tea", 418)),
    (429, lambda rejection: ("later", 429)),
    (503, lambda rejection: ("later", 503)),
]


@pytest.mark.parametrize(("status", "answer"), BEARING)
def test_a_view_that_makes_something_else_of_a_refusal_has_served(
    status: int, answer: Callable[[RateLimited], Any]
) -> None:
    app, _ = made(application_limits="5/minute")
    guarded = rate_limit("1/minute", name="guarded")(lambda: "hello")

    def view() -> Any:
        try:
            return guarded()
        except RateLimited as rejection:
            return answer(rejection)

    app.add_url_rule("/bearing", "bearing", view)
    client = app.test_client()
    assert [200, status, status] == statuses(client, "/bearing", 3, address="127.0.0.1")
    left = 3 if status in (429, 503) else 1
    assert {"application": left} == remaining(client.get("/one"))


def test_a_refusal_in_the_application_s_own_words_and_status_gives_back_too() -> None:
    by_limit, _ = made(application_limits="5/minute")
    by_handler, _ = made(application_limits="5/minute")
    by_handler.register_error_handler(429, lambda error: ("tea", 418))
    for app, response in ((by_limit, lambda rejection: ("tea", 418)), (by_handler, None)):
        view = rate_limit("1/minute", name="worded", response=response)(lambda: "hello")
        app.add_url_rule("/worded", "worded", view)
        client = app.test_client()
        assert [200, 418, 418] == [client.get("/worded").status_code for _ in range(3)]
        assert {"application": 3} == remaining(client.get("/one"))


@pytest.mark.parametrize("beside", [{}, {"route_limits": {"login": "9/hour"}}])
def test_what_was_taken_is_given_back_to_whom_it_was_taken_from(beside: dict[str, Any]) -> None:
    app, _ = made(application_limits="5/minute", key=lambda: g.get("user", "nobody"), **beside)
    guarded = rate_limit("1/minute", name="guarded", key="all")(lambda: "hello")

    @app.get("/login")
    def login() -> str:
        g.user = "somebody"
        return guarded()

    client = app.test_client()
    answers = [client.get("/login") for _ in range(4)]
    assert [200, 429, 429, 429] == [answer.status_code for answer in answers]
    assert [4, 3, 3, 3] == [remaining(answer)["application"] for answer in answers]
    assert 1 == app.extensions["resilience"].limiters()["demo:application"].snapshot().allowed


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cost": lambda: 1},
        {"methods": ["GET"]},
        {"per_method": True},
        {"exempt_when": lambda: False},
        {"on_breach": lambda rejection: None},
        {"shape": True},
    ],
)
@pytest.mark.parametrize("several", [False, True])
def test_a_limit_before_the_view_waits_whatever_else_it_says(several: bool, options: dict[str, Any]) -> None:
    clock = FakeClock()
    shape: dict[str, Any] = {"burst": 2} if options.get("shape") else {"burst": 1}
    waiting = RateLimiter("1/second", name="waiting", wait=1.0, clock=clock, **shape, **options)
    other = RateLimiter("9/second", name="other", clock=clock)
    app, _ = made(
        storage=MemoryStorage(clock=clock),
        route_limits={"one": waiting},
        **({"application_limits": other} if several else {}),
    )
    client = app.test_client()
    began = clock.seconds()
    assert [200, 200] == statuses(client, "/one", 2)
    assert (1.0, 1) == (clock.seconds() - began, waiting.snapshot().waited)


def test_nothing_is_looked_up_where_nothing_is_to_be_limited() -> None:
    app, _ = made()
    assert {} == app.before_request_funcs
    assert "RateLimit" not in app.test_client().get("/one").headers


def test_limits_that_cannot_be_decided_together_are_refused_at_the_start() -> None:
    with pytest.raises(ValueError, match="is not a rate limit"):
        made(default_limits="often")
    with pytest.raises(ValueError, match="two limits of the same period"):
        made(application_limits=["1/minute", "2/minute"])


def test_the_answer_to_head_is_limited_as_the_one_to_get() -> None:
    app, _ = made(default_limits="2/minute", default_limits_per_method=True)
    client = app.test_client()
    assert [200] == statuses(client, "/one", 1)
    assert [200, 429] == statuses(client, "/one", 2, method="HEAD")


def test_a_response_that_no_view_made_has_its_fields_too() -> None:
    app, _ = made(application_limits="5/minute")
    app.before_request(lambda: Response("early", 503))
    assert {"application": 4} == remaining(app.test_client().get("/one"))
