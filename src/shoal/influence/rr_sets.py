"""Reverse-reachable sets: random nodes, each with those who would have reached it.

The share of the sets that a seed set hits, times n, is its expected spread (Borgs,
Brautbar, Chayes and Lucier, SODA 2014). So choosing seeds is maximum cover again, with
sets in the place of nodes.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from shoal.core.errors import LimitError
from shoal.influence import _cascade_kernels as kernels
from shoal.influence.cascades import LinearThreshold, Model, stream_key
from shoal.influence.graph import Graph

__all__ = ["ReverseSets"]

_Floats: TypeAlias = npt.NDArray[np.float64]
_Rows: TypeAlias = npt.NDArray[np.int64]
_NONE: _Floats = np.empty(0, dtype=np.float64)
#: Sets are numbered in int32.
MAX_SETS = 2**31 - 1


class ReverseSets:
    """A growing collection of reverse-reachable sets of one graph and model.

    Set ``i`` is the same whatever else is drawn, in which steps and by how many
    threads.

    Parameters
    ----------
    graph : Graph
    model : IndependentCascade or LinearThreshold
    seed : int
    stream : str
        Collections of different streams are independent.
    weights : float64 [n], optional
        Roots are drawn in proportion; empty for evenly.
    n_jobs : int
        Threads.

    Attributes
    ----------
    count : int
        Sets so far.
    set_ptr : int64 [count + 1]
    members : int32 [set_ptr[count]]
        Nodes of each set, its root first.
    total : float
        What the share of sets is to be multiplied with: n, or the sum of the weights.
    """

    def __init__(
        self,
        graph: Graph,
        model: Model,
        *,
        seed: int = 0,
        stream: str = "reverse",
        weights: _Floats = _NONE,
        n_jobs: int = 1,
    ) -> None:
        self.graph = graph
        self.count = 0
        self.set_ptr = np.zeros(1, dtype=np.int64)
        self.members = np.empty(0, dtype=np.int32)
        self.total = float(weights.sum()) if len(weights) else float(graph.n)
        self._cumulative = np.cumsum(weights) if len(weights) else _NONE
        self._key = stream_key(seed, stream)
        self._n_jobs = n_jobs
        self._walks = isinstance(model, LinearThreshold)
        if isinstance(model, LinearThreshold):
            self._skips, self._chances = _NONE, _NONE
            if model.weights == "values":
                self._chances = _running_sums(graph, model.in_weights(graph))
        else:
            self._skips = model.inverse_logs(graph)
            same = bool(np.all(~np.isnan(self._skips)))
            self._chances = _NONE if same else model.in_probabilities(graph)

    def grow(self, count: int) -> None:
        """Draw sets until there are ``count``.

        Raises
        ------
        LimitError
            More sets than int32 can number.
        """
        if count <= self.count:
            return
        if count > MAX_SETS:
            raise LimitError(f"{count} reverse-reachable sets; at most {MAX_SETS}")
        jobs = max(1, min(self._n_jobs, (count - self.count) // 1000))
        cuts = np.linspace(self.count, count, jobs + 1).astype(np.int64).tolist()
        if jobs == 1:
            parts = [self._draw(self.count, count)]
        else:
            with ThreadPoolExecutor(jobs) as pool:
                parts = list(pool.map(self._draw, cuts[:-1], cuts[1:]))
        ptrs, base = [self.set_ptr], len(self.members)
        for ptr, members in parts:
            ptrs.append(ptr[1:] + base)
            base += len(members)
        self.set_ptr = np.concatenate(ptrs)
        self.members = np.concatenate([self.members, *(members for _, members in parts)])
        self.count = count

    def _draw(self, first: int, stop: int) -> tuple[_Rows, npt.NDArray[np.int32]]:
        graph = self.graph
        pieces: list[npt.NDArray[np.int32]] = []
        ptr = np.zeros(stop - first + 1, dtype=np.int64)
        stamp = np.full(graph.n, -1, dtype=np.int64)
        done, base = 0, 0
        mean = len(self.members) / self.count if self.count else 8.0
        room = int(1.2 * mean * (stop - first)) + 4 * graph.n + 1024
        largest = int(graph.in_degrees().max(initial=0))
        while done < stop - first:
            members = np.empty(room, dtype=np.int32)
            part = np.zeros(stop - first - done + 1, dtype=np.int64)
            if self._walks:
                found = kernels.sample_walk_sets(
                    graph.n, graph.in_ptr, graph.in_ids, self._chances, self._cumulative,
                    self._key, first + done, stop - first - done, part, members, stamp,
                )  # fmt: skip
            else:
                found = kernels.sample_cascade_sets(
                    graph.n, graph.in_ptr, graph.in_ids, self._skips, self._chances,
                    self._cumulative, self._key, first + done, stop - first - done, part,
                    members, stamp,
                )  # fmt: skip
            used = int(part[found])
            pieces.append(members[:used])
            ptr[done + 1 : done + found + 1] = part[1 : found + 1] + base
            base += used
            done += found
            # A set that was begun and did not fit has left its number on nodes.
            stamp.fill(-1)
            if found == 0:
                room += graph.n + largest
        return ptr, np.concatenate(pieces) if len(pieces) > 1 else pieces[0]

    def cover(
        self, k: int, allowed: npt.NDArray[np.uint8] | None = None
    ) -> tuple[_Rows, _Rows, int]:
        """Choose up to ``k`` nodes that together hit most sets, greedily.

        Parameters
        ----------
        k : int
        allowed : uint8 [n], optional
            Nodes that may be chosen.

        Returns
        -------
        rows : int64 [s]
            The nodes in their order; ties go to the smallest row.
        gains : int64 [s]
            How many more sets each hits.
        left : int
            Most sets that any ``k`` nodes could hit beside those.
        """
        ptr, sets = kernels.invert(self.graph.n, self.set_ptr, self.members)
        mask = np.empty(0, dtype=np.uint8) if allowed is None else allowed
        rows, gains = np.empty(k, dtype=np.int64), np.empty(k, dtype=np.int64)
        count, left = kernels.cover_sets(
            self.graph.n, self.set_ptr, self.members, ptr, sets, k, mask, rows, gains
        )
        return rows[:count], gains[:count], int(left)

    def hits(self, rows: _Rows) -> int:
        """Return how many sets hold one of the nodes."""
        chosen = np.zeros(self.graph.n, dtype=np.bool_)
        chosen[rows] = True
        return int(kernels.count_hits(self.set_ptr, self.members, chosen))


def _running_sums(graph: Graph, numbers: _Floats) -> _Floats:
    """Return sums within each node's arcs in, up to and with each arc."""
    total = np.cumsum(numbers)
    before = np.concatenate(([0.0], total))[graph.in_ptr[:-1]]
    return np.asarray(total - np.repeat(before, graph.in_degrees()), dtype=np.float64)
