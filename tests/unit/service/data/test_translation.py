"""The table from database errors to the service's."""

from __future__ import annotations

import contextlib
import sqlite3
from types import SimpleNamespace

import psycopg
import pytest
import sqlalchemy.exc
from structlog.testing import capture_logs

from service.data.translation import translate, translated
from service.errors import Conflict, DatabaseBusy, DatabaseFailed, ServiceError


def wrapped(cause: BaseException) -> sqlalchemy.exc.DBAPIError:
    """As SQLAlchemy hands a driver's error on."""
    return sqlalchemy.exc.DBAPIError("UPDATE users SET name = ?", ("secret name",), cause, hide_parameters=True)


def sqlite_error(code: int, message: str = "message", name: str = "SQLITE_NAME") -> sqlite3.Error:
    error = sqlite3.OperationalError(message)
    error.sqlite_errorcode = code
    error.sqlite_errorname = name
    return error


def postgres_error(sqlstate: str, constraint: str | None = None) -> psycopg.Error:
    class Diagnosed(psycopg.errors.lookup(sqlstate)):  # type: ignore[misc]  # the class is found by its code
        diag = SimpleNamespace(constraint_name=constraint)

    return Diagnosed("message with DETAIL")


@pytest.mark.parametrize(
    "cause",
    [
        sqlite_error(sqlite3.SQLITE_BUSY),
        sqlite_error(sqlite3.SQLITE_BUSY_SNAPSHOT),
        sqlite_error(sqlite3.SQLITE_LOCKED),
        postgres_error("57014"),
        postgres_error("55P03"),
        postgres_error("40P01"),
        postgres_error("40001"),
        postgres_error("53300"),
        psycopg.errors.ConnectionTimeout("timed out"),
    ],
    ids=lambda cause: f"{type(cause).__name__}",
)
def test_what_a_later_try_may_cure_is_busy(cause: Exception) -> None:
    with capture_logs() as logs:
        error = translate(wrapped(cause))
    assert (DatabaseBusy, 1.0, []) == (type(error), error.retry_after, logs)


def test_a_pool_without_a_free_connection_is_busy() -> None:
    assert isinstance(translate(sqlalchemy.exc.TimeoutError("QueuePool limit")), DatabaseBusy)


@pytest.mark.parametrize(
    ("cause", "field"),
    [
        (sqlite_error(sqlite3.SQLITE_CONSTRAINT_UNIQUE, "UNIQUE constraint failed: index 'users_name_taken'"), "name"),
        (
            sqlite_error(sqlite3.SQLITE_CONSTRAINT_UNIQUE, "UNIQUE constraint failed: index 'users_email_taken'"),
            "email",
        ),
        (postgres_error("23505", "users_name_taken"), "name"),
        (postgres_error("23505", "users_email_taken"), "email"),
    ],
)
def test_a_unique_index_says_which_field_is_taken(cause: Exception, field: str) -> None:
    error = translate(wrapped(cause))
    assert (Conflict, f"This {field} is taken. Choose another.") == (type(error), error.detail)
    assert ((f"/{field}", "is taken"),) == error.fields


@pytest.mark.parametrize(
    "cause",
    [
        sqlite_error(sqlite3.SQLITE_CORRUPT),
        sqlite_error(sqlite3.SQLITE_FULL),
        sqlite_error(sqlite3.SQLITE_CONSTRAINT_CHECK),
        sqlite_error(sqlite3.SQLITE_CONSTRAINT_UNIQUE, "UNIQUE constraint failed: other.column"),
        sqlite3.ProgrammingError("without a code"),
        postgres_error("23505", "other_index"),
        postgres_error("23505"),
        postgres_error("22003"),
        psycopg.OperationalError("server closed the connection"),
    ],
    ids=lambda cause: f"{type(cause).__name__}",
)
def test_all_else_is_a_failure_that_tells_the_log_and_not_the_caller(cause: Exception) -> None:
    with capture_logs() as logs:
        error = translate(wrapped(cause))
    assert DatabaseFailed is type(error)
    assert "The database failed. The trace id finds the cause in the logs." == error.detail
    (line,) = logs
    assert ("database failed", "error", "UPDATE users SET name = ?") == (
        line["event"],
        line["log_level"],
        line["statement"],
    )
    assert "secret name" not in str(line)


@pytest.mark.parametrize(
    "cause",
    [
        sqlite_error(sqlite3.SQLITE_CANTOPEN),
        sqlite_error(sqlite3.SQLITE_ERROR, "no such table: users"),
        postgres_error("42P01"),
        postgres_error("3D000"),
    ],
)
def test_a_database_that_is_not_set_up_says_how_to(cause: Exception) -> None:
    with capture_logs():
        assert "python -m service migrate" in translate(wrapped(cause)).detail


def test_the_log_names_the_code_of_the_driver() -> None:
    with capture_logs() as logs:
        translate(wrapped(sqlite_error(sqlite3.SQLITE_FULL, name="SQLITE_FULL")))
        translate(wrapped(postgres_error("22003")))
    assert ["SQLITE_FULL", "22003"] == [line["error_code"] for line in logs]


def test_the_cause_stays_chained() -> None:
    cause = wrapped(sqlite_error(sqlite3.SQLITE_BUSY))
    with pytest.raises(DatabaseBusy) as caught, translated():
        raise cause
    assert cause is caught.value.__cause__


@pytest.mark.parametrize("error", [ServiceError("ours"), KeyError("a bug"), KeyboardInterrupt()])
def test_errors_that_are_none_of_the_database_pass(error: BaseException) -> None:
    with contextlib.suppress(type(error)), translated():
        raise error
    with pytest.raises(type(error)), translated():
        raise error
