"""Who of many reaches whom of many: 512 targets at a time, one bit each."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from shoal.influence import _sketch_kernels as kernels
from shoal.influence.graph import Graph, Rows

__all__ = ["TILE", "ReachTiles"]

Bits: TypeAlias = npt.NDArray[np.uint64]
Mask: TypeAlias = npt.NDArray[np.uint8]

TILE: int = kernels.TILE


class ReachTiles:
    """Room for the reach of 512 targets over a graph: 130 bytes a node, 195 beyond three hops.

    The first hop is written from the targets' side, so it costs little; the last one
    is walked only for those that are asked about; those between pass over all arcs,
    but only nodes that reach something bring their line of memory.

    Parameters
    ----------
    graph : Graph
    hops : int
        At least 2.
    """

    def __init__(self, graph: Graph, hops: int) -> None:
        self.graph, self.hops = graph, hops
        self._first = self._room()
        self._first[1][:] = 1  # all has to be cleared before the first use
        self._others = [self._room() for _ in range(min(max(hops - 2, 0), 2))]

    def _room(self) -> tuple[Bits, Mask]:
        n = self.graph.n
        return np.empty((n, 8), dtype=np.uint64), np.empty(n, dtype=np.uint8)

    def reach(self, targets: Rows, hops: int) -> tuple[Bits, Mask]:
        """Return (bits uint64 [n, 8], live uint8 [n]): bit i of node v if v reaches target i.

        The arrays are valid until the next call.
        """
        graph = self.graph
        while len(self._others) < min(max(hops - 1, 0), 2):
            self._others.append(self._room())
        now = self._first
        kernels.one_hop(targets, graph.in_ptr, graph.in_ids, *now)
        for hop in range(hops - 1):
            further = self._others[hop % 2]
            kernels.spread(graph.out_ptr, graph.out_ids, *now, *further)
            now = further
        return now

    def count(
        self, targets: Rows, rows: Rows, size: int, found: Rows, worth: Rows | None = None
    ) -> None:
        """Add to ``found[v]`` how many targets each of ``rows[:size]`` reaches, or their worth."""
        bits, live = self.reach(targets, self.hops - 1)
        padded = np.zeros(TILE if worth is not None else 1, dtype=np.int64)
        if worth is not None:
            padded[: len(worth)] = worth
        kernels.count_tile(
            self.graph.out_ptr,
            self.graph.out_ids,
            bits,
            live,
            padded,
            worth is not None,
            rows,
            np.int64(size),
            found,
        )
