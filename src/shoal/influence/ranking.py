"""Seeds by a score of each node, with nothing to discount what they share: the heuristics."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from shoal.core.errors import InputError
from shoal.influence.graph import Graph
from shoal.influence.greedy import units_of
from shoal.influence.lazy import LazyRun
from shoal.influence.problem import CoverProblem
from shoal.influence.results import Picked

__all__ = ["pick_by_score", "vote_scores"]

Floats: TypeAlias = npt.NDArray[np.float64]


def vote_scores(graph: Graph) -> Floats:
    """Return what the nodes that each influences vote for it, float64 [n].

    A node with i influencers gives each of them 1 / i: what the first layer of GRAT
    computes from constant features (sheet of method FastCover, 3.6).
    """
    share = 1.0 / np.maximum(graph.in_degrees(), 1)
    source = np.repeat(np.arange(graph.n), graph.out_degrees())
    votes = np.bincount(source, weights=share[graph.out_ids], minlength=graph.n)
    return np.asarray(votes, dtype=np.float64)


def pick_by_score(problem: CoverProblem, scores: npt.ArrayLike, method: str) -> Picked:
    """Return the nodes of highest score, ties to the smallest row, and what each adds.

    With costs, the score of a unit of cost counts, and what the rest of the budget
    cannot pay is passed over.

    Raises
    ------
    InputError
        A score is not finite: such a node would be chosen first without a word.
    """
    score = np.asarray(scores, dtype=np.float64)
    if score.shape != (problem.graph.n,):
        raise InputError(f"must be {problem.graph.n} numbers", field="scores", value=score.shape)
    wrong = np.flatnonzero(~np.isfinite(score))
    if len(wrong):
        name = problem.graph.labels(wrong[:1])[0]
        raise InputError(f"of node {name!r} is not finite", field="scores", row=int(wrong[0]) + 1)
    run = LazyRun(problem, units_of(problem))
    ranked = score if problem.costs is None else score / problem.costs
    order = np.argsort(-ranked, kind="stable")
    chosen = np.zeros(problem.graph.n, dtype=bool)
    chosen[problem.warm_start] = True
    for row in order:
        if run.over:
            break
        usable = problem.allowed is None or problem.allowed[row]
        if usable and not chosen[row] and run.may_choose(int(row)):
            run.choose(int(row))
    return run.run(method, slices=False)
