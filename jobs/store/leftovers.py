"""Files in the results folder that no row names: what attempts of this store left is removed, all else is moved aside.

An attempt can leave files if the process dies after it wrote them and before the row. Files that the store cannot
explain (the database was restored from an older backup, say) are somebody's results: they are moved to `set-aside`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from models import JobStatus

SET_ASIDE = "set-aside"
_NAME = re.compile(r"(?P<job_id>[A-Za-z0-9_-]{1,32})\.(?P<attempt>\d{1,9})\.[A-Za-z0-9_.-]+")
log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class JobState:
    """What is known of a job whose file has no row."""

    status: str
    attempt: int
    is_expired: bool


StatesOf = Callable[[Collection[str]], Mapping[str, JobState]]  # the jobs that exist of those with these ids


def clear(directory: Path, known: Collection[str], states_of: StatesOf, now: float) -> None:
    """Remove or set aside all files that are not in `known`, and log how many.

    now: the time of the retention clock, from which files that are set aside age.
    """
    unknown = [entry for entry in os.scandir(directory) if entry.name not in known and entry.name != SET_ASIDE]
    files = [entry for entry in unknown if entry.is_file(follow_symlinks=False)]
    jobs = states_of({found["job_id"] for entry in files if (found := _NAME.fullmatch(entry.name))})
    numbers = _file_numbers(directory, known) if any(entry.stat().st_nlink > 1 for entry in files) else set()
    # A second link to a result that is kept is what an unfinished reuse leaves.
    removed = set_aside = 0
    for entry in files:
        if _is_leftover(entry.name, jobs) or entry.inode() in numbers:
            with suppress(OSError):
                Path(entry.path).unlink()
                removed += 1
        else:
            set_aside += _set_aside(directory, entry.name, now)
    others = len(unknown) - len(files)
    if removed:
        log.info("leftovers_removed", count=removed)
    if set_aside:
        log.warning("unknown_results_set_aside", count=set_aside, folder=str(directory / SET_ASIDE))
    if others:
        log.warning("unknown_entries_in_results", count=others, folder=str(directory))


def _is_leftover(name: str, jobs: Mapping[str, JobState]) -> bool:
    """Return whether an attempt of a known job, or a write that was cut off, left this file."""
    if name.startswith(".") and name.endswith(".part"):
        return True
    found = _NAME.fullmatch(name)
    job = jobs.get(found["job_id"]) if found else None
    if found is None or job is None or int(found["attempt"]) > job.attempt:
        return False
    is_older = int(found["attempt"]) < job.attempt
    return is_older or job.is_expired or job.status != JobStatus.COMPLETED.value


def _file_numbers(directory: Path, names: Collection[str]) -> set[int]:
    """Return the inode numbers of the files."""
    found = set()
    for name in names:
        with suppress(OSError, ValueError, TypeError):
            found.add((directory / name).stat().st_ino)
    return found


def _set_aside(directory: Path, name: str, now: float) -> bool:
    folder = directory / SET_ASIDE
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        target, number = folder / name, 0
        while target.exists():
            number += 1
            target = folder / f"{name}.{number}"
        (directory / name).rename(target)
        os.utime(target, (now, now))
    except OSError as error:
        log.warning("unknown_result_not_set_aside", file=name, error=error.strerror)
        return False
    return True


def trim(directory: Path, *, before: float, keep: int, keep_bytes: int) -> int:
    """Remove files that were set aside before a time, and the oldest beyond a number or an amount of bytes.

    Returns how many were removed.
    """
    try:
        files = [(entry.stat(), entry.path) for entry in os.scandir(directory / SET_ASIDE) if entry.is_file()]
    except OSError:
        return 0
    files.sort(key=lambda each: each[0].st_mtime, reverse=True)
    removed = size = 0
    for rank, (status, path) in enumerate(files, 1):
        size += status.st_size
        if status.st_mtime < before or rank > keep or size > keep_bytes:
            with suppress(OSError):
                Path(path).unlink()
                removed += 1
    return removed
