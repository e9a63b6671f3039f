"""Indexes for stores of many jobs: a page by any filter, the queue, tags by the number of their job."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    # Who asks sees one owner's jobs only, so each filter's index begins with the owner, is in the order of a page, and
    # has the columns that the other filters look at.
    for name in ("jobs_by_owner", "jobs_by_status", "jobs_by_model", "jobs_by_method"):
        op.drop_index(name, "jobs")
    op.create_index("jobs_of_owner", "jobs", ["owner", "seq"])
    op.create_index("jobs_of_owner_by_status", "jobs", ["owner", "status", "seq", "model", "method"])
    op.create_index("jobs_of_owner_by_model", "jobs", ["owner", "model", "seq", "method"])
    op.create_index("jobs_of_owner_by_method", "jobs", ["owner", "method", "seq", "model"])
    # What runs, and the queue in the order in which one owner's jobs are run: small, since they have nothing else.
    op.create_index("jobs_running", "jobs", ["status", "seq"], sqlite_where=sa.text("status = 'running'"))
    op.create_index(
        "jobs_waiting",
        "jobs",
        ["owner", sa.text("priority DESC"), "seq", "model", "status"],
        sqlite_where=sa.text("status = 'pending'"),
    )
    op.drop_index("job_tags_by_name", "job_tags")
    op.add_column("job_tags", sa.Column("seq", sa.Integer, nullable=False, server_default="0"))
    op.add_column("job_tags", sa.Column("owner", sa.String(16), nullable=False, server_default=""))
    op.execute(
        "UPDATE job_tags SET (seq, owner) = (SELECT jobs.seq, jobs.owner FROM jobs WHERE jobs.job_id = job_tags.job_id)"
    )
    op.create_index("job_tags_by_name", "job_tags", ["owner", "name", "seq"])
    op.create_index("job_tags_by_value", "job_tags", ["owner", "name", "value", "seq"])


def downgrade() -> None:
    op.drop_index("job_tags_by_value", "job_tags")
    op.drop_index("job_tags_by_name", "job_tags")
    op.drop_column("job_tags", "owner")
    op.drop_column("job_tags", "seq")
    op.create_index("job_tags_by_name", "job_tags", ["name", "value", "job_id"])
    for name in (
        "jobs_waiting",
        "jobs_running",
        "jobs_of_owner_by_method",
        "jobs_of_owner_by_model",
        "jobs_of_owner_by_status",
        "jobs_of_owner",
    ):
        op.drop_index(name, "jobs")
    op.create_index("jobs_by_status", "jobs", ["status", "seq"])
    op.create_index("jobs_by_model", "jobs", ["model", "seq"])
    op.create_index("jobs_by_method", "jobs", ["method", "seq"])
    op.create_index("jobs_by_owner", "jobs", ["owner", "status", "seq"])
