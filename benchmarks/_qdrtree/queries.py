"""The queries that every engine is asked, and the answers they are checked against."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from _qdrtree.data import document_frequencies, idf_shares
from shoal.core.seeds import philox
from shoal.spatial.columns import PlaceColumns
from shoal.spatial.query import MATCH_ALL, MATCH_ANY, QueryPlan

EARTH_KM = 6371.0088
GEONAMES_ROWS = 199_568
#: Bounds of the classes at the full size of GeoNames; scaled with the number of places.
RARE, FREQUENT = 200, 5_000
CLASSES = ("rare", "middle", "frequent")
#: Where the space part reaches 0 in the ranked form, kilometres.
MAX_KM = 100.0


@dataclass(frozen=True)
class Ask:
    """One query. Peers also get what an application would keep at hand: word statistics.

    ``shares`` are the words' idf shares (sum 1), ``counts`` their document
    frequencies.
    """

    lon: float
    lat: float
    words: tuple[str, ...]
    shares: tuple[float, ...]
    counts: tuple[int, ...]
    kind: str
    k: int = 10
    max_km: float = MAX_KM


def make_asks(places: PlaceColumns, count: int, seed: int) -> list[Ask]:
    """Return ``count`` shuffled queries, a third of each class of words, 1 to 3 words.

    The words of a query are of one class and occur together in some place, so
    that the AND has an answer; the point is another place with noise of half a
    degree.
    """
    rng = philox(seed, 21)
    df = document_frequencies(places)
    scale = len(places) / GEONAMES_ROWS
    low, high = max(3, RARE * scale), max(6, FREQUENT * scale)
    class_of = np.where(df < low, 0, np.where(df < high, 1, 2))
    n = len(places)
    row_class = class_of[places.word_ids]
    rows_of = np.repeat(np.arange(n), np.diff(places.word_ptr))
    having = [np.bincount(rows_of[row_class == kind], minlength=n) for kind in range(3)]
    able = [[np.flatnonzero(having[kind] >= m) for m in (0, 1, 2, 3)] for kind in range(3)]
    asks = []
    for number in range(count):
        kind, wanted = number % 3, 1 + (number // 3) % 3
        while not len(able[kind][wanted]):
            wanted -= 1
        row = int(rng.choice(able[kind][wanted]))
        ids = places.word_ids[places.word_ptr[row] : places.word_ptr[row + 1]]
        chosen = rng.permutation(ids[class_of[ids] == kind])[:wanted]
        at = int(rng.integers(n))
        counts = tuple(int(df[i]) for i in chosen)
        asks.append(
            Ask(
                lon=float(np.clip(places.lon[at] + rng.normal(0, 0.5), -180, 180)),
                lat=float(np.clip(places.lat[at] + rng.normal(0, 0.5), -90, 90)),
                words=tuple(places.words[i] for i in chosen),
                shares=idf_shares(counts, n),
                counts=counts,
                kind=CLASSES[kind],
            )
        )
    return [asks[i] for i in rng.permutation(count)]


def and_plan(ask: Ask) -> QueryPlan:
    """Return the plan of AND + nearest."""
    return QueryPlan(
        k=ask.k,
        has_point=True,
        lon=ask.lon,
        lat=ask.lat,
        match=MATCH_ALL,
        words=ask.words,
        word_weights=np.array(ask.shares),
        decay_scale=ask.max_km,
    )


def ranked_plan(ask: Ask) -> QueryPlan:
    """Return the plan of the ranked form: half space (linear), half text (idf coverage)."""
    return QueryPlan(
        k=ask.k,
        has_point=True,
        lon=ask.lon,
        lat=ask.lat,
        match=MATCH_ANY,
        words=ask.words,
        word_weights=np.array(ask.shares),
        weights=np.array([0.5, 0.5, 0.0, 0.0, 0.0]),
        decay_scale=ask.max_km,
    )


def unit_vectors(lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
    """Return points of the unit sphere, float64 [n, 3]."""
    x, y = np.radians(lon), np.radians(lat)
    return np.stack([np.cos(y) * np.cos(x), np.cos(y) * np.sin(x), np.sin(y)], axis=-1)


def haversine(lon: float, lat: float, lons: np.ndarray, lats: np.ndarray) -> np.ndarray:
    """Return great-circle distances, kilometres."""
    a, b = np.radians(lat), np.radians(lats)
    h = np.sin((b - a) / 2) ** 2 + np.cos(a) * np.cos(b) * np.sin(np.radians(lons - lon) / 2) ** 2
    return 2 * EARTH_KM * np.arcsin(np.sqrt(np.minimum(1.0, h)))
