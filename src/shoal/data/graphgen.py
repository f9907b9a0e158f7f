"""Generated graphs: the usual random models, as arrays of arcs, for tests, training and benchmarks.

The same seed gives the same arcs to the last bit, whatever the machine. Loops and
repeated arcs are left in where the model makes them; whoever builds a graph drops
and counts them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from shoal.core.errors import InputError, LimitError
from shoal.core.seeds import philox

__all__ = [
    "GeneratedGraph",
    "barabasi_albert",
    "erdos_renyi",
    "power_law",
    "rmat",
    "stochastic_blocks",
    "watts_strogatz",
]

_Ids: TypeAlias = npt.NDArray[np.int64]

#: Drawn at once, so that memory stays in bounds at tens of millions of arcs.
_CHUNK = 1 << 20


@dataclass(frozen=True, eq=False)
class GeneratedGraph:
    """Arcs of a generated graph.

    Attributes
    ----------
    source, target : int64 [e]
        Nodes 0 to ``n - 1``; ``source`` influences ``target``.
    n : int
        Nodes, isolated ones too.
    directed : bool
        False: each pair stands once and means both directions.
    """

    source: _Ids
    target: _Ids
    n: int
    directed: bool

    def __len__(self) -> int:
        return len(self.source)


def rmat(
    scale: int,
    arcs: int,
    *,
    probabilities: Sequence[float] = (0.57, 0.19, 0.19, 0.05),
    shuffle: bool = True,
    seed: int = 0,
) -> GeneratedGraph:
    """Return a directed R-MAT graph of ``2 ** scale`` nodes (Chakrabarti et al., SDM 2004).

    Parameters
    ----------
    scale : int
        1 to 30.
    arcs : int
        Arcs drawn; repeated ones are among them.
    probabilities : four floats
        Of the quadrants a, b, c, d; those of Graph500 by default.
    shuffle : bool
        Give the nodes random ids; otherwise low ids have high degrees.
    seed : int
    """
    _whole(scale, "scale", 1, 30)
    _whole(arcs, "arcs", 0)
    a, b, c, _ = _shares(probabilities)
    rng = philox(seed, "rmat")
    source, target = np.empty(arcs, dtype=np.int64), np.empty(arcs, dtype=np.int64)
    for start in range(0, arcs, _CHUNK):
        count = min(_CHUNK, arcs - start)
        u, v = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
        for _ in range(scale):
            draw = rng.random(count, dtype=np.float32)
            u = 2 * u + (draw >= a + b)
            v = 2 * v + (((draw >= a) & (draw < a + b)) | (draw >= a + b + c))
        source[start : start + count], target[start : start + count] = u, v
    if shuffle:
        new = philox(seed, "rmat", "ids").permutation(1 << scale)
        source, target = new[source], new[target]
    return GeneratedGraph(source, target, 1 << scale, True)


def barabasi_albert(n: int, links: int, *, directed: bool = False, seed: int = 0) -> GeneratedGraph:
    """Return a graph grown by preferential attachment (Barabási and Albert, Science 1999).

    Drawn at once by the copying form of Batagelj and Brandes (Phys. Rev. E 71, 2005,
    algorithm 5): an end of an earlier arc is a node with the chance of its degree. A
    few loops and repeated arcs occur.

    Parameters
    ----------
    n : int
        Nodes.
    links : int
        Arcs that each new node brings, from 1.
    directed : bool
        True: the older node influences the newer one, which chose it.
    seed : int
    """
    _whole(n, "n", 1)
    _whole(links, "links", 1)
    count = n * links
    newer = np.repeat(np.arange(n, dtype=np.int64), links)
    # Place 2i holds the newer end of arc i, place 2i + 1 a copy of a place up to 2i.
    copied = (philox(seed, "barabasi_albert").random(count) * (2 * np.arange(count) + 1)).astype(
        np.int64
    )
    while True:
        odd = np.flatnonzero(copied & 1)
        if not len(odd):
            break
        copied[odd] = copied[copied[odd] >> 1]
    older = newer[copied >> 1]
    return GeneratedGraph(older, newer, n, directed)


def power_law(
    n: int,
    mean_degree: float,
    *,
    exponent: float = 2.5,
    correlation: float = 0.5,
    directed: bool = True,
    seed: int = 0,
) -> GeneratedGraph:
    """Return a graph whose degrees fall by a power: Chung and Lu's model (Ann. Comb. 2002).

    Each end of an arc is drawn with the chance of its node's weight, and weights are
    ranks to the power of ``-1 / (exponent - 1)``.

    Parameters
    ----------
    n : int
        Nodes.
    mean_degree : float
        Arcs a node.
    exponent : float
        Of the degrees' distribution, above 1; real graphs have 2 to 3.
    correlation : float
        Share of nodes whose place in the order is the same for both directions, 0 to 1.
    directed : bool
    seed : int
    """
    _whole(n, "n", 1)
    _positive(mean_degree, "mean_degree")
    if not exponent > 1:
        raise InputError("must be above 1", field="exponent", value=exponent)
    _chance(correlation, "correlation")
    rng = philox(seed, "power_law")
    arcs = round(n * mean_degree)
    weight = np.arange(1, n + 1, dtype=np.float64) ** (-1.0 / (exponent - 1.0))
    edges = np.cumsum(weight)
    order = rng.permutation(n)
    other = order.copy()
    moved = np.flatnonzero(rng.random(n) >= correlation)
    other[moved] = other[rng.permutation(moved)]
    ends = [
        chosen[np.minimum(np.searchsorted(edges, rng.random(arcs) * edges[-1], "right"), n - 1)]
        for chosen in (order, other if directed else order)
    ]
    return GeneratedGraph(ends[0], ends[1], n, directed)


def erdos_renyi(n: int, p: float, *, directed: bool = True, seed: int = 0) -> GeneratedGraph:
    """Return G(n, p): each pair of nodes is an arc with chance ``p``, none twice, no loop."""
    _whole(n, "n", 1)
    _chance(p, "p")
    source, target = _block(philox(seed, "erdos_renyi"), n, n, p, same=True, directed=directed)
    return GeneratedGraph(source, target, n, directed)


def watts_strogatz(n: int, neighbours: int, rewire: float, *, seed: int = 0) -> GeneratedGraph:
    """Return a small world (Watts and Strogatz, Nature 1998), undirected.

    Parameters
    ----------
    n : int
        Nodes on a ring.
    neighbours : int
        Even; each node is joined to half as many on each side.
    rewire : float
        Chance that an edge's far end goes to a random other node.
    seed : int
    """
    _whole(n, "n", 1)
    _whole(neighbours, "neighbours", 2, n - 1)
    if neighbours % 2:
        raise InputError("must be even", field="neighbours", value=neighbours)
    _chance(rewire, "rewire")
    rng = philox(seed, "watts_strogatz")
    source = np.tile(np.arange(n, dtype=np.int64), neighbours // 2)
    target = (source + np.repeat(np.arange(1, neighbours // 2 + 1), n)) % n
    moved = np.flatnonzero(rng.random(len(source)) < rewire)
    target[moved] = (source[moved] + rng.integers(1, n, len(moved))) % n
    return GeneratedGraph(source, target, n, False)


def stochastic_blocks(
    sizes: Sequence[int],
    p: npt.ArrayLike,
    *,
    directed: bool = True,
    shuffle: bool = False,
    seed: int = 0,
) -> GeneratedGraph:
    """Return a graph of blocks (Holland, Laskey and Leinhardt, Social Networks 1983).

    Parameters
    ----------
    sizes : sequence of int
        Nodes of each block; without ``shuffle`` block 0 has the first ids.
    p : float [b, b]
        Chance of an arc from a node of a block to one of another; symmetric if
        undirected.
    directed, shuffle : bool
    seed : int
    """
    for size in sizes:
        _whole(size, "sizes", 1)
    chances = np.asarray(p, dtype=np.float64)
    if not sizes or chances.shape != (len(sizes), len(sizes)):
        raise InputError("one number for each pair of blocks", field="p", value=chances.shape)
    if not ((chances >= 0) & (chances <= 1)).all():
        raise InputError("must be from 0 to 1", field="p")
    if not directed and not np.array_equal(chances, chances.T):
        raise InputError("must be symmetric for an undirected graph", field="p")
    first = np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
    sources, targets = [], []
    for i, rows in enumerate(sizes):
        for j, columns in enumerate(sizes):
            if not directed and j < i:
                continue
            rng = philox(seed, "stochastic_blocks", i, j)
            a, b = _block(rng, rows, columns, float(chances[i, j]), same=i == j, directed=directed)
            sources.append(a + first[i])
            targets.append(b + first[j])
    source, target = np.concatenate(sources), np.concatenate(targets)
    n = int(first[-1])
    if shuffle:
        new = philox(seed, "stochastic_blocks", "ids").permutation(n)
        source, target = new[source], new[target]
    return GeneratedGraph(source, target, n, directed)


def _block(
    rng: np.random.Generator, rows: int, columns: int, p: float, *, same: bool, directed: bool
) -> tuple[_Ids, _Ids]:
    """Return arcs between two blocks, each pair with chance ``p``: a binomial count, then which."""
    if not same:
        code = _distinct(rng, rows * columns, p)
        return code // columns, code % columns
    if directed:  # all but the diagonal
        code = _distinct(rng, rows * (rows - 1), p)
        if rows == 1:
            return code, code.copy()
        a, b = code // (rows - 1), code % (rows - 1)
        return a, b + (b >= a)
    # Pair number b (b - 1) / 2 + a for a < b; the root is corrected by at most one.
    code = _distinct(rng, rows * (rows - 1) // 2, p)
    b = ((1.0 + np.sqrt(1.0 + 8.0 * code)) / 2.0).astype(np.int64)
    b -= b * (b - 1) // 2 > code
    b += b * (b + 1) // 2 <= code
    return code - b * (b - 1) // 2, b


def _distinct(rng: np.random.Generator, pairs: int, p: float) -> _Ids:
    """Return each number below ``pairs`` with chance ``p``, ascending."""
    if pairs > 2**52:
        raise LimitError(f"{pairs} pairs of nodes; at most 2**52")
    count = int(rng.binomial(pairs, p)) if pairs else 0
    if count > pairs // 2:
        left_out = np.ones(pairs, dtype=bool)
        left_out[_sample(rng, pairs, pairs - count)] = False
        return np.flatnonzero(left_out)
    return _sample(rng, pairs, count)


def _sample(rng: np.random.Generator, pairs: int, count: int) -> _Ids:
    """Return ``count`` different numbers below ``pairs``, ascending; every set alike likely."""
    chosen = np.empty(0, dtype=np.int64)
    while len(chosen) < count:
        more = rng.integers(0, pairs, count - len(chosen))
        chosen = np.unique(np.concatenate((chosen, more)))
    return chosen


def _whole(value: int, field: str, low: int, high: int | None = None) -> None:
    wrong = isinstance(value, bool) or not isinstance(value, int | np.integer) or value < low
    if wrong or (high is not None and value > high):
        limits = f"from {low}" if high is None else f"from {low} to {high}"
        raise InputError(f"must be a whole number {limits}", field=field, value=value)


def _chance(value: float, field: str) -> None:
    if not 0 <= value <= 1:
        raise InputError("must be from 0 to 1", field=field, value=value)


def _positive(value: float, field: str) -> None:
    if not 0 < value < np.inf:
        raise InputError("must be above 0", field=field, value=value)


def _shares(values: Sequence[float]) -> tuple[float, float, float, float]:
    four = [float(value) for value in values]
    if len(four) != 4 or min(four) < 0 or abs(sum(four) - 1.0) > 1e-9:
        raise InputError("four shares that sum to 1", field="probabilities", value=values)
    return four[0], four[1], four[2], four[3]
