"""How influence travels by chance: independent cascade and linear threshold, and their spread.

Both models are Kempe, Kleinberg and Tardos (KDD 2003), "Maximizing the spread of
influence through a social network". With ``p = 1`` and ``d`` steps independent cascade
is the d-hop coverage of :func:`shoal.influence.max_cover`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import stats

from shoal.core.errors import InputError
from shoal.core.seeds import derive_seed, philox
from shoal.influence import _cascade_kernels as kernels
from shoal.influence.graph import Graph

__all__ = ["IndependentCascade", "LinearThreshold", "Model", "Spread", "check_weights", "spread"]

_Floats: TypeAlias = npt.NDArray[np.float64]
_NONE: _Floats = np.empty(0, dtype=np.float64)
#: Probabilities of the trivalency model, drawn evenly for each arc.
TRIVALENCY = (0.1, 0.01, 0.001)


@dataclass(frozen=True, slots=True)
class IndependentCascade:
    """Whoever is reached gets one chance to influence each node it points to.

    Attributes
    ----------
    p : "wc", "values", "trivalency" or float
        Chance of an arc (u, v): ``"wc"`` (weighted cascade) is 1 / indegree of v,
        ``"values"`` the graph's own numbers, ``"trivalency"`` one of 0.1, 0.01 and
        0.001 at random, a number the same for all.
    seed : int
        Of the trivalency draw.
    """

    p: float | Literal["wc", "values", "trivalency"] = "wc"
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.p, str):
            if self.p not in ("wc", "values", "trivalency"):
                raise InputError(
                    "must be wc, values, trivalency or a probability", field="p", value=self.p
                )
        elif isinstance(self.p, bool) or not 0.0 <= self.p <= 1.0:
            raise InputError("must be a probability, 0 to 1", field="p", value=self.p)

    @property
    def name(self) -> str:
        """Say which model this is, for tables."""
        return f"independent cascade, p = {self.p}"

    def in_probabilities(self, graph: Graph) -> _Floats:
        """Return the chance of each arc in the order of ``in_ids``, float64 [m].

        Raises
        ------
        InputError
            A value of the graph is no probability; its arc is named.
        """
        degrees = graph.in_degrees()
        if self.p == "wc":
            return np.repeat(1.0 / np.maximum(degrees, 1), degrees)
        if self.p == "trivalency":
            kinds = philox(self.seed, "trivalency").integers(len(TRIVALENCY), size=graph.m)
            return np.asarray(TRIVALENCY)[kinds]
        if self.p == "values":
            return _probabilities(graph)
        return np.full(graph.m, float(self.p))

    def inverse_logs(self, graph: Graph) -> _Floats:
        """Return 1 / log(1 - p) of the arcs into each node, NaN where p differs; float64 [n]."""
        degrees = graph.in_degrees()
        if self.p == "wc":
            chance = 1.0 / np.maximum(degrees, 1)
        elif not isinstance(self.p, str):
            chance = np.full(graph.n, float(self.p))
        else:
            return np.full(graph.n, np.nan)
        with np.errstate(divide="ignore"):
            # p = 1 gives -0 (no arc is skipped), p = 0 gives -inf (all are).
            return np.asarray(1.0 / np.log1p(-chance), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class LinearThreshold:
    """A node is reached once the weights of those reached around it pass its random threshold.

    Attributes
    ----------
    weights : "uniform" or "values"
        Weight of an arc (u, v): 1 / indegree of v, or the graph's own numbers,
        whose sum at each node must not be above 1.
    """

    weights: Literal["uniform", "values"] = "uniform"

    def __post_init__(self) -> None:
        if self.weights not in ("uniform", "values"):
            raise InputError("must be uniform or values", field="weights", value=self.weights)

    @property
    def name(self) -> str:
        """Say which model this is, for tables."""
        return f"linear threshold, {self.weights} weights"

    def in_weights(self, graph: Graph) -> _Floats:
        """Return the weight of each arc in the order of ``in_ids``, float64 [m].

        Raises
        ------
        InputError
            A weight is outside 0 to 1, or those of a node have a sum above 1.
        """
        degrees = graph.in_degrees()
        if self.weights == "uniform":
            return np.repeat(1.0 / np.maximum(degrees, 1), degrees)
        numbers = _probabilities(graph)
        sums = _sums(graph, numbers)
        wrong = np.flatnonzero(sums > 1.0 + 1e-9)
        if len(wrong):
            raise InputError(
                f"the weights of the arcs into node {graph.labels(wrong[:1])[0]!r} have a sum "
                "above 1",
                field="values",
                value=float(sums[wrong[0]]),
            )
        return numbers


Model: TypeAlias = IndependentCascade | LinearThreshold


@dataclass(frozen=True, slots=True)
class Spread:
    """How much a set of seeds reaches on average.

    Attributes
    ----------
    mean : float
        Nodes (or weight of nodes), the seeds included.
    low, high : float
        Interval that holds the true mean with ``confidence``.
    confidence : float
    samples : int
        Simulations, or reverse-reachable sets.
    method : "simulate" or "reverse"
        The interval of "reverse" is exact (Clopper and Pearson), that of "simulate"
        Student's.
    """

    mean: float
    low: float
    high: float
    confidence: float
    samples: int
    method: str


def spread(
    graph: Graph,
    seeds: Iterable[Any],
    model: Model | None = None,
    *,
    n_sim: int = 1000,
    seed: int = 0,
    weights: npt.ArrayLike | None = None,
    confidence: float = 0.99,
    method: Literal["simulate", "reverse"] = "simulate",
    n_jobs: int = 1,
) -> Spread:
    """Return the expected reach of seeds with an interval.

    Parameters
    ----------
    graph : Graph
    seeds : iterable
        Names of nodes.
    model : IndependentCascade or LinearThreshold
        By default weighted cascade.
    n_sim : int
        Simulations; with ``method="reverse"`` sets, each cheaper by far and noisier.
    seed : int
        The same seed gives the same luck for any seeds and any ``n_jobs``.
    weights : array-like [n], optional
        Worth of each node, finite and not negative.
    confidence : float
        Of the interval.
    method : "simulate" or "reverse"
        Run the model forward, or count how many random reverse-reachable sets are hit.
    n_jobs : int
        Threads.

    Raises
    ------
    InputError
        A count, weight or probability is wrong.
    NotFoundError
        A seed is not in the graph.
    """
    model = model or IndependentCascade()
    rows = np.unique(graph.rows(seeds, field="seeds"))
    check_count(n_sim, "n_sim")
    check_count(n_jobs, "n_jobs")
    if not 0.0 < confidence < 1.0:
        raise InputError("must be between 0 and 1", field="confidence", value=confidence)
    worth = check_weights(graph, weights)
    if method == "reverse":
        from shoal.influence.rr_sets import ReverseSets  # noqa: PLC0415  sets know models

        if graph.n == 0 or (len(worth) and not worth.any()):
            return Spread(0.0, 0.0, 0.0, confidence, 0, method)
        sets = ReverseSets(graph, model, seed=seed, weights=worth, n_jobs=n_jobs)
        sets.grow(n_sim)
        hits = sets.hits(rows)
        tail = (1.0 - confidence) / 2.0
        low = 0.0 if hits == 0 else float(stats.beta.ppf(tail, hits, n_sim - hits + 1))
        high = 1.0 if hits == n_sim else float(stats.beta.isf(tail, hits + 1, n_sim - hits))
        scale = sets.total
        return Spread(scale * hits / n_sim, scale * low, scale * high, confidence, n_sim, method)
    if method != "simulate":
        raise InputError("must be simulate or reverse", field="method", value=method)
    reached = _simulate(graph, rows, model, (n_sim, seed, n_jobs), worth)
    mean = float(reached.mean())
    half = 0.0
    if n_sim > 1:
        error = float(reached.std(ddof=1)) / math.sqrt(n_sim)
        half = error * float(stats.t.isf((1.0 - confidence) / 2.0, n_sim - 1))
    elif len(rows):
        half = math.inf
    return Spread(mean, max(0.0, mean - half), mean + half, confidence, n_sim, method)


def stream_key(seed: int, stream: str) -> np.uint64:
    """Return the 64 bits that a stream of random numbers starts from."""
    return np.uint64(derive_seed(seed, "cascades", stream))


def check_count(value: object, field: str) -> int:
    """Return a whole number of at least one.

    Raises
    ------
    InputError
        It is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise InputError("must be a whole number, at least 1", field=field, value=value)
    return int(value)


def check_weights(graph: Graph, weights: npt.ArrayLike | None) -> _Floats:
    """Return node weights, empty for none.

    Raises
    ------
    InputError
        Their number is wrong, or one is negative or not finite; the node is named.
    """
    if weights is None:
        return _NONE
    worth = np.ascontiguousarray(weights, dtype=np.float64)
    if worth.shape != (graph.n,):
        raise InputError(f"{worth.shape} weights for {graph.n} nodes", field="weights")
    wrong = np.flatnonzero(~(np.isfinite(worth) & (worth >= 0.0)))
    if len(wrong):
        raise InputError(
            f"of node {graph.labels(wrong[:1])[0]!r} is negative or not finite",
            field="weights",
            value=float(worth[wrong[0]]),
        )
    return worth


def _simulate(
    graph: Graph,
    rows: npt.NDArray[np.int64],
    model: Model,
    work: tuple[int, int, int],
    worth: _Floats,
) -> _Floats:
    n_sim, seed, n_jobs = work
    linear = isinstance(model, LinearThreshold)
    arriving = (
        model.in_weights(graph)
        if isinstance(model, LinearThreshold)
        else model.in_probabilities(graph)
    )
    # The reversed graph of the reversed graph has the arcs' numbers in the order of `out_ids`.
    leaving = Graph(
        graph.in_ptr,
        graph.in_ids,
        graph.out_ptr,
        graph.out_ids,
        directed=graph.directed,
        values=arriving,
    ).in_values()
    run = kernels.simulate_thresholds if linear else kernels.simulate_cascades
    reached = np.zeros(n_sim)
    key = stream_key(seed, "simulate")
    cuts = np.linspace(0, n_sim, min(n_jobs, n_sim) + 1).astype(np.int64)

    def work_on(part: int) -> None:
        a, b = int(cuts[part]), int(cuts[part + 1])
        run(
            graph.n, graph.out_ptr, graph.out_ids, leaving, worth, rows, key, a, b - a, reached[a:b]
        )

    if len(cuts) == 2:
        work_on(0)
    else:
        with ThreadPoolExecutor(len(cuts) - 1) as pool:
            list(pool.map(work_on, range(len(cuts) - 1)))
    return reached


def _probabilities(graph: Graph) -> _Floats:
    numbers = graph.in_values()
    wrong = np.flatnonzero(~((numbers >= 0.0) & (numbers <= 1.0)))
    if len(wrong):
        place = int(wrong[0])
        target = int(np.searchsorted(graph.in_ptr, place, side="right")) - 1
        source, end = graph.labels([int(graph.in_ids[place]), target])
        raise InputError(
            f"of the arc {source!r} to {end!r} is not between 0 and 1",
            field="values",
            value=float(numbers[place]),
        )
    return numbers


def _sums(graph: Graph, numbers: _Floats) -> _Floats:
    targets = np.repeat(np.arange(graph.n), graph.in_degrees())
    return np.bincount(targets, weights=numbers, minlength=graph.n).astype(np.float64)
