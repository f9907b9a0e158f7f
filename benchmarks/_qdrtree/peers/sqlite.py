"""SQLite: FTS5 alone, and FTS5 with an R*Tree."""

from __future__ import annotations

import math
import sqlite3
from pathlib import Path

import numpy as np

from _qdrtree.data import word_lists
from _qdrtree.peers.base import Peer, Scored, boxes
from _qdrtree.queries import EARTH_KM, Ask, unit_vectors
from shoal.spatial.columns import PlaceColumns

_CHORD2 = "(p.x - ?) * (p.x - ?) + (p.y - ?) * (p.y - ?) + (p.z - ?) * (p.z - ?)"


def safe(word: str) -> str:
    """Return a word as a token that the tokenizer does not split."""
    return word if word.isascii() and word.isalnum() else "x" + word.encode().hex()


class SqliteFts5(Peer):
    """FTS5 finds the candidates, SQL orders them by the chord on the unit sphere."""

    name = "SQLite FTS5"
    version = sqlite3.sqlite_version
    direct_below = 10**9  # one statement over all candidates

    def build(self, places: PlaceColumns, folder: Path) -> None:
        self.path = folder / "places.sqlite"
        self.db = db = sqlite3.connect(self.path, isolation_level=None)
        db.execute("PRAGMA journal_mode = OFF")
        db.execute("PRAGMA synchronous = OFF")
        db.execute("PRAGMA cache_size = -1000000")
        db.execute("PRAGMA mmap_size = 4000000000")
        db.execute("PRAGMA temp_store = MEMORY")
        db.execute("CREATE TABLE place (id INTEGER PRIMARY KEY, x REAL, y REAL, z REAL)")
        db.execute(
            "CREATE VIRTUAL TABLE fts USING fts5(words, content = '', detail = none, "
            "columnsize = 0, tokenize = 'unicode61 remove_diacritics 0')"
        )
        at = unit_vectors(places.lon, places.lat).tolist()
        db.execute("BEGIN")
        db.executemany(
            "INSERT INTO place VALUES (?, ?, ?, ?)",
            ((key, *at[key]) for key in range(len(at))),
        )
        db.executemany(
            "INSERT INTO fts (rowid, words) VALUES (?, ?)",
            ((key, " ".join(map(safe, words))) for key, words in enumerate(word_lists(places))),
        )
        db.execute("INSERT INTO fts (fts) VALUES ('optimize')")
        db.execute("COMMIT")
        db.execute("ANALYZE")

    def and_nearest(self, ask: Ask) -> list[int]:
        return self.nearest(ask, ask.words)

    def nearest(self, ask: Ask, words: tuple[str, ...]) -> list[int]:
        rows = self.db.execute(
            "SELECT p.id FROM fts JOIN place p ON p.id = fts.rowid WHERE fts MATCH ? "
            f"ORDER BY {_CHORD2}, p.id LIMIT ?",
            (" AND ".join(f'"{safe(word)}"' for word in words), *_six(ask), ask.k),
        )
        return [key for (key,) in rows]

    def scored_all(self, ask: Ask) -> Scored:
        arm = "SELECT rowid AS id, ? AS w FROM fts WHERE fts MATCH ?"
        arms = " UNION ALL ".join([arm] * len(ask.words))
        pairs = zip(ask.words, ask.shares, strict=True)
        chosen = [x for word, share in pairs for x in (share, f'"{safe(word)}"')]
        return self.db.execute(
            f"SELECT p.id, 0.5 * max(0.0, 1.0 - asin(min(1.0, sqrt({_CHORD2}) * 0.5)) * ?) "
            f"+ 0.5 * t.w AS score FROM (SELECT id, sum(w) AS w FROM ({arms}) GROUP BY id) t "
            f"JOIN place p ON p.id = t.id ORDER BY score DESC, {_CHORD2}, p.id LIMIT ?",
            (*_six(ask), 2 * EARTH_KM / ask.max_km, *chosen, *_six(ask), ask.k),
        ).fetchall()

    def nbytes(self) -> int:
        return self.path.stat().st_size

    def close(self) -> None:
        self.db.close()


class SqliteRtree(SqliteFts5):
    """FTS5 where a word is rare, else an R*Tree box that grows until the answer is certain."""

    name = "SQLite FTS5 + R*Tree"
    direct_below = 1000
    #: Below so many places with the rarest word, FTS5 comes first.
    text_first = 16_000

    def build(self, places: PlaceColumns, folder: Path) -> None:
        super().build(places, folder)
        self.lon, self.lat = places.lon, places.lat
        self.db.execute(
            "CREATE VIRTUAL TABLE box USING rtree(id, west, east, south, north, +words)"
        )
        x, y = places.lon.tolist(), places.lat.tolist()
        self.db.execute("BEGIN")
        self.db.executemany(
            "INSERT INTO box VALUES (?, ?, ?, ?, ?, ?)",
            (
                (i, x[i], x[i], y[i], y[i], f" {' '.join(map(safe, words))} ")
                for i, words in enumerate(word_lists(places))
            ),
        )
        self.db.execute("COMMIT")

    def nearest(self, ask: Ask, words: tuple[str, ...]) -> list[int]:
        counts = dict(zip(ask.words, ask.counts, strict=True))
        rarest = min(counts[word] for word in words)
        if rarest < self.text_first:
            return super().nearest(ask, words)
        km = 50.0
        while km < 1000:
            rows = [
                row
                for box in boxes(ask.lon, ask.lat, km)
                for row in self.db.execute(
                    f"SELECT {_CHORD2}, p.id FROM box b JOIN place p ON p.id = b.id "
                    "WHERE b.east >= ? AND b.west <= ? AND b.north >= ? AND b.south <= ?"
                    + " AND instr(b.words, ?)"
                    * len(words),
                    (*_six(ask), box[0], box[2], box[1], box[3], *(f" {safe(w)} " for w in words)),
                )
            ]
            rows.sort()
            if len(rows) >= ask.k and rows[ask.k - 1][0] <= (2 * math.sin(km / EARTH_KM / 2)) ** 2:
                return [key for _, key in rows[: ask.k]]
            km *= 3
        return super().nearest(ask, words)

    def scored_near(self, ask: Ask) -> Scored:
        share = " + ".join(["(instr(b.words, ?) > 0) * ?"] * len(ask.words))
        held = [x for w, s in zip(ask.words, ask.shares, strict=True) for x in (f" {safe(w)} ", s)]
        found: Scored = []
        for west, south, east, north in boxes(ask.lon, ask.lat, ask.max_km):
            found += self.db.execute(
                "SELECT id, 0.5 * max(0.0, 1.0 - asin(min(1.0, sqrt(c) * 0.5)) * ?) + 0.5 * w "
                f"FROM (SELECT b.id, {_CHORD2} AS c, {share} AS w "
                "FROM box b JOIN place p ON p.id = b.id "
                "WHERE b.east >= ? AND b.west <= ? AND b.north >= ? AND b.south <= ?) "
                "WHERE w > 0 ORDER BY 2 DESC LIMIT ?",
                (2 * EARTH_KM / ask.max_km, *_six(ask), *held, west, east, south, north, ask.k),
            ).fetchall()
        return found


def _six(ask: Ask) -> tuple[float, ...]:
    x, y, z = unit_vectors(np.float64(ask.lon), np.float64(ask.lat)).tolist()
    return x, x, y, y, z, z
