"""Logs: one event, one line, on standard output; JSON for machines, `console` for people.

structlog's events and the standard library's records (gunicorn's, SQLAlchemy's, warnings) come out in one form::

    {"timestamp":"2026-01-31T12:00:00.123Z","level":"info","event":"request","status":200,...}

What callers send ends up in log values, so nothing in a value can end a line or reach a terminal as a control
character.

Logging never makes a request wait. Lines for a pipe, a terminal or a socket are written by a native thread of their own;
when nobody reads them and `LINES_WAITING` have gathered, further ones are dropped, and how many is logged once someone
reads again. A line that cannot be written is dropped too: a full disk must not become a failed request.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import re
import select
import stat
import sys
import time
from _queue import Empty, SimpleQueue  # the native one, which gevent's patches leave alone
from collections.abc import Callable, MutableMapping
from types import TracebackType
from typing import Any, Literal

import orjson
import structlog
from gevent.monkey import get_original
from gunicorn.glogging import Logger

__all__ = ["GunicornLogger", "Style", "configure", "emit", "log_greenlet_crashes"]

Style = Literal["json", "console"]
Event = MutableMapping[str, Any]
Processor = Callable[[Any, str, Event], Any]

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}

# orjson escapes what JSON requires, the controls below U+0020. These end lines or steer terminals too.
BEYOND_JSON = re.compile(r"[\x7f-\x9f\u2028\u2029]")
CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
TRACEBACK_MARGIN = "  | "

LINES_WAITING = 4096
"""How many lines may wait for whoever reads them, in each process."""

FLUSH = 1.0
"""How long the end of the process waits for lines to be read, in seconds."""

GATHER = 0.01
"""How long a line waits for others, in seconds. To wake a thread for each would slow down the one that serves."""

RETRY = 0.05

METHOD_LEVELS = {"warn": "warning", "exception": "error", "fatal": "critical"}

_render_stack = structlog.processors.StackInfoRenderer()
_render_exception = structlog.processors.ExceptionRenderer()
_threshold = LEVELS["info"]
_second = (0, "")  # the second of the latest line, and how it is written


def configure(*, level: str = "info", style: Style = "json") -> None:
    """Send every log of this process to standard output in one `style`, from `level` on.

    May be called again; the last call counts, except that loggers bound earlier keep their level.
    """
    _processors[:] = _steps(style)
    structlog.configure(
        processors=_processors,
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=_Output,
        cache_logger_on_first_use=False,
    )
    global _threshold
    _threshold = LEVELS[level]
    root = logging.getLogger()
    root.handlers = [handler for handler in root.handlers if not isinstance(handler, _StandardHandler)]
    root.addHandler(_StandardHandler())
    root.setLevel(LEVELS[level])


def emit(level: str, event: Event, *, name: str | None = None) -> None:
    """Log `event`, which holds its name under "event", as `structlog.get_logger(name)` would, in two thirds of the time.

    For what is logged on every request. The dictionary is used up.
    """
    if LEVELS[level] < _threshold:
        return
    output = _Output(name)
    with contextlib.suppress(structlog.DropEvent):
        output.msg(_render(output, level, event))


class GunicornLogger(Logger):  # type: ignore[misc]  # gunicorn publishes no types
    """gunicorn's logger with this module's output: its records go to the root logger, which `configure` has set up."""

    def setup(self, cfg: Any) -> None:
        """Take gunicorn's settings, without the handlers that gunicorn would add."""
        super().setup(cfg)
        for logger in (self.error_log, self.access_log):
            logger.handlers.clear()
            logger.propagate = True


def log_greenlet_crashes(hub: Any) -> None:
    """Send what kills a greenlet of gevent's `hub` to the log. gevent would print it to standard error, over many lines."""
    logger = structlog.get_logger("gevent")

    def log_exception(
        context: object, kind: type[BaseException], value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        logger.error("greenlet crashed", greenlet=repr(context), exc_info=(kind, value, traceback))

    hub.print_exception = log_exception


class _Output:
    """Where lines end up: whatever standard output is at that moment."""

    __slots__ = ("name",)

    def __init__(self, name: str | None = None) -> None:
        self.name = name

    def msg(self, line: bytes) -> None:
        _writer.write(line + b"\n")

    debug = info = warning = error = critical = exception = log = msg


class _Writer:
    """Puts lines on standard output without making anyone wait.

    A file takes a line at once. Whatever else has a reader that may stand still: there a native thread waits for it.
    Asking whether it is ready would not do, since other processes write to the same pipe.
    """

    def __init__(self) -> None:
        self.start_anew()

    def start_anew(self) -> None:
        """Forget everything, as a forked process must: the thread and what waits for it are its parent's."""
        self._lines: SimpleQueue[Any] = SimpleQueue()
        self._stream: Any = None
        self._descriptor: int | None = None
        self._has_thread = False
        self._dropped = self._reported = 0

    def write(self, line: bytes) -> None:
        """Write `line`, at once or soon, or drop it."""
        try:
            stream = sys.stdout
            if stream is not self._stream:
                self._stream, self._descriptor = stream, _descriptor_to_wait_for(stream)
            if self._descriptor is None:
                stream.buffer.write(line)
                stream.buffer.flush()
                return
        except (OSError, ValueError):
            # The disk is full or the stream closed. There is nowhere left to complain.
            return
        if self._lines.qsize() >= LINES_WAITING:
            self._dropped += 1
            return
        self._lines.put(line)
        if not self._has_thread:
            self._has_thread = True
            get_original("_thread", "start_new_thread")(self._serve, ())

    def flush(self, seconds: float = FLUSH) -> None:
        """Wait until everything so far is written, at most `seconds`."""
        if self._has_thread:
            reached = get_original("_thread", "allocate_lock")()
            reached.acquire()
            self._lines.put(reached)
            reached.acquire(timeout=seconds)

    def _serve(self) -> None:
        item = self._lines.get()
        while True:
            batch = b""
            # What fits into PIPE_BUF arrives in one piece, however many processes write to the pipe.
            while isinstance(item, bytes) and (not batch or len(batch) + len(item) <= select.PIPE_BUF):
                batch += item
                item = self._next()
            if batch:
                self._write_out(batch)
                self._report_dropped()
            if not isinstance(item, bytes):
                if item is not None:
                    item.release()
                item = self._lines.get()
                get_original("time", "sleep")(GATHER)

    def _next(self) -> Any:
        try:
            return self._lines.get_nowait()
        except Empty:
            return None

    def _report_dropped(self) -> None:
        dropped = self._dropped
        if dropped > self._reported:
            event = {"event": "log lines dropped, nobody read them", "dropped": dropped - self._reported}
            self._reported = dropped
            self._write_out(_render(_Output("service.logs"), "warning", event) + b"\n")

    def _write_out(self, lines: bytes) -> None:
        descriptor = self._descriptor
        while lines and descriptor is not None:
            try:
                lines = lines[os.write(descriptor, lines) :]
            except BlockingIOError:  # whoever shares the descriptor has made it so
                get_original("time", "sleep")(RETRY)
            except OSError:  # the reader is gone
                return


def _descriptor_to_wait_for(stream: Any) -> int | None:
    """The descriptor behind `stream`, or None when writing there never waits for a reader."""
    try:
        descriptor: int = stream.fileno()
        return None if stat.S_ISREG(os.fstat(descriptor).st_mode) else descriptor
    except (AttributeError, OSError, ValueError):  # a stream of a test or a closed one
        return None


_writer = _Writer()
os.register_at_fork(after_in_child=_writer.start_anew)
atexit.register(_writer.flush)


class _StandardHandler(logging.Handler):
    """Brings records of the standard library into the same form."""

    never_waits = True
    """The worker detaches handlers that may make it wait from its loop. Lines leave here as all others do."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            event: Event = {"event": record.getMessage()}
            if record.exc_info:
                event["exc_info"] = record.exc_info
            if record.stack_info:
                event["stack"] = record.stack_info
            level = record.levelname.lower()
            emit(level if level in LEVELS else "info", event, name=record.name)
        except Exception:  # noqa: BLE001 - a record that cannot be formatted is reported by the standard library's means
            self.handleError(record)


def _steps(style: Style) -> list[Processor]:
    return [
        _merge_context,
        _complete,
        *([_render_json] if style == "json" else [_escape_controls, _console_renderer()]),
    ]


def _render(output: _Output, level: str, event: Event) -> bytes:
    line: Any = event
    for process in _processors:
        line = process(output, level, line)
    rendered: bytes = line
    return rendered


def _merge_context(logger: _Output, method: str, event: Event) -> Event:
    # The line of a request brings its ids itself; looking through the context would cost as much as all the rest.
    return event if "trace_id" in event else structlog.contextvars.merge_contextvars(logger, method, event)


def _complete(logger: _Output, method: str, event: Event) -> Event:
    """One step for what most events need, since each step costs as much as what it does."""
    event["timestamp"] = _timestamp()
    event["level"] = METHOD_LEVELS.get(method, method)
    event["pid"] = os.getpid()
    if logger.name is not None:
        event["logger"] = logger.name
    if "stack_info" in event:
        event = _render_stack(logger, method, event)
    return _render_exception(logger, method, event) if "exc_info" in event else event


def _timestamp() -> str:
    global _second
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    second, text = _second
    if second != seconds:
        text = time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(seconds))
        _second = seconds, text
    return f"{text}{nanoseconds // 1_000_000:03d}Z"


def _render_json(_: object, __: str, event: Event) -> bytes:
    ordered = {"timestamp": event.pop("timestamp"), "level": event.pop("level"), "event": event.pop("event"), **event}
    try:
        line = orjson.dumps(ordered, default=repr, option=orjson.OPT_NON_STR_KEYS)
    except orjson.JSONEncodeError:
        # Lone surrogates and integers beyond 64 bits. The standard library escapes the former and takes the latter.
        line = json.dumps(ordered, default=repr, skipkeys=True, separators=(",", ":")).encode()
    if line.isascii() and b"\x7f" not in line:
        return line
    return BEYOND_JSON.sub(lambda match: f"\\u{ord(match[0]):04x}", line.decode()).encode()


def _escape_controls(_: object, __: str, event: Event) -> Event:
    for key, value in event.items():
        if key in ("exception", "stack"):
            # Each line of a traceback gets a margin, so that a message cannot pass for a line of its own.
            event[key] = "\n".join(TRACEBACK_MARGIN + _escape(line) for line in str(value).split("\n"))
        elif isinstance(value, str):
            event[key] = _escape(value)
    return event


def _escape(text: str) -> str:
    return CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def _console_renderer() -> Processor:
    render = structlog.dev.ConsoleRenderer(colors=sys.stdout.isatty(), pad_event_to=24)

    def render_bytes(logger: Any, name: str, event: Event) -> bytes:
        return render(logger, name, event).encode(errors="backslashreplace")

    return render_bytes


_processors = _steps("json")  # one list for good, changed in place: loggers that are bound already follow
