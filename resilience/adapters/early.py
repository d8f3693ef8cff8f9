"""The limits of a request that are known before its view runs: the application's, its blueprints', its route's.

    application   every request, whatever it asks for, also what does not exist
    blueprint     every view of a blueprint and of those nested in it: one bucket for all of them together
    route         what `route_limits` says of one endpoint
    default       a route that has no limit of its own: none in `route_limits`, no decorator, none of a blueprint's

They are decided together, all or nothing, in one round trip. Which they are depends on the endpoint and the method alone,
so that is found out once for each.

Static files are under none of them. What Flask answers to OPTIONS by itself is under the application's alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, NamedTuple, get_args

from flask import Flask, Request
from flask.sansio.blueprints import Blueprint

from resilience.adapters.options import Options
from resilience.decorators.combined import CombinedLimiter, all_of
from resilience.decorators.limiter import RateLimiter
from resilience.notation import parse_limits
from resilience.registry import check_name

__all__ = ["KINDS", "Declared", "EarlyLimits", "Found", "Kind", "Limiting", "Rules", "behind", "own_limiters"]

_LOG = logging.getLogger(__name__)

Kind = Literal["application", "blueprint", "route", "default"]
"""The kinds of limits that are decided before the view."""

KINDS: frozenset[Kind] = frozenset(get_args(Kind))

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})

Limiting = RateLimiter | CombinedLimiter
"""What decides: one limiter, or several together."""


class Found(NamedTuple):
    """What decides about a request. `is_simple` says that all it takes is known again when it is to be given back: it is
    one limit, which asks the same of every call."""

    limiter: Limiting
    is_simple: bool


class Declared:
    """Limits as somebody declared them, under one name, and the limiters that come of them.

    `limits` are a `RateLimiter`, or whatever `RateLimiter` takes as limits, or several of either. A `RateLimiter` is used as
    it is: it has its own name, and so one bucket for all routes. Of anything else limiters are made: one for all requests,
    or one for each route.
    """

    def __init__(self, name: str, title: str, limits: Any, **options: Any) -> None:
        several = list(limits) if isinstance(limits, list | tuple) else [] if limits is None else [limits]
        self.name = name
        self._title = title
        self._options = options
        self._ready = tuple(limiter for each in several for limiter in _members(each))
        self._texts = _gathered([each for each in several if not _members(each)])
        self._of_routes: dict[str, tuple[RateLimiter, ...]] = {}
        self.shared = (*self._ready, *self._made(""))
        """The limiters for all requests together. Also what is listed: those of routes are counted with them."""

    def of_route(self, route: str) -> tuple[RateLimiter, ...]:
        """The limiters of one route."""
        if route not in self._of_routes:
            made = tuple(self._made(f":{route}"))
            for limiter, listed in zip(made, self.shared[len(self._ready) :], strict=True):
                limiter.count_with(listed)
            self._of_routes[route] = (*self._ready, *made)
        return self._of_routes[route]

    def counted_as(self, name: str) -> Iterator[RateLimiter]:
        """The limiters that are listed under `name`: that one, and those of routes that are counted with it."""
        for each in (self.shared, *self._of_routes.values()):
            for limiter, listed in zip(each, self.shared, strict=True):
                if listed.name == name:
                    yield limiter

    def _made(self, suffix: str) -> Iterator[RateLimiter]:
        for number, limits in enumerate(self._texts, 1):
            numbered = "" if number == 1 else f"-{number}"
            yield RateLimiter(
                limits, name=f"{self.name}{numbered}{suffix}", title=f"{self._title}{numbered}", **self._options
            )


class Rules:
    """What was declared on one `Resilience`, for every application that it serves: blueprints' limits, exemptions, filters."""

    def __init__(self) -> None:
        self.filters: list[Callable[[], bool]] = []
        self.version = 0
        """Another one when what was found out before may no longer hold."""
        self._shared: dict[Blueprint, list[Declared]] = {}
        self._per_route: dict[Blueprint, list[Declared]] = {}
        self._exempt: dict[object, frozenset[str]] = {}

    def limit_blueprint(
        self, blueprint: Blueprint, limits: Any, *, name: str | None, per_route: bool, **options: Any
    ) -> Declared:
        """Limit the views of a blueprint; see `Resilience.limit_blueprint`."""
        declared = Declared(name or f"{blueprint.import_name}:{blueprint.name}", blueprint.name, limits, **options)
        if not declared.shared:
            raise ValueError(f"no limit for blueprint {blueprint.name!r}: write one such as '10/second'")
        check_name("rate limiter", declared.name)
        if any(known.name == declared.name for known in self.declared()):
            raise ValueError(f"there are limits named {declared.name!r} already: say others with name=...")
        (self._per_route if per_route else self._shared).setdefault(blueprint, []).append(declared)
        self.version += 1
        return declared

    def forget(self, blueprint: Blueprint, declared: Declared) -> None:
        """Take back what `limit_blueprint` returned."""
        for declarations in (self._shared.get(blueprint, []), self._per_route.get(blueprint, [])):
            if declared in declarations:
                declarations.remove(declared)
        self.version += 1

    def exempt(self, what: object, kinds: Iterable[str]) -> None:
        """Leave a view, or every view of a blueprint, out of the limits of these kinds."""
        self._exempt[what] = self._exempt.get(what, frozenset()).union(kinds)
        self.version += 1

    def declared(self) -> Iterator[Declared]:
        """Everything that was said of blueprints."""
        for of_blueprint in (*self._shared.values(), *self._per_route.values()):
            yield from of_blueprint

    def of_blueprints(self, blueprints: Iterable[Blueprint]) -> Iterator[RateLimiter]:
        """The limits that the views of each of these share."""
        for blueprint in blueprints:
            for declared in self._shared.get(blueprint, ()):
                yield from declared.shared

    def of_blueprints_route(self, blueprints: Iterable[Blueprint], route: str) -> tuple[RateLimiter, ...]:
        """The limits that each route has to itself, as the first of `blueprints` says that says any."""
        for blueprint in blueprints:
            declared = self._per_route.get(blueprint)
            if declared:
                return tuple(limiter for each in declared for limiter in each.of_route(route))
        return ()

    def kinds_left(self, concerned: Iterable[object]) -> frozenset[str]:
        """The kinds of limits that are left when everything `concerned` is looked up: view, class, blueprints."""
        return KINDS.difference(*(self._exempt[each] for each in concerned if each in self._exempt))


class EarlyLimits:
    """Which limits of one application concern a request before its view runs."""

    def __init__(self, app: Flask, options: Options, rules: Rules) -> None:
        self._app = app
        self._rules = rules
        self._application = Declared(
            f"{app.name}:application",
            "application",
            options.application_limits,
            **_options(options, "application_limits"),
        )
        self._default = Declared(
            f"{app.name}:default", "default", options.default_limits, **_options(options, "default_limits")
        )
        self._routes = {
            endpoint: Declared(f"{app.name}:route:{endpoint}", endpoint, limits)
            for endpoint, limits in (options.route_limits or {}).items()
        }
        self._found: dict[tuple[str, str], Found | None] = {}
        self._version = rules.version
        self._routes_are_known = False

    def __bool__(self) -> bool:
        """Whether there may be any."""
        return next(self.listed(), None) is not None

    def check(self) -> None:
        """Raise `ValueError` for limits that cannot be decided together."""
        _together(self.listed())

    def listed(self) -> Iterator[RateLimiter]:
        """One limiter for each declaration; those of routes are counted with it."""
        for declared in self._declared():
            yield from declared.shared

    def counted_as(self, name: str) -> list[RateLimiter]:
        """Every limiter that is listed under `name`."""
        return [limiter for declared in self._declared() for limiter in declared.counted_as(name)]

    def limiter_for(self, request: Request) -> Found | None:
        """What decides about `request` before its view; None when nothing does."""
        if self._version != self._rules.version:
            self._found, self._version = {}, self._rules.version
        rule = request.url_rule
        # A route may take any method, and callers can make up many.
        method = request.method if request.method in _METHODS else "OTHER"
        question = ("", "") if rule is None else (rule.endpoint, method)
        try:
            return self._found[question]
        except KeyError:
            limiter = self._look(request)
            found = self._found[question] = None if limiter is None else Found(limiter, _is_simple(limiter))
            return found

    def _look(self, request: Request) -> Limiting | None:
        self._check_routes()
        rule = request.url_rule
        if rule is None:
            return _together(self._application.shared)
        endpoint: str = rule.endpoint
        if self._is_static(endpoint):
            return None
        # An endpoint may have dots and no blueprint.
        blueprints = [self._app.blueprints[name] for name in request.blueprints if name in self._app.blueprints]
        kinds = self._rules.kinds_left([*behind(self._app.view_functions.get(endpoint)), *blueprints])
        limiters = list(self._application.shared) if "application" in kinds else []
        if not (request.method == "OPTIONS" and getattr(rule, "provide_automatic_options", False)):
            limiters += self._narrower(request.method, endpoint, blueprints, kinds)
        return _together(limiters)

    def _narrower(
        self, method: str, endpoint: str, blueprints: list[Blueprint], kinds: frozenset[str]
    ) -> list[RateLimiter]:
        shared = list(self._rules.of_blueprints(blueprints)) if "blueprint" in kinds else []
        of_route = list(self._routes[endpoint].shared) if "route" in kinds and endpoint in self._routes else []
        if of_route or _has_own(self._app.view_functions.get(endpoint), method):
            return [*shared, *of_route]
        if "blueprint" in kinds:
            of_route = list(self._rules.of_blueprints_route(blueprints, endpoint))
        if not shared and not of_route and "default" in kinds:
            of_route = list(self._default.of_route(endpoint))
        return [*shared, *of_route]

    def _is_static(self, endpoint: str) -> bool:
        blueprint, _, name = endpoint.rpartition(".")
        holder = self._app.blueprints.get(blueprint) if blueprint else self._app
        return name == "static" and holder is not None and holder.has_static_folder

    def _check_routes(self) -> None:
        """Complain once of endpoints that do not exist: their limits would hold for nobody."""
        if self._routes_are_known:
            return
        self._routes_are_known = True
        for endpoint in self._routes.keys() - self._app.view_functions.keys():
            _LOG.error("route_limits names the endpoint %r, and the application has none of that name", endpoint)

    def _declared(self) -> Iterator[Declared]:
        yield self._application
        yield self._default
        yield from self._routes.values()
        yield from self._rules.declared()


def _members(limits: Any) -> tuple[RateLimiter, ...]:
    """The limiters that `limits` are; none when they are still to be made of them."""
    if isinstance(limits, CombinedLimiter):
        return limits.limiters
    return (limits,) if isinstance(limits, RateLimiter) else ()


def _is_simple(limiter: Limiting) -> bool:
    policy = limiter.policies[0]
    return isinstance(limiter, RateLimiter) and policy.is_plain and policy.own_cost is not None


def _options(options: Options, prefix: str) -> dict[str, Any]:
    names = ("per_method", "cost", "exempt_when", "deduct_when")
    return {name: getattr(options, f"{prefix}_{name}") for name in names}


def _together(limiters: Iterable[RateLimiter]) -> Limiting | None:
    several = tuple(dict.fromkeys(limiters))
    if not several:
        return None
    return several[0] if len(several) == 1 else all_of(*several)


def _gathered(limits: list[Any]) -> list[Any]:
    """What is fixed becomes one: ["10/second", "100/hour"] is "10/second; 100/hour". Callables stay, each by itself."""
    fixed = [each for each in limits if not callable(each)]
    gathered: list[Any] = [each for each in limits if callable(each)]
    if len(fixed) == 1:
        gathered.insert(0, fixed[0])
    elif fixed:
        gathered.insert(0, tuple(limit for each in fixed for limit in parse_limits(each)))
    return gathered


def behind(view: Callable[..., Any] | None) -> Iterator[object]:
    """A view function, what its decorators wrap, and its class."""
    function: Any = view
    while function is not None:
        yield function
        if (view_class := getattr(function, "view_class", None)) is not None:
            yield view_class
        function = getattr(function, "__wrapped__", None)


def own_limiters(view: Callable[..., Any] | None, method: str) -> Iterator[Limiting]:
    """What decorators limit the view with, its class's method for this HTTP method included."""
    # As in Flask, a class without a method for HEAD answers with the one for GET.
    methods = (method.lower(), *(["get"] if method == "HEAD" else []), "dispatch_request")
    for each in behind(view):
        inner = [getattr(each, name, None) for name in methods] if isinstance(each, type) else []
        for function in (each, *inner):
            limiter = getattr(function, "limiter", None)
            if isinstance(limiter, Limiting):
                yield limiter


def _has_own(view: Callable[..., Any] | None, method: str) -> bool:
    """Whether a decorator limits the view for this method."""
    return any(_concerns(limiter, method) for limiter in own_limiters(view, method))


def _concerns(limiter: Limiting, method: str) -> bool:
    method = "GET" if method == "HEAD" else method
    return any(each.methods is None or method in each.methods for each in _members(limiter))
