"""Deliveries of webhooks: a row for each job that asks for one, stored in the transaction that accepts the job.

A delivery is due when its row is open and its job has ended. So the transaction that ends a job, whichever it is, also
makes the delivery due, and no crash between the two can lose it. Knows nothing of HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from attribution_schema.webhook import WEBHOOK_ENDS
from jobs.store.kept_results import Connections
from jobs.store.records import JobRecord, WebhookState
from jobs.store.rows import LATEST, integer, is_number, record, text
from jobs.store.schema import jobs, webhook_deliveries
from jobs.store.webhook_address import address_of
from models import AttributionRequest, JobStatus

OPEN, DELIVERED, FAILED, SKIPPED = "open", "delivered", "failed", "skipped"
# A literal, as for the partial indexes of `jobs`.
_IS_OPEN = webhook_deliveries.c.state == sa.literal_column("'open'")
_HAS_ENDED = jobs.c.status.not_in([JobStatus.PENDING.value, JobStatus.RUNNING.value])
_MAX_ERROR = 300  # characters


@dataclass(frozen=True)
class Delivery:
    """A delivery that is due. `attempts`: those that failed. `events`: the statuses of the job that are reported."""

    job: JobRecord
    url: str
    host: str
    events: tuple[str, ...]
    attempts: int


def new_row(seq: int, request: AttributionRequest) -> dict[str, Any]:
    """Return the row of a new job's webhook."""
    assert request.webhook is not None
    host, port = address_of(request.webhook)
    values = {"seq": seq, "url": request.webhook, "host": f"{host}:{port}"[:300]}
    return values | {"events": ",".join(request.webhook_events or WEBHOOK_ENDS), "state": OPEN, "attempts": 0}


class WebhookDeliveries:
    """The deliveries of a store. read, write: open a connection of it. clock: seconds since the epoch."""

    def __init__(self, read: Connections, write: Connections, clock: Callable[[], float]) -> None:
        self._read = read
        self._write = write
        self._clock = clock

    def due(self, *, except_for: Collection[int], per_host: int, longest_pause: float) -> list[Delivery]:
        """Return deliveries to attempt now, the longest due first, at most `per_host` to one host and port.

        except_for: the `seq` of jobs to leave out. longest_pause: seconds; what is due later than that was postponed
        by a wall clock that was wrong, and is due now.
        """
        now, at = self._clock(), sa.func.coalesce(webhook_deliveries.c.due_at, jobs.c.finished_at, 0.0)
        is_due = sa.not_(sa.and_(at > now, at <= now + longest_pause))
        ranked = (
            sa.select(
                webhook_deliveries,
                at.label("at"),
                sa.func.row_number().over(partition_by=webhook_deliveries.c.host, order_by=at).label("rank"),
            )
            .join(jobs, jobs.c.seq == webhook_deliveries.c.seq)
            .where(_IS_OPEN, _HAS_ENDED, is_due, webhook_deliveries.c.seq.not_in(except_for))
            .subquery()
        )
        columns = (ranked.c.url, ranked.c.host, ranked.c.events, ranked.c.attempts)
        query = sa.select(jobs, *columns).join(ranked, jobs.c.seq == ranked.c.seq).where(ranked.c.rank <= per_host)
        with self._read() as connection:
            return [_delivery(row) for row in connection.execute(query.order_by(ranked.c.at))]

    def seconds_until_due(self, longest_pause: float) -> float:
        """Return the seconds until a failed attempt is due to be repeated; `longest_pause` if there is none."""
        query = sa.select(sa.func.min(webhook_deliveries.c.due_at)).where(_IS_OPEN)
        with self._read() as connection:
            earliest = connection.execute(query).scalar_one_or_none()
        return min(max(0.0, earliest - self._clock()), longest_pause) if is_number(earliest) else longest_pause

    def states(self, seqs: Sequence[int]) -> dict[int, WebhookState]:
        """Return the states of the deliveries of these jobs, by `seq`."""
        query = sa.select(webhook_deliveries).where(webhook_deliveries.c.seq.in_(seqs))
        with self._read() as connection:
            return {row.seq: _state(row) for row in connection.execute(query)}

    def end(self, delivery: Delivery, state: str, *, attempts: int, error: str | None = None) -> None:
        """Mark a delivery `DELIVERED`, `FAILED` or `SKIPPED` after this many attempts."""
        ended = {"state": state, "ended_at": self._clock(), "due_at": None}
        self._update(delivery, **ended, attempts=attempts, error=error)

    def postpone(self, delivery: Delivery, seconds: float, *, attempts: int, error: str) -> None:
        """Note a failed attempt; the delivery is due again after this many seconds."""
        self._update(delivery, due_at=min(self._clock() + seconds, LATEST), attempts=attempts, error=error)

    def _update(self, delivery: Delivery, *, error: str | None, **values: Any) -> None:
        which = (webhook_deliveries.c.seq == delivery.job.seq, _IS_OPEN)
        with self._write() as connection:
            short = None if error is None else error[:_MAX_ERROR]
            connection.execute(sa.update(webhook_deliveries).where(*which).values(error=short, **values))


def _delivery(row: Any) -> Delivery:
    job = record(row)
    return Delivery(job, text(row.url), text(row.host), tuple(text(row.events).split(",")), _attempts(row.attempts))


def _state(row: Any) -> WebhookState:
    times = {name: _time(getattr(row, name)) for name in ("due_at", "ended_at")}
    error = None if row.error is None else text(row.error)
    return WebhookState(text(row.state), _attempts(row.attempts), error, **times)


def _attempts(value: Any) -> int:
    try:
        return max(0, integer(value))
    except ValueError:
        return 0


def _time(value: Any) -> float | None:
    return float(value) if is_number(value) and 0 <= value <= LATEST else None
