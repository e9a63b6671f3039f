"""The tables of the job store; opens, checks and migrates its database."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError

from jobs.store.data_dir import touch_private
from problems import StorageFailed

metadata = sa.MetaData()
# The columns after the newest migration. the migrations are authoritative; a test compares the two.
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
    sa.Column("kept_since", sa.Float),
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
    sa.Column("seq", sa.Integer, nullable=False),  # `seq` and `owner` of the job, so that one index has a page of a tag
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

removed_files = sa.Table("removed_files", metadata, sa.Column("name", sa.String(200), primary_key=True))
retention_clock = sa.Table(
    "retention_clock",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("seconds", sa.Float, nullable=False),
)
webhook_deliveries = sa.Table(
    "webhook_deliveries",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True),  # of the job
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("host", sa.String(300), nullable=False),  # with its port, in lower case
    sa.Column("events", sa.String(100), nullable=False),  # the statuses to report, joined by commas
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("due_at", sa.Float),  # when to try again; NULL before the first attempt
    sa.Column("ended_at", sa.Float),  # when it was delivered or given up
    sa.Column("error", sa.Text),  # of the last attempt
)
shares = sa.Table(
    "shares",
    metadata,
    sa.Column("share_id", sa.String(16), primary_key=True),
    sa.Column("seq", sa.Integer, nullable=False),  # of the job
    sa.Column("hash", sa.String(64), nullable=False, unique=True),  # SHA-256 of the token
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("expires_at", sa.Float, nullable=False),
)

# Literals, not bound parameters: SQLite uses a partial index only if the statement itself contains its condition.
IS_WAITING = jobs.c.status == sa.literal_column("'pending'")
IS_RUNNING = jobs.c.status == sa.literal_column("'running'")


def open_database(file: Path, *, wal: bool = True) -> sa.Engine:
    """Open the database with synchronous=FULL: a commit returns after fsync. Raises `OSError`.

    wal: with a write-ahead log beside it. A file that does not exist is created for its owner only; SQLite gives its
    other files the same mode. A file that is moved away later is not created again: connections then fail.
    """
    touch_private(file)
    engine = sa.create_engine(f"sqlite:///{file}", pool_size=16, max_overflow=32)

    def is_there(*_: Any) -> None:
        if not file.exists():
            raise sqlite3.OperationalError(f"{file} was removed or replaced")

    sa.event.listen(engine, "do_connect", is_there)
    sa.event.listen(engine, "connect", _configure_connection)
    if wal:
        sa.event.listen(engine, "connect", _use_wal)
    sa.event.listen(engine, "begin", _begin)
    return engine


def for_reading(engine: sa.Engine) -> sa.Engine:
    """Return the same database without transactions: each statement sees all committed data."""
    return engine.execution_options(**{_BEGIN: None})


def for_writing(engine: sa.Engine) -> sa.Engine:
    """Return the same database with BEGIN IMMEDIATE: a transaction waits at its start for other writers.

    With plain BEGIN, a transaction that reads first fails when it writes after another process (a `keys` command, for
    example) has written meanwhile.
    """
    return engine.execution_options(**{_BEGIN: "BEGIN IMMEDIATE"})


_BEGIN = "begin_with"


def _begin(connection: sa.Connection) -> None:
    statement = connection.get_execution_options().get(_BEGIN, "BEGIN")
    if statement:
        connection.exec_driver_sql(statement)


def check_database(engine: sa.Engine, *, may_be_new: bool) -> None:
    """Raise `StorageFailed` if the database is damaged, or empty although there are result files.

    may_be_new: whether there are no result files. With an empty database they would all be removed as unknown.
    """
    remedy = "Restore the data directory from a backup, or give the server another --data-dir. Nothing was changed."
    try:
        with for_reading(engine).connect() as connection:
            found = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one()
            is_new = not sa.inspect(connection).has_table(jobs.name)
    except sa.exc.DatabaseError as error:
        if isinstance(error, sa.exc.OperationalError):  # it cannot be opened; its content may be intact
            raise
        found, is_new = str(error.orig), False
    if found != "ok":
        raise StorageFailed(f"The job store {engine.url.database} is damaged ({found}). {remedy}")
    if is_new and not may_be_new:
        raise StorageFailed(f"The job store {engine.url.database} is empty, but there are results. {remedy}")


def migrate(engine: sa.Engine) -> None:
    """Migrate the database to this version's schema. Raises `StorageFailed` if a newer version wrote it."""
    config = _migrations()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise _newer(error) from error


def check_version(engine: sa.Engine) -> None:
    """Raise `StorageFailed` if the database was written by a newer version. Changes nothing."""
    with for_reading(engine).connect() as connection:
        version = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one()
    try:
        ScriptDirectory.from_config(_migrations()).get_revision(version)
    except CommandError as error:
        raise _newer(error) from error


def _migrations() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


def _newer(error: CommandError) -> StorageFailed:
    return StorageFailed(
        f"The job store was written by a newer version of this service ({error}). Upgrade the service, or give it "
        "another --data-dir."
    )


def _configure_connection(connection: Any, _record: object) -> None:
    # `_begin` emits BEGIN, so sqlite3 must not begin transactions by itself.
    connection.isolation_level = None
    connection.text_factory = lambda text: text.decode(errors="replace")  # text that is no UTF-8 must not raise
    for pragma in ("synchronous=FULL", "foreign_keys=ON", "busy_timeout=10000"):
        connection.execute(f"PRAGMA {pragma}").close()


def _use_wal(connection: Any, _record: object) -> None:
    connection.execute("PRAGMA journal_mode=WAL").close()
