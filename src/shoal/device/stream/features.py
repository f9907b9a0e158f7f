"""The feature store of a device: collective storage, and folds that count every event once.

Walle sheet B.4. Writes gather in a memory table and reach SQLite together: at
100 writes, after a second, when someone reads a key that is not written yet, or
at a commit (Walle's collective storage). Ours: features, the consumer's
position and its state go into one transaction, so after a crash at any moment
the stored features are those of one pass over the log.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec

from shoal.core.errors import InputError, LimitError
from shoal.device.store import DeviceStore
from shoal.device.stream.log import EventLog
from shoal.wire.events import Event
from shoal.wire.results import FeatureRecord

__all__ = ["Consumer", "FeatureFold", "FeatureStore", "check_value"]

S = TypeVar("S")

_VECTOR = re.compile(r"f32\[(\d{1,6})\]")
_MAX_VALUE = 64 * 1024
_UPSERT = (
    "INSERT INTO feature (task, name, key, version, ts_us, revision, dtype, model_version, value)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (task, name, key) DO UPDATE SET"
    " version=excluded.version, ts_us=excluded.ts_us, revision=excluded.revision,"
    " dtype=excluded.dtype, model_version=excluded.model_version, value=excluded.value"
)
_SELECT = (
    "SELECT task, version, name, key, ts_us, revision, dtype, value, model_version FROM feature"
)


def check_value(dtype: str, value: bytes) -> None:
    """Check that ``value`` is what ``dtype`` says, and that no number in it is NaN.

    Raises
    ------
    InputError
        Unknown dtype, a wrong length, NaN or infinity, or not JSON/msgpack.
    LimitError
        Longer than 64 KiB.
    """
    if not isinstance(value, bytes):
        raise InputError("must be bytes", field="value", value=value)
    if len(value) > _MAX_VALUE:
        raise LimitError(f"longer than {_MAX_VALUE}", field="value", value=len(value))
    vector = _VECTOR.fullmatch(dtype)
    if vector:
        count = int(vector[1])
        if len(value) != 4 * count:
            raise InputError(f"{dtype} needs {4 * count} bytes", field="value", value=len(value))
        # All exponent bits set means NaN or infinity (IEEE 754, little-endian).
        for number in memoryview(value).cast("I"):
            if number & 0x7F800000 == 0x7F800000:
                raise InputError("must be finite numbers", field="value", value=dtype)
        return
    if dtype not in ("json", "msgpack"):
        raise InputError("must be 'json', 'msgpack' or 'f32[n]'", field="dtype", value=dtype)
    try:
        found = (msgspec.json if dtype == "json" else msgspec.msgpack).decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"is not {dtype}: {error}", field="value") from error
    if dtype == "msgpack" and not _finite(found):
        raise InputError("must be finite numbers", field="value", value=dtype)


def _finite(value: Any) -> bool:
    if isinstance(value, float):
        return value - value == 0.0
    if isinstance(value, dict):
        return all(_finite(item) for item in value.values())
    if isinstance(value, list):
        return all(_finite(item) for item in value)
    return True


class Consumer(NamedTuple):
    """Where a task stands in the log: version, last event taken, and its state."""

    version: int
    last_seq: int
    state: bytes | None


class FeatureStore:
    """Feature values by (task, name, key), newest revision only.

    Parameters
    ----------
    store : DeviceStore
        Where they are kept.
    threshold : int
        Writes that gather before they go to disk together.
    max_age_us : int
        Longest time that a write waits (checked at the next write).
    monotonic : callable
        Clock in microseconds.

    Notes
    -----
    Inside ``store.transaction()`` everything, memory table included, follows
    the transaction: if it is rolled back, so are the puts made within it.
    """

    def __init__(
        self,
        store: DeviceStore,
        threshold: int = 100,
        *,
        max_age_us: int = 1_000_000,
        monotonic: Callable[[], int] = lambda: time.monotonic_ns() // 1000,
    ) -> None:
        if threshold < 1:
            raise InputError("must be at least 1", field="threshold", value=threshold)
        self._store = store
        self._threshold = threshold
        self._max_age_us = max_age_us
        self._monotonic = monotonic
        self._waiting: dict[tuple[str, str, str], FeatureRecord] = {}
        self._writes = 0
        self._since = 0
        #: Transactions that wrote features; the fewer, the more was gathered.
        self.flushes = 0
        #: Puts ignored because a newer revision is stored.
        self.stale = 0

    def put(
        self,
        task: str,
        name: str,
        key: str,
        value: bytes,
        *,
        ts_us: int,
        version: int = 0,
        dtype: str = "json",
        revision: int | None = None,
        model_version: str | None = None,
    ) -> FeatureRecord:
        """Set a feature.

        Parameters
        ----------
        task, version : str, int
            Who makes it.
        name, key : str
            Which feature of which entity.
        value : bytes
            In the form ``dtype``: ``"json"``, ``"msgpack"`` or ``"f32[n]"``.
        ts_us : int
            Event time it speaks of.
        revision : int, optional
            Given: a revision below the stored one is ignored and counted (a late
            answer). Absent: one above the stored one if the value differs.
        model_version : str, optional
            Version of the model that made it.

        Returns
        -------
        FeatureRecord
            What is stored now.
        """
        for field, text in (("task", task), ("name", name), ("key", key)):
            if not isinstance(text, str) or len(text) > 1024 or (not text and field != "key"):
                raise InputError("must be a short text", field=field, value=text)
        check_value(dtype, value)
        self._follow()
        place = (task, name, key)
        held = self._held(place)
        if held is not None:
            if revision is None:
                same = (held.value, held.dtype) == (value, dtype)
                revision = held.revision + (not same)
            elif revision < held.revision:
                self.stale += 1
                return held
        record = FeatureRecord(
            task, version, name, key, ts_us, revision or 0, dtype, value, model_version
        )
        if not self._waiting:
            self._since = self._monotonic()
        self._waiting[place] = record
        self._writes += 1
        if self._writes >= self._threshold or self._monotonic() - self._since >= self._max_age_us:
            self.flush()
        return record

    def _held(self, place: tuple[str, str, str]) -> FeatureRecord | None:
        held = self._waiting.get(place)
        if held is not None:
            return held
        with self._store.read() as cursor:
            row = cursor.execute(f"{_SELECT} WHERE task=? AND name=? AND key=?", place).fetchone()
        return None if row is None else FeatureRecord(*row)

    def _follow(self) -> None:
        """Let the memory table follow the present transaction if it is rolled back."""
        if self._store.in_transaction:
            before, writes = dict(self._waiting), self._writes

            def restore() -> None:
                self._waiting, self._writes = before, writes

            self._store.on_rollback(restore)

    def flush(self) -> None:
        """Write everything that waits, in one transaction.

        Raises
        ------
        DiskFullError, UnavailableError
            Nothing was written; it waits on.
        """
        if not self._waiting:
            return
        self._follow()
        rows = [
            (
                r.task,
                r.name,
                r.key,
                r.version,
                r.ts_us,
                r.revision,
                r.dtype,
                r.model_version,
                r.value,
            )
            for r in self._waiting.values()
        ]
        with self._store.transaction() as cursor:
            cursor.executemany(_UPSERT, rows)
            before, writes = self._waiting, self._writes

            def restore() -> None:
                self._waiting, self._writes = before, writes

            self._store.on_rollback(restore)
            self._waiting, self._writes = {}, 0
        self.flushes += 1

    def get(self, task: str, name: str, key: str) -> FeatureRecord | None:
        """Return the feature, or ``None``; writes it first if it waits."""
        if (task, name, key) in self._waiting:
            self.flush()
        return self._held((task, name, key))

    def scan(self, task: str, name: str, prefix: str = "") -> list[FeatureRecord]:
        """Return the features of ``name`` whose key begins with ``prefix``, by key."""
        if any(p[:2] == (task, name) and p[2].startswith(prefix) for p in self._waiting):
            self.flush()
        with self._store.read() as cursor:
            rows = cursor.execute(
                f"{_SELECT} WHERE task=? AND name=? AND substr(key, 1, ?)=? ORDER BY key",
                (task, name, len(prefix), prefix),
            ).fetchall()
        return [FeatureRecord(*row) for row in rows]

    def consumer(self, task: str) -> Consumer:
        """Return where ``task`` stands; version 0 and position 0 if it never committed."""
        with self._store.read() as cursor:
            row = cursor.execute(
                "SELECT version, last_seq, state FROM consumer WHERE task=?", (task,)
            ).fetchone()
        return Consumer(0, 0, None) if row is None else Consumer(*row)

    def commit(self, task: str, version: int, last_seq: int, state: bytes | None = None) -> None:
        """Write waiting features and the consumer's position and state in one transaction."""
        with self._store.transaction() as cursor:
            self.flush()
            cursor.execute(
                "INSERT OR REPLACE INTO consumer (task, version, last_seq, state)"
                " VALUES (?, ?, ?, ?)",
                (task, version, last_seq, state),
            )

    def forget(self, task: str) -> None:
        """Delete the features and the position of a task that was removed."""
        with self._store.transaction() as cursor:
            self.flush()
            cursor.execute("DELETE FROM feature WHERE task=?", (task,))
            cursor.execute("DELETE FROM consumer WHERE task=?", (task,))


class FeatureFold(Generic[S]):
    """Folds the log into features, every event exactly once over any crash.

    Parameters
    ----------
    log, features : EventLog, FeatureStore
        Of the same :class:`DeviceStore`.
    task, version : str, int
        Whose fold it is.
    initial : callable
        Makes the state before the first event.
    step : callable
        ``step(state, event, put) -> state``; ``put(name, key, value, ts_us=..., ...)``
        sets a feature. It must depend on its arguments alone.
    state_type : type
        What the stored state decodes to (msgpack by msgspec).
    batch : int
        Events per transaction.
    """

    def __init__(
        self,
        store: DeviceStore,
        log: EventLog,
        features: FeatureStore,
        task: str,
        version: int,
        *,
        initial: Callable[[], S],
        step: Callable[[S, Event, Callable[..., FeatureRecord]], S],
        state_type: Any = Any,
        batch: int = 100,
    ) -> None:
        self._store = store
        self._log = log
        self._features = features
        self._task = task
        self._version = version
        self._step = step
        self._batch = batch
        self._initial = initial
        self._decode: Callable[[bytes], S] = msgspec.msgpack.Decoder(state_type).decode
        self._load()

    def _load(self) -> None:
        _, self.last_seq, state = self._features.consumer(self._task)
        self.state: S = self._initial() if state is None else self._decode(state)

    def run(self, limit: int | None = None) -> int:
        """Take what the log holds beyond the last commit; return how many events.

        If a step or the disk fails, the batch is rolled back whole and the
        state is that of the last commit.
        """
        done = 0

        def put(name: str, key: str, value: bytes, **options: Any) -> FeatureRecord:
            return self._features.put(
                self._task, name, key, value, version=self._version, **options
            )

        while limit is None or done < limit:
            size = self._batch if limit is None else min(self._batch, limit - done)
            events = self._log.read(self.last_seq, size)
            if not events:
                break
            try:
                with self._store.transaction():
                    for _, event in events:
                        self.state = self._step(self.state, event, put)
                    last = events[-1][0]
                    packed = msgspec.msgpack.encode(self.state)
                    self._features.commit(self._task, self._version, last, packed)
            except BaseException:
                self._load()
                raise
            self.last_seq = last
            done += len(events)
        return done
