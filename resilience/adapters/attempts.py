"""Attempts to get in by the admin token: how many wrong ones an address has, and the trace that refused ones leave."""

from __future__ import annotations

import hmac
import threading
from collections.abc import Iterable, Sequence
from typing import Final

from werkzeug.exceptions import TooManyRequests

from resilience.adapters.addresses import client_key
from resilience.adapters.audit import AuditEntry, AuditLog
from resilience.clock import SYSTEM_CLOCK, epoch_seconds
from resilience.core.coalescing import Coalescing, Said
from resilience.core.limiter import Charge, Decision, Limit, Refund, seconds_rounded_up
from resilience.decorators.policy import view_of
from resilience.errors import StorageUnavailable
from resilience.ports import LimitStorage
from resilience.storage.memory import MemoryStorage

__all__ = ["FAILURES", "Attempts"]

FAILURES: Final = Limit(5, 60)
"""Wrong tokens that an address has."""

_SCOPE: Final = "admin:logins"
_TOLD_EVERY: Final = 60.0


class Attempts:
    """Compares what is given with the `token`. Safe to share between threads and greenlets.

    Wrong tokens are counted for the address that they come from, in `storage`, so that all workers count together. Once it
    has none left every attempt from it is refused, right or wrong: an answer to the right one would make guessing worth
    while. Each worker counts for itself besides, before it compares: guesses side by side are no more than one after the
    other, and while the storage is out of reach that count holds. Right tokens cost nothing, however many come at once.

    Refused attempts are entered into `audit`, those of one address at most once a minute, with how many they were.
    """

    def __init__(self, token: str, *, storage: LimitStorage, audit: AuditLog) -> None:
        self._token = _bytes(token)
        self._storage = storage
        self._audit = audit
        self.own_buckets = MemoryStorage()
        """Of this process alone."""
        self._lock = threading.Lock()
        self._refused = Coalescing(interval=_TOLD_EVERY)  # guarded by _lock

    def is_right(self, given: str, address: str | None) -> bool:
        """Whether `given`, which came from `address` (None: a Unix socket), is the token. Takes the same time for every wrong
        one. Raises `TooManyRequests` when the address has made too many wrong attempts."""
        charges = [Charge(_SCOPE, _key(address), FAILURES, 1)]
        self._look(charges, address)
        with self._lock:  # two that compare at once are counted before either knows
            counted = self.own_buckets.take(charges)
            is_right = counted.allowed and hmac.compare_digest(_bytes(given), self._token)
            if is_right:
                self.own_buckets.give_back(_refunds(charges))
        if not counted.allowed:
            self._refuse(counted, address)
        if not is_right:
            self._count(charges)
        return is_right

    def note(self, address: str | None) -> None:
        """Enter that an attempt from `address` was refused."""
        with self._lock:
            said = self._refused.add(_key(address), SYSTEM_CLOCK.seconds())
        self._tell(said)

    def tell(self) -> None:
        """Enter what has not been yet of the refused attempts of the last minute."""
        with self._lock:
            said = self._refused.leftovers(SYSTEM_CLOCK.seconds())
        self._tell(said)

    def _look(self, charges: Sequence[Charge], address: str | None) -> None:
        """Refuse what comes from an address that has no attempt left, whichever worker has counted them."""
        storage = view_of(self._storage, "local")
        try:
            if storage.take([charge._replace(cost=0) for charge in charges]).remaining >= 1:
                return
            taken = storage.take(charges)
            if taken.allowed:  # one has come back meanwhile
                storage.give_back(_refunds(charges))
                return
        except StorageUnavailable:
            return  # this process counts
        self._refuse(taken, address)

    def _count(self, charges: Sequence[Charge]) -> None:
        try:
            view_of(self._storage, "local").take(charges)
        except StorageUnavailable:
            return  # this process has counted

    def _refuse(self, decision: Decision, address: str | None) -> None:
        self.note(address)
        wait = seconds_rounded_up(decision.retry_after or 0.0)
        raise TooManyRequests(f"too many wrong tokens from this address: try again in {wait} s", retry_after=wait)

    def _tell(self, said: Iterable[Said]) -> None:
        for who, times, _ in said:
            self._audit.record(
                AuditEntry(
                    at=epoch_seconds(),
                    author=f"somebody ({who or 'several addresses'})",
                    action="token",
                    target="admin",
                    outcome="refused",
                    detail="1 attempt" if times == 1 else f"{times} attempts",
                )
            )


def _refunds(charges: Iterable[Charge]) -> list[Refund]:
    return [Refund(charge.scope, charge.subject, charge.limit, charge.cost) for charge in charges]


def _key(address: str | None) -> str:
    return client_key(address, None, 0)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # half of a pair is wrong, and no fault
