"""The tables of the job store, and how a database is opened and brought to their newest form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util import CommandError

from problems import StorageFailed

metadata = sa.MetaData()
# The columns as the newest migration leaves them; `migrations/` is the authority, and a test compares the two.
jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("job_id", sa.String(32), nullable=False, unique=True),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("model", sa.String(200), nullable=False),
    sa.Column("method", sa.String(100), nullable=False),
    sa.Column("request", sa.Text, nullable=False),
    sa.Column("progress", sa.Text),
    sa.Column("error", sa.Text),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("started_at", sa.Float),
    sa.Column("finished_at", sa.Float),
    sa.Column("cancel_requested", sa.Boolean, nullable=False),
    sa.Column("idempotency_key", sa.String(200)),
    sa.Column("fingerprint", sa.String(64)),
    sa.Column("expired_at", sa.Float),
    sa.Column("owner", sa.String(16), nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("reuse_key", sa.String(64)),
    sa.Column("reused_from", sa.String(32)),
)
api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("key_id", sa.String(16), primary_key=True),
    sa.Column("name", sa.String(100), nullable=False),
    sa.Column("hash", sa.String(64), nullable=False, unique=True),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("revoked_at", sa.Float),
)
job_tags = sa.Table(
    "job_tags",
    metadata,
    sa.Column("job_id", sa.String(32), primary_key=True),
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("value", sa.String(256), nullable=False),
    sa.Column("seq", sa.Integer, nullable=False),  # the job's number and owner, so that tags are in a page's order
    sa.Column("owner", sa.String(16), nullable=False),
)
result_files = sa.Table(
    "result_files",
    metadata,
    sa.Column("job_id", sa.String(32), primary_key=True),
    sa.Column("kind", sa.String(16), primary_key=True),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("codec", sa.String(32), nullable=False),
    sa.Column("size", sa.Integer, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
)

# Written out, not bound: an index of those that wait, or run, serves only a statement that says so itself.
IS_WAITING = jobs.c.status == sa.literal_column("'pending'")
IS_RUNNING = jobs.c.status == sa.literal_column("'running'")


def open_database(file: Path) -> sa.Engine:
    """The database, every write of which is synced before it is told."""
    engine = sa.create_engine(f"sqlite:///{file}", pool_size=16, max_overflow=32)
    sa.event.listen(engine, "connect", _configure_connection)
    sa.event.listen(engine, "begin", _begin)
    return engine


def for_reading(engine: sa.Engine) -> sa.Engine:
    """The same database without transactions: each statement sees what is committed."""
    return engine.execution_options(**{_BEGIN: None})


def for_writing(engine: sa.Engine) -> sa.Engine:
    """The same database, whose transactions wait at their begin for whoever else writes (a `keys` command, say): one
    that reads first and finds only then that somebody wrote meanwhile could not go on.
    """
    return engine.execution_options(**{_BEGIN: "BEGIN IMMEDIATE"})


_BEGIN = "begin_with"


def _begin(connection: sa.Connection) -> None:
    statement = connection.get_execution_options().get(_BEGIN, "BEGIN")
    if statement:
        connection.exec_driver_sql(statement)


def check_database(engine: sa.Engine, *, may_be_new: bool) -> None:
    """Raises `StorageFailed` for a damaged database, and for an empty one where there are results: they would be taken
    for strays, and removed.
    """
    remedy = "Restore the data directory from a backup, or give the server another --data-dir. Nothing was changed."
    try:
        with for_reading(engine).connect() as connection:
            found = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one()
            is_new = not sa.inspect(connection).has_table(jobs.name)
    except sa.exc.DatabaseError as error:
        if isinstance(error, sa.exc.OperationalError):  # it cannot be opened, which says nothing about its content
            raise
        found, is_new = str(error.orig), False
    if found != "ok":
        raise StorageFailed(f"The job store {engine.url.database} is damaged ({found}). {remedy}")
    if is_new and not may_be_new:
        raise StorageFailed(f"The job store {engine.url.database} is empty, but there are results. {remedy}")


def migrate(engine: sa.Engine) -> None:
    """Bring the database to this version's schema. Raises `StorageFailed` for one that a newer version wrote."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise StorageFailed(
                f"The job store was written by a newer version of this service ({error}). Upgrade the service, or give "
                "it another --data-dir."
            ) from error


def _configure_connection(connection: Any, _record: object) -> None:
    # SQLAlchemy emits BEGIN itself (above), so that sqlite3's own implicit transactions stay out of the way.
    connection.isolation_level = None
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=10000"):
        connection.execute(f"PRAGMA {pragma}").close()
