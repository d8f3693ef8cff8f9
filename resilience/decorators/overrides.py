"""Limits that an operator puts in place of others for a time, in every process that shares a storage of state."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from itertools import count
from typing import Any, Final

from resilience.clock import SYSTEM_CLOCK, epoch_seconds
from resilience.core.events import LimitOverridden
from resilience.core.overrides import (
    LONGEST_OVERRIDE,
    Override,
    checked_override,
    decode,
    encode,
    listed,
    with_listed,
    without_listed,
)
from resilience.decorators.limiter import RateLimiter
from resilience.decorators.policy import Policy
from resilience.errors import StorageUnavailable
from resilience.events import PROCESS_EVENTS
from resilience.ports import Clock, Following, StateStorage
from resilience.storage.wrapping import Attendant, forget_after_fork

__all__ = ["Overrides"]

LOOKED_AT: Final = 0.2
"""Seconds between two looks at what others have ordered."""

_LIST: Final = "limits"
_MARGIN: Final = 60.0
"""Seconds that a record outlives what it says: whoever reads it late is to know that its time is over."""

_LOG = logging.getLogger(__name__)


class _Standing:
    """An override that stands: as it is kept, until when by this process's clock, and what the policies that were told of it
    apply (None: they cannot)."""

    __slots__ = ("kept", "told", "until")

    def __init__(self, kept: Override, until: float) -> None:
        self.kept = kept
        self.until = until
        self.told: weakref.WeakKeyDictionary[Policy, Override | None] = weakref.WeakKeyDictionary()


class Overrides:
    """Overrides of rate limits, by the limiters' names, in every process that shares `storage`.

    An override stands as long as it was ordered for, or until it is ordered away; processes that come later adopt it, for it
    is in the storage. The others hear of it within a quarter of a second. Calls pay nothing for that: a thread of this object
    looks at one number a few times a second, once `awaken` has been called in the process. Without the storage what stands
    goes on until its time is over, and nothing can be ordered.

    `limiters` finds the limiters of a name in this process; it is asked often. Safe to share between threads and greenlets.
    """

    def __init__(
        self, storage: StateStorage, limiters: Callable[[str], Iterable[RateLimiter]], *, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._storage = storage
        self._limiters = limiters
        self._clock = clock
        # With a storage of this process's own there is nobody to hear from.
        self._is_shared = not storage.uri.startswith("memory:")
        self._closed = False
        self._looks = count(1)
        self._standing: dict[str, _Standing] = {}  # guarded by _lock
        self._begin_anew()
        forget_after_fork(self)

    def _begin_anew(self) -> None:
        self._lock = threading.Lock()
        self._awake_in: int | None = None  # guarded by _lock
        self._following: Following | None = None
        self._heard: int | None = None
        self._looked = 0  # guarded by _lock; the latest look whose findings hold
        self._attendant: Attendant | None = None

    def after_fork(self) -> None:
        """The child goes on with what stands, and looks for itself once it is awake."""
        self._begin_anew()

    # -- orders --------------------------------------------------------------------------------------------------------

    def override(
        self, name: str, limits: str, *, expires_in: float, burst: int | None = None, reason: str = "", author: str = ""
    ) -> Override:
        """Let `limits` hold in place of those of the limiter `name`, everywhere: see `RateLimiter.override`.

        Raises `ValueError` when no limiter here has that name or these cannot be its limits, and `StorageUnavailable`; then
        it may hold nevertheless.
        """
        order = checked_override(limits, burst=burst, expires_in=expires_in, now=0.0, reason=reason, author=author)
        found = list(self._limiters(name))
        if not found:
            raise ValueError(f"no rate limiter is named {name!r}")
        for limiter in found:
            for policy in limiter.policies:
                policy.terms_of(limits, burst)  # complains

        def keep_order(_: bytes | None, now: float) -> tuple[bytes, Override]:
            kept = order._replace(until=now + order.until)
            return encode(kept), kept

        kept = self._storage.update(_record(name), keep_order, keep=expires_in + _MARGIN)

        def list_it(text: bytes | None, now: float) -> tuple[bytes, None]:
            return with_listed(text, name, kept.until, now), None

        self._storage.update(_LIST, list_it, keep=LONGEST_OVERRIDE + _MARGIN)
        self.look()
        self.awaken()
        return kept

    def restore(self, name: str, *, reason: str = "", author: str = "") -> bool:
        """Let the own limits of the limiter `name` hold again, everywhere. Whether others did. Raises `StorageUnavailable`."""

        def take_off(text: bytes | None, now: float) -> tuple[bytes | None, bool]:
            rest = without_listed(text, name, now)
            return rest, rest is not text

        stood = self._storage.update(_LIST, take_off, keep=LONGEST_OVERRIDE + _MARGIN)
        if stood:
            # The record is left to run out: it may be that of an override which somebody orders at this very moment.
            self._look({name: (reason, author)})
        for limiter in self._limiters(name):  # what was ordered of this process alone is over, too
            stood = limiter.restore(reason=reason, author=author) or stood
        return stood

    # -- what stands ---------------------------------------------------------------------------------------------------

    def overridden(self, name: str) -> dict[str, Any] | None:
        """What holds in place of the limits of the limiter `name` now, as JSON takes it; None: its own do."""
        for limiter in self._limiters(name):
            for policy in limiter.policies:
                override = policy.override
                if override is not None:
                    return {
                        "limits": override.limits,
                        "burst": override.burst,
                        "expires_in": round(max(0.0, override.until - policy.clock.seconds()), 3),
                        "reason": override.reason,
                        "author": override.author,
                        "replaces": list(policy.written_limits(own=True)),
                    }
        return None

    @property
    def is_awake(self) -> bool:
        """Whether there is nothing to do for `awaken`: this process looks already, or nobody could have anything to tell."""
        return self._awake_in == os.getpid() or self._closed or not (self._is_shared or self._standing)

    def awaken(self) -> None:
        """Look at what others order from now on, in this process. Does nothing where it does so already."""
        if self.is_awake:
            return
        with self._lock:
            if self._awake_in == os.getpid():
                return
            self._awake_in = os.getpid()
        self._following = self._storage.follow(_LIST)
        if not self._storage.spans_hosts:  # memory: there is nothing to wait for
            with suppress(StorageUnavailable):
                self.look()
        self._attendant = Attendant(self, pause=0.0, name="seawall-overrides")
        if not self._attendant.start():
            self.left(self._attendant)

    def close(self) -> None:
        """Look no longer. What stands in this process goes on until its time is over."""
        self._closed = True
        if self._attendant is not None:
            self._attendant.dismiss()
        following, self._following = self._following, None
        if following is not None:
            following.close()

    def look(self) -> None:
        """Apply what stands now. Raises `StorageUnavailable`; then what stood goes on."""
        self._look({})

    def _look(self, said: Mapping[str, tuple[str, str]]) -> None:
        """As `look`. `said` is why, and by whom, what has stood until now is ended."""
        following = self._following
        heard = (
            None if following is None else following.cell[following.place]
        )  # before it is read: what is newer comes again
        number = next(self._looks)
        text, now = self._storage.read(_LIST)
        here = self._clock.seconds()
        found: dict[str, _Standing] = {}
        for name in _listed(text, now):
            order, now = self._storage.read(_record(name))
            kept = _decoded(name, order)
            if kept is not None and kept.until > now:
                found[name] = _Standing(kept, here + kept.until - now)
        with self._lock:
            if number < self._looked:
                return  # somebody has seen more
            self._looked, self._heard = number, heard
            changed = [*self._let_stand(found), *self._tell_policies()]
        self._emit(changed, said)

    def _let_stand(self, found: dict[str, _Standing]) -> list[tuple[str, _Standing | None]]:
        """Requires the lock. Returns what has begun and ended."""
        before = self._standing
        same = {name: before[name] for name in found if name in before and before[name].kept == found[name].kept}
        self._standing = {**found, **same}
        ended = before.keys() - found.keys()
        for name in ended:
            _release(before[name])
        return [
            *((name, standing) for name, standing in found.items() if name not in same),
            *((name, None) for name in sorted(ended)),
        ]

    def _tell_policies(self) -> list[tuple[str, _Standing | None]]:
        """Requires the lock. Every policy that there is by now gets what stands for it. Returns what has ended by itself."""
        here = self._clock.seconds()
        over = [name for name, standing in self._standing.items() if standing.until <= here]
        for name in over:
            _release(self._standing.pop(name))
        for name, standing in self._standing.items():
            for limiter in self._limiters(name):
                for policy in limiter.policies:
                    _tell(policy, standing, standing.until - here)
        return [(name, None) for name in over]

    def _emit(self, changed: Iterable[tuple[str, _Standing | None]], said: Mapping[str, tuple[str, str]]) -> None:
        for name, standing in changed:
            if standing is None:
                reason, author = said.get(name, ("", ""))
                event = LimitOverridden(policy=name, at=epoch_seconds(), limits=None, reason=reason, author=author)
            else:
                kept = standing.kept
                left = round(max(0.0, standing.until - self._clock.seconds()), 3)
                event = LimitOverridden(
                    policy=name,
                    at=epoch_seconds(),
                    limits=kept.limits,
                    reason=kept.reason,
                    author=kept.author,
                    expires_in=left,
                )
            PROCESS_EVENTS.emit(event)

    # -- the thread that looks -----------------------------------------------------------------------------------------

    def attend(self, attendant: Attendant) -> float | None:
        """Look whether there are news, and whether anything is over."""
        following = self._following
        if attendant is not self._attendant or self._closed or following is None:
            return None
        if following.cell[following.place] != self._heard:
            with suppress(StorageUnavailable):
                self.look()
        with self._lock:
            over = self._tell_policies()
            is_done = not (self._is_shared or self._standing)
            if is_done:
                self._awake_in = None
        self._emit(over, {})
        return None if is_done else LOOKED_AT

    def left(self, attendant: Attendant) -> None:
        """Nobody looks any more: the next `awaken` does."""
        with self._lock:
            if attendant is self._attendant:
                self._awake_in = None


def _record(name: str) -> str:
    return f"limit:{name}"


def _listed(text: bytes | None, now: float) -> Iterable[str]:
    try:
        return listed(text, now)
    except ValueError as error:
        _LOG.warning("overrides of rate limits are not applied: %s", error)
        return ()


def _decoded(name: str, text: bytes | None) -> Override | None:
    try:
        return None if text is None else decode(text)
    except ValueError as error:
        _LOG.warning("the override of rate limit %r is not applied: %s", name, error)
        return None


def _tell(policy: Policy, standing: _Standing, expires_in: float) -> None:
    """Let the policy apply what stands, unless it does."""
    if policy in standing.told and ((told := standing.told[policy]) is None or policy.override is told):
        return
    mine: Override | None = standing.kept._replace(until=policy.clock.seconds() + expires_in)
    try:
        policy.replace_limits(mine)
    except ValueError as error:
        _LOG.warning("the override of rate limit %r is not applied: %s", policy.name, error)
        policy.replace_limits(mine := None)
    standing.told[policy] = mine


def _release(standing: _Standing) -> None:
    """Let the policies that apply it go back to their own limits."""
    for policy, told in list(standing.told.items()):
        if told is not None and policy.override is told:
            policy.replace_limits(None)
