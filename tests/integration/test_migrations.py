"""Migrations on every database: from nothing, again, at the same time, and what they lead to."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import alembic.command
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, Engine, inspect, make_url

from service.data import migrate as migrations
from service.data.database import open_database
from service.data.migrate import migrate, newest_revision
from service.data.postgres import postgres_engine
from service.data.sqlite import sqlite_engine
from service.data.tables import REVISION, metadata
from service.errors import DatabaseBusy, DatabaseFailed
from tests.support.database import settings_for
from tests.support.postgres import PostgresServer


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'a folder' / 'deeper' / 'test.db'}"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.create_database()


def engine_for(url: str) -> Engine:
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        return sqlite_engine(Path(parsed.database or ""), "rw", patience=1.0)
    return postgres_engine(parsed, timeout=5.0, pool_size=1)


@contextlib.contextmanager
def connected(url: str) -> Iterator[Connection]:
    engine = engine_for(url)
    with engine.connect() as connection, connection.begin():
        yield connection
    engine.dispose()


def ping(url: str) -> None:
    database = open_database(settings_for(url))
    try:
        database.ping(1.0)
    finally:
        database.close()


def test_the_revision_that_workers_expect_is_the_newest_migration() -> None:
    assert newest_revision() == REVISION


def test_migrating_makes_a_new_database_ready(url: str) -> None:
    migrate(url)
    ping(url)


def test_migrating_again_changes_nothing(url: str) -> None:
    migrate(url)
    migrate(url)
    ping(url)


@pytest.mark.filterwarnings("ignore:Skipped unsupported reflection of expression-based index")
@pytest.mark.filterwarnings("ignore:autogenerate skipping metadata-specified expression-based index")
def test_the_migrations_lead_to_the_tables_that_the_code_expects(url: str) -> None:
    migrate(url)
    with connected(url) as connection:
        # SQLite's reflection cannot see indexes on expressions; the next test looks for them by name.
        context = MigrationContext.configure(
            connection, opts={"include_object": lambda item, name, kind, *_: kind != "index"}
        )
        assert [] == compare_metadata(context, metadata)


def test_the_migrations_make_the_indexes_that_the_code_expects(url: str) -> None:
    migrate(url)
    with connected(url) as connection:
        if connection.dialect.name == "sqlite":
            query = "SELECT name FROM sqlite_master WHERE type = 'index' AND sql LIKE 'CREATE UNIQUE INDEX%'"
            found = {name for (name,) in connection.exec_driver_sql(query)}
        else:
            found = {str(index["name"]) for index in inspect(connection).get_indexes("users") if index["unique"]}
    expected = {str(index.name) for index in metadata.tables["users"].indexes if index.unique}
    assert expected == found


def test_a_database_of_another_release_is_not_ready_and_says_what_to_do(url: str) -> None:
    migrate(url)
    with connected(url) as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'older'")
    with pytest.raises(DatabaseFailed, match="python -m service migrate"):
        ping(url)


def test_a_migration_that_fails_leaves_nothing_behind(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    upgrade = alembic.command.upgrade

    def upgrade_and_fail(*arguments: object) -> None:
        upgrade(*arguments)  # type: ignore[arg-type]  # passed on as they came
        raise OSError("the lights went out")

    monkeypatch.setattr(alembic.command, "upgrade", upgrade_and_fail)
    with pytest.raises(OSError, match="lights"):
        migrate(url)
    with connected(url) as connection:
        assert [] == inspect(connection).get_table_names()


def test_processes_that_migrate_at_once_take_turns(url: str) -> None:
    program = "import sys; from service.data.migrate import migrate; migrate(sys.argv[1])"
    processes = [
        subprocess.Popen([sys.executable, "-W", "error", "-c", program, url], env=os.environ | {"PYTHONPATH": "."})
        for _ in range(3)
    ]
    assert [0, 0, 0] == [process.wait(timeout=60) for process in processes]
    ping(url)


def test_migrating_back_and_forth_works(url: str) -> None:
    migrate(url)
    with connected(url) as connection:
        config = migrations._config()
        config.attributes["connection"] = connection
        alembic.command.downgrade(config, "base")
        assert ["alembic_version"] == inspect(connection).get_table_names()
    migrate(url)
    ping(url)


def test_a_locked_file_refuses_the_migration_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrations, "PATIENCE", 0.05)
    file = tmp_path / "test.db"
    migrate(f"sqlite:///{file}")
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as outsider:
        outsider.execute("BEGIN IMMEDIATE")
        with pytest.raises(DatabaseBusy):
            migrate(f"sqlite:///{file}")


def test_a_file_that_is_no_database_fails_with_a_reason_and_without_sql(tmp_path: Path) -> None:
    file = tmp_path / "test.db"
    file.write_bytes(b"this is not a database, whatever its name says" * 100)
    with pytest.raises(DatabaseFailed) as caught:
        migrate(f"sqlite:///{file}")
    assert "PRAGMA" not in caught.value.detail
    assert caught.value.__cause__ is not None


@pytest.mark.postgres
def test_a_migration_under_way_elsewhere_refuses_another_in_time(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrations, "PATIENCE", 0.2)
    url = postgres.create_database()
    with postgres.connect(url.rpartition("/")[2]) as outsider:
        outsider.execute("SELECT pg_advisory_lock(%s)", [migrations.ADVISORY_LOCK])
        with pytest.raises(DatabaseBusy):
            migrate(url)
    migrate(url)
    ping(url)
