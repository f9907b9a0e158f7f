"""The first query of an installation: how to have the compiling over before anyone waits.

``shoal.core.compiling`` tells when kernels are being compiled.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from shoal.spatial.request import Query

if TYPE_CHECKING:
    from shoal.spatial.index import SpatialKeywordIndex
    from shoal.spatial.snapshot import Snapshot

__all__ = ["warm_up"]

_EVERYWHERE = (-180.0, -90.0, 180.0, 90.0)


def warm_up(index: SpatialKeywordIndex, *, changes: bool = False) -> int:
    """Ask an index one query of each kind that it can answer; return how many.

    Afterwards no query waits for a compiler, nor for numba to load itself. The
    index is not changed, and the answers are thrown away.

    Parameters
    ----------
    index : SpatialKeywordIndex
        An empty one is not asked.
    changes : bool
        Be ready for places that come and go as well: a small index of the same
        attributes and layout, changed on purpose, is asked the same.
    """
    asked = _ask_all(index) if index.n_live else 0
    if changes:
        from shoal.spatial.index import SpatialKeywordIndex  # noqa: PLC0415 - only where used

        side = np.arange(4.0)
        with SpatialKeywordIndex.build(
            side,
            side,
            keywords=[("a",), ("a", "b"), ("b",), ("a", "b")],
            attributes={spec.name: side + spec.low for spec in index.attribute_specs},
            attribute_specs=index.attribute_specs,
            config=index.config,
        ) as small:
            small.upsert(side[:2] + 9, side[:2], ids=[0, 7], keywords=[("a", "b"), ("a",)])
            small.delete([1])
            asked += _ask_all(small)
    return asked


def _ask_all(index: SpatialKeywordIndex) -> int:
    asked, explained = 0, False
    for query in _kinds(index):
        found = index.ask(query)
        asked += 1
        if len(found) and not explained:
            explained = True
            index.explain(query, found[0].id)
            index.positions([found[0].id])
    index.searcher(k=1)(0.0, 0.0, _some_words(index.snapshot())[:1])
    return asked


def _kinds(index: SpatialKeywordIndex) -> Iterator[Query]:
    """Yield queries that together reach every kernel of a search."""
    here, words = (0.0, 0.0), _some_words(index.snapshot())
    yield Query(point=here)
    yield Query(point=here, keywords=words[:1])
    yield Query(point=here, keywords=words, match="any", explain=True)
    yield Query(point=here, keywords=words, match="ranked")
    yield Query(point=here, keywords=words, match="ranked", text="bm25")
    yield Query(keywords=words[:1], without=words[1:])
    yield Query(point=here, max_km=100.0, within=_EVERYWHERE)
    for spec in index.attribute_specs[:1]:
        half = (spec.low + spec.high) / 2
        yield Query(point=here, prefer={spec.name: "min"}, where={spec.name: ("<=", half)})
        yield Query(point=here, keywords=words[:1], prefer={spec.name: "max"})
    people = index.people
    if people is not None:
        yield Query(point=here, at=0)
        if len(people.users):
            user = people.users.names(np.zeros(1, dtype=np.int64))[0]
            yield Query(point=here, user=user)
            yield Query(point=here, keywords=words[:1], user=user, at=0)


def _some_words(snapshot: Snapshot) -> tuple[str, ...]:
    """Return two words of the index, or as many as there are."""
    for view in snapshot.segments:
        terms = getattr(view.segment.layout, "terms", None)
        if terms is not None and len(terms):
            return tuple(dict.fromkeys((terms.word(0), terms.word(len(terms) - 1))))
    for memory in snapshot.memory:
        words = memory.columns().words
        if len(words):
            return tuple(words[:2])
    return ()
