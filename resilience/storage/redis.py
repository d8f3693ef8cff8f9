"""`redis://` and `valkey://`: buckets shared by every process that names the same server.

What the greenlets or threads of a process ask at the same time is decided by one call of a script, written for Redis 6.2 and
later and Valkey. The server's clock decides, so that workers need not agree on the time.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.connection import AbstractConnection, Connection, parse_url
from redis.retry import Retry

from resilience.core.limiter import Charge, Decision, Limit, Quota, Refund
from resilience.ports import Clock, Taker
from resilience.storage.carrier import Carrier, Question
from resilience.storage.script import bulk, charge_terms, refund_terms

__all__ = [
    "Keys",
    "RedisStorage",
    "charges_question",
    "connection_options",
    "decision_of",
    "refunds_question",
    "without_credentials",
]

_PLAIN_SUBJECT = re.compile(r"[A-Za-z0-9_.:@/-]{1,96}")
_MOST_CHARGES = 512
"""In one decision; a call of the script takes 65,536."""
_KEPT = 4_096
"""Names, and terms, that are kept ready: some 400 bytes each."""
_LONGEST_KEPT = 256

# A named tuple's own constructor takes twice as long as the tuple's.
_new = tuple.__new__


class Keys:
    """Names of buckets on a server, and terms of charges, as they travel. Those in use are kept ready, a bounded number.

    A name is bounded in length: a subject of unusual characters or of more than 96 bytes is kept as its BLAKE2b hash. The
    subject is the hash tag, so that all limits of one caller share a slot of a cluster.
    """

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._names: dict[tuple[str, str], bytes] = {}
        self._terms: dict[tuple[int, int, int, bool], tuple[Limit, bytes]] = {}

    def key(self, scope: str, subject: str) -> str:
        """The name of the bucket."""
        return f"{self._namespace}:limit:{{{self.tag(subject)}}}:{scope}"

    def tag(self, subject: str) -> str:
        """What its slot on a cluster depends on."""
        if _PLAIN_SUBJECT.fullmatch(subject):
            return subject
        return "#" + hashlib.blake2b(subject.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()

    def encoded(self, scope: str, subject: str) -> bytes:
        """The name as it travels."""
        name = self._names.get((scope, subject))
        if name is None:
            name = bulk(self.key(scope, subject).encode())
            if len(subject) <= _LONGEST_KEPT:
                _make_room(self._names)
                self._names[scope, subject] = name
        return name

    def terms(self, limit: Limit, cost: int, floor: int, *, more: bool) -> bytes:
        """`charge_terms`, kept ready."""
        # By identity: to compare limits, or to hash one, takes as long as to write its numbers down.
        known = self._terms.get((id(limit), cost, floor, more))
        if known is None or known[0] is not limit:
            _make_room(self._terms)
            known = self._terms[id(limit), cost, floor, more] = limit, charge_terms(limit, cost, floor, more=more)
        return known[1]


class RedisStorage:
    """Buckets on a Redis-compatible server.

    `uri` is a `redis://`, `rediss://`, `redis+unix://` (socket path and `?db=`) or `valkey://` address. `timeout` (seconds)
    bounds connecting and every answer. `namespace` starts every key. A process has one connection, and a thread that looks
    after it; both are opened by the first decision.

    A decision is never tried again after a timeout: the server may have taken the tokens already. A caller who is killed
    while it waits (a timeout of its own) is given back what was taken for it. Every key carries a time to live. `clock`
    replaces the server's clock, for tests. `connect` makes the connections, where the address alone does not say how.
    """

    def __init__(
        self,
        uri: str,
        *,
        timeout: float = 0.05,
        namespace: str = "seawall",
        clock: Clock | None = None,
        connect: Callable[[], AbstractConnection] | None = None,
    ) -> None:
        if not timeout > 0:
            raise ValueError(f"timeout={timeout!r}: a storage takes seconds above 0")
        self.uri = without_credentials(uri)
        self._keys = Keys(namespace)
        if connect is None:
            kind, options = connection_options(uri, timeout=timeout)
            connect = functools.partial(kind, **options)
        self._carrier = Carrier(connect, uri=self.uri, timeout=timeout, clock=clock)

    def __repr__(self) -> str:
        return f"<RedisStorage: {self.uri}>"

    def take(self, charges: Sequence[Charge]) -> Decision:
        """Take every charge or none. Raises `StorageUnavailable` when the server did not decide in time."""
        question = charges_question(self._keys, charges)
        allowed = self._carrier.ask(question)
        return decision_of(charges, allowed, question.levels)

    def taker(self, scope: str, limit: Limit, floor: int = 0, lease: int = 0) -> Taker:  # noqa: ARG002
        """`take` for one charge with everything prepared that does not change."""
        ask, encoded = self._carrier.ask, self._keys.encoded
        ready: dict[int, tuple[bytes]] = {}

        def take_one(subject: str, cost: int) -> Decision:
            terms = ready.get(cost)
            if terms is None:
                _make_room(ready)
                terms = ready[cost] = (charge_terms(limit, cost, floor),)
            question = Question((encoded(scope, subject),), terms)
            allowed = ask(question)
            return _new(Decision, (allowed, (_new(Quota, (limit, question.level, cost, floor)),)))

        return take_one

    def give_back(self, refunds: Sequence[Refund]) -> None:
        """Give tokens back, or fill buckets. Raises `StorageUnavailable` when that could not be had in time."""
        if 0 < len(refunds) <= _MOST_CHARGES:
            self._carrier.ask(refunds_question(self._keys, refunds))
            return
        questions = [
            refunds_question(self._keys, refunds[first : first + _MOST_CHARGES])
            for first in range(0, len(refunds), _MOST_CHARGES)
        ]
        for question in questions:
            self._carrier.send(question)
        for question in questions:
            question.wait()

    def close(self) -> None:
        """Close the connection. The next decision opens a new one."""
        self._carrier.close()


def charges_question(keys: Keys, charges: Sequence[Charge]) -> Question:
    """The question that decides these charges, all or nothing."""
    if not 0 < len(charges) <= _MOST_CHARGES:
        raise ValueError(f"{len(charges)} charges: a decision takes 1 to {_MOST_CHARGES}")
    names = [keys.encoded(charge.scope, charge.subject) for charge in charges]
    if len(set(names)) != len(names):
        raise ValueError("two charges of one decision name the same bucket: add their costs instead")
    more = len(charges)
    terms = [keys.terms(limit, cost, floor, more=(more := more - 1) > 0) for _, _, limit, cost, floor, _ in charges]
    return Question(names, terms)


def refunds_question(keys: Keys, refunds: Sequence[Refund]) -> Question:
    """The question that makes these refunds, each for itself, in order."""
    return Question(
        [keys.encoded(refund.scope, refund.subject) for refund in refunds],
        [
            refund_terms(limit, None if cost is None else cost * limit.unit, expected)
            for _, _, limit, cost, expected in refunds
        ],
    )


def decision_of(charges: Sequence[Charge], allowed: bool, levels: Sequence[int]) -> Decision:
    """The decision, from what the question was answered."""
    quotas = [
        _new(Quota, (limit, level, cost, floor))
        for (_, _, limit, cost, floor, _), level in zip(charges, levels, strict=True)
    ]
    return _new(Decision, (allowed, tuple(quotas)))


def connection_options(uri: str, *, timeout: float) -> tuple[type[AbstractConnection], dict[str, Any]]:
    """The kind of connection that `uri` asks for, and its arguments. Raises `ValueError` for what redis-py cannot read."""
    options: dict[str, Any] = parse_url(_client_address(uri))  # type: ignore[no-untyped-call]
    for of_a_pool in ("max_connections", "timeout"):
        options.pop(of_a_pool, None)
    kind = options.pop("connection_class", Connection)
    options |= {
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "retry": Retry(NoBackoff(), 0),  # of its own accord redis-py 8 tries ten times
        "protocol": 2,  # nothing but answers: no notifications in between
        "health_check_interval": 0,
    }
    try:
        kind(**options)  # connects nowhere yet, and says what it does not know
    except (TypeError, ValueError, redis.RedisError) as error:
        raise ValueError(f"{uri.partition('://')[0]}:// with an option that redis-py does not take: {error}") from None
    return kind, options


def _make_room(ready: dict[Any, Any]) -> None:
    if len(ready) >= _KEPT:
        ready.clear()


def _client_address(uri: str) -> str:
    """The address in the notation of redis-py."""
    scheme, separator, rest = uri.partition("://")
    names = {"valkey": "redis", "valkeys": "rediss", "redis+unix": "unix", "valkey+unix": "unix"}
    return names.get(scheme, scheme) + separator + rest


def without_credentials(uri: str) -> str:
    """The address as it may be shown: credentials also come as options, so these are left out."""
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
