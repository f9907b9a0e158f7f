"""SQL engines that can express the whole score: every place is evaluated.

PostGIS would do the same with 32 columns a place; SQLite stands for the row
stores, DuckDB, with an inner product over arrays, for the column stores.
"""

from __future__ import annotations

import importlib.metadata
import sqlite3
from typing import Any

import numpy as np
import pyarrow as pa

from _netrtree.brute import FullScan
from _netrtree.data import MAX_KM, Ask
from _qdrtree.queries import EARTH_KM, unit_vectors

try:
    import duckdb
except ImportError:  # an optional peer
    duckdb = None  # type: ignore[assignment]


class SqliteScan:
    """One statement: places and words by index, the dot product written out."""

    name = "SQLite"
    version = sqlite3.sqlite_version

    def __init__(self, scan: FullScan) -> None:
        self.dim = scan.vectors.shape[1]
        self.scan = scan
        self.db = db = sqlite3.connect(":memory:", isolation_level=None)
        slots = len(scan.times)
        columns = [f"p{j} REAL" for j in range(self.dim)] + [f"t{s} REAL" for s in range(slots)]
        db.execute(f"CREATE TABLE place (id INTEGER PRIMARY KEY, x, y, z, {', '.join(columns)})")
        db.execute("CREATE TABLE posting (word INT, id INT, PRIMARY KEY (word, id)) WITHOUT ROWID")
        table = np.concatenate([scan.at, scan.vectors, scan.times.T], axis=1)
        marks = ", ".join("?" * (1 + table.shape[1]))
        db.execute("BEGIN")
        db.executemany(
            f"INSERT INTO place VALUES ({marks})",
            ((i, *row) for i, row in enumerate(table.tolist())),
        )
        words = np.repeat(np.arange(len(scan.ptr) - 1), np.diff(scan.ptr))
        pairs = zip(words.tolist(), scan.post.tolist(), strict=True)
        db.executemany("INSERT INTO posting VALUES (?, ?)", pairs)
        db.execute("COMMIT")
        db.execute("ANALYZE")
        self.dot = " + ".join(f"p{j} * ?" for j in range(self.dim))

    def top(self, ask: Ask, mix: tuple[float, ...]) -> list[tuple[int, float]]:
        space, text, time, social = mix
        x, y, z = unit_vectors(np.float64(ask.lon), np.float64(ask.lat)).tolist()
        score = (
            "? * max(0, 1 - asin(min(1, 0.5 * sqrt((x - ?) * (x - ?) + (y - ?) * (y - ?) "
            f"+ (z - ?) * (z - ?)))) * ?) + ? * t{ask.slot} + ? * (1 + {self.dot})"
        )
        parts: list[Any] = [space, x, x, y, y, z, z, 2 * EARTH_KM / MAX_KM, time, 0.5 * social]
        parts += self.scan.users[ask.user].tolist()
        if not ask.words:
            sql = f"SELECT id, {score} AS score FROM place ORDER BY score DESC LIMIT ?"
            return self.db.execute(sql, (*parts, ask.k)).fetchall()
        arm = "SELECT id, ? AS w FROM posting WHERE word = ?"
        arms = " UNION ALL ".join([arm] * len(ask.words))
        pairs = zip(ask.shares, ask.words, strict=True)
        chosen = [value for share, word in pairs for value in (share, self.scan.number[word])]
        sql = (
            f"SELECT p.id, {score} + ? * q.w AS score FROM (SELECT id, sum(w) AS w FROM ({arms}) "
            "GROUP BY id) q CROSS JOIN place p ON p.id = q.id ORDER BY score DESC LIMIT ?"
        )
        return self.db.execute(sql, (*parts, text, *chosen, ask.k)).fetchall()


class DuckDbScan:
    """Vectors as fixed-size arrays, slots as columns."""

    name = "DuckDB"

    def __init__(self, scan: FullScan) -> None:
        self.version = importlib.metadata.version("duckdb")
        self.scan = scan
        self.dim = scan.vectors.shape[1]
        self.db = db = duckdb.connect(":memory:", config={"threads": 1})
        flat = pa.array(scan.vectors.astype(np.float32).ravel())
        fields: dict[str, Any] = {
            "id": np.arange(scan.n),
            "x": scan.at[:, 0],
            "y": scan.at[:, 1],
            "z": scan.at[:, 2],
            "p": pa.FixedSizeListArray.from_arrays(flat, self.dim),
        }
        fields |= {f"t{s}": scan.times[s].astype(np.float32) for s in range(len(scan.times))}
        db.register("incoming", pa.table(fields))
        db.execute("CREATE TABLE place AS SELECT * FROM incoming")
        words = np.repeat(np.arange(len(scan.ptr) - 1), np.diff(scan.ptr))
        db.register("pairs", pa.table({"word": words, "id": scan.post}))
        db.execute("CREATE TABLE posting AS SELECT * FROM pairs ORDER BY word, id")
        db.unregister("incoming")
        db.unregister("pairs")

    def top(self, ask: Ask, mix: tuple[float, ...]) -> list[tuple[int, float]]:
        space, text, time, social = mix
        x, y, z = unit_vectors(np.float64(ask.lon), np.float64(ask.lat)).tolist()
        score = (
            "$space * greatest(0, 1 - asin(least(1, 0.5 * sqrt((x - $x) ** 2 + (y - $y) ** 2 "
            f"+ (z - $z) ** 2))) * $scale) + $time * t{ask.slot} + $social * "
            f"(1 + array_inner_product(p, $vector::FLOAT[{self.dim}]))"
        )
        parts: dict[str, Any] = {
            "space": space,
            "x": x,
            "y": y,
            "z": z,
            "scale": 2 * EARTH_KM / MAX_KM,
            "time": time,
            "social": 0.5 * social,
            "vector": self.scan.users[ask.user].tolist(),
        }
        if not ask.words:
            sql = f"SELECT id, {score} AS score FROM place ORDER BY score DESC LIMIT {ask.k}"
            return self.db.execute(sql, parts).fetchall()
        share = " ".join(f"WHEN $w{i} THEN $s{i}" for i in range(len(ask.words)))
        names = ", ".join(f"$w{i}" for i in range(len(ask.words)))
        parts |= {f"w{i}": self.scan.number[word] for i, word in enumerate(ask.words)}
        parts |= {f"s{i}": part for i, part in enumerate(ask.shares)}
        parts["text"] = text
        sql = (
            f"SELECT id, {score} + $text * w AS score FROM place JOIN (SELECT id, "
            f"sum(CASE word {share} END) AS w FROM posting WHERE word IN ({names}) GROUP BY id) "
            f"USING (id) ORDER BY score DESC LIMIT {ask.k}"
        )
        return self.db.execute(sql, parts).fetchall()
