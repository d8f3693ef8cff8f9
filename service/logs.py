"""Logs: one event, one line, on standard output; JSON for machines, `console` for people.

structlog's events and the standard library's records (gunicorn's, SQLAlchemy's, warnings) come out in one form::

    {"timestamp":"2026-01-31T12:00:00.123Z","level":"info","event":"request","status":200,...}

What callers send ends up in log values, so nothing in a value can end a line or reach a terminal as a control
character. A line that cannot be written is dropped: a full disk must not become a failed request.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable, MutableMapping
from types import TracebackType
from typing import Any, Literal

import orjson
import structlog
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
    line: Any = event
    try:
        for process in _processors:
            line = process(output, level, line)
    except structlog.DropEvent:
        return
    output.msg(line)


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
        try:
            stream = sys.stdout.buffer
            stream.write(line + b"\n")
            stream.flush()
        except (OSError, ValueError):
            # The reader is gone, the disk full or the stream closed. There is nowhere left to complain.
            return

    debug = info = warning = error = critical = exception = log = msg


class _StandardHandler(logging.Handler):
    """Brings records of the standard library into the same form."""

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
