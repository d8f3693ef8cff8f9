"""Where policies tell of what happens to them, and where others hear of it.

`emit` keeps an event in the ring of its policy and hands it to whoever listens. It is called after every lock has been left,
so a listener may ask for any state. A listener that raises is logged and told of the next event all the same.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from resilience.core.events import (
    EVENT_TYPES,
    CallFailed,
    CallIgnored,
    CallNotPermitted,
    CallSlow,
    CallSucceeded,
    LimitExceeded,
    PolicyEvent,
)

__all__ = ["PROCESS_EVENTS", "Entry", "EventLog", "Listener"]

KEPT: Final = 100
"""Events of one policy that are remembered: so many of its calls, and so many of everything else."""
POLICIES: Final = 1_000
"""Policies whose events are remembered: beyond that the one that was silent for the longest is forgotten."""

Listener = Callable[[PolicyEvent], None]
Listening = tuple[tuple[Listener, tuple[type[PolicyEvent], ...]], ...]
"""Who listens, each with the types of events that it hears."""

_REFUSALS: Final = (CallNotPermitted, LimitExceeded)
_CALLS: Final = (CallFailed, CallIgnored, CallSlow, *_REFUSALS)

_LOG = logging.getLogger(__name__)


class Entry(NamedTuple):
    """An event with its number in this process, from 1."""

    number: int
    event: PolicyEvent


class EventLog:
    """The last events of every policy of this process, and who listens. Safe to share between threads and greenlets.

    What calls came to is remembered apart from what became of the policy: any number of failed calls leaves it known how the
    circuit opened. A forked child begins with no event, and with everybody who listened.
    """

    def __init__(self, *, kept: int = KEPT) -> None:
        self._kept = kept
        self._numbers = itertools.count(1)
        self.last = 0
        """The number of the last event that was kept; 0 before the first."""
        self.listeners: Listening = ()
        self.wants_successes = False
        """Whether anybody listens for every single success: nobody else should pay for them."""
        self._hearing_refusals: Listening = ()
        self.wants_refusals = False
        """Whether anybody listens for every single refusal: then each is given to `emit_each` besides."""
        self.after_fork()

    def after_fork(self) -> None:
        """Forget what the parent was told. A thread that exists only there may have held the lock."""
        # Re-entrant: what a finalizer tells of may come in the middle of anything.
        self._lock = threading.RLock()
        self._rings: dict[tuple[str, str], tuple[deque[Entry], deque[Entry]]] = {}  # guarded by _lock

    def emit(self, event: PolicyEvent) -> None:
        """Keep the event and tell the listeners. Never raises an `Exception`."""
        if not isinstance(event, CallSucceeded):
            self._keep(event)
        _tell(self.listeners, event)

    def emit_each(self, event: CallNotPermitted | LimitExceeded) -> None:
        """Tell of one refusal those that want to hear of each. Never raises an `Exception`."""
        _tell(self._hearing_refusals, event)

    def listen(self, listener: Listener, *types: type[PolicyEvent], every_refusal: bool = False) -> Callable[[], None]:
        """Call `listener` with every event of these types (none given: of all) from now on. Returns what ends that.

        Refusals are told at most once a second for each key, with how many there were; with `every_refusal` each is told when
        it happens, where it happens. That costs every refused call, as listening for `CallSucceeded` costs every other one.
        """
        wanted = types or (PolicyEvent,)
        refusals = tuple(each for each in _REFUSALS if every_refusal and issubclass(each, wanted))
        others = tuple(each for each in EVENT_TYPES if each not in refusals and issubclass(each, wanted))
        entry, of_refusals = (listener, others if every_refusal else wanted), (listener, refusals)
        with self._lock:
            self._set_listeners((*self.listeners, entry), (*self._hearing_refusals, of_refusals))

        def end() -> None:
            with self._lock:
                self._set_listeners(
                    (each for each in self.listeners if each is not entry),
                    (each for each in self._hearing_refusals if each is not of_refusals),
                )

        return end

    def of(self, kind: str, policy: str) -> list[Entry]:
        """The events of one policy that are remembered, the oldest first."""
        with self._lock:
            return sorted(entry for ring in self._rings.get((kind, policy), ()) for entry in ring)

    def since(self, number: int, *, most: int = 1_000) -> list[Entry]:
        """What happened after the event of that number, as far as it is remembered, the oldest first; the latest `most`."""
        with self._lock:
            found = [
                entry for rings in self._rings.values() for ring in rings for entry in ring if entry.number > number
            ]
        return sorted(found)[max(0, len(found) - most) :]

    def clear(self) -> None:
        """Forget every event: for tests. Who listens goes on listening."""
        with self._lock:
            self._rings.clear()

    def _keep(self, event: PolicyEvent) -> None:
        key = (event.kind, event.policy)
        with self._lock:
            rings = self._rings.pop(key, None)
            if rings is None:
                rings = deque(maxlen=self._kept), deque(maxlen=self._kept)
                if len(self._rings) >= POLICIES:
                    del self._rings[next(iter(self._rings))]
            self._rings[key] = rings  # last: it has just spoken
            self.last = next(self._numbers)
            rings[isinstance(event, _CALLS)].append(Entry(self.last, event))

    def _set_listeners(
        self,
        listeners: Iterable[tuple[Listener, tuple[type[PolicyEvent], ...]]],
        hearing_refusals: Iterable[tuple[Listener, tuple[type[PolicyEvent], ...]]],
    ) -> None:
        self.listeners = tuple(listeners)
        self.wants_successes = any(issubclass(CallSucceeded, types) for _, types in self.listeners)
        self._hearing_refusals = tuple(each for each in hearing_refusals if each[1])
        self.wants_refusals = bool(self._hearing_refusals)


def _tell(listening: Listening, event: PolicyEvent) -> None:
    for listener, types in listening:
        if not isinstance(event, types):
            continue
        try:
            listener(event)
        except Exception:  # noqa: BLE001  # it is no affair of the call that this is about
            _LOG.exception("a listener raised at %s of %s %r", event.type, event.kind, event.policy)


PROCESS_EVENTS: Final = EventLog()
"""Where the policies of this process tell of what happens to them."""

os.register_at_fork(after_in_child=PROCESS_EVENTS.after_fork)
