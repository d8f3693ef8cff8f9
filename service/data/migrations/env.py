"""What Alembic runs: the migrations, on the connection and in the transaction that `service.data.migrate` opened."""

from __future__ import annotations

from alembic import context

from service.data.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
