"""Our engine behind the same two calls as the peers."""

from __future__ import annotations

from typing import Any

import numpy as np

from _qdrtree.data import PlaceSet, word_lists
from _qdrtree.queries import MAX_KM, Ask
from _qdrtree.timing import MOST_REPEATS, kernel_us
from shoal.spatial import Linear, Weights
from shoal.spatial.index import SpatialKeywordIndex
from shoal.spatial.query import Answers
from shoal.spatial.request import Query

#: Options of the two forms of query.
AND: dict[str, Any] = {"match": "all", "decay": Linear(max_km=MAX_KM)}
RANKED: dict[str, Any] = {
    "match": "ranked",
    "decay": Linear(max_km=MAX_KM),
    "weights": Weights(space=0.5, text=0.5),
}


def build(places: PlaceSet, layout: str = "packed") -> SpatialKeywordIndex:
    """Return an index of places, from words as lists, as a caller would make it."""
    columns = places.columns
    return SpatialKeywordIndex.build(
        columns.lon,
        columns.lat,
        keywords=list(word_lists(columns)),
        attributes={spec.name: columns.values[j] for j, spec in enumerate(places.specs)},
        attribute_specs=places.specs,
        ids=columns.keys,
        analyzer="exact",  # the words are normalised already, for every engine
        layout=layout,  # type: ignore[arg-type]
    )


def asker(index: SpatialKeywordIndex, options: dict[str, Any], k: int = 10) -> Any:
    """Return ``call(ask) -> Hits`` through the public prepared query."""
    searcher = index.searcher(k=k, **options)
    return lambda ask: searcher(ask.lon, ask.lat, ask.words)


def query_asker(index: SpatialKeywordIndex, options: dict[str, Any], k: int = 10) -> Any:
    """Return ``call(ask) -> TopK`` through the general public query."""
    return lambda ask: index.query((ask.lon, ask.lat), ask.words, k, **options)


def in_kernel(
    index: SpatialKeywordIndex, options: dict[str, Any], asks: list[Ask], k: int = 10
) -> np.ndarray:
    """Return each query's CPU time in the kernel (warm), microseconds.

    The same query several times in one call of the prepared search; where a
    layout has none, several searches of the layout, wrapping included.
    """
    fast = index.fast_path(Query(k=k, point=(0.0, 0.0), **options))
    snapshot = index.snapshot()
    layout = snapshot.single()
    assert layout is not None

    def call(ask: Ask) -> Any:
        if fast is not None:
            words = [ask.words] * MOST_REPEATS

            def many(repeats: int) -> None:
                lon, lat = np.full(repeats, ask.lon), np.full(repeats, ask.lat)
                fast.many(lon, lat, words[:repeats])

            return many
        query = Query(point=(ask.lon, ask.lat), keywords=ask.words, k=k, **options)
        plan = index.plan(query, snapshot).plan

        def search(repeats: int) -> None:
            for _ in range(repeats):
                layout.search(plan, Answers(k))

        return search

    return np.array([kernel_us(call(ask)) for ask in asks])


def layout_bytes(index: SpatialKeywordIndex) -> dict[str, int]:
    """Return the bytes of the index's only segment by group, with ``total`` and ``dictionary``."""
    layout: Any = index.snapshot().single()
    found = {name: int(size) for name, size in layout.nbytes().items()}
    total = found.pop("total", sum(found.values()))
    return {**found, "total": total, "dictionary": found.get("terms", 0)}
