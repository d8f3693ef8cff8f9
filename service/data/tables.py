"""The tables, as SQLAlchemy sees them. Changing one takes a migration in `migrations/versions` and a new `REVISION`."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    Dialect,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    func,
    text,
)
from sqlalchemy.types import TypeDecorator

__all__ = ["REVISION", "UNIQUE_FIELDS", "UtcDateTime", "metadata", "schema_revision", "users"]

REVISION = "0001"
"""The newest migration. Kept here so that workers can compare it with the database without loading Alembic."""


class UtcDateTime(TypeDecorator[datetime]):
    """An aware time in UTC, also where the database keeps no time zone (SQLite)."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 - SQLAlchemy's signature
        """To UTC. A naive time is refused: which moment it means is a guess."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a naive time cannot be stored; use datetime.now(UTC)")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 - SQLAlchemy's signature
        """In UTC again."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


metadata = MetaData()

users = Table(
    "users",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("name", String(64), nullable=False),
    Column("email", String(254), nullable=False),
    Column("role", String(16), nullable=False),
    Column("password_hash", String(256), nullable=False),
    Column("version", Integer, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    CheckConstraint("role IN ('member', 'admin')", name="users_role_known"),
    # A deleted user's id must not come back: tokens name users by id.
    sqlite_autoincrement=True,
)
Index("users_name_taken", func.lower(users.c.name), unique=True)
Index("users_email_taken", func.lower(users.c.email), unique=True)

UNIQUE_FIELDS = {"users_name_taken": "name", "users_email_taken": "email"}
"""Which member of the input a unique index speaks of."""

schema_revision = text("SELECT version_num FROM alembic_version")
