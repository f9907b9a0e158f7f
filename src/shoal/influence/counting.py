"""Counting, exactly and apart from the solvers: who is within d hops of whom."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from shoal.core.errors import InputError
from shoal.core.seeds import philox
from shoal.influence import _coverage_kernels as kernels
from shoal.influence.graph import Graph
from shoal.influence.problem import MAX_HOPS, make_problem

__all__ = ["FAR", "ball_sizes", "coverage", "distance_labels", "marginal_gains"]

Labels: TypeAlias = npt.NDArray[np.int8]
Floats: TypeAlias = npt.NDArray[np.float64]

#: The label of a node that no seed reaches.
FAR = kernels.FAR

#: Registers of a node in the approximate count: standard error 1.04 / sqrt(256) = 6.5 %.
_REGISTERS = 256


def distance_labels(graph: Graph, rows: npt.ArrayLike, hops: int = 1) -> Labels:
    """Return how many hops each node is from the nearest of ``rows``, int8 [n].

    Parameters
    ----------
    graph : Graph
    rows : int64 [s]
        Rows, not names.
    hops : int
        1 to 126; farther nodes have label 127.
    """
    seeds = np.asarray(rows, dtype=np.int64)
    if seeds.ndim != 1 or (len(seeds) and not 0 <= seeds.min() <= seeds.max() < graph.n):
        raise InputError(f"must be rows from 0 to {graph.n - 1}", field="rows")
    return np.asarray(kernels.distances(graph.out_ptr, graph.out_ids, seeds, np.int64(_hops(hops))))


def coverage(graph: Graph, seeds: Iterable[Any], hops: int = 1, *, weights: Any = None) -> float:
    """Return the weight of the nodes within ``hops`` of the seeds, the seeds included.

    Parameters
    ----------
    graph : Graph
    seeds : iterable of names
        Repetitions count once.
    hops : int
        1 to 126.
    weights : array-like [n] or mapping, optional
        What each node counts, one without it.

    Raises
    ------
    NotFoundError
        A seed is not in the graph.
    InputError
        Hops or weights are wrong.
    """
    labels = distance_labels(graph, graph.rows(seeds, field="seeds"), hops)
    numbers = _weights(graph, weights)
    within = labels <= hops
    return float(np.count_nonzero(within)) if numbers is None else math.fsum(numbers[within])


def ball_sizes(
    graph: Graph, hops: int = 1, *, weights: Any = None, approx: bool = False, seed: int = 0
) -> Floats:
    """Return the weight within ``hops`` of each node, itself included, float64 [n].

    Parameters
    ----------
    graph : Graph
    hops : int
        1 to 126.
    weights : array-like [n] or mapping, optional
    approx : bool
        Count with HyperLogLog registers that travel along the arcs (HyperBall: Boldi
        and Vigna 2013) in O(hops * m) instead of one search a node: standard error
        6.5 %, counts only.
    seed : int
        Of the approximate count.
    """
    reach = _hops(hops)
    numbers = _weights(graph, weights)
    if not approx:
        weight = np.ones(graph.n) if numbers is None else numbers
        rows = np.arange(graph.n, dtype=np.int64)
        return np.asarray(
            kernels.ball_weights(graph.out_ptr, graph.out_ids, np.int64(reach), weight, rows)
        )
    if numbers is not None:
        raise InputError("are not counted approximately", field="weights")
    registers = _own_registers(graph.n, seed)
    for _ in range(reach):
        registers = kernels.spread_registers(graph.out_ptr, graph.out_ids, registers)
    return _estimates(registers, graph.n)


def marginal_gains(
    graph: Graph, seeds: Iterable[Any], hops: int = 1, *, weights: Any = None
) -> Floats:
    """Return what each node would add to the coverage of ``seeds``, float64 [n]."""
    labels = distance_labels(graph, graph.rows(seeds, field="seeds"), hops)
    numbers = _weights(graph, weights)
    weight = np.where(labels > hops, 1.0 if numbers is None else numbers, 0.0)
    rows = np.arange(graph.n, dtype=np.int64)
    return np.asarray(
        kernels.ball_weights(graph.out_ptr, graph.out_ids, np.int64(_hops(hops)), weight, rows)
    )


def _hops(hops: int) -> int:
    if isinstance(hops, bool) or not isinstance(hops, int | np.integer):
        raise InputError("must be a whole number", field="hops", value=hops)
    if not 1 <= hops <= MAX_HOPS:
        raise InputError(f"must be 1 to {MAX_HOPS}", field="hops", value=hops)
    return int(hops)


def _weights(graph: Graph, weights: Any) -> Floats | None:
    return None if weights is None else make_problem(graph, target=1.0, weights=weights).weights


def _own_registers(n: int, seed: int) -> npt.NDArray[np.uint8]:
    """Return registers that count each node by itself: a random register, a geometric level."""
    generator = philox(seed, "influence", "ball sizes")
    registers = np.zeros((n, _REGISTERS), dtype=np.uint8)
    level = np.minimum(generator.geometric(0.5, n), 255)
    registers[np.arange(n), generator.integers(0, _REGISTERS, n)] = level
    return registers


def _estimates(registers: npt.NDArray[np.uint8], n: int) -> Floats:
    """Return the counts, with linear counting while registers are empty (Flajolet 2007)."""
    width = registers.shape[1]
    alpha = 0.7213 / (1 + 1.079 / width)
    raw = alpha * width * width / np.ldexp(1.0, -registers.astype(np.int32)).sum(axis=1)
    empty = np.count_nonzero(registers == 0, axis=1)
    small = width * np.log(width / np.maximum(empty, 1))
    counted = np.where((raw <= 2.5 * width) & (empty > 0), small, raw)
    return np.asarray(np.clip(counted, 1.0, float(n)), dtype=np.float64)
