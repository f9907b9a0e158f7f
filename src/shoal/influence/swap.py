"""Better seeds by exchanging one at a time, never worse ones.

A seed leaves, another node comes, where the coverage rises; until no exchange helps
(a local optimum, which alone guarantees 1/2 of the best: Nemhauser, Wolsey and Fisher
1978; from a greedy start the 1 - 1/e stays, for the coverage only rises). Sheet of
method FastCover, 4.5.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from shoal.core.errors import InputError
from shoal.influence import _swap_kernels as kernels
from shoal.influence import greedy, lazy
from shoal.influence.graph import Rows
from shoal.influence.problem import CoverProblem
from shoal.influence.results import Picked

__all__ = ["refine"]

Floats: TypeAlias = npt.NDArray[np.float64]

#: Arcs between two looks at the clock.
_SLICE = np.int64(16_000_000)
#: Arcs that a search may touch if nobody says: this many times all arcs and nodes.
#: At one hop every sweep is one such time, and sweeps end by themselves.
_EFFORT = 60


def refine(problem: CoverProblem, rows: npt.ArrayLike, *, max_arcs: int | None = None) -> Picked:
    """Return seeds that cover at least as much as ``rows``, by 1-swap local search.

    Candidates are tried by descending bound on what they could add, each against the
    seed whose leaving costs least; the first exchange that helps is made. The seeds
    of ``warm_start`` stay, only allowed nodes come, and with a budget only what it
    still pays for. Afterwards the seeds stand in their own greedy order, so that
    ``gains`` are marginal again; those that add nothing are dropped, and if that or
    the budget leaves room, greedy fills it. With a target the result ends where the
    target is reached, which may need fewer seeds.

    Parameters
    ----------
    problem : CoverProblem
    rows : int64 [s]
        Seeds within the problem's limits.
    max_arcs : int, optional
        Most arcs to touch; 60 times all arcs and nodes without it.

    Returns
    -------
    Picked
        ``work``: ``swaps``, ``arcs``, and ``local_optimum`` (1 if no exchange helps
        any more, 0 if the effort or the time ran out before that was known).
        ``finished`` is False only if the deadline passed.

    Notes
    -----
    One hop: a sweep is at most one pass over the arcs, and candidates whose ball is
    no heavier than the least loss are not looked at. More hops: a candidate costs one
    search that stops where two seeds are as near; two labels a node are kept under
    every exchange at the price of the balls concerned. Memory: 10 to 20 bytes a node
    beside the graph.

    Raises
    ------
    InputError
        ``rows`` are no rows of the graph, or repeat, or do not begin with the warm start.
    """
    seeds = _checked(problem, rows)
    limit = max_arcs if max_arcs is not None else _EFFORT * (problem.graph.m + problem.graph.n)
    work: dict[str, int | float] = {"swaps": 0, "arcs": 0, "local_optimum": 1}
    finished = True
    if len(seeds) > len(problem.warm_start):
        search = _near if problem.hops == 1 else _far
        state, finished, optimum = search(problem, seeds, limit)
        work["swaps"] = int(state[kernels.SWAPS])
        work["arcs"] = int(state[kernels.ARCS])
        work["local_optimum"] = int(optimum)
    picked = _ordered(problem, seeds)
    return Picked(picked.rows, picked.gains, finished, "swap", work)


def _checked(problem: CoverProblem, rows: npt.ArrayLike) -> Rows:
    seeds = np.array(rows, dtype=np.int64).reshape(-1)
    if len(seeds) and not 0 <= seeds.min() <= seeds.max() < problem.graph.n:
        raise InputError(f"must be rows from 0 to {problem.graph.n - 1}", field="rows")
    if len(np.unique(seeds)) < len(seeds):
        raise InputError("names a node twice", field="rows")
    first = problem.warm_start
    if not np.array_equal(seeds[: len(first)], first):
        raise InputError("must begin with the seeds of the warm start", field="rows")
    return seeds


def _near(problem: CoverProblem, seeds: Rows, limit: int) -> tuple[Rows, bool, bool]:
    graph = problem.graph
    weight = greedy.units_of(problem).units
    count = np.zeros(graph.n, dtype=np.int32)
    owner = np.zeros(graph.n, dtype=np.int64)
    loss = np.zeros(len(seeds), dtype=np.int64)
    kernels.count_covers(graph.out_ptr, graph.out_ids, weight, seeds, count, owner, loss)
    ball = kernels.ball_units(graph.out_ptr, graph.out_ids, weight)
    order = _by_bound(problem, ball)
    costs, room = _money(problem, seeds)
    is_seed = _mask(graph.n, seeds)
    state = np.zeros(3, dtype=np.int64)
    fixed = np.int64(len(problem.warm_start))

    def one_slice() -> bool:
        kernels.sweep_near(
            graph.out_ptr,
            graph.out_ids,
            weight,
            order,
            ball,
            seeds,
            is_seed,
            fixed,
            costs,
            room,
            count,
            owner,
            loss,
            min(_SLICE, np.int64(limit)),
            state,
        )
        return bool(state[kernels.PLACE] >= len(order))

    return state, *_sweeps(problem, one_slice, state, limit)


def _far(problem: CoverProblem, seeds: Rows, limit: int) -> tuple[Rows, bool, bool]:
    graph, hops = problem.graph, np.int64(problem.hops)
    weight = greedy.units_of(problem).units
    labels = kernels.label_twice(graph.out_ptr, graph.out_ids, seeds, hops)
    near, second, by = labels[:3]
    loss = np.zeros(len(seeds), dtype=np.int64)
    kernels.losses_far(weight, near, second, by, loss)
    costs, room = _money(problem, seeds)
    is_seed = _mask(graph.n, seeds)
    state = np.zeros(3, dtype=np.int64)
    fixed = np.int64(len(problem.warm_start))
    seen = np.zeros(graph.n + 1, dtype=np.int32)
    order = np.empty(0, dtype=np.int64)

    def one_slice() -> bool:
        nonlocal order
        if state[kernels.PLACE] == 0:
            # Exact at the start of a sweep, an order of trial after its first exchange:
            # what comes is at most what is uncovered, or all that fewer than two cover
            # less what must go.
            fresh = kernels.bounds_far(graph.out_ptr, graph.out_ids, weight, near, hops)
            alone = kernels.bounds_far(graph.out_ptr, graph.out_ids, weight, second, hops)
            order = _by_bound(problem, np.minimum(fresh, alone - loss[fixed:].min()))
            state[kernels.ARCS] += 2 * problem.hops * graph.m
        kernels.sweep_far(
            graph.out_ptr,
            graph.out_ids,
            graph.in_ptr,
            graph.in_ids,
            weight,
            order,
            seeds,
            is_seed,
            fixed,
            hops,
            costs,
            room,
            *labels,
            loss,
            seen,
            min(_SLICE, np.int64(limit)),
            state,
        )
        return bool(state[kernels.PLACE] >= len(order))

    return state, *_sweeps(problem, one_slice, state, limit)


def _sweeps(
    problem: CoverProblem, one_slice: Callable[[], bool], state: Rows, limit: int
) -> tuple[bool, bool]:
    """Sweep until one finds nothing; return (in time, whether nothing is left to find)."""
    found = -1
    while found != state[kernels.SWAPS]:
        found = int(state[kernels.SWAPS])
        state[kernels.PLACE] = 0
        while not one_slice():
            if problem.late():
                return False, False
            if state[kernels.ARCS] >= limit:
                return True, False
        if problem.late():
            return False, False
        if state[kernels.ARCS] >= limit:
            return True, found == int(state[kernels.SWAPS])
    return True, True


def _by_bound(problem: CoverProblem, bound: npt.NDArray[Any]) -> Rows:
    """Return allowed rows whose bound is above 0, the largest first, ties by row."""
    useful = bound > 0
    if problem.allowed is not None:
        useful &= problem.allowed != 0
    chosen = np.flatnonzero(useful)
    return chosen[np.argsort(-bound[chosen], kind="stable")].astype(np.int64)


def _money(problem: CoverProblem, seeds: Rows) -> tuple[Floats, Floats]:
    """Return (costs, empty if they bear on nothing; what is left to spend, float64 [1])."""
    if problem.costs is None:
        return np.empty(0), np.zeros(1)
    # Towards a target each exchange must cost no more than it saves.
    left = 0.0 if problem.budget is None else problem.budget - float(problem.costs[seeds].sum())
    return problem.costs, np.array([max(left, 0.0)])


def _mask(n: int, rows: Rows) -> npt.NDArray[np.uint8]:
    mask = np.zeros(n, dtype=np.uint8)
    mask[rows] = 1
    return mask


def _ordered(problem: CoverProblem, seeds: Rows) -> Picked:
    """Return the seeds in their own greedy order, without those that add nothing."""
    solve = greedy.solve if problem.hops == 1 else lazy.solve
    among = replace(
        problem,
        k=max(len(seeds), 1),
        allowed=_mask(problem.graph.n, seeds),
        costs=None,
        budget=None,
        deadline=None,
    )
    picked = solve(among)
    room = problem.k > len(picked.rows) and problem.target is None
    if room and (len(picked.rows) < len(seeds) or problem.budget is not None):
        return solve(replace(problem, warm_start=picked.rows, deadline=None))
    return picked
