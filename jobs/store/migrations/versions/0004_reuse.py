"""What makes two jobs have the same result, and which one a job's result was taken from."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("reuse_key", sa.String(64)))
    op.add_column("jobs", sa.Column("reused_from", sa.String(32)))
    op.create_index("jobs_by_reuse_key", "jobs", ["reuse_key", "status"])


def downgrade() -> None:
    op.drop_index("jobs_by_reuse_key", "jobs")
    op.drop_column("jobs", "reused_from")
    op.drop_column("jobs", "reuse_key")
