"""The event loop is watched: how long each of its turns takes, and who stands in its way.

A turn of the loop begins when the loop wakes and ends when it goes back to sleep. Two watchers of libev, the first and the
last of every turn, take the time of each exactly. A native thread looks on from beside the loop: when a turn lasts longer
than the threshold, the thread reports who is running right now, by function, line, greenlet and stack. It sleeps until a
turn could have grown that old, so that a report comes as soon as the threshold is reached, and it wakes about once per
threshold when there is nothing to see.

gevent's own monitor (`GEVENT_MONITOR_THREAD_ENABLE`) does the like, but traces every switch between greenlets for it.

What cannot be seen: while C code holds the interpreter's lock (one long match of a regular expression, say) no thread runs.
The report follows as soon as the lock is let go, and then names the function that made the call, or what it did next.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import linecache
import os
import sys
import traceback
import weakref
from collections.abc import Callable, Iterable
from time import monotonic_ns
from types import CodeType, FrameType
from typing import Any, NamedTuple, Protocol

import gevent.hub
import greenlet
from gevent.monkey import get_original

from longconn.scoreboard import TURN_NS

__all__ = ["LoopWatch"]

SHORTEST_LOOK = 0.001
"""How long the thread sleeps at least between two looks, in seconds."""

FAREWELL = 1.0
"""How long `stop` waits for the thread to end, in seconds. It ends at once, unless it is just then reporting."""

_watches: weakref.WeakSet[LoopWatch] = weakref.WeakSet()


class Values(Protocol):
    """A row of whole numbers: the scoreboard's."""

    def __getitem__(self, index: int, /) -> int: ...

    def __setitem__(self, index: int, value: int, /) -> None: ...


class LoopWatch:
    """Watches `loop`, a loop of gevent, on whose thread `start` and `stop` are called, after the last fork.

    - `values`: the worker's row of the scoreboard. `values[TURN_NS]` holds the beginning of the current turn in monotonic
      nanoseconds, and 0 while the loop sleeps.
    - `threshold`: how long a turn may last, in seconds. With 0 turns are measured and none is reported.
    - `on_turn`: is called on the loop with the length of every turn, in seconds.
    - `report`: is called with a text of several lines, once when a turn outlasts the threshold and once when it is over.
      The first call comes on a native thread, while the loop stands still: it must wait for nothing that the loop holds.

    `blocked` counts the turns that outlasted the threshold.
    """

    def __init__(
        self,
        loop: Any,
        *,
        values: Values,
        threshold: float,
        on_turn: Callable[[float], None],
        report: Callable[[str], None],
    ) -> None:
        if threshold < 0:
            raise ValueError(f"threshold={threshold!r}: a turn may last for 0 seconds (never reported) or more")
        self.blocked = 0
        self._loop = loop
        self._values = values
        self._threshold = threshold
        self._threshold_ns = round(threshold * 1e9) if threshold else sys.maxsize
        self._on_turn = on_turn
        self._report = report
        self._began = 0
        self._counted = 0  # the beginning of the latest turn that was found too long
        self._watchers: tuple[Any, ...] = ()
        self._place = _Place(0, None, None)
        self._lock = get_original("_thread", "allocate_lock")()  # between the two threads, about who counts a turn
        self._ending: Any = None
        self._ended: Any = None

    def start(self) -> None:
        """Begin to watch, with the loop's next turn."""
        if self._watchers:
            return
        # Libev runs what has the highest priority first. gevent's own `prepare`, in between, runs the greenlets.
        begins = self._loop.check(ref=False, priority=self._loop.MAXPRI)
        ends = self._loop.prepare(ref=False, priority=self._loop.MINPRI)
        self._watchers = (begins, ends)
        self._values[TURN_NS] = 0
        begins.start(self._turn_begins)
        ends.start(self._turn_ends)
        _watches.add(self)
        if self._threshold:
            self._place = _here()
            allocate = get_original("_thread", "allocate_lock")
            self._ending, self._ended = allocate(), allocate()
            self._ending.acquire()
            self._ended.acquire()
            get_original("_thread", "start_new_thread")(self._look_on, (self._ending, self._ended))

    def stop(self) -> None:
        """Stop watching and end the thread. Nothing is written to `values` any more. May be called again."""
        for watcher in self._watchers:
            watcher.stop()
            watcher.close()
        self._watchers = ()
        _watches.discard(self)
        if self._ending is not None:
            self._ending.release()
            self._ended.acquire(timeout=FAREWELL)
            self._ending = self._ended = None
        self._values[TURN_NS] = 0

    def forget(self) -> None:
        """Become nobody's, as in a forked child: the thread stayed behind, and the row is the parent's to write."""
        self._values = [0] * (TURN_NS + 1)
        self._ending = self._ended = None
        self._threshold_ns = sys.maxsize

    def _turn_begins(self) -> None:
        self._began = self._values[TURN_NS] = monotonic_ns()

    def _turn_ends(self) -> None:
        began = self._began
        if not began:  # the watch began in the middle of this turn
            return
        self._began = self._values[TURN_NS] = 0
        lasted = monotonic_ns() - began
        self._on_turn(lasted * 1e-9)
        if lasted >= self._threshold_ns:
            self._long_turn_is_over(began, lasted * 1e-9)

    def _long_turn_is_over(self, began: int, seconds: float) -> None:
        if self._is_first_to_count(began):
            self._report(f"The event loop stood still for {seconds:.3f} s. It went on before its stack could be seen.")
        else:
            self._report(f"The event loop runs again, after {seconds:.3f} s.")

    def _is_first_to_count(self, began: int) -> bool:
        with self._lock:
            if self._counted == began:
                return False
            self._counted = began
            self.blocked += 1
            return True

    def _look_on(self, ending: Any, ended: Any) -> None:
        pause = self._threshold
        while not ending.acquire(timeout=pause):
            try:
                pause = self._look()
            except Exception:  # noqa: BLE001 - a report that fails must not be the last one
                pause = self._threshold
        ended.release()

    def _look(self) -> float:
        """Report the current turn if it is too old. Gives how long to sleep, in seconds."""
        began = self._values[TURN_NS]
        if not began:
            return self._threshold
        age = (monotonic_ns() - began) * 1e-9
        if age < self._threshold:
            return max(SHORTEST_LOOK, self._threshold - age)
        stack = _stack_of(self._place.thread)
        # What was seen belongs to this turn only if the turn is still on.
        if stack and self._values[TURN_NS] == began and self._is_first_to_count(began):
            self._report(_describe(age, stack, self._place))
        return self._threshold


class _Place(NamedTuple):
    """Where a loop runs: the native thread's identifier, the thread's first greenlet and its hub."""

    thread: int
    root: greenlet.greenlet | None
    hub: Any


class _Step(NamedTuple):
    """One call on a stack. Holds no frame, since a frame would keep everything alive that its function names."""

    code: CodeType
    line: int


def _here() -> _Place:
    root = greenlet.getcurrent()
    while root.parent is not None:
        root = root.parent
    return _Place(get_original("_thread", "get_ident")(), root, gevent.hub.get_hub())


def _stack_of(thread: int) -> list[_Step]:
    """What `thread` is doing, the innermost call first."""
    frame: FrameType | None = sys._current_frames().get(thread)  # noqa: SLF001 - documented, "for specialized purposes"
    steps = []
    while frame is not None:
        steps.append(_Step(frame.f_code, frame.f_lineno or frame.f_code.co_firstlineno))
        frame = frame.f_back
    return steps


def _describe(age: float, stack: list[_Step], place: _Place) -> str:
    guilty = stack[0]
    running = _running_greenlet(stack[-1].code, place)
    head = (
        f"The event loop has stood still for {age:.3f} s, in {guilty.code.co_qualname} "
        f"({guilty.code.co_filename}:{guilty.line}), {_name(running)}. Its stack, the latest call last:"
    )
    summary = [
        traceback.FrameSummary(
            step.code.co_filename, step.line, step.code.co_qualname, lookup_line=False, line=_line_of(step)
        )
        for step in reversed(stack)
    ]
    return "\n".join([head, *(text.rstrip("\n") for text in traceback.StackSummary.from_list(summary).format())])


def _line_of(step: _Step) -> str:
    with contextlib.suppress(Exception):
        return linecache.getline(step.code.co_filename, step.line).strip()
    return ""


def _name(running: greenlet.greenlet | None) -> str:
    if running is None:
        return "in a greenlet whose name is unknown"
    with contextlib.suppress(Exception):  # a class of somebody else's may describe itself in any way
        return f"in {running!r}"
    return f"in the greenlet at {id(running):#x}"


def _running_greenlet(outermost: CodeType, place: _Place) -> greenlet.greenlet | None:
    """The greenlet that runs in `place`, where the outermost call is of `outermost`, if it can be told.

    Nothing leads from a thread to its greenlet, so that all objects have to be looked through, the youngest first. A
    greenlet that runs shows no frame; neither does one that waits and has never run any Python code.
    """
    for known in (place.root, place.hub):
        if known is not None and _shows_no_frame(known):
            return known
    unclear = []
    for generation in range(3):
        for found in _greenlets(gc.get_objects(generation=generation)):
            if _shows_no_frame(found) and _root(found) is place.root:
                if _target(found) is outermost:
                    return found
                if not hasattr(found, "_run"):  # not of gevent's making
                    unclear.append(found)
    return unclear[0] if len(unclear) == 1 else None


def _greenlets(objects: Iterable[Any]) -> list[greenlet.greenlet]:
    # Not `isinstance`: it asks an object for its class, and proxies answer with code of their own.
    return [each for each in objects if issubclass(type(each), greenlet.greenlet)]


def _shows_no_frame(each: Any) -> bool:
    return bool(each) and each.gr_frame is None


def _root(each: greenlet.greenlet) -> greenlet.greenlet:
    while each.parent is not None:
        each = each.parent
    return each


def _target(each: greenlet.greenlet) -> CodeType | None:
    """The code that a greenlet was made to run, or None where it cannot be told."""
    run = getattr(each, "_run", None)
    while isinstance(run, functools.partial):
        run = run.func
    code = getattr(getattr(run, "__func__", run), "__code__", None)
    return code if isinstance(code, CodeType) else None


def _forget_all() -> None:
    for watch in list(_watches):
        watch.forget()
    _watches.clear()


os.register_at_fork(after_in_child=_forget_all)
