"""What the shared circuits of a process do beside calls: a few times a second one thread looks after all of them."""

from __future__ import annotations

import logging
import threading
import weakref
from typing import Final, Protocol

from resilience.storage.wrapping import Attendant, forget_after_fork

__all__ = ["PROCESS_ROUNDS", "Rounds", "Visited"]

PAUSE: Final = 0.2
"""Seconds between two rounds."""

_LOG = logging.getLogger(__name__)


class Visited(Protocol):
    """What is looked after."""

    @property
    def name(self) -> str | None:
        """For the log."""

    def visit(self) -> None:
        """Do what is to be done beside calls. It may take as long as a storage's timeout."""


class Rounds:
    """Who is visited by the process's one thread for that, which runs while there is anybody. Keeps nobody alive."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # re-entrant: a signal handler may add another one in the middle of this
        self._visited: weakref.WeakSet[Visited] = weakref.WeakSet()  # guarded by _lock
        self._attendant: Attendant | None = None  # guarded by _lock
        forget_after_fork(self)

    def add(self, visited: Visited) -> None:
        """Visit it from now on. In a forked child this is to be said again."""
        with self._lock:
            self._visited.add(visited)
            if self._attendant is not None:
                return
            attendant = self._attendant = Attendant(self, pause=PAUSE, name="circuits")
        if not attendant.start():
            self.left(attendant)

    def remove(self, visited: Visited) -> None:
        """Visit it no longer."""
        with self._lock:
            self._visited.discard(visited)

    def attend(self, attendant: Attendant) -> float | None:
        """Make one round."""
        with self._lock:
            visited = list(self._visited)
            if not visited or self._attendant is not attendant:
                self._attendant = None if self._attendant is attendant else self._attendant
                return None
        for each in visited:
            try:
                each.visit()
            except Exception:  # noqa: BLE001  # the others are to be visited all the same
                _LOG.exception("circuit %r could not be looked after", each.name)
        return PAUSE

    def left(self, attendant: Attendant) -> None:
        """Nobody makes rounds any longer; whoever is added next sees to that."""
        with self._lock:
            if self._attendant is attendant:
                self._attendant = None

    def after_fork(self) -> None:
        """The thread stayed in the parent."""
        self._lock = threading.RLock()
        self._visited = weakref.WeakSet()
        self._attendant = None


PROCESS_ROUNDS: Final = Rounds()
"""Those of this process."""
