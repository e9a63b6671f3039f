"""Reads rows of the table `jobs`, whatever is in them, and finds a row by the id that its record shows.

SQLite keeps any value in any column, and a row may be older or newer than this version's rules. No row may stop a
listing, a worker or the start, so nothing here raises: what cannot be read is replaced, and the record says so.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, TypeGuard, TypeVar

import sqlalchemy as sa

from jobs.store.records import JobRecord, reason_of
from jobs.store.schema import jobs
from models import AttributionRequest, JobStatus, Problem, Progress
from problems import JobUnreadable

_JOB_ID = re.compile(r"[A-Za-z0-9_-]{1,32}")
_BY_NUMBER = re.compile(r"row-(-?[0-9]{1,19})")  # the id shown for a row whose own id no path can contain
_INTEGERS = range(-(2**63), 2**63)  # SQLite's
LATEST = 253402300799.0  # 9999-12-31, the last second that `datetime` has
T = TypeVar("T")


def record(row: Any) -> JobRecord:
    """Return a row as a record. `record.unreadable` says which columns could not be read."""
    faults: list[str] = []

    def read(column: str, parse: Callable[[Any], T], otherwise: T) -> T:
        try:
            return parse(getattr(row, column))
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            faults.append(f"{column}: {reason_of(error)}")
            return otherwise

    values: dict[str, Any] = {
        "job_id": read("job_id", _job_id, f"row-{row.seq}"),
        "status": read("status", JobStatus, JobStatus.FAILED),
        "model": text(row.model),
        "method": text(row.method),
        "priority": read("priority", integer, 0),
        "request": read("request", _request, None),
        "progress": _progress(row.progress),
        "error": read("error", _problem, None),
        "attempt": read("attempt", integer, 0),
        "created_at": read("created_at", _time, 0.0),
        "cancel_requested": bool(row.cancel_requested),
        "owner": text(row.owner),
        "reused_from": None if row.reused_from is None else text(row.reused_from),
    }
    for column in ("started_at", "finished_at", "expired_at"):
        values[column] = read(column, _time_or_none, None)
    if values["status"].is_terminal:  # nothing is left, of whatever was expected when it stopped
        values["progress"] = values["progress"].model_copy(update={"eta_seconds": None})
    if faults:
        values["unreadable"] = "; ".join(faults)
        location = f"/attribution/jobs/{values['job_id']}"
        values["error"] = values["error"] or unreadable_error(values["unreadable"]).to_problem(location)
    return JobRecord(seq=row.seq, **values)


def unreadable_error(reason: str) -> JobUnreadable:
    """Return the error of a job whose row cannot be read."""
    return JobUnreadable(
        f"The stored job is damaged, or another version of this service wrote it ({reason}). Submit it again, and "
        "delete this one."
    )


def is_job(job_id: str) -> sa.ColumnElement[bool]:
    """Return the condition that a row is the one whose record has this id."""
    found = _BY_NUMBER.fullmatch(job_id)
    if found is None:
        return jobs.c.job_id == job_id
    return jobs.c.seq == int(found[1]) if int(found[1]) in _INTEGERS else sa.false()


def integer(value: Any) -> int:
    """Return an integer of the store. Raises `ValueError` for any other value."""
    if type(value) is not int:
        raise ValueError("no integer")
    return value


def is_number(value: Any) -> TypeGuard[float]:
    """Return whether a value of the store is a finite number."""
    return type(value) in {int, float} and math.isfinite(value)


def _job_id(value: Any) -> str:
    if not isinstance(value, str) or not _JOB_ID.fullmatch(value) or _BY_NUMBER.fullmatch(value):
        raise ValueError("not an id of this service")
    return value


def _request(value: Any) -> AttributionRequest | None:
    return AttributionRequest.model_validate_json(value)


def _problem(value: Any) -> Problem | None:
    return None if value is None else Problem.model_validate_json(value)


def _progress(value: Any) -> Progress:
    """Return the progress, or none at all: a job needs none to be run or shown."""
    try:
        return Progress() if value is None else Progress.model_validate_json(value)
    except ValueError:
        return Progress()


def _time(value: Any) -> float:
    if not is_number(value) or not 0 <= value <= LATEST:
        raise ValueError("no time")
    return float(value)


def _time_or_none(value: Any) -> float | None:
    return None if value is None else _time(value)


def text(value: Any) -> str:
    """Return a value of the store as text."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
