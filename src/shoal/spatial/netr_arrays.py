"""From places to the flat arrays of a NETR-Tree's location layer."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.spatial import _build_kernels as building
from shoal.spatial import _netr_kernels as kernels
from shoal.spatial.columns import PlaceColumns
from shoal.spatial.placearrays import widened

__all__ = ["str_order", "tree_arrays"]


def str_order(lon: npt.NDArray[np.float64], lat: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Return the order of sort-tile-recursive packing: slices by longitude, then latitude."""
    n = len(lon)
    leaves = -(-n // kernels.FAN_OUT)
    slices = max(1, math.isqrt(max(0, leaves - 1)) + 1)
    per_slice = max(1, -(-leaves // slices)) * kernels.FAN_OUT
    by_lon = np.lexsort((lat, lon))
    number = np.empty(n, dtype=np.int64)
    number[by_lon] = np.arange(n) // per_slice
    return np.lexsort((lon, lat, number)).astype(np.int64)


def tree_arrays(columns: PlaceColumns) -> dict[str, npt.NDArray[Any]]:
    """Return boxes and keyword sets of the nodes, leaves first."""
    n = len(columns)
    starts = [0]
    while n and (len(starts) == 1 or starts[-1] - starts[-2] > 1):
        under = n if len(starts) == 1 else starts[-1] - starts[-2]
        starts.append(starts[-1] + -(-under // kernels.FAN_OUT))
    level_start = np.array(starts, dtype=np.int64)
    vectors = np.empty((n, 3), dtype=np.float64)
    building.unit_vectors(columns.lon, columns.lat, vectors)
    low, high = vectors, vectors
    row = np.repeat(np.arange(n, dtype=np.int64), np.diff(columns.word_ptr))
    word = columns.word_ids.astype(np.int64)
    boxes, sizes, sets = [], [], []
    for count in np.diff(level_start).tolist():
        edges = np.arange(0, len(low), kernels.FAN_OUT)
        low = np.minimum.reduceat(low, edges, axis=0)
        high = np.maximum.reduceat(high, edges, axis=0)
        boxes.append(np.hstack(widened(low, high)))
        # A word of a node once: (node, word) as one number.
        pairs = np.unique((row // kernels.FAN_OUT) * max(1, len(columns.words)) + word)
        row, word = pairs // max(1, len(columns.words)), pairs % max(1, len(columns.words))
        sizes.append(np.bincount(row, minlength=count))
        sets.append(word)
    ptr = np.zeros(int(level_start[-1]) + 1, dtype=np.int64)
    if n:
        np.cumsum(np.concatenate(sizes), out=ptr[1:])
    return {
        "boxes": np.concatenate(boxes) if n else np.empty((0, 6), dtype=np.float32),
        "level_start": level_start,
        "set_ptr": ptr,
        "set_ids": (np.concatenate(sets) if n else np.empty(0)).astype(np.int32),
    }
