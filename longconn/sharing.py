"""Which workers are told of newcomers, and how they hand this on to each other.

The kernel would wake every worker for every connection: an epoll set within another, as each worker has one, escapes its
EPOLLEXCLUSIVE. So only two workers at a time *stand by*, the emptiest that react; the others have the listeners out of
their epoll sets. Each worker decides for itself, by the scoreboard. One that has had its share *calls* the next, through a
bell that all workers inherit, and stands back. In a storm, whoever finds more that wait than its own share calls all those
that have one too.

Nothing depends on a call being heard: every worker looks at the queue ten times a second, and one that was called and did
not come is not waited for.
"""

from __future__ import annotations

import os
import sys
import time
from typing import NamedTuple

from longconn import scoreboard
from longconn.core.balance import HEARD_NS, SHORT_NS, accept_quota, fill_level, is_among_emptiest

__all__ = ["Bells", "Sharing"]

PLACES = 2
"""How many stand by: a second one for when the first is in the middle of something."""
BELLS = 32
"""With more workers than bells some have one in common: they are called together."""


class Bells:
    """By which one worker wakes another. Made in the master, before it forks, and inherited by all workers.

    Each is an eventfd, or a pipe where there is none. All are closed on exec.
    """

    def __init__(self, count: int = BELLS) -> None:
        self._pairs = [_pair() for _ in range(count)]

    def descriptor(self, number: int) -> int:
        """Readable once bell `number` was rung, until it is silenced."""
        return self._pairs[number % len(self._pairs)][0]

    def ring(self, number: int) -> None:
        """Wake whoever watches `descriptor(number)`."""
        try:
            os.write(self._pairs[number % len(self._pairs)][1], _ONE)
        except BlockingIOError:
            return  # it has been rung often enough

    def silence(self, number: int) -> None:
        """Make `descriptor(number)` unreadable."""
        try:
            os.read(self.descriptor(number), 4096)
        except BlockingIOError:
            return

    def close(self) -> None:
        """Give the descriptors back."""
        for descriptor in {descriptor for pair in self._pairs for descriptor in pair}:
            os.close(descriptor)


class _Other(NamedTuple):
    """Another worker that accepts."""

    connections: int
    reacted_ns: int
    unheard_ns: int
    row: scoreboard.Row

    @property
    def rank(self) -> tuple[int, int]:
        return self.connections, self.row.number

    @property
    def reacts(self) -> bool:
        return self.reacted_ns <= SHORT_NS and self.unheard_ns <= HEARD_NS


class Sharing:
    """The part of one worker, whose row is `row`, among those of `board`."""

    def __init__(self, board: scoreboard.Scoreboard, row: scoreboard.Row, bells: Bells) -> None:
        self._board = board
        self._row = row
        self._bells = bells

    @property
    def bell(self) -> int:
        """The descriptor that is readable when this worker is called."""
        return self._bells.descriptor(self._row.number)

    def came(self) -> None:
        """Take note that this worker has come, called or not."""
        self._row.values[scoreboard.CALLED_NS] = 0

    def hush(self) -> None:
        """Silence the bell of this worker."""
        self._bells.silence(self._row.number)

    def quota(self, waiting: int, most: int) -> int:
        """How many of `waiting` connections this worker should take now, see `accept_quota`."""
        others = [other[:3] for other in self._others()]
        return accept_quota(self._row.values[scoreboard.CONNECTIONS], others, waiting=waiting, most=most)

    def call(self, waiting: int, *, beyond: int) -> None:
        """Call the workers that should take some of `waiting` connections, of which this one takes `beyond`; unless they
        have been called, or told by the kernel, already."""
        others = [other for other in self._others() if other.unheard_ns <= HEARD_NS]
        mine = self._row.values[scoreboard.CONNECTIONS]
        level = fill_level([mine, *(other.connections for other in others)], waiting)
        for other in sorted(others, key=_rank)[: waiting - beyond]:
            if other.connections <= level:
                self._call(other.row)

    def should_stand_by(self) -> bool:
        """Whether this worker is one of the two emptiest of those that react."""
        mine = self._row.values[scoreboard.CONNECTIONS], self._row.number
        return is_among_emptiest(mine, [other.rank for other in self._others() if other.reacts], PLACES)

    def stand_by(self) -> None:
        """Tell the others that the kernel tells this worker of newcomers."""
        self._row.values[scoreboard.STANDS_BY] = 1

    def stand_back(self, *, leaving: bool = False) -> bool:
        """See that two others stand by, and no longer do so oneself. False when that must wait since no emptier one stands
        by yet; with `leaving` it does not wait."""
        others = sorted((other for other in self._others() if other.reacts), key=_rank)
        standing = [other for other in others if other.row.values[scoreboard.STANDS_BY]]
        missing = PLACES - len(standing)
        for other in [other for other in others if other not in standing][: max(0, missing)]:
            self._call(other.row)
        mine = self._row.values[scoreboard.CONNECTIONS], self._row.number
        if leaving or (standing and standing[0].rank < mine):
            self._row.values[scoreboard.STANDS_BY] = 0
            return True
        return False

    def _call(self, row: scoreboard.Row) -> None:
        values = row.values
        if values[scoreboard.CALLED_NS] or (values[scoreboard.STANDS_BY] and values[scoreboard.TURN_NS]):
            return  # it is coming
        values[scoreboard.CALLED_NS] = time.monotonic_ns()
        self._bells.ring(row.number)

    def _others(self) -> list[_Other]:
        now = time.monotonic_ns()
        own = self._row.number
        others = []
        for row in self._board.rows():
            values = row.values
            if row.number != own and values[scoreboard.SLOT_STATE] == scoreboard.SERVING:
                since = values[scoreboard.TURN_NS] or values[scoreboard.CALLED_NS]
                others.append(
                    _Other(
                        values[scoreboard.CONNECTIONS],
                        now - since if since else 0,
                        now - values[scoreboard.HEARD_NS],
                        row,
                    )
                )
        return others


_ONE = (1).to_bytes(8, sys.byteorder)


def _rank(other: _Other) -> tuple[int, int]:
    return other.rank


def _pair() -> tuple[int, int]:
    """What to read from and what to write to; one descriptor is both where it can be."""
    if hasattr(os, "eventfd"):
        bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        return bell, bell
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    return reading, writing
