"""What holds, and where it was said: every option, every setting of a circuit, every argument of a limit."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

from flask import Response, jsonify

from resilience.adapters.answering import circuit_report
from resilience.adapters.flask import Application, current_application
from resilience.adapters.options import PREFIX, Options
from resilience.core.limiter import Limit
from resilience.decorators.limiter import RateLimiter
from resilience.ports import LimitStorage

__all__ = ["list_policies", "shown"]

_SECRET: Final = ("admin_token",)
_NO_POLICY: Final = ("limits", "name", "clock", "storage")
_ARGUMENTS: Final[Mapping[str, Any]] = {
    name: parameter.default
    for name, parameter in inspect.signature(RateLimiter.__init__).parameters.items()
    if name not in ("self", *_NO_POLICY)
}
_GROUPS: Final = ("application_limits", "default_limits", "route_limits")


def list_policies() -> Response:
    """What holds in the worker that was asked."""
    application = current_application()
    return jsonify(
        options=dict(_options(application)),
        circuits={name: _circuit(application, circuit) for name, circuit in sorted(application.circuits().items())},
        limiters={name: dict(_limiter(application, name)) for name in sorted(application.limiters())},
        workers={"answered": [application.worker.describe()], "unreached": [], "problem": ""},
    )


def shown(value: Any) -> Any:
    """A value as JSON takes it: functions by their names, addresses without passwords."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return _without_password(value)
    if isinstance(value, Mapping):
        return {str(key): shown(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        listed = [shown(each) for each in value]
        return sorted(listed, key=str) if isinstance(value, set | frozenset) else listed
    if isinstance(value, partial):
        return shown(value.func)
    if isinstance(value, LimitStorage):
        return value.uri
    if isinstance(value, Limit | RateLimiter):
        return str(value) if isinstance(value, Limit) else value.name
    if isinstance(value, Callable):  # type: ignore[arg-type]  # mypy knows it as a form, not as a class
        return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    return str(value)


def _options(application: Application) -> Iterator[tuple[str, dict[str, Any]]]:
    options: Options = application.options
    for name, origin in application.origins.items():
        value = getattr(options, name)
        if name in _SECRET:
            value = None if not value else "set"
        elif name == "storage_uri":
            value = application.storage.uri
        elif name == "state_uri":
            value = application.state.uri
        elif name == "peer_directory":
            value = application.siblings.directory  # worked out where none was given
        key = application.keys.get(name) or PREFIX + name.upper()
        yield name, {"value": shown(value), "origin": origin, "key": key}


def _circuit(application: Application, circuit: Any) -> dict[str, Any]:
    report = circuit_report(circuit)
    uri, origins = report["uri"], report["origins"]
    settings = {name: {"value": shown(value), "origin": origins[name]} for name, value in report["settings"].items()}
    origin = application.origins["state_uri"] if uri in (None, application.state.uri) else "code"
    return {**settings, "storage": {"value": uri, "origin": origin}}


def _limiter(application: Application, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    limiter: Any = application.limiters()[name]
    snapshot = limiter.snapshot(default_storage=application.storage)
    origin = _origin_of_limits(application, name)
    override = application.overrides.overridden(name)
    if override is not None:
        yield "limits", {"value": list(snapshot.limits), "origin": "override"}
        yield "own_limits", {"value": override["replaces"], "origin": origin}
    else:
        yield "limits", {"value": list(snapshot.limits), "origin": origin}
    own = getattr(limiter, "storage", None)
    yield "storage", {"value": snapshot.storage, "origin": "default" if own is None else "code"}
    for policy in getattr(limiter, "policies", ())[:1]:
        for argument, default in _ARGUMENTS.items():
            if hasattr(policy, argument):
                value = getattr(policy, argument)
                is_default = value == default or (argument == "title" and value == name) or (not value and not default)
                yield argument, {"value": shown(value), "origin": "default" if is_default else origin}


def _origin_of_limits(application: Application, name: str) -> str:
    """Limits before views are options of the application; every other is written where it stands."""
    start = f"{application.siblings.label}:"
    for group in _GROUPS:
        if name.startswith(f"{start}{group.removesuffix('_limits')}"):
            return application.origins[group]
    return "code"


def _without_password(text: str) -> str:
    if "://" not in text:
        return text
    try:
        parts = urlsplit(text)
        if parts.password is None and parts.username is None:
            return text
    except ValueError:
        return text.partition("://")[0] + "://..."
    return urlunsplit(parts._replace(netloc=f"***@{parts.netloc.rpartition('@')[2]}"))
