"""`redis+cluster://`: buckets spread over the primaries of a Redis Cluster. One connection and one round trip a node."""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Sequence
from functools import partial
from typing import TypeVar

from resilience.core.limiter import Charge, Decision, Limit, Quota, Refund
from resilience.errors import StorageUnavailable
from resilience.ports import Clock, Taker
from resilience.storage.carrier import AskAlone, Carrier, Redirected
from resilience.storage.forms import parse_servers, wrong_address
from resilience.storage.nodes import Address
from resilience.storage.parts import Asked, Part, Step, group_of
from resilience.storage.redis import Keys, decision_of
from resilience.storage.script import charge_terms
from resilience.storage.slots import slot_of, tag_within
from resilience.storage.topology import Topology
from resilience.storage.wrapping import forget_after_fork

__all__ = ["RedisClusterStorage"]

_PORT = 6_379
_TRIES = 5
"""How often a question follows a slot that moves."""
_AFTER_FAILURE = 0.1
_AFTER_MOVE = 1.0  # where the slot went is known already: this is for those that went with it
_KEPT = 4_096
_LONGEST_KEPT = 256
_PROBE_LIMIT = Limit(10, 1)
_PROBE_SCOPE = f"probe:{secrets.token_hex(4)}"

_Name = TypeVar("_Name")
_Value = TypeVar("_Value")

# A named tuple's own constructor takes twice as long as the tuple's.
_new = tuple.__new__


class RedisClusterStorage:
    """Buckets on all primaries of a Redis Cluster.

    `uri` is `redis+cluster://[user:password@]host[:port][,host[:port]...]`: any nodes (port 6379 unless said otherwise), which
    name the others. `rediss+cluster`, `valkey+cluster` and `valkeys+cluster` are known too. The other arguments are those of
    `RedisStorage`. A process has one connection to each primary that it asks.

    All limits of one caller share a slot: their decision is atomic, one call of the script. One whose charges lie in several
    slots (per user and global, say) asks all of them at the same time, one round trip a node. If one refuses or fails, what
    the others took is given back at once, without waiting for that. So no limit is ever exceeded, but for the time of a
    round trip others may be refused for the sake of tokens that then come back. They do not come back, and the bucket holds
    less until it has filled again, when the node fails right then, or when nobody knows whether it took any (a timeout).
    Given back is also less by what the bucket would not have gained meanwhile, had it been full; only a node that stands
    still for longer than `timeout` between the two can turn that into more, by the cost at most.

    A node that no longer serves a slot says who does; it has done nothing then, so the question follows. While a slot is on
    its way from node to node, the limits of one caller may be asked one by one, as if they lay in several slots. Who serves
    what is otherwise found out beside the callers: no caller waits longer than `timeout`, or twice that when its slot has
    moved and for the first decision of all.

    What holds in a failover: Redis copies to replicas after it has answered. The new primary may not have seen the last
    writes, and counts what these took as not taken: at most the burst of each of its buckets, once per failover. While one
    primary is missing, `probe` says that the cluster is down, and `StandInStorage` decides for all buckets (as a cluster
    itself refuses all by default: `cluster-require-full-coverage`), which allows every process its share of each limit
    besides: again a burst of each bucket, for all processes together if it knows how many there are. A primary that is cut
    off from the others refuses after the cluster's node timeout; what it decides until then is lost as well.
    """

    def __init__(
        self, uri: str, *, timeout: float = 0.05, namespace: str = "seawall", clock: Clock | None = None
    ) -> None:
        if timeout <= 0:
            raise ValueError(f"timeout={timeout!r}: a storage takes seconds above 0")
        servers = parse_servers(uri, default_port=_PORT)
        if servers.path:
            raise wrong_address(uri.partition("://")[0], "a cluster has no path, and one database only")
        self.uri = servers.uri.rstrip("/")
        self._timeout = timeout
        self._clock = clock
        self._keys = Keys(namespace)
        self._topology = Topology(servers, timeout=timeout)
        self._carriers: dict[Address, Carrier] = {}  # guarded by _lock, except for a look
        self._lock = threading.Lock()
        forget_after_fork(self)

    def __repr__(self) -> str:
        return f"<RedisClusterStorage: {self.uri}>"

    def take(self, charges: Sequence[Charge]) -> Decision:
        """Take every charge or none. Raises `StorageUnavailable` when a node did not decide in time."""
        if not charges:
            raise ValueError("0 charges: a decision takes at least 1")
        parts = self._parts(charges)
        if len(charges) != sum(len(set(part.keys)) for part in parts):
            raise ValueError("two charges of one decision name the same bucket: add their costs instead")
        started = time.monotonic()
        try:
            self._ask_all(parts)
        except BaseException:
            self._let_go(parts, started)
            raise
        failure = next((part.failure for part in parts if part.failure is not None), None)
        allowed = failure is None and all(part.allowed for part in parts)
        if not allowed:
            self._let_go(parts, started)
        if failure is not None:
            raise failure
        return _decision(charges, parts, allowed=allowed)

    def taker(self, scope: str, limit: Limit, floor: int = 0, lease: int = 0) -> Taker:
        """`take` for one charge with everything prepared that does not change."""
        encoded, owner, carrier = self._keys.encoded, self._topology.owner, self._carrier
        keys: dict[str, tuple[int, tuple[bytes]]] = {}
        terms: dict[int, tuple[bytes]] = {}

        def take_one(subject: str, cost: int) -> Decision:
            known = keys.get(subject)
            if known is None:
                key = encoded(scope, subject)
                known = slot_of(key), (key,)
                if len(subject) <= _LONGEST_KEPT:
                    _keep(keys, subject, known)
            prepared = terms.get(cost)
            if prepared is None:
                prepared = (charge_terms(limit, cost, floor),)
                _keep(terms, cost, prepared)
            slot, key_alone = known
            question = Asked(key_alone, prepared, slot)
            asked = owner(slot)
            try:
                allowed = carrier(asked).ask(question)
            except Redirected as elsewhere:  # nothing was executed
                if not elsewhere.ask and not isinstance(elsewhere, AskAlone):
                    self._learn(slot, _there(elsewhere, asked))
                return self.take((Charge(scope, subject, limit, cost, floor, lease),))
            except StorageUnavailable:
                self._topology.search_soon(at_most_every=_AFTER_FAILURE)
                raise
            return _new(Decision, (allowed, (_new(Quota, (limit, question.level, cost, floor)),)))

        return take_one

    def give_back(self, refunds: Sequence[Refund]) -> None:
        """Give tokens back, or fill buckets. Raises `StorageUnavailable` when a node did not confirm it in time."""
        parts = self._parts(refunds)
        self._ask_all(parts)
        for part in parts:
            if part.failure is not None:
                raise part.failure

    def probe(self) -> None:
        """Return if every slot is served and every primary takes charges. Raises `StorageUnavailable` otherwise.

        Asks for the slot map anew, and may take a second for it: not for a caller to wait for.
        """
        self._topology.search()
        missing = self._topology.unserved
        if missing:
            raise StorageUnavailable(f"{self.uri}: nobody serves {missing} slots")
        scope = f"{_PROBE_SCOPE}:{os.getpid()}"
        slots = self._topology.primaries().values()
        parts = self._parts([Charge(scope, tag_within(slot), _PROBE_LIMIT, 1) for slot in slots])
        self._ask_all(parts)
        for part in parts:
            if part.failure is not None:
                raise part.failure

    def close(self) -> None:
        """Close the connections. The next decision opens new ones."""
        with self._lock:
            carriers, self._carriers = self._carriers, {}
        for carrier in carriers.values():
            carrier.close()

    def after_fork(self) -> None:
        """A lock may have been held by another thread of the parent."""
        self._lock = threading.Lock()

    def _parts(self, items: Sequence[Charge | Refund]) -> list[Part]:
        """One for each slot."""
        by_slot: dict[int, list[Step]] = {}
        for place, item in enumerate(items):
            key = self._keys.encoded(item.scope, item.subject)
            by_slot.setdefault(slot_of(key), []).append(Step(place, key, item))
        return [Part(slot, steps) for slot, steps in by_slot.items()]

    def _ask_all(self, parts: list[Part]) -> None:
        """Ask for every part at the same time, and again where the answer is that another node is to be asked.

        Afterwards each has an answer or a failure. One whose keys are not all on one side of a move has been put asunder.
        """
        deadline = time.monotonic() + self._timeout
        asked = list(parts)
        for _ in range(_TRIES):
            for part in asked:
                self._send(part)
            asked = [other for part in asked for other in self._settle(part, parts)]
            if not asked or time.monotonic() > deadline:
                break
        for part in asked:
            part.failure = StorageUnavailable(f"{self.uri}: slot {part.slot} moved from node to node while asked about")

    def _send(self, part: Part) -> None:
        try:
            if part.owner is None:
                part.owner = self._topology.owner(part.slot)
        except StorageUnavailable as failure:
            part.failure = failure
            return
        part.question = part.ask()
        self._carrier(part.owner).send(part.question)
        part.open = True

    def _settle(self, part: Part, parts: list[Part]) -> list[Part]:
        """Wait for the answer. Returns what is to be asked instead; nothing when it was a decision, or there is none."""
        if part.failure is not None:
            return []
        part.open = False  # killed from here on, the question abandons itself
        try:
            part.allowed = part.question.wait()
        except AskAlone:
            if part.alone and len(part.steps) > 1:
                parts.remove(part)
                pieces = part.pieces()
                parts += pieces
                return pieces
            part.alone, part.asking, part.owner = True, False, None
        except Redirected as elsewhere:
            assert part.owner is not None
            part.owner = _there(elsewhere, part.owner)
            part.asking = elsewhere.ask
            part.alone = part.alone or elsewhere.ask
            if not elsewhere.ask:
                self._learn(part.slot, part.owner)
        except StorageUnavailable as failure:
            part.failure = failure
            self._topology.search_soon(at_most_every=_AFTER_FAILURE)
            return []
        else:
            return []
        return [part]

    def _learn(self, slot: int, owner: Address) -> None:
        self._topology.learn(slot, owner)
        self._topology.search_soon(at_most_every=_AFTER_MOVE)

    def _let_go(self, parts: list[Part], started: float) -> None:
        """Give back what was taken for a decision that is none, without waiting for it."""
        seconds = time.monotonic() - started + self._timeout
        for part in parts:
            if part.open:
                part.question.abandon()
            elif part.allowed and part.owner is not None:
                returned = part.returned(seconds)
                if returned is not None:
                    self._carrier(part.owner).send(returned)

    def _carrier(self, address: Address) -> Carrier:
        carrier = self._carriers.get(address)
        if carrier is None:
            carrier = self._open_carrier(address)
        return carrier

    def _open_carrier(self, address: Address) -> Carrier:
        host, port = address
        opened = Carrier(
            partial(self._topology.connect, host=host, port=port),
            uri=f"{self.uri} (node {host}:{port})",
            timeout=self._timeout,
            together=group_of,
            clock=self._clock,
        )
        serving = self._topology.primaries()
        with self._lock:
            carrier = self._carriers.setdefault(address, opened)
            left = [
                self._carriers.pop(other) for other in list(self._carriers) if other not in serving and other != address
            ]
        for other in left:
            other.close()
        return carrier


def _there(elsewhere: Redirected, asked: Address) -> Address:
    """Where a node sends those who ask it; without a name: to another port of its own host."""
    return elsewhere.host or asked[0], elsewhere.port


def _decision(charges: Sequence[Charge], parts: Sequence[Part], *, allowed: bool) -> Decision:
    """What all parts together say. What one took that is now given back it still has."""
    levels = [0] * len(charges)
    for part in parts:
        for step, level in zip(part.steps, part.question.levels, strict=True):
            charge = charges[step.place]
            levels[step.place] = level + (charge.cost * charge.limit.unit if part.allowed and not allowed else 0)
    return decision_of(charges, allowed, levels)


def _keep(ready: dict[_Name, _Value], name: _Name, value: _Value) -> None:
    if len(ready) >= _KEPT:
        ready.clear()
    ready[name] = value
