"""Webhooks to deliver, and links through which others read one job."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    # Stored with the job. A delivery is due once its job has ended, so that the end itself needs no second row.
    op.create_table(
        "webhook_deliveries",
        sa.Column("seq", sa.Integer, sa.ForeignKey("jobs.seq", ondelete="CASCADE"), primary_key=True),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("host", sa.String(300), nullable=False),
        sa.Column("events", sa.String(100), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("due_at", sa.Float),
        sa.Column("ended_at", sa.Float),
        sa.Column("error", sa.Text),
    )
    op.create_index("webhook_deliveries_open", "webhook_deliveries", ["state"], sqlite_where=sa.text("state = 'open'"))
    op.create_table(
        "shares",
        sa.Column("share_id", sa.String(16), primary_key=True),
        sa.Column("seq", sa.Integer, sa.ForeignKey("jobs.seq", ondelete="CASCADE"), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False, unique=True),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("expires_at", sa.Float, nullable=False),
    )
    op.create_index("shares_of_job", "shares", ["seq"])


def downgrade() -> None:
    op.drop_table("shares")
    op.drop_table("webhook_deliveries")
