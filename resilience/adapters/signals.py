"""Events as blinker's signals, which Flask's own are.

    from resilience.adapters.signals import circuit_changed

    @circuit_changed.connect
    def tell_operators(circuit, event):
        if event.new == "open":
            ...

    circuit_changed.connect(tell_accounting, sender="payments")  # of this circuit alone

The sender is the policy's name, `event` one of `resilience.core.events`. Receivers run where the event happened, after every
lock has been left: in the thread or greenlet of a call, or in one that looks after something. One that raises is logged, and
keeps neither the call nor the other receivers from anything. They are told of this process alone. As with every signal of
blinker's, a receiver that nothing else refers to is forgotten unless it is connected with `weak=False`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any, Final

from blinker import Signal

from resilience.core.events import (
    EVENT_TYPES,
    CallFailed,
    CallIgnored,
    CallNotPermitted,
    CallSlow,
    CallSucceeded,
    CircuitReset,
    LimitExceeded,
    LimitOverridden,
    LimitReset,
    PolicyEvent,
    RateExceeded,
    SharingChanged,
    StateChanged,
    StoreChanged,
)
from resilience.events import PROCESS_EVENTS

__all__ = [
    "SIGNALS",
    "call_failed",
    "call_ignored",
    "call_not_permitted",
    "call_slow",
    "call_succeeded",
    "circuit_changed",
    "circuit_reset",
    "limit_exceeded",
    "limit_overridden",
    "limit_reset",
    "rate_exceeded",
    "sharing_changed",
    "store_changed",
]

_LOG = logging.getLogger(__name__)

circuit_changed: Final = Signal("A circuit moved: `StateChanged`.")
circuit_reset: Final = Signal("A circuit was closed and its counts forgotten: `CircuitReset`.")
rate_exceeded: Final = Signal("A circuit would have opened, if it were left to itself: `RateExceeded`.")
sharing_changed: Final = Signal(
    "A circuit lost the storage that it is shared through, or has it again: `SharingChanged`."
)
call_succeeded: Final = Signal(
    "A call succeeded: `CallSucceeded`. A receiver costs every call under every circuit of the process."
)
call_failed: Final = Signal("A call failed: `CallFailed`.")
call_ignored: Final = Signal("A call raised what counts as neither success nor failure: `CallIgnored`.")
call_slow: Final = Signal("A call was slow: `CallSlow`.")
call_not_permitted: Final = Signal("A circuit refused calls: `CallNotPermitted`, at most once a second.")
limit_exceeded: Final = Signal("A limit refused calls: `LimitExceeded`, at most once a second for each key.")
limit_reset: Final = Signal("A bucket was filled by hand: `LimitReset`.")
limit_overridden: Final = Signal("Other limits hold for a time, or the limiter's own again: `LimitOverridden`.")
store_changed: Final = Signal("The storage of limits went out of reach, or came back: `StoreChanged`.")

SIGNALS: Final[dict[type[PolicyEvent], Signal]] = {
    StateChanged: circuit_changed,
    CircuitReset: circuit_reset,
    RateExceeded: rate_exceeded,
    SharingChanged: sharing_changed,
    CallSucceeded: call_succeeded,
    CallFailed: call_failed,
    CallIgnored: call_ignored,
    CallSlow: call_slow,
    CallNotPermitted: call_not_permitted,
    LimitExceeded: limit_exceeded,
    LimitReset: limit_reset,
    LimitOverridden: limit_overridden,
    StoreChanged: store_changed,
}
"""Which signal tells of which type of event."""


class _Relay:
    """Hears of successes only while somebody is there to be told: every call pays for those."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._end: Callable[[], None] | None = None  # guarded by _lock; ends the hearing of successes
        PROCESS_EVENTS.listen(self.tell, *(each for each in EVENT_TYPES if each is not CallSucceeded))
        call_succeeded.receiver_connected.connect(self.begin)

    def begin(self, signal: Signal, **_: Any) -> None:  # noqa: ARG002  # as blinker calls it
        """Somebody wants to hear of successes."""
        with self._lock:
            if self._end is None:
                self._end = PROCESS_EVENTS.listen(self.tell_success, CallSucceeded)

    def tell_success(self, event: PolicyEvent) -> None:
        """Tell of a success, as long as there is somebody to tell: a receiver may vanish without a word."""
        if call_succeeded.receivers:
            self.tell(event)
            return
        with self._lock:
            if self._end is not None and not call_succeeded.receivers:  # nobody has come meanwhile
                self._end()
                self._end = None

    def tell(self, event: PolicyEvent) -> None:
        """Tell all receivers of the signal of the event's type."""
        signal = SIGNALS[type(event)]
        if not signal.receivers or signal.is_muted:
            return
        for receiver in list(signal.receivers_for(event.policy)):
            try:
                receiver(event.policy, event=event)
            except Exception:  # noqa: BLE001  # the others are to be told all the same
                _LOG.exception("a receiver raised at %s of %s %r", event.type, event.kind, event.policy)


_RELAY: Final = _Relay()
