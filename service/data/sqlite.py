"""SQLite for a process full of greenlets.

A greenlet that switched away inside a write transaction would leave the file locked, and the next writer would wait
for it in C, holding the whole event loop, for ever. And a lock held by another process would hold the loop just so. So:

- every write is one function, run from BEGIN IMMEDIATE to COMMIT in the one native writer thread of this process;
  no greenlet can come between, and waiting for the lock holds nobody else;
- reads stay on the event loop, where they take microseconds, on a connection that cannot write. In WAL mode a reader
  waits for nobody; should it ever have to, it gives up after `READ_PATIENCE`.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar
from urllib.parse import quote

from sqlalchemy import Connection, Engine, StaticPool, create_engine, event

from service.data.tables import REVISION, schema_revision
from service.data.transactions import StatementTimes, observe_statements, transact
from service.data.translation import MIGRATE, busy, translated
from service.errors import DatabaseFailed
from service.threads import JobAbandoned, LineIsFull, NativeThreads, NoThreadInTime

__all__ = ["SqliteDatabase", "sqlite_engine"]

T = TypeVar("T")

READ_PATIENCE = 0.05
WAITING_WRITES = 512
PATIENCE = "patience"
NOT_THE_FILE = (
    "The database's file is no longer the one that was opened: what is written now is lost. Put the file back if it was "
    "moved, and restart the service."
)


def sqlite_engine(path: Path, mode: Literal["ro", "rw", "rwc"], *, patience: float) -> Engine:
    """An engine with one lasting connection: read-only, for writing, or for writing to a file it may create.

    `patience` is how long SQLite itself waits for a lock, in seconds; the execution option of that name overrules it for
    one transaction. Transactions begin explicitly, and a writing one takes the lock at once: the driver's own habit of
    beginning late would put the wait for the lock after the first reads, where it can fail for good.
    """
    location = f"file:{quote(str(path.absolute()))}?mode={mode}"

    def connect() -> sqlite3.Connection:
        # Used by one thread at a time, and closed by another.
        connection = sqlite3.connect(
            location, uri=True, timeout=patience, isolation_level=None, check_same_thread=False
        )
        if mode != "ro":
            connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA foreign_keys = ON")
        return connection

    def begin(connection: Connection) -> None:
        wait = connection.get_execution_options().get(PATIENCE)
        if wait is not None:
            connection.exec_driver_sql(f"PRAGMA busy_timeout = {int(wait * 1000)}")
        connection.exec_driver_sql("BEGIN" if mode == "ro" else "BEGIN IMMEDIATE")

    # `transact` ends every transaction itself; another rollback when the connection comes back would find nothing.
    engine = create_engine(
        "sqlite://", creator=connect, poolclass=StaticPool, pool_reset_on_return=None, hide_parameters=True
    )
    event.listen(engine, "begin", begin)
    observe_statements(engine)
    return engine


class SqliteDatabase:
    """`Database` on one file. `timeout`, `slow_statement` in seconds; at most `waiting_writes` stand in line."""

    def __init__(
        self, path: Path, *, timeout: float, slow_statement: float, waiting_writes: int = WAITING_WRITES
    ) -> None:
        self._timeout = timeout
        self._slow_statement = slow_statement
        self._path = path
        self._opened: set[tuple[int, int] | None] = set()
        self._reader = sqlite_engine(path, "ro", patience=READ_PATIENCE)
        self._writer = sqlite_engine(path, "rw", patience=timeout)
        for engine in (self._reader, self._writer):
            event.listen(engine, "connect", lambda *_: self._opened.add(_identity(path)))
        self._writer_thread = NativeThreads(1, waiting=waiting_writes)
        self._reading = False

    def read(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a read transaction, here and now; see `Database.read`."""
        if self._reading:
            raise RuntimeError(
                "a read has yielded or is nested; fetch everything and return before doing anything else"
            )
        times = StatementTimes(self._slow_statement)
        with translated():
            self._reading = True
            try:
                return transact(self._reader, work, times)
            finally:
                self._reading = False
                times.report()

    def write(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a write transaction in the writer thread; see `Database.write`."""
        deadline = time.monotonic() + self._timeout
        times = StatementTimes(self._slow_statement)

        def job(abandoned: Callable[[], bool]) -> T:
            return self._write_now(work, times, max(0.0, deadline - time.monotonic()), abandoned)

        with translated():
            try:
                return self._writer_thread.run(job, timeout=self._timeout)
            except (LineIsFull, NoThreadInTime) as error:
                raise busy() from error
            finally:
                times.report()

    def ping(self, timeout: float) -> None:
        """See `Database.ping`. `timeout` is not needed: a read gives up sooner than any useful one."""
        del timeout
        # A file that was deleted or replaced can be written to for as long as it is open.
        if self._opened - {_identity(self._path)}:
            raise DatabaseFailed(NOT_THE_FILE)
        if self.read(lambda connection: connection.scalar(schema_revision)) != REVISION:
            raise DatabaseFailed(MIGRATE)

    def close(self) -> None:
        """See `Database.close`."""
        self._writer_thread.close()
        self._writer.dispose()
        self._reader.dispose()

    def _write_now(
        self, work: Callable[[Connection], T], times: StatementTimes, patience: float, abandoned: Callable[[], bool]
    ) -> T:
        def checked(connection: Connection) -> T:
            if abandoned():
                raise JobAbandoned
            return work(connection)

        return transact(self._writer, checked, times, **{PATIENCE: patience})


def _identity(path: Path) -> tuple[int, int] | None:
    """What stays the same as long as it is the same file; None when there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
