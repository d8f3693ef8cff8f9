"""What can be configured of the Flask extension, and where from: constructor, `app.config`, environment."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, get_args

from resilience.adapters.addresses import IPV6_PREFIX
from resilience.adapters.fields import STYLES, Style
from resilience.storage.standin import OnStoreFailure

__all__ = ["PREFIX", "Options", "Origin", "Source", "read_options", "read_origins", "refuse_unknown"]

PREFIX = "RESILIENCE_"
"""What the names of options begin with in `app.config` and in the environment."""

Origin = Literal["default", "code", "config", "environment", "file"]
"""Where a value comes from; "code" is the constructor, "file" one that holds this value alone."""

SHORTEST_TOKEN: Final = 16
"""Characters of an admin token."""


class Source(NamedTuple):
    """Where an application has read an option by itself, and what the option is called there."""

    origin: Origin
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Every option and its default; `Resilience` says what they mean."""

    storage_uri: str = "memory://"
    storage_timeout: float = 0.05
    storage_namespace: str = "seawall"
    on_store_failure: OnStoreFailure = "local"
    state_uri: str = "memory://"
    state_timeout: float = 0.05
    workers: int | None = None
    trusted_proxies: int = 0
    ipv6_prefix: int = IPV6_PREFIX
    key: Callable[[], str | tuple[object, ...] | None] | None = None
    headers: Style = "draft"
    enabled: bool = True
    shadow: bool = False
    on_breach: Callable[[Any], Any] | None = None
    response: Any = None
    application_limits: Any = None
    application_limits_per_method: bool = False
    application_limits_cost: int | Callable[[], int] = 1
    application_limits_exempt_when: Callable[[], bool] | None = None
    application_limits_deduct_when: Callable[[Any], bool] | None = None
    default_limits: Any = None
    default_limits_per_method: bool = False
    default_limits_cost: int | Callable[[], int] = 1
    default_limits_exempt_when: Callable[[], bool] | None = None
    default_limits_deduct_when: Callable[[Any], bool] | None = None
    route_limits: Mapping[str, Any] | None = None
    admin_token: str | None = None
    admin_port: int | None = None
    peer_directory: Path | None = None


_DEFAULTS: Mapping[str, Any] = {field.name: field.default for field in fields(Options)}


def refuse_unknown(names: Mapping[str, Any]) -> None:
    """Raise `TypeError` for a name that is no option, with those that are."""
    unknown = names.keys() - _DEFAULTS.keys()
    if unknown:
        raise TypeError(f"Resilience has no option {', '.join(sorted(unknown))}: it takes {', '.join(_DEFAULTS)}")


def read_options(
    given: Mapping[str, Any], config: Mapping[str, Any], environ: Mapping[str, str], *, settled: Collection[str] = ()
) -> Options:
    """The options out of the constructor's, overridden by `config`, overridden by `environ`; those named in `settled` out of
    the constructor's alone. None and empty texts say nothing. Raises `ValueError` naming the key, the value and what is
    accepted."""
    values: dict[str, Any] = {}
    for name, default in _DEFAULTS.items():
        origin, value = _found(name, given, *(({}, {}) if name in settled else (config, environ)))
        convert: Callable[[str, Any], Any] = _CONVERTERS.get(name, _text)
        values[name] = default if origin == "default" else convert(PREFIX + name.upper(), value)
    return Options(**values)


def read_origins(
    given: Mapping[str, Any], config: Mapping[str, Any], environ: Mapping[str, str]
) -> Mapping[str, Origin]:
    """Where each of the options comes from that `read_options` makes of the same, by name."""
    return {name: _found(name, given, config, environ)[0] for name in _DEFAULTS}


def _found(
    name: str, given: Mapping[str, Any], config: Mapping[str, Any], environ: Mapping[str, str]
) -> tuple[Origin, Any]:
    """The strongest that says something, and what it says."""
    key = PREFIX + name.upper()
    places: tuple[tuple[Origin, Any], ...] = (
        ("environment", environ.get(key)),
        ("config", config.get(key)),
        ("code", given.get(name)),
    )
    return next(((origin, value) for origin, value in places if not _is_nothing(value)), ("default", None))


def _is_nothing(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value)


def _text(key: str, value: Any) -> str:  # noqa: ARG001  # one signature for all
    return str(value)


def _as_it_is(key: str, value: Any) -> Any:  # noqa: ARG001
    return value


def _path(key: str, value: Any) -> Path:  # noqa: ARG001
    return Path(value)


def _callable(key: str, value: Any) -> Any:
    if not callable(value):
        raise ValueError(f"{key}={value!r}: use a function")  # noqa: TRY004  # whatever is configured wrongly is a ValueError
    return value


def _token(key: str, value: Any) -> str:
    text = str(value)
    if len(text) < SHORTEST_TOKEN:
        raise ValueError(
            f"{key} has {len(text)} characters: use {SHORTEST_TOKEN} or more that nobody guesses, "
            "such as python -c 'import secrets; print(secrets.token_urlsafe(48))' makes"
        )
    return text


def _switch(key: str, value: Any) -> bool:
    words = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
    if str(value).lower() not in words:
        raise ValueError(f"{key}={value!r}: use true or false")
    return words[str(value).lower()]


def _whole(least: int, most: int | None = None) -> Callable[[str, Any], int]:
    accepted = f"a whole number from {least}" + ("" if most is None else f" to {most}")

    def convert(key: str, value: Any) -> int:
        try:
            number = int(value)
        except (TypeError, ValueError):
            number = least - 1
        if number < least or (most is not None and number > most) or isinstance(value, bool):
            raise ValueError(f"{key}={value!r}: use {accepted}")
        return number

    return convert


def _seconds(key: str, value: Any) -> float:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ValueError(f"{key}={value!r}: use seconds above 0")
    return seconds


def _one_of(choices: tuple[str, ...]) -> Callable[[str, Any], str]:
    def convert(key: str, value: Any) -> str:
        if value not in choices:
            raise ValueError(f"{key}={value!r}: choose one of {', '.join(choices)}")
        return str(value)

    return convert


def _cost(key: str, value: Any) -> Any:
    return value if callable(value) else _whole(0)(key, value)


def _by_route(key: str, value: Any) -> Any:
    if not isinstance(value, Mapping):
        raise ValueError(  # noqa: TRY004
            f"{key}={value!r}: use a mapping from the names of endpoints to their limits"
        )
    return value


_CONVERTERS: Mapping[str, Callable[[str, Any], Any]] = {
    "storage_timeout": _seconds,
    "state_timeout": _seconds,
    "on_store_failure": _one_of(get_args(OnStoreFailure)),
    "workers": _whole(1),
    "trusted_proxies": _whole(0),
    "ipv6_prefix": _whole(1, 128),
    "key": _callable,
    "headers": _one_of(STYLES),
    "enabled": _switch,
    "shadow": _switch,
    "on_breach": _callable,
    "response": _as_it_is,
    "application_limits": _as_it_is,
    "application_limits_per_method": _switch,
    "application_limits_cost": _cost,
    "application_limits_exempt_when": _callable,
    "application_limits_deduct_when": _callable,
    "default_limits": _as_it_is,
    "default_limits_per_method": _switch,
    "default_limits_cost": _cost,
    "default_limits_exempt_when": _callable,
    "default_limits_deduct_when": _callable,
    "route_limits": _by_route,
    "admin_token": _token,
    "admin_port": _whole(1, 65_535),
    "peer_directory": _path,
}
