"""`shm://`: buckets of all processes of one machine, in memory that they share. No server."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from typing import Final

from resilience.clock import SYSTEM_CLOCK
from resilience.core.limiter import Charge, Decision, Limit, Refund, advance, give_back
from resilience.ports import Clock, Taker
from resilience.storage.mutex import NOT_TAKEN, Handle, Locks, Stripes, best_locks
from resilience.storage.segment import LAYOUT, Segment, attach
from resilience.storage.shared_file import Addresses
from resilience.storage.table import KEY_SIZE, PLACES, Table

__all__ = ["DEFAULT_BUCKETS", "SharedMemoryStorage"]

_LOG = logging.getLogger(__name__)

DEFAULT_BUCKETS: Final = 65_536
"""5.5 MB: fits the 64 MB that a container has in /dev/shm."""

_ADDRESSES: Final = Addresses(default="limits", ending=str(LAYOUT), option="buckets", most=2**24)
_LOOK_EVERY: Final = 1_000_000  # microseconds

# In each process, where buckets are is remembered for so many callers: to work it out takes as long as half a decision.
_REMEMBERED: Final = 8_192
_LONGEST_REMEMBERED: Final = 256

_Numbers = tuple[Limit, int, int, int]
"""A `Quota` in plain."""

_Home = tuple[Handle, int, bytes]
"""Where a bucket lives: the lock of its row, where the row begins, its key."""

# A named tuple's own constructor takes twice as long as the tuple's.
_new = tuple.__new__


class SharedMemoryStorage:
    """Buckets in a file of shared memory, exact over all processes of a machine that name the same one.

    `uri` is `shm://` or `shm://name` (a file of this user in /dev/shm), or `shm:///absolute/path` (on a tmpfs if it can
    be, never on a network's file system). `?buckets=N` says how many it holds: 65,536 by default, up to 16,777,216,
    84 bytes each, reserved when the file is made; one that exists keeps its size. `clock` must be the same for all.
    Raises `ValueError` with the reason for any other address.

    The file is opened, or made, by the first decision. `StorageUnavailable` says why it cannot be, and what to do.
    `StorageBusy` says that a process which stands still (stopped by a signal, say) holds the lock of the bucket, which is
    one of 64: after 5 ms at most, and at once for those who ask next. It says so after a second where the
    holder runs but the machine has too much to do, where it cannot be seen because it is of another container, and to a
    signal handler that asks in the middle of a decision. A process that is killed, at any instant, leaves every bucket
    whole and every lock free.

    A bucket lives in one of 16 places, chosen by its key. Where all of these are taken, the bucket nearest to full makes
    room: a flood of keys displaces itself, not those who have used up their limit. With half as many buckets as there is
    room for, that happens to one in 1,250.

    The file outlives its users, so that a restart forgets nobody; after a boot of the machine it starts empty. One that
    is removed is made again within a second.
    """

    def __init__(self, uri: str = "shm://", *, clock: Clock = SYSTEM_CLOCK, _kind: type[Locks] | None = None) -> None:
        self.uri = uri
        self.path, self._buckets = _ADDRESSES.parse(uri)
        self._now = clock.microseconds
        self._kind = _kind or best_locks()
        self._opened: _Opened | None = None
        self._look_at = 0

    def __len__(self) -> int:
        return len((self._opened or self._open()).table)

    def __repr__(self) -> str:
        return f"<SharedMemoryStorage: {self.path}>"

    def take(self, charges: Sequence[Charge]) -> Decision:
        """Take every charge or none."""
        if len(charges) == 1:
            scope, subject, limit, cost, floor, _ = charges[0]
            return self._take_one(scope, subject, limit, cost, floor)
        opened = self._opened or self._open()
        homes = [opened.home(charge.scope, charge.subject) for charge in charges]
        if len({key for _, _, key in homes}) != len(homes):
            raise ValueError("two charges of one decision name the same bucket: add their costs instead")
        stripes, table, locks = opened.stripes, opened.table, opened.locks_of(homes)
        stripes.take_all(locks)
        try:
            now = self._now()
            decision = _decide(table, charges, homes, now)
            stripes.leave_all(locks)
        except BaseException:
            stripes.abandon(locks)
            raise
        if now >= self._look_at:
            self._look_after(now)
        return decision

    def taker(self, scope: str, limit: Limit, floor: int = 0, lease: int = 0) -> Taker:  # noqa: ARG002
        """What decides one charge, given the subject and the cost."""
        take_one = self._take_one

        def take(subject: str, cost: int) -> Decision:
            return take_one(scope, subject, limit, cost, floor)

        return take

    def _take_one(self, scope: str, subject: str, limit: Limit, cost: int, floor: int) -> Decision:
        """`decide` for a single charge without its lists: this is the path of nearly every request."""
        opened = self._opened or self._open()
        lock, row, key = opened.homes[scope].get(subject) or opened.home(scope, subject)
        stripes, table = opened.stripes, opened.table
        spent = cost * limit.unit
        held = None
        try:
            held = stripes.try_lock(lock)
            if held:
                held = stripes.insist(lock, held)
            now = self._now()
            allowed, level = table.spend(row, key, limit, spent, floor, now)
            stripes.unlock(lock)
        except BaseException:
            if held not in NOT_TAKEN:
                stripes.abandon((lock,))
            raise
        if now >= self._look_at:
            self._look_after(now)
        return _new(Decision, (allowed, ((limit, level, cost, floor),)))  # a Quota when it is read

    def give_back(self, refunds: Sequence[Refund]) -> None:
        """Give tokens back, or fill buckets: all, or none when it raises."""
        opened = self._opened or self._open()
        homes = [opened.home(refund.scope, refund.subject) for refund in refunds]
        stripes, table, locks = opened.stripes, opened.table, opened.locks_of(homes)
        stripes.take_all(locks)
        try:
            now = self._now()
            for refund, (_, row, key) in zip(refunds, homes, strict=True):
                place = table.find(row, key)
                bucket = give_back(refund, table.read(row, place), now)
                if bucket is None:
                    table.clear(row, place)
                else:
                    table.write(row, place, key, refund.limit, bucket.level, bucket.stamp)
            stripes.leave_all(locks)
        except BaseException:
            stripes.abandon(locks)
            raise

    def close(self) -> None:
        """Let go of the memory. The file stays, and so does what it holds; the next decision opens it again."""
        self._opened = None

    def _open(self) -> _Opened:
        asked = self._buckets or DEFAULT_BUCKETS
        segment = attach(self.path, places=asked, kind=self._kind)
        there = segment.rows * PLACES
        if self._buckets and there != -(-asked // PLACES) * PLACES:
            _LOG.warning(
                "%s: the file holds %d buckets already, not %d: to change that, stop its users and remove %s",
                self.uri,
                there,
                asked,
                self.path,
            )
        self._look_at = self._now() + _LOOK_EVERY
        self._opened = opened = _Opened(segment, self.uri)
        return opened

    def _look_after(self, now: int) -> None:
        """Once a second: a file that was removed is shared only with those who have it open still."""
        opened = self._opened
        self._look_at = now + _LOOK_EVERY
        if opened is None:
            return
        try:
            status = self.path.lstat()
        except OSError:
            status = None
        if status is None or (status.st_dev, status.st_ino) != opened.identity:
            self._opened = None


def _decide(table: Table, charges: Sequence[Charge], homes: Sequence[_Home], now: int) -> Decision:
    """`core.limiter.decide` for buckets in a table, without its lists. The caller has the locks of all the rows."""
    allowed = True
    quotas: list[_Numbers] = []
    stamps: list[int] = []
    early: list[int] = []  # those for which the clock went backwards
    for index, ((_, _, limit, cost, floor, _), (_, row, key)) in enumerate(zip(charges, homes, strict=True)):
        bucket = table.read(row, table.find(row, key))
        if bucket is not None and bucket[1] > now:
            early.append(index)
        level, stamp = advance(limit, bucket, now)
        spent = cost * limit.unit
        if spent and (level - spent < floor or spent > limit.capacity):
            allowed = False
        quotas.append((limit, level, cost, floor))
        stamps.append(stamp)
    if allowed:
        for index, (_, row, key) in enumerate(homes):
            limit, level, cost, floor = quotas[index]
            if cost:
                level -= cost * limit.unit
                quotas[index] = (limit, level, cost, floor)
                # Found again for each: to make room for the one before may have displaced this one.
                table.write(row, table.find(row, key), key, limit, level, stamps[index])
    else:
        for index in early:
            limit, level, _, _ = quotas[index]
            _, row, key = homes[index]
            table.write(row, table.find(row, key), key, limit, level, now)
    return _new(Decision, (allowed, tuple(quotas)))


class _Opened:
    """An open file, and where in it the buckets are that this process asked for last."""

    __slots__ = ("_memory", "_remembered", "_secret", "homes", "identity", "stripes", "table")

    def __init__(self, segment: Segment, title: str) -> None:
        self._memory = segment.memory  # whose end would be the end of the locks' addresses
        self._secret = segment.secret
        self._remembered = 0
        self.identity = segment.identity
        self.table = Table(segment.memory, segment.start, segment.rows)
        self.stripes = Stripes(segment.locks, title)
        self.homes = _Homes()

    def home(self, scope: str, subject: str) -> _Home:
        """Where the bucket of `subject` under `scope` lives."""
        known = self.homes[scope].get(subject)
        if known is not None:
            return known
        # With the file's own secret: nobody outside can work out which names meet in one row, and crowd somebody out.
        name = f"{len(scope)}:{scope}{subject}".encode("utf-8", "surrogatepass")
        key = hashlib.blake2b(name, digest_size=KEY_SIZE, salt=self._secret).digest()
        number, row = self.table.row_of(key)
        handles = self.stripes.handles
        home = (handles[number % len(handles)], row, key)
        if len(subject) <= _LONGEST_REMEMBERED:
            self._remember(scope, subject, home)
        return home

    def _remember(self, scope: str, subject: str, home: _Home) -> None:
        self._remembered += 1
        if self._remembered > _REMEMBERED:
            self._remembered = 1
            self.homes = _Homes()
        self.homes[scope][subject] = home

    def locks_of(self, homes: Sequence[_Home]) -> Sequence[Handle]:
        """The locks of these homes, each once, in the order in which everybody takes them."""
        handles = self.stripes.handles
        return [handles[stripe] for stripe in sorted({self.table.number_of(row) % len(handles) for _, row, _ in homes})]


class _Homes(dict[str, dict[str, _Home]]):
    """By scope and subject."""

    def __missing__(self, scope: str) -> dict[str, _Home]:
        return self.setdefault(scope, {})
