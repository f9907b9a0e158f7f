"""What check-ins add to a NETR-Tree: busy hours and clusters of users at its nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from shoal.spatial import _netr_kernels as kernels
from shoal.spatial.userlayer import UserLayer
from shoal.spatial.visitcolumns import VisitColumns

if TYPE_CHECKING:
    from shoal.spatial.netrtree import NetrLayout
    from shoal.spatial.visits import VisitStore

__all__ = ["NetrVisits"]


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
