"""What waits until a client takes it: bounded, whole messages only, in order.

Arithmetic on byte strings: whoever owns the socket writes what `next` gives and says with `took` how much of it has left.
"""

from __future__ import annotations

from collections import deque
from typing import Final

__all__ = ["CONFLATED", "DROPPED", "OVERFLOWS", "QUEUED", "REFUSED", "Outbox"]

OVERFLOWS: Final = ("disconnect", "drop-oldest", "conflate")

QUEUED: Final = "queued"
DROPPED: Final = "dropped"
"""It waits, and older ones have been thrown away for it."""
CONFLATED: Final = "conflated"
"""It waits in the place of an older one of its key."""
REFUSED: Final = "refused"
"""It does not wait: there is no room for it."""

PIECE: Final = 65_536
"""So many bytes of small messages leave in one write."""


class Outbox:
    """Messages, as bytes, that wait for one client.

    At most `limit` bytes wait behind what is being written, but one message may always wait, however large. What happens to
    one that finds no room, `overflow` says (one of `OVERFLOWS`): "disconnect" refuses it, "drop-oldest" throws away the oldest
    that have not begun, "conflate" refuses it unless one of its key waits, whose place it takes.

    `size` is how many bytes are still to be written in all. An outbox is made when a client does not take something, and
    thrown away when it is empty again.
    """

    __slots__ = ("_begun", "_controls", "_frames", "_keyed", "_limit", "_overflow", "_waiting", "size")

    def __init__(self, limit: int, overflow: str) -> None:
        self._limit = limit
        self._overflow = overflow
        self._begun: memoryview | None = None
        self._controls: dict[str, bytes] = {}
        self._frames: deque[bytes | list[bytes | str]] = deque()
        self._keyed: dict[str, list[bytes | str]] | None = {} if overflow == "conflate" else None
        self._waiting = 0
        self.size = 0

    def begin(self, frame: bytes, sent: int) -> None:
        """`frame` is being written, and `sent` bytes of it have left. For a box that is empty."""
        self._begun = memoryview(frame)[sent:]
        self.size = len(frame) - sent

    def put(self, frame: bytes, key: str = "") -> str:
        """Let `frame` wait behind the others. Returns `QUEUED`, `DROPPED`, `CONFLATED` or `REFUSED`."""
        count = len(frame)
        if key and self._keyed is not None:
            return self._conflate(frame, key)
        outcome = QUEUED
        if self._waiting and self._waiting + count > self._limit:
            if self._overflow != "drop-oldest":
                return REFUSED
            outcome = DROPPED
            while self._waiting and self._waiting + count > self._limit:
                self._throw_away(self._frames.popleft())
        self._frames.append(frame)
        self._waiting += count
        self.size += count
        return outcome

    def _conflate(self, frame: bytes, key: str) -> str:
        assert self._keyed is not None
        entry = self._keyed.get(key)
        before = 0 if entry is None else len(entry[0])
        others = self._waiting - before
        if others and others + len(frame) > self._limit:
            return REFUSED
        self._waiting += len(frame) - before
        self.size += len(frame) - before
        if entry is not None:
            entry[0] = frame
            return CONFLATED
        entry = self._keyed[key] = [frame, key]
        self._frames.append(entry)
        return QUEUED

    def put_control(self, frame: bytes, kind: str) -> None:
        """Let `frame` leave as soon as what is being written has left, before all that waits. It takes the place of one of its
        `kind`, so that there is never more than one of each. It is not counted against the limit."""
        self.size += len(frame) - len(self._controls.get(kind, b""))
        self._controls[kind] = frame

    def end_with(self, frame: bytes) -> None:
        """Let `frame` leave as the last one, whether there is room or not."""
        self._frames.append(frame)
        self._waiting += len(frame)
        self.size += len(frame)

    def keep_begun(self) -> None:
        """Throw away all that has not begun."""
        while self._frames:
            self._throw_away(self._frames.popleft())
        self._controls.clear()
        self.size = 0 if self._begun is None else len(self._begun)

    def _throw_away(self, entry: bytes | list[bytes | str]) -> None:
        count = len(self._taken_out(entry))
        self._waiting -= count
        self.size -= count

    def _taken_out(self, entry: bytes | list[bytes | str]) -> bytes:
        if isinstance(entry, bytes):
            return entry
        frame, key = entry
        assert isinstance(frame, bytes)
        assert self._keyed is not None
        del self._keyed[str(key)]
        return frame

    def next(self) -> memoryview | None:
        """What to write next, always the same until some of it was taken; None when nothing is left."""
        if self._begun is None:
            self._begin_next()
        return self._begun

    def _begin_next(self) -> None:
        pieces = list(self._controls.values())
        self._controls.clear()
        count = sum(map(len, pieces))
        while self._frames:
            entry = self._frames[0]
            size = len(entry if isinstance(entry, bytes) else entry[0])
            if pieces and count + size > PIECE:
                break
            pieces.append(self._taken_out(self._frames.popleft()))
            self._waiting -= size
            count += size
        if count:
            self._begun = memoryview(pieces[0] if len(pieces) == 1 else b"".join(pieces))

    def took(self, count: int) -> None:
        """`count` bytes of what `next` gave have left."""
        if not count:
            return
        begun = self._begun
        assert begun is not None
        assert count <= len(begun)
        self.size -= count
        self._begun = begun[count:] if count < len(begun) else None
