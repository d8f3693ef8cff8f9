"""The Flask extension: configuration, who is calling, response fields, rejections as responses."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from flask import Flask, Response, current_app, has_app_context, has_request_context, request

from resilience.adapters.addresses import client_key
from resilience.adapters.fields import problem_details, rate_limit_fields, retry_after_field
from resilience.adapters.peers import Message, Peers
from resilience.core.limiter import Decision
from resilience.decorators.breaker import CircuitBreaker
from resilience.decorators.limiter import RateLimiter
from resilience.errors import Rejected
from resilience.ports import LimitStorage, Scope
from resilience.registry import PROCESS_REGISTRY, Circuit, Limiter, Registry
from resilience.scope import PROCESS, resolve_scope_with
from resilience.storage.address import open_storage
from resilience.storage.standin import OnFailure

__all__ = ["Application", "Resilience", "current_application"]

_EXTENSION = "resilience"
_DECISIONS = "resilience.decisions"
_NO_EXTENSION = "this application has no Resilience: call Resilience(app) when it is made"
_LOG = logging.getLogger(__name__)
_PREFIX = "RESILIENCE_"
_ACTIONS: Mapping[str, Callable[[Circuit], object]] = {
    "open": lambda circuit: circuit.open(),
    "close": lambda circuit: circuit.close(),
    "reset": lambda circuit: circuit.reset(),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Options:
    """What can be configured; the names with the prefix RESILIENCE_ are the keys of `app.config` and the environment."""

    storage_uri: str = "memory://"
    on_storage_failure: OnFailure = "local"
    trusted_proxies: int = 0
    headers_enabled: bool = True
    admin_token: str | None = None
    admin_port: int | None = None
    peer_directory: Path | None = None


class Application:
    """The library's side of one Flask application: its storage, its own policies, its siblings in other processes."""

    def __init__(
        self,
        name: str,
        options: _Options,
        *,
        storage: LimitStorage | None,
        circuits: Iterable[Circuit],
        limiters: Iterable[Limiter],
    ) -> None:
        self.options = options
        # An empty memory storage is false: it has a length.
        self.storage: LimitStorage = (
            storage if storage is not None else open_storage(options.storage_uri, on_failure=options.on_storage_failure)
        )
        self.registry = Registry(circuits=circuits, limiters=limiters)
        self.peers = Peers(self._answer, directory=options.peer_directory, label=name)

    def caller(self) -> str:
        """The client's address in a request, else "process"."""
        if not has_request_context():
            return "process"
        current = _behind(request)
        proxies = self.options.trusted_proxies
        return client_key(current.remote_addr, current.headers.get("X-Forwarded-For") if proxies else None, proxies)

    def observe(self, policy: str, title: str, decision: Decision) -> None:
        """Keep each policy's last decision for the response fields of the current request."""
        if has_request_context():
            # In the request's own environment: `g` belongs to the application context, which may outlive a request.
            _behind(request).environ.setdefault(_DECISIONS, {})[policy] = (title, decision)

    def circuits(self) -> dict[str, Circuit]:
        """Every circuit that this application can reach, by name."""
        return {**PROCESS_REGISTRY.circuits, **self.registry.circuits}

    def limiters(self) -> dict[str, Limiter]:
        """Every rate limiter that this application can reach, by name."""
        return {**PROCESS_REGISTRY.limiters, **self.registry.limiters}

    def listen_again(self) -> None:
        """Answer siblings in this process too, if it was forked. What goes wrong is logged: it is no caller's trouble."""
        if self.peers.is_listening:
            return
        try:
            self.peers.listen()
        except (OSError, ValueError):
            _LOG.exception("this worker does not answer its siblings")
            self.peers.close()

    def close(self) -> None:
        """Give back the storage's connections and the peer socket."""
        self.peers.close()
        self.storage.close()

    def _answer(self, message: Message) -> dict[str, Any]:
        """This worker's answer to a sibling, or to itself."""
        act = _ACTIONS.get(str(message.get("do")))
        circuit = self.circuits().get(str(message.get("circuit")))
        if act is not None and circuit is not None:
            try:
                act(circuit)
            except Exception:  # noqa: BLE001  # the circuit has moved; a listener of the application's has not borne it
                _LOG.exception("a listener of circuit %r raised", circuit.name)
        return {
            "circuits": [circuit.snapshot()._asdict() for circuit in self.circuits().values()],
            # Asked by a sibling there is no application context, so what the current scope says would be another's.
            "limiters": [
                limiter.snapshot(default_storage=self.storage)._asdict() for limiter in self.limiters().values()
            ],
        }


class Resilience:
    """The extension. `Resilience(app)`, or `resilience = Resilience()` and later `resilience.init_app(app)`.

    Options, each overridden by `app.config["RESILIENCE_<NAME>"]`, that by the environment variable of the same name:

    - `storage_uri`: where rate limits keep their buckets ("memory://"); `storage` gives a storage object instead.
    - `on_storage_failure`: "local" (count in this process), "open" or "closed" while a shared storage is down.
    - `trusted_proxies`: how many of our own proxies append to X-Forwarded-For (0: the field is not read).
    - `headers_enabled`: whether responses carry RateLimit and RateLimit-Policy (True).
    - `admin_token`: the bearer token of the admin endpoint; without one it does not exist. `admin_port`: the port of the
      only listener that serves it (None: any listener).
    - `peer_directory`: the folder in which the workers of one service meet, so that the admin endpoint of any of them
      answers for all. None: each answers for itself. Make the application in each worker (no `preload_app`): a process
      that is forked later answers its siblings only from its first request on.

    `circuits` and `limiters` are policies of this application in addition to the decorators' ones.

    The object holds no application: it may serve several. What belongs to one is in `app.extensions["resilience"]`.
    """

    def __init__(
        self,
        app: Flask | None = None,
        *,
        storage: LimitStorage | None = None,
        circuits: Iterable[CircuitBreaker] = (),
        limiters: Iterable[RateLimiter] = (),
        **options: Any,
    ) -> None:
        unknown = options.keys() - _Options.__dataclass_fields__.keys()
        if unknown:
            known = ", ".join(_Options.__dataclass_fields__)
            raise TypeError(f"Resilience has no option {', '.join(sorted(unknown))}: it takes {known}")
        self._storage = storage
        self._circuits = tuple(circuits)
        self._limiters = tuple(limiters)
        self._defaults = options
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Attach to `app`. Raises `RuntimeError` when the library is attached to it already, `ValueError` for a bad value."""
        if _EXTENSION in app.extensions:
            raise RuntimeError("Resilience is attached to this application already: call init_app once per application")
        options = _read_options(self._defaults, app.config, os.environ)
        application = Application(
            app.name, options, storage=self._storage, circuits=self._circuits, limiters=self._limiters
        )
        app.extensions[_EXTENSION] = application
        PROCESS.adopt(application.storage)
        if Rejected not in app.error_handler_spec[None][None]:
            app.register_error_handler(Rejected, render_rejection)
        # A process forked after this line has no thread that listens: the first request in it starts one.
        app.before_request(application.listen_again)
        if options.headers_enabled:
            app.after_request(_add_fields)
        application.peers.listen()


def current_application() -> Application:
    """The library's side of the current Flask application. Raises `RuntimeError` when it has none."""
    application = current_app.extensions.get(_EXTENSION)
    if application is None:
        raise RuntimeError(_NO_EXTENSION)
    return cast("Application", application)


def render_rejection(rejection: Rejected) -> Response:
    """A rejection as an `application/problem+json` response with Retry-After."""
    response = Response(
        json.dumps(problem_details(rejection)), rejection.status, content_type="application/problem+json"
    )
    retry_after = retry_after_field(rejection)
    if retry_after is not None:
        response.headers["Retry-After"] = retry_after
    return response


def _add_fields(response: Response) -> Response:
    decisions = _behind(request).environ.get(_DECISIONS)
    if decisions:
        response.headers.update(rate_limit_fields(decisions.values()))
    return response


def _behind(proxy: Any) -> Any:
    """What a proxy of Flask's stands for: each look through one takes longer than a decision's arithmetic."""
    return proxy._get_current_object()  # noqa: SLF001  # documented by Flask for this use


def _application_scope() -> Scope | None:
    if not has_app_context():
        return None
    scope: Scope | None = current_app.extensions.get(_EXTENSION)
    if scope is None and has_request_context():
        # Without it all clients would be one caller, and a refusal a 500.
        raise RuntimeError(_NO_EXTENSION)
    return scope


resolve_scope_with(_application_scope)


def _read_options(defaults: Mapping[str, Any], config: Mapping[str, Any], environ: Mapping[str, str]) -> _Options:
    values: dict[str, Any] = dict(defaults)
    for name in _Options.__dataclass_fields__:
        key = _PREFIX + name.upper()
        if key in config:
            values[name] = config[key]
        if key in environ:
            values[name] = environ[key]
        if name in values:
            values[name] = _converted(name, key, values[name])
    on_failure = values.get("on_storage_failure", "local")
    if on_failure not in get_args(OnFailure):
        raise ValueError(f"{_PREFIX}ON_STORAGE_FAILURE={on_failure!r}: choose one of {', '.join(get_args(OnFailure))}")
    return _Options(**values)


def _converted(name: str, key: str, value: Any) -> Any:
    if value is None or value == "":
        return (
            None
            if name in ("admin_token", "admin_port", "peer_directory")
            else _Options.__dataclass_fields__[name].default
        )
    if name == "headers_enabled":
        return _as_bool(key, value)
    if name in ("trusted_proxies", "admin_port"):
        return _as_number(key, value)
    return Path(value) if name == "peer_directory" else str(value)


def _as_bool(key: str, value: Any) -> bool:
    words = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
    if str(value).lower() not in words:
        raise ValueError(f"{key}={value!r}: use true or false")
    return words[str(value).lower()]


def _as_number(key: str, value: Any) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = -1
    if number < 0:
        raise ValueError(f"{key}={value!r}: use a whole number from 0")
    return number
