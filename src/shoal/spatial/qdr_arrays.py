"""From places and keyword clusters to the flat arrays of a QDR-Tree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.spatial import _build_kernels as placing
from shoal.spatial import _qdr_build_kernels as building
from shoal.spatial import _qdr_kernels as kernels
from shoal.spatial.columns import AttributeSpec, PlaceColumns
from shoal.spatial.placearrays import PLACES, fixed, widened
from shoal.spatial.qctree import QCTree

__all__ = ["LOOKUP", "QC", "TREES", "kernel_places", "lookup_arrays", "tree_arrays"]

#: Names of a layout's arrays beside the places': the QC-Tree, where a word is found, the DR-Trees.
QC = ("qc_words", "qc_word_range", "qc_children", "qc_level", "qc_leaf")
LOOKUP = ("clustered", "clustered_leaf", "clustered_bit", "clustered_df", "tail_ptr", "tail_rows")
TREES = (
    *("member_ptr", "members", "level_ptr", "level_first", "boxes", "node_low", "node_high"),
    *("sky_ptr", "sky", "bit_width", "bit_first", "bits"),
)


def kernel_places(
    arrays: Mapping[str, npt.NDArray[Any]],
    specs: Sequence[AttributeSpec],
    meta: Mapping[str, Any],
) -> kernels.Places:
    """Return the places as the kernels see them."""
    return kernels.Places(
        **{name: fixed(arrays[name]) for name in PLACES},
        exact=bool(meta["exact"]),
        wide=bool(meta["wide"]),
        low=fixed([spec.low for spec in specs], np.float64),
        span=fixed([spec.span for spec in specs], np.float64),
        missing=fixed([spec.missing_code for spec in specs], np.int64),
    )


def lookup_arrays(
    columns: PlaceColumns, tree: QCTree
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], dict[str, npt.NDArray[Any]]]:
    """Return (leaf of each word or -1, its bit there, arrays that find a word's tree or list).

    ``clustered`` int32 [m] ascending with ``clustered_leaf``, ``_bit`` and
    ``_df``; ``tail_ptr`` uint32 [V + 1] and ``tail_rows`` uint32 the places of
    the other words, ascending.
    """
    size = len(columns.words)
    leaf_of = np.full(size, -1, dtype=np.int32)
    bit_of = np.zeros(size, dtype=np.int32)
    for leaf, (first, stop) in enumerate(tree.leaf_ranges().tolist()):
        leaf_of[tree.words[first:stop]] = leaf
        bit_of[tree.words[first:stop]] = np.arange(stop - first)
    frequency = np.bincount(columns.word_ids, minlength=size)
    clustered = np.sort(tree.words)
    rows = np.repeat(np.arange(len(columns), dtype=np.uint32), np.diff(columns.word_ptr))
    rare = leaf_of[columns.word_ids] < 0
    order = np.argsort(columns.word_ids[rare], kind="stable")
    tail_ptr = np.zeros(size + 1, dtype=np.uint32)
    np.cumsum(np.where(leaf_of < 0, frequency, 0), out=tail_ptr[1:])
    return (
        leaf_of,
        bit_of,
        {
            "clustered": clustered,
            "clustered_leaf": leaf_of[clustered],
            "clustered_bit": bit_of[clustered],
            "clustered_df": frequency[clustered].astype(np.int32),
            "tail_ptr": tail_ptr,
            "tail_rows": rows[rare][order],
        },
    )


def tree_arrays(
    columns: PlaceColumns,
    specs: Sequence[AttributeSpec],
    places: kernels.Places,
    where: tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]],
    sizes: tuple[int, int],
) -> dict[str, npt.NDArray[Any]]:
    """Build one DR-Tree for each leaf of the QC-Tree, and the last one over all places.

    Parameters
    ----------
    columns : PlaceColumns
        In an order that keeps neighbours together.
    specs : sequence of AttributeSpec
    places : Places
        The same places as the kernels see them.
    where : int32 [V], int32 [V]
        Leaf of each word (-1 for none) and its bit there.
    sizes : int, int
        Entries of a node, most points of a skyline.
    """
    n, (leaf_of, bit_of) = len(columns), where
    least, most = building.attribute_costs(
        places.values32, places.values64, places.wide, places.low, places.span, places.missing
    )
    costs = widened(least, most)
    vectors = np.empty((n, 3), dtype=np.float64)
    placing.unit_vectors(columns.lon, columns.lat, vectors)
    leaf = leaf_of[columns.word_ids].astype(np.int64)
    rows = np.repeat(np.arange(n), np.diff(columns.word_ptr))[leaf >= 0]
    pairs = np.unique((leaf[leaf >= 0] << 32) | rows)
    leaves = int(leaf_of.max(initial=-1)) + 1
    stops = np.searchsorted(pairs >> 32, np.arange(leaves + 1))
    members = [pairs[stops[i] : stops[i + 1]] & 0xFFFFFFFF for i in range(leaves)]
    vocabulary = np.bincount(leaf_of[leaf_of >= 0], minlength=leaves)
    width = [*(-(-vocabulary // 64)).tolist(), 0]
    built = [
        building.build_tree(
            rows_of,
            vectors,
            *costs,
            places.word_ptr,
            places.word_ids,
            leaf_of,
            bit_of,
            tree,
            width[tree],
            *sizes,
        )
        for tree, rows_of in enumerate([*members, np.arange(n)])
        if len(rows_of)
    ]
    d = len(specs)
    boxes = _joined([tree[0] for tree in built], np.float64, 6)
    low, high = widened(boxes[:, :3], boxes[:, 3:])
    levels = [tree[6] for tree in built]
    bits = [tree[5] for tree in built]
    return {
        "member_ptr": _starts([len(rows_of) for rows_of in members] + [n] * (n > 0)),
        "members": (pairs & 0xFFFFFFFF).astype(np.uint32),
        "level_ptr": _starts([len(level) for level in levels]),
        "level_first": _starts(np.concatenate(levels) if levels else []),
        "boxes": np.ascontiguousarray(np.concatenate([low, high], axis=1)),
        "node_low": _joined([tree[1] for tree in built], np.float32, d),
        "node_high": _joined([tree[2] for tree in built], np.float32, d),
        "sky_ptr": _starts(np.concatenate([tree[3] for tree in built]) if built else []),
        "sky": _joined([tree[4] for tree in built], np.float32, d),
        "bit_width": np.array(width[: len(built)], dtype=np.int64),
        "bit_first": _starts([part.size for part in bits])[:-1],
        "bits": np.concatenate([part.ravel() for part in bits])
        if bits
        else np.empty(0, dtype=np.uint64),
    }


def _joined(parts: list[npt.NDArray[Any]], dtype: Any, width: int) -> npt.NDArray[Any]:
    return np.concatenate([np.empty((0, width), dtype=dtype), *parts])


def _starts(lengths: Any) -> npt.NDArray[np.int64]:
    starts = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts
