"""API keys: made, listed and revoked by a command (`python main.py keys ...`), checked at every request.

A key is shown once, when it is made; the database has its SHA-256 only. A slow hash is for passwords: these are 256
random bits.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from job_schema import api_keys, migrate, open_database

ANYBODY = ""  # who owns jobs where no keys are set
_PREFIX = "iaa_"  # so that a leaked key is recognised for what it is


@dataclass(frozen=True)
class ApiKey:
    """A key as it is listed: never the key itself."""

    key_id: str
    name: str
    created_at: float
    revoked_at: float | None


class ApiKeys:
    """The keys of one data directory. Other processes may change them meanwhile."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    @classmethod
    def of(cls, data_dir: Path) -> ApiKeys:
        """For a command, beside a server that may be running on the directory."""
        data_dir.mkdir(parents=True, exist_ok=True)
        engine = open_database(data_dir / "jobs.sqlite3")
        migrate(engine)
        return cls(engine)

    def create(self, name: str) -> tuple[ApiKey, str]:
        """A new key, and its secret, which is not kept."""
        secret = _PREFIX + secrets.token_urlsafe(32)
        key = ApiKey(secrets.token_hex(8), name, time.time(), None)
        with self._engine.begin() as connection:
            connection.execute(sa.insert(api_keys).values(**vars(key), hash=_hashed(secret)))
        return key, secret

    def list(self) -> list[ApiKey]:
        """All keys, the oldest first, revoked ones too."""
        columns = [api_keys.c[name] for name in ("key_id", "name", "created_at", "revoked_at")]
        with self._engine.begin() as connection:
            return [ApiKey(*row) for row in connection.execute(sa.select(*columns).order_by(api_keys.c.created_at))]

    def revoke(self, key_id: str) -> bool:
        """Make a key worthless. False if there is no such key in use; its jobs stay."""
        unrevoked = (api_keys.c.key_id == key_id, api_keys.c.revoked_at.is_(None))
        with self._engine.begin() as connection:
            return (
                connection.execute(sa.update(api_keys).where(*unrevoked).values(revoked_at=time.time())).rowcount == 1
            )

    @property
    def are_set(self) -> bool:
        """Whether there was ever a key: revoking the last one opens nothing."""
        with self._engine.begin() as connection:
            return connection.execute(sa.select(api_keys.c.key_id).limit(1)).first() is not None

    def owner(self, secret: str) -> str | None:
        """The id of the key with this secret, or None if there is none in use."""
        hashed = _hashed(secret)
        query = sa.select(api_keys.c.key_id, api_keys.c.hash).where(
            api_keys.c.hash == hashed, api_keys.c.revoked_at.is_(None)
        )
        with self._engine.begin() as connection:
            row = connection.execute(query).one_or_none()
        return row.key_id if row is not None and hmac.compare_digest(row.hash, hashed) else None


def _hashed(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
