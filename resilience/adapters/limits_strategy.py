"""The token bucket as a strategy of the `limits` package, and so of everything that is built on it.

Importing `resilience` is enough: then `"token-bucket"` is one of `limits.strategies.STRATEGIES`, and Flask-Limiter takes it:

    import resilience  # before Limiter(...) or init_app: it registers "token-bucket"
    limiter = flask_limiter.Limiter(get_remote_address, app=app, strategy="token-bucket", storage_uri="redis://127.0.0.1:6379")

A limit of the package, say "10/minute", is a bucket of ten tokens that gains ten a minute. A hit is one round trip; a
refused one takes nothing, and neither does a test. Storages of the package are used as its addresses of the same server:
`memory://`, `redis://` and its kin, `redis+sentinel://`, `redis+cluster://`; and this module adds `shm://`, shared by the
processes of one machine (`resilience.storage.shm`), which keeps token buckets only. While a storage is down its own errors
are raised, so that Flask-Limiter's `swallow_errors` and `in_memory_fallback` do what they are for.
"""

from __future__ import annotations

import enum
import sys
import threading
import time
import weakref
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

from limits import RateLimitItem, WindowStats
from limits.errors import ConfigurationError, StorageError
from limits.limits import safe_string
from limits.storage import (
    MemoryStorage as CounterStorage,
)
from limits.storage import (
    RedisClusterStorage,
    RedisSentinelStorage,
    RedisStorage,
    Storage,
    StorageTypes,
)
from limits.strategies import STRATEGIES, RateLimiter

from resilience.clock import SYSTEM_CLOCK
from resilience.core.limiter import Bucket, Charge, Decision, Limit, Quota, Refund, advance
from resilience.errors import StorageUnavailable
from resilience.ports import LimitStorage, Taker
from resilience.storage.address import open_storage
from resilience.storage.memory import MemoryStorage
from resilience.storage.standin import StandInStorage

__all__ = ["SharedMemory", "TokenBucketRateLimiter"]

_LONGEST_REMEMBERED = 1_000_000
"""Microseconds for which an answer may be shown again without asking."""
_MOST_REMEMBERED = 16
_MOST_POLICIES = 1_024
_MARK = "resilience: token buckets"


class TokenBucketRateLimiter(RateLimiter):
    """Decides by token buckets. `storage` is one of the package's: memory, shared memory, or a Redis-compatible server.

    Raises `NotImplementedError` for other storages, like the package's own strategies do for those that lack something.
    """

    def __init__(self, storage: StorageTypes) -> None:
        super().__init__(storage)
        self._home = _home_of(self.storage)
        self._shown = threading.local()

    def hit(self, item: RateLimitItem, *identifiers: str, cost: int = 1) -> bool:
        """Take `cost` tokens if the bucket holds them. Raises `ValueError` for a cost that is not a whole number from 0."""
        policy = self._policy(item)
        if policy is None:
            return _checked(cost) == 0
        subject = _subject(identifiers)
        quota = self._asked(policy, subject, _checked(cost))
        return self._show(policy, subject, quota.allowed, quota.quotas[0])

    def test(self, item: RateLimitItem, *identifiers: str, cost: int = 1) -> bool:
        """Whether the bucket holds `cost` tokens now. Takes nothing."""
        policy = self._policy(item)
        if policy is None:
            return _checked(cost) == 0
        subject = _subject(identifiers)
        quota = self._asked(policy, subject, 0).quotas[0]._replace(cost=_checked(cost))
        return self._show(policy, subject, quota.wait == 0.0, quota)

    def get_window_stats(self, item: RateLimitItem, *identifiers: str) -> WindowStats:
        """When the bucket is full again, and how many whole tokens it holds.

        Right after a refusal: when it will hold what was refused. Of an empty bucket: when it holds a token. After a hit
        or a test by this thread or greenlet on a server this is answered from what was learnt then, once, without asking.
        """
        policy = self._policy(item)
        if policy is None:
            return WindowStats(_epoch() + item.get_expiry(), 0)
        subject = _subject(identifiers)
        shown = self._shown_last(policy, subject)
        allowed, quota = (True, self._asked(policy, subject, 0).quotas[0]) if shown is None else shown
        return WindowStats(_epoch() + _seconds_to_reset(allowed, quota), quota.remaining)

    def clear(self, item: RateLimitItem, *identifiers: str) -> None:
        """Fill the bucket."""
        policy = self._policy(item)
        if policy is None:
            return
        subject = _subject(identifiers)
        self._shown_last(policy, subject)
        try:
            self._home.storage.give_back([Refund(policy.scope, subject, policy.limit, None)])
        except StorageUnavailable as error:
            raise _failure_of(self.storage, error) from error

    def _policy(self, item: RateLimitItem) -> _Policy | None:
        """The limit, under the name that its buckets have. None for a limit of nothing, which the package knows too."""
        home = self._home
        theirs = self.storage
        if isinstance(theirs, CounterStorage) and _MARK not in theirs.storage:
            theirs.storage[_MARK] = 1
            home.start_again()
        name = (item.namespace, item.amount, item.multiples, item.GRANULARITY.name)
        known = home.policies.get(name)
        if known is None and item.amount > 0:
            if len(home.policies) >= _MOST_POLICIES:
                home.policies.clear()
            known = home.policies[name] = home.policy("/".join(map(str, name)), Limit(item.amount, item.get_expiry()))
        return known

    def _asked(self, policy: _Policy, subject: str, cost: int) -> Decision:
        try:
            return policy.taker(subject, cost)
        except StorageUnavailable as error:
            raise _failure_of(self.storage, error) from error

    def _show(self, policy: _Policy, subject: str, allowed: bool, quota: Quota) -> bool:
        """Keep what `get_window_stats` will be asked for next: what was refused, and all where to look is a round trip."""
        if self._home.distant or not allowed:
            kept = self._shown.__dict__
            if len(kept) >= _MOST_REMEMBERED:
                kept.clear()
            kept[f"{policy.scope} {subject}"] = SYSTEM_CLOCK.microseconds(), allowed, quota
        return allowed

    def _shown_last(self, policy: _Policy, subject: str) -> tuple[bool, Quota] | None:
        """What was kept, as time has made it since; it is forgotten with that, since others may have come meanwhile."""
        kept = self._shown.__dict__.pop(f"{policy.scope} {subject}", None)
        if kept is None:
            return None
        then, allowed, quota = kept
        now = SYSTEM_CLOCK.microseconds()
        if now - then > _LONGEST_REMEMBERED:
            return None
        level, _ = advance(quota.limit, Bucket(quota.level, then, quota.limit.unit), now)
        return allowed, quota._replace(level=level)


class SharedMemory(Storage):
    """`shm://` for the package: buckets that the processes of one machine share. Only token buckets are kept in it.

    `uri` is an address of `resilience.storage.shm.SharedMemoryStorage`. Its errors are `resilience.StorageUnavailable`.
    """

    STORAGE_SCHEME = ["shm"]  # noqa: RUF012  # the package declares it so

    def __init__(self, uri: str | None = None, wrap_exceptions: bool = False, **options: float | str | bool) -> None:
        super().__init__(uri, wrap_exceptions=wrap_exceptions, **options)
        if options:
            raise ConfigurationError(f"shm:// has no option {min(options)!r}: write what it knows into the address")
        self.buckets = _opened(uri or "shm://")

    @property
    def base_exceptions(self) -> type[Exception]:
        """What its failures are."""
        return StorageUnavailable

    def check(self) -> bool:
        """Whether it decides."""
        try:
            self.buckets.take([Charge("check", "check", _CHECK, 0)])
        except StorageUnavailable:
            return False
        return True

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        """Not there."""
        raise NotImplementedError(_NO_COUNTERS)

    def get(self, key: str) -> int:
        """Not there."""
        raise NotImplementedError(_NO_COUNTERS)

    def get_expiry(self, key: str) -> float:
        """Not there."""
        raise NotImplementedError(_NO_COUNTERS)

    def clear(self, key: str) -> None:
        """Not there: the strategy's `clear` fills a bucket."""
        raise NotImplementedError(_NO_COUNTERS)

    def reset(self) -> int | None:
        """Not there: other services of the machine may have buckets in it."""
        raise NotImplementedError(
            "shm:// is shared with others: clear single limits, or stop its users and remove its file"
        )


_CHECK = Limit(1, 1)
_NO_COUNTERS = 'shm:// keeps no counters, only token buckets: choose strategy="token-bucket"'


class _Policy(NamedTuple):
    scope: str
    limit: Limit
    taker: Taker


class _Home:
    """Where the buckets of one of the package's storages are kept."""

    def __init__(self, storage: LimitStorage, *, distant: bool = False) -> None:
        self.storage = storage
        self.distant = distant
        self.policies: dict[tuple[str, int, int, str], _Policy] = {}

    def policy(self, scope: str, limit: Limit) -> _Policy:
        """`limit` under `scope`, and what decides it."""
        storage = self.storage
        make = getattr(storage, "taker", None)
        if make is not None:
            return _Policy(scope, limit, make(scope, limit))
        return _Policy(scope, limit, lambda subject, cost: storage.take([Charge(scope, subject, limit, cost)]))

    def start_again(self) -> None:
        """With full buckets, in memory."""
        self.storage = MemoryStorage()
        self.policies.clear()


_homes: weakref.WeakKeyDictionary[Storage, _Home] = weakref.WeakKeyDictionary()  # guarded by _homes_lock
_homes_lock = threading.Lock()


def _home_of(theirs: Storage) -> _Home:
    """One home for one storage of the package, however many strategies use it."""
    with _homes_lock:
        home = _homes.get(theirs)
        if home is None:
            home = _homes[theirs] = _new_home(theirs)
    return home


def _new_home(theirs: Storage) -> _Home:
    if isinstance(theirs, CounterStorage):
        # `reset()` of the package's storage empties its counters. One that is gone says that all buckets are to be filled.
        theirs.storage[_MARK] = 1
        return _Home(MemoryStorage())
    if isinstance(theirs, SharedMemory):
        return _Home(theirs.buckets)
    if not isinstance(theirs, RedisStorage):
        raise NotImplementedError(
            f"the token bucket is not implemented for storage of type {type(theirs)}: use memory, shm or a Redis-compatible "
            "server"
        )
    address, timeout = _server_of(theirs)
    # Under the prefix of the package's own keys, so that `reset()` finds them.
    ours = _opened(address, timeout=timeout, namespace=theirs.key_prefix)
    weakref.finalize(theirs, ours.close)
    return _Home(ours, distant=True)


def _opened(uri: str, **options: Any) -> LimitStorage:
    """The storage without its stand-in: what to do while it is down is for those to say who use this strategy."""
    storage = open_storage(uri, **options)
    return storage.primary if isinstance(storage, StandInStorage) else storage


class _Address(NamedTuple):
    uri: str
    timeout: float


def _server_of(theirs: RedisStorage) -> _Address:
    """The address of the server that a storage of the package uses, with the options that were given for it."""
    client: Any = theirs.storage
    if isinstance(theirs, RedisClusterStorage):
        options = client.get_connection_kwargs()
        nodes = ",".join(_host(node.host, node.port) for node in client.nodes_manager.startup_nodes.values())
        return _address("redis+cluster", options, nodes, "", secure=bool(options.get("ssl")))
    if isinstance(theirs, RedisSentinelStorage):
        options = theirs.sentinel.connection_kwargs
        known = [sentinel.connection_pool.connection_kwargs for sentinel in theirs.sentinel.sentinels]
        nodes = ",".join(_host(each["host"], each["port"]) for each in known)
        path = f"/{quote(str(theirs.service_name), safe='')}/{options.get('db') or 0}"
        return _address("redis+sentinel", options, nodes, path, secure=bool(options.get("ssl")))
    options = client.connection_pool.connection_kwargs
    database = f"{options.get('db') or 0}"
    if options.get("path"):
        return _address("redis+unix", options | {"db": database}, "", quote(options["path"]), secure=False)
    host = _host(options.get("host", "localhost"), options.get("port", 6379))
    secure = "SSL" in client.connection_pool.connection_class.__name__
    return _address("redis", options, host, f"/{database}", secure=secure)


def _host(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _address(scheme: str, options: dict[str, Any], hosts: str, path: str, *, secure: bool) -> _Address:
    if options.get("credential_provider") is not None:
        raise ConfigurationError(
            "the token bucket knows no credential_provider: write user and password into the address"
        )
    if secure:
        scheme = scheme.replace("redis", "rediss", 1)
    user, password = (quote(str(options.get(name) or ""), safe="") for name in ("username", "password"))
    credentials = f"{user}:{password}@" if user or password else ""
    rest = {name: _text(value) for name, value in options.items() if name.startswith("ssl_") and value is not None}
    if scheme == "redis+unix":
        rest["db"] = options["db"]
    query = f"?{urlencode(rest)}" if rest else ""
    return _Address(f"{scheme}://{credentials}{hosts}{path}{query}", options.get("socket_timeout") or _TIMEOUT)


_TIMEOUT = 0.05
"""Seconds that a decision may take where the storage's options name no `socket_timeout`."""


def _text(value: object) -> str:
    """As in an address: ssl.CERT_NONE is written none."""
    return value.name.removeprefix("CERT_").lower() if isinstance(value, enum.Enum) else str(value)


def _failure_of(theirs: Storage, error: StorageUnavailable) -> Exception:
    """`error` as an error of the package's own storage, which is what those who catch one expect."""
    kinds = theirs.base_exceptions
    kind = kinds[0] if isinstance(kinds, tuple) else kinds
    if not isinstance(error, kind):
        closer = getattr(sys.modules[kind.__module__], "ConnectionError", kind)
        failure = (closer if issubclass(closer, kind) else kind)(str(error))
    else:
        failure = error
    return StorageError(failure) if theirs.wrap_exceptions else failure


def _subject(identifiers: tuple[str, ...]) -> str:
    """One text for several: unlike in the package's own keys, none can be made up that is another's."""
    texts = [safe_string(identifier) for identifier in identifiers]
    return "/".join(
        [text.replace("%", "%25").replace("/", "%2F") if "/" in text or "%" in text else text for text in texts]
    )


def _checked(cost: object) -> int:
    if type(cost) is not int or cost < 0:
        raise ValueError(f"cost={cost!r}: a cost is a whole number from 0")
    return cost


def _seconds_to_reset(allowed: bool, quota: Quota) -> float:
    if not allowed and quota.wait is not None:
        return quota.wait
    if not quota.remaining:
        return quota._replace(cost=1, floor=0).wait or 0.0
    return quota.reset_after


def _epoch() -> float:
    """The package counts resets in seconds since 1970."""
    return time.time()


STRATEGIES["token-bucket"] = TokenBucketRateLimiter  # type: ignore[assignment]  # the package's type lists its own three
