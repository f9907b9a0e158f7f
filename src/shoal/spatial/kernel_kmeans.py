"""Kernel k-means on the co-occurrence of keywords: what splits the QC-Tree of the QDR-Tree.

Keywords are clustered, not places. Two keywords are alike when they occur in
the same places: with M the 0/1 matrix places x keywords and G = M'M, the kernel
is ``K_xy = G_xy / sqrt(G_xx G_yy)`` plus a ridge on the diagonal. It is the Gram
matrix of normalised columns, so it is positive semi-definite, and that is what
makes the objective fall with every iteration. It is sparse and is never made
dense: one iteration costs O(stored entries x clusters).

Source: kernel k-means is named by Zang et al. (arXiv 1804.10726); the kernel,
the ridge and the stop rules are our reconstruction, the published text being an
abstract. Starts are half random partitions, half by k-means++ seeding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from shoal.core.errors import InputError
from shoal.core.seeds import philox

__all__ = ["Clustering", "cooccurrence_kernel", "kernel_kmeans", "objective"]

#: Added to the diagonal of the kernel: keeps clusters of unrelated words apart from ties.
RIDGE = 1e-2


@dataclass(frozen=True, slots=True)
class Clustering:
    """The best of several starts.

    ``labels`` int32 [m], the cluster of each point, every cluster non-empty;
    ``objective`` the sum of squared distances to the cluster means in feature
    space; ``history`` the objective after each iteration of the start that won,
    never rising.
    """

    labels: npt.NDArray[np.int32]
    objective: float
    history: tuple[float, ...]


def cooccurrence_kernel(
    word_ptr: npt.NDArray[np.int64],
    word_ids: npt.NDArray[np.int32],
    chosen: npt.NDArray[np.int64],
    *,
    n_words: int,
    ridge: float = RIDGE,
) -> Any:
    """Return the cosine kernel of keywords by the places they share.

    Parameters
    ----------
    word_ptr : int64 [n + 1]
    word_ids : int32 [word_ptr[n]]
        CSR of each place's words, each once a place.
    chosen : int64 [m]
        The words to compare, each once and occurring somewhere; the rest is
        left out.
    n_words : int
        Size of the vocabulary that ``word_ids`` points into.
    ridge : float
        Added to the diagonal, which is 1 without it.

    Returns
    -------
    scipy.sparse.csr_array, float64 [m, m]
        Symmetric and positive semi-definite.
    """
    n, m = len(word_ptr) - 1, len(chosen)
    number = np.full(n_words, -1, dtype=np.int64)
    number[chosen] = np.arange(m)
    column = number[word_ids] if n_words else np.empty(0, dtype=np.int64)
    kept = column >= 0
    rows = np.repeat(np.arange(n), np.diff(word_ptr))[kept]
    table: Any = sparse.coo_array(
        (np.ones(int(kept.sum())), (rows, column[kept])), shape=(n, m), dtype=np.float64
    )
    gram = sparse.coo_array(table.T @ table)
    count = gram.diagonal()
    # One root of one product: the same for xy and yx to the last bit.
    gram.data /= np.sqrt(count[gram.row] * count[gram.col])
    kernel = sparse.csr_array(gram + ridge * sparse.eye_array(m))
    kernel.sort_indices()
    return kernel


def objective(kernel: Any, labels: npt.NDArray[np.int32]) -> float:
    """Return the sum over points of the squared distance to their cluster's mean.

    ``sum_x K_xx - sum_c (1 / |c|) sum_{y,z in c} K_yz``, with ``kernel`` float64
    [m, m] sparse or dense and ``labels`` int [m].
    """
    k = int(labels.max()) + 1 if len(labels) else 0
    size, _, within = _sums(kernel, labels, k)
    return float(kernel.diagonal().sum() - (within / np.maximum(1, size)).sum())


def kernel_kmeans(
    kernel: Any, k: int = 4, *, restarts: int = 5, iterations: int = 30, seed: int = 0
) -> Clustering:
    """Split m points into ``min(k, m)`` clusters around means in feature space.

    Parameters
    ----------
    kernel : sparse or dense float64 [m, m]
        Symmetric and positive semi-definite; a matrix that is neither may make
        the objective rise.
    k : int
        Clusters, at least 1.
    restarts, iterations : int
        Starts, of which the one with the lowest objective is kept, and the most
        iterations of each; at least 1.
    seed : int
        The same seed gives the same clusters.

    Returns
    -------
    Clustering

    Raises
    ------
    InputError
        The kernel is not square, has no points, or an option is below 1.

    Notes
    -----
    Assignment of x to cluster c (Zang et al. as reconstructed):
    ``K_xx - (2 / |c|) sum_{y in c} K_xy + (1 / |c|^2) sum_{y,z in c} K_yz``.
    A cluster that lost all its points gets the point that is farthest from its
    own mean; that lowers the objective too.
    """
    for name, value in (("k", k), ("restarts", restarts), ("iterations", iterations)):
        if value < 1:
            raise InputError("must be at least 1", field=name, value=value)
    if len(kernel.shape) != 2 or kernel.shape[0] != kernel.shape[1] or kernel.shape[0] == 0:
        raise InputError("a kernel is a square matrix with at least one point", field="kernel")
    k = min(k, kernel.shape[0])
    best: Clustering | None = None
    for start in range(restarts):
        random = philox(seed, "kernel-kmeans", start)
        seeding = _random_partition if start % 2 == 0 else _plus_plus
        found = _descend(kernel, seeding(kernel, k, random), k, iterations)
        if best is None or found.objective < best.objective:
            best = found
    assert best is not None
    return best


def _descend(kernel: Any, labels: npt.NDArray[np.int32], k: int, iterations: int) -> Clustering:
    """Iterate to a fixed point from given labels."""
    diagonal = kernel.diagonal()
    points = np.arange(len(labels))
    history: list[float] = []
    size, towards, within = _sums(kernel, labels, k)
    for _ in range(iterations):
        # K_xx is the same for every cluster and so decides nothing, but the farthest
        # point is looked for over all clusters.
        distance = (
            diagonal[:, None]
            - (2.0 / np.maximum(1, size)) * towards
            + within / np.maximum(1, size) ** 2
        )
        distance[:, size == 0] = np.inf
        nearest = distance.argmin(axis=1).astype(np.int32)
        # A point stays unless another mean is nearer by more than rounding; otherwise ties
        # would let it wander without end.
        own = distance[points, labels]
        stays = own <= distance[points, nearest] + 1e-12
        changed = np.where(stays, labels, nearest)
        _fill_empty(changed, distance, k)
        size_then, towards_then, within_then = _sums(kernel, changed, k)
        cost = float(diagonal.sum() - (within_then / size_then).sum())
        if history and cost > history[-1]:
            break  # rounding at a fixed point: keep what there was
        done = bool((changed == labels).all())
        labels, size, towards, within = changed, size_then, towards_then, within_then
        history.append(cost)
        if done:
            break
    return Clustering(labels=labels, objective=history[-1], history=tuple(history))


def _sums(
    kernel: Any, labels: npt.NDArray[np.int32], k: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return sizes [k], sum of K_xy over y of each cluster [m, k], sum within each cluster [k]."""
    member = np.zeros((len(labels), k))
    member[np.arange(len(labels)), labels] = 1.0
    towards = np.asarray(kernel @ member)
    within = np.einsum("xc,xc->c", towards, member)
    return np.bincount(labels, minlength=k), towards, within


def _fill_empty(labels: npt.NDArray[np.int32], distance: npt.NDArray[np.float64], k: int) -> None:
    """Move the point farthest from its mean into each empty cluster; none empties another."""
    size = np.bincount(labels, minlength=k)
    far = distance[np.arange(len(labels)), labels]
    for cluster in np.flatnonzero(size == 0):
        point = int(np.where(size[labels] > 1, far, -np.inf).argmax())
        size[labels[point]] -= 1
        size[cluster] += 1
        labels[point] = cluster
        far[point] = 0.0


def _random_partition(kernel: Any, k: int, random: np.random.Generator) -> npt.NDArray[np.int32]:
    """Return labels of clusters of equal size, to within one, drawn at random."""
    labels: npt.NDArray[np.int32] = random.permutation(kernel.shape[0]).astype(np.int32) % k
    return labels


def _plus_plus(kernel: Any, k: int, random: np.random.Generator) -> npt.NDArray[np.int32]:
    """Return labels by nearest of k points drawn with probability ~ squared distance.

    Arthur and Vassilvitskii, "k-means++", SODA 2007, with kernel distances.
    """
    m = kernel.shape[0]
    diagonal = kernel.diagonal()
    nearest = np.full(m, np.inf)
    labels = np.zeros(m, dtype=np.int32)
    point = int(random.integers(m))
    for cluster in range(k):
        one = np.zeros(m)
        one[point] = 1.0
        distance = np.maximum(0.0, diagonal - 2.0 * np.asarray(kernel @ one) + diagonal[point])
        distance[point] = 0.0
        closer = distance < nearest
        labels[closer] = cluster
        nearest[closer] = distance[closer]
        labels[point] = cluster
        if nearest.max() <= 0:
            break
        point = int(random.choice(m, p=nearest / nearest.sum()))
    return labels
