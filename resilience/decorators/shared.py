"""A circuit that several processes keep in a `StateStorage`.

There is one record for all. Where the storage spans hosts and more than one of them must find the backend ill (`quorum`), each
host has a record of its own beside it: a process that finds the backend ill opens the circuit of its host and votes in the
common one, which opens at `quorum` votes. For a process holds what the common record says unless that is closed; then what its
host's says, if that was made under the present generation of the common one.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Final, TypeVar

from resilience.core.breaker import (
    CLOSED,
    FORCED,
    HALF_OPEN,
    OPEN,
    BreakerPolicy,
    Circuit,
    Event,
    Outcome,
    Permit,
    Refusal,
    admit,
    expire,
    settle,
    trip,
    vote,
    withdraw,
)
from resilience.core.record import Record, decode, encode
from resilience.core.window import Totals, merged
from resilience.decorators.kept import ByHand, Granted, Identity, Tripped, View, Watched, moved_by_hand, opens
from resilience.errors import StorageBusy, StorageUnavailable
from resilience.ports import Following, StateStorage

__all__ = ["SharedCircuit"]

KEPT: Final = 86_400.0
"""Seconds for which the record of a circuit is kept after its last change and its last deadline."""
KEPT_FOR_EVER: Final = 10 * 365 * 86_400.0
"""Seconds for which the record of a circuit is kept that somebody has forced without an end."""

ENDLESS: Final = frozenset((Event.FORCE_OPEN, Event.FORCE_CLOSED, Event.DISABLE, Event.MEASURE))
"""What holds until something else is ordered."""

_ASKING: Final = Refusal(1.0)
_UNHEARD: Final = 100
"""Probes to be given back that are remembered while the storage is out of reach."""
_SAME: Final = 0.001
"""Seconds by which two times may differ that were worked out differently."""

T = TypeVar("T")


class SharedCircuit:
    """The circuit `name` in `storage`, as the processes of `host` see it. Safe to share between threads and greenlets.

    A circuit whose probes are given out by the storage is asked for one at a time: while a question is under way every other
    caller of the process is refused, and after a refusal until that is over or there is news.
    """

    def __init__(
        self,
        storage: StateStorage,
        name: str,
        host: str,
        policy: BreakerPolicy,
        seconds: Callable[[], float],
    ) -> None:
        self.storage = storage
        self._host = host
        self._common_name = f"circuit:{name}"
        self._host_name = f"circuit:{name}@{host}"
        self._window_name = f"window:{name}"
        self._seconds = seconds
        self._common = storage.follow(self._common_name)
        several = storage.spans_hosts and policy.quorum > 1
        self._own = storage.follow(self._host_name) if several else None
        self._asking = threading.Lock()
        self._refused_until = 0.0  # of the process's clock
        self._refused_at: tuple[int, int] | None = None  # the numbers when it was refused
        self._unheard: deque[Granted] = deque(maxlen=_UNHEARD)  # what may have been granted to who no longer listened
        self._reconciled_at: tuple[int, int] | None = None  # the numbers when the host's vote agreed with its record
        self._member = ""  # that has left what its window holds

    def look(self) -> tuple[Watched, View]:
        """The circuit as it is for this process, and what tells when that has changed."""
        heard, host_heard = self._numbers()  # before what they speak of
        view = self.view()
        # Where a cell is may have changed by reading: the file behind it was made anew, say.
        common, own = self._common, self._own
        if own is None:
            return Watched(common.cell, common.place, heard, (0,), 0, 0), view
        return Watched(common.cell, common.place, heard, own.cell, own.place, host_heard), view

    def view(self) -> View:
        """The circuit as it is for this process. The first time in a process it may take as long as the storage's timeout."""
        common, ahead = self._read(self._common)
        circuit = common.circuit
        if circuit.state != CLOSED or self._own is None:
            return View(circuit, ("common", 0, circuit.generation), ahead)
        record, ahead = self._read(self._own)
        own = _under(circuit.generation, record)
        # The votes of the others belong to the picture, and only the common record has them.
        return View(replace(own, votes=circuit.votes), ("host", circuit.generation, own.generation), ahead)

    def admit(self, policy: BreakerPolicy) -> Granted | Refusal:
        refused_for = self.refused_for()
        if refused_for > 0:
            return Refusal(refused_for)
        if not self._asking.acquire(blocking=False):
            return _ASKING
        try:
            numbers = self._numbers()
            try:
                answer = self._ask(policy)
            except StorageBusy:
                return _ASKING  # of somebody else
            if isinstance(answer, Refusal):
                self._refused_at, self._refused_until = numbers, self._seconds() + answer.retry_after
            return answer
        finally:
            self._asking.release()

    def refused_for(self) -> float:
        """Seconds for which whoever asks is refused without a question: somebody was, and there has been no news since. 0.0
        where it is to be asked."""
        remaining = self._refused_until - self._seconds()
        return remaining if remaining > 0 and self._refused_at == self._numbers() else 0.0

    def settle(self, policy: BreakerPolicy, leave: Granted, outcome: Outcome, chance: float, pause: float) -> bool:
        def settled(circuit: Circuit, now: float) -> tuple[Circuit, tuple[Circuit, Circuit]]:
            after = settle(circuit, policy, leave.permit, outcome, now, chance=chance, pause=pause)
            return after, (circuit, after)

        name, base = self._record_of(leave.identity)
        before, after = self._update(name, base, policy, settled)
        if name == self._host_name and after.generation != before.generation:
            if after.state == CLOSED:
                self._withdraw(policy)
            elif after.state == OPEN:
                self._vote(policy, base, after, chance, pause)
        return opens(before, after)

    def trip(
        self, policy: BreakerPolicy, identity: Identity, chance: float, pause: float, lasts: float | None = None
    ) -> Tripped:
        """Open the circuit if it still is what it was at `identity`: for its open time, or for as long as it `lasts`."""
        kind, base, generation = identity
        if kind == "own":  # what was seen before the circuit was shared is no news of this one
            return Tripped(opened=False, for_all=False)
        name, _ = self._record_of(identity)

        def tripped(circuit: Circuit, now: float) -> tuple[Circuit, tuple[Circuit, Circuit]]:
            after = trip(circuit, policy, generation, now, chance=chance, pause=pause, lasts=lasts)
            return after, (circuit, after)

        before, after = self._update(name, base, policy, tripped)
        if not opens(before, after) or kind == "common":
            return Tripped(opens(before, after), for_all=True)
        return Tripped(opened=True, for_all=self._vote(policy, base, after, chance, pause, lasts))

    def force(self, policy: BreakerPolicy, order: ByHand) -> None:
        self._force(policy, order, lambda _: True)

    def force_late(self, policy: BreakerPolicy, order: ByHand, left: Identity | None) -> None:
        """Move it as was ordered while the process was alone, if nobody has forced it since the process `left` it (None: it
        was never here). Who comes later than that has said otherwise to everybody."""
        left_at = None if left is None else left[1] if left[0] == "host" else left[2]
        self._force(policy, order, lambda circuit: circuit.generation == left_at or circuit.state not in FORCED)

    def _force(self, policy: BreakerPolicy, order: ByHand, holds: Callable[[Circuit], bool]) -> None:
        def forced(circuit: Circuit, now: float) -> tuple[Circuit, None]:
            present = expire(circuit, now)
            return (moved_by_hand(present, policy, order, now) if holds(present) else circuit), None

        keep = KEPT + (order.expires_in or 0.0)
        if order.event in ENDLESS and order.expires_in is None:
            keep = KEPT_FOR_EVER
        self._update(self._common_name, 0, policy, forced, repairs=True, keep=keep)

    def exchange(self, identity: Identity, member: str, totals: Totals, *, keep: float) -> Totals:
        """Leave for `keep` seconds what the window of `member`, a process of this host, holds. Returns what those of others
        hold that count the same stretch of the circuit's life: of all hosts, or where each opens for itself, of this one.
        """
        self._member = member
        now = " ".join(map(str, identity))
        left = self.storage.exchange(
            self._window_name, f"{self._host}/{member}", f"{now} {' '.join(map(str, totals))}".encode(), keep=keep
        )
        return merged(
            _totals_of(text, now)
            for name, text in left.items()
            if name != f"{self._host}/{member}" and (self._own is None or name.startswith(f"{self._host}/"))
        )

    def probe(self) -> None:
        """Return if the storage takes changes. Raises `StorageUnavailable` otherwise."""
        self.view()
        self.storage.update(self._common_name, lambda text, _: (text, None), keep=KEPT)

    def catch_up(self, policy: BreakerPolicy) -> None:
        """Make good what was broken off half-way: give back the probes that were granted to who had left, and let the vote of
        this host agree with its record. Raises `StorageUnavailable`."""
        while self._unheard:
            leave = self._unheard[0]
            self.settle(policy, leave, Outcome.IGNORED, 0.0, 0.0)
            with contextlib.suppress(ValueError):  # there was one more, and no room for it
                self._unheard.remove(leave)
        numbers = self._numbers()
        if self._own is not None and numbers != self._reconciled_at:
            self._reconcile(policy, self._own)
            self._reconciled_at = numbers

    def close(self) -> None:
        """Stop following."""
        if self._member:
            with contextlib.suppress(StorageUnavailable):
                self.storage.exchange(self._window_name, f"{self._host}/{self._member}", b"", keep=1.0)
        self._common.close()
        if self._own is not None:
            self._own.close()

    def after_fork(self) -> None:
        """Whoever was asking stayed in the parent."""
        self._asking = threading.Lock()
        self._unheard.clear()
        self._member = ""

    def _ask(self, policy: BreakerPolicy) -> Granted | Refusal:
        identity = self.view().identity
        name, base = self._record_of(identity)
        last: Permit | Refusal | None = None

        def admitted(circuit: Circuit, now: float) -> tuple[Circuit, Permit | Refusal]:
            nonlocal last
            after, last = admit(circuit, policy, now)
            return after, last

        try:
            answer = self._update(name, base, policy, admitted)
        except StorageBusy:
            raise  # nothing was changed
        except BaseException:
            # Whoever leaves now, or has waited long enough, may have been given leave nevertheless.
            if isinstance(last, Permit) and last.number:
                self._unheard.append(Granted(last, identity))
            raise
        return answer if isinstance(answer, Refusal) else Granted(answer, identity)

    def _reconcile(self, policy: BreakerPolicy, own: Following) -> None:
        """Vote, or withdraw the vote of this host, where that was to follow a move of its record and did not."""
        common, _ = self._read(self._common)
        circuit = common.circuit
        if circuit.state != CLOSED:
            return
        record, ahead = self._read(own)
        if self._agrees(policy, circuit, record, self._seconds() + ahead):
            return
        # What is known of the two need not be of one moment.
        text, now = self.storage.read(self._host_name)
        record = _decoded(text)
        if self._agrees(policy, circuit, record, now):
            return
        if _under(circuit.generation, record).state == OPEN:
            self._vote(policy, circuit.generation, record.circuit, 0.0, 0.0)
        else:
            self._withdraw(policy)

    def _agrees(self, policy: BreakerPolicy, circuit: Circuit, record: Record, now: float) -> bool:
        """Whether the votes in the common `circuit` tell of this host what its record does."""
        own = _under(circuit.generation, record)
        voted_until = max((each.expires for each in circuit.votes if each.voter == self._host), default=None)
        if own.state == OPEN and own.until is not None:
            wanted = own.until + policy.probe_lease
            return wanted <= now or (voted_until is not None and voted_until > wanted - _SAME)
        return own.state == HALF_OPEN or voted_until is None

    def _vote(
        self,
        policy: BreakerPolicy,
        base: int,
        own: Circuit,
        chance: float,
        pause: float,
        lasts: float | None = None,
    ) -> bool:
        """Whether the circuit is open for all now."""

        def voted(circuit: Circuit, now: float) -> tuple[Circuit, bool]:
            # For as long as this host leaves the backend alone, and until a probe has told.
            keep = max(0.0, (own.until or now) + policy.probe_lease - now)
            after = vote(circuit, policy, self._host, base, keep, now, chance=chance, pause=pause, lasts=lasts)
            return after, opens(circuit, after)

        return self._update(self._common_name, 0, policy, voted)

    def _withdraw(self, policy: BreakerPolicy) -> None:
        self._update(self._common_name, 0, policy, lambda circuit, _: (withdraw(circuit, self._host), None))

    def _record_of(self, identity: Identity) -> tuple[str, int]:
        kind, base, _ = identity
        return (self._host_name, base) if kind == "host" else (self._common_name, 0)

    def _update(
        self,
        name: str,
        base: int,
        policy: BreakerPolicy,
        change: Callable[[Circuit, float], tuple[Circuit, T]],
        *,
        repairs: bool = False,
        keep: float = KEPT,
    ) -> T:
        """Change the circuit in the record `name`, which is void if it was made under another generation than `base`."""
        longest = policy.open_time_cap + policy.probe_lease

        def changed(text: bytes | None, now: float) -> tuple[bytes | None, T]:
            record = _repaired(text) if repairs else _decoded(text)
            circuit = _under(base, record)
            after, answer = change(circuit, now)
            return (text if after is circuit else encode(Record(after, base))), answer

        return self.storage.update(name, changed, keep=keep + longest)

    def _numbers(self) -> tuple[int, int]:
        common, own = self._common, self._own
        return common.cell[common.place], 0 if own is None else own.cell[own.place]

    def _read(self, following: Following) -> tuple[Record, float]:
        text, now = following.read()
        ahead = now - self._seconds()
        record = _decoded(text)
        return Record(expire(record.circuit, now), record.base), ahead


def _under(base: int, record: Record) -> Circuit:
    """The circuit of a record, which is void if it was made under another generation of the common one: then a new one."""
    return record.circuit if record.base == base else Circuit(generation=record.circuit.generation + 1)


def _totals_of(text: bytes, now: str) -> Totals:
    """What a process has left, if it is about the present."""
    about, _, numbers = text.decode(errors="replace").partition(f"{now} ")
    if about:
        return Totals()
    try:
        calls, failed, slow, slow_failed = map(int, numbers.split())
    except ValueError:  # of software that writes it otherwise
        return Totals()
    return Totals(calls, failed, slow, slow_failed)


def _decoded(text: bytes | None) -> Record:
    try:
        return decode(text)
    except ValueError as error:
        raise StorageUnavailable(f"{error}: reset the circuit to write it anew") from error


def _repaired(text: bytes | None) -> Record:
    try:
        return decode(text)
    except ValueError:
        return Record(Circuit())
