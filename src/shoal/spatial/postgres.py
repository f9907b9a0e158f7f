"""Postgres as the source of truth of places: tables and a change feed.

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

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.core.errors import InputError
from shoal.spatial.columns import AttributeSpec, PlaceColumns
from shoal.spatial.config import SpatialKeywordIndexConfig
from shoal.spatial.curve import hilbert_key
from shoal.spatial.ids import Ids
from shoal.spatial.index import SpatialKeywordIndex
from shoal.spatial.ingest import make_columns
from shoal.spatial.labels import Labels
from shoal.spatial.placerows import PlaceRows
from shoal.spatial.postgres_connection import Connections
from shoal.spatial.postgres_tables import Changes, CheckinRows, PlaceTables
from shoal.spatial.shards import apply_columns, index_of_columns

__all__ = ["Changes", "CheckinRows", "PlaceSource"]


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
        self._at = Connections(dsn, schema, timeout_s)
        self._tables = PlaceTables(self._at)
        self.schema = schema

    def close(self) -> None:
        """Close the connections."""
        self._at.close()

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
        self._at.run(self._tables.create(specs, analyzer, id_kind))

    def specs(self) -> tuple[AttributeSpec, ...]:
        """Return the attributes, in their order in every array."""
        rows = self._at.run(self._at.fetch("SELECT * FROM {s}.attribute ORDER BY position"))
        return tuple(
            AttributeSpec(name=r["name"], low=r["low"], high=r["high"], missing=r["missing"])
            for r in rows
        )

    def id_kind(self) -> str:
        """Return what the external ids are, ``int`` or ``text``."""
        return str(self.meta()["id_kind"])

    def seq(self) -> int:
        """Return the number of the last change."""
        return int(self.meta()["last_seq"])

    def meta(self) -> Mapping[str, Any]:
        """Return ``analyzer``, ``id_kind`` and ``last_seq``, the number of the last change."""
        found: Mapping[str, Any] = self._at.run(self._tables.meta())
        return found

    def ids(self) -> Ids:
        """Return the map of external ids with the very keys that the rows have."""
        return Ids("int") if self.id_kind() == "int" else self._at.run(self._tables.numbered())

    def __len__(self) -> int:
        rows = self._at.run(self._at.fetch("SELECT count(*) AS n FROM {s}.place WHERE NOT deleted"))
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
        return self._at.run(self._tables.put(columns, ids, labels))

    def remove(self, keys: npt.NDArray[np.int64]) -> int:
        """Mark places as deleted; return the number of the change."""
        return self._at.run(self._tables.remove([int(key) for key in keys]))

    def read(self, low: int = 0, high: int | None = None) -> PlaceRows:
        """Return the places of one Hilbert range as columns, in the order of the curve.

        The rows come from one snapshot of the database, in pieces; ``seq`` of
        the result is the change feed's number of that snapshot.

        Parameters
        ----------
        low, high : int
            Range of ``curve.hilbert_key``, ``high`` not included (None: to the end).
        """
        return self._at.run(self._tables.read(low, high))

    def changes_since(self, seq: int, *, limit: int = 100_000) -> Changes:
        """Return what changed after a number of the change feed, at most ``limit`` places.

        Not restricted to a range: a place that moved out of a shard's range has
        to be deleted from that shard, and only its new position is on record.
        """
        if seq < 0 or limit < 1:
            raise InputError("seq is at least 0 and limit at least 1", value=(seq, limit))
        return self._at.run(self._tables.changes(seq, limit))

    def cuts(self, shards: int) -> list[int]:
        """Return ``shards - 1`` places on the curve that part the places into equal ranges."""
        if shards < 1:
            raise InputError("there is at least one shard", field="shards", value=shards)
        rows = self._at.run(
            self._at.fetch(
                "SELECT percentile_disc($1::float8[]) WITHIN GROUP (ORDER BY hilbert) AS cuts "
                "FROM {s}.place WHERE NOT deleted",
                [i / shards for i in range(1, shards)],
            )
        )
        # A cut begins the next range, so the place that it was taken from goes there.
        return [0 if cut is None else int(cut) for cut in rows[0]["cuts"] or [0] * (shards - 1)]

    def put_checkins(self, checkins: CheckinRows) -> int:
        """Add check-ins; return the number of the change."""
        return self._at.run(self._tables.put_checkins(checkins))

    def checkins(self, low: int = 0, high: int | None = None) -> CheckinRows:
        """Return the check-ins at the places of one Hilbert range, in the order they came."""
        rows = self._at.run(
            self._at.fetch(
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
        meta, rows = self.meta(), self.read()
        config = (config or SpatialKeywordIndexConfig()).model_copy(
            update={"analyzer": meta["analyzer"]}
        )
        ids = self.ids()
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
