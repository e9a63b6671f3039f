"""Alembic migrations of the job store; `job_store` runs them when it opens a data directory."""
