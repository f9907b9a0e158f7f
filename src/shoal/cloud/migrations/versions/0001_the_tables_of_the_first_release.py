"""The tables of the first release."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "blob",
        sa.Column("sha256", sa.LargeBinary(length=32), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("media_type", sa.Text(), nullable=False),
        sa.Column("refcount", sa.Integer(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_blob")),
    )
    op.create_table(
        "cohort",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("predicate", sa.Text(), nullable=False),
        sa.Column("predicate_sha", sa.Text(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_cohort")),
        sa.UniqueConstraint("name", name=op.f("uq_cohort_name")),
    )
    op.create_table(
        "cohort_set",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("cohorts", sa.JSON(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_cohort_set")),
        sa.UniqueConstraint("digest", name=op.f("uq_cohort_set_digest")),
    )
    op.create_table(
        "cursor",
        sa.Column("device", sa.LargeBinary(length=16), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("updated_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("device", name=op.f("pk_cursor")),
    )
    op.create_table(
        "dead_letter",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("device", sa.LargeBinary(length=16), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("code", sa.Integer(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("at_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_dead_letter")),
    )
    op.create_table(
        "dropped",
        sa.Column("part", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("total", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("part", "reason", name=op.f("pk_dropped")),
    )
    op.create_table(
        "enrolment_token",
        sa.Column("token_hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("expires_us", sa.BigInteger(), nullable=False),
        sa.Column("uses_left", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("token_hash", name=op.f("pk_enrolment_token")),
    )
    op.create_table(
        "event_raw",
        sa.Column("id", sa.LargeBinary(length=16), nullable=False),
        sa.Column("device", sa.LargeBinary(length=16), nullable=False),
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.Integer(), nullable=False),
        sa.Column("page", sa.Text(), nullable=False),
        sa.Column("ts_us", sa.BigInteger(), nullable=False),
        sa.Column("received_us", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_event_raw")),
    )
    with op.batch_alter_table("event_raw", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_event_raw_device"), ["device"], unique=False)

    op.create_table(
        "exclusive_file",
        sa.Column("device", sa.LargeBinary(length=16), nullable=False),
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("sha256", sa.LargeBinary(length=32), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint(
            "device", "task", "version", "path", name=op.f("pk_exclusive_file")
        ),
    )
    with op.batch_alter_table("exclusive_file", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_exclusive_file_sha256"), ["sha256"], unique=False)

    op.create_table(
        "feature",
        sa.Column("device", sa.LargeBinary(length=16), nullable=False),
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("ts_us", sa.BigInteger(), nullable=False),
        sa.Column("received_us", sa.BigInteger(), nullable=False),
        sa.Column("dtype", sa.Text(), nullable=False),
        sa.Column("value", sa.LargeBinary(), nullable=False),
        sa.Column("model_version", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("device", "task", "name", "key", name=op.f("pk_feature")),
    )
    with op.batch_alter_table("feature", schema=None) as batch_op:
        batch_op.create_index("ix_feature_received_us", ["received_us"], unique=False)

    op.create_table(
        "holding",
        sa.Column("device", sa.LargeBinary(length=16), nullable=False),
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("code", sa.Integer(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("reported_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("device", "task", "version", name=op.f("pk_holding")),
    )
    with op.batch_alter_table("holding", schema=None) as batch_op:
        batch_op.create_index(
            "ix_holding_task_version_state", ["task", "version", "state"], unique=False
        )

    op.create_table(
        "leader",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("expires_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_leader")),
    )
    op.create_table(
        "operator",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("token_hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_operator")),
        sa.UniqueConstraint("name", name=op.f("uq_operator_name")),
        sa.UniqueConstraint("token_hash", name=op.f("uq_operator_token_hash")),
    )
    op.create_table(
        "outbox",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("topic", sa.Text(), nullable=False),
        sa.Column("payload", sa.JSON(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("published_us", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_outbox")),
    )
    op.create_table(
        "result",
        sa.Column("id", sa.LargeBinary(length=16), nullable=False),
        sa.Column("device", sa.LargeBinary(length=16), nullable=False),
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("ts_us", sa.BigInteger(), nullable=False),
        sa.Column("received_us", sa.BigInteger(), nullable=False),
        sa.Column("value", sa.JSON(), nullable=True),
        sa.Column("model_version", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_result")),
    )
    with op.batch_alter_table("result", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_result_device"), ["device"], unique=False)
        batch_op.create_index("ix_result_received_us", ["received_us"], unique=False)
        batch_op.create_index(
            "ix_result_task_version_ts_us", ["task", "version", "ts_us"], unique=False
        )

    op.create_table(
        "run_summary",
        sa.Column("run", sa.LargeBinary(length=16), nullable=False),
        sa.Column("device", sa.LargeBinary(length=16), nullable=False),
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("outcome", sa.Integer(), nullable=False),
        sa.Column("backend", sa.Text(), nullable=False),
        sa.Column("cpu_us", sa.BigInteger(), nullable=False),
        sa.Column("wall_us", sa.BigInteger(), nullable=False),
        sa.Column("peak_kb", sa.BigInteger(), nullable=False),
        sa.Column("ts_us", sa.BigInteger(), nullable=False),
        sa.Column("received_us", sa.BigInteger(), nullable=False),
        sa.Column("latency_us", sa.BigInteger(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("run", name=op.f("pk_run_summary")),
    )
    with op.batch_alter_table("run_summary", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_run_summary_device"), ["device"], unique=False)
        batch_op.create_index("ix_run_summary_received_us", ["received_us"], unique=False)
        batch_op.create_index(
            "ix_run_summary_task_version_outcome", ["task", "version", "outcome"], unique=False
        )

    op.create_table(
        "scenario",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("repo", sa.Text(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_scenario")),
        sa.UniqueConstraint("name", name=op.f("uq_scenario_name")),
    )
    op.create_table(
        "setting",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("value", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_setting")),
    )
    op.create_table(
        "device",
        sa.Column("id", sa.LargeBinary(length=16), nullable=False),
        sa.Column("first_seen_us", sa.BigInteger(), nullable=False),
        sa.Column("last_seen_us", sa.BigInteger(), nullable=False),
        sa.Column("enrolled_us", sa.BigInteger(), nullable=False),
        sa.Column("attributes", sa.JSON(), nullable=False),
        sa.Column("attributes_sha", sa.Text(), nullable=False),
        sa.Column(
            "cohort_set", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True
        ),
        sa.Column("agent", sa.Text(), nullable=False),
        sa.Column("protocol", sa.Integer(), nullable=False),
        sa.Column("platform", sa.Text(), nullable=False),
        sa.Column("profile", sa.JSON(), nullable=False),
        sa.Column("public_key", sa.LargeBinary(length=32), nullable=False),
        sa.Column("revoked_us", sa.BigInteger(), nullable=True),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("rate_a", sa.Float(), nullable=True),
        sa.Column("rate_b", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(
            ["cohort_set"], ["cohort_set.id"], name=op.f("fk_device_cohort_set_cohort_set")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_device")),
    )
    with op.batch_alter_table("device", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_device_cohort_set"), ["cohort_set"], unique=False)

    op.create_table(
        "task",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("scenario", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("branch", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("archived_us", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["scenario"], ["scenario.name"], name=op.f("fk_task_scenario_scenario")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_task")),
        sa.UniqueConstraint("name", name=op.f("uq_task_name")),
    )
    op.create_table(
        "release",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("previous", sa.BigInteger(), nullable=False),
        sa.Column("cohort", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("salt", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("threshold", sa.Integer(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("policy", sa.JSON(), nullable=False),
        sa.Column("guardrails", sa.JSON(), nullable=False),
        sa.Column("lock_version", sa.Integer(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("started_us", sa.BigInteger(), nullable=True),
        sa.Column("step_us", sa.BigInteger(), nullable=True),
        sa.Column("closed_us", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["cohort"], ["cohort.id"], name=op.f("fk_release_cohort_cohort")),
        sa.ForeignKeyConstraint(["task"], ["task.name"], name=op.f("fk_release_task_task")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_release")),
    )
    with op.batch_alter_table("release", schema=None) as batch_op:
        batch_op.create_index(
            "ix_release_live",
            ["task", "cohort"],
            unique=True,
            sqlite_where=sa.text("state IN ('beta', 'gray', 'paused', 'rolling_back')"),
            postgresql_where=sa.text("state IN ('beta', 'gray', 'paused', 'rolling_back')"),
        )

    op.create_table(
        "task_version",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("tag", sa.Text(), nullable=False),
        sa.Column("commit", sa.Text(), nullable=False),
        sa.Column("package_sha256", sa.LargeBinary(length=32), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("manifest", sa.JSON(), nullable=False),
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("floor", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["task"], ["task.name"], name=op.f("fk_task_version_task_task")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_task_version")),
        sa.UniqueConstraint("task", "version", name=op.f("uq_task_version_task_version")),
    )
    op.create_table(
        "arm_count",
        sa.Column("release", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("guardrail", sa.Text(), nullable=False),
        sa.Column("arm", sa.Text(), nullable=False),
        sa.Column("devices", sa.BigInteger(), nullable=False),
        sa.Column("failures", sa.BigInteger(), nullable=False),
        sa.Column("updated_us", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["release"], ["release.id"], name=op.f("fk_arm_count_release_release")
        ),
        sa.PrimaryKeyConstraint("release", "guardrail", "arm", name=op.f("pk_arm_count")),
    )
    op.create_table(
        "outcome",
        sa.Column("release", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("device", sa.LargeBinary(length=16), nullable=False),
        sa.Column("guardrail", sa.Text(), nullable=False),
        sa.Column("arm", sa.Text(), nullable=False),
        sa.Column("runs", sa.Integer(), nullable=False),
        sa.Column("failed", sa.Integer(), nullable=False),
        sa.Column("since_us", sa.BigInteger(), nullable=False),
        sa.Column("decided_us", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["release"], ["release.id"], name=op.f("fk_outcome_release_release")
        ),
        sa.PrimaryKeyConstraint("release", "device", "guardrail", "arm", name=op.f("pk_outcome")),
    )
    op.create_table(
        "release_event",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("release", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("at_us", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("from_state", sa.Text(), nullable=False),
        sa.Column("to_state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("evidence", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["release"], ["release.id"], name=op.f("fk_release_event_release_release")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_release_event")),
    )
    with op.batch_alter_table("release_event", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_release_event_release"), ["release"], unique=False)

    op.create_table(
        "sticky",
        sa.Column("release", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("device", sa.LargeBinary(length=16), nullable=False),
        sa.Column("seen_us", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["release"], ["release.id"], name=op.f("fk_sticky_release_release")
        ),
        sa.PrimaryKeyConstraint("release", "device", name=op.f("pk_sticky")),
    )
    with op.batch_alter_table("sticky", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_sticky_device"), ["device"], unique=False)


def downgrade() -> None:
    """Take back."""
    with op.batch_alter_table("sticky", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_sticky_device"))

    op.drop_table("sticky")
    with op.batch_alter_table("release_event", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_release_event_release"))

    op.drop_table("release_event")
    op.drop_table("outcome")
    op.drop_table("arm_count")
    op.drop_table("task_version")
    with op.batch_alter_table("release", schema=None) as batch_op:
        batch_op.drop_index(
            "ix_release_live",
            sqlite_where=sa.text("state IN ('beta', 'gray', 'paused', 'rolling_back')"),
            postgresql_where=sa.text("state IN ('beta', 'gray', 'paused', 'rolling_back')"),
        )

    op.drop_table("release")
    op.drop_table("task")
    with op.batch_alter_table("device", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_device_cohort_set"))

    op.drop_table("device")
    op.drop_table("setting")
    op.drop_table("scenario")
    with op.batch_alter_table("run_summary", schema=None) as batch_op:
        batch_op.drop_index("ix_run_summary_task_version_outcome")
        batch_op.drop_index("ix_run_summary_received_us")
        batch_op.drop_index(batch_op.f("ix_run_summary_device"))

    op.drop_table("run_summary")
    with op.batch_alter_table("result", schema=None) as batch_op:
        batch_op.drop_index("ix_result_task_version_ts_us")
        batch_op.drop_index("ix_result_received_us")
        batch_op.drop_index(batch_op.f("ix_result_device"))

    op.drop_table("result")
    op.drop_table("outbox")
    op.drop_table("operator")
    op.drop_table("leader")
    with op.batch_alter_table("holding", schema=None) as batch_op:
        batch_op.drop_index("ix_holding_task_version_state")

    op.drop_table("holding")
    with op.batch_alter_table("feature", schema=None) as batch_op:
        batch_op.drop_index("ix_feature_received_us")

    op.drop_table("feature")
    with op.batch_alter_table("exclusive_file", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_exclusive_file_sha256"))

    op.drop_table("exclusive_file")
    with op.batch_alter_table("event_raw", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_event_raw_device"))

    op.drop_table("event_raw")
    op.drop_table("enrolment_token")
    op.drop_table("dropped")
    op.drop_table("dead_letter")
    op.drop_table("cursor")
    op.drop_table("cohort_set")
    op.drop_table("cohort")
    op.drop_table("blob")
