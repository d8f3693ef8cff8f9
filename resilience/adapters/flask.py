"""The Flask extension: limits before views, who is calling, response fields, rejections as responses."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, cast, overload

import click
from flask import (
    Blueprint,
    Flask,
    Request,
    after_this_request,
    current_app,
    has_request_context,
    request,
)
from flask.cli import ScriptInfo
from flask.globals import _cv_app  # what `current_app` looks into: asked by every decision, inside of requests or not
from flask.helpers import get_debug_flag
from werkzeug.exceptions import HTTPException
from werkzeug.serving import is_running_from_reloader

from resilience.adapters.addresses import client_key, network_key
from resilience.adapters.answering import Reach, answer, reach_of
from resilience.adapters.answers import Refused, Served, made_response, render_rejection
from resilience.adapters.attempts import Attempts
from resilience.adapters.audit import AuditLog
from resilience.adapters.early import KINDS, EarlyLimits, Kind, Limiting, Rules, own_limiters
from resilience.adapters.hosts import HostPeers, Meeting
from resilience.adapters.meeting import folder_of
from resilience.adapters.options import PREFIX, Options, Origin, Source, read_options, read_origins, refuse_unknown
from resilience.adapters.peers import Peers, Worker
from resilience.adapters.sessions import Sessions
from resilience.adapters.shapes import misfit
from resilience.clock import SYSTEM_CLOCK
from resilience.core.limiter import Decision
from resilience.decorators import buckets
from resilience.decorators.breaker import CircuitBreaker
from resilience.decorators.limiter import RateLimiter
from resilience.decorators.overrides import Overrides
from resilience.errors import RateLimited, Rejected
from resilience.ports import LimitStorage, Messenger, Scope, Stance, StateStorage
from resilience.registry import PROCESS_REGISTRY, Circuit, Limiter, Registry
from resilience.scope import PROCESS, resolve_scope_with
from resilience.storage.address import open_storage
from resilience.storage.standin import StandInSnapshot, StandInStorage
from resilience.storage.state_address import open_state_storage

__all__ = ["Application", "Resilience", "current_application"]

_EXTENSION = "resilience"
_GIVEN = Source("code", "")
_NO_EXTENSION = "this application has no Resilience: call Resilience(app) when it is made"
_LOG = logging.getLogger(__name__)
_SERVED = "_resilience"
"""What the current request has met is kept with the request: `g` belongs to the application context, which may outlive it."""

# What Flask's proxies stand for: each look through one takes longer than a decision's arithmetic. Documented for this use.
_current_request: Callable[[], Request] = cast("Any", request)._get_current_object  # noqa: SLF001

T = TypeVar("T", bound="Callable[..., Any] | type | Blueprint")


class Application:
    """The library's side of one Flask application: its storages, its own policies, its siblings in other processes."""

    def __init__(
        self,
        app: Flask,
        options: Options,
        rules: Rules,
        *,
        origins: Mapping[str, Origin],
        keys: Mapping[str, str],
        storage: LimitStorage | None,
        state: StateStorage | None,
        circuits: Iterable[Circuit],
        limiters: Iterable[Limiter],
    ) -> None:
        self.options = options
        self.origins = origins
        """Where each option comes from that is of use here, by name."""
        self.keys = keys
        """What options are called where the application has read them by itself, by name."""
        # An empty memory storage is false: it has a length.
        self.storage: LimitStorage = _opened(options) if storage is None else storage
        self.state: StateStorage = _opened_state(options) if state is None else state
        """Where circuits, and limits that hold for a time, are kept for all processes."""
        self.registry = Registry(circuits=circuits, limiters=limiters)
        folder = options.peer_directory or folder_of(self.state)
        self.siblings = Peers(functools.partial(answer, self), directory=folder, label=app.name, misfit=misfit)
        """The workers of this machine."""
        self.peers: Peers | HostPeers = self.siblings
        """All workers, of all machines that share `state`."""
        if self.state.spans_hosts and isinstance(self.state, Messenger):
            self.peers = HostPeers(self.siblings, cast("Meeting", self.state))
        self.overrides = Overrides(self.state, self._limiters_named)
        self.audit = AuditLog()
        token, shared = options.admin_token, None if self.reach == "process" else self.state
        self.sessions = Sessions(token, shared) if token else None
        """Logins of the admin page; None where there is none."""
        self.attempts = Attempts(token, storage=self.storage, audit=self.audit) if token else None
        """Those to get in by the token; None where there is none."""
        self.is_closed = False
        if self.reach != "process":
            self.registry.share(self.state)
            PROCESS_REGISTRY.share(self.state)
        self._app = app
        self._rules = rules
        self._early = EarlyLimits(app, options, rules)
        self._made_at = SYSTEM_CLOCK.seconds()
        self._is_reached_directly = options.key is None and not options.trusted_proxies
        self._stance: Stance = "skip" if not options.enabled else "shadow" if options.shadow else "enforce"
        self._place = len(app.before_request_funcs.get(None, ()))
        self._is_attached = False
        self.attach()

    # -- what limiters ask their surroundings (resilience.ports.Scope) -------------------------------------------------

    def caller(self) -> str:
        """What `key` says; else the client's address in a request; else "process"."""
        try:
            current = _current_request()
        except RuntimeError:
            return "process"
        options = self.options
        if self._is_reached_directly:
            peer = current.remote_addr
            return (network_key(peer, options.ipv6_prefix) or peer) if peer else client_key(None, None, 0)
        key = None if options.key is None else options.key()
        if key:
            return _named(key)
        proxies = options.trusted_proxies
        claimed = current.environ.get("HTTP_X_FORWARDED_FOR") if proxies else None
        return client_key(current.remote_addr, claimed, proxies, options.ipv6_prefix)

    def method(self) -> str | None:
        """The method of the current request."""
        return _current_request().method if has_request_context() else None

    def stance(self) -> Stance:
        """What limits are to do: as the options say, and nothing for a request that a filter lets pass."""
        if self._rules.filters and self._stance != "skip" and has_request_context() and self._is_filtered():
            return "skip"
        return self._stance

    def observe(self, policy: str, titles: tuple[str, ...], decision: Decision) -> None:
        """Keep each policy's last decision for the response fields of the current request."""
        try:
            kept = _current_request().__dict__
        except RuntimeError:
            return  # no request
        served = kept.get(_SERVED)
        if served is None:
            served = kept[_SERVED] = Served(self.options.headers, policy, titles, decision)
            after_this_request(served.finish)
        else:
            served.observe(policy, titles, decision)

    def refuse(self, rejection: RateLimited) -> None:
        """Told of a refusal before it is raised: asks the application's `on_breach` and `response` for an answer."""
        if has_request_context():
            served = self._served()
            served.rejection, served.is_busy = rejection, True
            Refused.of(rejection)
        answer = self._answer_of_on_breach(rejection)
        if rejection.response is None:
            rejection.response = answer
        response = self.options.response
        if rejection.response is None and response is not None:
            rejection.response = response(rejection) if callable(response) else response

    def replacement(self, rejection: RateLimited) -> Any:
        """What `on_breach` gave. In place of the current view's result it is a response: a text without a status is a 429."""
        if has_request_context() and self._is_of_view(rejection.policy):
            return made_response(rejection)
        return rejection.response

    def _is_of_view(self, policy: str) -> bool:
        current = _current_request()
        view = self._app.view_functions.get(current.endpoint or "")
        return any(policy == each.name for own in own_limiters(view, current.method) for each in own.policies)

    def settle(self, then: Callable[[Any], object]) -> bool:
        """Call `then` with the response of the current request when it is made. False where there is no request."""
        if not has_request_context():
            return False
        served = self._served()
        served.settlements, served.is_busy = (*served.settlements, then), True
        return True

    # -- limits before views ---------------------------------------------------------------------------------------

    def attach(self) -> None:
        """Look at requests before their views, if there is anything to do then: a hook costs every request."""
        self._early.check()
        if self._is_attached or not (self._early or self.options.peer_directory is not None or self.reach != "process"):
            return
        self._is_attached = True
        # Where it would have been had it been needed when the extension was attached.
        self._app.before_request_funcs.setdefault(None, []).insert(self._place, self._begin)

    def _begin(self) -> Any:
        """Before every request: decides what can be decided without its view. A response takes the view's place."""
        self.listen_again()
        found = None if self._stance == "skip" else self._early.limiter_for(_current_request())
        if found is None:
            return None
        limiter, is_simple = found
        if is_simple:
            # The path of nearly every request, in fewer steps than an attempt.
            policy = limiter.policies[0]
            # Whose bucket it is may be another one by the time the view has run: a login changes it.
            subject = policy.own_subject or policy.subject(None, self)
            if limiter.acquire(subject)[1]:
                self._served().early = functools.partial(_put_back, limiter, subject)
            return None
        attempt = limiter.attempt(wait=None)
        if not attempt.decision.allowed:
            rejection = attempt.refuse()
            if attempt.is_replaced:
                return made_response(rejection)
            raise rejection
        if attempt.decision[1]:
            self._served().early = attempt.give_back
        return None

    def _served(self) -> Served:
        kept: dict[str, Any] = _current_request().__dict__
        served: Served | None = kept.get(_SERVED)
        if served is None:
            served = kept[_SERVED] = Served(self.options.headers)
            after_this_request(served.finish)
        return served

    def _is_filtered(self) -> bool:
        served = self._served()
        if served.filtered is None:
            served.filtered = any(passes() for passes in self._rules.filters)
        return served.filtered

    def _answer_of_on_breach(self, rejection: RateLimited) -> Any:
        if self.options.on_breach is None:
            return None
        try:
            return self.options.on_breach(rejection)
        except HTTPException:
            raise  # abort() is an answer
        except Exception:  # noqa: BLE001  # the refusal stands, whatever becomes of the news of it
            _LOG.exception("on_breach raised for rate limit %r", rejection.policy)
            return None

    # -- policies, for the admin endpoint --------------------------------------------------------------------------

    def circuits(self) -> dict[str, Circuit]:
        """Every circuit that this application can reach, by name."""
        return {**PROCESS_REGISTRY.circuits, **self.registry.circuits}

    def limiters(self) -> dict[str, Limiter]:
        """Every rate limiter that this application can reach, by name."""
        early = {limiter.name: limiter for limiter in self._early.listed()}
        return {**PROCESS_REGISTRY.limiters, **self.registry.limiters, **early}

    def reset_limiter(self, name: str, key: str) -> None:
        """Fill the bucket that `key` has under the limiter of this name, in every route that has one of its own."""
        with self._app.app_context():  # so that limits without a storage of their own find this application's
            for limiter in self._limiters_named(name):
                buckets.reset(limiter.policies, key)

    def _limiters_named(self, name: str) -> list[RateLimiter]:
        """Every limiter that is listed under `name`."""
        limiter = self.limiters().get(name)
        return self._early.counted_as(name) or ([limiter] if isinstance(limiter, RateLimiter) else [])

    # -- other workers ---------------------------------------------------------------------------------------------

    @property
    def worker(self) -> Worker:
        """This process."""
        return self.siblings.itself

    @property
    def reach(self) -> Reach:
        """How far `state` is shared."""
        return reach_of(self.state.uri, spans_hosts=self.state.spans_hosts)

    def listen(self) -> None:
        """Answer siblings from now on. Raises as `Peers.listen` does where they meet in a folder that was configured: a worked
        out one was nobody's wish, so that it is only logged, and told with every answer, why it cannot be used."""
        if self.options.peer_directory is None and self.peers is self.siblings:
            self.listen_again()
        else:
            self.peers.listen()

    def listen_again(self) -> None:
        """Answer siblings, and hear of their orders, in this process too, if it was forked. What goes wrong is logged: it is
        no caller's trouble."""
        if not self.overrides.is_awake:
            self.overrides.awaken()
        if self.peers.is_listening:
            return
        try:
            self.peers.listen()
        except (OSError, ValueError) as error:
            _LOG.warning("this worker does not answer its siblings: %s", error)
            self.siblings.give_up(f"{self.worker} answers no other worker: {error}")
            self.peers.close()

    def close(self) -> None:
        """Give back the storages' connections and the peer socket, and end what streams the admin endpoint serves."""
        self.is_closed = True
        self.peers.close()
        if self.options.peer_directory is None and self.siblings.directory is not None:
            with contextlib.suppress(OSError):  # others are in it still, or it was never made
                self.siblings.directory.rmdir()
        self.overrides.close()
        self.state.close()
        self.storage.close()

    def storage_snapshot(self) -> StandInSnapshot:
        """Who decides in this process. A storage without a stand-in always does so itself."""
        if isinstance(self.storage, StandInStorage):
            return self.storage.snapshot()
        return StandInSnapshot(self.storage.uri, "primary", SYSTEM_CLOCK.seconds() - self._made_at, 0, 0, 0)


class Resilience:
    """The extension. `Resilience(app)`, or `resilience = Resilience()` and later `resilience.init_app(app)`.

    Options, each overridden by `app.config["RESILIENCE_<NAME>"]`, that by the environment variable of the same name.

    Where buckets are:

    - `storage_uri`: where rate limits keep their buckets ("memory://"); `storage` gives a storage object instead.
    - `on_store_failure`: "local" (count in this process), "allow" or "deny" while a shared storage is down.
    - `storage_timeout`: seconds that a request waits for a shared storage at most (0.05). `storage_namespace`: what the
      names of its buckets begin with ("seawall"). `workers`: processes that share a limit, for "local" (WEB_CONCURRENCY).

    Where circuits are, and limits that an operator lets hold for a time:

    - `state_uri`: "memory://" (each process for itself, the default), "shm://name" (the processes of a machine),
      "redis://..." (machines); `state` gives a storage object instead. Circuits that were given a storage keep it.
    - `state_timeout`: seconds that it is waited for at most (0.05). Its names begin with `storage_namespace`, too.

    Who is calling, for limits that name no key of their own:

    - `trusted_proxies`: how many of our own proxies append to X-Forwarded-For (0: the field is not read).
    - `ipv6_prefix`: how many bits of an IPv6 address make a client (64).
    - `key`: a function that returns a string or a tuple, or None for the client's address.

    What is limited before views, decided together in one round trip (`resilience.adapters.early`). Each of the first two
    is written as `RateLimiter` takes it, also as a function, or as one or several `RateLimiter`s:

    - `application_limits`: every request, a bucket per client for the whole application.
    - `default_limits`: routes without a limit of their own, a bucket per client and route.
    - `route_limits`: a mapping from endpoints to the limits of these routes: decorators, but in one place.
    - `..._per_method`, `..._cost`, `..._exempt_when`, `..._deduct_when` of the first two, as `RateLimiter` takes them.

    What callers are told:

    - `headers`: "draft" (RateLimit and RateLimit-Policy, the default), "legacy" (X-RateLimit-Limit, -Remaining and -Reset),
      "both" or "off".
    - `response`: what a refused caller gets instead of the problem document: a text, or a function of the `RateLimited`.
    - `on_breach`: called with every `RateLimited`; what it returns, if anything, is the response.
      An error handler for `RateLimited` goes before both; one for 429 or for every `HTTPException` comes after.

    Switches:

    - `shadow`: whether limits only count and log (False). `enabled`: False leaves every limit out.

    Operation:

    - `admin_token`: the bearer token of the admin endpoint, of 16 characters or more; without one it does not exist.
      `admin_port`: the port of the only listener that serves it (None: any listener).
    - `peer_directory`: the folder in which the workers of one service meet, so that the admin endpoint of any of them
      answers for all. None: with a `state_uri` of `shm://` one that goes with that file, in the same place where nobody else
      can enter that, else in the temporary folder; without, each answers for itself. Applications of one machine that share
      the file and have one name are one service. Make the application in each worker (no `preload_app`): a process
      that is forked later answers its siblings only from its first request on. A command of `flask` other than `run` is no
      worker, unless it serves requests.

    `circuits` and `limiters` are policies of this application in addition to the decorators' ones.

    `sources` is for applications that read options from elsewhere by themselves, and give the values, or the storages made of
    them, here: it says where each was read (`resilience.adapters.options.Source`), for the admin endpoint to tell. Neither
    `app.config` nor the environment is asked for these.

    A request that a limit of its view refuses gets back what the limits before it have taken, if the refusal is what is
    answered, in whatever words, or the status is 429 or 503. Any other answer counts as a request that was served.

    The object holds no application: it may serve several. What belongs to one is in `app.extensions["resilience"]`.
    """

    def __init__(
        self,
        app: Flask | None = None,
        *,
        storage: LimitStorage | None = None,
        state: StateStorage | None = None,
        circuits: Iterable[CircuitBreaker] = (),
        limiters: Iterable[RateLimiter] = (),
        sources: Mapping[str, Source] | None = None,
        **options: Any,
    ) -> None:
        refuse_unknown({**options, **(sources or {})})
        self._sources = dict(sources or {})
        self._storage = storage
        self._state = state
        self._circuits = tuple(circuits)
        self._limiters = tuple(limiters)
        self._defaults = options
        self._rules = Rules()
        self._served: weakref.WeakSet[Application] = weakref.WeakSet()
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Attach to `app`. Raises `RuntimeError` when the library is attached to it already, `ValueError` for a bad value."""
        if _EXTENSION in app.extensions:
            raise RuntimeError("Resilience is attached to this application already: call init_app once per application")
        options = read_options(self._defaults, app.config, os.environ, settled=self._sources)
        application = Application(
            app,
            options,
            self._rules,
            origins=self._origins(app.config),
            keys={name: source.key for name, source in self._sources.items()},
            storage=self._storage,
            state=self._state,
            circuits=self._circuits,
            limiters=self._limiters,
        )
        app.extensions[_EXTENSION] = application
        self._served.add(application)
        PROCESS.adopt(application.storage)
        if Rejected not in app.error_handler_spec[None][None]:
            app.register_error_handler(Rejected, render_rejection)
        app.cli.add_command(_commands())
        if _will_serve():
            application.listen()
        application.overrides.awaken()

    def _origins(self, config: Mapping[str, Any]) -> Mapping[str, Origin]:
        """Where each option comes from. What a storage that was given does not ask for is left out: it holds nowhere, unless
        whoever gave the storage says that it was made so."""
        origins = {
            **read_origins(self._defaults, config, os.environ),
            **{name: source.origin for name, source in self._sources.items()},
        }
        ignored: set[str] = set()
        if self._storage is not None:
            origins["storage_uri"] = self._sources.get("storage_uri", _GIVEN).origin
            ignored.update(("storage_timeout", "on_store_failure", "workers"))
        if self._state is not None:
            origins["state_uri"] = self._sources.get("state_uri", _GIVEN).origin
            ignored.add("state_timeout")
        if None not in (self._storage, self._state):
            ignored.add("storage_namespace")
        return {name: origin for name, origin in origins.items() if name not in ignored - self._sources.keys()}

    def limit_blueprint(
        self, blueprint: Blueprint, limits: Any, *, per_route: bool = False, name: str | None = None, **options: Any
    ) -> None:
        """Limit every view of `blueprint`, and of the blueprints nested in it, with one bucket for all of them.

        `per_route=True` gives each route of the blueprint a bucket of its own instead, and leaves out those with a limit of
        their own: default limits of the blueprint. The nearest blueprint that has such limits decides.

        `limits` and `options` are those of `RateLimiter`. `name` tells several limits of one blueprint apart. Raises
        `ValueError` when a name is taken, or when they cannot be decided together with the others, as in another storage.
        """
        declared = self._rules.limit_blueprint(blueprint, limits, name=name, per_route=per_route, **options)
        try:
            for application in self._served:
                application.attach()
        except ValueError:
            self._rules.forget(blueprint, declared)
            raise

    @overload
    def exempt(self, what: T, *, kinds: Iterable[Kind] = ...) -> T: ...

    @overload
    def exempt(self, *, kinds: Iterable[Kind] = ...) -> Callable[[T], T]: ...

    def exempt(self, what: Any = None, *, kinds: Iterable[Kind] = KINDS) -> Any:
        """Leave a view function, a view class, or every view of a blueprint out of limits that it did not ask for.

        A decorator, with or without `kinds`: those of "application", "blueprint", "route" and "default" to leave out (all).
        A decorator's own limit holds nevertheless. Raises `ValueError` for another kind.
        """
        kinds = tuple(kinds)
        if not KINDS.issuperset(kinds):
            raise ValueError(f"kinds={kinds!r}: choose from {', '.join(sorted(KINDS))}")
        if what is None:
            return functools.partial(self.exempt, kinds=kinds)
        self._rules.exempt(what, kinds)
        return what

    def request_filter(self, passes: Callable[[], bool]) -> Callable[[], bool]:
        """Leave every limit, decorators' too, out of requests for which `passes` returns true. A decorator."""
        self._rules.filters.append(passes)
        return passes


def current_application() -> Application:
    """The library's side of the current Flask application. Raises `RuntimeError` when it has none."""
    application = current_app.extensions.get(_EXTENSION)
    if application is None:
        raise RuntimeError(_NO_EXTENSION)
    return cast("Application", application)


def _put_back(limiter: Limiting, subject: str) -> None:
    """As `Attempt.give_back`: as if the call had not been made."""
    if limiter.policies[0].own_cost:
        limiter.policies[0].tally.allowed -= 1
    limiter.refund(subject)


def _named(key: object) -> str:
    if isinstance(key, str):
        return key
    if not isinstance(key, tuple):
        raise TypeError(f"{PREFIX}KEY returned {key!r}: a key is a string, a tuple, or None for the client's address")
    return "|".join(str(part).replace("\\", "\\\\").replace("|", "\\|") for part in key)


def _opened(options: Options) -> LimitStorage:
    return open_storage(
        options.storage_uri,
        on_store_failure=options.on_store_failure,
        timeout=options.storage_timeout,
        namespace=options.storage_namespace,
        workers=options.workers,
    )


def _opened_state(options: Options) -> StateStorage:
    return open_state_storage(options.state_uri, namespace=options.storage_namespace, timeout=options.state_timeout)


def _will_serve() -> bool:
    """Whether this process was started to serve, as far as is known. Of Flask's commands only `run` is, and of its two
    processes, where it reloads, only the inner one: a `flask routes` is no worker, which others would wait for once it has
    ended. Who serves nevertheless is a worker from its first request on."""
    context = click.get_current_context(silent=True)
    if context is None or context.find_object(ScriptInfo) is None:
        return True
    if context.info_name != "run":
        return False
    reload = context.params.get("reload")
    return is_running_from_reloader() or not (get_debug_flag() if reload is None else reload)


def _commands() -> Any:
    from resilience.adapters.terminal import resilience

    return resilience


def _application_scope() -> Scope | None:
    context = _cv_app.get(None)
    if context is None:
        return None
    scope: Scope | None = context.app.extensions.get(_EXTENSION)
    if scope is None and has_request_context():
        # Without it all clients would be one caller, and a refusal a 500.
        raise RuntimeError(_NO_EXTENSION)
    return scope


resolve_scope_with(_application_scope)
