"""Where a circuit stands for this process: what it is now, what calls said of it since, and where it is kept.

It is kept in the process, or in a storage that several processes share. When that is out of reach, the process goes on with a
circuit of its own, as the shared one was last seen; and when it is back, what happened meanwhile goes there.
"""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from math import inf
from typing import Any, Final, TypeVar

from resilience.core.breaker import (
    CLOSED,
    FORCED,
    FORCED_CLOSED,
    FORCED_OPEN,
    HALF_OPEN,
    METRICS_ONLY,
    OPEN,
    PASSING,
    BreakerPolicy,
    Circuit,
    Event,
    Outcome,
)
from resilience.core.events import SharingChanged
from resilience.core.window import Health, Rule, Totals
from resilience.decorators.kept import STILL, ByHand, Granted, Identity, Keeper, OwnCircuit, Tripped, View, Watched
from resilience.decorators.rounds import PROCESS_ROUNDS
from resilience.decorators.shared import SharedCircuit
from resilience.decorators.telling import QUIET, Move, Telling, in_a_line
from resilience.errors import StorageBusy, StorageUnavailable
from resilience.storage.wrapping import forget_after_fork

__all__ = ["REFUSING", "Present", "Probe", "Standing", "settle_each"]

REFUSING: Final = frozenset((OPEN, FORCED_OPEN))
"""No call passes, unless its time is over."""

_AS_CLOSED: Final = frozenset((FORCED_CLOSED, METRICS_ONLY))
"""Every call passes and is counted."""
_IDLE: Final = 5.0
"""Seconds after which a window that has not changed is told to other processes again."""
_SLOWEST: Final = 1.0
"""Seconds for which the window of another process holds at least."""
_UNSETTLED: Final = 100
"""Results of probes that are remembered while their storage is out of reach."""
_BY_HAND: Final = frozenset(
    (Event.OPEN, Event.CLOSE, Event.HALF_OPEN, Event.FORCE_OPEN, Event.FORCE_CLOSED, Event.DISABLE, Event.MEASURE)
)
T = TypeVar("T")


class Present:
    """The circuit between two moves, as this process sees it. A call remembers it: when it ends under another one, it says
    nothing about that."""

    __slots__ = ("ahead", "circuit", "identity", "until")

    def __init__(self, view: View) -> None:
        self.identity = view.identity
        self.take(view)

    def take(self, view: View) -> None:
        """It has not moved, but votes and probes may have come and gone."""
        self.circuit, self.ahead = view.circuit, view.ahead
        until = view.circuit.until
        self.until = None if until is None else until - view.ahead  # of this process's clock

    @property
    def view(self) -> View:
        """What it was made of."""
        return View(self.circuit, self.identity, self.ahead)


class Probe:
    """Leave for one call on a circuit that is half-open. Where nobody has told how the call ended, as whoever made it was
    interrupted between two steps, it is among the `abandoned` in the end."""

    __slots__ = ("__weakref__", "_abandoned", "_process", "is_told", "keeper", "leave", "present")

    def __init__(self, keeper: Keeper, leave: Granted, present: Present, abandoned: deque[Probe]) -> None:
        self.keeper = keeper
        self.leave = leave
        self.present = present
        self._abandoned = abandoned
        self._process = os.getpid()
        self.is_told = False

    def __del__(self) -> None:
        # Any lock may be held, as the garbage collector may be at it.
        if not getattr(self, "is_told", True):  # it has come to be
            self.abandon()

    def abandon(self) -> None:
        """Nobody will tell how it ended."""
        self.is_told = True
        if os.getpid() == self._process:  # a forked child has a copy, which is not its own
            self._abandoned.append(self)


class Standing:
    """See the module. Safe to share between threads and greenlets: `lock` is held for arithmetic.

    A call on a closed circuit looks at `quick`, and at `cells[place]` and `host_cells[host_place]`: unless these differ from
    what was `heard`, nobody has moved the circuit.
    """

    __slots__ = (
        "__weakref__", "_alone_since", "_alone_told", "_compared", "_compared_at", "_is_newborn", "_joining",
        "_left_at", "_left_identity", "_looks", "_member", "_postponed", "_settling", "_shared", "_telling",
        "_unsettled", "_untripped", "asks_others", "cells", "give_back", "health", "heard", "host_cells", "host_heard",
        "host_place", "is_followed", "judges_successes", "keeper", "lock", "opened_at", "own", "passes", "place", "policy",
        "present", "quick", "refuses", "seconds", "slow_from",
    )  # fmt: skip

    def __init__(self, policy: BreakerPolicy, seconds: Callable[[], float], telling: Telling) -> None:
        self.policy = policy
        self.slow_from = _slow_from(policy)
        """Seconds from which on a call counts as slow."""
        self.seconds = seconds
        self._telling = telling
        # Both re-entrant: a signal handler or a finalizer may call what is guarded in the middle of anything. What it has
        # to tell then is told when the lock is free.
        self.lock: Any = threading.RLock()
        self._joining: Any = threading.RLock()  # held by who comes back to the storage, while it is asked
        self._postponed: deque[tuple[Present, bool, bool]] = deque()  # calls that could not be recorded at once
        self._settling: deque[tuple[Probe, Outcome, float]] = deque()  # and probes
        self.give_back: Callable[[], None] = _nothing
        """Settles the probes that nobody else will settle."""
        self.own = OwnCircuit(Circuit(), seconds)  # guarded by lock
        self.keeper: Keeper = self.own  # guarded by lock
        self.present = Present(self.own.view())  # replaced under lock
        self.health = Health(policy)  # guarded by lock
        self.opened_at: float | None = None
        self.asks_others = False
        """Whether the circuit follows a storage of pybreaker's, that is to be asked before every call."""
        self.judges_successes = False
        """Whether a call that succeeds is more than that to somebody."""
        self._shared: SharedCircuit | None = None
        self._is_newborn = False  # nobody in this process has looked at the shared circuit yet
        self._looks = 0  # guarded by lock: how often somebody has
        self._alone_since = inf
        self._alone_told = False
        self._left_at: Circuit | None = None  # what the process's own circuit was when it was left alone
        self._left_identity: Identity = ("", 0, 0)  # and what the shared one was then
        self._unsettled: deque[tuple[Probe, Outcome, float]] = deque(maxlen=_UNSETTLED)
        self._untripped: tuple[Rule, Present, float] | None = None  # as the storage was busy
        self._compared: object = None  # what other processes were last told of the window
        self._compared_at = -inf
        self._member = _member()
        self._watch(STILL)
        self.set_pace()
        forget_after_fork(self)

    def set_pace(self) -> None:
        """Find out anew how much a call has to ask."""
        circuit = self.present.circuit
        state = circuit.state
        settled = not self.asks_others and not self._is_newborn
        passes = state == CLOSED or (state in _AS_CLOSED and circuit.until is None)
        self.passes = settled and passes
        """Whether a call passes and is counted, unless there are news."""
        self.quick = self.passes and not self.judges_successes
        """Whether a call passes, unless there are news, and a success is all that it may have to tell."""
        self.refuses = settled and state in REFUSING
        """Whether a call is refused until its time is over, unless there are news."""

    def change(self, policy: BreakerPolicy) -> None:
        """Go by another policy from now on. A circuit that is open stays so for as long as was said."""
        self.refuse_within()
        with self.lock:
            self.policy = policy
            self.slow_from = _slow_from(policy)
            self.health.change(policy)

    @property
    def is_inside(self) -> bool:
        """Whether this comes in the middle of what this very thread does under `lock`."""
        return _is_held_here(self.lock)

    def refuse_within(self) -> None:
        """Return if it does not. Raises `StorageBusy` otherwise."""
        if self.is_inside:
            raise StorageBusy(
                f"the circuit {self.name!r} was asked by a signal handler or a finalizer in the middle of a change by the same"
                " thread, which cannot go on meanwhile: ask again later"
            )

    # -- the circuit ---------------------------------------------------------------------------------------------------

    def act(self, act: Callable[[Keeper], T], undo: Callable[[T], None] | None = None) -> T:
        """Do something where the circuit is kept, and take notice of what has become of it. Tells nobody. `undo` is called
        with what it came to, if nobody will hear of that. Raises `StorageBusy`; of a storage that is out of reach nobody hears.
        """
        self.refuse_within()
        while True:
            keeper = self.keeper
            if keeper is self.own:
                with self.lock:
                    if keeper is not self.keeper:
                        continue
                    return self._act_here(act, undo)
            try:
                answer = act(keeper)
            except StorageBusy:
                raise  # somebody holds what was asked for: not now
            except StorageUnavailable as error:
                self._go_alone(keeper)
                self._tell_alone(error)
                continue
            try:
                self.look()
            except BaseException:
                if undo is not None:
                    undo(answer)
                raise
            return answer

    def _act_here(self, act: Callable[[Keeper], T], undo: Callable[[T], None] | None) -> T:
        """As `act`, on the process's own circuit. Requires `lock`."""
        before = self.own.circuit
        try:
            answer = act(self.own)
        except BaseException:
            self.own.circuit = before  # interrupted: as if nobody had asked
            raise
        try:
            self.adopt(self.own.view())
        except BaseException:
            if undo is not None:
                undo(answer)
            raise
        return answer

    def look(self) -> None:
        """Take notice of what others have made of the circuit. Tells nobody."""
        if self.is_inside:
            return
        while True:
            keeper, looks = self.keeper, self._looks
            if not isinstance(keeper, SharedCircuit):
                with self.lock:
                    if self.keeper is keeper:
                        self.adopt(self.own.view())
                        return
                continue
            try:
                watched, view = keeper.look()
            except StorageUnavailable as error:
                self._go_alone(keeper)
                self._tell_alone(error)
                return
            with self.lock:
                if self.keeper is keeper and self._looks == looks:  # else this may have been seen before that
                    self._follow(watched, view)
                    return

    def has_news(self) -> bool:
        """Whether others have changed the circuit since somebody looked."""
        return self.cells[self.place] != self.heard or self.host_cells[self.host_place] != self.host_heard

    def adopt(self, view: View) -> None:
        """The circuit is this from now on. Requires `lock`."""
        present, circuit = self.present, view.circuit
        old = present.circuit
        moved = old.state != circuit.state or old.generation != circuit.generation
        if view.identity == present.identity:
            if not moved and old.since == circuit.since and old.event is circuit.event:
                present.take(view)
                self.set_pace()
                return
            moved = True  # records were lost, and it has come to the same number once more
        self.present = present = Present(view)
        if circuit.state in PASSING and moved:
            self.health.clear()
        if circuit.state in REFUSING:
            self.opened_at = circuit.since - view.ahead
        if old.state != circuit.state or (circuit.event in _BY_HAND and moved):
            ends = present.until if circuit.state in FORCED else None
            self._telling.add(Move(old.state, circuit, None if ends is None else max(0.0, ends - self.seconds())))
        self.set_pace()

    def amend(self, change: Callable[[Circuit], Circuit]) -> None:
        """Change the process's own circuit without moving it."""
        self.refuse_within()
        with self.lock:
            self.own.circuit = change(self.own.circuit)
            if self.keeper is self.own:
                self.present.take(self.own.view())
                self.set_pace()

    def refused_for(self) -> float:
        """Seconds for which a call is refused that asks for a probe, without asking; 0.0 where it is to be asked."""
        shared = self._shared
        return 0.0 if shared is None or self.keeper is not shared else shared.refused_for()

    def record(self, present: Present, failed: bool, slow: bool) -> Rule | None:
        """Take a call into account that was let pass at `present`, and tell which rule is broken by it, if any. The result of
        a call that began before the last move says nothing about the present."""
        lock, postponed = self.lock, self._postponed
        if _is_held_here(lock):
            postponed.append((present, failed, slow))
            return None
        with lock:
            rule = self.health.record(failed, slow, self.seconds()) if present is self.present else None
            while postponed:
                present, failed, slow = postponed.popleft()
                if present is self.present:
                    rule = self.health.record(failed, slow, self.seconds()) or rule
            return rule

    def settle(self, probe: Probe, outcome: Outcome, pause: float) -> bool:
        """Take the result of a probe into account. True if the circuit has opened by it."""
        if self.is_inside:
            self._settling.append((probe, outcome, pause))
            probe.is_told = True
            return False
        with self.lock:
            if probe.present is self.present and outcome is not Outcome.IGNORED:
                self.health.failures = self.health.failures + 1 if outcome is Outcome.FAILURE else 0

        def settled(keeper: Keeper) -> bool:
            if keeper is not probe.keeper:  # its storage is out of reach
                raise StorageBusy
            return keeper.settle(self.policy, probe.leave, outcome, _chance(), pause)

        try:
            probe.is_told = True
            return self.act(settled)
        except StorageBusy:
            self._unsettled.append((probe, outcome, pause))
            return False
        except BaseException:
            # Interrupted: what has been told already counts once.
            (self._settling if probe.keeper is self.own else self._unsettled).append((probe, outcome, pause))
            raise

    @property
    def is_owing(self) -> bool:
        """Whether there is something for `settle_postponed`."""
        return bool(self._settling)

    def settle_postponed(self) -> None:
        """Take the results of probes into account that came when that could not be done."""
        settle_each(self._settling, lambda told: self.settle(*told))

    def trip(self, present: Present, pause: float) -> Tripped:
        """Open the circuit if it still is what it was at `present`, which was closed."""

        def tripped(keeper: Keeper) -> Tripped:
            identity = present.identity
            if keeper is self.own and identity == self._left_identity and self.own.circuit is self._left_at:
                identity = self.own.view().identity  # it was left alone in the middle of this, as it was
            return keeper.trip(self.policy, identity, _chance(), pause)

        return self.act(tripped)

    def order(self, order: ByHand) -> None:
        """Move it by hand."""
        self.refuse_within()
        self.begin()
        shared = self._shared
        if shared is not None and self.keeper is not shared:
            # The storage was out of reach, or what is in it was not ours: an order may mend that.
            with contextlib.suppress(StorageUnavailable), self._joining:
                shared.force(self.policy, order)
                self._left_at = self.own.circuit  # what happened here is no news any longer
                self._join(shared)
                return

        def forced(keeper: Keeper) -> None:
            keeper.force(self.policy, order)

        try:
            self.act(forced)
        except StorageBusy:
            self._go_alone(self.keeper)  # what is ordered holds here at once, and there from the next round on
            self.act(forced)

    def all_totals(self, now: float) -> tuple[Totals, Totals]:
        """What the windows of all processes hold, and what that of this one does."""
        self.refuse_within()
        with self.lock:
            return self.health.all_totals(now), self.health.totals(now)

    # -- sharing -------------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """Of the policy."""
        return self._telling.label

    @property
    def shared(self) -> SharedCircuit | None:
        """The circuit as it is shared with others, within reach or not."""
        return self._shared

    @property
    def is_alone(self) -> bool:
        """Whether it is shared, but the process goes on by itself."""
        return self._shared is not None and self.keeper is not self._shared

    def share(self, shared: SharedCircuit) -> None:
        """Keep the circuit there. Nothing is asked before the circuit is: a server that forks its workers has neither threads
        nor connections until then."""
        old = self._shared
        with self.lock:
            self._shared = shared
            if self.keeper is not self.own:
                self._leave()
            self._left_at = None
            self._alone_told, self._alone_since = False, self.seconds()
            self._is_newborn = True
            self.set_pace()
        if old is not None:
            old.close()

    def begin(self) -> None:
        """The first look at a shared circuit in this process, if nobody has looked yet. Whoever comes meanwhile waits, for as
        long as the storage's timeout at most: a circuit that is open elsewhere is not to be called."""
        if self._is_newborn and not (_is_held_here(self._joining) or self.is_inside):
            with self._joining:
                self._begin()

    def visit(self) -> None:
        """What `Rounds` does for a shared circuit a few times a second: hear of news, come back to a storage that was out of
        reach, compare the window with those of other processes."""
        shared = self._shared
        if shared is None or self._is_newborn:
            return
        now = self.seconds()
        self._telling.tell_leftovers(self.policy.reset_timeout, now)
        self.give_back()
        try:
            if self.keeper is shared:
                until = self.present.until
                if self.has_news() or (until is not None and now >= until):
                    self.look()
                self._compare_windows(shared)
            with self._joining:
                if self.keeper is shared:
                    self._catch_up(shared)
                else:
                    shared.probe()
                    self._join(shared)
        except StorageUnavailable as error:
            if now - self._alone_since >= QUIET:
                self._tell_alone(error)
        self._telling.publish()

    def after_fork(self) -> None:
        """Whoever held a lock stayed in the parent."""
        self.lock, self._joining = threading.RLock(), threading.RLock()
        self._telling.after_fork()
        self._unsettled.clear()
        self._settling.clear()
        self._untripped = None
        self._member = _member()
        if self._shared is not None:
            self._shared.after_fork()
            self._is_newborn = True
            self.set_pace()

    def _begin(self) -> None:
        shared = self._shared
        if shared is None or not self._is_newborn:
            return
        PROCESS_ROUNDS.add(self)
        with contextlib.suppress(StorageUnavailable):  # the rounds go on trying
            self._join(shared)
        with self.lock:
            self._is_newborn = False
            self.set_pace()

    def _join(self, shared: SharedCircuit) -> None:
        """Leave the process's own circuit for the shared one, and take with it what happened to the former alone. Requires
        `_joining`. Raises `StorageUnavailable`."""
        if self.keeper is shared:
            return
        view = shared.view()
        own, left = self.own.circuit, self._left_at
        is_news = own.generation != (0 if left is None else left.generation)
        remaining = None if own.until is None else max(0.0, own.until - self.seconds())
        if is_news and own.event in _BY_HAND and (left is not None or own.state in FORCED):
            order = ByHand(own.event, own.reason, own.author, remaining)
            shared.force_late(self.policy, order, None if left is None else self._left_identity)
        elif is_news and own.state in (OPEN, HALF_OPEN) and view.circuit.state == CLOSED:
            shared.trip(self.policy, view.identity, 0.0, 0.0, lasts=remaining or 0.0)
        self._catch_up(shared)
        watched, view = shared.look()
        with self.lock:
            if self._shared is not shared or self.keeper is shared:
                return
            self.keeper = shared
            self._alone_since = inf
            self._follow(watched, view)
            if self._alone_told:
                self._alone_told = False
                self._telling.add_event(SharingChanged, alone=False)

    def _catch_up(self, shared: SharedCircuit) -> None:
        """Tell the storage what it could not be told when it happened. Raises `StorageUnavailable`."""
        while self._unsettled:
            probe, outcome, pause = told = self._unsettled.popleft()
            if probe.keeper is not shared:
                continue
            try:
                shared.settle(self.policy, probe.leave, outcome, _chance(), pause)
            except StorageUnavailable:
                self._unsettled.appendleft(told)
                raise
        shared.catch_up(self.policy)
        untripped, self._untripped = self._untripped, None
        if untripped is not None:
            self.open_by(*untripped)

    def _follow(self, watched: Watched, view: View) -> None:
        self._looks += 1
        self._watch(watched)
        self.adopt(view)

    def _watch(self, watched: Watched) -> None:
        self.cells, self.place, self.heard, self.host_cells, self.host_place, self.host_heard = watched
        self.is_followed = watched is not STILL

    def _go_alone(self, keeper: Keeper) -> None:
        """Go on with a circuit of this process, as the shared one was last seen."""
        with self.lock:
            if self.keeper is keeper and keeper is not self.own:
                self._leave()
                self._alone_since = self.seconds()

    def _leave(self) -> None:
        """Requires `lock`."""
        self._left_identity = self.present.identity
        self._left_at = self.own.circuit = _alone(self.present.view)
        self.keeper = self.own
        self._watch(STILL)
        self.adopt(self.own.view())

    def _tell_alone(self, error: StorageUnavailable) -> None:
        if not self._alone_told:
            self._alone_told = True
            self._telling.add_event(SharingChanged, alone=True, error=in_a_line(error))

    def _compare_windows(self, shared: SharedCircuit) -> None:
        policy = self.policy
        if not policy.has_rates:
            return
        now = self.seconds()
        with self.lock:
            present, totals, others = self.present, self.health.totals(now), self.health.others
        # Who has the last call of all sees what led to it; the others' news matter when there is a call again.
        idle, keep = _IDLE, 3 * _IDLE
        if policy.window_seconds is not None:
            idle = min(idle, policy.window_seconds / 10)
            # Of a worker that has gone its calls leave the window with it, but one that is slow to tell has not gone.
            keep = min(keep, max(policy.window_seconds, _SLOWEST))
        seen = (present.identity, totals)
        if present.circuit.state not in PASSING or not (totals.calls or others.calls):
            return
        if self.keeper is not shared or (seen == self._compared and now - self._compared_at < idle):
            return
        self._compared, self._compared_at = seen, now
        try:
            others = shared.exchange(present.identity, self._member, totals, keep=keep)
        except StorageUnavailable:
            return  # a look at the circuit tells whether it is out of reach
        with self.lock:
            if present is not self.present:
                return
            self.health.others = others
            rule = self.health.broken_rule(self.seconds())
        if rule is not None:
            self.open_by(rule, present, 0.0)

    def open_by(self, rule: Rule, present: Present, pause: float) -> bool:
        """Open the circuit because `rule` is broken by calls that were let pass at `present`, or tell that it would have
        opened. Whether it did open."""
        state = present.circuit.state
        opened = for_all = False
        if state == CLOSED:
            try:
                opened, for_all = self.trip(present, pause)
            except StorageBusy:
                self._untripped = rule, present, pause
        if (opened and not for_all) or state == METRICS_ONLY:
            now = self.seconds()
            totals, _ = self.all_totals(now)
            self._telling.tell_exceeding(rule, totals, now)
        return opened


def _slow_from(policy: BreakerPolicy) -> float:
    return inf if policy.slow_call_rate is None else policy.slow_call_duration


def _member() -> str:
    """Tells the windows of one host apart. Containers of one node may count their processes alike."""
    return f"{os.getpid()}-{secrets.token_hex(4)}"


def settle_each(waiting: deque[T], settle: Callable[[T], object]) -> None:
    """Call `settle` with everything that is waiting, once. What it was interrupted at goes on waiting."""
    for _ in range(len(waiting)):
        try:
            each = waiting.popleft()
        except IndexError:  # another thread is at it too
            return
        try:
            settle(each)
        except BaseException:
            waiting.append(each)
            raise


def _is_held_here(lock: Any) -> bool:
    """Whether this very thread or greenlet holds it."""
    return bool(lock._is_owned())  # noqa: SLF001  # every re-entrant lock has it: `threading.Condition` asks the same


def _nothing() -> None:
    pass


def _chance() -> float:
    return random.random()  # noqa: S311  # for the jitter of an open time


def _alone(view: View) -> Circuit:
    """The circuit as it was last seen where it is shared, in the times of this process. Who probes it there is unknown here."""
    circuit, ahead = view.circuit, view.ahead
    until = None if circuit.until is None else circuit.until - ahead
    return replace(circuit, since=circuit.since - ahead, until=until, probes=(), votes=())
