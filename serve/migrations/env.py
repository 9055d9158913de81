"""Alembic's entry: runs the migrations on the connection that `smartrouter.feedback.tables.upgrade` hands over."""

from alembic import context

from smartrouter.feedback.tables import METADATA

connection = context.config.attributes.get("connection")
if connection is None:
    raise SystemExit("run migrations through smartrouter.feedback.tables.upgrade(url), not the alembic command")
context.configure(connection=connection, target_metadata=METADATA, render_as_batch=connection.dialect.name == "sqlite")
with context.begin_transaction():
    context.run_migrations()
