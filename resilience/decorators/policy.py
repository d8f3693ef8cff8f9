"""One policy of rate limits: its options, checked, and what they make of one call."""

from __future__ import annotations

import functools
import hashlib
import inspect
import math
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple, TypedDict, cast, get_args

from resilience.core.limiter import LARGEST, Charge, Decision, Limit
from resilience.core.overrides import Override
from resilience.decorators.tally import LimiterSnapshot, ShadowLog, Tally
from resilience.errors import RateLimited
from resilience.notation import LimitsLike, parse_limits
from resilience.ports import Clock, LimitStorage, Scope, Taker
from resilience.storage.standin import OnStoreFailure

__all__ = [
    "Claim",
    "Cost",
    "Key",
    "KeyLike",
    "LimiterOptions",
    "Limits",
    "Policy",
    "Terms",
    "checked_cost",
    "checked_wait",
    "needs_arguments",
    "titles_of",
    "view_of",
]

LONGEST_KEY = 128
"""Keys of more characters are kept as their BLAKE2b hash."""

LONGEST_WAIT = 86_400
"""Seconds that a caller may wait for its turn."""

SMALLEST_SHARE = 10
"""A process takes at most one part in so many of a bucket ahead: the others must find something in it."""

KEPT_TERMS = 1_024
"""So many different results of a callable for limits are kept read."""

_METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE"})
_OTHER = "OTHER"

KeyLike = str | tuple[object, ...]
"""A caller: a string, or a tuple whose parts cannot run into each other."""

Key = KeyLike | Callable[[], KeyLike] | None
"""Whose bucket: a constant, a callable without arguments, or None for the current scope's caller (the client's address)."""

Cost = int | Callable[[], int]
"""How many tokens a call takes: a whole number from 0, or a callable without arguments."""

Limits = LimitsLike | Callable[[], LimitsLike | None]
"""Limits, or a callable without arguments that says them for each call; None is no limit for this call."""

_new = tuple.__new__


class LimiterOptions(TypedDict, total=False):
    """The options of `RateLimiter`, which says what they mean."""

    burst: int | None
    key: Key
    cost: Cost
    storage: LimitStorage | None
    title: str | None
    wait: float | None
    shape: bool
    lease: int | None
    exempt_when: Callable[[], bool] | None
    methods: Iterable[str] | None
    per_method: bool
    deduct_when: Callable[[Any], bool] | None
    on_breach: Callable[[RateLimited], Any] | None
    response: str | Callable[[RateLimited], Any] | None
    shadow: bool
    on_store_failure: OnStoreFailure | None
    clock: Clock


class Terms:
    """Limits as a policy charges them. Knows how they are decided on the storage that was used last.

    `instead` says which terms hold at the moment, where others may; as long as it is set these are never bound, so that
    whoever has them asks.
    """

    __slots__ = ("bound", "instead", "limits", "mode", "parts", "titles")

    def __init__(
        self, name: str, title: str, limits: tuple[Limit, ...], *, lease: int, mode: OnStoreFailure | None
    ) -> None:
        self.limits = limits
        # The period is part of the bucket's name, the rate is not: a changed rate keeps what the callers have left. Limits
        # that are said for each call differ in size, so each is leased as much as it allows.
        self.parts = tuple(
            (f"{name}:{limit.period_microseconds}", limit, min(lease, limit.size // SMALLEST_SHARE)) for limit in limits
        )
        self.titles = titles_of(title, limits)
        self.mode = mode
        self.bound: tuple[LimitStorage | None, Taker] = _UNBOUND
        self.instead: Callable[[], Terms | None] | None = None

    def bind(self, storage: LimitStorage) -> tuple[Terms, Taker]:
        """The terms that hold now, and what decides them on `storage`, kept in `bound` for the next time."""
        instead = self.instead
        if instead is not None and (terms := instead()) is not None:
            bound, taker = terms.bound
            return terms, taker if bound is storage else terms.bind(storage)[1]
        taker = self._make_taker(view_of(storage, self.mode))
        self.bound = (storage, taker)
        if self.instead is not None:  # set meanwhile, perhaps: whoever finds these bound would not ask
            self.bound = _UNBOUND
        return self, taker

    def replace_by(self, instead: Callable[[], Terms | None] | None) -> None:
        """Let `instead` say from now on which terms hold; None for these."""
        self.instead = instead
        self.bound = _UNBOUND

    def _make_taker(self, storage: LimitStorage) -> Taker:
        parts = self.parts
        make = getattr(storage, "taker", None)
        if len(parts) == 1 and make is not None:
            scope, limit, lease = parts[0]
            taker: Taker = make(scope, limit, 0, lease)
            return taker
        make_jointly = getattr(storage, "joint_taker", None)
        if make_jointly is not None:
            jointly: Taker = make_jointly([(scope, limit) for scope, limit, _ in parts])
            return jointly

        def take(subject: str, cost: int) -> Decision:
            # tuple.__new__: a named tuple's own constructor takes twice as long.
            return storage.take(
                [_new(Charge, (scope, subject, limit, cost, 0, lease)) for scope, limit, lease in parts]
            )

        return take


def titles_of(title: str, limits: Sequence[Limit]) -> tuple[str, ...]:
    """The names that callers see, one for each of `limits`."""
    return (title,) if len(limits) == 1 else tuple(f"{title}-{limit.period:g}s" for limit in limits)


def _decide_nothing(subject: str, cost: int) -> Decision:  # noqa: ARG001  # a Taker's signature
    raise AssertionError("no storage has been bound yet")


_UNBOUND: Final[tuple[LimitStorage | None, Taker]] = (None, _decide_nothing)


class Claim(NamedTuple):
    """What one policy asks for in one decision."""

    policy: Policy
    terms: Terms
    subject: str
    tokens: int
    wait: float
    later: bool
    """Whether tokens are taken after the call, when its result is known; until then the bucket is only looked at."""

    def charges(self) -> list[Charge]:
        """What is asked of the storage."""
        policy, terms, subject, tokens, wait, later = self
        if later:
            return [_new(Charge, (scope, subject, limit, 0, 0, 0)) for scope, limit, _ in terms.parts]
        if not wait and not policy.shape:
            return [_new(Charge, (scope, subject, limit, tokens, 0, lease)) for scope, limit, lease in terms.parts]
        # Who waits stands in one queue, which tokens taken ahead would pass: no lease.
        return [
            _new(Charge, (scope, subject, limit, tokens, policy.floor(limit, tokens, wait), 0))
            for scope, limit, _ in terms.parts
        ]

    def late_charges(self) -> list[Charge]:
        """What is taken after the call. It has been made, so a bucket that others have emptied meanwhile goes into debt;
        by a whole bucket at most, or a crowd that came at once would shut a caller out for long."""
        return [
            _new(Charge, (scope, self.subject, limit, self.tokens, -min(limit.capacity, LARGEST - limit.capacity), 0))
            for scope, limit, _ in self.terms.parts
        ]


class _Place:
    """What holds in place of a policy's own limits. In an object of its own, for a policy of more than thirty attributes would
    be read more slowly by every call (CPython shares their names up to there)."""

    __slots__ = ("lock", "standing")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.standing: tuple[Override, Terms] | None = None  # guarded by lock for who changes it


class Policy:
    """The options of a rate limiter, checked once. See `RateLimiter` for what they mean."""

    def __init__(
        self,
        limits: Limits,
        *,
        name: str,
        burst: int | None,
        key: Key,
        cost: Cost,
        storage: LimitStorage | None,
        title: str | None,
        wait: float | None,
        shape: bool,
        lease: int | None,
        exempt_when: Callable[[], bool] | None,
        methods: Iterable[str] | None,
        per_method: bool,
        deduct_when: Callable[[Any], bool] | None,
        on_breach: Callable[[RateLimited], Any] | None,
        response: str | Callable[[RateLimited], Any] | None,
        shadow: bool,
        on_store_failure: OnStoreFailure | None,
        clock: Clock,
    ) -> None:
        if not name or not isinstance(name, str):
            raise ValueError(
                f"name={name!r}: a rate limiter needs a name; buckets, header fields and the admin endpoint use it"
            )
        self.name = name
        self.title = name if title is None else title
        self.key = key
        self.cost = cost if callable(cost) else checked_cost(cost)
        self.storage = storage
        self.wait = None if wait is None else checked_wait(wait)
        self.shape = shape
        self.exempt_when = exempt_when
        self.methods = _checked_methods(methods)
        self.per_method = per_method
        self.deduct_when = deduct_when
        self.on_breach = on_breach
        self.response = response
        self.shadow = shadow
        self.on_store_failure = _checked_mode(on_store_failure)
        self.clock = clock
        self.burst = burst
        self.lease = 0 if lease is None else _checked_lease(lease)
        self.own_subject = self.named(key) if isinstance(key, str | tuple) else None
        """The bucket of a policy with a constant key."""
        self.own_cost = None if callable(cost) else checked_cost(cost)
        """The cost of a policy with a constant one."""
        # Seconds that a call may wait which does not say it: a smoothed one as long as the queue is.
        self._patience = self.wait if self.wait is not None else math.inf if shape else 0.0
        if callable(limits) and needs_arguments(limits):
            raise ValueError(
                f"{limits!r} says no limits: it is called without arguments for each call, and needs some; "
                "write one such as lambda: '10/second'"
            )
        self._compiled = functools.lru_cache(maxsize=KEPT_TERMS)(self._compile)
        self._dynamic = limits if callable(limits) else None
        self._fixed = None if callable(limits) else self._compile(limits)
        self._always = self._says_it_always()
        if lease is not None:
            _check_size_of_lease(lease, self.limits)
        self.plain = self._plain_terms()
        """The terms of a policy that says the same of every call, apart from its key and cost. None for every other, and
        while others hold in place of them."""
        self._place = _Place()
        self._refuse_contradictions()
        self.tally = Tally(name, clock)
        self.shadow_log = ShadowLog(name, clock)

    @property
    def limits(self) -> tuple[Limit, ...]:
        """The limits; none where a callable says them for each call."""
        return () if self._fixed is None else self._fixed.limits

    @property
    def is_plain(self) -> bool:
        """Whether it says the same of every call, apart from its key and cost, as long as its own limits hold."""
        return self._plain_terms() is not None

    @property
    def takes_at_once(self) -> bool:
        """Whether a call takes its tokens when it comes, and goes on at once."""
        return self.deduct_when is None and not self.wait and not self.shape

    # -- limits in place of the own ones -----------------------------------------------------------------------------

    def written_limits(self, *, own: bool = False) -> tuple[str, ...]:
        """The limits that hold now, as they are shown to people; `own` for the policy's own, whatever holds instead."""
        standing = None if own else self.standing_terms()
        if standing is None and self._dynamic is not None:
            return ("said for each call",)
        return tuple(map(str, self.limits if standing is None else standing.limits))

    @property
    def override(self) -> Override | None:
        """What holds in place of the own limits now."""
        standing = self._place.standing
        return None if standing is None or self.standing_terms() is None else standing[0]

    def replace_limits(self, override: Override | None) -> None:
        """Let other limits hold until their time is over; None for the own ones again. Raises `ValueError` for what cannot
        be limits of this policy."""
        standing = None if override is None else (override, self.terms_of(override.limits, override.burst))
        with self._place.lock:
            self._let_stand(standing)

    def terms_of(self, limits: LimitsLike, burst: int | None) -> Terms:
        """`limits` as this policy would charge them. Raises `ValueError` when it cannot."""
        read = parse_limits(limits, burst=burst)
        smallest = min(limit.size for limit in read)
        if self.own_cost is not None and self.own_cost > smallest:
            raise ValueError(
                f"{'; '.join(map(str, read))}: a call of {self.name!r} costs {self.own_cost}, more than a burst of {smallest} "
                "holds, so none would ever pass: give a larger burst"
            )
        return Terms(self.name, self.title, read, lease=self.lease, mode=self.on_store_failure)

    def standing_terms(self) -> Terms | None:
        """The terms that hold in place of the own ones now. When their time is over, the own ones hold again."""
        standing = self._place.standing
        if standing is None:
            return None
        override, terms = standing
        if self.clock.seconds() < override.until:
            return terms
        with self._place.lock:
            if self._place.standing is standing:
                self._let_stand(None)
        return None

    def _let_stand(self, standing: tuple[Override, Terms] | None) -> None:
        """Requires the lock. While other terms stand the own ones are set aside, so that every call asks; else none does."""
        self._place.standing = standing
        self._always = self._says_it_always() and standing is None
        self.plain = self._plain_terms() if standing is None else None
        if self._fixed is not None:
            self._fixed.replace_by(None if standing is None else self.standing_terms)

    def _says_it_always(self) -> bool:
        return self.exempt_when is None and self.methods is None and self._dynamic is None

    def _plain_terms(self) -> Terms | None:
        special = (
            self.shape or self.shadow or self.per_method or self.methods is not None,
            self.exempt_when is not None or self.deduct_when is not None,
        )
        return None if any(special) else self._fixed

    def _compile(self, limits: LimitsLike) -> Terms:
        read = parse_limits(limits, burst=self.burst)
        return Terms(self.name, self.title, read, lease=self.lease, mode=self.on_store_failure)

    def claim(self, scope: Scope, key: KeyLike | None, cost: int | None, wait: float | None) -> Claim | None:
        """What this policy asks for one call; None when it has no say in it.

        `key`, `cost` and `wait` take the place of the policy's own where they are given.
        """
        terms = self._fixed if self._always else None if self._is_exempt(scope) else self.terms()
        return None if terms is None else self._claim(terms, scope, key, cost, wait)

    def claim_regardless(self, scope: Scope, key: KeyLike | None, cost: int | None) -> Claim | None:
        """As `claim`, whether this call is exempt or not: for what is done to somebody's bucket from elsewhere."""
        terms = self.terms()
        return None if terms is None else self._claim(terms, scope, key, cost, 0.0)

    def _claim(self, terms: Terms, scope: Scope, key: KeyLike | None, cost: int | None, wait: float | None) -> Claim:
        subject = self.own_subject if key is None else self.named(key)
        if subject is None:
            subject = self.subject(None, scope)
        if self.per_method:
            method = _known(scope.method())
            subject = subject if method is None else f"{method} {subject}"
        tokens = self.own_cost if cost is None else checked_cost(cost)
        if tokens is None:
            tokens = self.tokens()
        later = self.deduct_when is not None  # what is not taken yet needs no turn
        return _new(Claim, (self, terms, subject, tokens, self._patience if wait is None or later else wait, later))

    def _is_exempt(self, scope: Scope) -> bool:
        if self.exempt_when is not None and self.exempt_when():
            return True
        if self.methods is None:
            return False
        method = _known(scope.method())
        return method is not None and method not in self.methods

    def terms(self) -> Terms | None:
        """The limits of this call; None when there are none."""
        if self._place.standing is not None and (standing := self.standing_terms()) is not None:
            return standing
        if self._dynamic is None:
            return self._fixed
        said = self._dynamic()
        if said is None:
            return None
        if isinstance(said, Iterable) and not isinstance(said, str):
            said = tuple(said)  # a list has no hash
        return self._compiled(said)

    def subjects(self, key: KeyLike | None, scope: Scope) -> list[str]:
        """The names of all buckets of a caller: one, or one for each HTTP method."""
        subject = self.subject(key, scope)
        return [subject, *(f"{method} {subject}" for method in (*sorted(_METHODS), _OTHER) if self.per_method)]

    def floor(self, limit: Limit, tokens: int, wait: float) -> int:
        """Parts that must be left in the bucket so that nobody waits longer than `wait` seconds."""
        if not self.shape:
            return -limit.debt(wait) if wait else 0
        if wait == math.inf:
            return 0
        return max(0, limit.capacity - limit.debt(wait) - tokens * limit.unit)

    def subject(self, key: KeyLike | None, scope: Scope) -> str:
        """The name of the caller's bucket: `key`, else the policy's own, else who is calling."""
        if key is None:
            key = self.key() if callable(self.key) else self.key
            if key is None and not callable(self.key):
                key = scope.caller()
        return self.named(key)

    def named(self, key: object) -> str:
        """`key` as the name of a bucket, of bounded length."""
        if isinstance(key, str):
            subject = key if type(key) is str else str.__str__(key)
        elif isinstance(key, tuple):
            subject = "|".join(str(part).replace("\\", "\\\\").replace("|", "\\|") for part in key)
        else:
            raise TypeError(f"the key of rate limit {self.name!r} is {key!r}: a key is a string or a tuple")
        return subject if len(subject) <= LONGEST_KEY else _shortened(subject)

    def tokens(self) -> int:
        """The cost of this call."""
        cost: Any = self.cost
        return checked_cost(cost()) if callable(cost) else cost

    def answer(self, rejection: RateLimited) -> bool:
        """Set the response that the policy wants. Whether it takes the place of the call's result."""
        if self.on_breach is not None:
            rejection.response = self.on_breach(rejection)
            if rejection.response is not None:
                return True
        rejection.response = self.response(rejection) if callable(self.response) else self.response
        return False

    def snapshot(self, storage: LimitStorage) -> LimiterSnapshot:
        """What has been counted; `storage` is where a policy without a storage of its own counts."""
        tally = self.tally
        return LimiterSnapshot(
            self.name,
            self.written_limits(),
            (storage if self.storage is None else self.storage).uri,
            tally.allowed,
            tally.denied,
            tally.shadow_denied,
            tally.waited,
            tally.exempted,
            tally.waiting,
            tally.top(),
        )

    def available(self, storage: LimitStorage) -> int | None:
        """Whole tokens in the bucket, where all callers have one and the same; else None. `storage` is as for `snapshot`."""
        terms = None if self.own_subject is None or self.per_method or self._dynamic is not None else self.terms()
        if terms is None:
            return None
        subject = cast("str", self.own_subject)
        home = view_of(storage if self.storage is None else self.storage, self.on_store_failure)
        return home.take([_new(Charge, (scope, subject, limit, 0, 0, 0)) for scope, limit, _ in terms.parts]).remaining

    def _refuse_contradictions(self) -> None:
        smallest = min((limit.size for limit in self.limits), default=math.inf)
        if self.own_cost is not None and self.own_cost > smallest:
            raise ValueError(
                f"cost={self.own_cost} is above the burst of {smallest}, so no call would ever pass: "
                f"make it at most {smallest}, or the burst larger"
            )
        if self.deduct_when is not None and (self.wait or self.shape):
            raise ValueError(
                "deduct_when takes tokens after the call, so there is no turn to wait for: leave out wait and shape"
            )
        if self.lease and (self.wait or self.shape):
            raise ValueError(
                f"lease={self.lease}: callers who wait stand in one queue, which tokens taken ahead would pass: "
                "leave out lease, or wait and shape"
            )


def view_of(storage: LimitStorage, mode: str | None) -> LimitStorage:
    """`storage`, deciding as `mode` says while it is down. A storage without a stand-in never asks for one."""
    deciding = None if mode is None else getattr(storage, "deciding", None)
    if deciding is None:
        return storage
    view: LimitStorage = deciding(mode)
    return view


def needs_arguments(function: Callable[..., Any]) -> bool:
    """Whether `function` cannot be called without arguments: then it is not what says limits."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(
        parameter.default is parameter.empty and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        for parameter in parameters
    )


def checked_cost(cost: object) -> int:
    """`cost`, if it is one."""
    if type(cost) is not int or cost < 0:
        raise ValueError(f"cost={cost!r}: a cost is a whole number from 0")
    return cost


def checked_wait(wait: object) -> float:
    """`wait`, if it is one."""
    if isinstance(wait, bool) or not isinstance(wait, int | float) or not 0 <= wait <= LONGEST_WAIT:
        raise ValueError(f"wait={wait!r}: a caller waits for a number of seconds from 0 to {LONGEST_WAIT}")
    return float(wait)


def _checked_lease(lease: object) -> int:
    if type(lease) is not int or lease < 1:
        raise ValueError(f"lease={lease!r}: a lease is a whole number of tokens from 1, or None for none")
    return lease


def _check_size_of_lease(lease: int, limits: tuple[Limit, ...]) -> None:
    for limit in limits:
        most = limit.size // SMALLEST_SHARE
        if lease > most:
            advice = (
                f"take at most {most}, a tenth of it" if most else "a limit this small is decided one call at a time"
            )
            raise ValueError(
                f"lease={lease} is too much of a burst of {limit.size}: each process may hold so many tokens ahead, which the "
                f"others find missing, or see spent on top of a burst; {advice}"
            )


def _checked_methods(methods: Iterable[str] | None) -> frozenset[str] | None:
    if methods is None:
        return None
    if isinstance(methods, str):
        raise ValueError(f"methods={methods!r}: give several, such as ['POST', 'PUT']")  # noqa: TRY004  # as every bad value
    chosen = frozenset(_known(method.upper()) or "" for method in methods)
    if not chosen or _OTHER in chosen:
        raise ValueError(f"methods={methods!r}: give HTTP methods, such as ['POST', 'PUT']")
    return chosen


def _checked_mode(mode: OnStoreFailure | None) -> OnStoreFailure | None:
    if mode is not None and mode not in get_args(OnStoreFailure):
        raise ValueError(f"on_store_failure={mode!r}: choose one of {', '.join(get_args(OnStoreFailure))}")
    return mode


def _known(method: str | None) -> str | None:
    """A method that a policy tells from others. Clients may invent any number of them, and each would be a new bucket."""
    if method is None or method in _METHODS:
        return method
    return "GET" if method == "HEAD" else _OTHER  # whoever asks for the head alone costs as much


def _shortened(subject: str) -> str:
    # Keys may come from callers: whatever they send, a bucket takes a bounded amount of memory.
    return "#" + hashlib.blake2b(subject.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
