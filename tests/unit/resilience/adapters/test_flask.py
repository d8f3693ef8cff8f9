"""The Flask extension: decorators in views, fields, rejections, several applications in one process."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pybreaker
import pytest
from flask import Flask
from flask.views import View

from resilience import CircuitBreaker, MemoryStorage, RateLimiter, Rejected, Resilience, circuit_breaker, rate_limit
from resilience.adapters.flask import current_application
from resilience.adapters.peers import Peers
from resilience.registry import PROCESS_REGISTRY
from resilience.scope import PROCESS, current_scope
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


def test_fields_can_be_switched_off() -> None:
    assert "RateLimit" not in made(headers_enabled=False).test_client().get("/").headers


def test_an_open_circuit_is_a_503_with_retry_after() -> None:
    app = made()
    guarded = circuit_breaker("backend", fail_max=1, reset_timeout=7)(lambda: 1 / 0)
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


def test_the_environment_is_stronger_than_the_configuration_and_that_than_the_constructor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app = Flask("demo")
    app.config.update(RESILIENCE_TRUSTED_PROXIES="2", RESILIENCE_HEADERS_ENABLED=False, RESILIENCE_ADMIN_PORT=8001)
    monkeypatch.setenv("RESILIENCE_TRUSTED_PROXIES", "3")
    monkeypatch.setenv("RESILIENCE_STORAGE_URI", "memory://")
    monkeypatch.setenv("RESILIENCE_PEER_DIRECTORY", "")
    Resilience(trusted_proxies=1, headers_enabled=True, admin_token="constructor").init_app(app)
    with app.app_context():
        options = current_application().options
    assert (3, False, 8001, "constructor", None) == (
        options.trusted_proxies, options.headers_enabled, options.admin_port, options.admin_token, options.peer_directory
    )  # fmt: skip


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"RESILIENCE_TRUSTED_PROXIES": "many"}, "RESILIENCE_TRUSTED_PROXIES='many': use a whole number from 0"),
        ({"RESILIENCE_HEADERS_ENABLED": "perhaps"}, "RESILIENCE_HEADERS_ENABLED='perhaps': use true or false"),
        ({"RESILIENCE_STORAGE_URI": "ftp://x"}, "'ftp' is no storage"),
        ({"RESILIENCE_ON_STORAGE_FAILURE": "panic"}, "RESILIENCE_ON_STORAGE_FAILURE='panic': choose one of local"),
    ],
)
def test_a_bad_value_stops_the_start_and_is_named(config: dict[str, str], reason: str) -> None:
    app = Flask("demo")
    app.config.update(config)
    with pytest.raises(ValueError, match=reason):
        Resilience(app)


def test_an_unknown_option_is_refused_with_the_known_ones() -> None:
    with pytest.raises(TypeError, match=r"no option colour: it takes storage_uri"):
        Resilience(colour="blue")


def test_closing_an_application_takes_its_socket_away(tmp_path: Path) -> None:
    folder = tmp_path / "peers"
    app = made(peer_directory=folder)
    with app.app_context():
        assert 1 == len(list(folder.glob("*.sock")))
        current_application().close()
        assert [] == list(folder.glob("*.sock"))
