"""Rate limits as objects and as decorators."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar, Unpack, cast

from resilience.clock import SYSTEM_CLOCK, epoch_seconds
from resilience.core.events import LimitOverridden
from resilience.core.limiter import Decision, Limit
from resilience.core.overrides import Override, checked_override
from resilience.decorators.policy import (
    Cost,
    Key,
    KeyLike,
    LimiterOptions,
    Limits,
    Policy,
    checked_cost,
    needs_arguments,
    titles_of,
)
from resilience.decorators.surface import Surface, name_of
from resilience.decorators.tally import LimiterSnapshot
from resilience.errors import RateLimited
from resilience.events import PROCESS_EVENTS
from resilience.notation import parse_limits
from resilience.ports import Clock, LimitStorage
from resilience.registry import PROCESS_REGISTRY
from resilience.scope import PROCESS, RESOLVERS, current_scope
from resilience.storage.standin import OnStoreFailure

__all__ = ["LimiterSnapshot", "RateLimiter", "rate_limit", "shared_limit"]

P = ParamSpec("P")
T = TypeVar("T")


class RateLimiter(Surface):
    """One or several limits under one name, decided together, all or nothing.

    `limits` is in the notation of the `limits` package ("100/second", "0.5/second", "10/second; 1000/hour"), a `Limit`, or
    several; or a callable without arguments that says them for each call, such as those of the caller's plan (None: this
    call is not limited). `burst` replaces every limit's bucket size. `key` says whose bucket, `cost` how many tokens (a
    number from 0 to the smallest burst, or a callable without arguments), `storage` where buckets live (default: the
    current scope's). Two limiters of one name on one storage share their buckets. `title` is the name that callers see in
    header fields (default: `name`).

    Waiting. `wait` is how many seconds `acquire` may wait for its turn (default: none): turns are reserved in the order of
    asking, and whoever would have to wait longer is refused at once. `shape=True` smooths: calls that are admitted leave
    one after the other at the limit's rate, instead of up to `burst` at once; the burst is the length of the queue, `wait`
    caps the time in it. `try_acquire` never waits.

    Whom it concerns. `exempt_when`, a callable without arguments, lets a call pass uncounted when it is true. `methods` are
    the HTTP methods that are limited (default: all; HEAD counts as GET), `per_method` gives each its own bucket; neither has
    an effect outside of requests. `deduct_when` makes a call that finds its tokens pass, and takes them after it if
    `deduct_when(result)` is true; in a request it is asked about the response. Calls that are made at the same time may
    then take more than there is: the bucket goes into debt for them, by one burst at most.

    Refusals. `on_breach(rejection)` may return what a decorated call returns in place of a result; `response` is the answer
    to a request: a text, or a callable that makes one of the `RateLimited`. `shadow=True` counts and logs, and never rejects.

    Speed and failure. `lease` is how many tokens a process may take ahead for each key, where the storage is shared: from 1
    to a tenth of the burst. `on_store_failure` ("local", "allow", "deny") overrides the storage's own way to decide while
    it is down.

    Safe to share between threads and greenlets. Raises `ValueError` with the reason for values out of range.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        name: str,
        burst: int | None = None,
        key: Key = None,
        cost: Cost = 1,
        storage: LimitStorage | None = None,
        title: str | None = None,
        wait: float | None = None,
        shape: bool = False,
        lease: int | None = None,
        exempt_when: Callable[[], bool] | None = None,
        methods: Iterable[str] | None = None,
        per_method: bool = False,
        deduct_when: Callable[[Any], bool] | None = None,
        on_breach: Callable[[RateLimited], Any] | None = None,
        response: str | Callable[[RateLimited], Any] | None = None,
        shadow: bool = False,
        on_store_failure: OnStoreFailure | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        policy = self._policy = Policy(
            limits,
            name=name,
            burst=burst,
            key=key,
            cost=cost,
            storage=storage,
            title=title,
            wait=wait,
            shape=shape,
            lease=lease,
            exempt_when=exempt_when,
            methods=methods,
            per_method=per_method,
            deduct_when=deduct_when,
            on_breach=on_breach,
            response=response,
            shadow=shadow,
            on_store_failure=on_store_failure,
            clock=clock,
        )
        self.policies = (policy,)
        self._counts_for_others = False
        # A policy that says the same of every call is decided without asking it.
        self._plain = policy.plain
        self._subject = policy.own_subject
        self._tokens = policy.own_cost

    def __repr__(self) -> str:
        limits = "; ".join(map(str, self.limits)) or "limits said for each call"
        return f"<RateLimiter {self.name}: {limits}>"

    @property
    def name(self) -> str:
        """Under which it is listed, and its buckets are kept."""
        return self._policy.name

    @property
    def title(self) -> str:
        """The name that callers see."""
        return self._policy.title

    @property
    def limits(self) -> tuple[Limit, ...]:
        """The limits; none where a callable says them for each call."""
        return self._policy.limits

    @property
    def storage(self) -> LimitStorage | None:
        """Its own storage; None where the current scope's is used."""
        return self._policy.storage

    @property
    def methods(self) -> frozenset[str] | None:
        """The HTTP methods that are limited; None for all."""
        return self._policy.methods

    @property
    def per_method(self) -> bool:
        """Whether each HTTP method has a bucket of its own."""
        return self._policy.per_method

    def try_acquire(self, key: KeyLike | None = None, *, cost: int | None = None) -> Decision:
        """Take `cost` tokens from the bucket of `key` if it holds them. Never waits, never raises for a denial.

        A cost of 0 looks without taking. Raises `StorageUnavailable` only for a storage without a stand-in.
        """
        scope = current_scope() if RESOLVERS else PROCESS
        terms = self._plain
        if terms is None or (scope is not PROCESS and scope.stance() != "enforce"):
            return super().try_acquire(key, cost=cost)
        policy = self._policy
        subject = self._subject if key is None else policy.named(key)
        if subject is None:
            subject = policy.subject(None, scope)
        tokens = self._tokens if cost is None else checked_cost(cost)
        if tokens is None:
            tokens = policy.tokens()
        storage = policy.storage if policy.storage is not None else scope.storage
        bound, take = terms.bound
        if bound is not storage:
            terms, take = terms.bind(storage)
        decision = take(subject, tokens)
        if not decision.allowed:
            policy.tally.refused(subject, decision)
        elif tokens:
            policy.tally.allowed += 1
        if scope is not PROCESS:
            scope.observe(policy.name, terms.titles, decision)
        return decision

    def acquire(self, key: KeyLike | None = None, *, cost: int | None = None, wait: float | None = None) -> Decision:
        """Take `cost` tokens or raise `RateLimited`, which carries the decision and the seconds to wait.

        Where the limit, or `wait` in its place, lets the caller wait for its turn, this returns when it has come. The turn
        is reserved at once, in the order of asking; whoever would have to wait longer is refused at once. A caller that is
        interrupted meanwhile gives its turn back.
        """
        terms = self._plain
        if wait is not None or terms is None or self._policy.wait is not None:
            return super().acquire(key, cost=cost, wait=wait)
        decision = self.try_acquire(key, cost=cost)
        if not decision.allowed:
            titles = terms.titles
            if self._policy.plain is not terms or len(titles) != len(decision[1]):  # others hold in place of them
                titles = titles_of(self.title, [quota.limit for quota in decision.quotas])
            raise self._refused(decision, titles)
        return decision

    def _refused(self, decision: Decision, titles: tuple[str, ...]) -> RateLimited:
        rejection = RateLimited(self.name, decision, title=self.title, titles=titles)
        self._policy.answer(rejection)
        current_scope().refuse(rejection)
        return rejection

    def _guarded(self, function: Callable[P, T]) -> Callable[P, T]:
        policy = self._policy
        terms = self._plain
        if terms is None or policy.wait is not None or policy.on_breach is not None:
            return super()._guarded(function)
        own_subject, own_cost = self._subject, self._tokens

        def limited(*args: P.args, **kwargs: P.kwargs) -> T:
            # What `acquire` does, in one frame: in a request each takes as long as half of a decision.
            scope = RESOLVERS[0]() if RESOLVERS else PROCESS
            if scope is None:
                scope = current_scope()
            if scope is not PROCESS and scope.stance() != "enforce":
                self.acquire()
                return function(*args, **kwargs)
            subject = policy.subject(None, scope) if own_subject is None else own_subject
            tokens = policy.tokens() if own_cost is None else own_cost
            storage = scope.storage if policy.storage is None else policy.storage
            current = terms
            bound, take = current.bound
            if bound is not storage:
                current, take = terms.bind(storage)
            decision = take(subject, tokens)
            allowed = decision[0]
            if not allowed:
                policy.tally.refused(subject, decision)
            elif tokens:
                policy.tally.allowed += 1
            if scope is not PROCESS:
                scope.observe(policy.name, current.titles, decision)
            if not allowed:
                raise self._refused(decision, current.titles)
            return function(*args, **kwargs)

        return limited

    @property
    def overridden(self) -> Override | None:
        """What holds in place of its own limits now, until `until` in seconds of the limiter's clock; None: they hold."""
        return self._policy.override

    def override(
        self, limits: str, *, expires_in: float, burst: int | None = None, reason: str = "", author: str = ""
    ) -> Override:
        """Let `limits` hold in place of its own in this process for `expires_in` seconds, at most 30 days: of every call that
        it is asked about, also where a function says its own limits. `burst` is the bucket size of all of them; the limiter's
        own is not used. Another override takes the place of this one. What callers have left they keep where a period stays
        the same.

        `Overrides` does the same in all processes. Raises `ValueError` for limits that cannot be read, or that no call could
        ever pass.
        """
        policy = self._policy
        override = checked_override(
            limits, burst=burst, expires_in=expires_in, now=policy.clock.seconds(), reason=reason, author=author
        )
        policy.replace_limits(override)
        PROCESS_EVENTS.emit(
            LimitOverridden(
                policy=self.name,
                at=epoch_seconds(),
                limits=limits,
                reason=reason,
                author=author,
                expires_in=float(expires_in),
            )
        )
        return override

    def restore(self, *, reason: str = "", author: str = "") -> bool:
        """Let its own limits hold again in this process. Whether others did."""
        if self._policy.override is None:
            return False
        self._policy.replace_limits(None)
        PROCESS_EVENTS.emit(
            LimitOverridden(policy=self.name, at=epoch_seconds(), limits=None, reason=reason, author=author)
        )
        return True

    def snapshot(self, *, default_storage: LimitStorage | None = None) -> LimiterSnapshot:
        """What this process has counted. `default_storage` is where a limiter without a storage of its own counts, if
        the caller knows better than the current scope."""
        storage = default_storage if self.storage is None else self.storage
        return self._policy.snapshot(current_scope().storage if storage is None else storage)

    def available(self, *, default_storage: LimitStorage | None = None) -> int | None:
        """Whole tokens that are left, where all callers share one bucket: `key` is a constant, the limits are fixed. Else None.

        Takes nothing and counts nothing. `default_storage` is as for `snapshot`. Raises `StorageUnavailable` only for a storage
        without a stand-in.
        """
        if self._counts_for_others:
            return None
        storage = default_storage if self.storage is None else self.storage
        return self._policy.available(current_scope().storage if storage is None else storage)

    def count_with(self, other: RateLimiter) -> None:
        """Share the counts of `other`: two limiters of one name are listed as one, as is one for each of several routes."""
        other._counts_for_others |= other.name != self.name
        self._policy.tally = other._policy.tally


_derived: dict[str, list[tuple[object, object]]] = {}


def _derived_name(function: Callable[..., Any], limits: object) -> tuple[str, str]:
    """Name and title of a limit that was given none.

    The same code under the same limits is the same policy, so that an application factory may run again. Other code of
    the same name (closures), or other limits, get a number.
    """
    title = str(getattr(function, "__name__", type(function).__name__))
    qualified = name_of(function)
    # Flask names the views of its class-based views so; what they are in is the same for all of them.
    name = f"{getattr(function, '__module__', '')}.{qualified if qualified.endswith(title) else title}"
    identity = (getattr(function, "__code__", function), limits)
    siblings = _derived.setdefault(name, [])
    if identity not in siblings:
        siblings.append(identity)
    number = siblings.index(identity) + 1
    return (name, title) if number == 1 else (f"{name}#{number}", f"{title}-{number}")


def rate_limit(
    limits: Limits, *, name: str | None = None, **options: Unpack[LimiterOptions]
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Limit how often a function is called; `limits` and the options are those of `RateLimiter`.

    `name` defaults to the function's qualified name with its module, made unique where several functions or limits have
    the same. Functions that are given one name share its buckets. Usable before an application exists and outside
    requests. The limiter itself is the attribute `limiter` of the decorated function. Decorators directly on top of each
    other are one decision, as of `all_of`, which `limiter` then is; see there for what cannot be decided at once. Those
    that wait, smooth or have `deduct_when` stay apart.
    """
    if callable(limits) and needs_arguments(limits):
        raise TypeError(_NO_LIMIT)
    # What says the limits is made anew whenever a factory runs; its code is not.
    written = (
        getattr(limits, "__code__", limits) if callable(limits) else parse_limits(limits, burst=options.get("burst"))
    )

    def decorate(function: Callable[P, T] | None = None) -> Callable[P, T]:
        if function is None:
            raise TypeError(_NO_LIMIT)
        identity, title = (name, name) if name is not None else _derived_name(function, written)
        named: LimiterOptions = {"title": title, **options}
        return shared_limit(limits, name=identity, **named)(function)

    return cast("Callable[[Callable[P, T]], Callable[P, T]]", decorate)


def shared_limit(limits: Limits, *, name: str, **options: Unpack[LimiterOptions]) -> RateLimiter:
    """A limit for several functions, which share its buckets: a decorator that is listed under its name.

    `limits` and the options are those of `RateLimiter`. A later limit of the same name takes this one's place in the list
    and goes on with its counts.
    """
    limiter = RateLimiter(limits, name=name, **options)
    known = PROCESS_REGISTRY.limiters.get(name)
    if isinstance(known, RateLimiter):
        limiter.count_with(known)  # one name is one policy, and is listed once
    PROCESS_REGISTRY.add_limiter(limiter)
    return limiter


_NO_LIMIT = "rate_limit needs a limit: write @rate_limit('10/second')"
