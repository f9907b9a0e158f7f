"""The one checker: how many nodes lie within d hops of a set, counted without any solver's code."""

from __future__ import annotations

import numpy as np

from shoal.influence import Graph


def covered(graph: Graph, rows: np.ndarray, hops: int) -> int:
    """Return the number of nodes within ``hops`` arcs of ``rows``, those included."""
    seen = np.zeros(graph.n, dtype=bool)
    front = np.unique(np.asarray(rows, dtype=np.int64))
    seen[front] = True
    for _ in range(hops):
        starts, stops = graph.out_ptr[front], graph.out_ptr[front + 1]
        sizes = stops - starts
        if not sizes.sum():
            break
        # The places of all arcs out of the front, one run a node.
        places = np.repeat(starts - np.concatenate(([0], np.cumsum(sizes)[:-1])), sizes)
        reached = np.unique(graph.out_ids[places + np.arange(sizes.sum())])
        front = reached[~seen[reached]].astype(np.int64)
        seen[front] = True
    return int(seen.sum())
