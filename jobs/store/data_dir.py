"""The data directory: who may read it, the lock against a second server, and whether its parts are still there."""

from __future__ import annotations

import os
from pathlib import Path

import structlog
from filelock import FileLock, Timeout

from problems import StorageFailed

REMEDY = "The operator must repair the data directory (docs/operations.md); then try again."
DATABASE, RESULTS, LOCK = "jobs.sqlite3", "results", "server.lock"
RESTORE_MARK = "restore-unfinished"  # a file that exists while `restore` moves things
_OURS = ("jobs.sqlite3", "results", "server.lock", "inseq-artifacts", "huggingface", "before-restore", "restor")
log = structlog.get_logger(__name__)


class DataDirectory:
    """One data directory, locked from `lock` to `release`. Only its owner can read what the server writes there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.database = path / DATABASE
        self.results = path / RESULTS
        self._lock = FileLock(path / LOCK, timeout=0, mode=0o600)
        self._database_number: int | None = None

    def lock(self) -> None:
        """Lock the directory; it is created, for its owner only, if it does not exist.

        Raises `StorageFailed` if another server uses it, if it cannot be written, or if a restore did not finish.
        """
        try:
            make_private(self.path)
            self._lock.acquire()
        except Timeout:
            raise StorageFailed(
                f"Another server is running on {self.path}. Stop it, or give this one its own --data-dir."
            ) from None
        except OSError as error:
            raise StorageFailed(f"{self.path} cannot be written: {error.strerror}.") from error

    def open(self) -> None:
        """Create the database file and the results folder if they do not exist. Raises `StorageFailed`."""
        if (self.path / RESTORE_MARK).exists():
            raise StorageFailed(
                f"A restore of {self.path} did not finish. Run it again: python main.py restore FILE. What was there "
                "before it is in the folders before-restore-*."
            )
        try:
            self.results.mkdir(mode=0o700, exist_ok=True)
            self.results.chmod(0o700)
            touch_private(self.database)
            sync(self.path)
            self._database_number = self.database.stat().st_ino
        except OSError as error:
            raise StorageFailed(f"{self.path} cannot be written: {error.strerror}.") from error

    def check(self) -> None:
        """Raise `StorageFailed` if the database or the results folder was moved or deleted: nothing would last."""
        try:
            number = self.database.stat().st_ino
        except OSError:
            number = None
        if number is None or number != self._database_number:
            raise StorageFailed(f"The job store {self.database} was removed or replaced. {REMEDY}")
        if not self.results.is_dir():
            raise StorageFailed(f"The folder of the results, {self.results}, is missing. {REMEDY}")

    def release(self) -> None:
        """Unlock the directory."""
        self._lock.release()


def make_private(path: Path) -> None:
    """Create a directory with mode 0700, or give an existing one this mode. Its parents are created too.

    A directory that also has files of others keeps its mode. Raises `OSError` if it cannot be created.
    """
    if not path.is_dir():
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        sync(path.parent)
    elif path.stat().st_mode & 0o077:
        foreign = sorted(each.name for each in path.iterdir() if not each.name.startswith(_OURS))
        if foreign:
            log.warning(
                "data_dir_is_shared", data_dir=str(path), other_files=foreign[:5], mode=oct(path.stat().st_mode)
            )
            return
        try:
            path.chmod(0o700)
        except OSError as error:  # it belongs to somebody else; the files in it are private all the same
            log.warning("data_dir_mode_not_set", data_dir=str(path), error=error.strerror)


def touch_private(path: Path) -> None:
    """Create an empty file with mode 0600, or give an existing one and SQLite's files beside it this mode."""
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    for file in (path, *(path.with_name(path.name + suffix) for suffix in ("-wal", "-shm"))):
        if file.exists():
            file.chmod(0o600)


def sync(directory: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
