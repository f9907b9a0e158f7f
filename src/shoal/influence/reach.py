"""Who reaches which targets: at one hop the graph itself, beyond it the closure or a sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from shoal.core.seeds import philox
from shoal.influence import _certificate_kernels as kernels
from shoal.influence import _graph_kernels
from shoal.influence.graph import Ids, Rows
from shoal.influence.problem import CoverProblem

__all__ = ["Reach", "reach_of"]

Floats: TypeAlias = npt.NDArray[np.float64]

#: Most targets of a sample; beyond it the sampling error is below the other gaps.
_MOST_TARGETS = 1 << 16
#: Targets from which the size of a sample is planned.
_PILOT = 64


@dataclass(frozen=True)
class Reach:
    """Rows of targets that each node reaches.

    Attributes
    ----------
    ptr, ids : int64 [n + 1], int32
        Targets of each node.
    own : bool
        Whether node i reaches target i beyond what ``ids`` say (one hop: targets are nodes).
    weight : float64 [targets]
        What each target counts.
    drawn : int64 [targets], optional
        The nodes that were drawn as targets, each with probability by its weight;
        None if every node is a target.
    """

    ptr: Rows
    ids: Ids
    own: bool
    weight: Floats
    drawn: Rows | None = None


def reach_of(problem: CoverProblem, weight: Floats, memory: int) -> Reach:
    """Return the reach of all nodes, exactly if it fits ``memory`` bytes, else over a sample.

    The sample's size is fixed from a separate pilot before the sample is drawn, so what
    it holds has no influence on it: the draws are independent, with replacement, each
    node by its weight.
    """
    graph, hops = problem.graph, np.int64(problem.hops)
    if problem.hops == 1:
        return Reach(graph.out_ptr, graph.out_ids, True, weight)
    limit = memory // 4
    rows = np.arange(graph.n, dtype=np.int64)
    generator = philox(problem.seed, "influence", "pilot")
    chance = weight / weight.sum()
    pilot = generator.choice(graph.n, _PILOT, p=chance)
    sizes, _ = kernels.count_balls(graph.in_ptr, graph.in_ids, hops, pilot, np.int64(2**62))
    mean = float(sizes.mean())
    # A pilot far above the limit spares the full count.
    if graph.n * mean <= 4 * limit:
        sizes, done = kernels.count_balls(graph.out_ptr, graph.out_ids, hops, rows, np.int64(limit))
        if done == graph.n:
            ptr, ids = kernels.balls_of(graph.out_ptr, graph.out_ids, hops, rows, sizes)
            return Reach(ptr, ids, False, weight)
    count = int(min(_MOST_TARGETS, max(_PILOT, limit / 2 / max(mean, 1.0))))
    drawn = philox(problem.seed, "influence", "targets").choice(graph.n, count, p=chance)
    sizes, _ = kernels.count_balls(graph.in_ptr, graph.in_ids, hops, drawn, np.int64(2**62))
    back, sources = kernels.balls_of(graph.in_ptr, graph.in_ids, hops, drawn, sizes)
    owner = np.repeat(np.arange(count, dtype=np.int32), np.diff(back))
    ptr, ids, _ = _graph_kernels.csr_of(graph.n, sources, owner, False)
    return Reach(ptr, ids, False, np.ones(count), drawn.astype(np.int64))
