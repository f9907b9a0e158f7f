"""Seeds for cascades, with a bound on how far from the best they can be: OPIM-C.

Tang, Tang, Xiao and Yuan, "Online processing algorithms for influence maximization",
SIGMOD 2018: one half of the reverse-reachable sets chooses the seeds, the other half
judges them, and the number doubles until the two bounds meet.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.core.errors import InputError
from shoal.core.progress import track
from shoal.influence.cascades import (
    IndependentCascade,
    Model,
    check_count,
    check_weights,
)
from shoal.influence.graph import Graph
from shoal.influence.rr_sets import ReverseSets

__all__ = ["InfluenceResult", "influence_max"]

#: Sets of each half to begin with.
FIRST_SETS = 2000
#: Doublings after which no more are tried: 2,000 * 2 ** 19 sets, a billion.
MAX_DOUBLINGS = 20
_SHARE = 1.0 - 1.0 / math.e


@dataclass(frozen=True, slots=True)
class InfluenceResult:
    """Seeds for a cascade model.

    Attributes
    ----------
    seeds : list
        Names of the nodes, in the order of choice.
    rows : int64 [s]
        Their rows.
    gains : float64 [s]
        What each adds by the sets that chose it: optimistic, for its place in the order.
    spread : float
        Unbiased estimate of what all of them reach, from sets that did not choose them.
    lower, upper : float
        With ``confidence``, ``spread`` of these seeds is above ``lower``, and the
        spread of the best seeds below ``upper``.
    ratio : float
        ``lower / upper``: the share of the best that is proven with ``confidence``.
    confidence : float
        1 - delta.
    finished : bool
        The wanted ratio was proven; False if time or sets ran out before.
    sets : int
        Reverse-reachable sets that were drawn, both halves.
    model : str
    seconds : float
    notes : tuple of str
        What a user should know: fewer seeds than asked for, time ran out.
    """

    seeds: list[Any]
    rows: npt.NDArray[np.int64]
    gains: npt.NDArray[np.float64]
    spread: float
    lower: float
    upper: float
    ratio: float
    confidence: float
    finished: bool
    sets: int
    model: str
    seconds: float
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain values."""
        return {
            "seeds": self.seeds,
            "gains": self.gains.tolist(),
            "spread": self.spread,
            "lower": self.lower,
            "upper": self.upper,
            "ratio": self.ratio,
            "confidence": self.confidence,
            "finished": self.finished,
            "sets": self.sets,
            "model": self.model,
            "seconds": self.seconds,
            "notes": list(self.notes),
        }


def influence_max(
    graph: Graph,
    k: int,
    model: Model | None = None,
    *,
    eps: float = 0.1,
    ratio: float | None = None,
    delta: float | None = None,
    weights: npt.ArrayLike | None = None,
    candidates: Iterable[Any] | None = None,
    exclude: Iterable[Any] | None = None,
    time_limit: float | None = None,
    seed: int = 0,
    n_jobs: int = 1,
) -> InfluenceResult:
    """Return ``k`` seeds whose expected spread is near the best, with the proof.

    Parameters
    ----------
    graph : Graph
    k : int
        Seeds, 1 to n.
    model : IndependentCascade or LinearThreshold
        By default weighted cascade.
    eps : float
        The search stops when the seeds are proven to reach 1 - 1/e - eps of the best.
    ratio : float, optional
        Stop at this proven share of the best instead. Above 1 - 1/e no method promises
        it for every graph, but most graphs allow it; if not, the limit of sets or time ends
        the search.
    delta : float, optional
        Chance that the proof fails; 1 / n by default.
    weights : array-like [n], optional
        Worth of each node, finite and not negative.
    candidates, exclude : iterable, optional
        Names of the only nodes that may be chosen, and of those that may not.
    time_limit : float, optional
        Seconds after which no more sets are drawn; what was proven until then is returned.
    seed : int
        The same seed gives the same seeds for any ``n_jobs``.
    n_jobs : int
        Threads that draw sets.

    Returns
    -------
    InfluenceResult

    Raises
    ------
    InputError
        A number, weight, probability or set of candidates is wrong.
    NotFoundError
        A candidate is not in the graph.

    Notes
    -----
    With θ sets in each half, c₁ the hits of the greedy seeds among those that chose
    them, u the k largest numbers of hits left, c₂ the hits among the others and
    L = ln(3 · 20 / delta)::

        lower = ((√(c₂ + 2L/9) − √(L/2))² − L/18) · n / θ
        upper = (√(min(c₁ + u, c₁ / (1 − 1/e)) + L/2) + √(L/2))² · n / θ
    """
    began = time.perf_counter()
    model = model or IndependentCascade()
    check_count(k, "k")
    if k > graph.n:
        raise InputError(f"is above the graph's {graph.n} nodes", field="k", value=k)
    if not 0.0 < eps < _SHARE:
        raise InputError("must be between 0 and 1 - 1/e", field="eps", value=eps)
    if ratio is not None and not 0.0 < ratio < 1.0:
        raise InputError("must be between 0 and 1", field="ratio", value=ratio)
    wanted = _SHARE - eps if ratio is None else ratio
    confidence_gap = 1.0 / max(2, graph.n) if delta is None else delta
    if not 0.0 < confidence_gap < 1.0:
        raise InputError("must be between 0 and 1", field="delta", value=delta)
    if time_limit is not None and not time_limit > 0.0:
        raise InputError("must be above 0 seconds", field="time_limit", value=time_limit)
    worth = check_weights(graph, weights)
    if len(worth) and not worth.any():
        raise InputError("no node is worth anything", field="weights")
    allowed = _allowed(graph, candidates, exclude)
    check_count(n_jobs, "n_jobs")

    choosing, judging = (
        ReverseSets(graph, model, seed=seed, stream=stream, weights=worth, n_jobs=n_jobs)
        for stream in ("choose", "judge")
    )
    slack = math.log(3.0 * MAX_DOUBLINGS / confidence_gap)
    notes: list[str] = []
    finished = False
    theta = FIRST_SETS
    for step in track(range(MAX_DOUBLINGS), "drawing reverse-reachable sets"):
        choosing.grow(theta)
        judging.grow(theta)
        rows, gains, left = choosing.cover(k, allowed)
        lower, upper, hits = _bounds(choosing, judging, rows, int(gains.sum()) + left, slack)
        finished = lower >= wanted * upper
        if finished:
            break
        if time_limit is not None and time.perf_counter() - began > time_limit:
            notes.append(f"time ran out after {2 * theta:,} sets: {lower / upper:.3f} is proven")
            break
        if step + 1 < MAX_DOUBLINGS:
            theta *= 2
    if len(rows) < k:
        notes.append(f"{len(rows)} of {k} seeds hit every set that was drawn; more add nothing")
    return InfluenceResult(
        seeds=graph.labels(rows),
        rows=rows,
        gains=gains.astype(np.float64) * (choosing.total / choosing.count),
        spread=hits * judging.total / judging.count,
        lower=lower,
        upper=upper,
        ratio=lower / upper if upper else 0.0,
        confidence=1.0 - confidence_gap,
        finished=finished,
        sets=2 * theta,
        model=model.name,
        seconds=time.perf_counter() - began,
        notes=tuple(notes),
    )


def _bounds(
    choosing: ReverseSets,
    judging: ReverseSets,
    rows: npt.NDArray[np.int64],
    reachable: int,
    slack: float,
) -> tuple[float, float, int]:
    """Return (lower bound of the seeds' spread, upper bound of the best's, hits that judge)."""
    chosen = choosing.hits(rows)
    hits = judging.hits(rows)
    root = math.sqrt(slack / 2.0)
    low = max(0.0, math.sqrt(hits + 2.0 * slack / 9.0) - root) ** 2 - slack / 18.0
    high = (math.sqrt(min(reachable, chosen / _SHARE) + slack / 2.0) + root) ** 2
    scale = judging.total / judging.count
    return max(0.0, low) * scale, min(choosing.total, high * scale), hits


def _allowed(
    graph: Graph, candidates: Iterable[Any] | None, exclude: Iterable[Any] | None
) -> npt.NDArray[np.uint8] | None:
    if candidates is None and exclude is None:
        return None
    allowed = np.ones(graph.n, dtype=np.uint8)
    if candidates is not None:
        allowed[:] = 0
        allowed[graph.rows(candidates, field="candidates")] = 1
    if exclude is not None:
        allowed[graph.rows(exclude, field="exclude")] = 0
    if not allowed.any():
        raise InputError("no node may be chosen", field="candidates")
    return allowed
