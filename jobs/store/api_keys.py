"""API keys: created, listed and revoked by `python main.py keys ...`, checked at every request.

A key is shown once, when it is created; the database stores its SHA-256 only. Slow hashes protect passwords of low
entropy; a key is 256 random bits.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from jobs.store.data_dir import REMEDY, make_private
from jobs.store.schema import api_keys, for_reading, migrate, open_database
from problems import StorageFailed

ANYBODY = ""  # the owner of all jobs if no keys exist
_PREFIX = "iaa_"  # lets scanners for leaked secrets recognise a key

_IN_USE = sa.select(api_keys.c.key_id).where(api_keys.c.hash == sa.bindparam("hash"), api_keys.c.revoked_at.is_(None))
_LOOK_UP = sa.select(
    sa.exists(sa.select(api_keys.c.key_id)).label("are_set"), _IN_USE.scalar_subquery().label("key_id")
)


@dataclass(frozen=True)
class ApiKey:
    """A key without its secret; times are seconds since the epoch."""

    key_id: str
    name: str
    created_at: float
    revoked_at: float | None


class ApiKeys:
    """The keys of one data directory. Other processes may change them at any time."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._asking = threading.Lock()
        self._connection: sa.Connection | None = None

    @classmethod
    def of(cls, data_dir: Path) -> ApiKeys:
        """Open the keys for a command; a server may run on the directory. Raises `StorageFailed`."""
        try:
            make_private(data_dir)
            engine = open_database(data_dir / "jobs.sqlite3")
            migrate(engine)
        except (OSError, sa.exc.DBAPIError) as error:
            raise StorageFailed(f"The keys in {data_dir} cannot be opened: {error}.") from error
        return cls(engine)

    def create(self, name: str) -> tuple[ApiKey, str]:
        """Create a key. Returns it with its secret, which is not stored."""
        secret = _PREFIX + secrets.token_urlsafe(32)
        key = ApiKey(secrets.token_hex(8), name, time.time(), None)
        with self._engine.begin() as connection:
            connection.execute(sa.insert(api_keys).values(**vars(key), hash=_hashed(secret)))
        return key, secret

    def list(self) -> list[ApiKey]:
        """Return all keys, oldest first, including revoked ones."""
        columns = [api_keys.c[name] for name in ("key_id", "name", "created_at", "revoked_at")]
        with self._engine.begin() as connection:
            return [ApiKey(*row) for row in connection.execute(sa.select(*columns).order_by(api_keys.c.created_at))]

    def revoke(self, key_id: str) -> bool:
        """Revoke a key; its jobs stay. Returns False if there is no such key in use."""
        unrevoked = (api_keys.c.key_id == key_id, api_keys.c.revoked_at.is_(None))
        with self._engine.begin() as connection:
            return (
                connection.execute(sa.update(api_keys).where(*unrevoked).values(revoked_at=time.time())).rowcount == 1
            )

    @property
    def are_set(self) -> bool:
        """Whether a key was ever created: revoking the last one does not open the server."""
        return self.look_up("")[0]

    def look_up(self, secret: str) -> tuple[bool, str | None]:
        """Return whether a key was ever created, and the id of the key in use with this secret, or None.

        Takes microseconds, on a connection of its own, because every request calls it. Raises `StorageFailed`.
        """
        hashed = _hashed(secret)
        try:
            with self._asking:
                if self._connection is None:
                    self._connection = for_reading(self._engine).connect()
                found = self._connection.execute(_LOOK_UP, {"hash": hashed}).one()
        except sa.exc.DBAPIError as error:
            raise StorageFailed(f"The API keys cannot be read: {error.orig}. {REMEDY}") from error
        return found.are_set, found.key_id

    def close(self) -> None:
        """Close the connection of `look_up`."""
        if self._connection is not None:
            self._connection.close()


def _hashed(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
