"""Random walks on the friendship graph: drawn ones, and the matrix of all of them.

``random_walks`` draws the second-order walks of node2vec (Grover and Leskovec,
KDD 2016). ``log_walk_matrix`` needs no drawing: it is what skip-gram with
negative sampling factorises on walks of unbounded number (NetMF, Qiu et al.,
WSDM 2018)::

    M = log max(1, vol / (b T) * (P + P^2 + ... + P^T) D^-1),     P = D^-1 A

with A the adjacency matrix, D the degrees, vol their sum, T the window, b the
number of negatives.
"""

from __future__ import annotations

import io
import itertools
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.core.errors import InputError
from shoal.core.progress import progress as show_progress
from shoal.core.seeds import derive_seed
from shoal.spatial.socialgraph import FriendGraph

__all__ = ["largest_window", "log_walk_matrix", "random_walks"]

#: Products of one block of rows, which bounds the memory of a block (12 bytes each).
_BLOCK_PRODUCTS = 8_000_000


def random_walks(
    graph: FriendGraph,
    starts: npt.NDArray[np.int64],
    *,
    length: int = 40,
    p: float = 1.0,
    q: float = 1.0,
    seed: int = 0,
    first: int = 0,
) -> npt.NDArray[np.int32]:
    """Draw second-order random walks.

    Parameters
    ----------
    graph : FriendGraph
    starts : int64 [m]
        Where each walk begins.
    length : int
        Users on a walk, the first included.
    p, q : float
        Having come from t to v, a walk goes on to friend x of v with weight
        ``1/p`` if x is t, 1 if x is a friend of t, and ``1/q`` otherwise.
    seed : int
    first : int
        Number of the first walk. Walk number i of a seed is the same whatever
        is drawn beside it.

    Returns
    -------
    int32 [m, length]
        Users; -1 after the end of a walk that could not go on.

    Raises
    ------
    InputError
        ``length``, ``p`` or ``q`` is not positive, or a start is no user.
    """
    from shoal.spatial._social_kernels import walk  # noqa: PLC0415 - numba, only where needed

    if length < 1:
        raise InputError("a walk has at least one user", field="length", value=length)
    for name, value in (("p", p), ("q", q)):
        if not (np.isfinite(value) and value > 0):
            raise InputError("must be finite and positive", field=name, value=value)
    begin = np.ascontiguousarray(starts, dtype=np.int64)
    if len(begin) and (begin.min() < 0 or begin.max() >= len(graph)):
        raise InputError("a walk starts at a user", field="starts")
    out = np.empty((len(begin), length), dtype=np.int32)
    walk(graph.ptr, graph.friends, begin, first, float(p), float(q), _key(seed), out)
    return out


def largest_window(graph: FriendGraph, window: int, *, budget: float) -> int:
    """Return the largest window up to ``window`` whose matrix costs at most ``budget`` products.

    A graph with hubs reaches nearly everybody within two or three steps; the
    cost is bounded beforehand, in O(edges), instead of running out of memory.
    The bound counts walks, so it is not below the true number of products.
    """
    adjacency = graph.adjacency()
    ends = graph.degree.astype(np.float64)
    cost = 0.0
    for steps in range(1, window):
        ends = adjacency @ ends
        # Row u of P^(s+1) needs one product for each walk of s + 1 steps, but no
        # more than (all edges) where its row is full.
        cost += float(np.minimum(ends, len(graph.friends)).sum())
        if cost > budget:
            return steps
    return window


def log_walk_matrix(
    graph: FriendGraph, *, window: int = 3, negatives: float = 1.0, progress: bool = True
) -> Any:
    """Return the truncated logarithm of the random-walk matrix.

    Parameters
    ----------
    graph : FriendGraph
    window : int
        Longest walk, T above.
    negatives : float
        b above; more of them leave fewer entries.
    progress : bool
        Show a bar on a terminal.

    Returns
    -------
    scipy.sparse.csr_array
        float64 [n, n], symmetric up to rounding, all entries positive.
    """
    import scipy.sparse  # noqa: PLC0415 - 0.2 s that a loaded embedding need not pay

    n = len(graph)
    adjacency = graph.adjacency()
    degree = graph.degree
    inverse = np.divide(1.0, degree, out=np.zeros(n), where=degree > 0)
    step = scipy.sparse.diags_array(inverse).tocsr() @ adjacency
    scale = float(degree.sum()) / (negatives * window)
    blocks = []
    cuts = _cuts(adjacency, degree, window)
    with show_progress("random-walk matrix", n, stream=None if progress else io.StringIO()) as bar:
        for a, b in itertools.pairwise(cuts):
            power = step[a:b]
            total = power
            for _ in range(1, window):
                power = power @ step
                total = total + power
            total = total.tocsr()
            total.data *= scale * inverse[total.indices]
            np.maximum(total.data, 1.0, out=total.data)
            np.log(total.data, out=total.data)
            total.eliminate_zeros()
            blocks.append(total)
            bar.advance(b - a)
    if not blocks:
        return scipy.sparse.csr_array((n, n), dtype=np.float64)
    return scipy.sparse.vstack(blocks, format="csr")


def _cuts(adjacency: Any, degree: npt.NDArray[np.int64], window: int) -> list[int]:
    """Return row numbers that cut the product into blocks of bounded memory."""
    n = len(degree)
    width = degree.astype(np.float64)
    for _ in range(1, window):
        width = np.minimum(adjacency @ width, n)  # a row has at most n entries
    running = np.cumsum(width) // _BLOCK_PRODUCTS
    return [0, *(np.flatnonzero(np.diff(running)) + 1).tolist(), n] if n else [0]


def _key(seed: int) -> np.uint64:
    return np.uint64(derive_seed(seed, "social", "walks"))
