"""QDR-Tree, the layout ``"quad_cluster"``: keyword clusters above attribute-aware R-trees.

Layer 1 is a QC-Tree over the frequent keywords (``qctree``). Each of its leaves
has a DR-Tree over all places that have one of its keywords, so a place is kept
once for every leaf it touches. A DR-Tree is a packed R-tree whose nodes also
carry a bitmap of the leaf's keywords that occur below and the skyline of the
attributes below. Rare keywords have plain lists, and one more tree over all
places answers queries without a keyword.

Source: Zang, Hao, Gao, Yao, Chen, "QDR-Tree: An Efficient Index Scheme for
Complex Spatial Keyword Query", DEXA 2018 (arXiv 1804.10726). The two layers,
the kernel k-means and the two filters are the paper's; sizes, stop rules and
the search are our reconstruction, because no more than the abstract was at
hand. Answers are those of every other layout, to the last bit.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.core.errors import InputError
from shoal.spatial import _qdr_kernels as kernels
from shoal.spatial.columns import AttributeSpec, PlaceColumns, SearchStats
from shoal.spatial.curve import hilbert_order
from shoal.spatial.flatlayout import FlatLayout, with_terms
from shoal.spatial.placearrays import PLACES, in_order, place_arrays
from shoal.spatial.qctree import QCTree
from shoal.spatial.qdr_arrays import (
    LOOKUP,
    QC,
    TREES,
    kernel_places,
    lookup_arrays,
    tree_arrays,
)
from shoal.spatial.qdr_query import QueryWords, kernel_query
from shoal.spatial.qdr_report import group_bytes, structure
from shoal.spatial.qdr_sources import sources
from shoal.spatial.query import Answers, QueryPlan

__all__ = ["QuadClusterLayout"]


class QuadClusterLayout(FlatLayout):
    """Places arranged as a QDR-Tree; make one with :meth:`build` or :meth:`from_arrays`.

    Rows are in Hilbert order, so the ascending members of a tree are packed as
    neighbours. Immutable but for three switches, which change the work of a
    search and never its answers.

    Attributes
    ----------
    use_bitmaps, use_corners, use_skylines : bool
        The filters of a node: bitmap of keywords, minimum of each attribute,
        skyline of the attributes. All on to begin with.
    """

    KIND = "quad_cluster"
    NAMES = (*PLACES, *QC, *LOOKUP, *TREES)

    def __init__(self, arrays: Mapping[str, npt.NDArray[Any]], meta: Mapping[str, Any]) -> None:
        super().__init__(arrays, meta)
        self.use_bitmaps = self.use_corners = self.use_skylines = True
        held = self._arrays
        self._places = kernel_places(held, self.specs, meta)
        self._trees = kernels.Trees(
            fan_out=int(meta["fan_out"]), **{name: held[name] for name in TREES}
        )

    @classmethod
    def build(
        cls,
        columns: PlaceColumns,
        specs: Sequence[AttributeSpec],
        *,
        seed: int = 0,
        leaf_words: int = 16,
        depth: int = 4,
        fan_out: int = 32,
        skyline_cap: int = 16,
        min_df: int | None = None,
        max_words: int = 20_000,
    ) -> QuadClusterLayout:
        """Arrange places.

        Parameters
        ----------
        columns : PlaceColumns
            The places, n of them; n = 0 is fine.
        specs : sequence of AttributeSpec
            One for each row of ``columns.values``.
        seed : int
            Seed of the keyword clustering.
        leaf_words, depth : int
            A QC-Tree node with at most ``leaf_words`` keywords (tau), or
            ``depth`` steps from the root, is a leaf; at least 1, at least 0.
        fan_out : int
            Entries of a DR-Tree node, at least 2.
        skyline_cap : int
            Most points of a node's skyline, at least 1.
        min_df : int, optional
            Places that a keyword must occur in to be clustered, at least 1;
            ``max(20, n / 50,000)`` if left out.
        max_words : int
            Most keywords that are clustered, the frequent ones first.

        Returns
        -------
        QuadClusterLayout

        Raises
        ------
        InputError
            An option is out of range, or specs and attributes are not as many.
        """
        for name, value, least in (
            ("leaf_words", leaf_words, 1),
            ("depth", depth, 0),
            ("fan_out", fan_out, 2),
            ("skyline_cap", skyline_cap, 1),
            ("min_df", 1 if min_df is None else min_df, 1),
            ("max_words", max_words, 0),
        ):
            if value < least:
                raise InputError(f"must be at least {least}", field=name, value=value)
        if len(specs) != columns.values.shape[0]:
            raise InputError(
                f"there are {columns.values.shape[0]} attributes and {len(specs)} specs",
                field="specs",
            )
        n = len(columns)
        if min_df is None:
            min_df = max(20, n // 50_000)
        columns = in_order(columns, hilbert_order(columns.lon, columns.lat))
        tree = QCTree.build(
            columns,
            min_df=min_df,
            max_words=max_words,
            leaf_words=leaf_words,
            depth=depth,
            seed=seed,
        )
        arrays, exact, wide = place_arrays(columns)
        meta = {
            "layout": "quad_cluster",
            "version": 1,
            "exact": exact,
            "wide": wide,
            "fan_out": fan_out,
            "skyline_cap": skyline_cap,
            "leaf_words": leaf_words,
            "depth": depth,
            "min_df": min_df,
            "max_words": max_words,
            "seed": seed,
            "specs": [spec.model_dump() for spec in specs],
        }
        arrays |= {
            "qc_words": tree.words,
            "qc_word_range": tree.word_range,
            "qc_children": tree.children,
            "qc_level": tree.level,
            "qc_leaf": tree.leaf,
        }
        leaf_of, bit_of, lookup = lookup_arrays(columns, tree)
        places = kernel_places(arrays, specs, meta)
        arrays |= lookup
        arrays |= tree_arrays(columns, specs, places, (leaf_of, bit_of), (fan_out, skyline_cap))
        return cls(with_terms(arrays, columns), meta)

    def replace(
        self,
        *,
        use_bitmaps: bool | None = None,
        use_corners: bool | None = None,
        use_skylines: bool | None = None,
    ) -> QuadClusterLayout:
        """Return a view of the same arrays with other switches; None leaves one as it is."""
        other = copy.copy(self)
        if use_bitmaps is not None:
            other.use_bitmaps = use_bitmaps
        if use_corners is not None:
            other.use_corners = use_corners
        if use_skylines is not None:
            other.use_skylines = use_skylines
        return other

    def document_frequency(self, words: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return in how many rows each word occurs; 0 for an unknown one."""
        ids = self._ids(words)
        place, clustered = self._clustered(ids)
        counts = np.zeros(len(ids), dtype=np.int64)
        counts[clustered] = self._arrays["clustered_df"][place[clustered]]
        rare = (ids >= 0) & ~clustered
        ptr = self._arrays["tail_ptr"]
        counts[rare] = ptr[ids[rare] + 1].astype(np.int64) - ptr[ids[rare]]
        return counts

    def search(
        self,
        plan: QueryPlan,
        answers: Answers,
        live: npt.NDArray[np.uint8] | None = None,
        stats: SearchStats | None = None,
    ) -> None:
        """Offer every row that can be among the best ``plan.k`` to ``answers``.

        With ``MATCH_ALL`` one source is searched, the word with the shortest
        list or the smallest tree; with ``MATCH_ANY`` those of all words, each
        place answering in the first of its sources only.

        Parameters
        ----------
        plan : QueryPlan
            Its weights of time and social must be 0.
        answers : Answers
            Answers so far; added to.
        live : uint8 [n], optional
            1 for the rows that count.
        stats : SearchStats, optional
            Added to. ``more`` gets ``trees``, ``tail_lists``, ``bitmap_prunes``,
            ``corner_prunes``, ``skyline_tests``, ``skyline_prunes`` and
            ``duplicates``.

        Raises
        ------
        InputError
            The plan weighs time or social, or ``live`` has the wrong length.
        """
        if live is not None and len(live) != len(self):
            raise InputError(f"live has {len(live)} entries for {len(self)} rows", field="live")
        query, lists, roots = self._prepare(plan, live)
        if len(self) == 0 or not (len(lists) or len(roots)):
            return
        counts = np.zeros(kernels.COUNTS, dtype=np.int64)
        answers.count = kernels.search(
            self._places,
            self._trees,
            query,
            self._arrays["tail_rows"],
            lists[:, 0].copy(),
            lists[:, 1].copy(),
            roots,
            answers.scores,
            answers.kms,
            answers.keys,
            answers.rows,
            answers.count,
            answers.k,
            counts,
        )
        if stats is not None:
            stats.nodes += int(counts[kernels.NODES])
            stats.scored += int(counts[kernels.SCORED])
            stats.looked_at += int(counts[kernels.LOOKED_AT])
            for name, count in (
                ("trees", len(roots)),
                ("tail_lists", len(lists)),
                ("bitmap_prunes", counts[kernels.BITMAP_PRUNES]),
                ("corner_prunes", counts[kernels.CORNER_PRUNES]),
                ("skyline_tests", counts[kernels.SKYLINE_TESTS]),
                ("skyline_prunes", counts[kernels.SKYLINE_PRUNES]),
                ("duplicates", counts[kernels.DUPLICATES]),
            ):
                stats.more[name] = stats.more.get(name, 0) + int(count)

    def parts(
        self, plan: QueryPlan, rows: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        """Return (parts [m, 5] in the order of PARTS, distance km [m], qualifies [m]) of rows.

        Raises
        ------
        InputError
            The plan weighs time or social, or a row is out of range.
        """
        rows = np.ascontiguousarray(rows, dtype=np.int64)
        if len(rows) and (rows.min() < 0 or rows.max() >= len(self)):
            raise InputError("no such row", field="rows", value=(rows.min(), rows.max()))
        query, _, _ = self._prepare(plan, None)
        parts = np.zeros((len(rows), 5))
        kms = np.zeros(len(rows))
        good = np.zeros(len(rows), dtype=np.bool_)
        kernels.row_parts(self._places, query, rows, parts, kms, good)
        return parts, kms, good

    def nbytes(self) -> dict[str, int]:
        """Return the bytes of each group of arrays, and their ``total``.

        ``whole_tree`` is the tree over all places, which the published method
        does not have; ``trees`` are those of the QC-Tree's leaves.
        """
        return group_bytes(self._arrays, self.terms)

    def report(self) -> dict[str, Any]:
        """Return the measured structure; JSON only.

        ``replication`` is the mean number of DR-Trees that hold a place which is
        in any; ``largest_share`` the largest DR-Tree's part of all places.
        """
        return structure(self._arrays, self.terms)

    def _lengths(self) -> dict[str, int]:
        held = self._arrays
        nodes = len(held["boxes"])
        return {
            "node_low": nodes,
            "node_high": nodes,
            "sky_ptr": nodes + 1,
            "tail_ptr": len(self.terms) + 1,
            "clustered_leaf": len(held["clustered"]),
            "bit_width": len(held["member_ptr"]) - 1,
        }

    def _ids(self, words: Sequence[str]) -> npt.NDArray[np.int64]:
        return self.terms.ids(words) if len(words) else np.empty(0, dtype=np.int64)

    def _clustered(
        self, ids: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Return (place among the clustered words, is it one) of each word."""
        known = self._arrays["clustered"]
        if len(known) == 0:
            return np.zeros(len(ids), dtype=np.int64), np.zeros(len(ids), dtype=bool)
        place = np.minimum(np.searchsorted(known, ids), len(known) - 1).astype(np.int64)
        return place, known[place] == ids

    def _prepare(
        self, plan: QueryPlan, live: npt.NDArray[np.uint8] | None
    ) -> tuple[kernels.Query, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the plan in numbers, ranges of the tail lists [s, 2] and trees to search."""
        if plan.weights[3] > 0 or plan.weights[4] > 0:
            raise InputError(
                "the layout quad_cluster has no time and no social part",
                field="weights",
                hint='use layout "packed" or "netr"',
            )
        held = self._arrays
        ids = self._ids(plan.words)
        place, clustered = self._clustered(ids)
        leaf = np.full(len(ids), -1, dtype=np.int64)
        bit = np.zeros(len(ids), dtype=np.int64)
        leaf[clustered] = held["clustered_leaf"][place[clustered]]
        bit[clustered] = held["clustered_bit"][place[clustered]]
        source, lists, roots = sources(self._arrays, plan, ids, leaf)
        query = kernel_query(
            plan,
            QueryWords(ids, leaf, bit, source, self._ids(plan.without)),
            live,
            switches=(self.use_bitmaps, self.use_corners, self.use_skylines),
        )
        return query, lists, roots
