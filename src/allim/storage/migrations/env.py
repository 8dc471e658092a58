"""Run by Alembic. The connection, with the lock already taken on it, is handed in by `migrate`."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
