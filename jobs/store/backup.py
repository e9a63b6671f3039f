"""Backup and restore of a data directory: the database and its results in one tar file, with a checksum of each.

A backup may be made while a server runs, or after a crash: SQLite copies a consistent state, with what is only in its
write-ahead log. A result file never changes after it was written. A restore needs the directory for itself, checks the
whole backup before it changes anything, and moves what was there aside.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import sqlite3
import tarfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import sqlalchemy as sa

from jobs.store.data_dir import DATABASE, RESTORE_MARK, RESULTS, DataDirectory, sync, touch_private
from jobs.store.schema import check_version, open_database
from problems import StorageFailed

_MANIFEST = "manifest.json"
_FORMAT = 1
_BLOCK = 1024**2  # bytes read at once


@dataclass(frozen=True)
class Summary:
    """What a backup contains. `missing`: results that the database names and whose files are gone."""

    jobs: int
    results: int
    missing: int


def back_up(data_dir: Path, target: Path) -> Summary:
    """Write a backup to a new file with mode 0600. Raises `StorageFailed`; then there is no such file."""
    database = data_dir / DATABASE
    if not database.exists():
        raise StorageFailed(f"There is no job store in {data_dir}.")
    if target.exists():
        raise StorageFailed(f"{target} exists already. Give the backup another name.")
    copy, archive = (target.with_name(f"{target.name}.{suffix}") for suffix in ("sqlite3.part", "part"))
    try:
        try:
            _copy_database(database, copy)
            summary = _write_archive(archive, copy, data_dir / RESULTS, database)
            archive.rename(target)
            sync(target.parent)
        finally:
            for file in (copy, archive):
                file.unlink(missing_ok=True)
    except (OSError, sqlite3.Error) as error:
        raise StorageFailed(f"The backup {target} could not be written: {error}.") from error
    return summary


def restore(data_dir: Path, source: Path) -> tuple[Summary, Path | None]:
    """Replace the data directory's database and results by those of a backup.

    Returns what was restored, and the folder to which what was there before was moved, or None if there was nothing.
    Raises `StorageFailed` if a server uses the directory or the backup is damaged; then nothing was changed.
    """
    directory = DataDirectory(data_dir)
    directory.lock()
    stamp = time.strftime("%Y%m%d-%H%M%S")
    staged = _unused(data_dir / f"restoring-{stamp}")
    try:
        for unfinished in data_dir.glob("restoring-*"):  # copies of a backup, of a restore that was killed
            shutil.rmtree(unfinished)
        if directory.results.is_mount():
            raise StorageFailed(f"{directory.results} is a mounted disk. Restore into another --data-dir.")
        staged.mkdir(mode=0o700)
        summary = _extract(source, staged)
        before = _unused(data_dir / f"before-restore-{stamp}")
        return summary, _switch(data_dir, staged, before)
    except (OSError, sqlite3.Error, tarfile.TarError) as error:
        raise StorageFailed(f"The backup {source} could not be restored: {error}.") from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)
        directory.release()


# Backup


def _copy_database(database: Path, copy: Path) -> None:
    """Copy the database as it is at one moment, with what is only in the write-ahead log, and check the copy."""
    touch_private(copy)
    with closing(sqlite3.connect(database, timeout=60)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)  # all pages in one read transaction: other processes go on reading and writing
        target.execute("PRAGMA journal_mode=DELETE").close()  # one file, without a log beside it
    _check_integrity(copy)


def _check_integrity(database: Path) -> None:
    with closing(sqlite3.connect(database)) as connection:
        try:
            found = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
        except sqlite3.DatabaseError as error:
            found = str(error)
    if found != "ok":
        raise StorageFailed(f"The job store is damaged ({found}); nothing was changed.")


def _write_archive(archive: Path, copy: Path, results: Path, live: Path) -> Summary:
    """Write the tar file with fsync. Results that were removed after the copy was made are marked in it as expired."""
    names = _result_names(copy)
    checksums: dict[str, str] = {}
    with open(archive, "xb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for name in names:
                if (digest := _add_file(tar, results / name, f"{RESULTS}/{name}")) is not None:
                    checksums[f"{RESULTS}/{name}"] = digest
            gone = [name for name in names if f"{RESULTS}/{name}" not in checksums]
            _forget_removed(copy, set(gone) - set(_result_names(live)))
            checksums[DATABASE] = _add_file(tar, copy, DATABASE) or ""
            summary = Summary(_count(copy, "jobs"), len(checksums) - 1, len(set(gone) & set(_result_names(copy))))
            manifest = json.dumps({"format": _FORMAT, "made_at": time.time(), "sha256": checksums}).encode()
            entry = tarfile.TarInfo(_MANIFEST)
            entry.size = len(manifest)
            tar.addfile(entry, io.BytesIO(manifest))
        file.flush()
        os.fsync(file.fileno())
    return summary


def _add_file(tar: tarfile.TarFile, path: Path, name: str) -> str | None:
    """Add a file and return the SHA-256 of its bytes, or None if it is gone."""
    try:
        with path.open("rb") as file:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = os.fstat(file.fileno()).st_size, 0o600
            hashing = _Hashing(file)
            tar.addfile(entry, hashing)
            return hashing.hexdigest
    except FileNotFoundError:
        return None


class _Hashing:
    """A file for reading that computes the SHA-256 of what was read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        block = self._file.read(size)
        self._digest.update(block)
        return block

    @property
    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def _result_names(database: Path) -> list[str]:
    """Return the names of the result files; one that a damaged row names and that is no file name is left out."""
    with closing(sqlite3.connect(database, timeout=60)) as connection:
        rows = connection.execute("SELECT name FROM result_files ORDER BY name").fetchall()
    return [name for (name,) in rows if isinstance(name, str) and _is_file_name(name)]


def _is_file_name(name: str) -> bool:
    return name not in {"", ".", ".."} and "/" not in name and "\0" not in name


def _forget_removed(copy: Path, names: set[str]) -> None:
    """Mark the jobs of results that were removed meanwhile as expired, in the copy of the database."""
    with closing(sqlite3.connect(copy)) as connection, connection:
        for name in names:
            values = (time.time(), name)
            connection.execute(
                "UPDATE jobs SET expired_at = ? WHERE job_id IN (SELECT job_id FROM result_files WHERE name = ?)",
                values,
            )
            connection.execute("DELETE FROM result_files WHERE name = ?", (name,))


def _count(database: Path, table: str) -> int:
    with closing(sqlite3.connect(database)) as connection:
        return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])  # noqa: S608 - a constant


# Restore


def _extract(source: Path, staged: Path) -> Summary:
    """Write the files of a backup to a new folder with fsync, and check all of them. Raises `StorageFailed`."""
    (staged / RESULTS).mkdir(mode=0o700)
    found: dict[str, str] = {}
    wanted: dict[str, str] = {}
    try:
        with tarfile.open(source, mode="r:") as tar:
            for entry in tar:
                file = tar.extractfile(entry) if entry.isfile() else None
                if file is None or not _is_member(entry.name) or entry.name in found:
                    raise StorageFailed(f"{source} is no backup of this service: it has an entry {entry.name!r}.")
                if entry.name == _MANIFEST:
                    wanted = _checksums(file.read())
                else:
                    found[entry.name] = _write_file(staged / entry.name, file)
    except (tarfile.TarError, ValueError, EOFError) as error:
        raise StorageFailed(f"{source} is damaged, or no backup: {error}. Nothing was changed.") from error
    wrong = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
    if wrong or DATABASE not in found:
        raise StorageFailed(f"{source} is damaged: {len(wrong)} files are missing or changed. Nothing was changed.")
    _check_integrity(staged / DATABASE)
    engine = open_database(staged / DATABASE, wal=False)
    try:
        check_version(engine)
    except sa.exc.DBAPIError as error:
        raise StorageFailed(f"{source} has no job store: {error.orig}. Nothing was changed.") from error
    finally:
        engine.dispose()
    for folder in (staged / RESULTS, staged):
        sync(folder)
    missing = set(_result_names(staged / DATABASE)) - {name.removeprefix(f"{RESULTS}/") for name in found}
    return Summary(_count(staged / DATABASE, "jobs"), len(found) - 1, len(missing))


def _is_member(name: str) -> bool:
    folder, slash, file = name.rpartition("/")
    return name in {DATABASE, _MANIFEST} if not slash else folder == RESULTS and _is_file_name(file)


def _checksums(manifest: bytes) -> dict[str, str]:
    """Return the checksums in a manifest. Raises `ValueError` if it is none of this format."""
    content = json.loads(manifest)
    if not isinstance(content, dict) or content.get("format") != _FORMAT or not isinstance(content.get("sha256"), dict):
        raise ValueError("its manifest is not of this version")
    return {str(name): str(digest) for name, digest in content["sha256"].items()}


def _write_file(path: Path, content: IO[bytes]) -> str:
    """Write a file with mode 0600 and fsync. Returns the SHA-256 of its bytes."""
    digest = hashlib.sha256()
    with open(path, "xb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
        for block in _blocks(content):
            digest.update(block)
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    while block := file.read(_BLOCK):
        yield block


def _switch(data_dir: Path, staged: Path, before: Path) -> Path | None:
    """Move what is there to `before`, and what is staged to its place.

    A mark keeps servers from starting if the process dies between two moves.
    """
    names = [name for name in (f"{DATABASE}-wal", f"{DATABASE}-shm", DATABASE, RESULTS) if (data_dir / name).exists()]
    mark = data_dir / RESTORE_MARK
    touch_private(mark)
    sync(data_dir)
    if names:
        before.mkdir(mode=0o700)
        for name in names:
            (data_dir / name).rename(before / name)
        sync(before)
    for name in (RESULTS, DATABASE):
        (staged / name).rename(data_dir / name)
    sync(data_dir)
    mark.unlink()
    sync(data_dir)
    return before if names else None


def _unused(path: Path) -> Path:
    """Return this path, or the first one with a number after it that does not exist."""
    candidate, number = path, 1
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate
