"""The cloud's database: its tables, and transactions on them.

SQLite by default; the statements are plain SQLAlchemy Core, so that Postgres is
a setting. Times are microseconds since 1970 (UTC), columns ``*_us``. Tasks go by
their name, which is unique over all scenarios because a device knows nothing
else (Walle sheet A.1).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, LargeBinary, Table, Text

from shoal.core.errors import ConflictError, InputError, UnavailableError

__all__ = ["HEAD", "LIVE_STATES", "Store", "metadata"]

#: Revision of the newest migration; a test holds it to the migrations folder.
HEAD: Final = "0001"

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
    Index("ix_run_summary_task_version_outcome", "task", "version", "outcome"),
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


class Store:
    """The database of one cloud.

    One transaction writes at a time in this process (SQLite allows no more, and
    a lock is fairer than its busy handler); readers see the last commit and are
    not held up.

    Parameters
    ----------
    url : str
        SQLAlchemy address, for example ``sqlite:////var/lib/shoal/cloud.db``.

    Raises
    ------
    UnavailableError
        The database cannot be opened.
    ConflictError
        It was written by a newer shoal.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            parsed = sa.make_url(url)
        except sa.exc.ArgumentError as error:
            raise InputError("not a database address", field="database_url", value=url) from error
        self._sqlite = parsed.get_backend_name() == "sqlite"
        if self._sqlite and parsed.database in (None, "", ":memory:"):
            raise InputError("a cloud needs a database file", field="database_url", value=url)
        if self._sqlite:
            Path(str(parsed.database)).parent.mkdir(parents=True, exist_ok=True)
        try:
            self.engine = sa.create_engine(url)
        except ImportError as error:
            raise UnavailableError(
                f"no driver for {parsed.get_backend_name()}: {error}",
                hint="install the database's driver, or use SQLite",
            ) from error
        if self._sqlite:
            sa.event.listen(self.engine, "connect", _prepare_sqlite)
            sa.event.listen(self.engine, "begin", _begin_sqlite)
        self._write_lock = threading.Lock()
        self._local = threading.local()
        try:
            self._migrate()
        except sa.exc.OperationalError as error:
            self.engine.dispose()
            raise UnavailableError(f"cannot open database {url}: {error.orig}") from error

    @contextmanager
    def begin(self) -> Iterator[sa.Connection]:
        """Open a write transaction; it commits when the block ends well.

        A block inside another one of the same thread joins it as a savepoint.
        Never ``await`` inside.

        Yields
        ------
        sqlalchemy.Connection
        """
        outer: sa.Connection | None = getattr(self._local, "connection", None)
        if outer is not None:
            with outer.begin_nested():
                yield outer
            return
        with self._write_lock, self.engine.connect() as connection:
            writer = connection.execution_options(shoal_write=True)
            with writer.begin():
                self._local.connection = writer
                try:
                    yield writer
                finally:
                    self._local.connection = None

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """Open a read transaction, which sees one state of the database throughout.

        Inside :meth:`begin` of the same thread it is that transaction.
        """
        outer: sa.Connection | None = getattr(self._local, "connection", None)
        if outer is not None:
            yield outer
            return
        with self.engine.connect() as connection:
            yield connection

    def insert_ignore(self, table: Table) -> Any:
        """Return an INSERT that leaves rows alone whose key is already there."""
        return self._insert(table).on_conflict_do_nothing()

    def upsert(self, table: Table, keys: list[str], update: list[str]) -> Any:
        """Return an INSERT that overwrites ``update`` where ``keys`` are already there."""
        statement = self._insert(table)
        return statement.on_conflict_do_update(
            index_elements=keys, set_={name: statement.excluded[name] for name in update}
        )

    def _insert(self, table: Table) -> Any:
        if self._sqlite:
            from sqlalchemy.dialects.sqlite import insert  # noqa: PLC0415 - by dialect
        else:
            from sqlalchemy.dialects.postgresql import (  # type: ignore[assignment] # noqa: PLC0415
                insert,
            )
        return insert(table)

    def get(self, key: str, default: Any = None) -> Any:
        """Return one value of the ``setting`` table."""
        with self.read() as connection:
            row = connection.execute(
                sa.select(setting.c.value).where(setting.c.key == key)
            ).one_or_none()
        return default if row is None else row[0]

    def put(self, key: str, value: Any) -> None:
        """Write one JSON-able value of the ``setting`` table."""
        with self.begin() as connection:
            connection.execute(
                self.upsert(setting, ["key"], ["value"]), {"key": key, "value": value}
            )

    def epoch(self) -> int:
        """Return the global epoch; 0 before the first change."""
        return int(self.get("epoch", 0))

    def bump_epoch(self, connection: sa.Connection) -> int:
        """Raise the global epoch inside the transaction of ``connection`` and return it."""
        row = connection.execute(
            sa.select(setting.c.value).where(setting.c.key == "epoch")
        ).one_or_none()
        epoch = 1 if row is None else int(row[0]) + 1
        connection.execute(
            self.upsert(setting, ["key"], ["value"]), {"key": "epoch", "value": epoch}
        )
        return epoch

    def count_dropped(self, part: str, reason: str, number: int = 1) -> None:
        """Add to the count of things that ``part`` dropped for ``reason``."""
        statement = self._insert(dropped)
        with self.begin() as connection:
            connection.execute(
                statement.on_conflict_do_update(
                    index_elements=["part", "reason"],
                    set_={"total": dropped.c.total + statement.excluded.total},
                ),
                {"part": part, "reason": reason, "total": number},
            )

    def acquire_leader(self, name: str, holder: str, now_us: int, ttl_us: int) -> bool:
        """Take or renew the right to do the periodic work ``name``.

        Returns
        -------
        bool
            Whether ``holder`` has it until ``now_us + ttl_us``. A holder that
            died loses it when its time is up.
        """
        with self.begin() as connection:
            row = connection.execute(sa.select(leader).where(leader.c.name == name)).one_or_none()
            if row is not None and row.holder != holder and row.expires_us > now_us:
                return False
            connection.execute(
                self.upsert(leader, ["name"], ["holder", "expires_us"]),
                {"name": name, "holder": holder, "expires_us": now_us + ttl_us},
            )
        return True

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()

    def _migrate(self) -> None:
        with self._write_lock, self.engine.connect() as connection:
            if self._revision(connection) == HEAD:
                return
            from shoal.cloud.migrations.upgrade import upgrade  # noqa: PLC0415 - Alembic is slow

            connection.rollback()
            with connection.execution_options(shoal_write=True).begin():
                revision = self._revision(connection)  # another process may have been faster
                if revision is not None and revision > HEAD:
                    raise ConflictError(
                        f"the database is at revision {revision}, this shoal knows up to {HEAD}",
                        hint="use the newer shoal that wrote it",
                    )
                if revision != HEAD:
                    upgrade(connection)

    @staticmethod
    def _revision(connection: sa.Connection) -> str | None:
        if not sa.inspect(connection).has_table("alembic_version"):
            return None
        row = connection.execute(sa.text("SELECT version_num FROM alembic_version")).one_or_none()
        return None if row is None else str(row[0])


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # transactions are begun by _begin_sqlite alone
    cursor_ = connection.cursor()
    deadline = time.monotonic() + 10
    while True:  # the very first switch to WAL by two processes at once answers "locked"
        try:
            cursor_.execute("PRAGMA busy_timeout = 10000")
            cursor_.execute("PRAGMA journal_mode = WAL")
            break
        except connection.OperationalError:  # pragma: no cover - a race of first starts
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
    # An acknowledged batch survives a power cut; group commit makes it affordable.
    cursor_.execute("PRAGMA synchronous = FULL")
    cursor_.execute("PRAGMA foreign_keys = ON")
    cursor_.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    write = connection.get_execution_options().get("shoal_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
