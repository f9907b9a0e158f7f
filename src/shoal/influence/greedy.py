"""Greedy at one hop, in time linear in the graph.

Nemhauser, Wolsey and Fisher (1978): the greedy sequence covers at least 1 - 1/e of the
best for every k. Gains are kept by decrements (each node is covered once and tells
those who reach it), and served from buckets: sheet of method FastCover, 4.1. With
costs, the better of greedy by gain and greedy by gain per cost (Khuller, Moss and
Naor 1999) is returned.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from shoal.influence import _greedy_kernels as kernels
from shoal.influence.graph import Rows
from shoal.influence.problem import CoverProblem, FixedPoint, fixed_point
from shoal.influence.results import Picked

__all__ = ["better_of", "needed_units", "run_slices", "solve", "units_of"]

#: Arcs between two looks at the clock and the keyboard: some tens of milliseconds.
SLICE_ARCS = 16_000_000

#: Up to this many seeds, candidates are counted when they come to the front; beyond it
#: every gain is kept right. Measured: 0.4 to 1 gather pass at k = 50 instead of 1 to 2.5.
ASKED_SEEDS = 64

#: For so few seeds only this many nodes a seed, those of the largest gains, are ordered;
#: all are, from the start, where that was not enough.
ORDERED_NODES = 64

#: Walks over the arcs after which asking gives way to telling, so that time stays linear.
ASKED_WALKS = 2


def solve(problem: CoverProblem) -> Picked:
    """Return the exact greedy sequence at one hop, ties to the smallest row.

    "Exact" is said of the sequence: it is what greedy by definition chooses, not the
    best of all choices. Weights count to 2**-61 of their total (``fixed_point``), so
    no order of adding matters.

    Parameters
    ----------
    problem : CoverProblem
        With ``hops == 1``.

    Returns
    -------
    Picked
        ``work["arcs"]`` counts the arcs touched. O(n + m), and a logarithm of the
        nodes that fall to the same gain; with weights or costs O((n + picks) log n + m)
        and a logarithm for each time a node is found too high in the heap.
    """
    if problem.weights is None and problem.costs is None:
        return _by_buckets(problem)
    units = units_of(problem)
    if problem.costs is None:
        return _by_heap(problem, units, by_cost=False)
    return better_of(
        problem,
        _by_heap(problem, units, by_cost=True),
        lambda: _by_heap(problem, units, by_cost=False),
    )


def units_of(problem: CoverProblem) -> FixedPoint:
    """Return the problem's weights as integers; one each where there are none."""
    if problem.weights is None:
        n = problem.graph.n
        return FixedPoint(np.ones(n, dtype=np.int64), 1.0, n)
    return fixed_point(problem.weights)


def needed_units(problem: CoverProblem, total: int) -> int:
    """Return the units that end the choice: those of the target, else all."""
    if problem.target is None:
        return total
    # A share like .9 of 50 must not ask for 46: .9 itself is rounded.
    return min(total, math.ceil(problem.target * total * (1 - 1e-12)))


def run_slices(problem: CoverProblem, state: Rows, one_slice: Callable[[], bool]) -> bool:
    """Call ``one_slice`` until it says that all is done; return False if it was cut short.

    Kernels cannot be interrupted; between slices the deadline counts, and Ctrl-C ends
    the choice with what there is. ``state[0]`` counts the seeds.
    """
    try:
        while not one_slice():
            if problem.watch is not None:
                problem.watch(int(state[0]))
            if problem.late():
                return False
    except KeyboardInterrupt:
        return False
    return True


def better_of(problem: CoverProblem, first: Picked, second: Callable[[], Picked]) -> Picked:
    """Return the better of two choices under costs; the second runs if time is left.

    Better is more weight; among those that reach the target, less cost.
    """
    if not first.finished:
        return first
    other = second()
    if problem.costs is None:
        return other if other.gains.sum() > first.gains.sum() else first
    value = [float(picked.gains.sum()) for picked in (first, other)]
    if problem.target is not None:
        need = problem.target * problem.total * (1 - 1e-9)
        if min(value) >= need:
            price = [float(problem.costs[picked.rows].sum()) for picked in (first, other)]
            return other if other.finished and price[1] < price[0] else first
    return other if value[1] > value[0] else first


def _by_buckets(problem: CoverProblem, *, all_nodes: bool = False) -> Picked:
    graph, n = problem.graph, problem.graph.n
    gain = kernels.first_counts(graph.out_ptr)
    covered = np.zeros(n, dtype=np.uint8)
    state = np.zeros(9, dtype=np.int64)
    picked = np.empty(problem.k, dtype=np.int32)
    gains = np.empty(problem.k, dtype=np.int64)
    arrays = (graph.out_ptr, graph.out_ids, graph.in_ptr, graph.in_ids)
    for row in problem.warm_start:
        left = kernels.count_left(row, graph.out_ptr, graph.out_ids, covered)
        picked[state[kernels.PICKS]] = row
        gains[state[kernels.PICKS]] = left
        state[kernels.PICKS] += 1
        state[kernels.COVERED] += left
        covered[row] = 1
        covered[graph.out_ids[graph.out_ptr[row] : graph.out_ptr[row + 1]]] = 1
    if len(problem.warm_start):
        kernels.count_all(graph.out_ptr, graph.out_ids, covered, gain)
    everyone = problem.allowed is None
    allowed = np.empty(0, dtype=np.uint8) if problem.allowed is None else problem.allowed
    most = n + 1 if all_nodes or problem.k > ASKED_SEEDS else ORDERED_NODES * problem.k
    order, end, floor = kernels.bucket_order(gain, allowed, everyone, np.int64(most))
    state[kernels.LEVEL] = len(end) - 2
    head = np.full(len(end), -1, dtype=np.int32)
    counted = np.full(n, state[kernels.PICKS], dtype=np.int32)
    follow = np.empty(n, dtype=np.int32)
    waiting = np.empty(n, dtype=np.int32)
    fresh = np.empty(n + 1, dtype=np.int32)
    state[kernels.TOLD] = problem.k > ASKED_SEEDS
    need = np.int64(needed_units(problem, n))

    def one_slice() -> bool:
        kernels.bucket_picks(
            *arrays,
            gain,
            counted,
            covered,
            order,
            end,
            np.int64(floor),
            head,
            follow,
            waiting,
            fresh,
            picked,
            gains,
            np.int64(problem.k),
            need,
            np.int64(ASKED_WALKS * graph.m),
            np.int64(SLICE_ARCS),
            state,
        )
        return bool(state[kernels.OVER])

    finished = run_slices(problem, state, one_slice)
    count = int(state[kernels.PICKS])
    if finished and floor > 0 and count < problem.k and state[kernels.COVERED] < need:
        return _by_buckets(problem, all_nodes=True)  # a node below the floor may be next
    return Picked(
        picked[:count].astype(np.int64),
        gains[:count].astype(np.float64),
        finished,
        "greedy",
        {"arcs": int(state[kernels.ARCS])},
    )


def _by_heap(problem: CoverProblem, units: FixedPoint, *, by_cost: bool) -> Picked:
    graph, n = problem.graph, problem.graph.n
    weight = units.units
    gain = kernels.first_weights(graph.out_ptr, graph.out_ids, weight)
    covered = np.zeros(n, dtype=np.uint8)
    state = np.zeros(9, dtype=np.int64)
    picked = np.empty(problem.k, dtype=np.int32)
    gains = np.empty(problem.k, dtype=np.int64)
    arrays = (graph.out_ptr, graph.out_ids, graph.in_ptr, graph.in_ids)
    cost = np.ones(1) if problem.costs is None else problem.costs
    budget = np.float64(-1.0 if problem.budget is None else problem.budget)
    spent = np.zeros(1)
    for row in problem.warm_start:
        picked[state[kernels.PICKS]] = row
        gains[state[kernels.PICKS]] = gain[row]
        state[kernels.PICKS] += 1
        if problem.budget is not None:
            spent[0] += cost[row]
        kernels.commit_weights(row, *arrays, weight, gain, covered, state)
    key = kernels.set_keys(gain, cost, by_cost)
    everyone = problem.allowed is None
    allowed = np.empty(0, dtype=np.uint8) if problem.allowed is None else problem.allowed
    heap = kernels.heap_of(key, allowed, everyone)
    state[kernels.WAITING] = len(heap)
    need = np.int64(needed_units(problem, units.total))

    def one_slice() -> bool:
        kernels.heap_picks(
            *arrays,
            weight,
            gain,
            covered,
            cost,
            by_cost,
            budget,
            spent,
            heap,
            key,
            picked,
            gains,
            np.int64(problem.k),
            need,
            np.int64(SLICE_ARCS),
            state,
        )
        return bool(state[kernels.OVER])

    finished = run_slices(problem, state, one_slice)
    count = int(state[kernels.PICKS])
    return Picked(
        picked[:count].astype(np.int64),
        np.asarray(gains[:count] * units.unit, dtype=np.float64),
        finished,
        "greedy by gain per cost" if by_cost else "greedy",
        {"arcs": int(state[kernels.ARCS]), "sunk": int(state[kernels.STALE])},
    )
