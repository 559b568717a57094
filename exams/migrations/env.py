"""Run by Alembic. The connection, with its transaction and its lock, is `zq.exams.migrate`'s."""

from alembic import context

from zq.exams import migrate, tables

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=tables.metadata,
    version_table=migrate.VERSION_TABLE,
)
with context.begin_transaction():
    context.run_migrations()
