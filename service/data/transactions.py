"""One function, one transaction; and a note of every statement that took long."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

import structlog
from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import ExceptionContext

__all__ = ["StatementTimes", "observe_statements", "transact"]

T = TypeVar("T")
OPTION = "statement_times"

log = structlog.get_logger(__name__)


class StatementTimes:
    """The statements of one transaction that took at least `threshold` seconds, parameters left out.

    Filling and reporting are apart, because the transaction may run where logging is not allowed.
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._started: float | None = None
        self.slow: list[tuple[float, str]] = []

    def start(self) -> None:
        """A statement begins."""
        self._started = time.monotonic()

    def stop(self, statement: str) -> None:
        """It has ended, well or not."""
        if self._started is None:
            return
        duration = time.monotonic() - self._started
        self._started = None
        if duration >= self._threshold:
            self.slow.append((duration, statement))

    def report(self) -> None:
        """Log what was slow."""
        for duration, statement in self.slow:
            log.warning("slow statement", duration=round(duration, 6), statement=statement)


def observe_statements(engine: Engine) -> None:
    """Let every `transact` on this engine fill its `StatementTimes`."""
    event.listen(engine, "before_cursor_execute", _before)
    event.listen(engine, "after_cursor_execute", _after)
    event.listen(engine, "handle_error", _failed)


def transact(engine: Engine, work: Callable[[Connection], T], times: StatementTimes, **options: object) -> T:
    """Run `work` in one transaction: committed when it returns, rolled back when it raises anything at all."""
    with engine.connect() as connection:
        connection.execution_options(**{OPTION: times}, **options)
        with connection.begin():
            return work(connection)


def _times(connection: Connection | None) -> StatementTimes | None:
    return None if connection is None else connection.get_execution_options().get(OPTION)


def _before(connection: Connection, *_: Any) -> None:
    times = _times(connection)
    if times is not None:
        times.start()


def _after(connection: Connection, _: object, statement: str, *__: Any) -> None:
    times = _times(connection)
    if times is not None:
        times.stop(statement)


def _failed(context: ExceptionContext) -> None:
    times = _times(context.connection)
    if times is not None and context.statement is not None:
        times.stop(context.statement)
