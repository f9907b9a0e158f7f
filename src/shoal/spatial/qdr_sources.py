"""Which posting lists and trees of a QDR-Tree a query needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.spatial.query import MATCH_ALL, MATCH_ANY, MATCH_EVERYTHING, QueryPlan

__all__ = ["sources"]


def sources(
    held: Mapping[str, npt.NDArray[Any]],
    plan: QueryPlan,
    ids: npt.NDArray[np.int64],
    leaf: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return (source of each word, ranges of the tail lists to search [s, 2], trees to search).

    ``ids`` int64 [w] are the plan's words, -1 for unknown, and ``leaf`` int64 [w]
    their trees, -1 for words with a list. Sources are numbered in the order of
    search: lists, then trees.
    """
    none = np.empty((0, 2), dtype=np.int64)
    source = np.zeros(len(ids), dtype=np.int64)
    whole = np.array([len(held["bit_width"]) - 1], dtype=np.int64)
    if plan.match == MATCH_EVERYTHING or (plan.match == MATCH_ALL and len(ids) == 0):
        return source, none, whole
    known = np.flatnonzero(ids >= 0)
    ptr = held["tail_ptr"]
    lists = {int(w): (int(ptr[ids[w]]), int(ptr[ids[w] + 1])) for w in known if leaf[w] < 0}
    if plan.match == MATCH_ALL:
        if len(known) < len(ids):
            return source, none, whole[:0]
        # Every answer has every word, so the source with the fewest places will do.
        sizes = np.diff(held["member_ptr"])
        size = {w: stop - start for w, (start, stop) in lists.items()}
        size |= {int(w): int(sizes[leaf[w]]) for w in known if leaf[w] >= 0}
        best = min(size, key=lambda w: size[w])
        if best in lists:
            return source, np.array([lists[best]], dtype=np.int64), whole[:0]
        return source, none, leaf[best : best + 1].copy()
    assert plan.match == MATCH_ANY
    source[:] = np.iinfo(np.int32).max
    for number, w in enumerate(lists):
        source[w] = number
    trees = dict.fromkeys(int(leaf[w]) for w in known if leaf[w] >= 0)
    for number, tree in enumerate(trees, start=len(lists)):
        source[leaf == tree] = number
    ranges = np.array(list(lists.values()), dtype=np.int64).reshape(-1, 2)
    return source, ranges, np.array(list(trees), dtype=np.int64)
