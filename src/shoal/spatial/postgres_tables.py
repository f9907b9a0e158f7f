"""The tables of places in Postgres: their statements, and what is read and written with them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import starmap
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.core.errors import ConflictError, InputError
from shoal.spatial.columns import AttributeSpec, PlaceColumns
from shoal.spatial.curve import hilbert_key
from shoal.spatial.ids import Ids
from shoal.spatial.placerows import PlaceRows, RowCollector
from shoal.spatial.postgres_connection import Connections

__all__ = ["Changes", "CheckinRows", "PlaceTables"]

_VERSION = 1
_FETCH = 10_000

# Names cannot be parameters of SQL; `{s}` is checked by Connections before it gets here.
_TABLES = """
CREATE SCHEMA IF NOT EXISTS {s};
CREATE TABLE {s}.meta (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    version integer NOT NULL, analyzer text NOT NULL, id_kind text NOT NULL,
    last_seq bigint NOT NULL DEFAULT 0
);
CREATE TABLE {s}.attribute (
    position integer PRIMARY KEY, name text NOT NULL UNIQUE,
    low double precision NOT NULL, high double precision NOT NULL, missing text NOT NULL
);
CREATE TABLE {s}.place (
    key bigint PRIMARY KEY,
    id text UNIQUE,
    label text,
    lon double precision NOT NULL CHECK (lon BETWEEN -180 AND 180),
    lat double precision NOT NULL CHECK (lat BETWEEN -90 AND 90),
    words text[] NOT NULL,
    attributes double precision[] NOT NULL,
    hilbert bigint NOT NULL,
    deleted boolean NOT NULL DEFAULT false,
    seq bigint NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX place_hilbert ON {s}.place (hilbert, key) WHERE NOT deleted;
CREATE UNIQUE INDEX place_seq ON {s}.place (seq);
CREATE TABLE {s}.checkin (
    seq bigint PRIMARY KEY, user_key bigint NOT NULL, place_key bigint NOT NULL,
    at timestamptz, slot integer NOT NULL
);
CREATE INDEX checkin_place ON {s}.checkin (place_key);
"""

_COLUMNS = ("key", "id", "label", "lon", "lat", "words", "attributes", "hilbert", "seq")
_READ = "SELECT key, id, label, lon, lat, words, attributes, deleted, seq FROM {s}.place"
_INCOMING = """
CREATE TEMPORARY TABLE incoming ON COMMIT DROP AS
SELECT key, id, label, lon, lat, words, attributes, hilbert, seq FROM {s}.place WITH NO DATA
"""
_MERGE = """
INSERT INTO {s}.place AS p (key, id, label, lon, lat, words, attributes, hilbert, seq)
SELECT key, id, label, lon, lat, words, attributes, hilbert, seq FROM incoming
ON CONFLICT (key) DO UPDATE SET
    id = excluded.id, label = {label}, lon = excluded.lon, lat = excluded.lat,
    words = excluded.words, attributes = excluded.attributes, hilbert = excluded.hilbert,
    seq = excluded.seq, deleted = false, updated_at = now()
"""


@dataclass(frozen=True, slots=True)
class Changes:
    """Rows that changed after a number of the change feed.

    ``seq`` is the number to go on from, ``rows`` the places as they are now,
    ``deleted`` int64 the keys of places that are gone, and ``more`` says that
    the limit was reached. A place that changed twice is there once.
    """

    seq: int
    rows: PlaceRows
    deleted: npt.NDArray[np.int64]
    more: bool


@dataclass(frozen=True, slots=True)
class CheckinRows:
    """Check-ins: ``user``, ``place`` int64 [m] keys and ``slot`` int32 [m] (-1: not known)."""

    user: npt.NDArray[np.int64]
    place: npt.NDArray[np.int64]
    slot: npt.NDArray[np.int32]


class PlaceTables:
    """What is asked of the tables; each coroutine is one transaction.

    Each runs in the loop of the connections; arguments and errors are those of
    the methods of :class:`~shoal.spatial.postgres.PlaceSource`.
    """

    def __init__(self, connections: Connections) -> None:
        self._at = connections

    async def meta(self) -> Any:
        """Return what the tables say of themselves, last number of the change feed included."""
        rows = await self._at.fetch("SELECT * FROM {s}.meta")
        if rows[0]["version"] != _VERSION:
            raise ConflictError(
                f"tables of version {rows[0]['version']}; this program knows {_VERSION}"
            )
        return rows[0]

    async def numbered(self) -> Ids:
        """Return the map of text ids with the very keys that the rows have."""
        rows = await self._at.fetch("SELECT key, id FROM {s}.place ORDER BY key")
        size = rows[-1]["key"] + 1 if rows else 0
        # A key that never reached the tables keeps its number; Postgres holds no text with NUL.
        names = [f"\0{key}" for key in range(size)]
        for row in rows:
            names[row["key"]] = row["id"]
        return Ids.of(names)[0] if names else Ids("text")

    async def create(self, specs: Sequence[AttributeSpec], analyzer: str, id_kind: str) -> None:
        """Make the tables."""
        async with self._at.one() as connection, connection.transaction():
            try:
                await connection.execute(self._at.sql(_TABLES))
            except self._at.asyncpg.DuplicateTableError as error:
                raise ConflictError(f"schema {self._at.schema} already has places") from error
            await connection.execute(
                self._at.sql(
                    "INSERT INTO {s}.meta (version, analyzer, id_kind) VALUES ($1, $2, $3)"
                ),
                _VERSION,
                analyzer,
                id_kind,
            )
            await connection.executemany(
                self._at.sql("INSERT INTO {s}.attribute VALUES ($1, $2, $3, $4, $5)"),
                [(j, s.name, s.low, s.high, s.missing) for j, s in enumerate(specs)],
            )

    async def _take_numbers(self, connection: Any, count: int) -> int:
        """Take ``count`` numbers of the change feed and return the last before them.

        The lock on the counter's row is held to the end of the transaction.
        """
        statement = "UPDATE {s}.meta SET last_seq = last_seq + $1 RETURNING last_seq"
        return int(await connection.fetchval(self._at.sql(statement), count)) - count

    async def put(
        self,
        columns: PlaceColumns,
        ids: Sequence[str] | None,
        labels: Sequence[str | None] | None,
    ) -> int:
        """Add or replace places; return the number of the last change."""
        for given, name in ((ids, "ids"), (labels, "labels")):
            if given is not None and len(given) != len(columns):
                raise InputError(f"{len(given)} {name} for {len(columns)} places", field=name)
        async with self._at.one() as connection, connection.transaction():
            seq = await self._take_numbers(connection, len(columns))
            await connection.execute(self._at.sql(_INCOMING))
            await connection.copy_records_to_table(
                "incoming", records=_records(columns, ids, labels, seq), columns=_COLUMNS
            )
            label = "p.label" if labels is None else "excluded.label"
            await connection.execute(self._at.sql(_MERGE).replace("{label}", label))
        return seq + len(columns)

    async def remove(self, keys: list[int]) -> int:
        """Mark places as deleted; return the number of the last change."""
        async with self._at.one() as connection, connection.transaction():
            seq = await self._take_numbers(connection, len(keys))
            await connection.execute(
                self._at.sql(
                    "UPDATE {s}.place p SET deleted = true, seq = $2 + k.n, updated_at = now() "
                    "FROM unnest($1::bigint[]) WITH ORDINALITY AS k(key, n) "
                    "WHERE p.key = k.key AND NOT p.deleted"
                ),
                keys,
                seq,
            )
        return seq + len(keys)

    async def read(self, low: int, high: int | None) -> PlaceRows:
        """Return the places of a Hilbert range from one snapshot, fetched in pieces."""
        async with (
            self._at.one() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            seq = int(await connection.fetchval(self._at.sql("SELECT last_seq FROM {s}.meta")))
            width = int(
                await connection.fetchval(self._at.sql("SELECT count(*) FROM {s}.attribute"))
            )
            collected = RowCollector(width)
            cursor = await connection.cursor(
                self._at.sql(
                    _READ + " WHERE NOT deleted AND hilbert >= $1 "
                    "AND ($2::bigint IS NULL OR hilbert < $2) ORDER BY hilbert, key"
                ),
                low,
                high,
            )
            while records := await cursor.fetch(_FETCH):
                collected.add(records)
        return collected.rows(seq)

    async def changes(self, seq: int, limit: int) -> Changes:
        """Return the places of which the last change is after ``seq``."""
        async with (
            self._at.one() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            last = int(await connection.fetchval(self._at.sql("SELECT last_seq FROM {s}.meta")))
            width = int(
                await connection.fetchval(self._at.sql("SELECT count(*) FROM {s}.attribute"))
            )
            statement = self._at.sql(_READ + " WHERE seq > $1 ORDER BY seq LIMIT $2")
            records = await connection.fetch(statement, seq, limit)
        collected = RowCollector(width)
        collected.add([record for record in records if not record["deleted"]])
        more = len(records) == limit
        upto = int(records[-1]["seq"]) if more else max(last, seq)
        gone = [record["key"] for record in records if record["deleted"]]
        return Changes(upto, collected.rows(upto), np.array(gone, dtype=np.int64), more)

    async def put_checkins(self, checkins: CheckinRows) -> int:
        """Add check-ins; return the number of the last change."""
        count = len(checkins.user)
        async with self._at.one() as connection, connection.transaction():
            seq = await self._take_numbers(connection, count)
            await connection.copy_records_to_table(
                "checkin",
                schema_name=self._at.schema,
                columns=("seq", "user_key", "place_key", "slot"),
                records=zip(
                    range(seq + 1, seq + 1 + count),
                    checkins.user.tolist(),
                    checkins.place.tolist(),
                    checkins.slot.tolist(),
                    strict=True,
                ),
            )
        return seq + count


def _records(
    columns: PlaceColumns,
    ids: Sequence[str] | None,
    labels: Sequence[str | None] | None,
    seq: int,
) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of :data:`_COLUMNS`, made as they are sent."""
    words = columns.words
    curve = hilbert_key(columns.lon, columns.lat).astype(np.int64).tolist()
    ptr = columns.word_ptr.tolist()

    def row(i: int, key: int, lon: float, lat: float) -> tuple[Any, ...]:
        values = columns.values[:, i].tolist()
        return (
            key,
            None if ids is None else ids[i],
            None if labels is None else labels[i],
            lon,
            lat,
            [words[w] for w in columns.word_ids[ptr[i] : ptr[i + 1]].tolist()],
            [None if math.isnan(value) else value for value in values],
            curve[i],
            seq + 1 + i,
        )

    return starmap(
        row,
        zip(
            range(len(columns)),
            columns.keys.tolist(),
            columns.lon.tolist(),
            columns.lat.tolist(),
            strict=True,
        ),
    )
