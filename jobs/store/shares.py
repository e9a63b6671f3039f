"""Links through which others read one job: made and revoked by its owner, looked up by whoever has the link.

A token is 256 random bits and is told once; the database stores its SHA-256 only. A link goes with its job, and with
the API key of the job's owner: when that key is revoked, the link opens nothing.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass

import sqlalchemy as sa

from jobs.store.kept_results import Connections
from jobs.store.records import JobRecord
from jobs.store.rows import LATEST, is_number, record, text
from jobs.store.schema import api_keys, jobs, shares
from problems import InvalidRequest, ShareExpired, ShareNotFound

MAX_OF_JOB = 100  # links of one job that have not expired
_KEPT_SECONDS = 30 * 86400.0  # how long after its end a link is known to have expired
_IS_OWNER_REVOKED = sa.exists(
    sa.select(api_keys.c.key_id).where(api_keys.c.key_id == jobs.c.owner, api_keys.c.revoked_at.is_not(None))
)


@dataclass(frozen=True)
class StoredShare:
    """A link without its token; times are seconds since the epoch."""

    share_id: str
    created_at: float
    expires_at: float


class Shares:
    """The links of a store. read, write: open a connection of it. clock: seconds since the epoch."""

    def __init__(self, read: Connections, write: Connections, clock: Callable[[], float]) -> None:
        self._read = read
        self._write = write
        self._clock = clock

    def create(self, job: JobRecord, seconds: float) -> tuple[StoredShare, str]:
        """Make a link that expires after `seconds`. Returns it with its token, which is not stored.

        Raises `ShareNotFound` if the job was deleted meanwhile, and `InvalidRequest` if it has too many links.
        """
        token, now = secrets.token_urlsafe(32), self._clock()
        share = StoredShare(secrets.token_hex(8), now, min(now + seconds, LATEST))
        mine = shares.c.seq == job.seq
        with self._write() as connection:
            if connection.execute(sa.select(jobs.c.seq).where(jobs.c.seq == job.seq)).first() is None:
                raise ShareNotFound("The job was deleted.")
            connection.execute(sa.delete(shares).where(shares.c.expires_at < now - _KEPT_SECONDS))
            count = sa.select(sa.func.count()).where(mine, shares.c.expires_at > now)
            if connection.execute(count).scalar_one() >= MAX_OF_JOB:
                raise InvalidRequest(f"The job has {MAX_OF_JOB} links already. Revoke one that is not needed.")
            connection.execute(sa.insert(shares).values(**vars(share), seq=job.seq, hash=_hashed(token)))
        return share, token

    def of_job(self, job: JobRecord) -> list[StoredShare]:
        """Return the links of a job that have not expired, oldest first."""
        mine = (shares.c.seq == job.seq, shares.c.expires_at > self._clock())
        with self._read() as connection:
            rows = connection.execute(sa.select(shares).where(*mine).order_by(shares.c.created_at)).all()
        return [
            StoredShare(text(row.share_id), row.created_at, row.expires_at)
            for row in rows
            if all(is_number(each) and 0 <= each <= LATEST for each in (row.created_at, row.expires_at))
        ]

    def revoke(self, job: JobRecord, share_id: str) -> None:
        """Delete a link. Raises `ShareNotFound`."""
        with self._write() as connection:
            which = sa.delete(shares).where(shares.c.seq == job.seq, shares.c.share_id == share_id)
            if not connection.execute(which).rowcount:
                raise ShareNotFound(f"The job has no link {share_id!r}. GET /attribution/jobs/ID/shares lists them.")

    def job(self, token: str) -> JobRecord:
        """Return the job that this token opens. Raises `ShareNotFound` and `ShareExpired`."""
        found = sa.select(jobs, shares.c.expires_at).join(shares, shares.c.seq == jobs.c.seq)
        with self._read() as connection:
            row = connection.execute(found.where(shares.c.hash == _hashed(token), ~_IS_OWNER_REVOKED)).one_or_none()
        if row is None:
            raise ShareNotFound("This link opens nothing: it was revoked, or its job was deleted. Ask for another one.")
        if not is_number(row.expires_at) or row.expires_at <= self._clock():
            raise ShareExpired("This link has expired. Ask whoever gave it to you for another one.")
        return record(row)


def _hashed(token: str) -> str:
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()
