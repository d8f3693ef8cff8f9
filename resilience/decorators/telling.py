"""How a circuit tells of what happens to it: events of the library, and pybreaker's listeners."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from math import inf
from typing import Any, Final, NamedTuple

import pybreaker

from resilience.clock import epoch_seconds
from resilience.core.breaker import Circuit
from resilience.core.events import CallNotPermitted, PolicyEvent, RateExceeded, StateChanged
from resilience.core.window import Rule, Totals
from resilience.events import PROCESS_EVENTS

__all__ = ["QUIET", "Move", "Telling", "in_a_line"]

QUIET: Final = 1.0
"""Seconds between two events that say the same of refused calls, or of a rate that is exceeded and moves nothing."""


class Move(NamedTuple):
    """A circuit has come to this one from the state `old`, for so many seconds if it is forced for a time."""

    old: str
    circuit: Circuit
    expires_in: float | None


class Telling:
    """Tells for one breaker. `turn` takes a state and gives pybreaker's objects of the old and the new one; it is called once
    for every move, in order."""

    __slots__ = (
        "_breaker", "_exceeding_told_at", "_lock", "_publishing", "_tidings", "_turn", "hears_calls", "hears_successes",
        "listeners_lock", "refusals_told_at", "refused",
    )  # fmt: skip

    def __init__(self, breaker: pybreaker.CircuitBreaker, turn: Callable[[str], tuple[Any, Any]]) -> None:
        self._breaker = breaker
        self._turn = turn
        self._tidings: deque[Move | PolicyEvent] = deque()
        self._publishing = False  # guarded by _lock: somebody is telling of them
        self._exceeding_told_at = -inf
        self.hears_calls: tuple[pybreaker.CircuitBreakerListener, ...] = ()
        """Listeners that want to hear of every call, before it is made."""
        self.hears_successes: tuple[pybreaker.CircuitBreakerListener, ...] = ()
        """Listeners that want to hear of every success."""
        self.refused = 0
        """Calls that were refused since somebody was told."""
        self.refusals_told_at = -inf
        self.after_fork()

    def after_fork(self) -> None:
        """Whoever held a lock, or was telling, stayed in the parent."""
        # Re-entrant: a signal handler or a finalizer may call what is guarded in the middle of this.
        self._lock = threading.RLock()
        self.listeners_lock = threading.RLock()
        self._publishing = False

    @property
    def label(self) -> str:
        """The policy's name in events and errors."""
        return self._breaker.name or "circuit"

    def is_behind(self) -> bool:
        """Whether something has yet to be told."""
        return bool(self._tidings)

    def add(self, tiding: Move | PolicyEvent) -> None:
        """To be told when locks have been left. Takes none itself, so that the order is that of the caller's lock."""
        self._tidings.append(tiding)

    def add_event(self, kind: type[PolicyEvent], **fields: Any) -> None:
        """As `add`."""
        self.add(kind(policy=self.label, at=epoch_seconds(), **fields))

    def forget(self) -> None:
        """What has not been told is no news."""
        self._tidings.clear()

    def publish(self) -> None:
        """Tell of everything, in order, each once.

        One caller at a time does so, for all. Nobody waits for it: who finds somebody at it goes on, and a listener that
        moves the circuit is told of that move after the present one.
        """
        while self._tidings:
            mine = False
            try:
                with self._lock:
                    if self._publishing:
                        return
                    # In this order: who is interrupted in between leaves nothing behind.
                    mine = self._publishing = True
                while self._tidings:
                    self._tell(self._tidings[0])
            finally:
                if mine:
                    self._publishing = False

    def emit(self, kind: type[PolicyEvent], **fields: Any) -> None:
        """Tell of an event at once."""
        PROCESS_EVENTS.emit(kind(policy=self.label, at=epoch_seconds(), **fields))

    def tell_listeners(self, what: str, *about: Any, **more: Any) -> None:
        """Call this method of every listener."""
        # pybreaker calls them under its one lock, so one that is written for it need not be made for being called twice at
        # a time. It may call what is guarded, and move the circuit.
        with self.listeners_lock:
            for listener in self._breaker.listeners:
                getattr(listener, what)(self._breaker, *about, **more)

    def listen_anew(self) -> None:
        """There are other listeners."""
        listeners = self._breaker.listeners
        self.hears_calls = tuple(each for each in listeners if _hears(each, "before_call"))
        self.hears_successes = tuple(each for each in listeners if _hears(each, "success"))

    def tell_of_call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Tell those listeners that want to hear of it that `func` will be called."""
        with self.listeners_lock:
            for listener in self.hears_calls:
                listener.before_call(self._breaker, func, *args, **kwargs)

    def tell_of_success(self) -> None:
        """Tell those listeners that want to hear of it that a call succeeded."""
        with self.listeners_lock:
            for listener in self.hears_successes:
                listener.success(self._breaker)

    def count_refusal(self, retry_after: float, now: float) -> None:
        """A call was refused. Told of at most once a second, with how many there were."""
        self.refused += 1
        if now - self.refusals_told_at >= QUIET:
            self._tell_refusals(retry_after, now)
        if PROCESS_EVENTS.wants_refusals:
            said = CallNotPermitted(policy=self.label, at=epoch_seconds(), count=1, retry_after=retry_after)
            PROCESS_EVENTS.emit_each(said)

    def tell_leftovers(self, retry_after: float, now: float) -> None:
        """Tell of refusals that nobody was told of, because none came after them."""
        if self.refused and now - self.refusals_told_at >= QUIET:
            self._tell_refusals(retry_after, now)

    def tell_exceeding(self, rule: Rule, totals: Totals, now: float) -> None:
        """A rule is broken, and the circuit has not opened for it, or not for all. Told of at most once a second."""
        if now - self._exceeding_told_at >= QUIET:
            self._exceeding_told_at = now
            self.emit(RateExceeded, rule=rule.value, failed=totals.failed, slow=totals.slow, calls=totals.calls)

    def _tell_refusals(self, retry_after: float, now: float) -> None:
        self.refusals_told_at = now
        count, self.refused = self.refused, 0
        self.emit(CallNotPermitted, count=count, retry_after=retry_after)

    def _tell(self, tiding: Move | PolicyEvent) -> None:
        try:
            if isinstance(tiding, PolicyEvent):
                PROCESS_EVENTS.emit(tiding)
                return
            old, circuit, expires_in = tiding
            before, after = self._turn(circuit.state)
        finally:
            self._tidings.popleft()
        cause = "" if circuit.event is None else circuit.event.value
        self.emit(
            StateChanged, old=old, new=circuit.state, cause=cause, reason=circuit.reason, author=circuit.author,
            expires_in=expires_in,
        )  # fmt: skip
        self.tell_listeners("state_change", before, after)


def _hears(listener: pybreaker.CircuitBreakerListener, method: str) -> bool:
    """Whether it does something there."""
    default = getattr(pybreaker.CircuitBreakerListener, method)
    return getattr(type(listener), method, None) is not default or method in getattr(listener, "__dict__", ())


def in_a_line(error: BaseException) -> str:
    """What was raised, in a line."""
    try:
        said = " ".join(str(error).split())[:300]
    except Exception:  # noqa: BLE001  # an exception that cannot be printed is one all the same
        said = ""
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
