"""What is asked of a solver: the graph, the limits, and which nodes may be chosen."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from shoal.core.errors import InputError, NotFoundError
from shoal.influence.graph import Graph, Rows

__all__ = ["MAX_HOPS", "CoverProblem", "FixedPoint", "fixed_point", "make_problem"]

Floats: TypeAlias = npt.NDArray[np.float64]
Mask: TypeAlias = npt.NDArray[np.uint8]

#: Most hops: distances are int8, and 127 means far.
MAX_HOPS = 126

#: Bits that the total of all weights may fill when they become integers.
_TOTAL_BITS = 61


@dataclass(frozen=True, slots=True)
class FixedPoint:
    """Weights as integers, so that sums are exact and no order of adding changes them.

    Attributes
    ----------
    units : int64 [n]
        The weights in units of ``unit``; their total is below 2**61.
    unit : float
        A power of two: ``units * unit`` are the weights, rounded to 2**-61 of their total.
    total : int
        Sum of ``units``.
    """

    units: Rows
    unit: float
    total: int


@dataclass(frozen=True)
class CoverProblem:
    """A checked question: which nodes reach the most within ``hops``. See :func:`make_problem`.

    Attributes
    ----------
    graph : Graph
    k : int
        Most seeds, those of ``warm_start`` counted.
    hops : int
        1 to 126.
    weights : float64 [n], optional
        What each node counts; None: one each.
    costs : float64 [n], optional
        What choosing each node costs.
    budget : float, optional
        Most that all seeds together may cost.
    target : float, optional
        Share in (0, 1] of the total weight; the choice ends when it is reached.
    allowed : uint8 [n], optional
        1 where a node may be chosen; None: every one.
    warm_start : int64 [s]
        Rows that are the first seeds and always stay.
    deadline : float, optional
        On the clock of ``time.monotonic()``.
    n_jobs : int
        Threads.
    seed : int
        Of everything that is drawn.
    watch : callable, optional
        Called between slices of work with the number of seeds so far.
    """

    graph: Graph
    k: int
    hops: int = 1
    weights: Floats | None = None
    costs: Floats | None = None
    budget: float | None = None
    target: float | None = None
    allowed: Mask | None = None
    warm_start: Rows = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    deadline: float | None = None
    n_jobs: int = 1
    seed: int = 0
    watch: Callable[[int], None] | None = field(default=None, repr=False, compare=False)

    @property
    def total(self) -> float:
        """Weight of all nodes."""
        return float(self.graph.n) if self.weights is None else math.fsum(self.weights)

    @property
    def has_costs(self) -> bool:
        """Whether the seeds' costs bear on the choice."""
        return self.costs is not None

    def late(self) -> bool:
        """Say whether the deadline has passed."""
        return self.deadline is not None and time.monotonic() >= self.deadline


def fixed_point(weights: Floats) -> FixedPoint:
    """Return finite weights >= 0 as integers with a total below 2**61.

    The unit is a power of two, so weights whose bits fit are kept exactly; whole
    numbers with a total below 2**53 always are.
    """
    total = math.fsum(weights)
    if total <= 0:
        return FixedPoint(np.zeros(len(weights), dtype=np.int64), 1.0, 0)
    # frexp: total = f * 2**e with f in [.5, 1). Rounding adds at most n/2 units (n < 2**31).
    exponent = _TOTAL_BITS - 1 - math.frexp(total)[1]
    units = np.rint(np.ldexp(weights, exponent)).astype(np.int64)
    return FixedPoint(units, math.ldexp(1.0, -exponent), int(units.sum()))


def make_problem(
    graph: Graph,
    k: int | None = None,
    hops: int = 1,
    *,
    weights: npt.ArrayLike | Mapping[Any, float] | None = None,
    costs: npt.ArrayLike | Mapping[Any, float] | None = None,
    budget: float | None = None,
    target: float | None = None,
    candidates: Iterable[Any] | None = None,
    exclude: Iterable[Any] | None = None,
    warm_start: Iterable[Any] | None = None,
    time_limit: float | None = None,
    n_jobs: int = 1,
    seed: int = 0,
) -> CoverProblem:
    """Return the checked problem.

    Parameters
    ----------
    graph : Graph
    k : int, optional
        Most seeds, 1 to n. Without it ``budget`` or ``target`` must end the choice.
    hops : int
        How far a seed reaches, 1 to 126.
    weights, costs : array-like [n] or mapping, optional
        In the order of rows, or by node name with every node named. Weights are
        finite and >= 0, costs finite and > 0.
    budget : float, optional
        Most that the seeds may cost together; needs ``costs``.
    target : float, optional
        Share in (0, 1] of the total weight to reach.
    candidates, exclude : iterable of names, optional
        Who may be chosen, and who may not.
    warm_start : iterable of names, optional
        The first seeds, in this order, whether they are candidates or not.
    time_limit : float, optional
        Seconds; what was found by then is the answer.
    n_jobs : int
        Threads, -1 for all processors.
    seed : int

    Raises
    ------
    InputError
        Naming the field, and the node or row.
    """
    if not isinstance(graph, Graph):
        raise InputError(
            "must be a shoal.influence.Graph", field="graph", value=type(graph).__name__
        )
    if k is None and budget is None and target is None:
        raise InputError(
            "say how many seeds to choose",
            field="k",
            hint="give k=, or budget= with costs=, or target=",
        )
    if graph.n == 0 and k is not None and _integer(k, "k") >= 1:
        raise InputError("the graph has no nodes", field="graph")
    limit = graph.n if k is None else _integer(k, "k")
    if k is not None and not 1 <= limit <= graph.n:
        raise InputError(f"must be 1 to {graph.n}, the number of nodes", field="k", value=k)
    if not 1 <= _integer(hops, "hops") <= MAX_HOPS:
        raise InputError(f"must be 1 to {MAX_HOPS}", field="hops", value=hops)
    weight = _numbers(graph, weights, "weights", positive=False)
    cost = _numbers(graph, costs, "costs", positive=True)
    if budget is not None:
        budget = _number(budget, "budget")
        if cost is None:
            raise InputError("needs costs", field="budget", hint="or give k=, a number of seeds")
        if not budget > 0 or math.isinf(budget):
            raise InputError("must be finite and above 0", field="budget", value=budget)
    elif cost is not None and target is None:
        raise InputError("bear on nothing without a budget or a target", field="costs")
    if target is not None:
        target = _number(target, "target")
        if not 0 < target <= 1:
            raise InputError("must be a share in (0, 1]", field="target", value=target)
    first = _first_seeds(graph, warm_start, limit, cost, budget)
    jobs = _integer(n_jobs, "n_jobs")
    if jobs != -1 and jobs < 1:
        raise InputError("must be at least 1, or -1 for all processors", field="n_jobs", value=jobs)
    deadline = None
    if time_limit is not None:
        seconds = _number(time_limit, "time_limit")
        if not seconds > 0:
            raise InputError("must be above 0 seconds", field="time_limit", value=time_limit)
        deadline = time.monotonic() + seconds
    return CoverProblem(
        graph=graph,
        k=limit,
        hops=int(hops),
        weights=weight,
        costs=cost,
        budget=budget,
        target=target,
        allowed=_allowed(graph, candidates, exclude, first),
        warm_start=first,
        deadline=deadline,
        n_jobs=jobs,
        seed=_integer(seed, "seed"),
    )


def _integer(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise InputError("must be a whole number", field=name, value=value)
    return int(value)


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise InputError("must be a number", field=name, value=value)
    if math.isnan(value):
        raise InputError("must be a number", field=name, value=value)
    return float(value)


def _numbers(graph: Graph, values: Any, name: str, *, positive: bool) -> Floats | None:
    """Return one finite number of each node, from an array or from a mapping by name."""
    if values is None:
        return None
    if isinstance(values, Mapping):
        rows = _rows(graph, list(values), name)
        numbers = np.full(graph.n, np.nan)
        given = np.zeros(graph.n, dtype=bool)
        numbers[rows] = _floats(list(values.values()), name)
        given[rows] = True
        if not given.all():
            row = int(np.flatnonzero(~given)[0])
            raise InputError(f"node {graph.labels([row])[0]!r} has none", field=name)
    else:
        numbers = _floats(values, name)
        if numbers.shape != (graph.n,):
            raise InputError(
                f"must be one number for each of {graph.n} nodes", field=name, value=numbers.shape
            )
    wrong = ~np.isfinite(numbers) | ((numbers <= 0) if positive else (numbers < 0))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise InputError(
            f"of node {graph.labels([row])[0]!r} must be finite and "
            + ("above 0" if positive else "not below 0"),
            field=name,
            value=float(numbers[row]),
            row=row + 1,
        )
    return numbers


def _floats(values: Any, name: str) -> Floats:
    try:
        return np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError("must be numbers", field=name) from None


def _rows(graph: Graph, names: Iterable[Any], name: str) -> Rows:
    if isinstance(names, str | bytes):
        raise InputError("must be several nodes, not one text", field=name, value=names)
    try:
        return graph.rows(names, field=name)
    except NotFoundError as error:
        raise InputError(error.message) from None


def _first_seeds(
    graph: Graph,
    names: Iterable[Any] | None,
    limit: int,
    costs: Floats | None,
    budget: float | None,
) -> Rows:
    if names is None:
        return np.empty(0, dtype=np.int64)
    rows = _rows(graph, names, "warm_start")
    unique, count = np.unique(rows, return_counts=True)
    if len(unique) < len(rows):
        twice = graph.labels([unique[np.argmax(count > 1)]])[0]
        raise InputError("names a node twice", field="warm_start", value=twice)
    if len(rows) > limit:
        raise InputError(f"has {len(rows)} nodes and k is {limit}", field="warm_start")
    if costs is not None and budget is not None and costs[rows].sum() > budget:
        raise InputError(
            f"costs {costs[rows].sum():g} and the budget is {budget:g}", field="warm_start"
        )
    return rows


def _allowed(
    graph: Graph, candidates: Iterable[Any] | None, exclude: Iterable[Any] | None, first: Rows
) -> Mask | None:
    if candidates is None and exclude is None:
        return None
    mask = np.ones(graph.n, dtype=np.uint8)
    if candidates is not None:
        mask[:] = 0
        mask[_rows(graph, candidates, "candidates")] = 1
        if not mask.any():
            raise InputError("names no node", field="candidates")
    if exclude is not None:
        mask[_rows(graph, exclude, "exclude")] = 0
        if not mask.any() and not len(first):
            raise InputError("leaves no node to choose", field="exclude")
    return mask
