"""Alembic's entry: runs the migrations on the connection that the store hands in."""

from __future__ import annotations

from alembic import context

from shoal.cloud.store import metadata

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=metadata,
    render_as_batch=True,
    transaction_per_migration=False,
)
# The caller's transaction holds everything, so no context.begin_transaction() here.
context.run_migrations()
