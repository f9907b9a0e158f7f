"""Tantivy: words in the inverted index, positions as fast fields, exact order outside.

Its Python API has no order by distance, so a box is searched whose size grows
or shrinks until the k nearest are certain to be inside.
"""

from __future__ import annotations

import importlib.metadata
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


class Tantivy(Peer):
    """Text and ranges by Tantivy, distances with NumPy."""

    name = "Tantivy"
    #: Below so many places with the rarest word, the box is not worth its ranges.
    text_first = 1500
    #: Most hits that are read of one search.
    most = 4000

    def __init__(self) -> None:
        if tantivy is None:
            raise Missing("the package tantivy")
        self.version = importlib.metadata.version("tantivy")

    def build(self, places: PlaceColumns, folder: Path) -> None:
        self.folder = folder
        self.lon, self.lat = places.lon, places.lat
        builder = tantivy.SchemaBuilder()
        builder.add_text_field("words", tokenizer_name="raw", index_option="basic")
        builder.add_float_field("lon", indexed=True, fast=True)
        builder.add_float_field("lat", indexed=True, fast=True)
        builder.add_integer_field("key", fast=True)
        self.schema = builder.build()
        index = tantivy.Index(self.schema, path=str(folder))
        writer = index.writer(heap_size=500_000_000, num_threads=1)
        x, y = places.lon.tolist(), places.lat.tolist()
        for key, words in enumerate(word_lists(places)):
            writer.add_document(tantivy.Document(words=words, lon=x[key], lat=y[key], key=key))
        writer.commit()
        writer.wait_merging_threads()
        index.reload()
        self.searcher = index.searcher()
        # One segment in the order of insertion: a document's number is its place's key.
        self.keys_are_documents = self.searcher.num_segments == 1
        self.must, self.should = tantivy.Occur.Must, tantivy.Occur.Should
        self.number = tantivy.FieldType.Float

    def and_nearest(self, ask: Ask) -> list[int]:
        return self.nearest(ask, ask.words)

    def nearest(self, ask: Ask, words: tuple[str, ...]) -> list[int]:
        counts = dict(zip(ask.words, ask.counts, strict=True))
        rarest = min(counts[word] for word in words)
        must = [(self.must, self._word(word)) for word in words]
        km = 30.0
        # The box shrinks at most once below a size that was too small.
        too_small = 0.0
        while rarest > self.text_first and km < 3000:
            clauses = [*must, (self.must, self._box(ask, km))]
            _, keys = self._hits(tantivy.Query.boolean_query(clauses), self.most)
            if len(keys) == self.most:
                km = 0.5 * (km + too_small)
                continue
            kms = haversine(ask.lon, ask.lat, self.lon[keys], self.lat[keys])
            if np.count_nonzero(kms <= km) >= ask.k:
                return _first(keys, kms, ask.k)
            too_small, km = km, km * 4
        _, keys = self._hits(tantivy.Query.boolean_query(must), rarest)
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
        made = []
        for west, south, east, north in boxes(ask.lon, ask.lat, km):
            made.append(
                tantivy.Query.boolean_query(
                    [
                        (self.must, tantivy.Query.range_query(
                            self.schema, "lon", self.number, west, east)),
                        (self.must, tantivy.Query.range_query(
                            self.schema, "lat", self.number, south, north)),
                    ]
                )
            )
        one = made[0] if len(made) == 1 else tantivy.Query.boolean_query(
            [(self.should, box) for box in made])
        return tantivy.Query.const_score_query(one, 0.0)

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


def _first(keys: np.ndarray, kms: np.ndarray, k: int) -> list[int]:
    found: list[int] = keys[np.lexsort((keys, kms))[:k]].tolist()
    return found
