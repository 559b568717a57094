"""The exam store's schema, step by step: an Alembic environment, run by `zq.exams.migrate`."""
