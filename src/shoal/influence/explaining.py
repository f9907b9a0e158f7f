"""Why this seed, and why not that node: whom each covers, alone or with others."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from shoal.influence import _swap_kernels as kernels
from shoal.influence import greedy, lazy
from shoal.influence.counting import FAR, distance_labels
from shoal.influence.graph import Rows
from shoal.influence.problem import CoverProblem
from shoal.influence.results import CoverResult

__all__ = ["NodeExplanation", "explain", "who_covers"]

_Labels: TypeAlias = tuple[
    npt.NDArray[np.int8], npt.NDArray[np.int8], npt.NDArray[np.int32], npt.NDArray[np.int32]
]

#: Names shown of a longer list.
_SAMPLE = 10


@dataclass(frozen=True)
class NodeExplanation:
    """What a node does for an answer.

    Attributes
    ----------
    node : name
    is_seed : bool
    turn : int, optional
        When it was chosen, from 1; None for other nodes.
    gain : float
        Weight that it added at its turn; for other nodes, what it would add now.
    ball : float
        Weight within the hops of it.
    alone : float
        Weight that no other seed covers: what is lost if it goes (or comes by, if it
        is no seed).
    alone_count : int
    alone_sample : tuple of names
        Up to ten of those nodes, by row.
    shared : float
        Weight of its ball that other seeds cover too.
    shared_with : tuple of (name, int)
        Up to five other seeds, with the nodes of its ball to which each is the nearest
        other seed.
    replacement : name, optional
        For a seed: which other allowed node would add most in its place (of a run
        without ``candidates``: every node is allowed).
    replacement_gain : float, optional
        What that would add.
    """

    node: Any
    is_seed: bool
    turn: int | None
    gain: float
    ball: float
    alone: float
    alone_count: int
    alone_sample: tuple[Any, ...]
    shared: float
    shared_with: tuple[tuple[Any, int], ...]
    replacement: Any = None
    replacement_gain: float | None = None

    def __str__(self) -> str:
        if self.is_seed:
            text = f"{self.node}: seed {self.turn}, added {self.gain:g} at its turn; "
            text += f"it alone covers {self.alone:g} of {self.ball:g} in its reach"
            if self.replacement is not None:
                text += f"; {self.replacement} in its place would cover {self.replacement_gain:g}"
            return text
        text = f"{self.node}: no seed, would add {self.gain:g} of {self.ball:g} in its reach"
        if self.shared_with:
            near = ", ".join(f"{name} ({count})" for name, count in self.shared_with)
            text += f"; the rest is covered, nearest by {near}"
        return text


def explain(result: CoverResult, node: Any) -> NodeExplanation:
    """Return what ``node`` does for the answer, or why it was not chosen.

    One search from all seeds that keeps the two nearest of each node, one from the
    node, and for a seed one more round of greedy without it: O(hops * m).

    Raises
    ------
    NotFoundError
        There is no such node.
    """
    graph, hops = result.graph, np.int64(result.hops)
    row = int(graph.rows([node], field="node")[0])
    weight = np.ones(graph.n) if result.weights is None else result.weights
    places = np.flatnonzero(result.rows == row)
    slot = int(places[0]) if len(places) else -1
    labels = kernels.label_twice(graph.out_ptr, graph.out_ids, result.rows, hops)
    ball = np.flatnonzero(distance_labels(graph, [row], result.hops) <= result.hops)
    other = _nearest_other(labels, ball, slot)
    alone = ball[other < 0]
    near = Counter(other[other >= 0].tolist()).most_common()
    near.sort(key=lambda pair: (-pair[1], pair[0]))
    best, most = _replacement(result, row) if slot >= 0 else (None, None)
    return NodeExplanation(
        node=node,
        is_seed=slot >= 0,
        turn=slot + 1 if slot >= 0 else None,
        gain=float(result.gains[slot]) if slot >= 0 else float(weight[alone].sum()),
        ball=float(weight[ball].sum()),
        alone=float(weight[alone].sum()),
        alone_count=len(alone),
        alone_sample=tuple(graph.labels(alone[:_SAMPLE])),
        shared=float(weight[ball[other >= 0]].sum()),
        shared_with=tuple((result.seeds[by], count) for by, count in near[:5]),
        replacement=best,
        replacement_gain=most,
    )


def who_covers(result: CoverResult, node: Any) -> tuple[tuple[Any, int], ...]:
    """Return the seeds that cover ``node`` with their distances, the nearest first.

    Raises
    ------
    NotFoundError
        There is no such node.
    """
    row = result.graph.rows([node], field="node")
    distance = distance_labels(result.graph.reversed(), row, result.hops)[result.rows]
    order = np.argsort(distance, kind="stable")
    return tuple(
        (result.seeds[place], int(distance[place]))
        for place in order.tolist()
        if distance[place] != FAR
    )


def _nearest_other(labels: _Labels, ball: Rows, slot: int) -> Rows:
    """Return of each node the slot of the nearest seed that is not ``slot``, or -1."""
    near, second, by, second_by = (label[ball] for label in labels)
    first = np.where(near == FAR, -1, by)
    then = np.where(second == FAR, -1, second_by)
    return np.asarray(np.where(first == slot, then, first), dtype=np.int64)


def _replacement(result: CoverResult, row: int) -> tuple[Any, float | None]:
    """Return the node that adds most to the other seeds, and how much."""
    graph = result.graph
    others = result.rows[result.rows != row]
    if len(others) + 1 >= graph.n:
        return None, None
    allowed = np.ones(graph.n, dtype=np.uint8)
    allowed[result.rows] = 0
    problem = CoverProblem(
        graph=graph,
        k=len(others) + 1,
        hops=result.hops,
        weights=result.weights,
        allowed=allowed,
        warm_start=others,
    )
    picked = (greedy if result.hops == 1 else lazy).solve(problem)
    if len(picked.rows) <= len(others):
        return None, None
    return graph.labels(picked.rows[-1:])[0], float(picked.gains[-1])
