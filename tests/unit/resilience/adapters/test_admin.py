"""The admin endpoint: one answer for all workers, and none at all for those who have no business there."""

from __future__ import annotations

import logging
import operator
import socket
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.middleware.proxy_fix import ProxyFix

from resilience import (
    CircuitBreaker,
    Decision,
    Limit,
    MemoryStorage,
    RateLimiter,
    Resilience,
    StorageUnavailable,
    create_admin_blueprint,
)
from resilience.adapters.admin import _merge_circuit, _merge_storage
from resilience.adapters.peers import Answers
from resilience.core.limiter import Charge, Refund
from resilience.registry import PROCESS_REGISTRY
from resilience.storage.standin import StandInStorage
from resilience.testing import FakeClock, RecordingListener

TOKEN = "a-token-for-tests-that-is-long-enough"


class Caller:
    """An application with one circuit and one limiter, and its admin endpoint as an operator calls it."""

    def __init__(self, **options: Any) -> None:
        self.clock = FakeClock()
        self.circuit = CircuitBreaker(name="pay/ments", fail_max=2, reset_timeout=10, clock=self.clock)
        self.limiter = RateLimiter("2/minute", name="api", key="k", storage=MemoryStorage(clock=self.clock))
        app = Flask("demo")
        Resilience(app, circuits=[self.circuit], limiters=[self.limiter], **{"admin_token": TOKEN, **options})
        app.register_blueprint(create_admin_blueprint())
        self.client: FlaskClient = app.test_client()

    def __call__(self, method: str, path: str, token: str | None = TOKEN, port: int = 8001) -> Any:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return self.client.open(path, method=method, headers=headers, environ_overrides={"SERVER_PORT": str(port)})


@pytest.fixture
def call() -> Iterator[Caller]:
    PROCESS_REGISTRY.clear()
    yield Caller()
    PROCESS_REGISTRY.clear()


def test_circuits_are_listed_with_state_counts_and_settings(call: Caller) -> None:
    call.circuit.call(lambda: None)
    answer = call("GET", "/admin/circuits")
    (circuit,) = answer.get_json()["circuits"]
    assert "no-store" == answer.headers["Cache-Control"]
    assert {
        "name": "pay/ments",
        "state": "closed",
        "states": {"closed": 1},
        "retry_after": 0.0,
        "failures": 0,
        "calls": {"succeeded": 1, "failed": 0, "ignored": 0, "not_permitted": 0},
        "settings": {"fail_max": 2, "reset_timeout": 10, "success_threshold": 1, "half_open_max_calls": 1},
    } == circuit


def test_a_circuit_can_be_opened_closed_and_reset(call: Caller) -> None:
    for action, state in (("open", "open"), ("close", "closed"), ("open", "open"), ("reset", "closed")):
        answer = call("POST", f"/admin/circuits/pay/ments/{action}").get_json()
        assert (state, state) == (answer["circuit"]["state"], call.circuit.current_state)
        assert 1 == len(answer["circuit"]["by_worker"])


def test_reading_never_changes_anything(call: Caller) -> None:
    assert 404 == call("GET", "/admin/circuits/pay/ments/open").status_code, "it reads as the name of another circuit"
    assert "closed" == call.circuit.current_state


def test_one_circuit_is_shown_worker_by_worker(call: Caller) -> None:
    call.circuit.open()
    call.clock.advance(4)
    circuit = call("GET", "/admin/circuits/pay/ments").get_json()["circuit"]
    assert ("open", 6.0, 6.0) == (circuit["state"], circuit["retry_after"], circuit["by_worker"][0]["retry_after"])


def test_an_unknown_circuit_is_not_found(call: Caller) -> None:
    assert 404 == call("GET", "/admin/circuits/nonsense").status_code
    assert 404 == call("POST", "/admin/circuits/nonsense/open").status_code


def test_limiters_are_listed_with_what_they_decided(call: Caller) -> None:
    for _ in range(3):
        call.limiter.try_acquire()
    (limiter,) = call("GET", "/admin/limiters").get_json()["limiters"]
    assert {
        "name": "api",
        "limits": ["2 per 60 s"],
        "storage": "memory://",
        "allowed": 2,
        "denied": 1,
        "shadow_denied": 0,
        "waited": 0,
        "exempted": 0,
    } == limiter


def test_limits_of_the_application_are_listed_once_however_many_routes_there_are(call: Caller) -> None:
    call = Caller(application_limits="100/minute", default_limits="2/minute")
    for path in ("/nothing", "/admin/circuits", "/admin/circuits", "/admin/circuits"):
        call("GET", path)
    listed = {each["name"]: each for each in call("GET", "/admin/limiters").get_json()["limiters"]}
    assert {"api", "demo:application", "demo:default"} == listed.keys()
    assert (4, 3, 1) == (
        listed["demo:application"]["allowed"], listed["demo:default"]["allowed"], listed["demo:default"]["denied"]
    )  # fmt: skip


def test_the_storage_is_shown_with_who_decides() -> None:
    class Gone(MemoryStorage):
        def take(self, charges: Sequence[Charge]) -> Decision:
            raise StorageUnavailable("gone")

    storage = StandInStorage(Gone(), clock=FakeClock(), probing=False)
    call = Caller(storage=storage)
    assert ("primary", {"primary": 1}) == operator.itemgetter("mode", "modes")(
        call("GET", "/admin/limiters").get_json()["storage"]
    )
    for _ in range(3):
        storage.take([Charge("scope", "subject", Limit(1, 60), 1)])
    assert {
        "uri": "memory://",
        "mode": "local",
        "modes": {"local": 1},
        "since": 0.0,
        "failures": 1,
        "changes": 1,
        "decided_locally": 3,
    } == call("GET", "/admin/limiters").get_json()["storage"]


def test_a_storage_without_a_stand_in_always_decides_itself(call: Caller) -> None:
    storage = call("GET", "/admin/limiters").get_json()["storage"]
    assert ("memory://", "primary", 0) == (storage["uri"], storage["mode"], storage["failures"])


def test_workers_that_disagree_about_the_storage_are_counted_by_mode() -> None:
    def answer(mode: str, since: float) -> dict[str, Any]:
        counts = {"failures": 1, "changes": 2, "decided_locally": 3}
        return {"storage": {"uri": "redis://limits", "mode": mode, "since": since, **counts}}

    answers = Answers({1: answer("primary", 9.0), 2: answer("local", 4.0), 3: answer("local", 2.0)}, ())
    merged = _merge_storage(answers)
    assert ("local", {"primary": 1, "local": 2}, 2.0, 9) == (
        merged["mode"], merged["modes"], merged["since"], merged["decided_locally"]
    )  # fmt: skip


def test_the_bucket_of_one_caller_can_be_filled(call: Caller, caplog: pytest.LogCaptureFixture) -> None:
    for key in ("k", "other"):
        while call.limiter.try_acquire(key).allowed:
            pass
    with caplog.at_level(logging.WARNING, "resilience.audit"):
        answer = call("POST", "/admin/limiters/api/reset?key=other")
    assert (200, "other", "api") == (answer.status_code, answer.get_json()["key"], answer.get_json()["limiter"]["name"])
    assert [False, True] == [call.limiter.try_acquire(key).allowed for key in ("k", "other")]
    assert "limiter 'api': reset for 'other' by 127.0.0.1" in caplog.text


def test_a_caller_s_default_limit_is_filled_for_every_route() -> None:
    call = Caller(default_limits="2/hour", storage=MemoryStorage(clock=FakeClock()))
    paths = ("/admin/circuits", "/admin/circuits/pay/ments")
    assert [200, 200, 429] * 2 == [call("GET", path).status_code for path in paths for _ in range(3)]
    assert 200 == call("POST", "/admin/limiters/demo:default/reset?key=127.0.0.1").status_code
    assert [200, 200] == [call("GET", path).status_code for path in paths]


def test_a_reset_needs_a_limiter_and_a_key(call: Caller) -> None:
    assert 404 == call("POST", "/admin/limiters/nonsense/reset?key=k").status_code
    assert 400 == call("POST", "/admin/limiters/api/reset").status_code
    assert 400 == call("POST", f"/admin/limiters/api/reset?key={'k' * 1_025}").status_code
    assert 405 == call("GET", "/admin/limiters/api/reset?key=k").status_code


def test_a_storage_that_cannot_be_reset_does_not_fail_the_operator(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(MemoryStorage):
        def give_back(self, refunds: Sequence[Refund]) -> None:
            raise StorageUnavailable("gone")

    limiter = RateLimiter("2/minute", name="broken", storage=Broken())
    call = Caller()
    call.client.application.extensions["resilience"].registry.add_limiter(limiter)
    assert 200 == call("POST", "/admin/limiters/broken/reset?key=k").status_code
    assert "rate limit 'broken' was not reset" in caplog.text


@pytest.mark.parametrize("token", [None, "", "wrong", TOKEN + "x", TOKEN[:-1], "ümlaut"])
def test_without_the_token_nothing_is_told(call: Caller, token: str | None) -> None:
    answer = call("GET", "/admin/circuits", token=token)
    assert (401, "Bearer realm=admin") == (answer.status_code, answer.headers["WWW-Authenticate"])


def test_on_another_listener_it_does_not_exist() -> None:
    call = Caller(admin_port=8001)
    assert 200 == call("GET", "/admin/circuits").status_code
    assert 404 == call("GET", "/admin/circuits", port=8000).status_code


@pytest.mark.parametrize("token", [None, ""])
def test_without_a_configured_token_it_does_not_exist(token: str | None) -> None:
    call = Caller(admin_token=token)
    assert 404 == call("POST", "/admin/circuits").status_code
    assert 404 == call("DELETE", "/admin/limiters").status_code
    assert 404 == call("GET", "/admin/circuits").status_code
    assert 404 == call("POST", "/admin/circuits/pay/ments/open", token="").status_code


def test_a_client_or_a_proxy_cannot_claim_the_admin_port() -> None:
    call = Caller(admin_port=8001)
    app = call.client.application
    app.wsgi_app = ProxyFix(app.wsgi_app, x_host=1, x_port=1)  # type: ignore[method-assign]  # as its documents say
    headers = {"Authorization": f"Bearer {TOKEN}", "X-Forwarded-Host": "example.org:8001", "X-Forwarded-Port": "8001"}
    answer = call.client.get("/admin/circuits", headers=headers, environ_overrides={"SERVER_PORT": "8000"})
    assert 404 == answer.status_code
    with socket.socket(socket.AF_UNIX) as unix, socket.create_server(("127.0.0.1", 0)) as public:
        for listening in (unix, public):
            environ = {"gunicorn.socket": listening, "SERVER_PORT": "8001"}
            assert 404 == call.client.get("/admin/circuits", headers=headers, environ_overrides=environ).status_code


def test_a_listener_that_raises_does_not_fail_the_operator(call: Caller) -> None:
    class Raising(RecordingListener):
        def state_change(self, cb: Any, old_state: Any, new_state: Any) -> None:
            raise RuntimeError("broken metrics")

    call.circuit.add_listener(Raising())
    answer = call("POST", "/admin/circuits/pay/ments/open")
    assert (200, "open") == (answer.status_code, answer.get_json()["circuit"]["state"])


def test_workers_that_disagree_are_shown_as_the_most_restrictive() -> None:
    def snapshot(state: str, retry_after: float) -> dict[str, Any]:
        counts = dict.fromkeys(("succeeded", "failed", "ignored", "not_permitted", "failures", "successes"), 2)
        settings = dict.fromkeys(("fail_max", "reset_timeout", "success_threshold", "half_open_max_calls"), 1)
        return {"name": "x", "state": state, "retry_after": retry_after, **counts, **settings}

    merged = _merge_circuit(
        "x", [(1, snapshot("closed", 0.0)), (2, snapshot("open", 5.0)), (3, snapshot("half-open", 1.0))]
    )
    assert ("open", {"closed": 1, "open": 1, "half-open": 1}, 5.0, 6) == (
        merged["state"], merged["states"], merged["retry_after"], merged["calls"]["failed"]
    )  # fmt: skip
