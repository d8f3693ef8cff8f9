"""Where options come from, and what is accepted."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from resilience.adapters.options import Options, read_options, read_origins, refuse_unknown


def test_without_anything_the_defaults_hold() -> None:
    assert Options() == read_options({}, {}, {})


def test_the_environment_is_stronger_than_the_configuration_and_that_than_the_constructor() -> None:
    options = read_options(
        {"trusted_proxies": 1, "headers": "both", "admin_token": "the-constructor-s"},
        {"RESILIENCE_TRUSTED_PROXIES": "2", "RESILIENCE_HEADERS": "off", "RESILIENCE_ADMIN_PORT": 8001},
        {"RESILIENCE_TRUSTED_PROXIES": "3", "RESILIENCE_STORAGE_URI": "memory://"},
    )
    assert (3, "off", 8001, "the-constructor-s", "memory://") == (
        options.trusted_proxies, options.headers, options.admin_port, options.admin_token, options.storage_uri
    )  # fmt: skip


def test_every_option_tells_where_it_comes_from() -> None:
    origins = read_origins(
        {"trusted_proxies": 1, "headers": "both", "admin_token": ""},
        {"RESILIENCE_HEADERS": "off", "RESILIENCE_STATE_URI": "shm://"},
        {"RESILIENCE_STATE_URI": "memory://", "RESILIENCE_WORKERS": ""},
    )
    assert {"trusted_proxies": "code", "headers": "config", "state_uri": "environment"} == {
        name: origin for name, origin in origins.items() if origin != "default"
    }


def test_what_the_application_has_read_by_itself_is_asked_for_nowhere_else() -> None:
    config, environ = (
        {"RESILIENCE_HEADERS": "off"},
        {"RESILIENCE_TRUSTED_PROXIES": "3", "RESILIENCE_ADMIN_TOKEN": "none"},
    )
    options = read_options({"trusted_proxies": 1}, config, environ, settled=("trusted_proxies", "admin_token"))
    assert (1, None, "off") == (options.trusted_proxies, options.admin_token, options.headers)


def test_a_token_that_could_be_guessed_is_refused_and_not_repeated() -> None:
    with pytest.raises(ValueError, match="RESILIENCE_ADMIN_TOKEN has 15 characters: use 16 or more") as refusal:
        read_options({}, {}, {"RESILIENCE_ADMIN_TOKEN": "fifteen-letters"})
    assert "fifteen" not in str(refusal.value)
    assert "sixteen-letters!" == read_options({"admin_token": "sixteen-letters!"}, {}, {}).admin_token


def test_what_is_empty_says_nothing() -> None:
    options = read_options(
        {"headers": "both"}, {"RESILIENCE_WORKERS": None, "RESILIENCE_HEADERS": ""}, {"RESILIENCE_PEER_DIRECTORY": ""}
    )
    assert ("both", None, None) == (options.headers, options.workers, options.peer_directory)


def test_texts_of_the_environment_become_what_the_option_takes() -> None:
    texts = {
        "STORAGE_TIMEOUT": "0.2",
        "WORKERS": "4",
        "IPV6_PREFIX": "56",
        "ENABLED": "no",
        "SHADOW": "1",
        "DEFAULT_LIMITS": "10/second; 100/hour",
        "DEFAULT_LIMITS_PER_METHOD": "on",
        "APPLICATION_LIMITS_COST": "2",
        "PEER_DIRECTORY": "/run/peers",
    }
    options = read_options({}, {}, {f"RESILIENCE_{name}": text for name, text in texts.items()})
    expected = Options(
        storage_timeout=0.2,
        workers=4,
        ipv6_prefix=56,
        enabled=False,
        shadow=True,
        default_limits="10/second; 100/hour",
        default_limits_per_method=True,
        application_limits_cost=2,
        peer_directory=Path("/run/peers"),
    )
    assert expected == options


def test_every_option_can_be_configured() -> None:
    functions = [f"{kind}_limits_{when}_when" for kind in ("default", "application") for when in ("exempt", "deduct")]
    given: dict[str, Any] = dict.fromkeys(["key", "on_breach", "application_limits_cost", *functions], len)
    mine = Options(**given, response="slow down", route_limits={"view": "1/second"})
    values = {field.name: getattr(mine, field.name) for field in dataclasses.fields(Options)}
    assert mine == read_options({}, {f"RESILIENCE_{name.upper()}": value for name, value in values.items()}, {})


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("TRUSTED_PROXIES", "many", "use a whole number from 0"),
        ("TRUSTED_PROXIES", -1, "use a whole number from 0"),
        ("IPV6_PREFIX", 129, "use a whole number from 1 to 128"),
        ("IPV6_PREFIX", True, "use a whole number from 1 to 128"),
        ("WORKERS", 0, "use a whole number from 1"),
        ("ADMIN_PORT", 65_536, "use a whole number from 1 to 65535"),
        ("STORAGE_TIMEOUT", "0", "use seconds above 0"),
        ("STORAGE_TIMEOUT", "inf", "use seconds above 0"),
        ("STORAGE_TIMEOUT", "soon", "use seconds above 0"),
        ("STORAGE_TIMEOUT", "nan", "use seconds above 0"),
        ("ENABLED", "perhaps", "use true or false"),
        ("HEADERS", "all", "choose one of draft, legacy, both, off"),
        ("ON_STORE_FAILURE", "panic", "choose one of local, allow, deny"),
        ("ON_BREACH", "log", "use a function"),
        ("KEY", "address", "use a function"),
        ("DEFAULT_LIMITS_COST", -1, "use a whole number from 0"),
        ("ROUTE_LIMITS", "1/second", "use a mapping from the names of endpoints to their limits"),
    ],
)
def test_a_bad_value_is_named_with_what_is_accepted(name: str, value: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as refused:
        read_options({}, {f"RESILIENCE_{name}": value}, {})
    assert str(refused.value).startswith(f"RESILIENCE_{name}={value!r}: ")


def test_an_unknown_option_is_refused_with_the_known_ones() -> None:
    with pytest.raises(TypeError, match=r"no option colour: it takes storage_uri, .*peer_directory"):
        refuse_unknown({"colour": "blue"})
