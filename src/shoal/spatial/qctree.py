"""QC-Tree: keywords in a hierarchy of clusters of four, layer 1 of the QDR-Tree.

Keywords that are frequent enough are split by kernel k-means on the places they
share, each cluster again, until a cluster has few keywords or the tree is deep
enough. A leaf stands for one DR-Tree. Rare keywords stay outside: each has a
plain list of its places.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.core.seeds import derive_seed
from shoal.spatial.columns import PlaceColumns
from shoal.spatial.kernel_kmeans import cooccurrence_kernel, kernel_kmeans

__all__ = ["QUAD", "QCTree"]

#: Clusters of a node: the "quad" of the name.
QUAD = 4


@dataclass(frozen=True, slots=True)
class QCTree:
    """Clusters of keywords, the root first.

    Parameters
    ----------
    words : int32 [m]
        The clustered keywords (positions in the vocabulary); those under a node
        are a range.
    word_range : int64 [nodes, 2]
        That range.
    children : int32 [nodes, 4]
        Child nodes, -1 for none.
    level : int32 [nodes]
        Steps from the root.
    leaf : int32 [nodes]
        Number of the leaf, from 0 in the order of ``words``; -1 for an inner node.
    """

    words: npt.NDArray[np.int32]
    word_range: npt.NDArray[np.int64]
    children: npt.NDArray[np.int32]
    level: npt.NDArray[np.int32]
    leaf: npt.NDArray[np.int32]

    @classmethod
    def build(
        cls,
        columns: PlaceColumns,
        *,
        min_df: int,
        max_words: int,
        leaf_words: int,
        depth: int,
        seed: int,
    ) -> QCTree:
        """Cluster the keywords of places.

        Parameters
        ----------
        columns : PlaceColumns
            The places.
        min_df, max_words : int
            A keyword is clustered when it occurs in at least ``min_df`` places;
            of those, the ``max_words`` most frequent.
        leaf_words, depth : int
            A node with at most ``leaf_words`` keywords, or ``depth`` steps from
            the root, is a leaf.
        seed : int
            Seed of the clustering.
        """
        frequency = np.bincount(columns.word_ids, minlength=len(columns.words))
        chosen = np.flatnonzero(frequency >= max(1, min_df))
        if len(chosen) > max_words:
            chosen = chosen[np.argsort(-frequency[chosen], kind="stable")[:max_words]]
            chosen.sort()
        nodes: list[_Node] = []
        if len(chosen):
            kernel = None
            if len(chosen) > leaf_words and depth > 0:
                kernel = cooccurrence_kernel(
                    columns.word_ptr, columns.word_ids, chosen, n_words=len(columns.words)
                )
            order = np.arange(len(chosen))
            nodes.append(_Node(0, len(chosen), 0))
            _split(nodes, 0, kernel, order, (leaf_words, depth, seed))
            chosen = chosen[order]
        is_leaf = np.array([not node.children for node in nodes], dtype=bool)
        # Children follow their parent and leaves are numbered along the words.
        first = np.array([node.first for node in nodes], dtype=np.int64)
        leaf = np.full(len(nodes), -1, dtype=np.int32)
        leaves = np.flatnonzero(is_leaf)
        leaf[leaves[np.argsort(first[leaves], kind="stable")]] = np.arange(len(leaves))
        children = np.full((len(nodes), QUAD), -1, dtype=np.int32)
        for i, node in enumerate(nodes):
            children[i, : len(node.children)] = node.children
        return cls(
            words=chosen.astype(np.int32),
            word_range=np.array(
                [(node.first, node.stop) for node in nodes], dtype=np.int64
            ).reshape(-1, 2),
            children=children,
            level=np.array([node.level for node in nodes], dtype=np.int32),
            leaf=leaf,
        )

    @property
    def leaves(self) -> int:
        """Return the number of leaves."""
        return int(self.leaf.max(initial=-1)) + 1

    def leaf_ranges(self) -> npt.NDArray[np.int64]:
        """Return the range of ``words`` of each leaf, int64 [leaves, 2]."""
        nodes = np.flatnonzero(self.leaf >= 0)
        ranges: npt.NDArray[np.int64] = self.word_range[nodes[np.argsort(self.leaf[nodes])]]
        return ranges


@dataclass(slots=True)
class _Node:
    first: int
    stop: int
    level: int
    children: tuple[int, ...] = ()


def _split(
    nodes: list[_Node],
    at: int,
    kernel: Any,
    order: npt.NDArray[np.int64],
    options: tuple[int, int, int],
) -> None:
    """Split node ``at`` and what comes of it, putting ``order`` in the order of clusters."""
    leaf_words, depth, seed = options
    node = nodes[at]
    size = node.stop - node.first
    if size <= leaf_words or node.level >= depth:
        return
    here = order[node.first : node.stop].copy()
    part = kernel[here][:, here]
    labels = kernel_kmeans(part, QUAD, seed=derive_seed(seed, "qc-tree", at)).labels
    order[node.first : node.stop] = here[np.argsort(labels, kind="stable")]
    stops = node.first + np.cumsum(np.bincount(labels, minlength=1))
    first = node.first
    children = []
    for stop in stops.tolist():
        children.append(len(nodes))
        nodes.append(_Node(first, stop, node.level + 1))
        first = stop
    node.children = tuple(children)
    for child in children:
        _split(nodes, child, kernel, order, options)
