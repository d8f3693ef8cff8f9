"""Where a circuit stands for this process: what it is now, what calls said of it since, and where it is kept.

It is kept in the process, or in a storage that several processes share. When that is out of reach, the process goes on with a
circuit of its own, as the shared one was last seen; and when it is back, what happened meanwhile goes there.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from math import inf
from typing import Final, NamedTuple, TypeVar

from resilience.core.breaker import (
    CLOSED,
    FORCED,
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

__all__ = ["REFUSING", "Present", "Probe", "Standing"]

REFUSING: Final = frozenset((OPEN, FORCED_OPEN))
"""No call passes, unless its time is over."""

_IDLE: Final = 5.0
"""Seconds after which a window that has not changed is told to other processes again."""
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


class Probe(NamedTuple):
    """Leave for one call on a circuit that is half-open."""

    keeper: Keeper
    leave: Granted
    present: Present


class Standing:
    """See the module. Safe to share between threads and greenlets: `lock` is held for arithmetic.

    A call on a closed circuit looks at `quick`, and at `cells[place]` and `host_cells[host_place]`: unless these differ from
    what was `heard`, nobody has moved the circuit.
    """

    __slots__ = (
        "__weakref__", "_alone_since", "_alone_told", "_compared", "_compared_at", "_is_newborn", "_joining", "_left_at",
        "_left_identity", "_looks", "_shared", "_telling", "_unsettled", "_untripped", "asks_others", "cells", "health",
        "heard", "host_cells", "host_heard", "host_place", "is_followed", "judges_successes", "keeper", "lock", "opened_at",
        "own", "place", "policy", "present", "quick", "refuses", "seconds", "slow_from",
    )  # fmt: skip

    def __init__(self, policy: BreakerPolicy, seconds: Callable[[], float], telling: Telling) -> None:
        self.policy = policy
        self.slow_from = _slow_from(policy)
        """Seconds from which on a call counts as slow."""
        self.seconds = seconds
        self._telling = telling
        self.lock = threading.Lock()
        self._joining = threading.Lock()  # held by who comes back to the storage, while it is asked
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
        self._watch(STILL)
        self.set_pace()
        forget_after_fork(self)

    def set_pace(self) -> None:
        """Find out anew how much a call has to ask."""
        state = self.present.circuit.state
        settled = not self.asks_others and not self._is_newborn
        self.quick = settled and state == CLOSED and not self.judges_successes
        """Whether a call passes, unless there are news, and a success is all that it may have to tell."""
        self.refuses = settled and state in REFUSING
        """Whether a call is refused until its time is over, unless there are news."""

    def change(self, policy: BreakerPolicy) -> None:
        """Go by another policy from now on. A circuit that is open stays so for as long as was said."""
        with self.lock:
            self.policy = policy
            self.slow_from = _slow_from(policy)
            self.health.change(policy)

    # -- the circuit ---------------------------------------------------------------------------------------------------

    def act(self, act: Callable[[Keeper], T], undo: Callable[[T], None] | None = None) -> T:
        """Do something where the circuit is kept, and take notice of what has become of it. Tells nobody. `undo` is called
        with what it came to, if nobody will hear of that. Raises `StorageBusy`; of a storage that is out of reach nobody hears.
        """
        while True:
            keeper = self.keeper
            if keeper is self.own:
                with self.lock:
                    if keeper is not self.keeper:
                        continue
                    try:
                        return act(keeper)
                    finally:
                        self.adopt(self.own.view())
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

    def look(self) -> None:
        """Take notice of what others have made of the circuit. Tells nobody."""
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
        if view.identity == present.identity:
            present.take(view)
            return
        old = present.circuit
        self.present = present = Present(view)
        moved = old.state != circuit.state or old.generation != circuit.generation
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
        with self.lock:
            self.own.circuit = change(self.own.circuit)
            if self.keeper is self.own:
                self.present.take(self.own.view())

    def record(self, present: Present, failed: bool, slow: bool) -> Rule | None:
        """Take a call into account that was let pass at `present`, and tell which rule is broken by it, if any. The result of
        a call that began before the last move says nothing about the present."""
        with self.lock:
            return self.health.record(failed, slow, self.seconds()) if present is self.present else None

    def settle(self, probe: Probe, outcome: Outcome, pause: float) -> bool:
        """Take the result of a probe into account. True if the circuit has opened by it."""
        with self.lock:
            if probe.present is self.present and outcome is not Outcome.IGNORED:
                self.health.failures = self.health.failures + 1 if outcome is Outcome.FAILURE else 0

        def settled(keeper: Keeper) -> bool:
            if keeper is not probe.keeper:  # its storage is out of reach
                raise StorageBusy
            return keeper.settle(self.policy, probe.leave, outcome, _chance(), pause)

        try:
            return self.act(settled)
        except StorageBusy:
            self._unsettled.append((probe, outcome, pause))
            return False
        except BaseException:
            self._unsettled.append((probe, outcome, pause))  # interrupted: what has been told already counts once
            raise

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
        if self._is_newborn:
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
        self.lock, self._joining = threading.Lock(), threading.Lock()
        self._telling.after_fork()
        self._unsettled.clear()
        self._untripped = None
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
            shared.force(self.policy, ByHand(own.event, own.reason, own.author, remaining))
        elif is_news and own.state in (OPEN, HALF_OPEN) and view.circuit.state == CLOSED:
            shared.trip(self.policy, view.identity, 0.0, remaining or 0.0)
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
        idle = _IDLE if policy.window_seconds is None else min(_IDLE, policy.window_seconds / 10)
        seen = (present.identity, totals)
        if present.circuit.state not in PASSING or not (totals.calls or others.calls):
            return
        if self.keeper is not shared or (seen == self._compared and now - self._compared_at < idle):
            return
        self._compared, self._compared_at = seen, now
        try:
            others = shared.exchange(present.identity, str(os.getpid()), totals, keep=3 * _IDLE)
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


def _chance() -> float:
    return random.random()  # noqa: S311  # for the jitter of an open time


def _alone(view: View) -> Circuit:
    """The circuit as it was last seen where it is shared, in the times of this process. Who probes it there is unknown here."""
    circuit, ahead = view.circuit, view.ahead
    until = None if circuit.until is None else circuit.until - ahead
    return replace(circuit, since=circuit.since - ahead, until=until, probes=(), votes=())
