"""Result files on disk: written with fsync under a name that contains the attempt, verified by checksum when read.

The rows of the store decide which files belong to a result. Raises `StorageFailed` if the disk fails.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import structlog

from jobs.store.data_dir import REMEDY, sync
from jobs.store.leftovers import SET_ASIDE
from jobs.store.rows import text
from models import ResultPart
from problems import ResultDamaged, StorageFailed

_MIN_FREE = 1024**2  # free bytes below which the disk counts as full
log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class ResultFile:
    """One stored file of a result. `codec`: encoding of its bytes; `size` and `sha256`: of the stored bytes."""

    kind: str
    name: str
    codec: str
    size: int
    sha256: str

    @classmethod
    def of(cls, row: Any) -> ResultFile:
        """Return a row of the table `result_files` as a file, whatever the row contains."""
        return cls(text(row.kind), text(row.name), text(row.codec), row.size, text(row.sha256))


class ResultFiles:
    """The files in `directory`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def write(self, job_id: str, attempt: int, parts: Sequence[ResultPart]) -> list[ResultFile]:
        """Write all parts with fsync, or none. Raises `StorageFailed`."""
        names = [f"{job_id}.{attempt}.{part.kind}" for part in parts]
        try:
            files = [self._write(name, part) for name, part in zip(names, parts, strict=True)]
            sync(self.directory)
        except OSError as error:
            self.remove(names)
            raise StorageFailed(f"The result could not be stored: {error.strerror}. {REMEDY}") from error
        return files

    def read(self, stored: ResultFile) -> bytes:
        """Return the bytes of a file. Raises `ResultDamaged` if it is missing or changed, else `StorageFailed`."""
        try:
            content = self._path(stored.name).read_bytes()
        except FileNotFoundError:
            content = None
            if not self.directory.is_dir():  # moved or unmounted: the result is damaged only if it alone is gone
                raise StorageFailed(f"The folder of the results, {self.directory}, is missing. {REMEDY}") from None
        except OSError as error:
            raise StorageFailed(f"The result file {stored.name} cannot be read: {error.strerror}. {REMEDY}") from error
        if content is None or hashlib.sha256(content).hexdigest() != stored.sha256:
            what = "is gone from the disk" if content is None else "is damaged: its checksum does not match"
            log.error("result_damaged", file=stored.name, gone=content is None)
            raise ResultDamaged(f"The result file {stored.name} {what}. Submit the job again.")
        return content

    def link_all(self, files: Sequence[ResultFile], job_id: str) -> list[ResultFile]:
        """Hard-link the files under names of another job, so that either job can be deleted without the other.

        Raises `StorageFailed` if a file is missing or damaged.
        """
        linked = [replace(stored, name=f"{job_id}.0.{stored.kind}") for stored in files]
        try:
            for stored, link in zip(files, linked, strict=True):
                self.read(stored)
                os.link(self._path(stored.name), self._path(link.name))
            sync(self.directory)
        except (OSError, StorageFailed, ResultDamaged) as error:
            self.remove(link.name for link in linked)
            raise StorageFailed(f"The result cannot be linked: {error}.") from error
        return linked

    def remove(self, names: Iterable[str]) -> list[str]:
        """Remove files. Returns the names of those that are gone; the others can be tried again.

        No file has the name that a damaged row may contain, such as `../x`, so it counts as gone.
        """
        gone = []
        for name in names:
            with suppress(OSError):
                if _is_file_name(name):
                    self._path(name).unlink(missing_ok=True)
                gone.append(name)
        return gone

    def sync(self) -> bool:
        """Make removals durable. Returns False if the disk fails."""
        try:
            sync(self.directory)
        except OSError:
            return False
        return True

    @property
    def is_empty(self) -> bool:
        """Whether there are no result files."""
        return not any(each.name != SET_ASIDE for each in self.directory.iterdir())

    @property
    def are_writable(self) -> bool:
        """Whether files can be written: permission, and at least 1 MiB free."""
        try:
            return os.access(self.directory, os.W_OK) and shutil.disk_usage(self.directory).free > _MIN_FREE
        except OSError:
            return False

    def _path(self, name: str) -> Path:
        """Return the path of a file. Raises `StorageFailed` for a name that no result file has, such as `../x`."""
        if not _is_file_name(name):
            raise StorageFailed(f"The job store names a result file {name!r}, which is no file name. {REMEDY}")
        return self.directory / name

    def _write(self, name: str, part: ResultPart) -> ResultFile:
        # The attempt is in the name, so that two attempts can never mix their files.
        temporary = self.directory / f".{name}.{uuid.uuid4().hex}.part"
        try:
            with open(temporary, "xb", opener=_open_private) as file:
                file.write(part.content)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(self.directory / name)
        except OSError:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        digest = hashlib.sha256(part.content).hexdigest()
        return ResultFile(part.kind, name, part.codec, len(part.content), digest)


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _is_file_name(name: object) -> bool:
    return isinstance(name, str) and name not in {"", ".", ".."} and "/" not in name and "\0" not in name
