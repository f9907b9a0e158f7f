"""What a QDR-Tree is made of, in figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.spatial.placearrays import PLACES
from shoal.spatial.qdr_arrays import LOOKUP, QC, TREES
from shoal.spatial.terms import Terms

__all__ = ["group_bytes", "structure"]


def group_bytes(held: Mapping[str, npt.NDArray[Any]], terms: Terms) -> dict[str, int]:
    """Return the bytes of each group of a layout's arrays, and their ``total``."""
    whole = _whole_tree_bytes(held)
    found = {
        "places": sum(held[name].nbytes for name in PLACES),
        "terms": sum(array.nbytes for array in terms.arrays().values()),
        "lookup": sum(held[name].nbytes for name in (*QC, *LOOKUP)),
        "trees": sum(held[name].nbytes for name in TREES) - whole,
        "whole_tree": whole,
    }
    return {**found, "total": sum(found.values())}


def structure(held: Mapping[str, npt.NDArray[Any]], terms: Terms) -> dict[str, Any]:
    """Return the measured structure of a layout; JSON only."""
    n = len(held["keys"])
    sizes = np.diff(held["member_ptr"])[:-1] if n else np.empty(0, dtype=np.int64)
    placed = len(np.unique(held["members"]))
    words = np.diff(held["word_ptr"])
    vocabulary = len(terms)
    return {
        "places": n,
        "places_without_words": int((words == 0).sum()),
        "places_in_trees": placed,
        "words": vocabulary,
        "words_clustered": len(held["clustered"]),
        "words_in_tail": vocabulary - len(held["clustered"]),
        "tail_postings": len(held["tail_rows"]),
        "depth": int(held["qc_level"].max(initial=0)),
        "leaves": len(sizes),
        "words_per_leaf": _spread(np.bincount(held["clustered_leaf"], minlength=len(sizes))),
        "replication": float(sizes.sum() / placed) if placed else 0.0,
        "objects_per_leaf": _spread(sizes),
        "largest_share": float(sizes.max() / n) if len(sizes) else 0.0,
        "nodes": len(held["boxes"]),
        "skyline_points": len(held["sky"]),
        "bytes": group_bytes(held, terms),
    }


def _whole_tree_bytes(held: Mapping[str, npt.NDArray[Any]]) -> int:
    """Return the bytes of the tree over all places, the last one."""
    if len(held["keys"]) == 0:
        return 0
    first = int(held["level_first"][held["level_ptr"][-2]])
    nodes = len(held["boxes"]) - first
    points = len(held["sky"]) - int(held["sky_ptr"][first])
    per_node = sum(held[name][:1].nbytes for name in ("boxes", "node_low", "node_high"))
    return nodes * (per_node + 8) + points * held["sky"][:1].nbytes


def _spread(counts: npt.NDArray[np.int64]) -> dict[str, float]:
    if len(counts) == 0:
        return {"least": 0.0, "median": 0.0, "most": 0.0}
    return {
        "least": float(counts.min()),
        "median": float(np.median(counts)),
        "most": float(counts.max()),
    }
