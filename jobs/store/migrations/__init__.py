"""Alembic migrations of the job store; `jobs.store.schema` runs them when it opens a data directory."""
