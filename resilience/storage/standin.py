"""What decides while a shared storage is down: a limit must never be the reason for an outage."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from resilience.clock import SYSTEM_CLOCK, epoch_seconds
from resilience.core.events import StoreChanged
from resilience.core.limiter import Charge, Decision, Limit, Quota, Refund
from resilience.errors import StorageBusy, StorageUnavailable
from resilience.events import PROCESS_EVENTS
from resilience.ports import Clock, LimitStorage, Taker
from resilience.storage.memory import MemoryStorage
from resilience.storage.share import PerLimit, Share, ShareStorage
from resilience.storage.wrapping import Attendant, ask_whether_it_takes, forget_after_fork, taker_of

__all__ = ["OnStoreFailure", "StandInSnapshot", "StandInStorage"]

OnStoreFailure = Literal["local", "allow", "deny"]
"""Without the shared storage: count in this process, allow everything, or refuse everything."""

_LOG = logging.getLogger(__name__)

_FIRST_PAUSE = 0.25
_PAUSE = 0.5
_RELAPSE = 10.0
_STEADY = 0.75
_DENIED_FOR = 1.0

_FAILURES = (StorageUnavailable, OSError)
"""No answer of the primary's. The second is one that it should have chained."""

_new = tuple.__new__


class StandInSnapshot(NamedTuple):
    """Who decides, as this process sees it. Counts are since the process started.

    `mode` is "primary", or what is done instead ("local", "allow", "deny"), for `since` seconds now. `failures` are
    questions that the primary left unanswered, `changes` of mode, `decided_locally` the decisions made without the primary.
    """

    uri: str
    mode: str
    since: float
    failures: int
    changes: int
    decided_locally: int


class StandInStorage:
    """`primary`, and a stand-in while `primary` does not answer.

    The first failure costs those who were asking then the primary's timeout. From that moment the stand-in decides for all,
    at once, until the primary takes charges again. No caller tries that out: a thread of its own does, 0.25 s after the
    failure and every 0.5 s from then on, with a real charge on a bucket of its own. So the primary is used again 0.55 s
    after it is back, plus its timeout. One that fails again within 10 s of its return must then answer for 0.75 s on end,
    so that a flapping one is left and taken up at most once a second. Every change is logged once, and counted.

    `on_store_failure` says how the stand-in decides: "local" enforces the same limits in this process, divided by
    `workers`, the number of processes that share them (`ShareStorage` says what these admit together); "allow" allows all,
    "deny" refuses all with a retry after a second. `deciding` gives a limiter another way.

    Its quotas name limits of its own, those that it enforces: a refund that names one goes where the tokens were taken.

    `StorageBusy` concerns the one caller that it is raised for: the stand-in decides, the primary stays in use. An `OSError`
    of the primary is taken for a failure as well.
    """

    def __init__(
        self,
        primary: LimitStorage,
        *,
        on_store_failure: OnStoreFailure = "local",
        workers: int = 1,
        clock: Clock = SYSTEM_CLOCK,
        probing: bool = True,
    ) -> None:
        if type(workers) is not int or workers < 1:
            raise ValueError(f"workers={workers!r}: a limit is shared by a whole number of processes, from 1")
        self._local = ShareStorage(MemoryStorage(clock=clock), workers=workers)
        self._deputies: dict[str, LimitStorage] = {"local": self._local, "allow": _Allow(), "deny": _Deny()}
        self._set(on_store_failure)
        # probing=False: whoever tests this calls _probe_once
        self._watch = _Watch(primary, on_store_failure, clock, probing=probing)

    def _set(self, mode: OnStoreFailure) -> None:
        if mode not in get_args(OnStoreFailure):
            raise ValueError(f"on_store_failure={mode!r}: choose one of {', '.join(get_args(OnStoreFailure))}")
        self._mode = mode
        self._deputy = self._deputies[mode]

    def deciding(self, mode: OnStoreFailure) -> StandInStorage:
        """The same primary, watched by the same eyes, with another way to decide without it. Raises `ValueError` for others
        than those of `on_store_failure`."""
        if mode == self._mode:
            return self
        view: StandInStorage = copy.copy(self)
        view._set(mode)
        return view

    @property
    def uri(self) -> str:
        """The primary's address, and who decides if it is not the primary."""
        return self.primary.uri if self.available else f"{self.primary.uri} (down: {self._mode})"

    @property
    def primary(self) -> LimitStorage:
        """Who decides while all is well."""
        return self._watch.primary

    @property
    def available(self) -> bool:
        """Whether the primary decides."""
        return not self._watch.changes % 2

    def __repr__(self) -> str:
        return f"<StandInStorage: {self.uri}>"

    def snapshot(self) -> StandInSnapshot:
        """Who decides, since when, and what this process has counted."""
        watch = self._watch
        mode = "primary" if self.available else self._mode
        return StandInSnapshot(
            self.primary.uri, mode, watch.since(), watch.failures, watch.changes, watch.decided_locally
        )

    def take(self, charges: Sequence[Charge]) -> Decision:
        """Decide, by the primary while it answers. Never raises `StorageUnavailable`."""
        watch = self._watch
        changes = watch.changes
        if not changes % 2:
            try:
                return watch.primary.take(charges)
            except _FAILURES as error:
                watch.failed(error, changes)
        watch.count()
        return self._deputy.take(charges)

    def taker(self, scope: str, limit: Limit, floor: int = 0, lease: int = 0) -> Taker:
        """What decides one charge of this kind. Never raises `StorageUnavailable`."""
        watch = self._watch
        ask = taker_of(watch.primary, scope, limit, floor, lease)
        decide = taker_of(self._deputy, scope, limit, floor)

        def take(subject: str, cost: int) -> Decision:
            changes = watch.changes
            if not changes % 2:
                try:
                    return ask(subject, cost)
                except _FAILURES as error:
                    watch.failed(error, changes)
            watch.count()
            return decide(subject, cost)

        return take

    def give_back(self, refunds: Sequence[Refund]) -> None:
        """Give tokens back, or fill buckets. Never raises `StorageUnavailable`.

        A refund that names the limit of a quota goes where that was decided: to this process's bucket, or nowhere if nothing
        was taken. All others, and those of the primary, go where it is decided now; a bucket is filled here as well. What
        the primary fails to take is lost to its caller, as it may have taken it: buckets fill by themselves.
        """
        watch = self._watch
        changes = watch.changes
        here = [refund for refund in refunds if isinstance(refund.limit, Share)]
        others = [refund for refund in refunds if not isinstance(refund.limit, Share | _Waived)]
        if others and not changes % 2:
            try:
                watch.primary.give_back(others)
            except _FAILURES as error:
                watch.failed(error, changes)
            others = [refund for refund in others if refund.cost is None]
        if here:
            self._local.give_back(here)
        if others:
            self._deputy.give_back(others)

    def close(self) -> None:
        """Stop looking for the primary, and close it. Used again, it is looked for again."""
        self._watch.stop()
        self.primary.close()

    def _probe_once(self) -> bool:
        return self._watch.probe_once()


class _Watch:
    """Knows whether the primary decides, and finds out when it does again. Shared by a storage and its views."""

    def __init__(self, primary: LimitStorage, mode: str, clock: Clock, *, probing: bool) -> None:
        self.primary = primary
        self.changes = 0
        """How often the mode changed: while it is odd, the primary is away."""
        self.failures = 0
        self.decided_locally = 0
        self._mode = mode
        self._seconds = clock.seconds
        self._probing = probing
        self._lock = threading.Lock()
        self._changed_at = clock.seconds()  # guarded by _lock, as all below
        self._decided_before = 0
        self._must_answer_for = 0.0
        self._answering_since: float | None = None
        self._attendant: Attendant | None = None  # probes
        forget_after_fork(self)

    def since(self) -> float:
        """Seconds since the last change."""
        return self._seconds() - self._changed_at

    def count(self) -> None:
        """A decision is made without the primary."""
        # A plain addition: exact under greenlets; under threads two that coincide may count once.
        self.decided_locally += 1
        if self._attendant is None and self.changes % 2:
            self._start_probing()  # closed meanwhile, or in a child of the process that had found out

    def failed(self, error: Exception, changes: int) -> None:
        """Someone who began to ask when the mode had changed so often got no answer."""
        with self._lock:
            self.failures += 1
            # A question from before the last change says nothing of the primary as it is now.
            if changes != self.changes or isinstance(error, StorageBusy):
                return
            now = self._seconds()
            relapsed = self.changes > 0 and now - self._changed_at < _RELAPSE
            self._must_answer_for = _STEADY if relapsed else 0.0
            self._answering_since = None
            self._decided_before = self.decided_locally
            self._changed_at = now
            self.changes += 1
        self._start_probing()
        # Its text alone: whoever keeps the record would keep the caller's whole stack.
        reason = self._reason(error)
        _LOG.warning("%s; deciding %s until it answers again", reason, self._mode)
        self._tell(self._mode, reason)

    def _reason(self, error: Exception) -> str:
        text = str(error)
        if isinstance(error, StorageUnavailable):
            return text
        return f"{self.primary.uri} did not decide: {type(error).__name__}{f': {text}' if text else ''}"

    def probe_once(self) -> bool:
        """Ask the primary. Whether it decides from now on."""
        try:
            ask_whether_it_takes(self.primary)
        except Exception:  # noqa: BLE001  # whatever it is, it is no answer, and this must go on
            with self._lock:
                self._answering_since = None
            return False
        now = self._seconds()
        with self._lock:
            if not self.changes % 2:
                return True
            if self._answering_since is None:
                self._answering_since = now
            if now - self._answering_since < self._must_answer_for:
                return False
            away, without = now - self._changed_at, self.decided_locally - self._decided_before
            self._changed_at = now
            self._attendant = None
            self.changes += 1
        _LOG.warning("%s answers again, after %.2f s and %d decisions without it", self.primary.uri, away, without)
        self._tell("primary")
        return True

    def _tell(self, mode: str, error: str = "") -> None:
        PROCESS_EVENTS.emit(StoreChanged(policy=self.primary.uri, at=epoch_seconds(), mode=mode, error=error))

    def stop(self) -> None:
        """End the thread that probes."""
        with self._lock:
            if self._attendant is not None:
                self._attendant.dismiss()
                self._attendant = None

    def after_fork(self) -> None:
        """The thread that probes stayed with the parent."""
        self._lock = threading.Lock()
        self._attendant = None

    def attend(self, attendant: Attendant) -> float | None:
        """Probe. Seconds until the next time; None: the primary is back."""
        if self._attendant is not attendant or self.probe_once():
            return None
        return _PAUSE if self._answering_since is None else _FIRST_PAUSE

    def left(self, attendant: Attendant) -> None:
        """Nobody probes any longer; whoever is decided next sees to that."""
        with self._lock:
            if self._attendant is attendant:
                self._attendant = None

    def _start_probing(self) -> None:
        if not self._probing:
            return
        with self._lock:
            if self._attendant is not None or not self.changes % 2:
                return
            attendant = self._attendant = Attendant(self, pause=_FIRST_PAUSE, name="rate-limit-probe")
        if not attendant.start():
            self.left(attendant)


class _Deputy:
    """Decides without counting."""

    uri = ""

    def give_back(self, refunds: Sequence[Refund]) -> None:
        """Nothing has been taken."""

    def close(self) -> None:
        """Nothing to close."""


@dataclass(frozen=True, slots=True)
class _Waived(Limit):
    """A limit that was not enforced: nothing was taken, so there is nothing to be given back."""


class _Allow(_Deputy):
    """Allows everything, from full buckets."""

    def __init__(self) -> None:
        self._waived = PerLimit(lambda limit: _Waived(limit.amount, limit.period, limit.burst))

    def take(self, charges: Sequence[Charge]) -> Decision:
        waived = self._waived.of
        quotas = [(waived(limit), limit.capacity, cost, floor) for _, _, limit, cost, floor, _ in charges]
        return _new(Decision, (True, tuple(quotas)))  # each a Quota when it is read

    def taker(self, scope: str, limit: Limit, floor: int = 0, lease: int = 0) -> Taker:  # noqa: ARG002  # as `take`
        waived, capacity = self._waived.of(limit), limit.capacity
        return lambda _, cost: _new(Decision, (True, ((waived, capacity, cost, floor),)))


class _Deny(_Deputy):
    """Refuses everything but looks, with a retry after a second, from buckets that are empty."""

    def take(self, charges: Sequence[Charge]) -> Decision:
        looking = not any(charge.cost for charge in charges)
        return Decision(looking, tuple(_refused(charge) for charge in charges))


def _refused(charge: Charge) -> Quota:
    """A quota whose wait is about a second."""
    limit = charge.limit
    missing = round(_DENIED_FOR * 1_000_000) // limit.tick * limit.refill
    return Quota(limit, charge.cost * limit.unit - max(1, missing), charge.cost)
