"""The device's one database file: events, visits, consumers, features, outbox, packages, runs.

Walle sheet B.1. Standard-library SQLite in WAL mode. ``synchronous=NORMAL``
makes a commit survive ``kill -9`` without a disk flush each time; what must
survive a power cut as well calls :meth:`DeviceStore.sync`, once for a whole
group of commits.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from shoal.core.errors import ConflictError, IntegrityError, ShoalError, UnavailableError
from shoal.wire.codes import ErrorCode

__all__ = ["DeviceStore", "DiskFullError"]

_SCHEMA_VERSION = 1

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
INSERT INTO meta VALUES ('store.schema', 1);
CREATE TABLE event (
    seq INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, boot INTEGER NOT NULL,
    mono_us INTEGER NOT NULL, ts_us INTEGER NOT NULL, kind INTEGER NOT NULL,
    page TEXT NOT NULL, visit BLOB, content BLOB);
CREATE TABLE visit (
    visit BLOB PRIMARY KEY, page TEXT NOT NULL, entered_us INTEGER NOT NULL,
    exited_us INTEGER NOT NULL, closed_by TEXT NOT NULL, n_events INTEGER NOT NULL,
    revision INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX visit_entered ON visit (entered_us);
CREATE TABLE consumer (
    task TEXT PRIMARY KEY, version INTEGER NOT NULL, last_seq INTEGER NOT NULL,
    state BLOB) WITHOUT ROWID;
CREATE TABLE feature (
    task TEXT NOT NULL, name TEXT NOT NULL, key TEXT NOT NULL, version INTEGER NOT NULL,
    ts_us INTEGER NOT NULL, revision INTEGER NOT NULL, dtype TEXT NOT NULL,
    model_version TEXT, value BLOB NOT NULL, PRIMARY KEY (task, name, key)) WITHOUT ROWID;
CREATE TABLE outbox (
    seq INTEGER PRIMARY KEY, class TEXT NOT NULL, kind INTEGER NOT NULL, body BLOB NOT NULL,
    created_us INTEGER NOT NULL, attempts INTEGER NOT NULL DEFAULT 0);
CREATE TABLE package (
    task TEXT NOT NULL, version INTEGER NOT NULL, sha256 BLOB NOT NULL, state TEXT NOT NULL,
    epoch INTEGER NOT NULL DEFAULT 0, crashes INTEGER NOT NULL DEFAULT 0,
    good_runs INTEGER NOT NULL DEFAULT 0, installed_us INTEGER NOT NULL DEFAULT 0,
    code INTEGER NOT NULL DEFAULT 0, folder TEXT, PRIMARY KEY (task, version));
CREATE TABLE run (
    n INTEGER PRIMARY KEY, id BLOB NOT NULL, task TEXT NOT NULL, version INTEGER NOT NULL,
    started_us INTEGER NOT NULL, cpu_us INTEGER NOT NULL, wall_us INTEGER NOT NULL,
    peak_kb INTEGER NOT NULL, backend TEXT NOT NULL, outcome INTEGER NOT NULL);
CREATE TRIGGER run_ring AFTER INSERT ON run WHEN new.n % 100 = 0
    BEGIN DELETE FROM run WHERE n <= new.n - 10000; END;
CREATE TABLE quarantine (
    task TEXT NOT NULL, event BLOB NOT NULL, version INTEGER NOT NULL, seq INTEGER NOT NULL,
    attempts INTEGER NOT NULL, code INTEGER NOT NULL, at_us INTEGER NOT NULL,
    message TEXT NOT NULL DEFAULT '', PRIMARY KEY (task, event)) WITHOUT ROWID;
"""

# Primary result codes of SQLite (https://www.sqlite.org/rescode.html).
_READONLY, _IOERR, _CORRUPT, _FULL, _CANTOPEN, _NOTADB = 8, 10, 11, 13, 14, 26
# Extended codes of a write that did not fit: write, truncate, growing the shared memory.
_NO_ROOM = {778, 1546, 4874}


class DiskFullError(UnavailableError):
    """The device's disk or quota has no room; nothing of the failed write was kept."""

    code = ErrorCode.DISK_FULL


class DeviceStore:
    """The SQLite file ``device.db`` of one agent.

    Parameters
    ----------
    folder : path-like
        The agent's data folder; made if it is missing. One process owns it
        (:class:`shoal.core.files.FolderLock` is the caller's job).
    max_megabytes : float, optional
        Refuse to grow beyond this; a write that would raises
        :class:`DiskFullError`, as a full disk does.

    Attributes
    ----------
    moved_aside : int
        How many damaged files this folder has seen. A damaged file is renamed
        to ``device.db.damaged-<n>`` and a fresh one takes its place; readable
        rows of ``meta`` (identity, counters) are carried over.

    Raises
    ------
    UnavailableError
        The folder cannot be written.
    ConflictError
        The file was written by a newer schema.

    Notes
    -----
    One connection behind one lock: any thread may use the store, writers take
    turns. A transaction inside a transaction of the same thread is a
    savepoint, so whoever opens the outer one decides whether all of it counts.
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, max_megabytes: float | None = None
    ) -> None:
        self.folder = Path(folder)
        self.path = self.folder / "device.db"
        self.moved_aside = 0
        self._max_megabytes = max_megabytes
        self._lock = threading.RLock()
        self._depth = 0
        self._undo: list[Callable[[], None]] = []
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UnavailableError(
                f"data folder {self.folder} cannot be made: {error.strerror}",
                hint="check the path and its permissions",
            ) from error
        self._connection = self._open()

    # -- opening ---------------------------------------------------------------------------

    def _open(self) -> sqlite3.Connection:
        carried: list[tuple[str, Any]] = []
        while True:
            try:
                connection = self._connect()
                break
            except sqlite3.DatabaseError as error:
                if _primary(error) not in (_CORRUPT, _NOTADB):
                    raise self._translate(error) from error
                carried = self._move_aside() or carried
        if carried:
            connection.executemany("INSERT OR IGNORE INTO meta VALUES (?, ?)", carried)
        if self.moved_aside:
            connection.execute(
                "INSERT OR REPLACE INTO meta VALUES ('store.moved_aside', ?)", (self.moved_aside,)
            )
        row = connection.execute("SELECT value FROM meta WHERE key='store.moved_aside'").fetchone()
        self.moved_aside = int(row[0]) if row else 0
        return connection

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, timeout=5.0, isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute("PRAGMA temp_store=MEMORY")
            connection.execute("PRAGMA cell_size_check=ON")
            connection.execute("PRAGMA journal_size_limit=4194304")
            if self._max_megabytes is not None:
                size = connection.execute("PRAGMA page_size").fetchone()[0]
                pages = max(1, int(self._max_megabytes * 1_000_000) // size)
                connection.execute(f"PRAGMA max_page_count={pages}")
            if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
                connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
            verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            row = connection.execute("SELECT value FROM meta WHERE key='store.schema'").fetchone()
        except BaseException as error:
            connection.close()
            if isinstance(error, sqlite3.OperationalError) and "no such table" in str(error):
                raise _damaged("not a device store") from error
            raise
        if verdict != "ok":
            connection.close()
            raise _damaged(str(verdict))
        if row is None or int(row[0]) > _SCHEMA_VERSION:
            connection.close()
            raise ConflictError(
                f"{self.path} was written by a newer shoal (schema {row[0] if row else '?'})",
                hint="update shoal, or choose another data folder",
            )
        return connection

    def _move_aside(self) -> list[tuple[str, Any]]:
        """Rename the damaged file and return what of ``meta`` still reads."""
        carried: list[tuple[str, Any]] = []
        # Whatever cannot be read any more is lost with the damaged file; that it was
        # damaged is counted in moved_aside, so nothing disappears silently.
        with (
            suppress(sqlite3.Error),
            closing(sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)) as old,
        ):
            rows = old.execute("SELECT key, value FROM meta")
            carried.extend((str(key), value) for key, value in rows)
        number = 1
        while (aside := self.path.with_name(f"device.db.damaged-{number}")).exists():
            number += 1
        self.path.rename(aside)
        for suffix in ("-wal", "-shm"):
            with suppress(FileNotFoundError):
                Path(f"{self.path}{suffix}").rename(f"{aside}{suffix}")
        self.moved_aside = number
        return [(key, value) for key, value in carried if not key.startswith("store.")]

    # -- using -----------------------------------------------------------------------------

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Cursor]:
        """Open a write transaction; commit when the block ends well, roll back otherwise.

        Yields
        ------
        sqlite3.Cursor
            Belongs to the block; do not keep it.

        Raises
        ------
        DiskFullError
            No room; the whole transaction was rolled back and the store goes on.
        UnavailableError
            The file cannot be written (read-only disk, input/output error).
        IntegrityError
            The file turned out to be damaged; it was moved aside and a fresh
            one is in place.
        """
        with self._lock:
            outer = self._depth == 0
            name = f"level_{self._depth}"
            mark = len(self._undo)
            cursor = self._connection.cursor()
            try:
                cursor.execute("BEGIN IMMEDIATE" if outer else f"SAVEPOINT {name}")
            except sqlite3.Error as error:
                cursor.close()
                raise self._translate(error) from error
            self._depth += 1
            try:
                yield cursor
                cursor.execute("COMMIT" if outer else f"RELEASE {name}")
            except BaseException as error:
                self._roll_back(outer, name, mark)
                if isinstance(error, sqlite3.Error) and outer:
                    raise self._recover(error) from error
                raise
            else:
                if outer:
                    self._undo.clear()
            finally:
                self._depth -= 1
                with suppress(sqlite3.Error):
                    cursor.close()

    def _roll_back(self, outer: bool, name: str, mark: int) -> None:
        # After some errors (full disk) SQLite has rolled back by itself already.
        with suppress(sqlite3.Error):
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK" if outer else f"ROLLBACK TO {name}")
                if not outer:
                    self._connection.execute(f"RELEASE {name}")
        undo, self._undo[mark:] = self._undo[mark:], []
        for callback in reversed(undo):
            callback()

    @contextmanager
    def read(self) -> Iterator[sqlite3.Cursor]:
        """Open a cursor for reading; inside :meth:`transaction` it sees that transaction."""
        with self._lock:
            try:
                with closing(self._connection.cursor()) as cursor:
                    yield cursor
            except sqlite3.Error as error:
                if self._depth:
                    raise
                raise self._recover(error) from error

    @property
    def in_transaction(self) -> bool:
        """Whether the calling thread is inside :meth:`transaction`."""
        # Only the owner of the lock can have a depth above zero while it holds the lock.
        if not self._lock.acquire(blocking=False):
            return False
        try:
            return self._depth > 0
        finally:
            self._lock.release()

    def on_rollback(self, callback: Callable[[], None]) -> None:
        """Run ``callback`` if the present transaction is rolled back (memory follows disk)."""
        if self._depth:
            self._undo.append(callback)

    def meta_get(self, key: str, default: Any = None) -> Any:
        """Return the value (str, bytes, int, float) stored under ``key``, or ``default``."""
        with self.read() as cursor:
            row = cursor.execute("SELECT value FROM meta WHERE key=?", (key,)).fetchone()
        return default if row is None else row[0]

    def meta_set(self, key: str, value: Any) -> None:
        """Store ``value`` (str, bytes, int, float) under ``key``; ``None`` removes it."""
        with self.transaction() as cursor:
            if value is None:
                cursor.execute("DELETE FROM meta WHERE key=?", (key,))
            else:
                cursor.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def sync(self) -> None:
        """Make every commit so far survive a power cut (one flush for the whole group)."""
        with self._lock:
            try:
                descriptor = os.open(f"{self.path}-wal", os.O_RDONLY)
            except FileNotFoundError:  # everything has been checkpointed, which flushes
                return
            try:
                os.fsync(descriptor)
            except OSError as error:
                raise UnavailableError(
                    f"{self.path} cannot be flushed: {error.strerror}"
                ) from error
            finally:
                os.close(descriptor)

    def size_bytes(self) -> int:
        """Return the size of the database in bytes, without its write-ahead log."""
        with self.read() as cursor:
            pages = cursor.execute("PRAGMA page_count").fetchone()[0]
            return int(pages * cursor.execute("PRAGMA page_size").fetchone()[0])

    def compact(self) -> None:
        """Give pages freed by deletions back to the disk."""
        with self._lock:
            if self._depth:
                return
            try:
                # execute() would stop after one page: the statement has no result columns
                self._connection.executescript("PRAGMA incremental_vacuum")
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            except sqlite3.Error as error:
                raise self._recover(error) from error

    def close(self) -> None:
        """Close the file; later use raises ``sqlite3.ProgrammingError``."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> DeviceStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- errors ----------------------------------------------------------------------------

    def _recover(self, error: sqlite3.Error) -> Exception:
        """Turn ``error`` into ours; replace the file first if it is damaged."""
        if _primary(error) not in (_CORRUPT, _NOTADB):
            return self._translate(error)
        with suppress(sqlite3.Error):
            self._connection.close()
        carried = self._move_aside()
        self._connection = self._open()
        self._connection.executemany("INSERT OR IGNORE INTO meta VALUES (?, ?)", carried)
        return IntegrityError(
            f"{self.path} is damaged ({error}); it was moved aside and a fresh one started",
            hint=f"the damaged file is kept as device.db.damaged-{self.moved_aside}",
        )

    def _translate(self, error: sqlite3.Error) -> Exception:
        primary = _primary(error)
        answer: ShoalError
        if primary == _FULL or getattr(error, "sqlite_errorcode", 0) in _NO_ROOM:
            answer = DiskFullError(
                f"{self.path} cannot be written: no room on the disk ({error})",
                hint="free some space; the agent goes on and tries again",
            )
        elif primary in (_READONLY, _IOERR, _CANTOPEN):
            answer = UnavailableError(
                f"{self.path} cannot be written: {error}",
                hint="check that the disk is mounted for writing and the folder is yours",
            )
        elif primary in (5, 6):  # busy, locked
            answer = ConflictError(
                f"{self.path} is locked by another process", hint="one agent a data folder"
            )
        else:
            return error  # a defect of ours: keep its type and traceback
        return answer


def _primary(error: sqlite3.Error) -> int:
    code = getattr(error, "sqlite_errorcode", None)
    return int(code) & 0xFF if code is not None else -1


def _damaged(message: str) -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError(message)
    error.sqlite_errorcode = _CORRUPT
    return error
