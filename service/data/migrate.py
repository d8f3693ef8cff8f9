"""Bring a database to the schema of this release. Needs no configuration file; the migrations ship with the package."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, make_url, text

from service.data.sqlite import sqlite_engine
from service.data.translation import translated

__all__ = ["migrate", "newest_revision"]

MIGRATIONS = Path(__file__).parent / "migrations"
PATIENCE = 30.0
"""Seconds to wait for another process that is migrating or writing."""
ADVISORY_LOCK = 0x5EA_0A11
"""Held on PostgreSQL while migrating, so that of several starting at once one migrates and the others find it done."""


def migrate(database_url: str) -> None:
    """Apply every migration that the database at `database_url` lacks, all in one transaction.

    Creates the folder and file of an SQLite database. Does nothing to a database that is up to date. Raises
    `DatabaseBusy` when others hold the database for too long, `DatabaseFailed` otherwise.
    """
    engine = _engine(database_url)
    try:
        with translated(), engine.connect() as connection, connection.begin():
            _lock(connection)
            config = _config()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    finally:
        engine.dispose()


def newest_revision() -> str | None:
    """The revision that `migrate` leads to."""
    return ScriptDirectory.from_config(_config()).get_current_head()


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def _engine(database_url: str) -> Engine:
    url = make_url(database_url)
    if url.get_backend_name() == "sqlite" and url.database:
        path = Path(url.database)
        path.parent.mkdir(parents=True, exist_ok=True)
        return sqlite_engine(path, "rwc", patience=PATIENCE)
    # Only here, for the reason given in `database`.
    from service.data.postgres import postgres_engine

    return postgres_engine(url, timeout=PATIENCE, pool_size=1)


def _lock(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
