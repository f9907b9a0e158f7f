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

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from shoal.core.errors import InputError, IntegrityError
from shoal.spatial import _build_kernels as building
from shoal.spatial import _netr_kernels as kernels
from shoal.spatial._visit_rows import COUNTS
from shoal.spatial._visit_values import Places
from shoal.spatial.columns import AttributeSpec, PlaceColumns, SearchStats
from shoal.spatial.qdr_arrays import in_order, place_arrays, widened
from shoal.spatial.query import Answers, QueryPlan
from shoal.spatial.terms import Terms
from shoal.spatial.userlayer import UserLayer
from shoal.spatial.visitcolumns import VisitColumns
from shoal.spatial.visitsearch import add_counts, fixed, kernel_query

if TYPE_CHECKING:
    from shoal.spatial.visits import VisitStore

__all__ = ["NetrLayout", "NetrVisits"]

_Arrays = dict[str, npt.NDArray[Any]]
_NAMES = (
    *("keys", "lon32", "lat32", "lon64", "lat64", "values32", "values64", "word_ptr", "word_ids"),
    *("post", "ptr", "boxes", "level_start", "set_ptr", "set_ids"),
)
_TERMS = "terms_"


class NetrLayout:
    """Places arranged as the location layer; make one with :meth:`build` or :meth:`from_arrays`.

    Check-ins are a :class:`~shoal.spatial.visits.VisitStore`'s: its ``search``
    joins them with a layout. Without them this layout answers what any other does.
    """

    def __init__(self, arrays: Mapping[str, npt.NDArray[Any]], meta: Mapping[str, Any]) -> None:
        self._meta = dict(meta)
        self.specs = tuple(AttributeSpec(**spec) for spec in meta["specs"])
        self.seed = int(meta["seed"])
        held = self._arrays = {name: fixed(arrays[name]) for name in _NAMES}
        self.terms = Terms.from_arrays(
            {
                name.removeprefix(_TERMS): array
                for name, array in arrays.items()
                if name.startswith(_TERMS)
            }
        )
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
        columns = in_order(columns, _str_order(columns.lon, columns.lat))
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
        arrays |= _tree_arrays(columns)
        for name, array in Terms.build(columns.words).arrays().items():
            arrays[_TERMS + name] = array
        meta = {
            "layout": "netr",
            "version": 1,
            "exact": exact,
            "wide": wide,
            "seed": seed,
            "specs": [spec.model_dump() for spec in specs],
        }
        return cls(arrays, meta)

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, npt.NDArray[Any]], meta: Mapping[str, Any]
    ) -> NetrLayout:
        """Return the layout that :meth:`arrays` and :meth:`meta` came from.

        Raises
        ------
        IntegrityError
            An array or entry is missing, the version is unknown, or lengths
            that belong together differ.
        """
        if meta.get("layout") != "netr" or meta.get("version") != 1:
            raise IntegrityError(
                f"no netr layout of version 1: {meta.get('layout')!r} {meta.get('version')!r}"
            )
        try:
            found = cls(arrays, meta)
        except KeyError as error:
            raise IntegrityError(f"netr layout without {error.args[0]!r}") from None
        held, n = found._arrays, len(found)
        nodes = int(held["level_start"][-1])
        for name, length in (
            ("word_ptr", n + 1),
            ("lon64" if meta["exact"] else "lon32", n),
            ("lat64" if meta["exact"] else "lat32", n),
            ("post", len(held["word_ids"])),
            ("ptr", len(found.terms) + 1),
            ("boxes", nodes),
            ("set_ptr", nodes + 1),
        ):
            if len(held[name]) != length:
                raise IntegrityError(
                    f"array {name!r} has {len(held[name])} entries instead of {length}"
                )
        return found

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._arrays["keys"])

    @property
    def keys(self) -> npt.NDArray[np.int64]:
        """Return the key of each row, int64 [n]."""
        return self._arrays["keys"]

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

    def positions(
        self, rows: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return (lon, lat) of rows, degrees, float64 each."""
        held = self._arrays
        if self._places.exact:
            return held["lon64"][rows], held["lat64"][rows]
        return held["lon32"][rows] / 1e7, held["lat32"][rows] / 1e7

    def columns(self) -> PlaceColumns:
        """Return the places as columns, in row order."""
        held = self._arrays
        exact, wide = self._meta["exact"], self._meta["wide"]
        return PlaceColumns(
            keys=held["keys"],
            lon=held["lon64"] if exact else held["lon32"] / 1e7,
            lat=held["lat64"] if exact else held["lat32"] / 1e7,
            words=self.terms.words(),
            word_ptr=held["word_ptr"],
            word_ids=held["word_ids"],
            values=held["values64"] if wide else held["values32"].astype(np.float64),
        )

    def arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """Return the flat arrays that a file holds, by name."""
        named = {_TERMS + name: array for name, array in self.terms.arrays().items()}
        return {**self._arrays, **named}

    def meta(self) -> dict[str, object]:
        """Return what :meth:`from_arrays` needs beside the arrays; JSON only."""
        return dict(self._meta)

    def nbytes(self) -> dict[str, int]:
        """Return the bytes of each group of arrays, and their ``total``."""
        held = self._arrays
        groups = {
            "places": _NAMES[:9],
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


class NetrVisits(VisitColumns):
    """Row values of the time and social parts, and the bounds of a NETR-Tree's nodes.

    Attributes
    ----------
    users : UserLayer
        The user layer.
    node_times : uint8 [slots, nodes]
        Ceiling of 255 times the largest time part below each node.
    clusters : uint64 [nodes, width]
        Clusters of which somebody was below each node, as bits; the last cluster
        also stands for places whose visitors are hidden.
    """

    def __init__(self, layout: NetrLayout, store: VisitStore) -> None:
        rows = store.columns(layout.keys, bounds=False)
        super().__init__(rows.keys, rows.times, rows.vectors, rows.dim, bounds=False)
        self.tree = layout.tree
        self.users = UserLayer.fit(store.user_vectors, seed=layout.seed)
        nodes = int(self.tree.level_start[-1])
        self.node_times = np.zeros((self.times.shape[0], nodes), dtype=np.uint8)
        self.clusters = np.zeros((nodes, self.users.width), dtype=np.uint64)
        kernels.time_maxima(self.times, len(self), self.tree.level_start, self.node_times)
        users, places, _ = store.log.all_pairs()
        at = self.rows_of(store.log.keys_of(places))
        here = at >= 0
        self._add(at[here], self.users.of(users[here]))
        hidden = np.flatnonzero(store.visitors(self.keys) < store.config.min_visitors)
        self._add(hidden, np.full(len(hidden), len(self.users.radii), dtype=np.int64))
        self.crowd = kernels.Crowd(
            times=self.times,
            vectors=self.vectors,
            time_max=self.node_times,
            clusters=self.clusters,
            dim=self.dim,
        )

    def change(
        self,
        row: int,
        times: npt.NDArray[np.float32],
        vector: npt.NDArray[np.float32],
        visitors: Sequence[int] = (),
    ) -> None:
        """Give a row new values; the nodes above it are widened first."""
        kernels.widen(row, times, self.crowd, self.tree.level_start)
        clusters = self.users.of(np.array(visitors, dtype=np.int64))
        if not vector.any():
            clusters = np.append(clusters, len(self.users.radii))
        self._add(np.full(len(clusters), row, dtype=np.int64), clusters)
        super().change(row, times, vector, visitors)

    def nbytes(self) -> dict[str, int]:
        """Return the bytes of values, bounds and users, and their ``total``."""
        found = super().nbytes()
        found["bounds"] = self.node_times.nbytes + self.clusters.nbytes
        found["users"] = sum(
            a.nbytes for a in (self.users.centres, self.users.radii, self.users.cluster)
        )
        found["total"] = found["values"] + found["bounds"] + found["keys"] + found["users"]
        return found

    def _add(self, rows: npt.NDArray[np.int64], clusters: npt.NDArray[np.int64]) -> None:
        kernels.cluster_sets(rows, clusters, self.tree.level_start, self.clusters)


def _str_order(lon: npt.NDArray[np.float64], lat: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Return the order of sort-tile-recursive packing: slices by longitude, then latitude."""
    n = len(lon)
    leaves = -(-n // kernels.FAN_OUT)
    slices = max(1, math.isqrt(max(0, leaves - 1)) + 1)
    per_slice = max(1, -(-leaves // slices)) * kernels.FAN_OUT
    by_lon = np.lexsort((lat, lon))
    number = np.empty(n, dtype=np.int64)
    number[by_lon] = np.arange(n) // per_slice
    return np.lexsort((lon, lat, number)).astype(np.int64)


def _tree_arrays(columns: PlaceColumns) -> _Arrays:
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
