"""All deadlines of a worker in one hashed timing wheel.

Source of the algorithm: Varghese and Lauck, "Hashed and Hierarchical Timing Wheels" (1987), scheme 6: an entry stands in
the slot of its deadline, modulo the number of slots, whatever the round. Two things are added:

- Lazy moving: an entry whose deadline moves later stays where it is until its slot comes up, and only then moves on. A
  connection that is used again and again costs two stores per use and no list work.
- Lists that run through the entries themselves, with one fixed entry at the head of each slot: linking and unlinking is
  four stores, without a branch and without a container per entry.

Deadlines are whole ticks of `resolution` seconds of the clock that the caller reads, counted from that clock's zero.
"""

from __future__ import annotations

from math import ceil
from operator import attrgetter
from typing import Any

__all__ = ["Entry", "TimingWheel"]


class Entry:
    """Something with a deadline; derive from it.

    `deadline` is the tick at which it is due; `slot`, `previous` and `next` belong to the wheel. A deriving class either
    calls `super().__init__()` or sets `slot = -1`, `previous = None` and `next = None` itself (`deadline` may stay unset
    until the first `schedule`). One entry is in one wheel at most.
    """

    __slots__ = ("deadline", "next", "previous", "slot")

    deadline: int
    """The tick at which it is due: set by `TimingWheel.schedule`, to be read by anyone."""
    slot: int
    """The tick at which the wheel looks at it next for certain, -1 while it is in no wheel."""
    previous: Entry | None
    next: Entry | None

    def __init__(self) -> None:
        self.deadline = 0
        self.slot = -1
        self.previous = None
        self.next = None


_deadline = attrgetter("deadline")


class TimingWheel:
    """Entries by deadline. `now` is in seconds of a monotonic clock, from 0.

    `resolution` is the length of a tick in seconds: an entry is late by at most that much plus the time between two
    calls of `advance`. `slots` is a power of two; deadlines beyond `slots * resolution` seconds are fine, they are looked
    at once per round. Raises `ValueError` when a value is out of range.
    """

    __slots__ = ("_count", "_heads", "_mask", "_overdue", "now_tick", "resolution")

    now_tick: int
    """The tick that `advance` has reached: the whole ticks of the clock at its last call."""
    resolution: float
    """Seconds in a tick."""

    def __init__(self, now: float, *, resolution: float = 0.1, slots: int = 1024) -> None:
        if not resolution > 0:
            raise ValueError(f"resolution={resolution!r}: a tick takes seconds above 0")
        if slots < 1 or slots & (slots - 1):
            raise ValueError(f"slots={slots!r}: a wheel takes a power of two")
        if not now >= 0:
            raise ValueError(f"now={now!r}: a wheel takes the seconds of a monotonic clock, from 0")
        self.resolution = resolution
        self.now_tick = self._reached(now)
        self._mask = slots - 1
        self._heads = [_head() for _ in range(slots)]
        self._count = 0
        # Set when something was scheduled at or before `now_tick`: its slot is behind and must be looked at again.
        self._overdue = False

    def __len__(self) -> int:
        """Entries in the wheel."""
        return self._count

    def tick(self, moment: float) -> int:
        """The first tick that does not begin before `moment` (seconds of the clock): an entry never fires early."""
        tick = self._reached(moment)
        return tick if tick * self.resolution >= moment else tick + 1

    def ticks(self, seconds: float) -> int:
        """What to add to `now_tick` for a deadline at least `seconds` after the last `advance`.

        One more than the length, because `now_tick` is rounded down. Saves the reading of a clock per deadline.
        """
        return ceil(seconds / self.resolution) + 1

    def schedule(self, entry: Entry, tick: int) -> None:
        """Give `entry` the deadline `tick`, whether it is in the wheel or not. A tick that has passed is due at once."""
        head = self._heads[tick & self._mask]
        # Entries of one tick share one number object, the head of its slot keeping it: a fifth of what else an entry costs.
        if head.deadline == tick:
            tick = head.deadline
        else:
            head.deadline = tick
        entry.deadline = tick
        slot = entry.slot
        if slot >= 0:
            if slot <= tick:
                return
            before: Any = entry.previous
            after: Any = entry.next
            before.next = after
            after.previous = before
        else:
            self._count += 1
        if tick <= self.now_tick:
            tick = self.now_tick
            self._overdue = True
            head = self._heads[tick & self._mask]
        entry.slot = tick
        last: Any = head.previous
        entry.previous = last
        entry.next = head
        last.next = head.previous = entry

    def cancel(self, entry: Entry) -> None:
        """Take `entry` out; nothing when it is in no wheel. Afterwards nothing in the wheel refers to it."""
        if entry.slot < 0:
            return
        before: Any = entry.previous
        after: Any = entry.next
        before.next = after
        after.previous = before
        entry.previous = entry.next = None
        entry.slot = -1
        self._count -= 1

    def advance(self, now: float) -> list[Entry]:
        """Take out all entries whose deadline has passed at `now` (seconds), in order of deadline.

        To be called about once a tick. A clock that stands still or goes back lets nothing pass; after a jump ahead, of
        whatever length, every slot is looked at once. Whoever handles an entry of the answer may cancel or schedule any
        other; cancelling one that is further down the same answer comes too late to take it out of the list.
        """
        first = self.now_tick if self._overdue else self.now_tick + 1
        reached = max(self._reached(now), self.now_tick)
        if reached < first:
            return []
        self._overdue = False
        self.now_tick = reached
        due: list[Entry] = []
        for tick in range(first, min(reached, first + self._mask) + 1):
            head = self._heads[tick & self._mask]
            if head.next is not head:
                self._sweep(head, reached, due)
        due.sort(key=_deadline)
        return due

    def _sweep(self, head: Entry, reached: int, due: list[Entry]) -> None:
        entry: Any = head.next
        while entry is not head:
            following = entry.next
            if entry.deadline <= reached:
                self.cancel(entry)
                due.append(entry)
            elif entry.deadline != entry.slot:
                # It was moved later while it stood here. Cannot come by again in this loop with a different slot.
                self.cancel(entry)
                self.schedule(entry, entry.deadline)
            entry = following

    def _reached(self, now: float) -> int:
        """The last tick that has begun at `now`. A tick begins at `tick * resolution`, as floats multiply."""
        tick = int(now / self.resolution)
        # The division may round to the wrong side of that moment.
        if tick * self.resolution > now:
            return tick - 1
        if (tick + 1) * self.resolution <= now:
            return tick + 1
        return tick


def _head() -> Entry:
    head = Entry()
    head.previous = head.next = head
    return head
