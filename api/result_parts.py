"""The parts of a job's result: from its files, or from the worker that is running the job."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from api.documents import missing_result_error
from job_manager import JobManager
from jobs.store.job_store import JobStore
from jobs.store.records import JobRecord
from models import JobStatus
from problems import InvalidRequest, ResultDamaged, ResultNotReady


@dataclass(frozen=True)
class Content:
    """One part of a result, and the checksum of its bytes."""

    sha256: str
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Contents:
    """The parts that a view is made from: those of one method, or of all methods of a comparison."""

    summary: Content
    raw: dict[str, Content]  # by method
    is_joint: bool


def contents(
    record: JobRecord,
    manager: JobManager,
    store: JobStore,
    *,
    method: str | None,
    partial: bool,
    offers_partial: bool = True,
) -> Contents:
    """Return the parts of a job's result; with `partial`, also what an unfinished job has attributed so far.

    offers_partial: whether the client may ask for that, so that an error may say so.
    Raises `ResultNotReady`, `NoResult`, `ResultExpired`, `ResultDamaged` if a part is not stored, and `InvalidRequest`
    for a method that the job does not have.
    """
    methods = record.method_names
    found = _parts(record, manager, store, partial=partial, offers_partial=offers_partial)
    if method is not None and method not in methods:
        raise InvalidRequest(f"This job has no method {method!r}. It has: {', '.join(methods)}.")
    if len(methods) == 1:
        return Contents(_part(found, "summary"), {methods[0]: _part(found, "raw")}, is_joint=False)
    numbers = {name: number for number, name in enumerate(methods) if f"raw.{number}" in found}
    if method is None:
        raw = {name: found[f"raw.{number}"] for name, number in numbers.items()}
        return Contents(_part(found, "summary"), raw, is_joint=True)
    if method not in numbers:
        raise ResultNotReady(f"{method} has not attributed a token yet; ask again.", headers={"Retry-After": "1"})
    number = numbers[method]
    return Contents(_part(found, f"summary.{number}"), {method: found[f"raw.{number}"]}, is_joint=False)


def _part(found: dict[str, Content], kind: str) -> Content:
    """Return one part. Raises `ResultDamaged` if the store has no such part of the result."""
    if kind not in found:
        raise ResultDamaged(f"The part {kind} of the result is gone from the job store. Submit the job again.")
    return found[kind]


def _parts(
    record: JobRecord, manager: JobManager, store: JobStore, *, partial: bool, offers_partial: bool
) -> dict[str, Content]:
    """Return the parts by kind: `raw`, `summary`, and in a comparison `raw.0`, `summary.0` and so on."""
    if partial and record.status is JobStatus.RUNNING:
        if parts := manager.partial(record):
            return {
                part.kind: Content(hashlib.sha256(part.content).hexdigest(), functools.partial(bytes, part.content))
                for part in parts
            }
        record = manager.get(record.job_id, record.owner)  # it may have ended just now
        if record.status is JobStatus.RUNNING:
            raise ResultNotReady("No token has been attributed yet; ask again.", headers={"Retry-After": "1"})
    files = store.files(record.job_id) if record.status.is_terminal else {}
    if not files or not (partial or record.status is JobStatus.COMPLETED):
        raise missing_result_error(record, partial=partial, has_partial=bool(files) and offers_partial)
    return {kind: Content(each.sha256, functools.partial(store.read, each)) for kind, each in files.items()}
