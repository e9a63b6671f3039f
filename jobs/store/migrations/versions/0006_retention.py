"""Results age by a clock of their own, and names of removed files are kept until the files are gone."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    # The time of the retention clock at which the result was stored; NULL: before this migration, see finished_at.
    op.add_column("jobs", sa.Column("kept_since", sa.Float))
    op.create_table(
        "retention_clock",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("seconds", sa.Float, nullable=False),
    )
    op.create_table("removed_files", sa.Column("name", sa.String(200), primary_key=True))


def downgrade() -> None:
    op.drop_table("removed_files")
    op.drop_table("retention_clock")
    op.drop_column("jobs", "kept_since")
