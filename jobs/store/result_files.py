"""Result files on disk: written with fsync under a name that contains the attempt, verified by checksum when read.

The rows of the store decide which files belong to a result. Raises `StorageFailed` if the disk fails.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from models import ResultPart
from problems import ResultDamaged, StorageFailed

REMEDY = "The operator must repair the data directory (docs/operations.md); then try again."
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


class ResultFiles:
    """The files in one directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def write(self, job_id: str, attempt: int, parts: Sequence[ResultPart]) -> list[ResultFile]:
        """Write all parts with fsync, or none. Raises `StorageFailed`."""
        names = [f"{job_id}.{attempt}.{part.kind}" for part in parts]
        try:
            files = [self._write(name, part) for name, part in zip(names, parts, strict=True)]
            _sync_directory(self._directory)
        except OSError as error:
            self.remove(names)
            raise StorageFailed(f"The result could not be stored: {error.strerror}. {REMEDY}") from error
        return files

    def read(self, stored: ResultFile) -> bytes:
        """Return the bytes of a file. Raises `ResultDamaged` if it is missing or changed, else `StorageFailed`."""
        try:
            content = (self._directory / stored.name).read_bytes()
        except FileNotFoundError:
            content = None
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
                os.link(self._directory / stored.name, self._directory / link.name)
        except (OSError, StorageFailed, ResultDamaged) as error:
            self.remove(link.name for link in linked)
            raise StorageFailed(f"The result cannot be linked: {error}.") from error
        _sync_directory(self._directory)
        return linked

    def remove(self, names: Iterable[str]) -> None:
        """Remove files. One that cannot be removed now is removed by `sweep` at the next start."""
        for name in names:
            with suppress(OSError):
                (self._directory / name).unlink(missing_ok=True)

    def sweep(self, known: Collection[str]) -> None:
        """Remove files that no row names: their process died after it wrote the file, before the row."""
        self.remove(file.name for file in self._directory.iterdir() if file.name not in known)

    @property
    def is_empty(self) -> bool:
        """Whether there are no result files."""
        return not any(True for _ in self._directory.iterdir())

    @property
    def are_writable(self) -> bool:
        """Whether files can be written: permission, and at least 1 MiB free."""
        try:
            return os.access(self._directory, os.W_OK) and shutil.disk_usage(self._directory).free > _MIN_FREE
        except OSError:
            return False

    def _write(self, name: str, part: ResultPart) -> ResultFile:
        # The attempt is in the name, so that two attempts can never mix their files.
        temporary = self._directory / f".{name}.{uuid.uuid4().hex}.part"
        try:
            with temporary.open("wb") as file:
                file.write(part.content)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(self._directory / name)
        except OSError:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        digest = hashlib.sha256(part.content).hexdigest()
        return ResultFile(part.kind, name, part.codec, len(part.content), digest)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
