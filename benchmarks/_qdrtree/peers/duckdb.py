"""DuckDB: a table of postings sorted by word, with an index on the word."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from _qdrtree.peers.base import Missing, Peer, Scored
from _qdrtree.queries import EARTH_KM, Ask, unit_vectors
from shoal.spatial.columns import PlaceColumns

try:
    import duckdb
except ImportError:  # an optional peer
    duckdb = None  # type: ignore[assignment]

_CHORD2 = "(any_value(x) - ?) ** 2 + (any_value(y) - ?) ** 2 + (any_value(z) - ?) ** 2"


class DuckDb(Peer):
    """Postings with positions; one grouped scan of the words' rows a query."""

    name = "DuckDB"

    def __init__(self) -> None:
        if duckdb is None:
            raise Missing("the package duckdb")
        self.version = duckdb.__version__

    def build(self, places: PlaceColumns, folder: Path) -> None:
        self.path = folder / "places.duckdb"
        self.db = db = duckdb.connect(str(self.path), config={"threads": 1})
        at = unit_vectors(places.lon, places.lat)
        rows = np.repeat(np.arange(len(places), dtype=np.int32), np.diff(places.word_ptr))
        order = np.argsort(places.word_ids, kind="stable")
        rows = rows[order]
        words = pa.array(list(places.words), type=pa.string())
        postings = pa.table(
            {
                "word": words.take(pa.array(places.word_ids[order])),
                "id": rows,
                "x": at[rows, 0],
                "y": at[rows, 1],
                "z": at[rows, 2],
            }
        )
        db.register("incoming", postings)
        db.execute("CREATE TABLE posting AS SELECT * FROM incoming ORDER BY word, id")
        db.unregister("incoming")
        db.execute("CREATE INDEX by_word ON posting (word)")
        db.execute("CHECKPOINT")

    def and_nearest(self, ask: Ask) -> list[int]:
        m = len(ask.words)
        found = self.db.execute(
            f"SELECT id FROM posting WHERE word IN ({', '.join('?' * m)}) GROUP BY id "
            f"HAVING count(*) = {m} ORDER BY {_CHORD2}, id LIMIT {ask.k}",
            [*ask.words, *_three(ask)],
        ).fetchall()
        return [key for (key,) in found]

    def ranked(self, ask: Ask) -> Scored:
        m = len(ask.words)
        share = "CASE word " + "WHEN ? THEN ? " * m + "END"
        pairs = [x for pair in zip(ask.words, ask.shares, strict=True) for x in pair]
        return self.db.execute(
            f"SELECT id, 0.5 * greatest(0, 1 - asin(least(1, sqrt(c) / 2)) * ?) + 0.5 * w AS score "
            f"FROM (SELECT id, {_CHORD2} AS c, sum({share}) AS w FROM posting "
            f"WHERE word IN ({', '.join('?' * m)}) GROUP BY id) "
            f"ORDER BY score DESC, c, id LIMIT {ask.k}",
            [2 * EARTH_KM / ask.max_km, *_three(ask), *pairs, *ask.words],
        ).fetchall()

    def nbytes(self) -> int:
        return self.path.stat().st_size

    def close(self) -> None:
        self.db.close()


def _three(ask: Ask) -> list[float]:
    at: list[float] = unit_vectors(np.float64(ask.lon), np.float64(ask.lat)).tolist()
    return at
