"""Fairness floors: at least a share of each group must be covered, then as much as can be.

Two steps. Greedy on the sum over groups of ``min(covered members, members needed)``,
which is monotone and submodular, until every floor is met; then greedy on the total
coverage with the seeds that are left. What is guaranteed: with F the first sum, at most
1 + ln(max_v F({v})) times the fewest seeds that could meet all floors are spent on
them (Wolsey 1982), so floors that need few seeds against k are met; the seeds after
them cover at least 1 - 1/e of what as many could add. It is NOT guaranteed that
floors which k seeds could just meet are met: :func:`floors_met` says which were.

``max_cover(..., groups=...)`` uses it so: ``first = floor_seeds(problem, groups)``,
then the solver with ``replace(problem, warm_start=first)``, so that refinements keep
them, and ``floors_met(problem, groups, rows)`` for the notes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.core.errors import InputError, NotFoundError
from shoal.influence import _group_kernels as kernels
from shoal.influence import _swap_kernels
from shoal.influence.counting import distance_labels
from shoal.influence.graph import Graph, Rows
from shoal.influence.problem import CoverProblem

__all__ = ["CoverGroup", "FloorMet", "floor_seeds", "floors_met"]


@dataclass(frozen=True)
class CoverGroup:
    """Nodes of which at least a share must be covered.

    Attributes
    ----------
    name : str
    nodes : iterable of names
        Groups may overlap.
    floor : float
        Share in (0, 1] of the group's nodes, counted and not weighed.
    """

    name: str
    nodes: Iterable[Any]
    floor: float


@dataclass(frozen=True)
class FloorMet:
    """Whether a group's floor is met, and by how many nodes."""

    name: str
    covered: int
    needed: int
    size: int
    met: bool


def floor_seeds(problem: CoverProblem, groups: Sequence[CoverGroup]) -> Rows:
    """Return seeds that meet the floors as far as greedy can, the warm start first.

    Parameters
    ----------
    problem : CoverProblem
        Its k, hops, allowed nodes, warm start, and budget bind; weights do not.
    groups : sequence of CoverGroup

    Returns
    -------
    int64 [s]
        Rows; no more than are needed once all floors are met.

    Raises
    ------
    InputError
        A group has no nodes, an unknown one, a floor outside (0, 1], or the name of
        another.
    """
    graph, hops, first = problem.graph, np.int64(problem.hops), problem.warm_start
    members, need = _members(graph, groups)
    if not members:
        return first.copy()
    of_ptr, of_ids = _groups_of(graph.n, members)
    covered = np.zeros(graph.n, dtype=np.uint8)
    arcs = (graph.out_ptr, graph.out_ids)
    kernels.cover_groups(*arcs, hops, first, of_ptr, of_ids, need, covered)
    worth = np.where(covered == 0, np.diff(of_ptr), 0).astype(np.int64)
    far = np.full(graph.n, _swap_kernels.FAR, dtype=np.int8)
    reach = _swap_kernels.bounds_far(*arcs, worth, far, hops)
    bound = np.ceil(np.minimum(reach, float(worth.sum()))).astype(np.int64)
    allowed = np.ones(graph.n, np.uint8) if problem.allowed is None else problem.allowed.copy()
    allowed[first] = 0
    costs, money = np.empty(0), 0.0
    if problem.costs is not None and problem.budget is not None:
        costs, money = problem.costs, problem.budget - float(problem.costs[first].sum())
    room = max(problem.k - len(first), 0)
    picked = np.empty(room, dtype=np.int64)
    count = kernels.floor_picks(
        *arcs,
        hops,
        bound,
        allowed,
        costs,
        np.float64(money),
        np.int64(room),
        of_ptr,
        of_ids,
        need,
        covered,
        picked,
    )
    return np.concatenate((first, picked[:count]))


def floors_met(
    problem: CoverProblem, groups: Sequence[CoverGroup], rows: npt.ArrayLike
) -> tuple[FloorMet, ...]:
    """Return for each group, by name, whether the seeds ``rows`` meet its floor."""
    members, need = _members(problem.graph, groups)
    within = distance_labels(problem.graph, rows, problem.hops) <= problem.hops
    reports = []
    for group, nodes, needed in zip(groups, members, need.tolist(), strict=True):
        covered = int(np.count_nonzero(within[nodes]))
        reports.append(FloorMet(group.name, covered, needed, len(nodes), covered >= needed))
    return tuple(reports)


def _members(graph: Graph, groups: Sequence[CoverGroup]) -> tuple[list[Rows], Rows]:
    """Return the rows of each group, and how many of each must be covered."""
    members, need = [], []
    names: set[str] = set()
    for place, group in enumerate(groups):
        if not isinstance(group, CoverGroup):
            raise InputError("must be a CoverGroup", field="groups", row=place + 1)
        if group.name in names:
            raise InputError("names two groups", field="groups", value=group.name, row=place + 1)
        names.add(group.name)
        share = group.floor
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            raise InputError(
                f"floor of group {group.name!r} must be in (0, 1]", field="groups", value=share
            )
        try:
            rows = np.unique(graph.rows(list(group.nodes), field=f"group {group.name!r}"))
        except NotFoundError as error:
            raise InputError(error.message) from None
        if not len(rows):
            raise InputError(f"group {group.name!r} has no nodes", field="groups", row=place + 1)
        members.append(rows)
        need.append(math.ceil(share * len(rows) * (1 - 1e-12)))
    return members, np.array(need, dtype=np.int64)


def _groups_of(n: int, members: Sequence[Rows]) -> tuple[Rows, Rows]:
    """Return the groups of each node as (ptr, ids)."""
    nodes = np.concatenate(members)
    owner = np.repeat(np.arange(len(members)), [len(rows) for rows in members])
    order = np.argsort(nodes, kind="stable")
    ptr = np.zeros(n + 1, dtype=np.int64)
    np.cumsum(np.bincount(nodes, minlength=n), out=ptr[1:])
    return ptr, owner[order].astype(np.int64)
