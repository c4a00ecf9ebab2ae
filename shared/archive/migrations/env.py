"""Alembic's entry: runs the migrations over the connection that it is given."""

from alembic import context

from shared.archive.schema import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, render_as_batch=True, transactional_ddl=False)
context.run_migrations()
