"""Greedy's order of seeds on a graph that changes: what still stands, and how to go on.

An arc (u, v) bears only on the balls of R, the nodes that reach u within d - 1 hops:

- when the arc goes, a prefix of the greedy order covers what it covered as long as none
  of its shortest ways used the arc, and gains relative to it fall, for balls only
  shrink; so it stays the greedy prefix;
- when the arc comes and no seed of the prefix is in R, gains of R relative to that
  prefix rise by at most what v then reaches and the prefix does not cover; where the
  raised bound stays below the gain of a pick, that pick stands.

So upper bounds and labels are kept at a few rounds (checkpoints), the order is cut
where it first may differ, and goes on from the last checkpoint before that. Gains
relative to rounds after the cut are thrown away: they do NOT keep, since losing an
arc of a seed uncovers nodes and raises gains (sheet of method FastCover, 6.6).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from shoal.influence import _update_kernels as kernels
from shoal.influence.adjacency import Adjacency
from shoal.influence.graph import Ids, Rows
from shoal.influence.problem import Mask

__all__ = ["Checkpoint", "StandingOrder"]

Labels: TypeAlias = npt.NDArray[np.int8]

#: Stamps of searches start anew beyond it, well before int32 ends.
_OLD = 2**30
#: As many nodes are looked at exactly before their bounds alone cut the order.
_FEW = 256
#: Most checkpoints; each costs nine bytes a node.
_CHECKPOINTS = 14


@dataclass
class Checkpoint:
    """What is known before the pick of ``turn``.

    Attributes
    ----------
    turn : int
    bound : int64 [n]
        Not below any node's gain relative to the first ``turn`` seeds.
    label : int8 [n]
        Distances from them, 127 beyond the hops.
    """

    turn: int
    bound: Rows
    label: Labels


class StandingOrder:
    """The exact greedy order of a graph, as far as it is known to stand.

    Parameters
    ----------
    out, back : Adjacency
        Who influences whom, and by whom one is influenced; owned and changed here.
    k, hops : int
    units : int64 [n]
        Weights as integers.
    allowed : uint8 [n]

    Attributes
    ----------
    rows, gains : int32 [s], int64 [s]
        The first seeds and what each added; the greedy order of the present graph
        begins so, and ends so once ``over``.
    over : bool
        Whether there are k, or nothing is left to gain.
    points : list of Checkpoint
    work : int64 [3]
        Arcs, evaluations and refreshes of bounds so far.
    """

    def __init__(
        self, out: Adjacency, back: Adjacency, k: int, hops: int, *, units: Rows, allowed: Mask
    ) -> None:
        self.out, self.back, self.k, self.hops = out, back, k, hops
        self.units, self.allowed = units, allowed
        self.work = np.zeros(3, dtype=np.int64)
        self.repairs = self.rounds_kept = self.rounds_redone = 0
        self.rows: Ids = np.empty(0, dtype=np.int32)
        self.gains: Rows = np.empty(0, dtype=np.int64)
        self.points: list[Checkpoint] = []
        self.over = False
        steps = np.rint(k ** (np.arange(1, _CHECKPOINTS) / (_CHECKPOINTS - 1))).astype(int)
        self._turns = sorted({turn for turn in steps.tolist() if 0 < turn < k})
        self._make_scratch()

    @property
    def n(self) -> int:
        """Number of nodes."""
        return self.out.n

    def _make_scratch(self) -> None:
        """Make room for searches; the last of ``_seen`` is the stamp in use."""
        self._seen = np.zeros(self.n + 1, dtype=np.int32)
        self._queue = np.empty(max(self.n, 1), dtype=np.int32)

    def restart(self) -> None:
        """Begin with nothing chosen: bounds of the empty set by the backward recursion."""
        n = self.n
        label = np.full(n, kernels.FAR, dtype=np.int8)
        most = np.int64(max(int(self.units.sum()), 1))
        bound = np.full(n, most, dtype=np.int64)
        kernels.deepest_bounds(
            *self.out.arrays,
            np.int64(n),
            np.int64(self.hops),
            label,
            self.units,
            most,
            bound,
            self.work,
        )
        self.points = [Checkpoint(0, bound, label)]
        self.rows = np.empty(0, dtype=np.int32)
        self.gains = np.empty(0, dtype=np.int64)
        self.over = False

    def cut(self, turn: int) -> None:
        """Keep the first ``turn`` picks only."""
        self.over = False
        if turn >= len(self.rows):
            return
        self.rows = self.rows[:turn].copy()
        self.gains = self.gains[:turn].copy()
        self.points = [point for point in self.points if point.turn <= turn]

    def finish(self) -> None:
        """Choose until there are k seeds or nothing is left to gain."""
        if self.over:
            return
        # A turn at which a checkpoint stands begins anew from it, all others from the last one.
        point = self.points[-1]
        kept = len(self.rows)
        picked = np.empty(self.k, dtype=np.int32)
        gains = np.empty(self.k, dtype=np.int64)
        picked[:kept], gains[:kept] = self.rows, self.gains
        if point.turn > 0 and point.turn not in self._turns:
            self.points.pop()  # one that stood where nothing was left to gain
        label, bound = point.label.copy(), point.bound.copy()
        shape = np.int64(self.n), np.int64(self.hops)
        for row in picked[point.turn : kept]:
            kernels.commit(*self.out.arrays, np.int64(row), shape[1], label, self._queue, self.work)
        turn = kept
        most = np.int64(max(int(self.units.sum()), 1))
        while turn < self.k:
            ahead = [stop for stop in self._turns if stop > turn]
            stop = ahead[0] if ahead else self.k
            marks = turn == 0 or turn in self._turns
            start = label.copy() if marks else label
            saved = np.empty(self.n, dtype=np.int64)
            came = kernels.extend(
                *self.out.arrays,
                *shape,
                self.units,
                most,
                self.allowed,
                label,
                bound,
                saved,
                picked,
                gains,
                np.int64(turn),
                np.int64(stop),
                self._seen,
                self._queue,
                self.work,
            )
            if marks:
                self.points = [old for old in self.points if old.turn < turn]
                self.points.append(Checkpoint(turn, saved, start))
            turn = int(came)
            if turn < stop:
                break
        if turn < self.k and self.points[-1].turn < turn:
            # All is covered: what comes later is measured against the end.
            self.points.append(Checkpoint(turn, bound, label))
        self.rows, self.gains = picked[:turn].copy(), gains[:turn].copy()
        self.over = True
        self.repairs += 1
        self.rounds_kept += kept
        self.rounds_redone += turn - kept
        if self._seen[-1] > _OLD:
            self._make_scratch()

    def _search(self, arcs: Adjacency, v: int, ends: Rows) -> int:
        """Fill the queue, and ``ends`` by depth (one for each); return how many were met."""
        self._seen[-1] += 1
        size = kernels.ball_by_depth(
            *arcs.arrays,
            np.int64(v),
            np.int64(len(ends) - 1),
            self._seen,
            self._seen[-1],
            self._queue,
            ends,
            self.work,
        )
        return int(size)

    def _cut_at_seeds(self) -> None:
        """Cut before the first seed whose ball the arc bears on."""
        inside = np.flatnonzero(self._seen[self.rows] == self._seen[-1])
        if len(inside):
            self.cut(int(inside[0]))

    def _cut_where_needed(self, u: int, v: int) -> None:
        """Cut before the first seed from which on the shortest ways to ``v`` may use the arc.

        While the nearest seed of a prefix is not exactly one hop nearer to u than to v,
        no label of the prefix hangs on the arc.
        """
        near = np.minimum.accumulate(self._seed_distances(u, self.hops - 1))
        far = np.minimum.accumulate(self._seed_distances(v, self.hops))
        used = np.flatnonzero((near != kernels.FAR) & (far == near + 1))
        if len(used):
            self.cut(int(used[0]))

    def _seed_distances(self, v: int, most: int) -> Rows:
        """Return each seed's distance to ``v``, int64, 127 beyond ``most``."""
        ends = np.zeros(most + 1, dtype=np.int64)
        size = self._search(self.back, v, ends)
        label = np.full(self.n, kernels.FAR, dtype=np.int64)
        label[self._queue[:size]] = np.repeat(np.arange(most + 1), np.diff(ends, prepend=0))
        return np.asarray(label[self.rows])

    def add_nodes(self, units: Rows, allowed: int) -> None:
        """Add isolated nodes with these weights."""
        rows = np.arange(self.n, self.n + len(units), dtype=np.int64)
        self.out.add_rows(len(units))
        self.back.add_rows(len(units))
        self.units = np.concatenate((self.units, units))
        more = np.full(len(units), allowed, dtype=np.uint8)
        self.allowed = np.concatenate((self.allowed, more))
        far = np.full(len(units), kernels.FAR, dtype=np.int8)
        for point in self.points:
            point.bound = np.concatenate((point.bound, units))
            point.label = np.concatenate((point.label, far))
        self._make_scratch()
        self._cut_at_risers(rows)

    def remove(self, u: int, v: int) -> None:
        """Take an arc away that is there."""
        self._cut_where_needed(u, v)
        self.out.remove(u, v)
        self.back.remove(v, u)

    def insert(self, u: int, v: int) -> None:
        """Add an arc that is not there."""
        ends = np.zeros(self.hops, dtype=np.int64)
        size = self._search(self.back, u, ends)
        self._cut_at_seeds()
        reached = self._queue[:size].copy()
        self.out.insert(u, v)
        self.back.insert(v, u)
        depth = np.repeat(np.arange(self.hops), np.diff(ends, prepend=0))
        self._search(self.out, v, ends)
        sums = np.zeros(self.hops, dtype=np.int64)
        for point in self.points:
            kernels.uncovered_by_depth(self._queue, ends, point.label, self.units, sums)
            point.bound[reached] += sums[self.hops - 1 - depth]
        self._cut_at_risers(reached.astype(np.int64))

    def _cut_at_risers(self, rows: Rows) -> None:
        """Cut at the first checkpoint after which one of ``rows`` may come before a pick."""
        rows = rows[self.allowed[rows] != 0]
        for place, point in enumerate(self.points):
            last = place + 1 == len(self.points)
            stop = len(self.rows) if last else self.points[place + 1].turn
            if stop > point.turn:
                least = self.gains[stop - 1]
                tied = self.gains[point.turn : stop] == least
                highest = int(self.rows[point.turn : stop][tied].max())
            else:
                # Nothing was left to gain: whoever gains now is the next pick.
                least, highest = np.int64(0), -1
            risers = rows[_before(point.bound[rows], rows, least, highest)]
            if len(risers) <= _FEW:
                for row in risers.tolist():
                    self._tighten(point, row)
            if len(rows) and _before(point.bound[rows], rows, least, highest).any():
                self.cut(point.turn)
                return

    def _tighten(self, point: Checkpoint, row: int) -> None:
        self._seen[-1] += 1
        point.bound[row] = kernels.marginal(
            *self.out.arrays,
            np.int64(row),
            np.int64(self.hops),
            point.label,
            self.units,
            self._seen,
            self._seen[-1],
            self._queue,
            self.work,
        )


def _before(bound: Rows, rows: Rows, least: np.int64, highest: int) -> npt.NDArray[np.bool_]:
    """Say who may come before a pick of gain ``least`` whose ties go up to row ``highest``."""
    return np.asarray((bound > least) | ((bound == least) & (rows < highest)))
