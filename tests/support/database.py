"""Databases and users for tests, as quick as they can be made."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import argon2
from pydantic import SecretStr

from service.data.database import Database, open_database
from service.data.migrate import migrate
from service.security.passwords import PasswordHasher
from service.settings import Settings

__all__ = ["PASSWORD", "QUICK", "migrated", "migrated_sqlite", "quick_hasher", "settings_for"]

PASSWORD = "correct horse battery"
QUICK = argon2.Parameters(
    type=argon2.Type.ID, version=19, salt_len=16, hash_len=32, time_cost=1, memory_cost=8, parallelism=1
)


def settings_for(database_url: str, **values: Any) -> Settings:
    """Settings for tests that use this database. Limits and circuits are the process's own, unless `values` say otherwise."""
    secret = SecretStr("testing-only-secret-of-more-than-32-bytes")
    values = {"resilience_storage_uri": "memory://", "resilience_state_uri": "memory://", **values}
    return Settings(environment="testing", token_secret=secret, database_url=database_url, **values)


def migrated(database_url: str, **values: Any) -> Database:
    """The database at that address, with the tables of this release. The caller closes it."""
    migrate(database_url)
    return open_database(settings_for(database_url, **values))


def migrated_sqlite(folder: Path, **values: Any) -> Database:
    """A new SQLite database in `folder`. The caller closes it."""
    file = folder / "test.db"
    shutil.copyfile(_empty_sqlite(), file)
    return open_database(settings_for(f"sqlite:///{file}", **values))


@functools.cache
def _empty_sqlite() -> Path:
    """A file with the tables of this release, made once for all tests of this process: migrations take their time."""
    folder = Path(tempfile.mkdtemp(prefix="seawall-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    file = folder / "empty.db"
    migrate(f"sqlite:///{file}")
    return file


def quick_hasher(*, threads: int = 1, waiting: int = 8) -> PasswordHasher:
    """Real hashes that cost next to nothing. The caller closes it."""
    return PasswordHasher(threads=threads, waiting=waiting, parameters=QUICK)
