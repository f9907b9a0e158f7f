"""Indexes for the health of a version: its newest runs, and the number of its features."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_index(
        "ix_run_summary_newest", "run_summary", ["task", "version", "outcome", "received_us"]
    )
    op.drop_index("ix_run_summary_task_version_outcome", table_name="run_summary")
    op.create_index("ix_feature_task_version", "feature", ["task", "version"])


def downgrade() -> None:
    """Take back."""
    op.drop_index("ix_feature_task_version", table_name="feature")
    op.create_index(
        "ix_run_summary_task_version_outcome", "run_summary", ["task", "version", "outcome"]
    )
    op.drop_index("ix_run_summary_newest", table_name="run_summary")
