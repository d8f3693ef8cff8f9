"""What holds, and where it was said."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from resilience import CircuitBreaker, Limit, MemoryStorage, RateLimiter, circuit_breaker
from resilience.adapters.admin.policies import shown
from resilience.adapters.options import Options, Source
from resilience.registry import PROCESS_REGISTRY
from resilience.storage.state_memory import MemoryStateStorage
from tests.support.operating import TOKEN, Operated


@pytest.fixture(autouse=True)
def _own_registry() -> Iterator[None]:
    PROCESS_REGISTRY.clear()
    yield
    PROCESS_REGISTRY.clear()


def policies(call: Operated) -> Any:
    return call("GET", "/admin/policies").get_json()


def test_every_option_tells_its_value_and_where_it_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESILIENCE_STORAGE_NAMESPACE", "shop")
    options = policies(Operated(trusted_proxies=1))["options"]
    assert [
        {"value": "shop", "origin": "environment", "key": "RESILIENCE_STORAGE_NAMESPACE"},
        {"value": 1, "origin": "code", "key": "RESILIENCE_TRUSTED_PROXIES"},
        {"value": "draft", "origin": "default", "key": "RESILIENCE_HEADERS"},
    ] == [options[name] for name in ("storage_namespace", "trusted_proxies", "headers")]


def test_a_storage_that_was_given_as_an_object_was_said_in_code() -> None:
    options = policies(Operated())["options"]
    assert ("memory://", "code") == (options["storage_uri"]["value"], options["storage_uri"]["origin"])
    assert ("memory://", "default") == (options["state_uri"]["value"], options["state_uri"]["origin"])


def test_what_a_given_storage_does_not_ask_for_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STORAGE_TIMEOUT", "STATE_TIMEOUT"):
        monkeypatch.setenv(f"RESILIENCE_{name}", "0.4")
    silent = {"storage_timeout", "on_store_failure", "workers"}
    assert silent == Options.__dataclass_fields__.keys() - policies(Operated())["options"].keys()
    both = policies(Operated(state=MemoryStateStorage()))["options"]
    assert {*silent, "state_timeout", "storage_namespace"} == Options.__dataclass_fields__.keys() - both.keys()


def test_what_an_application_has_read_by_itself_is_told_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESILIENCE_STORAGE_TIMEOUT", "0.4")
    sources = {"storage_timeout": Source("config", "LIMITS_TIMEOUT"), "storage_uri": Source("file", "LIMITS")}
    options = policies(Operated(sources=sources, storage_timeout=0.2))["options"]
    assert {"value": 0.2, "origin": "config", "key": "LIMITS_TIMEOUT"} == options["storage_timeout"]
    assert {"value": "memory://", "origin": "file", "key": "LIMITS"} == options["storage_uri"]


def test_the_token_is_not_told() -> None:
    call = Operated()
    assert "set" == policies(call)["options"]["admin_token"]["value"]
    assert TOKEN not in call("GET", "/admin/policies").text


def test_every_setting_of_a_circuit_tells_whether_it_was_given() -> None:
    call = Operated()
    call.application.registry.add_circuit(CircuitBreaker(name="rates", failure_rate=0.5))
    found = policies(call)["circuits"]
    assert {"value": 2, "origin": "code"} == found["pay/ments"]["fail_max"]
    assert {"value": 1, "origin": "default"} == found["pay/ments"]["success_threshold"]
    assert {"value": None, "origin": "default"} == found["pay/ments"]["storage"]
    assert {"value": 0.5, "origin": "code"} == found["rates"]["failure_rate"]


def test_what_the_decorator_begins_with_is_a_default_and_the_words_are_those_of_the_snapshot() -> None:
    circuit = circuit_breaker("begun", fail_max=2)(str).circuit  # type: ignore[attr-defined]
    found = policies(Operated())["circuits"]["begun"]
    PROCESS_REGISTRY.clear()
    assert {"value": 2.0, "origin": "default"} == found["open_time_growth"]
    assert {name: (each.value, each.origin) for name, each in circuit.snapshot().policy.items()} == {
        name: (each["value"], each["origin"]) for name, each in found.items() if name != "storage"
    }


def test_every_argument_of_a_limiter_is_told() -> None:
    call = Operated(default_limits="10/second")
    call.application.registry.add_limiter(RateLimiter("1/second", name="mine", shadow=True, exempt_when=_never))
    found = policies(call)["limiters"]
    assert {"value": ["2 per 60 s"], "origin": "code"} == found["api"]["limits"]
    assert {"value": "memory://", "origin": "code"} == found["api"]["storage"]
    assert {"value": True, "origin": "code"} == found["mine"]["shadow"]
    assert {"value": f"{__name__}._never", "origin": "code"} == found["mine"]["exempt_when"]
    assert {"value": 1, "origin": "default"} == found["mine"]["cost"]
    assert {"value": ["10 per 1 s"], "origin": "code"} == found["demo:default"]["limits"]


def test_limits_of_the_environment_are_said_to_be_from_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESILIENCE_DEFAULT_LIMITS", "10/second")
    assert "environment" == policies(Operated())["limiters"]["demo:default"]["limits"]["origin"]


def test_limits_under_an_override_are_told_beside_their_own() -> None:
    call = Operated()
    call("POST", "/admin/limiters/api/override", {"limits": "1/hour", "ttl": 60})
    found = policies(call)["limiters"]["api"]
    assert {"value": ["1 per 3600 s"], "origin": "override"} == found["limits"]
    assert {"value": ["2 per 60 s"], "origin": "code"} == found["own_limits"]


def _never() -> bool:
    return False


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (0.5, 0.5),
        (Path("/run"), "/run"),
        (frozenset({"b", "a"}), ["a", "b"]),
        ({"view": ["1/second", Limit(1, 60)]}, {"view": ["1/second", "1 per 60 s"]}),
        (MemoryStorage(), "memory://"),
        (functools.partial(_never), f"{__name__}._never"),
        ("redis://:secret@host/0", "redis://***@host/0"),
        ("redis://user:secret@host/0", "redis://***@host/0"),
        ("redis://host/0", "redis://host/0"),
        ("http://[", "http://..."),
        ("10/second", "10/second"),
    ],
)
def test_values_are_shown_without_secrets(value: Any, expected: Any) -> None:
    assert expected == shown(value)
