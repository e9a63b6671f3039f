"""Cancellation, tags, idempotency keys and expiry."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("cancel_requested", sa.Boolean, nullable=False, server_default=sa.false()))
    op.add_column("jobs", sa.Column("idempotency_key", sa.String(200)))
    op.add_column("jobs", sa.Column("fingerprint", sa.String(64)))
    op.add_column("jobs", sa.Column("expired_at", sa.Float))
    op.create_index("jobs_by_idempotency_key", "jobs", ["idempotency_key"], unique=True)
    op.create_table(
        "job_tags",
        sa.Column("job_id", sa.String(32), sa.ForeignKey("jobs.job_id", ondelete="CASCADE"), primary_key=True),
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("value", sa.String(256), nullable=False),
    )
    op.create_index("job_tags_by_name", "job_tags", ["name", "value", "job_id"])


def downgrade() -> None:
    op.drop_table("job_tags")
    op.drop_index("jobs_by_idempotency_key", "jobs")
    for column in ("expired_at", "fingerprint", "idempotency_key", "cancel_requested"):
        op.drop_column("jobs", column)
