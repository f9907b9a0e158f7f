"""Greedy at two hops and more: lazy and exact, labels cut searches and bounds save them.

Lazy evaluation (Minoux 1978; CELF, Leskovec et al. 2007) on distance labels and
backward bounds (sheet of method FastCover, 4.2 and 4.3). Where the bounds say too
little, as before the first seed, the candidates are narrowed by counting, for 512
targets at once, who reaches what: targets that few reach come first, and a candidate
that misses too many of them is out. All of it is integers and nothing is sampled, but
for the order in which candidates are tried; so the sequence is the greedy one.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from shoal.core.seeds import philox
from shoal.influence import _lazy_kernels as kernels
from shoal.influence import _sketch_kernels as sketch_kernels
from shoal.influence.graph import Rows
from shoal.influence.greedy import better_of, needed_units, run_slices, units_of
from shoal.influence.problem import CoverProblem, FixedPoint
from shoal.influence.results import Picked
from shoal.influence.tiles import TILE, ReachTiles

__all__ = ["LazyRun", "solve"]

#: Arcs between two looks at the clock, the keyboard and the bounds, at most.
SLICE_ARCS = 64_000_000

#: Walks over the arcs, of `hops` each, that searches take before the bounds are looked at.
_SLICE_WALKS = 1.0

#: Candidates are narrowed where searching from all that may win would cost more than
#: this many walks over the arcs.
_NARROW_FROM = 12

#: ... until it would cost this many.
_NARROW_TO = 1

#: Candidates, best by a sample of targets, that are searched from before narrowing.
_TRIED_FIRST = 8


def solve(problem: CoverProblem) -> Picked:
    """Return the exact greedy sequence, ties to the smallest row.

    "Exact" is said of the sequence: it is what greedy by definition chooses, not the
    best of all choices. Weights count to 2**-61 of their total.

    Returns
    -------
    Picked
        ``work``: ``arcs`` walked by searches, ``evaluations``, ``refreshes`` of the
        bounds, ``tiles`` of 512 targets.
    """
    units = units_of(problem)
    if problem.costs is None:
        return LazyRun(problem, units).run("lazy")
    return better_of(
        problem,
        LazyRun(problem, units, by_cost=True).run("lazy by gain per cost"),
        lambda: LazyRun(problem, units).run("lazy"),
    )


class LazyRun:
    """One greedy run: its labels, its bounds, and what was chosen so far.

    Parameters
    ----------
    problem : CoverProblem
        ``warm_start`` is chosen at once.
    units : FixedPoint
        The weights as integers.
    by_cost : bool
        Rank by gain per cost instead of gain.
    """

    def __init__(self, problem: CoverProblem, units: FixedPoint, *, by_cost: bool = False) -> None:
        graph, n = problem.graph, problem.graph.n
        self.problem, self.units, self.by_cost = problem, units, by_cost
        self.weighted = problem.weights is not None
        self.weight = units.units if self.weighted else np.ones(1, dtype=np.int64)
        self.hops = np.int64(problem.hops)
        self.label = np.full(n, 127, dtype=np.int8)
        self.mark = np.zeros(n, dtype=np.int32)
        self.seen = np.zeros(n, dtype=np.int32)
        self.queue = np.empty(n + 1, dtype=np.int32)
        self.cost = np.ones(1) if problem.costs is None else problem.costs
        self.budget = np.float64(-1.0 if problem.budget is None else problem.budget)
        self.spent = np.zeros(1)
        self.need = needed_units(problem, units.total)
        self.picked = np.empty(problem.k, dtype=np.int64)
        self.gains = np.empty(problem.k, dtype=np.int64)
        self.state = np.zeros(8, dtype=np.int64)
        self.counted = np.full(n, -1, dtype=np.int32)
        self.key = np.full(n, np.inf)
        if problem.allowed is None:
            self.heap = np.arange(n, dtype=np.int32)
        else:
            self.heap = np.flatnonzero(problem.allowed).astype(np.int32)
        self.state[kernels.SIZE] = len(self.heap)
        kind = np.int64 if self.weighted else np.int32
        self._bounds = (np.empty(n, dtype=kind), np.empty(n, dtype=kind))
        self._slice = min(int(_SLICE_WALKS * problem.hops * graph.m) + 1, SLICE_ARCS)
        self._narrowed = -1
        self.refreshes = self.tiles = 0
        for row in problem.warm_start:
            self.choose(row)

    @property
    def picks(self) -> int:
        """How many seeds there are."""
        return int(self.state[kernels.PICKS])

    @property
    def left(self) -> int:
        """Units that no seed covers."""
        return self.units.total - int(self.state[kernels.COVERED])

    def choose(self, row: int) -> None:
        """Make ``row`` the next seed."""
        graph = self.problem.graph
        self.picked[self.picks] = row
        self.gains[self.picks] = kernels.commit(
            np.int64(row),
            graph.out_ptr,
            graph.out_ids,
            self.label,
            self.hops,
            self.weight,
            self.weighted,
            self.mark,
            self.queue,
            self.state,
        )
        self.state[kernels.PICKS] += 1
        if self.problem.costs is not None:
            self.spent[0] += self.cost[row]

    def may_choose(self, row: int) -> bool:
        """Say whether a seed more is within k, target and budget."""
        if self.over:
            return False
        return bool(self.budget < 0 or self.spent[0] + self.cost[row] <= self.budget)

    def search(self, rows: Rows) -> float:
        """Make the keys of ``rows`` the truth; return the largest."""
        graph = self.problem.graph
        return float(
            kernels.search_rows(
                rows,
                graph.out_ptr,
                graph.out_ids,
                self.label,
                self.hops,
                self.weight,
                self.weighted,
                self.mark,
                self.seen,
                self.queue,
                self.cost,
                self.by_cost,
                self.key,
                self.counted,
                self.state,
            )
        )

    @property
    def over(self) -> bool:
        """Whether there are k seeds, or the target is reached."""
        return self.picks >= self.problem.k or int(self.state[kernels.COVERED]) >= self.need

    def run(self, method: str, *, slices: bool = True) -> Picked:
        """Choose to the end, or without ``slices`` no more, and return all."""
        finished = True
        if slices:
            self._refresh()
            finished = run_slices(self.problem, self.state, self._one_slice)
        count = self.picks
        return Picked(
            self.picked[:count].copy(),
            np.asarray(self.gains[:count] * self.units.unit, dtype=np.float64),
            finished,
            method,
            {
                "arcs": int(self.state[kernels.ARCS]),
                "evaluations": int(self.state[kernels.EVALUATIONS]),
                "refreshes": self.refreshes,
                "tiles": self.tiles,
            },
        )

    def _one_slice(self) -> bool:
        graph, state = self.problem.graph, self.state
        picks, arcs, tried = self.picks, int(state[kernels.ARCS]), int(state[kernels.EVALUATIONS])
        kernels.lazy_picks(
            graph.out_ptr,
            graph.out_ids,
            self.label,
            self.hops,
            self.weight,
            self.weighted,
            self.mark,
            self.seen,
            self.queue,
            self.cost,
            self.by_cost,
            self.budget,
            self.spent,
            self.heap,
            self.key,
            self.counted,
            self.picked,
            self.gains,
            np.int64(self.problem.k),
            np.int64(self.need),
            np.int64(self._slice),
            state,
        )
        if state[kernels.OVER]:
            return True
        if self.picks > picks:
            size = int(state[kernels.SIZE])
            if self._refresh() < 0.02 * size:
                self._slice = min(2 * self._slice, SLICE_ARCS)
        elif self._narrowed < picks and self.problem.hops > 1:
            self._narrowed = picks
            searches = max(int(state[kernels.EVALUATIONS]) - tried, 1)
            self._narrow((int(state[kernels.ARCS]) - arcs) / searches)
        return False

    def _bound(self, ptr: Rows, ids: np.ndarray, label: np.ndarray) -> np.ndarray:
        """Return c_0 of every node for ``label``."""
        deeper, bound = self._bounds
        for depth in range(self.problem.hops, -1, -1):
            kernels.bound_pass(
                ptr,
                ids,
                label,
                self.hops,
                np.int64(depth),
                self.weight,
                self.weighted,
                np.int64(self.left),
                deeper,
                bound,
            )
            deeper, bound = bound, deeper
        return deeper

    def _refresh(self) -> int:
        """Lower all keys to fresh bounds; return how many fell."""
        graph = self.problem.graph
        bound = self._bound(graph.out_ptr, graph.out_ids, self.label)
        size, fell = kernels.lower_keys(
            self.key, bound, self.cost, self.by_cost, self.heap, self.state[kernels.SIZE]
        )
        self.state[kernels.SIZE] = size
        self.refreshes += 1
        return int(fell)

    def _narrow(self, search_arcs: float) -> None:
        """Lower the keys of those that may win by counting whom they reach, hard targets first."""
        graph, hops = self.problem.graph, self.problem.hops
        live = self.heap[: self.state[kernels.SIZE]]
        known = self.counted[live] == self.picks
        if not known.any():
            return
        best = float(self.key[live[known]].max())
        rows = live[~known & (self.key[live] >= best)].astype(np.int64)
        if len(rows) * search_arcs < _NARROW_FROM * hops * graph.m:
            return
        targets = np.flatnonzero(self.label > hops)
        if self.weighted:
            targets = targets[self.weight[targets] > 0]
        far = np.full(graph.n, 127, dtype=np.int8)
        reached_by = self._bound(graph.in_ptr, graph.in_ids, far)[targets]
        found = np.zeros(graph.n, dtype=np.int64)
        tiles = ReachTiles(graph, hops)

        def worth(some: Rows) -> Rows | None:
            return self.weight[some] if self.weighted else None

        # A sample tells nothing for certain, but whom to try first: a high mark to beat.
        order = np.argsort(reached_by, kind="stable")
        generator = philox(self.problem.seed, "influence", "lazy", self.picks)
        drawn = np.sort(generator.permutation(len(targets))[:TILE])
        sample = targets[drawn]
        tiles.count(sample, rows, len(rows), found, worth(sample))
        ranked = found[rows] / self.cost[rows] if self.by_cost else found[rows]
        first = rows[np.argsort(-ranked, kind="stable")[:_TRIED_FIRST]]
        if self.budget < 0:
            best = max(best, self.search(first))
        pending = np.ones(len(targets), dtype=bool)
        pending[drawn] = False
        order = order[pending[order]]
        rest = self.left - (int(self.weight[sample].sum()) if self.weighted else len(sample))
        size = self._tighten(rows, len(rows), found, rest, best)
        self.tiles += 1
        # A tile clears its room, passes over all arcs between the first and the last hop,
        # and walks the last one from those that may win.
        walk = graph.n + (hops - 2) * graph.m + int(graph.out_degrees()[rows[:size]].sum())
        for some, few in _blocks(targets[order], reached_by[order], walk):
            if size * search_arcs < _NARROW_TO * hops * graph.m or self.problem.late():
                break
            if few:
                self.state[kernels.STAMP] = sketch_kernels.tell_reachers(
                    some,
                    graph.in_ptr,
                    graph.in_ids,
                    self.hops,
                    self.weight,
                    self.weighted,
                    self.seen,
                    np.int32(self.state[kernels.STAMP]),
                    self.queue,
                    found,
                )
            else:
                tiles.count(some, rows, size, found, worth(some))
                self.tiles += 1
            rest -= int(self.weight[some].sum()) if self.weighted else len(some)
            size = self._tighten(rows, size, found, rest, best)
        kernels.restore_heap(self.heap, self.key, self.state[kernels.SIZE])

    def _tighten(self, rows: Rows, size: int, found: Rows, rest: int, best: float) -> int:
        return int(
            sketch_kernels.tighten(
                rows,
                np.int64(size),
                found,
                np.int64(rest),
                self.key,
                self.cost,
                self.by_cost,
                best,
            )
        )


def _blocks(targets: Rows, reached_by: Rows, walk: int) -> Iterator[tuple[Rows, bool]]:
    """Yield (targets, few): those whom few reach in blocks of a walk, the others in tiles.

    ``walk`` is the arcs that a tile passes over. Whom few reach is told to them one by
    one: below a share of 1 / 512 of a walk that is cheaper than a place in a tile.
    """
    few = int(np.searchsorted(reached_by, walk / TILE))
    ends = np.searchsorted(np.cumsum(reached_by[:few]), np.arange(1, TILE + 1) * walk / 2)
    begin = 0
    for end in [*np.unique(ends).tolist(), few]:
        if end > begin:
            yield targets[begin:end], True
        begin = max(begin, end)
    for begin in range(few, len(targets), TILE):
        yield targets[begin : begin + TILE], False
