"""The real Flask-Limiter with strategy="token-bucket": what its users write, on memory, a server and shared memory."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from itertools import count
from typing import Any

import flask
import flask_limiter
import pytest
import redis
from flask.testing import FlaskClient
from flask_limiter.util import get_remote_address
from limits.errors import ConfigurationError
from limits.strategies import STRATEGIES

import resilience
from resilience.adapters.limits_strategy import TokenBucketRateLimiter
from tests.support.limit_storages import SERVERS, address_of
from tests.support.redis_server import RedisServer, running_redis, server_programs

_fresh = count()


class Service:
    """An application under a Flask-Limiter of its own, and a client of it."""

    def __init__(self, kind_or_uri: str, **options: Any) -> None:
        uri = kind_or_uri if ":" in kind_or_uri else address_of(kind_or_uri)
        if kind_or_uri in SERVERS:
            options.setdefault("storage_options", {"socket_timeout": 10.0})
        self.app = flask.Flask(__name__)
        options.setdefault("headers_enabled", True)
        self.limiter = flask_limiter.Limiter(
            get_remote_address,
            app=self.app,
            strategy="token-bucket",
            storage_uri=uri,
            key_prefix=f"test{next(_fresh)}",  # servers are shared and kept
            **options,
        )

    def view(self, rule: str, *limits: Any, **options: Any) -> None:
        """Add a view under these limits."""

        def answer() -> str:
            return "fine"

        for limit in limits:
            answer = self.limiter.limit(limit, **options)(answer)
        self.app.add_url_rule(rule, rule.strip("/"), answer)

    @property
    def client(self) -> FlaskClient:
        """A client."""
        return self.app.test_client()

    def statuses(self, path: str, calls: int, **options: Any) -> list[int]:
        """What so many calls are answered."""
        client = self.client
        return [client.get(path, **options).status_code for _ in range(calls)]


@pytest.fixture(params=["memory", "shm", *SERVERS])
def kind(request: pytest.FixtureRequest) -> str:
    address_of(request.param)
    return str(request.param)


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A server that the test may end."""
    programs = server_programs()
    if not programs:
        pytest.skip("no Redis-compatible server here")
    with running_redis(next(iter(programs.values()))) as running:
        yield running


def test_the_strategy_is_there_as_soon_as_the_library_is_imported() -> None:
    assert resilience.RateLimiter is not None
    assert issubclass(STRATEGIES["token-bucket"], TokenBucketRateLimiter)
    assert isinstance(Service("memory").limiter.limiter, TokenBucketRateLimiter)


def test_it_may_be_named_in_the_configuration() -> None:
    app = flask.Flask(__name__)
    app.config.update(RATELIMIT_STRATEGY="token-bucket", RATELIMIT_STORAGE_URI="memory://", RATELIMIT_DEFAULT="1/hour")
    flask_limiter.Limiter(get_remote_address).init_app(app)
    app.add_url_rule("/", "view", lambda: "fine")
    assert [200, 429] == [app.test_client().get("/").status_code for _ in range(2)]


def test_a_burst_is_admitted_and_the_rest_is_told_to_wait(kind: str) -> None:
    service = Service(kind)
    service.view("/view", "3/hour")
    assert [200, 200, 200, 429, 429] == service.statuses("/view", 5)


def test_another_caller_and_another_view_have_buckets_of_their_own(kind: str) -> None:
    service = Service(kind)
    service.view("/one", "1/hour")
    service.view("/other", "1/hour")
    assert [200, 429] == service.statuses("/one", 2)
    assert [200] == service.statuses("/other", 1)
    assert [200, 429] == service.statuses("/one", 2, environ_base={"REMOTE_ADDR": "192.0.2.7"})


def test_time_brings_one_after_the_other_and_not_a_window_at_once(kind: str) -> None:
    service = Service(kind)
    service.view("/view", "5/second")
    assert [200] * 5 == service.statuses("/view", 5)
    time.sleep(0.25)
    answers = service.statuses("/view", 5)
    assert 200 == answers[0]
    assert 429 in answers, "a quarter of a second gives one and a quarter, not five"


def test_headers_say_what_is_left_and_when_it_is_worth_coming_back(kind: str) -> None:
    service = Service(kind)
    service.view("/view", "10/hour", cost=4)  # a token in six minutes
    client, now = service.client, time.time()
    rows = []
    for _ in range(3):
        headers = client.get("/view").headers
        minutes = round((int(headers["X-RateLimit-Reset"]) - now) / 60), round(int(headers["Retry-After"]) / 60)
        rows.append((headers["X-RateLimit-Limit"], headers["X-RateLimit-Remaining"], *minutes))
    # The third finds two of four: it may come back when two more are there, not when all ten are.
    assert [("10", "6", 24, 24), ("10", "2", 48, 48), ("10", "2", 12, 12)] == rows


def test_several_limits_each_hold(kind: str) -> None:
    service = Service(kind)
    service.view("/view", "4/hour; 3/minute")
    answers = service.statuses("/view", 4)
    assert [200, 200, 200, 429] == answers
    headers = service.client.get("/view").headers
    assert ("3", "0") == (headers["X-RateLimit-Limit"], headers["X-RateLimit-Remaining"])


def test_a_view_may_cost_more_and_its_cost_be_worked_out(kind: str) -> None:
    service = Service(kind)
    service.view("/view", "10/hour", cost=lambda: int(flask.request.args["cost"]))
    costs = [("7", 200), ("4", 429), ("3", 200), ("0", 200), ("1", 429)]
    assert [status for _, status in costs] == [
        service.client.get("/view", query_string={"cost": cost}).status_code for cost, _ in costs
    ]


def test_a_shared_limit_is_one_bucket_for_many_views(kind: str) -> None:
    service = Service(kind)
    shared = service.limiter.shared_limit("2/hour", scope="both")
    for rule in ("/one", "/other"):
        service.app.add_url_rule(rule, rule.strip("/"), shared(lambda: "fine"))
    assert [200, 200, 429, 429] == [service.client.get(rule).status_code for rule in ("/one", "/other") * 2]


def test_default_and_application_limits_hold(kind: str) -> None:
    service = Service(kind, default_limits=["2/hour"], application_limits=["4/hour"])
    for rule in ("/one", "/other"):
        service.app.add_url_rule(rule, rule.strip("/"), lambda: "fine")
    # One after the other, as Flask-Limiter asks for them: what the view's refuses, the application's has taken.
    assert [200, 200, 429] == service.statuses("/one", 3)
    assert [200, 429] == service.statuses("/other", 2)


def test_what_is_counted_afterwards_is_looked_at_before(kind: str) -> None:
    service = Service(kind)

    @service.app.get("/view")
    @service.limiter.limit("2/hour", deduct_when=lambda response: bool(response.status_code == 400))
    def view() -> tuple[str, int]:
        return "answered", int(flask.request.args["status"])

    asked = ["200", "200", "400", "200", "400", "200", "400"]
    assert [200, 200, 400, 200, 400, 429, 429] == [
        service.client.get("/view", query_string={"status": status}).status_code for status in asked
    ]


def test_limits_for_those_who_go_too_far_hold(kind: str) -> None:
    service = Service(kind, meta_limits=["1/hour"])
    service.view("/view", "1/hour")
    service.view("/other", "9/hour")
    assert [200, 429] == service.statuses("/view", 2)
    assert [429] == service.statuses("/other", 1), "one breach an hour is all that is allowed"


def test_current_limits_and_breaches_are_told_to_those_who_ask(kind: str) -> None:
    breaches: list[tuple[str, int, bool]] = []

    def on_breach(limit: Any) -> flask.Response:
        breaches.append((str(limit.limit), limit.remaining, limit.breached))
        return flask.make_response("slow down", 429)

    service = Service(kind, on_breach=on_breach)

    @service.app.get("/view")
    @service.limiter.limit("1/hour")
    def view() -> str:
        current = service.limiter.current_limit
        assert current is not None
        return f"{current.remaining} left"

    assert ["0 left", "slow down"] == [service.client.get("/view").text for _ in range(2)]
    assert [("1 per 1 hour", 0, True)] == breaches


def test_a_cleared_limit_admits_again(kind: str) -> None:
    service = Service(kind)
    service.view("/view", "1/hour")
    assert [200, 429] == service.statuses("/view", 2)
    with service.app.test_request_context("/view"):
        service.app.full_dispatch_request()
        current = service.limiter.current_limit
        assert current is not None
        service.limiter.limiter.clear(current.limit, *current.request_args)
    assert [200, 429] == service.statuses("/view", 2)


def test_resetting_the_extension_admits_all_again() -> None:
    """Tests of applications do it between one test and the next."""
    service = Service("memory")
    service.view("/view", "1/hour")
    for _ in range(2):
        assert [200, 429] == service.statuses("/view", 2)
        service.limiter.reset()


def test_a_request_is_one_round_trip_for_each_limit_with_headers(server: RedisServer) -> None:
    service = Service(server.uri)
    service.view("/view", "100/hour")
    service.statuses("/view", 1)
    client = redis.Redis.from_url(server.uri)
    client.config_resetstat()
    assert [200] * 10 == service.statuses("/view", 10)
    commands = client.info("commandstats")
    # Those inside the script are its own; a fixed window of the package takes three of its own for the same.
    outside = {
        name: stats["calls"]
        for name, stats in commands.items()
        if not name.startswith(("cmdstat_config", "cmdstat_get"))
    }
    assert 10 == outside.get("cmdstat_evalsha", 0)
    assert not {"cmdstat_eval", "cmdstat_ttl", "cmdstat_ping"} & set(outside)
    client.close()


def test_a_caller_who_was_refused_costs_no_round_trip_to_refuse_again(server: RedisServer) -> None:
    service = Service(server.uri)
    service.view("/view", "1/hour")
    assert [200, 429] == service.statuses("/view", 2)
    client = redis.Redis.from_url(server.uri)
    client.config_resetstat()
    assert [429] * 20 == service.statuses("/view", 20)
    assert "cmdstat_evalsha" not in client.info("commandstats")
    client.close()


# When the server is down


def test_without_further_ado_an_error_is_an_error_of_the_storage(server: RedisServer) -> None:
    service = Service(server.uri)
    service.view("/view", "1/hour")
    service.app.testing = True  # errors reach the client
    server.stop()
    with pytest.raises(redis.RedisError):
        service.client.get("/view")


def test_errors_are_swallowed_where_that_is_asked_for(server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    service = Service(server.uri, swallow_errors=True)
    service.view("/view", "1/hour")
    server.stop()
    with caplog.at_level(logging.CRITICAL, "flask-limiter"):
        assert [200, 200, 200] == service.statuses("/view", 3)


def test_the_fallback_in_memory_decides_by_token_buckets_until_the_server_is_back(server: RedisServer) -> None:
    service = Service(server.uri, in_memory_fallback=["2/hour"])
    service.view("/view", "5/hour")
    assert [200] == service.statuses("/view", 1)
    server.stop()
    assert [200, 200, 429] == service.statuses("/view", 3)
    assert isinstance(service.limiter.limiter, TokenBucketRateLimiter)
    server.start()
    # It looks after the server when a request comes, at most once in a second at first.
    deadline = time.monotonic() + 20
    while service.client.get("/view").status_code == 429 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert [200, 200] == service.statuses("/view", 2)


def test_the_limits_themselves_hold_in_memory_while_the_server_is_down(server: RedisServer) -> None:
    service = Service(server.uri, in_memory_fallback_enabled=True)
    service.view("/view", "3/hour")
    server.stop()
    assert [200, 200, 200, 429] == service.statuses("/view", 4)


def test_a_strategy_that_is_not_known_is_still_refused() -> None:
    app = flask.Flask(__name__)
    with pytest.raises(ConfigurationError, match="leaky"):
        flask_limiter.Limiter(get_remote_address, app=app, strategy="leaky", storage_uri="memory://")


def test_other_strategies_work_as_before() -> None:
    app = flask.Flask(__name__)
    limiter = flask_limiter.Limiter(get_remote_address, app=app, strategy="moving-window", storage_uri="memory://")
    app.add_url_rule("/", "view", limiter.limit("1/hour")(lambda: "fine"))
    assert [200, 429] == [app.test_client().get("/").status_code for _ in range(2)]
