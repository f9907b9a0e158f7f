"""Greedy with a sampled head: the first seeds by what 512 random targets say.

The first seeds are the dear ones, for every node still reaches much that is uncovered.
They are chosen by counting drawn targets, 512 at a time as bits (sheet of method
FastCover, 4.4), the four best by that count searched from exactly; once no node would
gain 5 % of the targets, lazy greedy takes over. What comes out is near the greedy
sequence, not it: statistical, and named so.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from shoal.core.seeds import philox
from shoal.influence import _sketch_kernels as kernels
from shoal.influence.greedy import better_of, units_of
from shoal.influence.lazy import LazyRun
from shoal.influence.problem import CoverProblem, FixedPoint
from shoal.influence.results import Picked
from shoal.influence.tiles import TILE, ReachTiles

__all__ = ["solve"]

#: The head ends when no node gains this share of the drawn targets.
_LEAST_SHARE = 0.05

#: Nodes, best by the sample, whose gain is counted exactly before one is chosen.
_VERIFIED = 4


def solve(problem: CoverProblem) -> Picked:
    """Return seeds by a sampled head and a lazy tail.

    Targets are drawn by weight, so a share of them is a share of the weight; the
    same ``seed`` draws the same. ``method`` says how many seeds the sample chose.
    """
    units = units_of(problem)
    if units.total == 0:
        return LazyRun(problem, units).run("sketch")
    if problem.costs is None:
        return _solve(problem, units, by_cost=False)
    return better_of(
        problem,
        _solve(problem, units, by_cost=True),
        lambda: _solve(problem, units, by_cost=False),
    )


def _solve(problem: CoverProblem, units: FixedPoint, *, by_cost: bool) -> Picked:
    run = LazyRun(problem, units, by_cost=by_cost)
    head = 0
    try:
        head = _head(problem, run)
    except KeyboardInterrupt:
        return replace(run.run("sketch", slices=False), finished=False)
    name = f"sketch: {head} seeds by 512 drawn targets (statistical), then lazy"
    return run.run(name + (" by gain per cost" if by_cost else ""))


def _head(problem: CoverProblem, run: LazyRun) -> int:
    """Choose the first seeds by the sample; return how many."""
    graph = problem.graph
    generator = philox(problem.seed, "influence", "sketch")
    if problem.weights is None:
        targets = generator.integers(0, graph.n, TILE)
    else:
        targets = generator.choice(graph.n, TILE, p=problem.weights / problem.weights.sum())
    bits, _ = ReachTiles(graph, problem.hops).reach(targets.astype(np.int64), problem.hops)
    covered = np.zeros(8, dtype=np.uint64)
    for row in problem.warm_start:
        covered |= bits[row]
    rows = run.heap.astype(np.int64)
    gains = np.empty(len(rows), dtype=np.int64)
    cost = run.cost[rows] if run.by_cost else None
    head = 0
    while not problem.late():
        kernels.sample_gains(bits, covered, rows, gains)
        ranked = gains if cost is None else gains / cost
        best = np.argpartition(-ranked, min(_VERIFIED, len(rows) - 1))[:_VERIFIED]
        best = best[gains[best] > _LEAST_SHARE * TILE]
        best = best[[run.may_choose(row) for row in rows[best]]]
        if not len(best):
            break
        near = np.sort(rows[best])
        run.search(near)
        row = int(near[np.argmax(run.key[near])])
        run.choose(row)
        covered |= bits[row]
        head += 1
    return head
