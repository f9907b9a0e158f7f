"""NETR-Tree, the layout ``"netr"``: users in clusters, and a time-aware R-tree of places.

The location layer is an R-tree packed by STR with a fan-out of 32. Each node has
its box, the set of keywords below it, for each time slot the largest time part
below it, and the set of user clusters of which somebody was there. The user layer
has the users' vectors, their clusters and the places that each visited. A search
is best-first on the weighted sum of the bounds; the social one is the most that
the relation to a cluster of the node can be, so it does not see how the visits are
shared. Answers are those of every other layout, to the last bit.

Source: Huang, Gao, Gao, Chen, "NETR-Tree: An Efficient Framework for Social-Based
Time-Aware Spatial Keyword Query", arXiv 1908.09520. The two layers and the network
embedding are the paper's; the payload of a node, sizes, clusters and the search are
our reconstruction, because no more than the abstract was at hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from shoal.core.errors import InputError
from shoal.spatial import _build_kernels as building
from shoal.spatial import _netr_kernels as kernels
from shoal.spatial._visit_rows import COUNTS
from shoal.spatial._visit_values import Places
from shoal.spatial.columns import AttributeSpec, PlaceColumns, SearchStats
from shoal.spatial.flatlayout import FlatLayout, with_terms
from shoal.spatial.netr_arrays import str_order, tree_arrays
from shoal.spatial.netr_visits import NetrVisits
from shoal.spatial.placearrays import PLACES, fixed, in_order, place_arrays
from shoal.spatial.query import Answers, QueryPlan
from shoal.spatial.visitsearch import add_counts, kernel_query

if TYPE_CHECKING:
    from shoal.spatial.visits import VisitStore

__all__ = ["NetrLayout"]

_TREE = ("post", "ptr", "boxes", "level_start", "set_ptr", "set_ids")


class NetrLayout(FlatLayout):
    """Places arranged as the location layer; make one with :meth:`build` or :meth:`from_arrays`.

    Check-ins are a :class:`~shoal.spatial.visits.VisitStore`'s: its ``search``
    joins them with a layout. Without them this layout answers what any other does.
    """

    KIND = "netr"
    NAMES = (*PLACES, *_TREE)

    def __init__(self, arrays: Mapping[str, npt.NDArray[Any]], meta: Mapping[str, Any]) -> None:
        super().__init__(arrays, meta)
        self.seed = int(meta["seed"])
        held = self._arrays
        self._places = Places(
            **{
                name: held[name]
                for name in ("keys", "lon32", "lat32", "lon64", "lat64", "values32", "values64")
            },
            exact=bool(meta["exact"]),
            wide=bool(meta["wide"]),
            lengths=fixed(np.diff(held["word_ptr"]), np.uint32),
            post=held["post"],
            ptr=held["ptr"],
            low=fixed([spec.low for spec in self.specs], np.float64),
            span=fixed([spec.span for spec in self.specs], np.float64),
            missing=fixed([spec.missing_code for spec in self.specs], np.int64),
        )
        self.tree = kernels.TimeTree(
            boxes=held["boxes"],
            level_start=held["level_start"],
            word_ptr=held["set_ptr"],
            word_ids=held["set_ids"],
        )
        self._bare: tuple[VisitStore, NetrVisits] | None = None

    @classmethod
    def build(
        cls, columns: PlaceColumns, specs: Sequence[AttributeSpec], *, seed: int = 0
    ) -> NetrLayout:
        """Arrange places.

        Parameters
        ----------
        columns : PlaceColumns
            The places, n of them; n = 0 is fine.
        specs : sequence of AttributeSpec
            One for each row of ``columns.values``.
        seed : int
            Seed of the users' clusters.

        Raises
        ------
        InputError
            Specs and attributes are not as many.
        """
        if len(specs) != columns.values.shape[0]:
            raise InputError(
                f"there are {columns.values.shape[0]} attributes and {len(specs)} specs",
                field="specs",
            )
        columns = in_order(columns, str_order(columns.lon, columns.lat))
        n = len(columns)
        arrays, exact, wide = place_arrays(columns)
        arrays["post"] = np.empty(len(columns.word_ids), dtype=np.uint32)
        arrays["ptr"] = np.zeros(len(columns.words) + 1, dtype=np.uint32)
        building.transpose(
            np.arange(n, dtype=np.int64),
            arrays["word_ptr"],
            arrays["word_ids"],
            arrays["ptr"],
            arrays["post"],
            np.empty(n, dtype=np.uint32),
        )
        arrays |= tree_arrays(columns)
        meta = {
            "layout": "netr",
            "version": 1,
            "exact": exact,
            "wide": wide,
            "seed": seed,
            "specs": [spec.model_dump() for spec in specs],
        }
        return cls(with_terms(arrays, columns), meta)

    def document_frequency(self, words: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return in how many rows each word occurs; 0 for an unknown one."""
        counts = np.zeros(len(words), dtype=np.int64)
        ids, ptr = self.terms.ids(words), self._arrays["ptr"].astype(np.int64)
        known = ids >= 0
        counts[known] = ptr[ids[known] + 1] - ptr[ids[known]]
        return counts

    def search(
        self,
        plan: QueryPlan,
        answers: Answers,
        live: npt.NDArray[np.uint8] | None = None,
        stats: SearchStats | None = None,
    ) -> None:
        """Offer every row that can be among the best ``plan.k``, without time and social.

        Raises
        ------
        InputError
            The plan weighs time or social, or ``live`` has the wrong length.
        """
        if plan.weights[3] > 0 or plan.weights[4] > 0:
            raise InputError(
                "the time and social parts of a score need visits: use VisitStore.search",
                field="weights",
            )
        store, visits = self._without_visits()
        self._run(store, visits, plan, answers, live=live, stats=stats)

    def search_visits(
        self,
        store: VisitStore,
        plan: QueryPlan,
        answers: Answers,
        *,
        live: npt.NDArray[np.uint8] | None = None,
        stats: SearchStats | None = None,
    ) -> None:
        """Offer every row that can be among the best ``plan.k``, by all five parts.

        Called by ``VisitStore.search``, which sees to check-ins that come meanwhile.
        """
        visits = store.columns_of(self)
        assert isinstance(visits, NetrVisits)
        self._run(store, visits, plan, answers, live=live, stats=stats)

    def _run(
        self,
        store: VisitStore,
        visits: NetrVisits,
        plan: QueryPlan,
        answers: Answers,
        *,
        live: npt.NDArray[np.uint8] | None,
        stats: SearchStats | None,
    ) -> None:
        if live is not None and len(live) != len(self):
            raise InputError(f"live has {len(live)} entries for {len(self)} rows", field="live")
        if len(self) == 0:
            return
        query = kernel_query(store, visits, plan, live, self._ids(plan))
        social = plan.social if plan.weights[4] > 0 else None
        counts = np.zeros(COUNTS, dtype=np.int64)
        answers.count = kernels.search(
            self._places,
            self.tree,
            visits.crowd,
            query,
            fixed(visits.users.most(social, query.vector)),
            answers.scores,
            answers.kms,
            answers.keys,
            answers.rows,
            answers.count,
            answers.k,
            counts,
        )
        add_counts(stats, counts)

    def parts(
        self, plan: QueryPlan, rows: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        """Return (parts [m, 5] in the order of PARTS, distance km [m], qualifies [m]) of rows.

        The time and the social part are 0: they are a store's.

        Raises
        ------
        InputError
            There is no such row.
        """
        rows = np.ascontiguousarray(rows, dtype=np.int64)
        if len(rows) and (rows.min() < 0 or rows.max() >= len(self)):
            raise InputError(f"there are {len(self)} rows", field="rows")
        store, visits = self._without_visits()
        query = kernel_query(store, visits, plan, None, self._ids(plan), alone=True)
        parts, kms = np.zeros((len(rows), 5)), np.zeros(len(rows))
        good = np.zeros(len(rows), dtype=np.bool_)
        kernels.row_parts(self._places, query, rows, parts, kms, good)
        return parts, kms, good

    def nbytes(self) -> dict[str, int]:
        """Return the bytes of each group of arrays, and their ``total``."""
        held = self._arrays
        groups = {
            "places": PLACES,
            "postings": ("post", "ptr"),
            "boxes": ("boxes", "level_start"),
            "keyword_sets": ("set_ptr", "set_ids"),
        }
        found = {name: sum(held[a].nbytes for a in group) for name, group in groups.items()}
        found["terms"] = sum(array.nbytes for array in self.terms.arrays().values())
        return {**found, "total": sum(found.values())}

    def visit_columns(self, store: VisitStore) -> NetrVisits:
        """Return what a store's check-ins add to the nodes; called by ``VisitStore``."""
        return NetrVisits(self, store)

    def report(self, store: VisitStore | None = None) -> dict[str, Any]:
        """Return the measured structure, with a store that of its check-ins too; JSON only."""
        nodes = int(self._arrays["level_start"][-1])
        found: dict[str, Any] = {
            "places": len(self),
            "words": len(self.terms),
            "levels": len(self._arrays["level_start"]) - 1,
            "nodes": nodes,
            "words_per_node": len(self._arrays["set_ids"]) / nodes if nodes else 0.0,
            "bytes": self.nbytes(),
        }
        if store is not None:
            visits = store.columns_of(self)
            assert isinstance(visits, NetrVisits)
            sets = np.unpackbits(visits.clusters.view(np.uint8), axis=1).sum(axis=1)
            found["user_clusters"] = len(visits.users.radii)
            found["clusters_per_node"] = float(sets.mean()) if nodes else 0.0
            found["bytes_of_visits"] = visits.nbytes()
        return found

    def _lengths(self) -> dict[str, int]:
        held = self._arrays
        nodes = int(held["level_start"][-1])
        return {
            "post": len(held["word_ids"]),
            "ptr": len(self.terms) + 1,
            "boxes": nodes,
            "set_ptr": nodes + 1,
        }

    def _ids(self, plan: QueryPlan) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        without = self.terms.ids(plan.without)
        return self.terms.ids(plan.words), without[without >= 0]

    def _without_visits(self) -> tuple[VisitStore, NetrVisits]:
        """Return a store without check-ins, so that one kernel does for both searches."""
        if self._bare is None:
            from shoal.spatial.visitconfig import VisitConfig  # noqa: PLC0415 - a circle
            from shoal.spatial.visits import VisitStore  # noqa: PLC0415

            store = VisitStore.build(np.empty(0, dtype=np.int64), config=VisitConfig(time_slots=24))
            self._bare = store, NetrVisits(self, store)
        return self._bare
