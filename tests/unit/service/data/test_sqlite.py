"""SQLite: one writer in its own thread, readers that cannot write, and refusals in time."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path

import gevent
import pytest
from gevent.monkey import get_original
from sqlalchemy import Connection, text
from structlog.testing import capture_logs

from service.data.migrate import migrate
from service.data.sqlite import SqliteDatabase, sqlite_engine
from service.errors import DatabaseBusy, DatabaseFailed, PreconditionFailed

native_ident: Callable[[], int] = get_original("_thread", "get_ident")
colour: ContextVar[str] = ContextVar("colour", default="none")

STORE = text("INSERT INTO notes VALUES (:note)")
PATIENCE = 5.0


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "test.db"
    migrate(f"sqlite:///{file}")
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE notes (note UNIQUE)")
    return file


@pytest.fixture
def database(file: Path) -> Iterator[SqliteDatabase]:
    database = SqliteDatabase(file, timeout=0.1, slow_statement=60, waiting_writes=2)
    yield database
    database.close()


@pytest.fixture
def outsider(file: Path) -> Iterator[sqlite3.Connection]:
    """Another process's connection, for all that SQLite can tell."""
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as connection:
        yield connection


def notes(database: SqliteDatabase) -> list[str]:
    return database.read(lambda connection: list(connection.scalars(text("SELECT note FROM notes ORDER BY note"))))


def storing(note: str) -> Callable[[Connection], str]:
    def work(connection: Connection) -> str:
        connection.execute(STORE, {"note": note})
        return note

    return work


def test_writes_run_in_one_other_thread_and_reads_here(database: SqliteDatabase) -> None:
    writers = {database.write(lambda _: native_ident()) for _ in range(5)}
    assert 1 == len(writers)
    assert native_ident() not in writers
    assert native_ident() == database.read(lambda _: native_ident())


def test_a_write_is_seen_by_the_next_read(database: SqliteDatabase) -> None:
    assert "one" == database.write(storing("one"))
    assert ["one"] == notes(database)


@pytest.mark.parametrize("error", [PreconditionFailed("no"), ValueError("no"), KeyboardInterrupt()])
def test_a_write_that_raises_leaves_nothing_and_the_next_one_works(
    database: SqliteDatabase, error: BaseException
) -> None:
    def work(connection: Connection) -> None:
        storing("one")(connection)
        raise error

    with pytest.raises(type(error)):
        database.write(work)
    database.write(storing("two"))
    assert ["two"] == notes(database)


def test_a_write_sees_the_context_of_its_caller(database: SqliteDatabase) -> None:
    token = colour.set("red")
    try:
        assert "red" == database.write(lambda _: colour.get())
    finally:
        colour.reset(token)


def test_a_read_cannot_write(database: SqliteDatabase) -> None:
    with pytest.raises(DatabaseFailed):
        database.read(storing("one"))
    assert [] == notes(database)


def test_a_read_that_switches_greenlets_is_found_out(database: SqliteDatabase) -> None:
    def work(connection: Connection) -> None:
        gevent.sleep(0)

    first, second = gevent.spawn(database.read, work), gevent.spawn(database.read, work)
    first.get()
    with pytest.raises(RuntimeError, match="a read has yielded"):
        second.get()
    assert [] == notes(database)


def test_a_write_within_a_write_is_refused_at_once(database: SqliteDatabase) -> None:
    with pytest.raises(RuntimeError, match="may not wait"):
        database.write(lambda _: database.write(storing("one")))


def test_a_lock_held_elsewhere_refuses_writes_until_it_is_free(
    database: SqliteDatabase, outsider: sqlite3.Connection
) -> None:
    outsider.execute("BEGIN IMMEDIATE")
    with pytest.raises(DatabaseBusy) as caught:
        database.write(storing("one"))
    assert 1.0 == caught.value.retry_after
    assert [] == notes(database)
    outsider.execute("COMMIT")
    database.write(storing("two"))
    assert ["two"] == notes(database)


def test_writes_beyond_the_line_are_refused_and_those_in_it_give_up_in_time(
    database: SqliteDatabase, outsider: sqlite3.Connection
) -> None:
    outsider.execute("BEGIN IMMEDIATE")
    waiting = [gevent.spawn(database.write, storing(str(number))) for number in range(3)]
    gevent.sleep(0)
    with pytest.raises(DatabaseBusy):
        database.write(storing("beyond"))
    for job in waiting:
        with pytest.raises(DatabaseBusy):
            job.get(timeout=PATIENCE)
    outsider.execute("COMMIT")
    assert [] == notes(database)


@pytest.mark.parametrize("interruption", [gevent.Timeout(), gevent.GreenletExit()])
def test_a_write_that_waits_for_the_lock_is_skipped_when_its_caller_is_interrupted(
    file: Path, outsider: sqlite3.Connection, interruption: BaseException
) -> None:
    database = SqliteDatabase(file, timeout=PATIENCE, slow_statement=60)
    outsider.execute("BEGIN IMMEDIATE")
    holding_the_thread = gevent.spawn(database.write, storing("holds the thread"))
    in_line = gevent.spawn(database.write, storing("in line"))
    gevent.sleep(0.02)
    for job in (holding_the_thread, in_line):
        job.kill(interruption)
    outsider.execute("COMMIT")
    database.write(storing("after"))
    assert ["after"] == notes(database)
    database.close()


def test_a_write_that_has_begun_is_whole_though_its_caller_is_interrupted(file: Path) -> None:
    database = SqliteDatabase(file, timeout=PATIENCE, slow_statement=60)
    begun, go_on = threading.Event(), threading.Event()

    def work(connection: Connection) -> None:
        storing("one")(connection)
        begun.set()
        assert go_on.wait(PATIENCE)
        storing("two")(connection)

    job = gevent.spawn(database.write, work)
    while not begun.is_set():
        gevent.sleep(0.001)
    job.kill(gevent.Timeout())
    assert [] == notes(database)
    go_on.set()
    database.write(storing("three"))
    assert ["one", "three", "two"] == notes(database)
    database.close()


def test_an_exclusive_lock_refuses_reads_soon(tmp_path: Path) -> None:
    file = tmp_path / "test.db"
    migrate(f"sqlite:///{file}")
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as outsider:
        outsider.execute("PRAGMA locking_mode = EXCLUSIVE")
        outsider.execute("BEGIN EXCLUSIVE")
        database = SqliteDatabase(file, timeout=PATIENCE, slow_statement=60)
        started = time.monotonic()
        with pytest.raises(DatabaseBusy):
            database.ping(1.0)
        assert time.monotonic() - started < 1.0
        database.close()


def test_slow_reads_and_writes_are_logged_by_whoever_waits(file: Path) -> None:
    database = SqliteDatabase(file, timeout=PATIENCE, slow_statement=0)
    with capture_logs() as logs:
        database.write(storing("one"))
        notes(database)
    assert {"INSERT INTO notes VALUES (?)", "SELECT note FROM notes ORDER BY note"} <= {
        line["statement"] for line in logs
    }
    database.close()


def test_the_file_is_in_wal_mode_and_foreign_keys_count(database: SqliteDatabase) -> None:
    def settings(connection: Connection) -> list[object]:
        names = ("journal_mode", "synchronous", "foreign_keys")
        return [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in names]

    assert ["wal", 1, 1] == database.write(settings)
    assert ["wal", 1, 1] == database.read(settings)


def test_a_migrated_database_answers_a_ping(database: SqliteDatabase) -> None:
    database.ping(1.0)


def test_a_missing_file_fails_with_what_to_do_and_is_not_created(tmp_path: Path) -> None:
    database = SqliteDatabase(tmp_path / "test.db", timeout=1, slow_statement=60)
    with capture_logs():
        with pytest.raises(DatabaseFailed, match="python -m service migrate"):
            database.ping(1.0)
        with pytest.raises(DatabaseFailed, match="python -m service migrate"):
            database.write(storing("one"))
    assert not (tmp_path / "test.db").exists()
    migrate(f"sqlite:///{tmp_path / 'test.db'}")
    database.ping(1.0)
    database.close()


def test_another_schema_fails_with_what_to_do(database: SqliteDatabase) -> None:
    database.write(lambda connection: connection.execute(text("UPDATE alembic_version SET version_num = 'x'")))
    with pytest.raises(DatabaseFailed, match="python -m service migrate"):
        database.ping(1.0)


@pytest.mark.parametrize("name", ["a b.db", "what?.db", "50%.db", "#1.db", "häßlich.db"])
def test_any_file_name_will_do(tmp_path: Path, name: str) -> None:
    engine = sqlite_engine(tmp_path / name, "rwc", patience=0)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE notes (note)")
    engine.dispose()
    assert (tmp_path / name).exists()


def test_closing_twice_is_no_harm(database: SqliteDatabase) -> None:
    database.write(storing("one"))
    database.close()
    database.close()
    with pytest.raises(RuntimeError, match="closed"):
        database.write(storing("two"))


@pytest.mark.parametrize("replaced", [False, True])
@pytest.mark.parametrize("used", [False, True])
def test_a_file_that_is_no_longer_the_one_that_was_opened_is_noticed(
    file: Path, database: SqliteDatabase, *, replaced: bool, used: bool
) -> None:
    database.ping(1)
    if used:
        database.write(storing("before"))
    file.rename(file.with_suffix(".elsewhere"))
    if replaced:
        migrate(f"sqlite:///{file}")

    with pytest.raises(DatabaseFailed, match="restart the service"):
        database.ping(1)


def test_a_writer_that_found_another_file_than_the_reader_is_noticed(file: Path, database: SqliteDatabase) -> None:
    database.ping(1)
    file.rename(file.with_suffix(".elsewhere"))
    migrate(f"sqlite:///{file}")
    database.write(lambda _: None)
    file.unlink()
    file.with_suffix(".elsewhere").rename(file)

    with pytest.raises(DatabaseFailed, match="restart the service"):
        database.ping(1)
