"""What an operator does to the database before anybody can sign in: bring it up to date, add a user."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from alembic.runtime.migration import MigrationContext
from sqlalchemy import make_url

from service.data.database import Database, open_database
from service.data.migrate import migrate, newest_revision
from service.data.users import SqlUserRepository
from service.model import User
from service.security.passwords import PasswordHasher
from service.services.users import NewUser, add_user
from service.settings import Settings

__all__ = ["Accounts", "migrate_database", "opened_accounts"]


class Accounts:
    """The users of one database, without anybody being asked who wants to know."""

    def __init__(self, users: SqlUserRepository, hasher: PasswordHasher) -> None:
        self._users = users
        self._hasher = hasher

    def exists(self, name: str) -> bool:
        """Whether there is a user of that name."""
        return self._users.credentials(name) is not None

    def has_password(self, name: str, password: str) -> bool:
        """Whether there is a user of that name with that password."""
        known = self._users.credentials(name)
        return self._hasher.verify(known and known[1], password)

    def add(self, new: NewUser) -> User:
        """Store a user. Raises `Conflict` when name or e-mail is taken."""
        return add_user(self._users, self._hasher, new)


def migrate_database(settings: Settings) -> tuple[str | None, str | None]:
    """Bring the database to the schema of this release. The revisions before (None: there was none) and after.

    Raises `DatabaseBusy` or `DatabaseFailed`.
    """
    before = _revision(settings)
    migrate(settings.database_url)
    return before, newest_revision()


@contextlib.contextmanager
def opened_accounts(settings: Settings) -> Iterator[Accounts]:
    """The users in the database that `settings` name. Its methods raise `DatabaseBusy` or `DatabaseFailed`."""
    with _opened(settings) as database, contextlib.closing(PasswordHasher(threads=1, waiting=1)) as hasher:
        yield Accounts(SqlUserRepository(database), hasher)


def _revision(settings: Settings) -> str | None:
    url = make_url(settings.database_url)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():
        return None
    with _opened(settings) as database:
        return database.read(lambda connection: MigrationContext.configure(connection).get_current_revision())


def _opened(settings: Settings) -> contextlib.closing[Database]:
    return contextlib.closing(open_database(settings))
