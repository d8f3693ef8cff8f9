"""A bounded number of places, given in the order of asking."""

from __future__ import annotations

import threading
from collections import deque

__all__ = ["Places"]


class Places:
    """`count` places. Whoever gives one back hands it to the one who has waited longest.

    The semaphore of the standard library lets a caller who asks again at once go before all who wait: under greenlets a
    busy few would keep the rest waiting until they give up.
    """

    def __init__(self, count: int) -> None:
        self._lock = threading.Lock()
        self._free = count  # guarded by _lock
        self._waiting: deque[threading.Event] = deque()  # guarded by _lock

    def acquire(self, *, timeout: float) -> bool:
        """Take a place. False when none came within `timeout` seconds."""
        with self._lock:
            if self._free and not self._waiting:
                self._free -= 1
                return True
            turn = threading.Event()
            self._waiting.append(turn)
        try:
            if turn.wait(timeout):
                return True
        except BaseException:
            if not self._leave(turn):
                self.release()  # it was handed over at this very moment
            raise
        return not self._leave(turn)

    def release(self) -> None:
        """Give a place back."""
        with self._lock:
            if not self._waiting:
                self._free += 1
                return
            turn = self._waiting.popleft()
        turn.set()

    def _leave(self, turn: threading.Event) -> bool:
        """Whether `turn` was still waiting; it does no longer."""
        with self._lock:
            if turn not in self._waiting:
                return False
            self._waiting.remove(turn)
            return True
