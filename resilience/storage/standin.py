"""What decides while a shared storage is down: a limit must never be the reason for an outage."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Literal

from resilience.clock import SYSTEM_CLOCK
from resilience.core.limiter import Charge, Decision, Quota
from resilience.errors import StorageBusy, StorageUnavailable
from resilience.ports import Clock, LimitStorage
from resilience.storage.memory import MemoryStorage

__all__ = ["OnFailure", "StandInStorage"]

OnFailure = Literal["local", "open", "closed"]
"""Without the shared storage, decide: each process for itself, allow everything, or refuse everything."""

_LOG = logging.getLogger(__name__)


class StandInStorage:
    """`primary`, and a stand-in while `primary` does not answer.

    A failure costs one caller the primary's timeout; for `pause` seconds after it the stand-in decides at once for all,
    then one caller tries the primary again. `on_failure` says how the stand-in decides: "local" counts in this process
    (limits hold per process), "open" allows, "closed" refuses with a retry after `pause`.
    """

    def __init__(
        self,
        primary: LimitStorage,
        *,
        on_failure: OnFailure = "local",
        pause: float = 1.0,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        if on_failure not in ("local", "open", "closed"):
            raise ValueError(f"on_failure={on_failure!r}: choose 'local', 'open' or 'closed'")
        self._primary = primary
        self._on_failure = on_failure
        self._pause = pause
        self._seconds = clock.seconds
        self._local = MemoryStorage(clock=clock)
        self._lock = threading.Lock()
        self._retry_at: float | None = None  # guarded by _lock; None while the primary answers

    @property
    def uri(self) -> str:
        """The primary's address, and who decides if it is not the primary."""
        return self._primary.uri if self.available else f"{self._primary.uri} (down: {self._on_failure})"

    @property
    def available(self) -> bool:
        """Whether the primary answered last time."""
        return self._retry_at is None

    def __repr__(self) -> str:
        return f"<StandInStorage: {self.uri}>"

    def take(self, charges: Sequence[Charge]) -> Decision:
        """Decide, by the primary if it answers. Never raises `StorageUnavailable`."""
        if self._retry_at is not None and not self._may_try_again():
            return self._decide_without(charges)
        try:
            decision = self._primary.take(charges)
        except StorageBusy:
            return self._decide_without(charges)  # this one alone: the primary answers, others keep it busy
        except StorageUnavailable as error:
            self._failed(error)
            return self._decide_without(charges)
        if self._retry_at is not None:
            self._answered()
        return decision

    def _may_try_again(self) -> bool:
        """True for one caller each `pause`: the others must not queue behind a server that may still be down."""
        now = self._seconds()
        with self._lock:
            if self._retry_at is None:
                return True
            if now < self._retry_at:
                return False
            self._retry_at = now + self._pause
            return True

    def _failed(self, error: StorageUnavailable) -> None:
        now = self._seconds()
        with self._lock:
            first = self._retry_at is None
            self._retry_at = now + self._pause
        if first:
            _LOG.warning("%s; deciding %s until it answers again", error, self._on_failure)

    def _answered(self) -> None:
        with self._lock:
            recovered, self._retry_at = self._retry_at is not None, None
        if recovered:
            _LOG.warning("%s answers again", self._primary.uri)

    def _decide_without(self, charges: Sequence[Charge]) -> Decision:
        if self._on_failure == "local":
            return self._local.take(charges)
        if self._on_failure == "open":
            return Decision(True, tuple(Quota(charge.limit, charge.limit.capacity, charge.cost) for charge in charges))
        return Decision(False, tuple(_refused(charge, self._pause) for charge in charges))

    def close(self) -> None:
        """Close the primary."""
        self._primary.close()


def _refused(charge: Charge, pause: float) -> Quota:
    """A quota whose wait is about `pause` seconds."""
    limit = charge.limit
    missing = round(pause * 1_000_000) // limit.tick * limit.refill
    return Quota(limit, charge.cost * limit.unit - max(1, missing), charge.cost)
