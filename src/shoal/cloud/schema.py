"""The tables of the cloud's database (Walle sheet A.1).

Times are microseconds since 1970 (UTC), columns ``*_us``. Tasks go by their name,
which is unique over all scenarios because a device knows nothing else. A change
here needs a migration; a test compares the two.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, LargeBinary, Table, Text

__all__ = [
    "LIVE_STATES",
    "arm_count",
    "blob",
    "cohort",
    "cohort_set",
    "cursor",
    "dead_letter",
    "device",
    "dropped",
    "enrolment_token",
    "event_raw",
    "exclusive_file",
    "feature",
    "holding",
    "leader",
    "metadata",
    "operator",
    "outbox",
    "outcome",
    "release",
    "release_event",
    "result",
    "run_summary",
    "scenario",
    "setting",
    "sticky",
    "task",
    "task_version",
]

#: States of a release in which no second release of its task may be in its cohort.
LIVE_STATES: Final = ("beta", "gray", "paused", "rolling_back")

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite numbers rows by itself only when the key is exactly INTEGER.
_Id = BigInteger().with_variant(Integer, "sqlite")
_Bytes16 = LargeBinary(16)
_Bytes32 = LargeBinary(32)


def _id() -> Column[int]:
    return Column("id", _Id, primary_key=True, autoincrement=True)


def _time(name: str, *, nullable: bool = False) -> Column[int]:
    return Column(name, BigInteger, nullable=nullable)


scenario = Table(
    "scenario",
    metadata,
    _id(),
    Column("name", Text, nullable=False, unique=True),
    Column("repo", Text, nullable=False, default=""),
    _time("created_us"),
)

task = Table(
    "task",
    metadata,
    _id(),
    Column("scenario", Text, ForeignKey("scenario.name"), nullable=False),
    Column("name", Text, nullable=False, unique=True),
    Column("branch", Text, nullable=False, default=""),
    Column("owner", Text, nullable=False, default=""),
    _time("created_us"),
    _time("archived_us", nullable=True),
)

task_version = Table(
    "task_version",
    metadata,
    _id(),
    Column("task", Text, ForeignKey("task.name"), nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("label", Text, nullable=False, default=""),
    Column("tag", Text, nullable=False, default=""),
    Column("commit", Text, nullable=False, default=""),
    Column("package_sha256", _Bytes32, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("manifest", sa.JSON, nullable=False),
    Column("key_id", Text, nullable=False, default=""),
    Column("floor", BigInteger, nullable=False, default=0),
    Column("created_by", Text, nullable=False, default=""),
    _time("created_us"),
    sa.UniqueConstraint("task", "version"),
)

blob = Table(
    "blob",
    metadata,
    Column("sha256", _Bytes32, primary_key=True),
    Column("size", BigInteger, nullable=False),
    Column("scope", Text, nullable=False, default="shared"),  # or "exclusive"
    Column("media_type", Text, nullable=False, default="application/octet-stream"),
    Column("refcount", Integer, nullable=False, default=1),
    _time("created_us"),
)

cohort = Table(
    "cohort",
    metadata,
    _id(),
    Column("name", Text, nullable=False, unique=True),
    Column("predicate", Text, nullable=False),
    Column("predicate_sha", Text, nullable=False),
    Column("epoch", BigInteger, nullable=False, default=0),
    _time("created_us"),
)

#: A combination of cohorts that a device is in; its id is the header's ``cohort``.
cohort_set = Table(
    "cohort_set",
    metadata,
    _id(),
    Column("cohorts", sa.JSON, nullable=False),  # sorted ids of cohort rows
    Column("digest", Text, nullable=False, unique=True),
    _time("created_us"),
)

release = Table(
    "release",
    metadata,
    _id(),
    Column("task", Text, ForeignKey("task.name"), nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("previous", BigInteger, nullable=False, default=0),  # 0: none before
    Column("cohort", _Id, ForeignKey("cohort.id"), nullable=False),
    Column("salt", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("step", Integer, nullable=False, default=0),
    Column("threshold", Integer, nullable=False, default=0),
    Column("epoch", BigInteger, nullable=False, default=0),
    Column("policy", sa.JSON, nullable=False),
    Column("guardrails", sa.JSON, nullable=False, default=list),
    Column("lock_version", Integer, nullable=False, default=1),
    Column("created_by", Text, nullable=False, default=""),
    _time("created_us"),
    _time("started_us", nullable=True),
    _time("step_us", nullable=True),  # when the present state or step began
    _time("closed_us", nullable=True),
    Index(
        "ix_release_live",
        "task",
        "cohort",
        unique=True,
        sqlite_where=sa.text("state IN ('beta', 'gray', 'paused', 'rolling_back')"),
        postgresql_where=sa.text("state IN ('beta', 'gray', 'paused', 'rolling_back')"),
    ),
)

#: Append-only history of releases.
release_event = Table(
    "release_event",
    metadata,
    _id(),
    Column("release", _Id, ForeignKey("release.id"), nullable=False, index=True),
    _time("at_us"),
    Column("actor", Text, nullable=False),
    Column("from_state", Text, nullable=False, default=""),
    Column("to_state", Text, nullable=False),
    Column("reason", Text, nullable=False, default=""),
    Column("evidence", sa.JSON, nullable=False, default=dict),
)

arm_count = Table(
    "arm_count",
    metadata,
    Column("release", _Id, ForeignKey("release.id"), primary_key=True),
    Column("guardrail", Text, primary_key=True),
    Column("arm", Text, primary_key=True),  # "new" or "control"
    Column("devices", BigInteger, nullable=False, default=0),
    Column("failures", BigInteger, nullable=False, default=0),
    _time("updated_us"),
)

#: What one device told about one release: at most one outcome a guardrail and arm.
outcome = Table(
    "outcome",
    metadata,
    Column("release", _Id, ForeignKey("release.id"), primary_key=True),
    Column("device", _Bytes16, primary_key=True),
    Column("guardrail", Text, primary_key=True),
    Column("arm", Text, primary_key=True),  # "new", "control" or "beta"
    Column("runs", Integer, nullable=False, default=0),
    Column("failed", Integer, nullable=False, default=0),
    _time("since_us"),
    _time("decided_us", nullable=True),
)

device = Table(
    "device",
    metadata,
    Column("id", _Bytes16, primary_key=True),
    _time("first_seen_us"),
    _time("last_seen_us"),
    _time("enrolled_us"),  # ts_us of the last enrolment: it must rise
    Column("attributes", sa.JSON, nullable=False, default=dict),
    Column("attributes_sha", Text, nullable=False, default=""),
    Column("cohort_set", _Id, ForeignKey("cohort_set.id"), nullable=True, index=True),
    Column("agent", Text, nullable=False, default=""),
    Column("protocol", Integer, nullable=False, default=1),
    Column("platform", Text, nullable=False, default=""),
    Column("profile", sa.JSON, nullable=False, default=dict),
    Column("public_key", _Bytes32, nullable=False),
    _time("revoked_us", nullable=True),
    Column("requests", BigInteger, nullable=False, default=0),
    Column("rate_a", sa.Float, nullable=True),
    Column("rate_b", sa.Float, nullable=True),
)

#: What a device says that it holds: (task, version) and the state of the package.
holding = Table(
    "holding",
    metadata,
    Column("device", _Bytes16, primary_key=True),
    Column("task", Text, primary_key=True),
    Column("version", BigInteger, primary_key=True),
    Column("state", Text, nullable=False),
    Column("code", Integer, nullable=False, default=0),
    Column("message", Text, nullable=False, default=""),
    _time("reported_us"),
    Index("ix_holding_task_version_state", "task", "version", "state"),
)

sticky = Table(
    "sticky",
    metadata,
    Column("release", _Id, ForeignKey("release.id"), primary_key=True),
    Column("device", _Bytes16, primary_key=True, index=True),
    _time("seen_us"),
)

#: Highest batch number up to which everything of a device is durable.
cursor = Table(
    "cursor",
    metadata,
    Column("device", _Bytes16, primary_key=True),
    Column("seq", BigInteger, nullable=False, default=0),
    _time("updated_us"),
)

outbox = Table(
    "outbox",
    metadata,
    _id(),
    Column("topic", Text, nullable=False),
    Column("payload", sa.JSON, nullable=False),
    _time("created_us"),
    _time("published_us", nullable=True),
)

operator = Table(
    "operator",
    metadata,
    _id(),
    Column("name", Text, nullable=False, unique=True),
    Column("role", Text, nullable=False),  # viewer, author, releaser, admin
    Column("token_hash", _Bytes32, nullable=False, unique=True),
    _time("created_us"),
)

#: One-time tokens that let a device enrol; only their hash is kept.
enrolment_token = Table(
    "enrolment_token",
    metadata,
    Column("token_hash", _Bytes32, primary_key=True),
    Column("note", Text, nullable=False, default=""),
    _time("created_us"),
    _time("expires_us"),
    Column("uses_left", Integer, nullable=False, default=1),
)

#: Files of single devices, beside a task version's shared ones.
exclusive_file = Table(
    "exclusive_file",
    metadata,
    Column("device", _Bytes16, primary_key=True),
    Column("task", Text, primary_key=True),
    Column("version", BigInteger, primary_key=True),
    Column("path", Text, primary_key=True),
    Column("sha256", _Bytes32, nullable=False, index=True),
    Column("size", BigInteger, nullable=False),
    _time("created_us"),
)

#: Who may run periodic work: a row with an expiry, taken over when it has passed.
leader = Table(
    "leader",
    metadata,
    Column("name", Text, primary_key=True),
    Column("holder", Text, nullable=False),
    _time("expires_us"),
)

#: Single values of the whole cloud, the epoch first of all.
setting = Table(
    "setting",
    metadata,
    Column("key", Text, primary_key=True),
    Column("value", sa.JSON, nullable=False),
)

result = Table(
    "result",
    metadata,
    Column("id", _Bytes16, primary_key=True),
    Column("device", _Bytes16, nullable=False, index=True),
    Column("task", Text, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("name", Text, nullable=False),
    _time("ts_us"),
    _time("received_us"),
    Column("value", sa.JSON, nullable=True),
    Column("model_version", Text, nullable=True),
    Index("ix_result_task_version_ts_us", "task", "version", "ts_us"),
    Index("ix_result_received_us", "received_us"),
)

feature = Table(
    "feature",
    metadata,
    Column("device", _Bytes16, primary_key=True),
    Column("task", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("version", BigInteger, nullable=False, default=0),
    Column("revision", BigInteger, nullable=False),
    _time("ts_us"),
    _time("received_us"),
    Column("dtype", Text, nullable=False),
    Column("value", LargeBinary, nullable=False),
    Column("model_version", Text, nullable=True),
    Index("ix_feature_received_us", "received_us"),
    Index("ix_feature_task_version", "task", "version"),
)

run_summary = Table(
    "run_summary",
    metadata,
    Column("run", _Bytes16, primary_key=True),
    Column("device", _Bytes16, nullable=False, index=True),
    Column("task", Text, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("outcome", Integer, nullable=False),
    Column("backend", Text, nullable=False, default=""),
    Column("cpu_us", BigInteger, nullable=False, default=0),
    Column("wall_us", BigInteger, nullable=False, default=0),
    Column("peak_kb", BigInteger, nullable=False, default=0),
    _time("ts_us"),
    _time("received_us"),
    Column("latency_us", BigInteger, nullable=False, default=0),
    Column("message", Text, nullable=False, default=""),
    Index("ix_run_summary_newest", "task", "version", "outcome", "received_us"),
    Index("ix_run_summary_received_us", "received_us"),
)

event_raw = Table(
    "event_raw",
    metadata,
    Column("id", _Bytes16, primary_key=True),
    Column("device", _Bytes16, nullable=False, index=True),
    Column("task", Text, nullable=False),
    Column("version", BigInteger, nullable=False, default=0),
    Column("kind", Integer, nullable=False),
    Column("page", Text, nullable=False),
    _time("ts_us"),
    _time("received_us"),
    Column("body", LargeBinary, nullable=False),  # the event in msgpack
)

dead_letter = Table(
    "dead_letter",
    metadata,
    _id(),
    Column("device", _Bytes16, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("code", Integer, nullable=False),
    Column("body", LargeBinary, nullable=False),
    _time("at_us"),
)

#: Things that a device or the cloud dropped, by reason; they only rise.
dropped = Table(
    "dropped",
    metadata,
    Column("part", Text, primary_key=True),
    Column("reason", Text, primary_key=True),
    Column("total", BigInteger, nullable=False, default=0),
)
