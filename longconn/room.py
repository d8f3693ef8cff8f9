"""The places that a listener's connections have, and who gives up one when all are taken."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

from longconn import reasons, scoreboard
from longconn.core.admission import victims
from longconn.core.states import State
from longconn.errors import ConnectionRefused
from longconn.parking.connection import HELD, Connection
from longconn.parking.lot import Lot

__all__ = ["Room"]

EVICTED_SHARE = 100
SPARE_VICTIMS = 8
"""So many more are looked at than are to go: some of them may just have sent something."""
PATIENCE = 1.0
"""For how long newcomers wait in the kernel's queue, in seconds, before they hear that there is no room: long enough that on a
slow machine the answers to those who just came are under way, and it shows who does not read them."""
SHORTEST_REST = 0.005
"""For how long, in seconds, nobody is looked for again after nobody was found."""
YOUNG_TICKS = 10
"""Who has parked for less goes last, in ticks of the lot: its next request may be on the way."""
NEWBORN_TICKS = 2
"""For how long a connection without a byte is not closed in favour of a newcomer."""
LONG_WAIT = 0.5
SHORT_WAIT = 0.1
"""For how long a transfer must have waited for its client, in seconds, before it counts as slow; the short one when there
is nobody else to close."""

_TRANSFERS = (State.READING_BODY, State.RESPONDING)
_RANKS = {State.PARKED: 2, State.READING_BODY: 1, State.RESPONDING: 1}

_log = logging.getLogger("gunicorn.error")


class Room:
    """`places` for the connections of which `belongs` is true, in `lot`.

    `render(refusal, address)` makes what an incomplete head is told that has to go; `retry_after` is in seconds.
    """

    def __init__(
        self,
        lot: Lot,
        places: int,
        *,
        belongs: Callable[[Connection], bool],
        taken: Callable[[], int],
        render: Callable[[Any, Any], bytes],
        retry_after: int,
    ) -> None:
        self.places = places
        self._lot = lot
        self._belongs = belongs
        self._taken = taken
        self._render = render
        self._retry_after = retry_after
        self._nobody_until = 0.0
        self._full_since = 0.0

    def is_full(self) -> bool:
        """Whether every place is taken, and nobody could be closed to make room."""
        if self._taken() < self.places or self.make():
            self._full_since = 0.0
            return False
        return True

    def may_be_found(self) -> bool:
        """Whether to leave who comes next in the kernel's queue for a moment: in a burst, room is milliseconds away."""
        now = self._lot.now()
        self._full_since = self._full_since or now
        return now - self._full_since < PATIENCE

    def make(self) -> bool:
        """Close who is missed the least, up to a hundredth of all places. Whether there is room now."""
        lot = self._lot
        began = lot.now()
        if began < self._nobody_until:
            return False
        chosen = self._choose(self._has_waited) or self._choose(self._may_be_spared) or self._lingering()
        for connection in chosen:
            rank = _RANKS.get(State(connection.state), 0)
            lot.tally[scoreboard.EVICTED + rank] += 1
            if connection.state == State.READING_HEAD:
                self._say_goodbye(connection)
            elif rank == 1:
                connection.cut()
            lot.close(connection, reasons.EVICTED)
        if not chosen:
            # Looking through many connections takes a while: no more than a twentieth of the time goes into it.
            ended = lot.now()
            self._nobody_until = ended + max(SHORTEST_REST, 20 * (ended - began))
        return bool(chosen)

    def _choose(self, may_go: Callable[[Connection, int], bool]) -> list[Connection]:
        tick = self._lot.wheel.now_tick
        wanted = max(1, self.places // EVICTED_SHARE)
        candidates: Iterable[Connection] = (
            one for one in self._lot.connections() if self._belongs(one) and may_go(one, tick)
        )
        # Who has sent something that nobody has looked at yet has done nothing wrong.
        quiet = (one for one in victims(candidates, wanted + SPARE_VICTIMS, tick) if _says_nothing(one))
        return [one for one, _ in zip(quiet, range(wanted), strict=False)]

    def _lingering(self) -> list[Connection]:
        """Those that have had their last answer, the one that is due next first."""
        lingering = [one for one in self._lot.connections() if one.state == State.DRAINING and self._belongs(one)]
        return sorted(lingering, key=_due)[: max(1, self.places // EVICTED_SHARE)]

    def _has_waited(self, one: Connection, tick: int) -> bool:
        """Whether it is not just here: the bytes of an honest client that has connected are on the way."""
        if one.state == State.PARKED:
            return one.since <= tick - YOUNG_TICKS
        if one.state in _TRANSFERS:
            return self._waited_for(one) >= LONG_WAIT
        return one.state != State.ACCEPTED or one.since <= tick - NEWBORN_TICKS

    def _may_be_spared(self, one: Connection, _tick: int) -> bool:
        """Whether it may go when there is nobody else."""
        return one.state == State.PARKED or (one.state in _TRANSFERS and self._waited_for(one) >= SHORT_WAIT)

    def _waited_for(self, one: Connection) -> float:
        return float(one.attached.waited(self._lot.now())) if one.waiter is not None else 0.0

    def _say_goodbye(self, connection: Connection) -> None:
        refusal = ConnectionRefused(
            "all connections are in use and this one was slow: try again", retry_after=self._retry_after
        )
        try:
            connection.transmit(self._render(refusal, connection.address))
        except OSError:
            _log.debug("a client left before it could be told that it must go")


def _says_nothing(one: Connection) -> bool:
    if one.edges & HELD and one.state in (State.ACCEPTED, State.READING_HEAD, State.PARKED):
        return False  # it stands in the queue: what it said is about to be looked at
    return one.state == State.RESPONDING or not one.unread()


def _due(one: Connection) -> int:
    return one.deadline
