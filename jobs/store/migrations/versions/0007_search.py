"""The words by which jobs are found."""

import json

import sqlalchemy as sa
from alembic import op

from jobs.store.search import CREATE, add, words_of

revision = "0007"
down_revision = "0006"

_AT_ONCE = 500  # rows in memory
_NEXT = sa.text("SELECT seq, job_id, request FROM jobs WHERE seq > :after ORDER BY seq LIMIT :limit")


def upgrade() -> None:
    op.execute(CREATE)
    connection = op.get_bind()
    after = -(2**63)
    while rows := connection.execute(_NEXT, {"after": after, "limit": _AT_ONCE}).all():
        add(connection, {row.seq: words_of(row.job_id, _parsed(row.request)) for row in rows})
        after = rows[-1].seq


def _parsed(request: object) -> dict[str, object]:
    """Return a stored request, or nothing if it cannot be read: such a job is found by its id alone."""
    try:
        found = json.loads(request) if isinstance(request, str) else None
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {}


def downgrade() -> None:
    op.execute("DROP TABLE job_words")
