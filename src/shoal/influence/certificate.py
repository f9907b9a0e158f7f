"""Proven bounds on what any choice can cover, that is: how far from the best an answer can be.

Two bounds. *Online* (Leskovec et al. 2007, "Cost-effective outbreak detection", 3.2):
what is covered plus the k largest marginal gains. *Lagrangian* (sheet of method
FastCover, 4.6): for any multipliers lambda in [0, 1] of the nodes

    UB = sum_j w_j (1 - lambda_j) + the k largest of  sum_{j in N_d[i]} w_j lambda_j

because a set S that covers j has lambda_j w_j in at least one of its balls. The best
multipliers give the bound of the linear program; Polyak's subgradient finds good ones.

Numbers are floats, and a proof must not hang on their rounding: multipliers are
multiples of 2^-20, so that with whole weights and sums below 2^32 every sum is exact;
otherwise the bound is raised by more than all roundings together. Where all weights
are whole, so is the optimum, and the bound is rounded down to a whole number.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from shoal.core.errors import InputError
from shoal.influence import _certificate_kernels as kernels
from shoal.influence import _swap_kernels
from shoal.influence.counting import FAR, distance_labels
from shoal.influence.graph import Rows
from shoal.influence.problem import CoverProblem
from shoal.influence.reach import Reach, reach_of
from shoal.influence.results import Bound

__all__ = ["Limits", "evaluate", "lagrangian", "limits_of", "online"]

Floats: TypeAlias = npt.NDArray[np.float64]

#: Steps between two looks at the ratio and the clock.
_ROUNDS = 25
#: Most prefixes at which the online bound is taken.
_PREFIXES = 64
#: Multipliers are multiples of its inverse.
_STEPS = float(1 << 20)
#: Sums of whole weights times multiples of 1 / _STEPS are exact below it.
_EXACT = float(1 << 32)
_UNIT = 2.0**-52


@dataclass(frozen=True)
class Limits:
    """What binds every choice besides the seeds that are given.

    Attributes
    ----------
    k : int
        Most seeds that may still be chosen.
    costs : float64 [n], empty without a budget
    budget : float
        Money left for them.
    order : int64
        Candidates.
    """

    k: int
    costs: Floats
    budget: float
    order: Rows

    def most(self, sums: Floats) -> float:
        """Return at least the most that ``sums`` (>= 0, of the candidates) can add up to.

        The ``k`` largest; with a budget also the fractional knapsack, by its price p:
        ``p * budget + sum max(0, s - p * c)`` bounds it for any p >= 0. Rounded like a
        float sum; money and differences are rounded up.
        """
        size = min(self.k, len(sums))
        if size == 0:
            return 0.0
        top = float(np.partition(sums, len(sums) - size)[len(sums) - size :].sum())
        if not len(self.costs):
            return top
        costs = self.costs[self.order]
        ranked = np.argsort(-sums / costs, kind="stable")
        paid = np.searchsorted(np.cumsum(costs[ranked]), self.budget)
        price = 0.0
        if paid < len(ranked):
            price = float(sums[ranked[paid]] / costs[ranked[paid]])
        over = sums * (1 + 4 * _UNIT) - price * costs * (1 - 4 * _UNIT)
        knapsack = price * self.budget * (1 + 4 * _UNIT) + float(np.maximum(over, 0.0).sum())
        return min(top, knapsack)


def limits_of(problem: CoverProblem, rows: Rows) -> Limits:
    """Return the limits for all choices but the warm start.

    With a target the comparison is with choices of as many seeds, and of the same
    cost if there are costs.
    """
    first = problem.warm_start
    k = len(rows) if problem.target is not None else problem.k
    costs, budget = np.empty(0), 0.0
    if problem.costs is not None:
        limit = problem.budget
        if limit is None:
            limit = math.fsum(problem.costs[rows])
        costs = problem.costs
        # Solvers add up what they spend in floats: the bound allows for that too.
        budget = max(0.0, limit * (1 + 1e-12) - math.fsum(costs[first]) * (1 - 1e-12))
    usable = np.ones(problem.graph.n, dtype=bool)
    if problem.allowed is not None:
        usable = problem.allowed != 0
    usable[first] = False
    return Limits(max(k - len(first), 0), costs, budget, np.flatnonzero(usable))


def evaluate(reach: Reach, limits: Limits, lam: npt.ArrayLike) -> float:
    """Return the bound that multipliers prove on what ``limits`` allow to cover.

    Parameters
    ----------
    reach : Reach
        Whom each node reaches, and what targets count.
    limits : Limits
    lam : float64 [targets]
        In [0, 1]; rounded down to multiples of 2^-20.

    Raises
    ------
    InputError
        A multiplier is outside [0, 1]: the formula would prove nothing.
    """
    multipliers = np.asarray(lam, dtype=np.float64)
    weight = reach.weight
    if multipliers.shape != weight.shape:
        raise InputError(
            f"must be one for each of {len(weight)}", field="lam", value=multipliers.shape
        )
    wrong = np.flatnonzero(~((multipliers >= 0) & (multipliers <= 1)))
    if len(wrong):
        row = int(wrong[0])
        raise InputError(
            "must be in [0, 1]", field="lam", value=float(multipliers[row]), row=row + 1
        )
    multipliers = np.floor(multipliers * _STEPS) / _STEPS
    sums = kernels.sums_of(reach.ptr, reach.ids, reach.own, weight * multipliers)[limits.order]
    value = float((weight * (1 - multipliers)).sum()) + limits.most(sums)
    longest = int(np.diff(reach.ptr).max(initial=0)) + 1
    terms = len(weight) + longest + len(sums)
    whole = bool(np.all(weight == np.floor(weight)))
    largest = float(np.max(sums, initial=0.0)) * min(limits.k, len(sums))
    if not (whole and not len(limits.costs) and max(float(weight.sum()), largest) < _EXACT):
        value = raised(value, terms)
    return min(math.floor(value) if whole else value, raised(float(weight.sum()), len(weight)))


def raised(value: float, terms: int) -> float:
    """Return a sum of ``terms`` non-negative rounded terms, raised above its exact value.

    Each addition and product is off by at most 2^-53 of its result; the guard counts
    twice that for four times as many operations.
    """
    return math.nextafter(value * (1 + 4 * (terms + 16) * _UNIT), math.inf)


def lagrangian(
    problem: CoverProblem,
    rows: npt.ArrayLike,
    covered: float,
    *,
    iterations: int = 300,
    memory: int = 128 << 20,
    confidence: float = 0.999,
) -> Bound:
    """Return the Lagrangian bound after at most ``iterations`` subgradient steps.

    Parameters
    ----------
    problem : CoverProblem
    rows : int64 [s]
        The answer whose distance to the best is asked for; the multipliers start from
        what it covers.
    covered : float
        Weight that it covers: the step's length comes from it, not the proof.
    iterations : int
        Steps; fewer if the ratio stops moving, the bound is met, or the deadline passes.
    memory : int
        Most bytes for the closure at two and more hops. If it does not fit, targets
        are drawn and the bound is statistical.
    confidence : float
        Probability with which a statistical bound holds.

    Returns
    -------
    Bound
        ``kind="proven"``, with the multipliers; or ``kind="statistical"`` and its
        confidence in the method's name.

    Notes
    -----
    A sample: of T nodes drawn by weight the best choice S* covers X, and the Lagrangian
    bound U of the sampled problem holds X <= U for certain. So the Clopper-Pearson
    bound of U out of T, which rises with U, is below the share of S* with probability
    at most 1 - confidence: S* does not depend on the sample, hence one test, not a
    union over all sets. With a proven online bound below it, that one is returned.

    Time: a step reads the balls of the candidates that may be among the k largest.
    """
    start = time.perf_counter()
    seeds = np.asarray(rows, dtype=np.int64)
    if not 0 < confidence < 1:
        raise InputError("must be inside (0, 1)", field="confidence", value=confidence)
    weight = _weights(problem)
    total = math.fsum(weight)
    limits = limits_of(problem, seeds)
    first = distance_labels(problem.graph, problem.warm_start, problem.hops) <= problem.hops
    given = math.fsum(weight[first])
    whole = bool(np.all(weight == np.floor(weight)))
    weight[first] = 0.0
    if total == given or limits.k == 0 or covered >= total:
        most = _whole_total(given if limits.k == 0 else total, whole)
        return _bound(most, "lagrangian", 0, start)
    reach = reach_of(problem, weight, memory)
    near = distance_labels(problem.graph, seeds, problem.hops) <= problem.hops
    if reach.drawn is not None:
        near = near[reach.drawn]
    best, steps = _descent(problem, reach, limits, near, iterations)
    value = evaluate(reach, limits, best)
    if reach.drawn is None:
        lam = np.floor(best * _STEPS) / _STEPS
        # What the given seeds cover is a float sum as well, unless all is whole.
        sure = given + value if whole and total < 2**53 else raised(given + value, 4)
        name = "lagrangian" if problem.hops == 1 else "lagrangian over the closure"
        return _bound(min(sure, _whole_total(total, whole)), name, steps, start, lam)
    count = len(reach.drawn)
    share = _most_share(value, count, confidence)
    sampled = min(total, given + share * (total - given) * (1 + 1e-9))
    sampled = math.floor(sampled) if whole and given == math.floor(given) else sampled
    name = f"lagrangian over {count} drawn targets, confidence {confidence:g}"
    proven = online(problem, seeds, np.empty(0))
    if proven.value <= sampled or sampled < covered:
        return _bound(proven.value, proven.method, steps, start)
    return _bound(sampled, name, steps, start, kind="statistical")


def _descent(
    problem: CoverProblem,
    reach: Reach,
    limits: Limits,
    near: npt.NDArray[np.bool_],
    iterations: int,
) -> tuple[Floats, int]:
    """Return (the best multipliers, how many steps)."""
    ball, _ = kernels.ball_heaviness(reach.ptr, reach.ids, reach.own, reach.weight)
    order = limits.order[np.argsort(-ball[limits.order], kind="stable")]
    lower = math.fsum(reach.weight[near])
    whole = bool(np.all(reach.weight == np.floor(reach.weight)))
    lam = np.where(near, 0.5, 1.0)
    best = lam.copy()
    state = np.zeros(6)
    state[kernels.BEST] = math.inf
    state[kernels.THETA] = 1.0
    steps = 0
    while steps < iterations:
        before = float(state[kernels.BEST])
        rounds = min(_ROUNDS, iterations - steps)
        kernels.descend(
            reach.ptr,
            reach.ids,
            reach.own,
            reach.weight,
            order,
            ball,
            np.int64(limits.k),
            limits.costs,
            np.float64(limits.budget),
            np.float64(lower),
            lam,
            best,
            np.int64(rounds),
            np.int64(10),
            state,
        )
        steps += rounds
        now = float(state[kernels.BEST])
        met = now < lower + 1 if whole else now <= lower * (1 + 1e-9)
        still = steps >= 4 * _ROUNDS and before - now < 2e-5 * now
        if met or still or problem.late():
            break
    return best, steps


def online(problem: CoverProblem, rows: npt.ArrayLike, gains: npt.ArrayLike) -> Bound:
    """Return the textbook bound: covered by a prefix, plus the k largest marginals after it.

    Any prefix of the seeds proves a bound, and the least of them is returned: at one
    hop over up to 64 prefixes, at more hops over four, where the largest marginals are
    counted exactly and the others bounded from above (backward recursion).

    Parameters
    ----------
    problem : CoverProblem
    rows : int64 [s]
    gains : float64 [s]
        Not needed for the proof, which counts again; kept for the interface.
    """
    start = time.perf_counter()
    seeds = np.asarray(rows, dtype=np.int64)
    weight = _weights(problem)
    limits = limits_of(problem, seeds)
    whole = bool(np.all(weight == np.floor(weight)))
    total = math.fsum(weight)
    values = _online_near if problem.hops == 1 else _online_far
    value = min(values(problem, seeds, weight, limits), default=total)
    exact = whole and total * max(limits.k, 1) < 2**53 and not len(limits.costs)
    if not exact:
        value = raised(value, 2 * problem.graph.n + problem.graph.m)
    if whole:
        value = math.floor(value)
    return _bound(min(value, _whole_total(total, whole)), "online", 0, start)


def _online_near(problem: CoverProblem, seeds: Rows, weight: Floats, limits: Limits) -> list[float]:
    graph = problem.graph
    gain = kernels.sums_of(graph.out_ptr, graph.out_ids, True, weight)
    covered = np.zeros(graph.n, dtype=np.uint8)
    first = len(problem.warm_start)
    turns = np.unique(np.linspace(first, len(seeds), _PREFIXES).astype(np.int64)).tolist()
    values = []
    for turn in range(len(seeds) + 1):
        if turn in turns:
            # Subtracting left rounding errors; none of them exceeds a part in 10^12.
            after = np.maximum(gain[limits.order], 0.0) + _drift(weight, graph.n)
            values.append(float(weight[covered != 0].sum()) + limits.most(after))
        if turn < len(seeds):
            kernels.commit_marginals(
                graph.out_ptr,
                graph.out_ids,
                graph.in_ptr,
                graph.in_ids,
                weight,
                seeds[turn],
                covered,
                gain,
            )
    return values


def _drift(weight: Floats, n: int) -> float:
    """Return what n subtractions from a sum can have lost; nothing if all is whole."""
    total = float(weight.sum())
    if total < 2**53 and np.all(weight == np.floor(weight)):
        return 0.0
    return total * 4 * n * _UNIT


def _online_far(problem: CoverProblem, seeds: Rows, weight: Floats, limits: Limits) -> list[float]:
    graph, hops, first = problem.graph, np.int64(problem.hops), len(problem.warm_start)
    turns = sorted({max(first, len(seeds) >> shift) for shift in range(4)})
    values = []
    for turn in turns:
        label = distance_labels(graph, seeds[:turn], problem.hops)
        bound = _swap_kernels.bounds_far(graph.out_ptr, graph.out_ids, weight, label, hops)
        bound[seeds[:turn]] = 0.0
        order = limits.order[np.argsort(-bound[limits.order], kind="stable")]
        kernels.top_marginals(
            graph.out_ptr,
            graph.out_ids,
            weight,
            label,
            hops,
            order,
            bound,
            np.int64(max(1, min(limits.k, len(order)))),
            np.int64(20 * (graph.m + graph.n)),
        )
        values.append(float(weight[label != FAR].sum()) + limits.most(bound[limits.order]))
    return values


def _weights(problem: CoverProblem) -> Floats:
    if problem.weights is None:
        return np.ones(problem.graph.n)
    return np.array(problem.weights, dtype=np.float64)


def _whole_total(total: float, whole: bool) -> float:
    return total if whole and total < 2**53 else raised(total, 4)


def _most_share(value: float, count: int, confidence: float) -> float:
    """Return the Clopper-Pearson upper bound of a share of which at most ``value`` were seen."""
    from scipy.special import betaincinv  # noqa: PLC0415 - only sampled bounds need it

    seen = math.floor(value)
    if seen >= count:
        return 1.0
    return min(1.0, float(betaincinv(seen + 1, count - seen, confidence)) * (1 + 1e-9))


def _bound(
    value: float,
    method: str,
    iterations: int,
    start: float,
    weights: Any = None,
    *,
    kind: str = "proven",
) -> Bound:
    return Bound(float(value), kind, method, iterations, time.perf_counter() - start, weights)
