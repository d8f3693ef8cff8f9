"""What every worker is doing, in memory that all of them share: one row of whole numbers per worker.

The board is made in the arbiter, before it forks, and inherited. Each row has one writer, the worker it belongs to (but
for `CALLED_NS`); everybody reads. There is no lock: a number is 8 aligned bytes, which a processor stores and loads as one.

A row's life: the arbiter *claims* it before the fork, the worker *begins* it after the fork, and *releases* it when it
leaves. It is used again only when its process is gone, however that ended: the arbiter looks at each claim. Counters
never go backwards: those of a process that is gone are added to the departed row before its own is used again, under a
sequence number that lets a reader see either all of that or nothing of it.

Only the arbiter may claim, one claim at a time. The rules of the rows:

- the fields before `PUBLISHED` are written by the worker directly (`row.values[CONNECTIONS] = n`), since others decide
  by them at once;
- all others it counts in a plain list (`row.tally()`), a few times as fast, and publishes a few times a second;
- gauges come first and mean nothing once the process is gone; from `COUNTERS` on, numbers only grow.
"""

from __future__ import annotations

import mmap
import os
import time
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from longconn.core.histogram import cells_of
from longconn.core.states import State

__all__ = [
    "ACCEPTED",
    "ACCEPT_MISSES",
    "AGE",
    "BOOTING",
    "BYTES_IN",
    "BYTES_OUT",
    "CALLED_NS",
    "CLOSED",
    "CLOSED_CODES",
    "CLOSE_CODES",
    "CLOSE_REASONS",
    "COLLECTIONS",
    "CONNECTIONS",
    "COUNTERS",
    "DESCRIPTORS",
    "DRAINING",
    "DURATION_BOUNDS",
    "EVICTED",
    "EVICT_REASONS",
    "FIELDS",
    "FREE",
    "GC_PAUSES",
    "GENERATIONS",
    "GREENLETS",
    "GREENLETS_IDLE",
    "HEAD_BYTES",
    "HEARD_NS",
    "KINDS",
    "KIND_NAMES",
    "LEFT",
    "LOG_DROPPED",
    "LOOP_BLOCKED",
    "MAXIMUM",
    "MESSAGES",
    "MESSAGE_FLOWS",
    "PID",
    "PUBLISHED",
    "QUEUE",
    "QUEUED_BYTES",
    "REFUSED",
    "REFUSE_REASONS",
    "REQUESTS",
    "SERVING",
    "SLOT_STATE",
    "SLOW_ACTIONS",
    "SLOW_CONSUMERS",
    "STANDS_BY",
    "STATES",
    "STATE_NAMES",
    "TURNS",
    "TURN_NS",
    "WIDTH",
    "Row",
    "Scoreboard",
    "close_code_field",
    "closed_field",
    "evicted_field",
    "messages_field",
    "refused_field",
    "slow_field",
]

# What SLOT_STATE says.
FREE: Final = 0
BOOTING: Final = 1
SERVING: Final = 2
DRAINING: Final = 3
LEFT: Final = 4
"""Released, but its process may still be there; kept until it is gone."""

STATE_NAMES: Final = tuple(state.name.lower().replace("_", " ") for state in State)
KIND_NAMES: Final = ("http", "tls", "http2", "websocket", "sse", "other")
CLOSE_REASONS: Final = (
    "client",
    "answered",
    "reset",
    "handshake timeout",
    "head timeout",
    "body timeout",
    "write timeout",
    "idle",
    "evicted",
    "refused",
    "invalid",
    "maximum requests",
    "drain",
    "killed",
    "error",
    "upgraded",
)
REFUSE_REASONS: Final = (
    "connections",
    "per client",
    "total",
    "rate",
    "descriptors",
    "head",
    "body size",
    "timeout",
    "invalid",
)
EVICT_REASONS: Final = ("heads", "slow", "parked")
MESSAGE_FLOWS: Final = ("websocket in", "websocket out", "sse out")
SLOW_ACTIONS: Final = ("disconnected", "dropped", "conflated")
"""What was done when more waited for a client than may wait for one."""
CLOSE_CODES: Final = (
    *("1000", "1001", "1002", "1003", "1005", "1006", "1007", "1008", "1009", "1010", "1011", "1012", "1013", "1014"),
    *("3xxx", "4xxx", "other"),
)
"""With what WebSockets end. 3xxx are those of libraries, 4xxx those of applications."""
GENERATIONS: Final = 3
"""Of Python's garbage collector."""

_MS: Final = 1_000_000
DURATION_BOUNDS: Final = tuple(
    int(milliseconds * _MS)
    for milliseconds in (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 10_000)
)
"""The buckets of both histograms, in nanoseconds: `Histogram(DURATION_BOUNDS, tally, TURNS)`."""

# Written directly.
PID: Final = 0
AGE: Final = 1
"""gunicorn's number of the worker."""
SLOT_STATE: Final = 2
HEARD_NS: Final = 3
"""When the worker was last heard of: monotonic nanoseconds, which all processes of a machine share."""
TURN_NS: Final = 4
"""When the current turn of its event loop began, in monotonic nanoseconds; 0 while the loop sleeps."""
CONNECTIONS: Final = 5
MAXIMUM: Final = 6
"""How many connections it can hold."""
_CLAIM: Final = 7  # which claim of the board the row belongs to
_CLAIMED_NS: Final = 8
_STARTED: Final = 9  # when its process started, in clock ticks since the boot: tells two processes of one number apart
STANDS_BY: Final = 10
"""Whether the kernel tells it of new connections: 1 or 0."""
CALLED_NS: Final = 11
"""When another worker asked it to take new connections, in monotonic nanoseconds; 0 once it has looked. The one field that
others write."""

# Published gauges. STATES + State.PARKED is the field of the parked connections; KINDS follow KIND_NAMES.
PUBLISHED: Final = 12
STATES: Final = PUBLISHED
KINDS: Final = STATES + len(STATE_NAMES)
GREENLETS: Final = KINDS + len(KIND_NAMES)
GREENLETS_IDLE: Final = GREENLETS + 1
DESCRIPTORS: Final = GREENLETS + 2
QUEUE: Final = GREENLETS + 3
HEAD_BYTES: Final = GREENLETS + 4
QUEUED_BYTES: Final = GREENLETS + 5
"""What waits until clients of WebSockets and event streams take it."""

# Published counters. CLOSED, REFUSED, EVICTED and so on have one field for each of their reasons, in that order.
COUNTERS: Final = GREENLETS + 6
ACCEPTED: Final = COUNTERS
ACCEPT_MISSES: Final = COUNTERS + 1
REQUESTS: Final = COUNTERS + 2
BYTES_IN: Final = COUNTERS + 3
BYTES_OUT: Final = COUNTERS + 4
LOG_DROPPED: Final = COUNTERS + 5
LOOP_BLOCKED: Final = COUNTERS + 6
CLOSED: Final = COUNTERS + 7
REFUSED: Final = CLOSED + len(CLOSE_REASONS)
EVICTED: Final = REFUSED + len(REFUSE_REASONS)
MESSAGES: Final = EVICTED + len(EVICT_REASONS)
SLOW_CONSUMERS: Final = MESSAGES + len(MESSAGE_FLOWS)
CLOSED_CODES: Final = SLOW_CONSUMERS + len(SLOW_ACTIONS)
TURNS: Final = CLOSED_CODES + len(CLOSE_CODES)
GC_PAUSES: Final = TURNS + cells_of(DURATION_BOUNDS)
COLLECTIONS: Final = GC_PAUSES + cells_of(DURATION_BOUNDS)
_USED: Final = COLLECTIONS + GENERATIONS

_LINE: Final = 8  # numbers in a cache line: two workers never write to the same one
WIDTH: Final = -(-_USED // _LINE) * _LINE
"""Numbers in a row."""


def _names(first: str, names: Sequence[str]) -> list[str]:
    return [f"{first} {name}" for name in names]


def _histogram_names(first: str) -> list[str]:
    return [*(f"{first} up to {bound} ns" for bound in DURATION_BOUNDS), f"{first} above", f"{first} sum"]


FIELDS: Final = (
    "pid",
    "age",
    "slot state",
    "heard ns",
    "turn ns",
    "connections",
    "maximum",
    "claim",
    "claimed ns",
    "started",
    "stands by",
    "called ns",
    *_names("state", STATE_NAMES),
    *_names("kind", KIND_NAMES),
    "greenlets",
    "greenlets idle",
    "descriptors",
    "queue",
    "head bytes",
    "queued bytes",
    "accepted",
    "accept misses",
    "requests",
    "bytes in",
    "bytes out",
    "log dropped",
    "loop blocked",
    *_names("closed", CLOSE_REASONS),
    *_names("refused", REFUSE_REASONS),
    *_names("evicted", EVICT_REASONS),
    *_names("messages", MESSAGE_FLOWS),
    *_names("slow consumers", SLOW_ACTIONS),
    *_names("closed with", CLOSE_CODES),
    *_histogram_names("turn"),
    *_histogram_names("gc pause"),
    *_names("gc generation", [str(generation) for generation in range(GENERATIONS)]),
)
"""The name of each field, by its number."""


def closed_field(reason: str) -> int:
    """The counter of connections closed for `reason`, one of `CLOSE_REASONS`; otherwise raises `ValueError`."""
    return CLOSED + CLOSE_REASONS.index(reason)


def refused_field(reason: str) -> int:
    """The counter of refusals for `reason`, one of `REFUSE_REASONS`; otherwise raises `ValueError`."""
    return REFUSED + REFUSE_REASONS.index(reason)


def evicted_field(reason: str) -> int:
    """The counter of evictions by `reason`, one of `EVICT_REASONS`; otherwise raises `ValueError`."""
    return EVICTED + EVICT_REASONS.index(reason)


def messages_field(flow: str) -> int:
    """The counter of messages in `flow`, one of `MESSAGE_FLOWS`; otherwise raises `ValueError`."""
    return MESSAGES + MESSAGE_FLOWS.index(flow)


def slow_field(action: str) -> int:
    """The counter of clients to which `action`, one of `SLOW_ACTIONS`, has happened; otherwise raises `ValueError`."""
    return SLOW_CONSUMERS + SLOW_ACTIONS.index(action)


def close_code_field(code: int) -> int:
    """The counter of WebSockets that ended with `code`, whatever number it is."""
    known = code if code < 3000 else code // 1000 * 1000
    return _CODE_FIELDS.get(known, CLOSED_CODES + len(CLOSE_CODES) - 1)


_CODE_FIELDS: Final = {int(name.replace("x", "0")): CLOSED_CODES + at for at, name in enumerate(CLOSE_CODES[:-1])}

_SILENCE_NS: Final = 5_000_000_000
"""Who has been silent for this long may be gone. Asking the kernel about everybody each time would cost too much."""

_UNBEGUN_NS: Final = 60_000_000_000
"""How long a claimed row waits for its process to begin it. The fork may have failed, or the child died before."""

# The board's own row.
_SEQUENCE: Final = 0  # odd while counters move to the departed row
_HIGH: Final = 1  # rows that were ever claimed: those with the lowest numbers
_CLAIMS: Final = 2
_GENERATION: Final = 6

_DEPARTED: Final = 1
_FIRST: Final = 2
_MOST_RETRIES: Final = 1_000


class Row:
    """The numbers of one worker: `row.values[CONNECTIONS]` and so on.

    Whoever writes fetches `values` after `begin`, which may exchange them (see there).
    """

    __slots__ = ("_claim", "number", "shared", "values")

    def __init__(self, values: memoryview[int], *, number: int = -1, shared: bool = True) -> None:
        self.values = values
        self.number = number
        """Its place on the board; -1 when it has none."""
        self.shared = shared
        """Whether others see it."""
        self._claim = values[_CLAIM]

    @property
    def age(self) -> int:
        """gunicorn's number of the worker."""
        return self.values[AGE]

    @property
    def pid(self) -> int:
        """The process, or 0 before it has begun."""
        return self.values[PID]

    def begin(self, pid: int) -> None:
        """Take the row over, first thing in the worker's process, whose number is `pid`.

        Should the arbiter have given the row away meanwhile (the fork took over a minute), the worker goes on with
        numbers that nobody sees.
        """
        if self.shared and self.values[_CLAIM] != self._claim:
            self._hide()
        self.values[_STARTED] = _started(pid)
        self.values[HEARD_NS] = time.monotonic_ns()
        self.values[PID] = pid

    def release(self) -> None:
        """Leave. Nothing that is written later counts as present, while the counters stay in the totals."""
        if self.values[_CLAIM] == self._claim:
            self.values[SLOT_STATE] = LEFT

    def tally(self) -> list[int]:
        """A list for the worker to count in, with the same numbering."""
        return [0] * WIDTH

    def publish(self, tally: list[int]) -> None:
        """Show the others what `tally` (from `tally()`) counts, except for the fields that are written directly."""
        self.values[PUBLISHED:] = memoryview(array("q", tally[PUBLISHED:]))

    def _hide(self) -> None:
        self.values = _blank_row()
        self._claim = 0
        self.number = -1
        self.shared = False


class Scoreboard:
    """Shared rows for up to `rows` processes at once, made before the first fork.

    Takes about a KiB per row that was ever claimed. When every row is taken, a claim gives a row that nobody else sees:
    a worker that is not counted is better than none.
    """

    __slots__ = ("_head", "_limit", "_rows", "_values")

    def __init__(self, rows: int = 1024) -> None:
        if rows < 1:
            raise ValueError(f"rows={rows}: a scoreboard takes at least one")
        self._limit = rows
        memory = mmap.mmap(-1, (rows + _FIRST) * WIDTH * 8)  # anonymous and shared: there is no file to leave behind
        self._values = memoryview(memory).cast("q")
        self._head = self._slice(0)
        self._rows: list[Row] = []

    def claim(self, age: int) -> Row:
        """A row for the worker number `age`, in the arbiter and before the fork. First frees the rows of the dead."""
        free = self._free_the_gone()
        if free is None:
            return Row(_blank_row(), shared=False)
        values = self._slice(_FIRST + free)
        self._head[_CLAIMS] += 1
        values[AGE] = age
        values[_CLAIM] = self._head[_CLAIMS]
        values[_CLAIMED_NS] = time.monotonic_ns()
        values[SLOT_STATE] = BOOTING
        self._head[_HIGH] = max(self._head[_HIGH], free + 1)
        return Row(values, number=free)

    @property
    def generation(self) -> int:
        """How often the arbiter has been told to replace all workers. Only the arbiter sets it."""
        return self._head[_GENERATION]

    @generation.setter
    def generation(self, number: int) -> None:
        self._head[_GENERATION] = number

    def rows(self) -> Iterator[Row]:
        """The rows of workers that are booting, serving or draining.

        Without those whose process has been killed and not replaced yet, once it has been silent for 5 seconds.
        """
        silent_since = time.monotonic_ns() - _SILENCE_NS
        for row in self._known_rows():
            values = row.values
            if BOOTING <= values[SLOT_STATE] <= DRAINING and (values[HEARD_NS] > silent_since or not _is_gone(values)):
                yield row

    def total(self, field: int) -> int:
        """The sum of `field` over all workers: for a counter of all there have been, for a gauge of those there are."""
        if field < COUNTERS:
            return sum(row.values[field] for row in self.rows())
        return self.counters()[field]

    def counters(self) -> list[int]:
        """The sum of every counter over all workers there have been, by field, in one consistent look; gauges are 0."""
        head = self._head
        for _ in range(_MOST_RETRIES):
            before = head[_SEQUENCE]
            sums = self._sum_counters()
            if before == head[_SEQUENCE] and before % 2 == 0:
                return sums
        return sums  # the arbiter died in the middle: the whole service is about to end

    def _sum_counters(self) -> list[int]:
        columns = zip(
            self._slice(_DEPARTED)[COUNTERS:], *(row.values[COUNTERS:] for row in self._known_rows()), strict=True
        )
        return [0] * COUNTERS + [sum(column) for column in columns]

    def _known_rows(self) -> list[Row]:
        """All rows that were ever claimed. Kept, since they are looked at for every connection that is accepted."""
        rows = self._rows
        while len(rows) < self._head[_HIGH]:
            rows.append(Row(self._slice(_FIRST + len(rows)), number=len(rows)))
        return rows

    def _free_the_gone(self) -> int | None:
        """Free what processes have left behind. The number of the first free row, or None when all are taken."""
        now = time.monotonic_ns()
        known = self._known_rows()
        for row in known:
            if row.values[SLOT_STATE] != FREE and _is_over(row.values, now):
                self._fold(row.values)
        free = (number for number, row in enumerate(known) if row.values[SLOT_STATE] == FREE)
        return next(free, len(known) if len(known) < self._limit else None)

    def _fold(self, values: memoryview[int]) -> None:
        """Add the counters of a row to those of the departed, and free it."""
        departed = self._slice(_DEPARTED)
        sums = [old + new for old, new in zip(departed[COUNTERS:], values[COUNTERS:], strict=True)]
        self._head[_SEQUENCE] |= 1  # from here on readers look again
        departed[COUNTERS:] = memoryview(array("q", sums))
        values[:] = _blank_row()
        self._head[_SEQUENCE] += 1

    def _slice(self, number: int) -> memoryview[int]:
        return self._values[number * WIDTH : (number + 1) * WIDTH]


def _blank_row() -> memoryview[int]:
    return memoryview(array("q", bytes(8 * WIDTH)))


def _is_over(values: memoryview[int], now: int) -> bool:
    """Whether nobody will ever write to the row again."""
    if values[PID]:
        return _is_gone(values)
    return now - values[_CLAIMED_NS] > _UNBEGUN_NS


def _is_gone(values: memoryview[int]) -> bool:
    """Whether the process that began the row is gone. Whatever cannot be told counts as there."""
    pid, started = values[PID], values[_STARTED]
    if not pid:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # it runs as another user, or another process has its number
    if not started:
        return False
    state, since = _look_up(pid)
    return state in {"Z", "X"} or (since != 0 and since != started)


def _started(pid: int) -> int:
    return _look_up(pid)[1]


def _look_up(pid: int) -> tuple[str, int]:
    """A process's state letter and start time as proc(5) has them ("Z": dead and not waited for); "" and 0 if unknown."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:  # not Linux, or hidden from this user
        return "", 0
    fields = text[text.rindex(b")") + 2 :].split()  # the name before it may hold anything, also blanks and brackets
    return fields[0].decode("ascii"), int(fields[19])
