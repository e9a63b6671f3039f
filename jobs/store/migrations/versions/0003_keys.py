"""API keys, who owns a job, and its priority."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "api_keys",
        sa.Column("key_id", sa.String(16), primary_key=True),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False, unique=True),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("revoked_at", sa.Float),
    )
    # "" owns what was accepted without a key.
    op.add_column("jobs", sa.Column("owner", sa.String(16), nullable=False, server_default=""))
    op.add_column("jobs", sa.Column("priority", sa.Integer, nullable=False, server_default="0"))
    op.drop_index("jobs_by_idempotency_key", "jobs")
    op.create_index("jobs_by_idempotency_key", "jobs", ["owner", "idempotency_key"], unique=True)
    op.create_index("jobs_by_owner", "jobs", ["owner", "status", "seq"])


def downgrade() -> None:
    op.drop_index("jobs_by_owner", "jobs")
    op.drop_index("jobs_by_idempotency_key", "jobs")
    op.create_index("jobs_by_idempotency_key", "jobs", ["idempotency_key"], unique=True)
    op.drop_column("jobs", "priority")
    op.drop_column("jobs", "owner")
    op.drop_table("api_keys")
