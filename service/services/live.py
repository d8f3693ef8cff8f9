"""The service's own counters, for whoever watches: every second a message in the channel `live`."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any, Final

from longconn import scoreboard
from longconn.core.states import State
from longconn.errors import LongConnError
from longconn.scoreboard import Scoreboard
from service.services.channels import LIVE, envelope
from service.services.ports import Channels

__all__ = ["LiveCounters", "figures"]

EVERY: Final = 1.0
SENDER: Final = "service"
KINDS: Final = ("websocket", "sse")

_log = logging.getLogger("service.live")


def figures(board: Scoreboard, now: float) -> dict[str, Any]:
    """What all workers of this host are doing at `now`, in seconds since the epoch. Counters only grow."""
    rows = [row.values for row in board.rows() if row.pid]
    counters = board.counters()
    kinds = {kind: scoreboard.KINDS + scoreboard.KIND_NAMES.index(kind) for kind in KINDS}
    return {
        "at": round(now, 3),
        "workers": [
            {
                "pid": row[scoreboard.PID],
                "connections": row[scoreboard.CONNECTIONS],
                **{kind: row[field] for kind, field in kinds.items()},
                "parked": row[scoreboard.STATES + State.PARKED] + row[scoreboard.STATES + State.UPGRADED],
                "greenlets": row[scoreboard.GREENLETS] - row[scoreboard.GREENLETS_IDLE],
            }
            for row in sorted(rows, key=lambda row: row[scoreboard.AGE])
        ],
        "connections": sum(row[scoreboard.CONNECTIONS] for row in rows),
        **{kind: sum(row[field] for row in rows) for kind, field in kinds.items()},
        "requests": counters[scoreboard.REQUESTS],
        "messages_in": counters[scoreboard.messages_field("websocket in")],
        "messages_out": counters[scoreboard.messages_field("websocket out")]
        + counters[scoreboard.messages_field("sse out")],
    }


class LiveCounters:
    """Publishes them. One worker does it for all: the one with the lowest process id of those that serve."""

    def __init__(
        self, board: Scoreboard, channels: Channels, *, clock: Callable[[], float], sleep: Callable[[float], object]
    ) -> None:
        self._board = board
        self._channels = channels
        self._clock = clock
        self._sleep = sleep
        self._fails = False

    def run(self) -> None:
        """Publish for ever, once a second."""
        while True:
            now = self._clock()
            if self._is_mine():
                self.publish(now)
            self._sleep(EVERY - self._clock() % EVERY)

    def publish(self, now: float) -> None:
        """Publish once. Where that fails it is logged, the first time in a row."""
        try:
            self._channels.publish(LIVE, envelope(SENDER, figures(self._board, now)))
        except LongConnError as error:
            if not self._fails:
                _log.warning("the live counters cannot be published: %s", error)
            self._fails = True
        else:
            self._fails = False

    def _is_mine(self) -> bool:
        serving = [row.pid for row in self._board.rows() if row.values[scoreboard.SLOT_STATE] == scoreboard.SERVING]
        return os.getpid() == min(serving, default=os.getpid())
