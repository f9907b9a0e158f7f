"""Greedy for any number of hops (first plain form)."""

from __future__ import annotations

import heapq

import numpy as np

from shoal.influence import _coverage_kernels as kernels
from shoal.influence.problem import CoverProblem
from shoal.influence.results import Picked

__all__ = ["solve"]


def solve(problem: CoverProblem) -> Picked:
    """Return the exact greedy sequence, ties to the smallest row."""
    graph, n = problem.graph, problem.graph.n
    base = np.ones(n) if problem.weights is None else problem.weights
    left = base.copy()
    rows: list[int] = []
    gains: list[float] = []

    def gain_of(v: int) -> float:
        one = np.array([v], dtype=np.int64)
        hops = np.int64(problem.hops)
        return float(kernels.ball_weights(graph.out_ptr, graph.out_ids, hops, left, one)[0])

    def choose(v: int, gain: float) -> None:
        rows.append(v)
        gains.append(gain)
        one = np.array([v], dtype=np.int64)
        label = kernels.distances(graph.out_ptr, graph.out_ids, one, np.int64(problem.hops))
        left[label <= problem.hops] = 0.0

    for v in problem.warm_start.tolist():
        choose(v, gain_of(v))
    spent = 0.0 if problem.costs is None else float(problem.costs[problem.warm_start].sum())
    cost = np.ones(n) if problem.costs is None else problem.costs
    need = np.inf if problem.target is None else problem.target * problem.total * (1 - 1e-12)
    heap = [
        (-gain_of(v) / cost[v], v, -1)
        for v in range(n)
        if (problem.allowed is None or problem.allowed[v]) and v not in set(rows)
    ]
    heapq.heapify(heap)
    finished = True
    while heap and len(rows) < problem.k and sum(gains) < need:
        if problem.late():
            finished = False
            break
        key, v, round_ = heapq.heappop(heap)
        if key == 0:
            break
        if problem.budget is not None and spent + cost[v] > problem.budget:
            continue
        gain = gain_of(v)
        if round_ == len(rows):
            spent += cost[v]
            choose(v, gain)
        else:
            heapq.heappush(heap, (-gain / cost[v], v, len(rows)))
    return Picked(
        np.array(rows, dtype=np.int64), np.array(gains, dtype=np.float64), finished, "lazy", {}
    )
