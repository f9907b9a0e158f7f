"""Postgres as the source of truth of places: tables, a change feed, shards rebuilt from it.

Plain Postgres is enough, no extension is used. Every place is one row; its
place on the Hilbert curve is a column of its own, so that a shard is one range
of an index. A deleted place stays as a row with a flag, and every change gives
its row the next number of one counter: reading the rows above a number is the
change feed.

The counter is a row that each writing transaction updates, so writers come one
after the other and numbers become visible in their order; with a sequence, a
slow transaction could commit a lower number after a reader had gone past it.
"""

from __future__ import annotations

import asyncio
import math
import re
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import starmap
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from shoal.core.errors import ConflictError, InputError, NotFoundError, UnavailableError
from shoal.spatial.columns import AttributeSpec, PlaceColumns
from shoal.spatial.config import SpatialKeywordIndexConfig
from shoal.spatial.curve import hilbert_key
from shoal.spatial.ids import Ids
from shoal.spatial.index import SpatialKeywordIndex
from shoal.spatial.ingest import make_columns
from shoal.spatial.labels import Labels
from shoal.spatial.placerows import PlaceRows, RowCollector
from shoal.spatial.shards import LocalTransport, ShardHost, apply_columns, index_of_columns
from shoal.spatial.shardstore import ShardStore
from shoal.spatial.state import IndexState

if TYPE_CHECKING:
    from shoal.spatial.sharding import ShardedIndex

__all__ = ["Changes", "CheckinRows", "PlaceSource", "rebuild_shard", "sharded_from_source"]

_VERSION = 1
_FETCH = 10_000
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_T = TypeVar("_T")

# Names cannot be parameters of SQL; `{s}` is checked against _NAME before it gets here.
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


class PlaceSource:
    """The tables of places in one schema of a Postgres database.

    Parameters
    ----------
    dsn : str
        Address of the database, as libpq and asyncpg read it.
    schema : str
        Schema of the tables: lower-case letters, digits and underscores.
    timeout_s : float
        Longest wait for a connection.

    Raises
    ------
    InputError
        The schema's name is none.
    UnavailableError
        asyncpg is not installed, or the server does not answer.

    Notes
    -----
    All methods block; a thread of the object's own runs the connections, so
    they may be called from any thread, with or without an event loop.
    """

    def __init__(self, dsn: str, *, schema: str = "shoal", timeout_s: float = 10.0) -> None:
        if not _NAME.fullmatch(schema):
            raise InputError(
                "a schema's name has lower-case letters, digits and underscores",
                field="schema",
                value=schema,
            )
        self._asyncpg = _import_asyncpg()
        self.schema = schema
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="shoal-postgres", daemon=True
        )
        self._thread.start()
        self._pool: Any = None
        try:
            self._pool = self._run(self._open(dsn, timeout_s))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connections."""
        if self._loop.is_closed():
            return
        if self._pool is not None:
            self._run(self._pool.close())
            self._pool = None
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> PlaceSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- the tables ---------------------------------------------------------------------------

    def create(
        self,
        specs: Sequence[AttributeSpec] = (),
        *,
        analyzer: str = "words",
        id_kind: str = "int",
    ) -> None:
        """Make the tables.

        Parameters
        ----------
        specs : sequence of AttributeSpec
            The attributes of the places, in the order of every array.
        analyzer : {"words", "exact"}
            How the words of the places came about.
        id_kind : {"int", "text"}
            What the external ids are.

        Raises
        ------
        ConflictError
            The tables are already there.
        """
        if analyzer not in {"words", "exact"} or id_kind not in {"int", "text"}:
            raise InputError(
                'analyzer is "words" or "exact", id_kind "int" or "text"', value=(analyzer, id_kind)
            )
        self._run(self._create(specs, analyzer, id_kind))

    def specs(self) -> tuple[AttributeSpec, ...]:
        """Return the attributes, in their order in every array."""
        rows = self._run(self._fetch("SELECT * FROM {s}.attribute ORDER BY position"))
        return tuple(
            AttributeSpec(name=r["name"], low=r["low"], high=r["high"], missing=r["missing"])
            for r in rows
        )

    def id_kind(self) -> str:
        """Return what the external ids are, ``int`` or ``text``."""
        return str(self._meta()["id_kind"])

    def seq(self) -> int:
        """Return the number of the last change."""
        return int(self._meta()["last_seq"])

    def __len__(self) -> int:
        rows = self._run(self._fetch("SELECT count(*) AS n FROM {s}.place WHERE NOT deleted"))
        return int(rows[0]["n"])

    # --- places in and out --------------------------------------------------------------------

    def put(
        self,
        columns: PlaceColumns,
        *,
        ids: Sequence[str] | None = None,
        labels: Sequence[str | None] | None = None,
    ) -> int:
        """Add or replace places in one transaction (COPY); return the number of the change.

        Parameters
        ----------
        columns : PlaceColumns
            The places.
        ids : sequence of str, optional
            Their external ids, where these are texts.
        labels : sequence of str, optional
            Their labels. Without it, labels that are there stay.

        Raises
        ------
        ConflictError
            An external id belongs to another key.
        """
        return self._run(self._put(columns, ids, labels))

    def remove(self, keys: npt.NDArray[np.int64]) -> int:
        """Mark places as deleted; return the number of the change."""
        return self._run(self._remove([int(key) for key in keys]))

    def read(self, low: int = 0, high: int | None = None) -> PlaceRows:
        """Return the places of one Hilbert range as columns, in the order of the curve.

        The rows come from one snapshot of the database, in pieces; ``seq`` of
        the result is the change feed's number of that snapshot.

        Parameters
        ----------
        low, high : int
            Range of ``curve.hilbert_key``, ``high`` not included (None: to the end).
        """
        return self._run(self._read(low, high))

    def changes_since(self, seq: int, *, limit: int = 100_000) -> Changes:
        """Return what changed after a number of the change feed, at most ``limit`` places.

        Not restricted to a range: a place that moved out of a shard's range has
        to be deleted from that shard, and only its new position is on record.
        """
        if seq < 0 or limit < 1:
            raise InputError("seq is at least 0 and limit at least 1", value=(seq, limit))
        return self._run(self._changes(seq, limit))

    def cuts(self, shards: int) -> list[int]:
        """Return ``shards - 1`` places on the curve that part the places into equal ranges."""
        if shards < 1:
            raise InputError("there is at least one shard", field="shards", value=shards)
        rows = self._run(
            self._fetch(
                "SELECT percentile_disc($1::float8[]) WITHIN GROUP (ORDER BY hilbert) AS cuts "
                "FROM {s}.place WHERE NOT deleted",
                [i / shards for i in range(1, shards)],
            )
        )
        # A cut begins the next range, so the place that it was taken from goes there.
        return [0 if cut is None else int(cut) for cut in rows[0]["cuts"] or [0] * (shards - 1)]

    def put_checkins(self, checkins: CheckinRows) -> int:
        """Add check-ins; return the number of the change."""
        return self._run(self._put_checkins(checkins))

    def checkins(self, low: int = 0, high: int | None = None) -> CheckinRows:
        """Return the check-ins at the places of one Hilbert range, in the order they came."""
        rows = self._run(
            self._fetch(
                "SELECT c.user_key, c.place_key, c.slot FROM {s}.checkin c JOIN {s}.place p "
                "ON p.key = c.place_key WHERE NOT p.deleted AND p.hilbert >= $1 "
                "AND ($2::bigint IS NULL OR p.hilbert < $2) ORDER BY c.seq",
                low,
                high,
            )
        )
        user, place, slot = zip(*rows, strict=True) if rows else ((), (), ())
        return CheckinRows(
            np.array(user, dtype=np.int64),
            np.array(place, dtype=np.int64),
            np.array(slot, dtype=np.int32),
        )

    # --- with an index ------------------------------------------------------------------------

    def export_index(self, index: SpatialKeywordIndex) -> int:
        """Make the tables and copy all places of an index into them; return the change's number."""
        self.create(index.attribute_specs, analyzer=index.config.analyzer, id_kind=index.ids.kind)
        columns = index.columns()
        return self.put(
            columns,
            ids=index.ids.names(columns.keys) if index.ids.kind == "text" else None,
            labels=index.labels.get(columns.keys) if index.labels else None,
        )

    def import_index(
        self, config: SpatialKeywordIndexConfig | None = None
    ) -> tuple[SpatialKeywordIndex, int]:
        """Build an index of all places; return it and the number it is caught up to."""
        meta, rows = self._meta(), self.read()
        config = (config or SpatialKeywordIndexConfig()).model_copy(
            update={"analyzer": meta["analyzer"]}
        )
        ids = Ids("int") if meta["id_kind"] == "int" else self._numbered()
        labels = Labels.of(rows.columns.keys, rows.labels) if any(rows.labels) else None
        index = index_of_columns(rows.columns, self.specs(), config, ids=ids, labels=labels)
        return index, rows.seq

    def upsert(
        self,
        index: SpatialKeywordIndex,
        lon: Any,
        lat: Any,
        *,
        ids: Any,
        keywords: Any = None,
        attributes: Mapping[str, Any] | None = None,
        labels: Sequence[str | None] | None = None,
    ) -> int:
        """Add or replace places, here first and then in the index; return the change's number.

        Should the process end between the two, :meth:`catch_up` from the last
        number that the index had brings it level. The arguments are those of
        :meth:`SpatialKeywordIndex.upsert`.
        """
        columns = make_columns(
            lon,
            lat,
            keys=np.arange(len(lon), dtype=np.int64),
            keywords=keywords,
            attributes=attributes,
            specs=index.attribute_specs,
            analyzer=index.config.analyzer,
        )
        if len(ids) != len(columns):
            raise InputError(f"{len(ids)} ids for {len(columns)} places", field="ids")
        columns = replace(columns, keys=index.ids.add(ids))
        texts = list(ids) if index.ids.kind == "text" else None
        seq = self.put(columns, ids=texts, labels=labels)
        apply_columns(index, columns, labels=labels)
        return seq

    def delete(self, index: SpatialKeywordIndex, ids: Any) -> int:
        """Delete places, here first and then in the index; return the change's number."""
        keys = index.ids.find(ids)
        keys = keys if index.ids.kind == "int" else keys[keys >= 0]
        seq = self.remove(keys)
        apply_columns(index, None, keys)
        return seq

    def catch_up(
        self,
        index: SpatialKeywordIndex,
        seq: int,
        *,
        low: int = 0,
        high: int | None = None,
        limit: int = 100_000,
    ) -> int:
        """Bring an index from change ``seq`` to the last one; return its number.

        With ``low`` and ``high`` the index is the shard of that Hilbert range
        (its ids are the keys): what lies outside is deleted from it.
        """
        while True:
            changes = self.changes_since(seq, limit=limit)
            rows, gone = changes.rows, changes.deleted
            if low > 0 or high is not None:
                curve = hilbert_key(rows.columns.lon, rows.columns.lat)
                inside = curve >= low if high is None else (curve >= low) & (curve < high)
                gone = np.concatenate([gone, rows.columns.keys[~inside]])
                rows = rows.keep(inside)
            if index.ids.kind == "text":
                index.ids.put([str(name) for name in rows.ids], rows.columns.keys.tolist())
            labels = rows.labels if index.labels or any(rows.labels) else None
            apply_columns(index, rows.columns, gone, labels)
            seq = changes.seq
            if not changes.more:
                return seq

    # --- how it is done -----------------------------------------------------------------------

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        future: Future[_T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return future.result()

    async def _open(self, dsn: str, timeout_s: float) -> Any:
        try:
            return await self._asyncpg.create_pool(
                dsn, min_size=1, max_size=4, timeout=timeout_s, command_timeout=None
            )
        except (OSError, TimeoutError, self._asyncpg.PostgresError) as error:
            raise UnavailableError(f"Postgres does not answer: {error}") from error
        except (ValueError, self._asyncpg.InterfaceError) as error:
            raise InputError(f"no address of a database: {error}", field="dsn") from error

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Any]:
        pg = self._asyncpg
        try:
            async with self._pool.acquire() as connection:
                yield connection
        except (pg.UndefinedTableError, pg.InvalidSchemaNameError) as error:
            raise NotFoundError(
                f"schema {self.schema} has no places", hint="create() makes the tables"
            ) from error
        except pg.UniqueViolationError as error:
            raise ConflictError(f"an external id belongs to another place: {error}") from error
        except (pg.CharacterNotInRepertoireError, pg.UntranslatableCharacterError) as error:
            raise InputError(f"Postgres cannot store a word, id or label: {error}") from error
        except (OSError, pg.PostgresConnectionError, pg.CannotConnectNowError) as error:
            raise UnavailableError(f"Postgres does not answer: {error}") from error

    def _sql(self, text: str) -> str:
        return text.replace("{s}", self.schema)

    async def _fetch(self, text: str, *args: Any) -> list[Any]:
        async with self._connection() as connection:
            return list(await connection.fetch(self._sql(text), *args))

    def _meta(self) -> Any:
        rows = self._run(self._fetch("SELECT * FROM {s}.meta"))
        if rows[0]["version"] != _VERSION:
            raise ConflictError(
                f"tables of version {rows[0]['version']}; this program knows {_VERSION}"
            )
        return rows[0]

    def _numbered(self) -> Ids:
        """Return the map of text ids with the very keys that the rows have."""
        rows = self._run(self._fetch("SELECT key, id FROM {s}.place ORDER BY key"))
        size = rows[-1]["key"] + 1 if rows else 0
        # A key that never reached the tables keeps its number; Postgres holds no text with NUL.
        names = [f"\0{key}" for key in range(size)]
        for row in rows:
            names[row["key"]] = row["id"]
        return Ids.of(names)[0] if names else Ids("text")

    async def _create(self, specs: Sequence[AttributeSpec], analyzer: str, id_kind: str) -> None:
        async with self._connection() as connection, connection.transaction():
            try:
                await connection.execute(self._sql(_TABLES))
            except self._asyncpg.DuplicateTableError as error:
                raise ConflictError(f"schema {self.schema} already has places") from error
            await connection.execute(
                self._sql("INSERT INTO {s}.meta (version, analyzer, id_kind) VALUES ($1, $2, $3)"),
                _VERSION,
                analyzer,
                id_kind,
            )
            await connection.executemany(
                self._sql("INSERT INTO {s}.attribute VALUES ($1, $2, $3, $4, $5)"),
                [(j, s.name, s.low, s.high, s.missing) for j, s in enumerate(specs)],
            )

    async def _take_numbers(self, connection: Any, count: int) -> int:
        """Take ``count`` numbers of the change feed and return the last before them.

        The lock on the counter's row is held to the end of the transaction.
        """
        statement = "UPDATE {s}.meta SET last_seq = last_seq + $1 RETURNING last_seq"
        return int(await connection.fetchval(self._sql(statement), count)) - count

    async def _put(
        self,
        columns: PlaceColumns,
        ids: Sequence[str] | None,
        labels: Sequence[str | None] | None,
    ) -> int:
        for given, name in ((ids, "ids"), (labels, "labels")):
            if given is not None and len(given) != len(columns):
                raise InputError(f"{len(given)} {name} for {len(columns)} places", field=name)
        async with self._connection() as connection, connection.transaction():
            seq = await self._take_numbers(connection, len(columns))
            await connection.execute(self._sql(_INCOMING))
            await connection.copy_records_to_table(
                "incoming", records=_records(columns, ids, labels, seq), columns=_COLUMNS
            )
            label = "p.label" if labels is None else "excluded.label"
            await connection.execute(self._sql(_MERGE).replace("{label}", label))
        return seq + len(columns)

    async def _remove(self, keys: list[int]) -> int:
        async with self._connection() as connection, connection.transaction():
            seq = await self._take_numbers(connection, len(keys))
            await connection.execute(
                self._sql(
                    "UPDATE {s}.place p SET deleted = true, seq = $2 + k.n, updated_at = now() "
                    "FROM unnest($1::bigint[]) WITH ORDINALITY AS k(key, n) "
                    "WHERE p.key = k.key AND NOT p.deleted"
                ),
                keys,
                seq,
            )
        return seq + len(keys)

    async def _read(self, low: int, high: int | None) -> PlaceRows:
        async with (
            self._connection() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            seq = int(await connection.fetchval(self._sql("SELECT last_seq FROM {s}.meta")))
            width = int(await connection.fetchval(self._sql("SELECT count(*) FROM {s}.attribute")))
            collected = RowCollector(width)
            cursor = await connection.cursor(
                self._sql(
                    _READ + " WHERE NOT deleted AND hilbert >= $1 "
                    "AND ($2::bigint IS NULL OR hilbert < $2) ORDER BY hilbert, key"
                ),
                low,
                high,
            )
            while records := await cursor.fetch(_FETCH):
                collected.add(records)
        return collected.rows(seq)

    async def _changes(self, seq: int, limit: int) -> Changes:
        async with (
            self._connection() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            last = int(await connection.fetchval(self._sql("SELECT last_seq FROM {s}.meta")))
            width = int(await connection.fetchval(self._sql("SELECT count(*) FROM {s}.attribute")))
            statement = self._sql(_READ + " WHERE seq > $1 ORDER BY seq LIMIT $2")
            records = await connection.fetch(statement, seq, limit)
        collected = RowCollector(width)
        collected.add([record for record in records if not record["deleted"]])
        more = len(records) == limit
        upto = int(records[-1]["seq"]) if more else max(last, seq)
        gone = [record["key"] for record in records if record["deleted"]]
        return Changes(upto, collected.rows(upto), np.array(gone, dtype=np.int64), more)

    async def _put_checkins(self, checkins: CheckinRows) -> int:
        count = len(checkins.user)
        async with self._connection() as connection, connection.transaction():
            seq = await self._take_numbers(connection, count)
            await connection.copy_records_to_table(
                "checkin",
                schema_name=self.schema,
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


def rebuild_shard(
    dsn: str,
    low: int,
    high: int | None,
    *,
    schema: str = "shoal",
    config: SpatialKeywordIndexConfig | None = None,
) -> tuple[SpatialKeywordIndex, int]:
    """Build the shard of one Hilbert range from Postgres.

    Parameters
    ----------
    dsn, schema : str
        As :class:`PlaceSource`.
    low, high : int
        As :meth:`PlaceSource.read`.
    config : SpatialKeywordIndexConfig, optional
        Options of the shard.

    Returns
    -------
    SpatialKeywordIndex, int
        The shard, whose ids are the keys, and the number of the change feed
        from which :meth:`PlaceSource.catch_up` goes on.
    """
    with PlaceSource(dsn, schema=schema) as source:
        rows = source.read(low, high)
        shard = index_of_columns(rows.columns, source.specs(), config)
    return shard, rows.seq


def sharded_from_source(
    cls: type[ShardedIndex],
    source: PlaceSource,
    shards: int,
    config: SpatialKeywordIndexConfig | None,
) -> tuple[ShardedIndex, int]:
    """Build every shard from its range of the source; see ``ShardedIndex.from_postgres``."""
    meta, specs = source._meta(), source.specs()
    config = (config or SpatialKeywordIndexConfig()).model_copy(
        update={"analyzer": meta["analyzer"]}
    )
    seq, ends = int(meta["last_seq"]), source.cuts(shards)
    hosts, labels = [], []
    for low, high in zip([0, *ends], [*ends, None], strict=True):
        rows = source.read(low, high)
        hosts.append(ShardHost.of_columns(rows.columns, specs, config))
        labels.append((rows.columns.keys, rows.labels))
    store = ShardStore(
        LocalTransport(hosts),
        np.array(ends, dtype=np.uint64),
        specs,
        [host.outline() for host in hosts],
    )
    ids = Ids("int") if meta["id_kind"] == "int" else source._numbered()
    index = cls(store, IndexState(config, ids))
    for keys, texts in labels:
        if any(texts):
            index.labels.put(keys, texts)
    return index, source.catch_up(index, seq)


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


def _import_asyncpg() -> Any:
    try:
        import asyncpg  # noqa: PLC0415 - only where used
    except ImportError as error:
        raise UnavailableError(
            "asyncpg is not installed", hint="pip install 'shoal[spatial-scale]'"
        ) from error
    return asyncpg
