"""Create the users."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Names and e-mail addresses are unique without regard to case, by indexes on their lower-case forms."""
    op.create_table(
        "users",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("email", sa.String(254), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("password_hash", sa.String(256), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("role IN ('member', 'admin')", name="users_role_known"),
        sqlite_autoincrement=True,
    )
    op.create_index("users_name_taken", "users", [sa.text("lower(name)")], unique=True)
    op.create_index("users_email_taken", "users", [sa.text("lower(email)")], unique=True)


def downgrade() -> None:
    """Drop the users, with everyone in them."""
    op.drop_table("users")
