"""Where SQLAlchemy's errors become the service's: one table for both databases.

A unique index says which field is taken (409). What a later try may cure is busy (503). All else is a failure (500):
logged here with its code, chained as the cause, and told to the caller without SQL.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolExhausted

from service.data.tables import UNIQUE_FIELDS
from service.errors import Conflict, DatabaseBusy, DatabaseFailed, ServiceError

__all__ = ["busy", "translate", "translated"]

RETRY_AFTER = 1.0
SQLITE_UNIQUE = {sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY}
SQLITE_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
POSTGRES_UNIQUE = "23505"
POSTGRES_BUSY = {
    "40001": "serialization failure",
    "40P01": "deadlock",
    "53300": "too many connections",
    "55P03": "lock timeout",
    "57014": "statement timeout",
}
# psycopg's own, which carries no SQLSTATE. By name, since this module serves both drivers and imports neither.
CONNECT_TIMEOUT = "ConnectionTimeout"
NOT_SET_UP_POSTGRES = {"3D000", "42P01"}  # no such database, no such table
MIGRATE = "The database is not set up for this release. Run: python -m service migrate"

log = structlog.get_logger(__name__)


@contextmanager
def translated() -> Iterator[None]:
    """Raise SQLAlchemy's and the drivers' errors from this block as `Conflict`, `DatabaseBusy` or `DatabaseFailed`."""
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error) as error:
        raise translate(error) from error


def busy() -> DatabaseBusy:
    """The refusal of a statement that the database did not take in time."""
    return DatabaseBusy("The database is busy. Try the same request again.", retry_after=RETRY_AFTER)


def translate(error: Exception) -> ServiceError:
    """The service's error for one of SQLAlchemy or a driver; failures are logged on the way."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(error, PoolExhausted) or _is_busy(cause):
        return busy()
    taken = _taken_field(cause)
    if taken is not None:
        return Conflict(f"This {taken} is taken. Choose another.", fields=[(f"/{taken}", "is taken")])
    statement = error.statement if isinstance(error, DBAPIError) else None
    log.error("database failed", error=type(cause).__name__, error_code=_code(cause), statement=statement)
    if _is_not_set_up(cause):
        return DatabaseFailed(MIGRATE)
    return DatabaseFailed("The database failed. The trace id finds the cause in the logs.")


def _code(cause: BaseException | None) -> str | None:
    return getattr(cause, "sqlstate", None) or getattr(cause, "sqlite_errorname", None)


def _is_busy(cause: BaseException | None) -> bool:
    if isinstance(cause, sqlite3.Error):
        return _sqlite_code(cause) & 0xFF in SQLITE_BUSY
    return _code(cause) in POSTGRES_BUSY or type(cause).__name__ == CONNECT_TIMEOUT


def _is_not_set_up(cause: BaseException | None) -> bool:
    if isinstance(cause, sqlite3.Error):
        return _sqlite_code(cause) & 0xFF == sqlite3.SQLITE_CANTOPEN or "no such table" in str(cause)
    return _code(cause) in NOT_SET_UP_POSTGRES


def _taken_field(cause: BaseException | None) -> str | None:
    if isinstance(cause, sqlite3.Error):
        names = str(cause) if _sqlite_code(cause) in SQLITE_UNIQUE else ""
        return next((field for index, field in UNIQUE_FIELDS.items() if f"'{index}'" in names), None)
    if _code(cause) == POSTGRES_UNIQUE:
        return UNIQUE_FIELDS.get(getattr(getattr(cause, "diag", None), "constraint_name", None) or "")
    return None


def _sqlite_code(cause: sqlite3.Error) -> int:
    return getattr(cause, "sqlite_errorcode", 0)
