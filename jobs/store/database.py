"""The open database of a store: its one writer, its readers, and their failures as `StorageFailed`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

from jobs.store.data_dir import REMEDY
from jobs.store.schema import check_database, for_reading, for_writing, migrate, open_database
from problems import StorageFailed


class Database:
    """Opens the file; `prepare` comes before the first read. Safe to use from many threads. Raises `OSError`."""

    def __init__(self, file: Path) -> None:
        self.engine = open_database(file)
        # One writer at a time: SQLite allows one anyway, and a lock is fairer than its busy timeout.
        self.write_lock = threading.Lock()
        self._reader, self.writer = for_reading(self.engine), for_writing(self.engine)

    def prepare(self, *, may_be_new: bool) -> None:
        """Check the database and migrate it to this version's schema. Raises as these do (`jobs.store.schema`)."""
        check_database(self.engine, may_be_new=may_be_new)
        migrate(self.engine)

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """Open a connection on which each statement sees all committed data. Raises `StorageFailed`."""
        try:
            with self._reader.connect() as connection:
                yield connection
        except sa.exc.SQLAlchemyError as error:
            raise StorageFailed(f"The job store cannot be read: {_reason(error)}. {REMEDY}") from error

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """Open a transaction, which is committed with fsync at the end. Raises `StorageFailed`."""
        try:
            with self.write_lock, self.writer.begin() as connection:
                yield connection
        except sa.exc.SQLAlchemyError as error:
            raise StorageFailed(f"The job store cannot be written: {_reason(error)}. {REMEDY}") from error

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def _reason(error: sa.exc.SQLAlchemyError) -> str:
    return str(error.orig if isinstance(error, sa.exc.DBAPIError) else error)
