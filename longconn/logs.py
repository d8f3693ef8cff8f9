"""Logging never makes the event loop wait.

Writing to a pipe, a terminal or a socket whose other end has stopped reading blocks, and a write to a file blocks while the
disk is behind. On the event loop that freezes every connection. So the loop only formats: what there is to write goes into
a bounded queue, and a native thread, one for each place that is written to, takes it from there. When the queue is full,
further lines are dropped and counted, and the log says how many once there is room again. Order is kept. At the end of the
process `FLUSH` seconds are waited for what is still queued.

`detach` does so for the handlers of loggers, in place, so that whoever shares them shares this too. gunicorn's
`reopen_files` (USR1) works as before: what was logged before it goes to the old file, what is logged after it to the new
one. A handler that never makes anyone wait can say so with an attribute `never_waits = True`, and is left alone.

`detach_standard_streams` does the same for `sys.stdout` and `sys.stderr`, through which an application's `print`,
`wsgi.errors`, Flask's own log and gevent's reports of crashed greenlets go.
"""

from __future__ import annotations

import atexit
import contextlib
import copy
import io
import logging
import os
import select
import stat
import sys
import weakref
from _queue import Empty, SimpleQueue  # the native one, which gevent's patches leave alone
from collections.abc import Callable, Hashable, Iterable, Iterator
from time import monotonic
from typing import Any, Protocol, TextIO

from gevent.monkey import get_original

__all__ = ["BYTES_WAITING", "FLUSH", "LINES_WAITING", "detach", "detach_standard_streams", "flush"]

LINES_WAITING = 4096
"""How many lines may wait for each place that is written to."""

BYTES_WAITING = 4 * 1024 * 1024
"""How many bytes they may have together. A single line is never too long."""

FLUSH = 1.0
"""How long the end of the process waits for lines to be written, in seconds, all places together."""

GATHER = 0.01
"""How long a line waits for others, in seconds. To wake a thread for each would slow down the one that serves."""

RETRY = 0.05
"""How long to wait for a full pipe that somebody else has made non-blocking, in seconds."""

TELL = 1.0
"""How often the log says that lines were dropped, at most, in seconds."""

WHOLE_WRITE = 64 * 1024
"""How many bytes go into a file in one write."""

RECORD_SIZE = 512
"""What a record counts for that is not text yet, in bytes, besides its message."""

_on_drop: Callable[[int], object] = int  # until `detach` says who is to be told
_notices = logging.getLogger("gunicorn.error")
_writers: dict[Hashable, _Writer] = {}
_detached: weakref.WeakSet[logging.Handler] = weakref.WeakSet()


def detach(logger_names: Iterable[str], on_drop: Callable[[int], object]) -> None:
    """Let no handler of these loggers, nor one that they propagate to, make the caller wait any more.

    To be called in a worker, after the fork and after gevent's patches; again, when handlers may have been added. `on_drop`
    is called with the number of lines dropped, at once, on the thread that logged or on one that writes; it must not log.
    The first logger named is told too, once lines get through again.
    """
    global _on_drop, _notices
    _on_drop = on_drop
    names = list(logger_names)
    if names:
        _notices = logging.getLogger(names[0])
        _notices.isEnabledFor(logging.WARNING)  # answered from a cache from here on, on native threads without a lock
    for handler in [handler for name in names for handler in _handlers_of(name)]:
        if handler not in _detached and not _never_waits(handler):
            _detach_handler(handler)


def detach_standard_streams() -> None:
    """Let no write to `sys.stdout` or `sys.stderr` wait, in this process.

    What is written to them, and to their `buffer`, is queued line by line. `sys.__stdout__`, `sys.__stderr__` and the
    descriptors 1 and 2 stay what they are.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not _is_detached(stream):
            with contextlib.suppress(AttributeError, OSError, ValueError):  # a stream of a test, or a closed one
                setattr(sys, name, _standard_stream(stream))


def flush(seconds: float = FLUSH) -> bool:
    """Wait until everything logged so far is written, at most `seconds`. Says whether it is. Blocks the calling thread."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.flush()
    for writer in list(_writers.values()):
        writer.tell_dropped()
    deadline = monotonic() + seconds
    barriers = [writer.barrier() for writer in list(_writers.values())]
    return all(barrier.acquire(timeout=max(0.0, deadline - monotonic())) for barrier in barriers)


class _Sink(Protocol):
    """Where items end up. Called by a writer's thread."""

    def take(self, items: list[Any]) -> int:
        """Write `items` in their order. Gives how many could not be written."""
        ...

    def fits(self, size: int) -> bool:
        """Whether items of `size` bytes together go into one call of `take`."""
        ...


class _Writer:
    """What waits to be written to one place, and the native thread that does it. The thread starts with the first line.

    Its lock is held for moments only, never while writing, and nobody takes another one inside.
    """

    __slots__ = ("_done", "_dropped", "_has_thread", "_lock", "_queue", "_queued", "_told", "_told_at")

    def __init__(self) -> None:
        self.start_anew()

    def start_anew(self) -> None:
        """Forget everything, as a forked child must: the thread and what waits for it are its parent's."""
        self._lock = _native_lock()
        self._queue: SimpleQueue[Any] = SimpleQueue()
        self._has_thread = False
        self._queued = self._done = 0  # bytes, each counted by one side only
        self._dropped = self._told = 0
        self._told_at = -TELL

    def put(self, sink: _Sink, item: Any, size: int) -> None:
        """Queue `item` of `size` bytes for `sink`, or drop it."""
        if self._has_room(size):
            self._enqueue(sink, item, size)
        else:
            self._drop(1)

    def control(self, sink: _Sink, action: Callable[[], object]) -> None:
        """Have the thread call `action` when all that was queued so far is written. This finds room always."""
        self._enqueue(sink, action, 0)

    def barrier(self) -> Any:
        """A lock that is released when everything so far is written."""
        reached = get_original("_thread", "allocate_lock")()
        if self._has_thread:
            reached.acquire()
            self._queue.put((None, reached.release, 0))
        return reached

    def tell_dropped(self) -> None:
        """Log how many lines have been dropped since the last time, if any, and if that would not be dropped as well."""
        if not self._has_room(RECORD_SIZE):
            return
        with self._lock:
            count, self._told, self._told_at = self._dropped - self._told, self._dropped, monotonic()
        if count:
            _notices.warning("%d log lines dropped: nobody read them, or not fast enough", count)

    def _has_room(self, size: int) -> bool:
        waiting = self._queued - self._done
        return self._queue.qsize() < LINES_WAITING and (not waiting or waiting + size <= BYTES_WAITING)

    def _enqueue(self, sink: _Sink, item: Any, size: int) -> None:
        with self._lock:
            self._queued += size
            self._queue.put((sink, item, size))
            if not self._has_thread:
                self._has_thread = True
                get_original("_thread", "start_new_thread")(self._serve, (self._queue,))

    def _drop(self, count: int) -> None:
        with self._lock:
            self._dropped += count
        with contextlib.suppress(Exception):  # whoever counts must cost neither a caller nor the thread
            _on_drop(count)

    def _serve(self, queue: SimpleQueue[Any]) -> None:
        while True:
            entry = queue.get()
            get_original("time", "sleep")(GATHER)
            while entry is not None:
                sink, item, size = entry
                if callable(item):
                    item()
                    entry = _next(queue)
                else:
                    entry = self._take_batch(queue, sink, item, size)

    def _take_batch(self, queue: SimpleQueue[Any], sink: _Sink, item: Any, size: int) -> Any:
        """Write `item` and what follows it to the same place, as far as it goes together. Gives the entry after that."""
        items, total = [item], size
        while entry := _next(queue):
            other, item, size = entry
            if other is not sink or callable(item) or not sink.fits(total + size):
                break
            items.append(item)
            total += size
        try:
            lost = sink.take(items)
        except Exception:  # noqa: BLE001 - a handler of somebody else's failed; the thread has others to serve
            lost = len(items)
        self._done += total
        if lost:
            self._drop(lost)
        elif self._dropped > self._told and monotonic() - self._told_at >= TELL:
            self.tell_dropped()
        return entry


class _Descriptor:
    """A sink: whatever has a descriptor. `stream` is kept, so that the descriptor stays open, and closed on `close`."""

    __slots__ = ("_most", "number", "stream")

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.number: int = stream.fileno()
        # What fits into PIPE_BUF arrives in one piece, however many processes write to the same pipe.
        self._most = WHOLE_WRITE if stat.S_ISREG(os.fstat(self.number).st_mode) else select.PIPE_BUF

    def fits(self, size: int) -> bool:
        return size <= self._most

    def take(self, items: list[bytes]) -> int:
        rest = b"".join(items)
        while rest:
            if self.stream.closed:  # the number may be somebody else's by now
                return len(items)
            try:
                rest = rest[os.write(self.number, rest) :]
            except BlockingIOError:
                get_original("time", "sleep")(RETRY)
            except OSError:  # the reader is gone or the disk is full
                return len(items)
        return 0


class _HandlerStream:
    """What a handler takes for its stream."""

    __slots__ = ("_descriptor", "_writer", "closed", "encoding")

    def __init__(self, stream: Any, writer: _Writer) -> None:
        self._descriptor = _Descriptor(stream)
        self._writer = writer
        self.encoding = getattr(stream, "encoding", None) or "utf-8"
        self.closed = False

    @property
    def name(self) -> object:
        return getattr(self._descriptor.stream, "name", self._descriptor.number)

    def write(self, text: str) -> int:
        if self.closed:
            raise ValueError("write to a closed log file")
        data = text.encode(self.encoding, "backslashreplace")
        self._writer.put(self._descriptor, data, len(data))
        return len(text)

    def flush(self) -> None:
        """Nothing to do: the thread is on its way."""

    def fileno(self) -> int:
        return self._descriptor.number

    def isatty(self) -> bool:
        return bool(self._descriptor.stream.isatty())

    def close(self) -> None:
        """Close the stream, once everything is written to it."""
        if not self.closed:
            self.closed = True
            self._writer.control(self._descriptor, self._descriptor.stream.close)


class _RawStream(io.RawIOBase):
    """Lies under a standard stream. Its descriptor is not closed with it."""

    def __init__(self, stream: Any) -> None:
        super().__init__()
        self._descriptor = _Descriptor(stream)
        self._writer = _writer_for(self._descriptor.number)

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        whole = bytes(data)
        self._writer.put(self._descriptor, whole, len(whole))
        return len(whole)

    def fileno(self) -> int:
        return self._descriptor.number

    def isatty(self) -> bool:
        return os.isatty(self._descriptor.number)


class _Records:
    """A sink: a handler that does more than write to a stream (syslog, a rotated file). The thread does what it does."""

    __slots__ = ("_emit", "_handler", "_writer")

    def __init__(self, handler: logging.Handler, writer: _Writer) -> None:
        self._handler = handler
        self._emit = handler.emit
        self._writer = writer

    def handle(self, record: logging.LogRecord) -> bool:
        """Stands for the handler's own `handle`."""
        kept: Any = self._handler.filter(record)
        if kept:
            record = copy.copy(kept if isinstance(kept, logging.LogRecord) else record)
            # The message as it is now: its arguments may change, and frames would keep alive what they name.
            record.msg, record.args = record.getMessage(), None
            if record.exc_info and not record.exc_text:
                formatter = self._handler.formatter or logging.Formatter()
                record.exc_text = formatter.formatException(record.exc_info)
            record.exc_info = None
            self._writer.put(self, record, RECORD_SIZE + len(record.msg))
        return bool(kept)

    def fits(self, size: int) -> bool:
        return size <= WHOLE_WRITE

    def take(self, items: list[logging.LogRecord]) -> int:
        for record in items:
            self._handler.acquire()  # against `reopen_files`
            try:
                self._emit(record)
            finally:
                self._handler.release()
        return 0


def _handlers_of(name: str) -> Iterator[logging.Handler]:
    logger: logging.Logger | None = logging.getLogger(name)
    while logger is not None:
        yield from logger.handlers
        logger = logger.parent if logger.propagate else None


def _never_waits(handler: logging.Handler) -> bool:
    return isinstance(handler, logging.NullHandler) or bool(getattr(handler, "never_waits", False))


def _detach_handler(handler: logging.Handler) -> None:
    _detached.add(handler)
    if type(handler).emit in (logging.StreamHandler.emit, logging.FileHandler.emit):
        _detach_stream(handler)
    else:
        writer = _writers.setdefault(handler, _Writer())
        vars(handler).update(handle=_Records(handler, writer).handle, lock=_native_lock())


def _detach_stream(handler: Any) -> None:
    if handler.stream is None:  # a file that is opened with the first line
        writer = _writers.setdefault(handler, _Writer())
    elif not _is_detached(handler.stream):
        try:
            writer = _writer_for(handler.stream.fileno())
        except (AttributeError, OSError, ValueError):  # in memory, or closed
            return
        handler.stream = _HandlerStream(handler.stream, writer)
    # gevent's locks, which handlers have by now, are for greenlets. Threads that log beside the loop need a native one.
    handler.lock = _native_lock()
    if isinstance(handler, logging.FileHandler):
        open_file = handler._open  # noqa: SLF001 - gunicorn's `reopen_files` calls it as well
        vars(handler)["_open"] = lambda: _HandlerStream(open_file(), writer)


def _is_detached(stream: Any) -> bool:
    return isinstance(getattr(getattr(stream, "buffer", None), "raw", None), _RawStream)


def _native_lock() -> Any:
    return get_original("_thread", "RLock")()


def _standard_stream(stream: TextIO) -> TextIO:
    raw = _RawStream(stream)
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=stream.encoding, errors="backslashreplace", newline="\n", line_buffering=True
    )


def _writer_for(descriptor: int) -> _Writer:
    """The writer for the place that `descriptor` leads to: one, whoever logs there, so that order is kept among them."""
    place = os.fstat(descriptor)
    return _writers.setdefault((place.st_dev, place.st_ino), _Writer())


def _next(queue: SimpleQueue[Any]) -> Any:
    try:
        return queue.get_nowait()
    except Empty:
        return None


def _start_anew() -> None:
    for writer in _writers.values():
        writer.start_anew()


os.register_at_fork(after_in_child=_start_anew)
atexit.register(flush)
