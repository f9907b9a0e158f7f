"""The cloud's database: transactions on its tables, which are named here too.

SQLite by default; the statements are plain SQLAlchemy Core, so that Postgres is
a setting. The tables themselves are in :mod:`shoal.cloud.schema`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import Table

from shoal.cloud.schema import (
    LIVE_STATES,
    arm_count,
    blob,
    cohort,
    cohort_set,
    cursor,
    dead_letter,
    device,
    dropped,
    enrolment_token,
    event_raw,
    exclusive_file,
    feature,
    holding,
    leader,
    metadata,
    operator,
    outbox,
    outcome,
    release,
    release_event,
    result,
    run_summary,
    scenario,
    setting,
    sticky,
    task,
    task_version,
)
from shoal.core.errors import ConflictError, InputError, UnavailableError

__all__ = [
    "HEAD",
    "LIVE_STATES",
    "Store",
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

#: Revision of the newest migration; a test holds it to the migrations folder.
HEAD: Final = "0002"


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
    # In KiB. The default of 2 MB does not hold the rows of a few thousand devices.
    cursor_.execute("PRAGMA cache_size = -16384")
    cursor_.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    write = connection.get_execution_options().get("shoal_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
