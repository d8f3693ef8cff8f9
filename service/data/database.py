"""The database as the repositories see it: functions over a connection go in, results come out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from sqlalchemy import Connection, make_url

from service.data.sqlite import SqliteDatabase
from service.settings import Settings

__all__ = ["Database", "open_database"]

T = TypeVar("T")


class Database(Protocol):
    """One database. Safe to share between the greenlets of one process; opens nothing before its first use.

    Every method raises `DatabaseBusy` when the database does not take the work in time and `DatabaseFailed` when it
    fails; no error of SQLAlchemy or a driver passes.
    """

    def read(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in one read-only transaction.

        `work` fetches its results completely before it returns, and does nothing else: it must not switch greenlets.
        """

    def write(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in one transaction: committed when it returns, rolled back when it raises.

        `work` may run in another native thread (with the caller's context variables) and does nothing but SQL. When
        the caller is interrupted while it waits, work that has not begun is skipped, and work that has begun is
        committed or rolled back as a whole. Raises `Conflict` when a unique value is taken.
        """

    def ping(self, timeout: float) -> None:
        """Check within `timeout` seconds that the database answers and that its schema is the one of this release."""

    def close(self) -> None:
        """Finish the write under way and let go of all connections. Idempotent."""


def open_database(settings: Settings) -> Database:
    """The database at `settings.database_url`. For PostgreSQL, call it after monkey-patching; raises `RuntimeError`
    when psycopg was imported before."""
    url = make_url(settings.database_url)
    if url.get_backend_name() == "sqlite" and url.database:
        return SqliteDatabase(
            Path(url.database), timeout=settings.database_timeout, slow_statement=settings.slow_statement
        )
    # Only here: importing psycopg fixes how it waits, which must not happen in a process that is patched later.
    from service.data.postgres import PostgresDatabase

    return PostgresDatabase(
        url,
        timeout=settings.database_timeout,
        pool_size=settings.database_pool_size,
        slow_statement=settings.slow_statement,
    )
