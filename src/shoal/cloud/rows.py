"""Rows of one group of batches: collected first, written with one statement a table."""

from __future__ import annotations

from typing import Any, Final

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from shoal.cloud import store as tables
from shoal.cloud.store import Store
from shoal.wire.events import EventBatch
from shoal.wire.results import ResultBatch

__all__ = ["RowWriter"]

#: A device's clock that is off by more than this is corrected in ``event_raw.ts_us``.
_CLOCK_TOLERANCE_US: Final = 1_000_000


class RowWriter:
    """Collects the rows of a transaction. A record whose id is known is left out."""

    def __init__(self) -> None:
        self._batches: list[tuple[bytes, ResultBatch, int]] = []
        self._results: dict[bytes, dict[str, Any]] = {}
        self._runs: dict[bytes, dict[str, Any]] = {}
        self._events: dict[bytes, dict[str, Any]] = {}
        self._features: dict[tuple[bytes, str, str, str], dict[str, Any]] = {}

    def add_results(self, device: bytes, batch: ResultBatch, now_us: int) -> int:
        """Collect a batch; return its place in what :meth:`write` returns."""
        self._batches.append((device, batch, now_us))
        return len(self._batches) - 1

    def add_events(self, device: bytes, batch: EventBatch, now_us: int) -> None:
        """Collect raw events; the wall clock of the device is corrected where it can be."""
        for event in batch.events:
            ts_us = event.ts_us
            age_us = batch.sent_mono_us - event.mono_us
            if batch.sent_mono_us > 0 and event.boot == batch.boot and age_us >= 0:
                # Inside one boot the monotonic clock tells how long ago it happened.
                corrected = now_us - age_us
                if abs(corrected - ts_us) > _CLOCK_TOLERANCE_US:
                    ts_us = corrected
            self._events.setdefault(event.id, {
                "id": event.id, "device": device, "task": batch.task, "version": batch.version,
                "kind": event.kind, "page": event.page, "ts_us": ts_us, "received_us": now_us,
                "body": msgspec.msgpack.encode(event),
            })  # fmt: skip

    def write(self, store: Store, connection: sa.Connection) -> list[ResultBatch]:
        """Write everything; return the batches without the results and runs known before."""
        fresh = self._sift(connection)
        for table, rows in (
            (tables.result, self._results),
            (tables.run_summary, self._runs),
            (tables.event_raw, self._events),
        ):
            if rows:
                connection.execute(store.insert_ignore(table), list(rows.values()))
        if self._features:
            connection.execute(_newer_feature(connection), list(self._features.values()))
        return fresh

    def _sift(self, connection: sa.Connection) -> list[ResultBatch]:
        batches = [batch for _, batch, _ in self._batches]
        old_results = _known(
            connection, tables.result.c.id, [r.id for b in batches for r in b.results]
        )
        old_runs = _known(
            connection, tables.run_summary.c.run, [r.run for b in batches for r in b.runs]
        )
        fresh = []
        for device, batch, now_us in self._batches:
            origin = {"device": device, "received_us": now_us}
            results = []
            for record in batch.results:
                if record.id not in old_results and record.id not in self._results:
                    results.append(record)
                    self._results[record.id] = origin | msgspec.structs.asdict(record)
            runs = []
            for run in batch.runs:
                if run.run not in old_runs and run.run not in self._runs:
                    runs.append(run)
                    self._runs[run.run] = origin | msgspec.structs.asdict(run)
            for feature in batch.features:
                row = origin | msgspec.structs.asdict(feature)
                key = (device, feature.task, feature.name, feature.key)
                before = self._features.get(key)
                if before is None or not _older(row, before):
                    self._features[key] = row
            fresh.append(msgspec.structs.replace(batch, results=results, runs=runs))
        return fresh


def _known(connection: sa.Connection, column: sa.Column[Any], ids: list[bytes]) -> set[bytes]:
    found: set[bytes] = set()
    for start in range(0, len(ids), 500):  # SQLite binds a limited number of values
        query = sa.select(column).where(column.in_(ids[start : start + 500]))
        found.update(connection.execute(query).scalars())
    return found


def _older(row: dict[str, Any], than: dict[str, Any]) -> bool:
    """Whether ``row`` is an earlier revision of the same moment; else the last come counts."""
    return bool(row["ts_us"] == than["ts_us"] and row["revision"] < than["revision"])


def _newer_feature(connection: sa.Connection) -> Any:
    """Return an upsert that leaves a later revision of the same moment alone."""
    table = tables.feature
    insert: Any = (
        sqlite.insert(table) if connection.dialect.name == "sqlite" else postgresql.insert(table)
    )
    new = insert.excluded
    keys = [column.name for column in table.primary_key.columns]
    return insert.on_conflict_do_update(
        index_elements=keys,
        set_={column.name: new[column.name] for column in table.c if column.name not in keys},
        where=sa.not_(sa.and_(new.ts_us == table.c.ts_us, new.revision < table.c.revision)),
    )
