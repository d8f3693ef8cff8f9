"""Hot keys: tokens are taken ahead, spent without asking, and given back when they are not spent in time."""

from __future__ import annotations

import atexit
import contextlib
import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from resilience.clock import SYSTEM_CLOCK
from resilience.core.lease import Lease
from resilience.core.limiter import Charge, Decision, Limit, Quota, Refund
from resilience.errors import StorageUnavailable
from resilience.ports import Clock, LimitStorage, Taker
from resilience.storage.wrapping import Attendant, ask_whether_it_takes, forget_after_fork, taker_of

__all__ = ["LeasesSnapshot", "LeasingStorage"]

_LONGEST_PAUSE = 0.1
_SHORTEST_PAUSE = 0.005
_TROUBLE = 1_000_000  # microseconds for which a lease that could not be renewed speaks for the primary

_new = tuple.__new__


class LeasesSnapshot(NamedTuple):
    """Leases that hold tokens now and how many, and since the process started: tokens taken ahead, given back unspent, and
    lost because the primary could not be reached when they were to be given back."""

    leases: int
    tokens: int
    taken: int
    given_back: int
    lost: int


class _Kind(NamedTuple):
    """What a limiter's charges have in common, and how to ask the primary for one of them."""

    scope: str
    limit: Limit
    floor: int
    lease: int
    ask: Taker


class LeasingStorage:
    """`primary`, of which tokens are taken ahead for keys that are asked for often.

    Concerns charges that are decided alone and have a `lease`, the most tokens that this storage may hold ahead of a bucket;
    all others are passed on. A key is hot from 8 charges within 0.1 s. The first lease is of as many charges; it doubles as
    long as it is spent within a quarter of its time, and half of what the bucket holds is always left for others. A lease
    lasts no longer than the bucket takes to fill, at most a second; then, and on `close`, the unspent is given back.

    The rate is never exceeded. Of P processes, every window of `w` seconds admits at most

        burst + rate * w + P * lease

    and while some hold tokens, others may be refused: at most P * lease, for at most a second. The level of a decision that
    was made here is what the bucket held when it was asked last, plus what is unspent: near the truth, not exact.

    At most `size` keys are observed, those asked for last. While the primary does not answer, a lease is spent to its end;
    then `StorageUnavailable` is raised.
    """

    def __init__(
        self, primary: LimitStorage, *, clock: Clock = SYSTEM_CLOCK, size: int = 16_384, sweeping: bool = True
    ) -> None:
        if size < 1:
            raise ValueError(f"size={size}: leases take at least one key")
        self._primary = primary
        self._now = clock.microseconds
        self._size = size
        self._sweeping = sweeping  # False: whoever tests this calls sweep
        self._lock = threading.Lock()
        self._leases: OrderedDict[tuple[str, str], Lease] = OrderedDict()  # written under _lock
        self._out: dict[tuple[str, str], Lease] = {}  # guarded by _lock: at least all that hold tokens
        self._unreturned: list[Refund] = []  # guarded by _lock
        self._sweeper: Attendant | None = None  # guarded by _lock
        self._trouble: tuple[int, str] | None = None
        self._taken = self._given_back = self._lost = 0  # guarded by _lock
        forget_after_fork(self)
        _storages.add(self)

    @property
    def uri(self) -> str:
        """That of the primary."""
        return self._primary.uri

    @property
    def primary(self) -> LimitStorage:
        """Where tokens are taken from."""
        return self._primary

    def __repr__(self) -> str:
        return f"<LeasingStorage: {len(self._leases)} keys of {self._primary!r}>"

    def snapshot(self) -> LeasesSnapshot:
        """What this process holds and has counted."""
        with self._lock:
            held = [lease.tokens for lease in self._out.values() if lease.tokens]
            return LeasesSnapshot(len(held), sum(held), self._taken, self._given_back, self._lost)

    def take(self, charges: Sequence[Charge]) -> Decision:
        """Take every charge or none. Raises what the primary raises."""
        if len(charges) != 1 or charges[0].lease < 2:
            return self._primary.take(charges)
        scope, subject, limit, cost, floor, lease = charges[0]
        return self._taker(_Kind(scope, limit, floor, lease, lambda *_: self._primary.take(charges)))(subject, cost)

    def taker(self, scope: str, limit: Limit, floor: int = 0, lease: int = 0) -> Taker:
        """What decides one charge of this kind."""
        ask = taker_of(self._primary, scope, limit, floor)
        if lease < 2:
            return ask
        return self._taker(_Kind(scope, limit, floor, lease, ask))

    def give_back(self, refunds: Sequence[Refund]) -> None:
        """Give tokens back, or fill buckets. Raises what the primary raises."""
        with self._lock:
            for refund in refunds:
                lease = self._leases.get((refund.scope, refund.subject))
                if refund.cost is None and lease is not None:
                    lease.end()  # a bucket that is filled holds these, too
        self._primary.give_back(refunds)

    def probe(self) -> None:
        """Return if the primary takes charges. Raises `StorageUnavailable` otherwise."""
        ask_whether_it_takes(self._primary)
        self._trouble = None

    def close(self) -> None:
        """Give back every unspent token, and close the primary."""
        try:
            self.give_all_back()
        finally:
            self._primary.close()

    def give_all_back(self) -> None:
        """Give back every unspent token. Done by `close`, and when the process ends."""
        with self._lock:
            for key, lease in self._out.items():
                self._end_locked(key, lease)
            self._out.clear()
            self._leases.clear()
            if self._sweeper is not None:
                self._sweeper.dismiss()
                self._sweeper = None
        self._give_unspent_back()

    def sweep(self) -> float | None:
        """Give back what has not been spent in time. Seconds until it is worth while to look again; None: nothing is out."""
        now = self._now()
        with self._lock:
            for key, lease in self._out.items():
                self._end_locked(key, lease, now)
            self._out = {key: lease for key, lease in self._out.items() if lease.tokens}
            ends = min((lease.ends for lease in self._out.values()), default=None)
            if ends is None:
                self._sweeper = None  # whoever takes tokens from now on starts another one
        self._give_unspent_back()
        return None if ends is None else min(max((ends - now) / 1_000_000, _SHORTEST_PAUSE), _LONGEST_PAUSE)

    def attend(self, attendant: Attendant) -> float | None:
        """Sweep."""
        return self.sweep() if self._sweeper is attendant else None

    def left(self, attendant: Attendant) -> None:
        """Nobody sweeps any longer; whoever takes tokens next sees to that."""
        with self._lock:
            if self._sweeper is attendant:
                self._sweeper = None

    def after_fork(self) -> None:
        """What the parent holds is the parent's. The thread that sweeps stayed there."""
        self._lock = threading.Lock()
        self._leases.clear()
        self._out.clear()
        self._unreturned = []
        self._sweeper = self._trouble = None

    def _taker(self, kind: _Kind) -> Taker:
        scope, limit, floor, _, _ = kind
        unit = limit.unit
        find, now = self._leases.get, self._now

        def take(subject: str, cost: int) -> Decision:
            moment = now()
            lease = find((scope, subject))
            if lease is not None and (lease.limit is limit or lease.recognise(limit)):
                # `Lease.spend`, written out: this is the path of nearly every request for a hot key.
                with self._lock:
                    tokens = lease.tokens
                    if 0 < tokens >= cost and moment < lease.ends:
                        lease.tokens = tokens = tokens - cost
                        lease.level = level = lease.level - cost * unit
                    else:
                        tokens = -1
                if tokens >= 0:
                    if tokens <= lease.low:
                        self._renew(lease, subject, kind, moment)
                    if level < 0:
                        level = 0  # whatever others owe, these tokens are paid for
                    return _new(Decision, (True, ((limit, level, cost, floor),)))  # a Quota when it is read
            return self._ask(subject, cost, kind, moment)

        return take

    def _ask(self, subject: str, cost: int, kind: _Kind, now: int) -> Decision:
        """What the lease does not cover: take a new one, or ask for this charge alone."""
        if self._trouble is not None:
            self._raise_trouble(now)
        if not cost:
            return kind.ask(subject, cost)
        lease, count = self._prepare(subject, cost, kind, now)
        if count:
            level = self._take_ahead(lease, subject, cost, count, kind, now)
            if level is not None:
                return Decision(True, (Quota(kind.limit, max(0, level), cost, kind.floor),))
        decision = kind.ask(subject, cost)
        with self._lock:
            lease.answered(decision.quotas[0].level, now)
        return decision

    def _prepare(self, subject: str, cost: int, kind: _Kind, now: int) -> tuple[Lease, int]:
        """The lease of this key, made if need be, and how many tokens its caller is to take ahead."""
        key = (kind.scope, subject)
        leases = self._leases
        with self._lock:
            lease = leases.get(key)
            if lease is None or lease.limit != kind.limit:
                if lease is not None:
                    self._end_locked(key, lease)
                lease = leases[key] = Lease(kind.limit)
                if len(leases) > self._size:
                    self._end_locked(*leases.popitem(last=False))
            else:
                leases.move_to_end(key)
                self._end_locked(key, lease, now)
            count = lease.wanted(cost, kind.lease, now)
            lease.asking = lease.asking or count > 0
            return lease, count

    def _take_ahead(self, lease: Lease, subject: str, cost: int, count: int, kind: _Kind, now: int) -> int | None:
        """Take `count` tokens, leaving as many, and spend `cost` of them. The level after that, None when that was too much."""
        limit = kind.limit
        key = (kind.scope, subject)
        try:
            decision = self._primary.take((Charge(kind.scope, subject, limit, count, count * limit.unit),))
        finally:
            lease.asking = False
        level = decision.quotas[0].level
        with self._lock:
            if not decision.allowed:
                lease.refused(level, now)
                return None
            self._taken += count
            lease.took(count, level, now)
            left = lease.spend(cost, now)
            if self._leases.get(key) is lease:
                self._out[key] = lease
            else:  # closed, forgotten, or of another limit meanwhile
                self._end_locked(key, lease)
        self._keep_sweeping()
        return left

    def _renew(self, lease: Lease, subject: str, kind: _Kind, now: int) -> None:
        """Take more before the lease is empty. What comes of it does not concern the caller, who has been served."""
        with self._lock:
            count = 0 if self._trouble is not None else lease.wanted(0, kind.lease, now)
            if not count:
                return
            lease.asking = True
        try:
            self._take_ahead(lease, subject, 0, count, kind, now)
        except StorageUnavailable as error:
            self._trouble = (now, str(error))  # not the error: it would keep the caller's whole stack

    def _raise_trouble(self, now: int) -> None:
        """Say what a caller found out who had no need to know, instead of letting the next one wait for the same."""
        trouble = self._trouble
        if trouble is not None:
            self._trouble = None
            if now - trouble[0] <= _TROUBLE:
                raise StorageUnavailable(trouble[1])

    def _end_locked(self, key: tuple[str, str], lease: Lease, now: int | None = None) -> None:
        unspent = lease.end(now)
        if unspent:
            self._unreturned.append(Refund(*key, lease.limit, unspent))

    def _give_unspent_back(self) -> None:
        with self._lock:
            refunds, self._unreturned = self._unreturned, []
        if not refunds:
            return
        count = sum(refund.cost or 0 for refund in refunds)
        try:
            self._primary.give_back(refunds)
        except StorageUnavailable:
            # Not tried again: it may have had them. The buckets fill by themselves.
            with self._lock:
                self._lost += count
        else:
            with self._lock:
                self._given_back += count

    def _keep_sweeping(self) -> None:
        with self._lock:
            if self._sweeper is not None or not self._sweeping:
                return
            sweeper = self._sweeper = Attendant(self, pause=_SHORTEST_PAUSE, name="rate-limit-leases")
        if not sweeper.start():
            self.left(sweeper)


_storages: weakref.WeakSet[LeasingStorage] = weakref.WeakSet()


@atexit.register
def _give_back_at_exit() -> None:
    for storage in list(_storages):
        # There is nobody to tell any longer, and not everything works at this hour: threads cannot be started.
        with contextlib.suppress(Exception):
            storage.give_all_back()
