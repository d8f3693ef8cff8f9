"""Which database an address opens."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.data.database import open_database
from service.data.postgres import PostgresDatabase
from service.data.sqlite import SqliteDatabase
from tests.support.database import settings_for


def test_an_sqlite_address_opens_a_file(tmp_path: Path) -> None:
    database = open_database(settings_for(f"sqlite:///{tmp_path / 'test.db'}"))
    assert isinstance(database, SqliteDatabase)
    database.close()


@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg"])
def test_a_postgresql_address_opens_a_server_with_psycopg_3_and_connects_later(scheme: str) -> None:
    database = open_database(settings_for(f"{scheme}://user@127.0.0.1:1/nowhere"))
    assert isinstance(database, PostgresDatabase)
    assert "psycopg" == database._engine.dialect.driver
    assert 0 == database.lent
    database.close()
