"""Users at rest: `UserRepository` in SQL."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, bindparam, delete, func, insert, select, update

from service.data.database import Database
from service.data.tables import users
from service.errors import Conflict, PreconditionFailed
from service.model import Page, Role, User

__all__ = ["SqlUserRepository"]

LARGEST_ID = 2**63 - 1

COLUMNS = (
    users.c.id,
    users.c.name,
    users.c.email,
    users.c.role,
    users.c.version,
    users.c.created_at,
    users.c.updated_at,
)
BY_ID = select(*COLUMNS)
# Built once: putting the clause together takes longer than SQLite takes to answer it.
ONE_BY_ID = BY_ID.where(users.c.id == bindparam("user_id"))
ADMINS = select(users.c.id).where(users.c.role == "admin").order_by(users.c.id).with_for_update()


def _now() -> datetime:
    return datetime.now(UTC)


class SqlUserRepository:
    """`UserRepository` on a `Database`. One rule lives here because only the transaction can hold it: an admin is
    neither demoted nor removed while there is no other; `change` and `remove` raise `Conflict` instead."""

    def __init__(self, database: Database, *, now: Callable[[], datetime] = _now) -> None:
        self._database = database
        self._now = now

    def get(self, user_id: int) -> User | None:
        """The user, or None."""
        if not 0 < user_id <= LARGEST_ID:
            return None
        row = self._database.read(lambda connection: connection.execute(ONE_BY_ID, {"user_id": user_id}).first())
        return None if row is None else _user(row)

    def credentials(self, name: str) -> tuple[User, str] | None:
        """The user of that name, in whatever case, with the password hash; or None."""
        query = select(*COLUMNS, users.c.password_hash).where(func.lower(users.c.name) == name.lower())
        row = self._database.read(lambda connection: connection.execute(query).first())
        return None if row is None else (_user(row), row.password_hash)

    def page(self, after: int, size: int) -> Page:
        """Up to `size` users with an id above `after`, by id. The cursor is the last id."""
        query = BY_ID.where(users.c.id > min(after, LARGEST_ID)).order_by(users.c.id).limit(size + 1)
        rows = self._database.read(lambda connection: connection.execute(query).all())
        found = tuple(_user(row) for row in rows[:size])
        return Page(users=found, next=str(found[-1].id) if len(rows) > size else None)

    def add(self, *, name: str, email: str, role: Role, password_hash: str) -> User:
        """Store a new user at version 1. Raises `Conflict` when name or email is taken."""
        now = self._now()
        statement = (
            insert(users)
            .values(
                name=name,
                email=email,
                role=role,
                password_hash=password_hash,
                version=1,
                created_at=now,
                updated_at=now,
            )
            .returning(*COLUMNS)
        )
        return _user(self._database.write(lambda connection: connection.execute(statement).one()))

    def change(self, user_id: int, version: int | None, changes: Mapping[str, str]) -> User | None:
        """Apply `changes` and raise the version by one; without changes, only check the version. See the Protocol."""
        if not 0 < user_id <= LARGEST_ID:
            return None
        now = self._now()

        def work(connection: Connection) -> User | None:
            if changes.get("role", "admin") != "admin":
                _keep_an_admin(connection, user_id)
            stored = _locked(connection, user_id, version)
            if stored is None or not changes:
                return stored
            values = {**changes, "version": stored.version + 1, "updated_at": now}
            statement = update(users).where(users.c.id == user_id).values(values).returning(*COLUMNS)
            return _user(connection.execute(statement).one())

        return self._database.write(work)

    def remove(self, user_id: int, version: int | None) -> bool:
        """Delete the user. See the Protocol."""
        if not 0 < user_id <= LARGEST_ID:
            return False

        def work(connection: Connection) -> bool:
            _keep_an_admin(connection, user_id)
            if _locked(connection, user_id, version) is None:
                return False
            connection.execute(delete(users).where(users.c.id == user_id))
            return True

        return self._database.write(work)


def _locked(connection: Connection, user_id: int, version: int | None) -> User | None:
    row = connection.execute(BY_ID.where(users.c.id == user_id).with_for_update()).first()
    if row is None:
        return None
    if version is not None and row.version != version:
        raise PreconditionFailed(f"The user is at version {row.version} now. Read it again and repeat the change.")
    return _user(row)


def _keep_an_admin(connection: Connection, user_id: int) -> None:
    # All admins are locked, in one order and before the row itself: two that demote each other take turns, and the
    # second finds itself the last.
    if connection.execute(ADMINS).scalars().all() == [user_id]:
        raise Conflict("This is the last admin. Make another user an admin first.")


def _user(row: Row[*tuple[Any, ...]]) -> User:
    return User(
        id=row.id,
        name=row.name,
        email=row.email,
        role=row.role,
        version=row.version,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )
