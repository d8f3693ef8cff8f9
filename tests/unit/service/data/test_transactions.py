"""Transactions and the note of what was slow in them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy.exc
from sqlalchemy import Connection, Engine, text
from structlog.testing import capture_logs

from service.data.sqlite import sqlite_engine
from service.data.transactions import StatementTimes, transact

STORE = text("INSERT INTO notes VALUES (:note)")
LOAD = text("SELECT note FROM notes")


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = sqlite_engine(tmp_path / "test.db", "rwc", patience=0)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE notes (note)")
    yield engine
    engine.dispose()


def notes(engine: Engine) -> list[str]:
    return transact(engine, lambda connection: list(connection.scalars(LOAD)), StatementTimes(60))


def store(connection: Connection) -> str:
    connection.execute(STORE, {"note": "kept"})
    return "stored"


def test_what_a_function_wrote_is_kept_when_it_returns(engine: Engine) -> None:
    assert "stored" == transact(engine, store, StatementTimes(60))
    assert ["kept"] == notes(engine)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_a_function_wrote_is_gone_when_it_raises(engine: Engine, error: type[BaseException]) -> None:
    def store_and_fail(connection: Connection) -> None:
        store(connection)
        raise error

    with pytest.raises(error):
        transact(engine, store_and_fail, StatementTimes(60))
    assert [] == notes(engine)


def test_slow_statements_are_logged_without_their_parameters(engine: Engine) -> None:
    times = StatementTimes(0)
    transact(engine, store, times)
    with capture_logs() as logs:
        times.report()
    assert ["BEGIN IMMEDIATE", "INSERT INTO notes VALUES (?)"] == [line["statement"] for line in logs]
    assert {("slow statement", "warning")} == {(line["event"], line["log_level"]) for line in logs}
    assert all(line["duration"] >= 0 for line in logs)
    assert "kept" not in str(logs)


def test_quick_statements_are_not_logged(engine: Engine) -> None:
    times = StatementTimes(60)
    transact(engine, store, times)
    assert [] == times.slow


def test_a_statement_that_fails_is_timed_too(engine: Engine) -> None:
    times = StatementTimes(0)
    with pytest.raises(sqlalchemy.exc.OperationalError):
        transact(engine, lambda connection: connection.execute(text("SELECT broken")), times)
    assert "SELECT broken" == times.slow[-1][1]


def test_transactions_of_one_connection_do_not_share_their_times(engine: Engine) -> None:
    first, second = StatementTimes(0), StatementTimes(0)
    transact(engine, store, first)
    transact(engine, lambda connection: connection.execute(LOAD).all(), second)
    assert (2, 2) == (len(first.slow), len(second.slow))


def test_connections_outside_of_transactions_are_not_timed(engine: Engine) -> None:
    with engine.begin() as connection, pytest.raises(sqlalchemy.exc.OperationalError):
        connection.execute(text("SELECT broken"))


def test_an_end_without_a_start_counts_for_nothing() -> None:
    times = StatementTimes(0)
    times.stop("SELECT 1")
    assert [] == times.slow
