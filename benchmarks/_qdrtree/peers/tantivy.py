"""Tantivy: words and cells of a grid in the inverted index, exact order outside.

Its Python API has no order by distance. A place is therefore also indexed under
its cell of three grids, and the cells around the point are searched, ever wider,
until the k nearest are certain to be inside. (Ranges over fast fields, the
obvious way, took two to five times as long.)
"""

from __future__ import annotations

import importlib.metadata
import math
from pathlib import Path
from typing import Any

import numpy as np

from _qdrtree.data import word_lists
from _qdrtree.peers.base import Missing, Peer, Scored, boxes, folder_bytes, linear_scores
from _qdrtree.queries import Ask, haversine
from shoal.spatial.columns import PlaceColumns

try:
    import tantivy
except ImportError:  # an optional peer
    tantivy = None  # type: ignore[assignment]


#: Heights of the grids' cells, degrees: about 28, 110, 440 and 1,800 km.
GRIDS = (0.25, 1.0, 4.0, 16.0)


class Tantivy(Peer):
    """Words and cells by Tantivy, distances with NumPy."""

    name = "Tantivy"
    #: Up to so many places with all words, they are all read.
    read_all = 3000

    def __init__(self) -> None:
        if tantivy is None:
            raise Missing("the package tantivy")
        self.version = importlib.metadata.version("tantivy")

    def build(self, places: PlaceColumns, folder: Path) -> None:
        self.folder = folder
        self.lon, self.lat = places.lon, places.lat
        builder = tantivy.SchemaBuilder()
        builder.add_text_field("words", tokenizer_name="raw", index_option="basic")
        builder.add_integer_field("cell", indexed=True)
        builder.add_integer_field("key", fast=True)
        self.schema = builder.build()
        index = tantivy.Index(self.schema, path=str(folder))
        writer = index.writer(heap_size=500_000_000, num_threads=1)
        cells = cells_of(places.lon, places.lat).tolist()
        for key, words in enumerate(word_lists(places)):
            writer.add_document(tantivy.Document(words=words, cell=cells[key], key=key))
        writer.commit()
        writer.wait_merging_threads()
        index.reload()
        self.searcher = index.searcher()
        # One segment in the order of insertion: a document's number is its place's key.
        self.keys_are_documents = self.searcher.num_segments == 1
        self.must, self.should = tantivy.Occur.Must, tantivy.Occur.Should

    def and_nearest(self, ask: Ask) -> list[int]:
        return self.nearest(ask, ask.words)

    def nearest(self, ask: Ask, words: tuple[str, ...]) -> list[int]:
        counts = dict(zip(ask.words, ask.counts, strict=True))
        rarest = min(counts[word] for word in words)
        must = [(self.must, self._word(word)) for word in words]
        everywhere = tantivy.Query.boolean_query(must)
        # Counting is cheap, handing hits over to Python is not.
        total = rarest if rarest <= 300 else self.searcher.search(everywhere, limit=1).count
        km = 12.0
        while total > self.read_all and km < 6000:
            query = tantivy.Query.boolean_query([*must, (self.must, self._box(ask, km))])
            inside = self.searcher.search(query, limit=1).count
            if inside >= ask.k:
                _, keys = self._hits(query, inside)
                kms = haversine(ask.lon, ask.lat, self.lon[keys], self.lat[keys])
                if np.count_nonzero(kms <= km) >= ask.k:
                    return _first(keys, kms, ask.k)
            km *= 3
        _, keys = self._hits(everywhere, total)
        return _first(keys, haversine(ask.lon, ask.lat, self.lon[keys], self.lat[keys]), ask.k)

    def scored_all(self, ask: Ask) -> Scored:
        return self._scored(ask, self._any(ask), sum(ask.counts))

    def scored_near(self, ask: Ask) -> Scored:
        must = [(self.must, self._any(ask)), (self.must, self._box(ask, ask.max_km))]
        return self._scored(ask, tantivy.Query.boolean_query(must), len(self.lon))

    def nbytes(self) -> int:
        return folder_bytes(self.folder)

    def _word(self, word: str) -> Any:
        return tantivy.Query.term_query(self.schema, "words", word, index_option="basic")

    def _any(self, ask: Ask) -> Any:
        """Words as powers of two, so that the score says which of them a place has."""
        score = tantivy.Query.const_score_query
        return tantivy.Query.boolean_query(
            [
                (self.should, score(self._word(word), float(1 << i)))
                for i, word in enumerate(ask.words)
            ]
        )

    def _box(self, ask: Ask, km: float) -> Any:
        cells = cells_around(ask.lon, ask.lat, km)
        found = tantivy.Query.term_set_query(self.schema, "cell", cells)
        return tantivy.Query.const_score_query(found, 0.0)

    def _hits(self, query: Any, limit: int) -> tuple[list[float], np.ndarray]:
        hits = self.searcher.search(query, limit=max(1, limit), count=False).hits
        scores = [score for score, _ in hits]
        if self.keys_are_documents:
            return scores, np.array([at.doc for _, at in hits], dtype=np.int64)
        found = self.searcher.fast_field_values("key", [at for _, at in hits])
        return scores, np.array(found, dtype=np.int64)

    def _scored(self, ask: Ask, query: Any, limit: int) -> Scored:
        masks, keys = self._hits(query, limit)
        if not len(keys):
            return []
        table = np.array(
            [
                sum(share for i, share in enumerate(ask.shares) if mask >> i & 1)
                for mask in range(1 << len(ask.words))
            ]
        )
        shares = table[np.array(masks, dtype=np.int64)]
        kms = haversine(ask.lon, ask.lat, self.lon[keys], self.lat[keys])
        scores = linear_scores(ask, kms, shares)
        best = np.lexsort((keys, kms, -scores))[: ask.k]
        return list(zip(keys[best].tolist(), scores[best].tolist(), strict=True))


def cells_of(lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
    """Return each place's cell in every grid, int64 [n, grids]."""
    columns = []
    for grid, size in enumerate(GRIDS):
        band = np.floor((lat + 90.0) / size).astype(np.int64)
        across = np.array([_across(int(b), size) for b in range(int(180 / size) + 1)])[band]
        column = np.minimum((lon + 180.0) / 360.0 * across, across - 1).astype(np.int64)
        columns.append((grid << 40) | (band << 20) | column)
    return np.stack(columns, axis=1)


def cells_around(lon: float, lat: float, km: float) -> list[int]:
    """Return the cells that a circle touches, of the finest grid that needs few."""
    cells: list[int] = []
    for grid, size in enumerate(GRIDS):
        cells = []
        for west, south, east, north in boxes(lon, lat, km):
            for band in range(int((south + 90.0) // size), int((north + 90.0) // size) + 1):
                across = _across(band, size)
                first = int(max(0.0, (west + 180.0) / 360.0 * across))
                last = int(min(across - 1, (east + 180.0) / 360.0 * across))
                cells += [(grid << 40) | (band << 20) | c for c in range(first, last + 1)]
        if len(cells) <= 30:
            break
    return cells


def _across(band: int, size: float) -> int:
    """Return how many cells of about ``size`` degrees of latitude go around a band."""
    middle = min(89.0, abs((band + 0.5) * size - 90.0))
    return max(1, int(360.0 / size * math.cos(math.radians(middle))))


def _first(keys: np.ndarray, kms: np.ndarray, k: int) -> list[int]:
    found: list[int] = keys[np.lexsort((keys, kms))[:k]].tolist()
    return found
