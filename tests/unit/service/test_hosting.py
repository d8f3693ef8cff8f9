from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import SecretStr

from longconn import configuration
from longconn.errors import HeadTooSlow
from service import hosting, lifecycle
from service.settings import Settings

SECRET = SecretStr("x" * 32)


@pytest.fixture(autouse=True)
def _hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is configured here is forgotten afterwards."""
    monkeypatch.setattr(configuration, "_hooks", configuration.Hooks())


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Iterator[lifecycle.Lifecycle]:
    monkeypatch.setattr(lifecycle, "process", lifecycle.Lifecycle())
    yield lifecycle.process
    lifecycle.process.shut_down()


def settings(**values: Any) -> Settings:
    return Settings(token_secret=SECRET, **values)


def configure(*, environ: dict[str, str] | None = None, max_connections: int = 1000, **values: Any) -> Any:
    return hosting.configure(
        settings(**values), idle_timeout=65, max_connections=max_connections, environ=environ or {}
    )


def test_what_the_service_is_set_to_is_what_the_worker_runs_with() -> None:
    in_force = configure(drain_delay=5.0, admin_port=9001)
    assert (5.0, 65.0, 1000) == (in_force.drain_delay, in_force.idle_timeout, in_force.max_connections)
    assert ((":9001",), 64) == (in_force.reserved_listeners, in_force.reserved_connections)
    assert 5.0 == configuration.hooks().defaults["drain_delay"]


def test_channels_have_a_place_of_their_own_for_each_service_on_a_machine() -> None:
    assert "seawall-9000" == configure(port=9000).channels
    assert "elsewhere" == configure(environ={"LONGCONN_CHANNELS": "elsewhere"}, port=9000).channels


def test_an_application_hears_that_its_worker_has_begun() -> None:
    booted: list[str] = []
    hosting.on_worker_booted(SimpleNamespace(wsgi=SimpleNamespace(on_worker_booted=lambda: booted.append("service"))))
    hosting.on_worker_booted(SimpleNamespace(wsgi=object()))  # another application
    assert ["service"] == booted


def test_the_environment_overrules_it() -> None:
    environ = {"LONGCONN_DRAIN_DELAY": "7", "LONGCONN_HEAD_TIMEOUT": "3"}
    in_force = configure(environ=environ, drain_delay=5.0)
    assert (7.0, 3.0) == (in_force.drain_delay, in_force.head_timeout)


def test_few_places_leave_the_public_listener_some() -> None:
    assert 1 == configure(max_connections=2).reserved_connections


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("LONGCONN_HEAD_TIMEOUT", "soon", "LONGCONN_HEAD_TIMEOUT='soon': takes seconds"),
        ("LONGCONN_HEAT_TIMEOUT", "3", "LONGCONN_HEAT_TIMEOUT: there is no such setting"),
        ("LONGCONN_RESERVED_LISTENERS", ":8000", "LONGCONN_RESERVED_LISTENERS must not be set"),
    ],
)
def test_a_variable_that_cannot_be_used_ends_the_start_with_its_name(variable: str, value: str, reason: str) -> None:
    with pytest.raises(SystemExit, match=f"seawall does not start: {reason}"):
        configure(environ={variable: value})


def test_a_worker_that_leaves_is_not_ready_any_more(process: lifecycle.Lifecycle) -> None:
    configure()
    hook: Any = configuration.hooks().on_drain
    hook(SimpleNamespace(replaced=False))
    assert process.draining


def test_a_worker_that_is_replaced_stays_ready(process: lifecycle.Lifecycle) -> None:
    configure()
    hook: Any = configuration.hooks().on_drain
    hook(SimpleNamespace(replaced=True))
    assert not process.draining


def test_what_the_process_holds_is_given_back_when_all_are_gone(process: lifecycle.Lifecycle) -> None:
    given_back: list[str] = []
    process.on_shutdown("database", lambda: given_back.append("database"))
    configure()
    hook: Any = configuration.hooks().on_drained
    hook(SimpleNamespace(), 2.0)
    assert ["database"] == given_back


def test_refusals_are_problem_documents() -> None:
    configure()
    hook: Any = configuration.hooks().render_refusal
    head, _, body = hook(HeadTooSlow(""), None, ("192.0.2.1", 4711)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert 10009 == json.loads(body)["code"]


@pytest.mark.parametrize(
    ("files", "backends", "expected"),
    [
        (1024, 0, 1024 - 128 - 138),
        (1024, 2, 1024 - 128 - 338),
        (1_048_576, 0, 1_048_576 - 512 - 138),
        (200, 2, 2),
        (resource.RLIM_INFINITY, 0, 1_048_576 - 512 - 138),
    ],
)
def test_clients_get_the_files_that_the_worker_does_not_need_itself(
    monkeypatch: pytest.MonkeyPatch, files: int, backends: int, expected: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, files))
    named = {f"b{number}": "http://127.0.0.1:9" for number in range(backends)}
    assert expected == hosting.connections_beside(settings(backends=named, backend_connections=100))
