"""Three ways from a friendship graph to a vector per user.

``svd`` factorises the log random-walk matrix, is deterministic and the best
choice while that matrix fits; ``node2vec`` and ``line`` are stochastic, cost
memory proportional to the users and friendships only, and are meant for
hundreds of users and more: among a handful, negatives are mostly friends.

Departures from the published forms, both for the sake of relations that are
cosines: ``svd`` keeps the largest positive eigenvalues, and the stochastic two
lose the direction that all users have in common.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from shoal.core.progress import progress as show_progress
from shoal.core.seeds import derive_seed, philox
from shoal.core.settings import Settings
from shoal.spatial.randomwalks import largest_window, log_walk_matrix, random_walks
from shoal.spatial.socialgraph import FriendGraph

__all__ = ["SocialConfig", "SocialReport", "chosen_method", "train_vectors", "unit_rows"]

#: Users up to which ``auto`` factorises.
_SVD_USERS = 50_000
#: Up to this many users the whole spectrum is computed, which is exact and as fast.
_DENSE_USERS = 400
#: Walks handed to a kernel at once; also the grain of the progress bar.
_CHUNK_WALKS = 4096
_CHUNK_EDGES = 1 << 18


class SocialConfig(Settings):
    """How users' vectors are trained.

    Parameters
    ----------
    method : {"auto", "svd", "node2vec", "line"}
        ``auto``: ``svd`` up to 50,000 users, else ``node2vec``.
    dim : int
        Numbers in a vector. The bounds of a search loosen as it grows.
    seed : int
        Same seed, same graph, one thread: same bits.
    threads : int
        With more than one, node2vec and line update the vectors without locks
        (Hogwild), and runs differ slightly.
    svd_window : int
        Longest walk of the matrix. Shortened, and reported, where the matrix
        would cost more than ``svd_budget`` products.
    svd_budget : float
    walks, walk_length, window, epochs : int
        node2vec: walks from each user, users on a walk, reach of the context,
        passes.
    p, q : float
        node2vec: return and in-out parameter.
    line_samples : int
        line: edges drawn for each order, per friendship.
    negatives : int
        node2vec, line: negatives of a positive pair, drawn as degree^0.75.
    learning_rate : float or None
        node2vec, line: first rate, which falls linearly; by default 0.05 and 0.1.
    """

    method: Literal["auto", "svd", "node2vec", "line"] = "auto"
    dim: int = Field(default=32, ge=1, le=1024)
    seed: int = 0
    threads: int = Field(default=1, ge=1, le=256)
    svd_window: int = Field(default=3, ge=1, le=10)
    svd_budget: float = Field(default=2e9, gt=0)
    walks: int = Field(default=10, ge=1)
    walk_length: int = Field(default=40, ge=2)
    window: int = Field(default=5, ge=1)
    epochs: int = Field(default=1, ge=1)
    p: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    q: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    line_samples: int = Field(default=100, ge=1)
    negatives: int = Field(default=5, ge=1, le=64)
    learning_rate: float | None = Field(default=None, gt=0, allow_inf_nan=False)


@dataclass(frozen=True, slots=True)
class SocialReport:
    """What became of the input of :meth:`SocialEmbedding.fit`.

    Parameters
    ----------
    users, edges : int
        Users, and friendships that were kept.
    edges_given, self_loops, duplicates : int
        Pairs read, and of these dropped as loops and as repeated.
    isolated : int
        Users without friends: their vector is zero, their relations neutral.
    filled : int
        Users with friends on whom the training said nothing (small separate
        circles); they got the mean of their friends or one direction a circle.
    method : str
        ``svd``, ``node2vec``, ``line`` or ``given``.
    window : int
        svd: longest walk of the factorised matrix; below the one asked for
        where that matrix would have been too large. Else 0.
    cpu_seconds : float
        CPU time of the process during the training.
    aligned_to : str
        Version that :meth:`SocialEmbedding.align` turned the vectors to.
    aligned_users : int
        Users in common with it.
    aligned_cosine : float
        Mean cosine of their vectors then and now: 1 means that nothing moved.
    """

    users: int = 0
    edges: int = 0
    edges_given: int = 0
    self_loops: int = 0
    duplicates: int = 0
    isolated: int = 0
    filled: int = 0
    method: str = "given"
    window: int = 0
    cpu_seconds: float = 0.0
    aligned_to: str = ""
    aligned_users: int = 0
    aligned_cosine: float = 0.0


def chosen_method(config: SocialConfig, n_users: int) -> str:
    """Return the method, with ``auto`` resolved."""
    if config.method != "auto":
        return config.method
    return "svd" if n_users <= _SVD_USERS else "node2vec"


def train_vectors(
    graph: FriendGraph, config: SocialConfig, *, progress: bool = True
) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
    """Return the vectors (float32 [n, dim], unit rows, or zero for users without friends).

    The second value says how it went: ``method``, for svd the ``window`` used,
    ``filled`` (users with friends on whom the training said nothing).
    """
    method = chosen_method(config, len(graph))
    facts: dict[str, Any] = {"method": method}
    if not graph.edges:
        return np.zeros((len(graph), config.dim), dtype=np.float32), facts | {"filled": 0}
    if method == "svd":
        facts["window"] = largest_window(graph, config.svd_window, budget=config.svd_budget)
        raw: npt.NDArray[Any] = _factorised(graph, config, facts["window"], progress=progress)
    elif method == "node2vec":
        raw = _node2vec(graph, config, progress=progress)
    else:
        raw = _line(graph, config, progress=progress)
    connected = graph.degree > 0
    raw[~connected] = 0.0
    if method != "svd":
        # Skip-gram gives all users one direction in common, which makes strangers look
        # related. Without it their mean cosine is 0; hidden friendships are found better too.
        raw[connected] -= raw[connected].mean(axis=0)
    vectors, facts["filled"] = _filled(graph, unit_rows(raw), config)
    return vectors, facts


def unit_rows(raw: npt.NDArray[Any], *, least: float | None = None) -> npt.NDArray[np.float32]:
    """Return rows of length 1, float32; rows that are but rounding become zero.

    These are rows not longer than ``least``, by default a millionth of the longest.
    """
    wide = raw.astype(np.float64)
    length = np.sqrt(np.einsum("ij,ij->i", wide, wide))
    says = length > (1e-6 * length.max(initial=0.0) if least is None else least)
    wide[~says] = 0.0
    wide[says] /= length[says, None]
    return wide.astype(np.float32)


def _factorised(
    graph: FriendGraph, config: SocialConfig, window: int, *, progress: bool
) -> npt.NDArray[np.float64]:
    """Return the best ``Z`` with ``Z Z' ~ M``: eigenvectors times the root of the eigenvalue.

    Published forms (NetMF) take singular values, which fold negative
    eigenvalues in as if they were positive. The relation of users is an inner
    product, so here the largest positive ones are taken: the nearest Gram
    matrix of that rank (Eckart and Young).
    """
    n, dim = len(graph), config.dim
    matrix = log_walk_matrix(graph, window=window, progress=progress)
    if n <= max(_DENSE_USERS, 2 * dim):
        dense = matrix.toarray()
        values, columns = np.linalg.eigh((dense + dense.T) / 2)
    else:
        import scipy.sparse.linalg  # noqa: PLC0415 - see randomwalks

        start = philox(config.seed, "social", "svd").random(n) + 0.5
        values, columns = scipy.sparse.linalg.eigsh(
            matrix, k=dim, which="LA", v0=start, tol=1e-6, rng=np.random.default_rng(0)
        )
    best = np.argsort(-values, kind="stable")[:dim]
    values, columns = values[best], columns[:, best]
    # A sign is free; the largest entry of each column is made positive.
    peak = np.argmax(np.abs(columns), axis=0)
    columns = columns * np.where(columns[peak, np.arange(len(best))] < 0, -1.0, 1.0)
    scale = np.sqrt(np.maximum(values, 0.0))
    scale[values <= 1e-9 * max(float(values[0]), 1e-300)] = 0.0
    raw = np.zeros((n, dim))
    raw[:, : len(best)] = columns * scale + 0.0  # no negative zeros
    return raw


def _noise(graph: FriendGraph) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Return the alias table of degree^0.75, from which negatives are drawn."""
    from shoal.spatial._social_kernels import alias_table  # noqa: PLC0415 - numba

    accept = np.empty(len(graph), dtype=np.float64)
    other = np.empty(len(graph), dtype=np.int64)
    alias_table(graph.degree.astype(np.float64) ** 0.75, accept, other)
    return accept, other


def _start_vectors(n: int, dim: int, seed: int, name: str) -> npt.NDArray[np.float32]:
    drawn = philox(seed, "social", name).random((n, dim), dtype=np.float32)
    return (drawn - np.float32(0.5)) / np.float32(dim)


def _in_chunks(
    title: str, chunks: int, threads: int, work: Callable[[int], None], *, progress: bool
) -> None:
    """Do ``work(i)`` for every chunk, in order with one thread."""
    with show_progress(title, chunks, stream=None if progress else io.StringIO()) as bar:
        if threads == 1:
            for i in range(chunks):
                work(i)
                bar.advance()
            return
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(work, range(chunks)):
                bar.advance()


def _node2vec(
    graph: FriendGraph, config: SocialConfig, *, progress: bool
) -> npt.NDArray[np.float32]:
    from shoal.spatial._social_kernels import train_skip_gram  # noqa: PLC0415 - numba

    n, seed = len(graph), config.seed
    centre = _start_vectors(n, config.dim, seed, "centre")
    context = np.zeros((n, config.dim), dtype=np.float32)
    accept, other = _noise(graph)
    connected = np.flatnonzero(graph.degree > 0)
    per_round = -(-len(connected) // _CHUNK_WALKS)
    rounds = config.walks * config.epochs
    total = len(connected) * rounds
    rate = config.learning_rate or 0.05
    fall = rate / total
    key = np.uint64(derive_seed(seed, "social", "skip-gram"))
    orders = _Orders(connected, config.walks, seed)

    def work(chunk: int) -> None:
        number, part = divmod(chunk, per_round)
        at = part * _CHUNK_WALKS
        starts = orders.of(number)[at : at + _CHUNK_WALKS]
        # A later epoch walks the same walks again, as an epoch over a corpus would.
        first = (number % config.walks) * len(connected) + at
        walks = random_walks(
            graph, starts, length=config.walk_length, p=config.p, q=config.q, seed=seed, first=first
        )
        done = number * len(connected) + at
        train_skip_gram(
            walks,
            done,
            centre,
            context,
            accept,
            other,
            config.window,
            config.negatives,
            rate - fall * done,
            fall,
            key,
        )

    _in_chunks("node2vec", rounds * per_round, config.threads, work, progress=progress)
    return centre


class _Orders:
    """The shuffled starts of each round; only the last one used is kept."""

    def __init__(self, connected: npt.NDArray[np.int64], walks: int, seed: int) -> None:
        self._connected = connected
        self._walks = walks
        self._seed = seed
        self._held: tuple[int, npt.NDArray[np.int64]] = (-1, connected)

    def of(self, number: int) -> npt.NDArray[np.int64]:
        """Return the order of round ``number``."""
        held = self._held  # one read, so that another thread's replacement does no harm
        if held[0] != number:
            generator = philox(self._seed, "social", "order", number % self._walks)
            held = (number, generator.permutation(self._connected))
            self._held = held
        return held[1]


def _line(graph: FriendGraph, config: SocialConfig, *, progress: bool) -> npt.NDArray[np.float32]:
    from shoal.spatial._social_kernels import train_line  # noqa: PLC0415 - numba

    n = len(graph)
    pairs = graph.pairs()
    ends, others = (np.ascontiguousarray(side, dtype=np.int32) for side in pairs.T)
    accept, other = _noise(graph)
    samples = config.line_samples * len(pairs)
    rate = config.learning_rate or 0.1
    fall = rate / samples
    chunks = -(-samples // _CHUNK_EDGES)
    halves = []
    for order, dim in ((1, config.dim // 2), (2, config.dim - config.dim // 2)):
        if dim == 0:
            continue
        source = _start_vectors(n, dim, config.seed, f"line-{order}")
        target = source if order == 1 else np.zeros((n, dim), dtype=np.float32)
        key = np.uint64(derive_seed(config.seed, "social", "line", order))

        def work(
            chunk: int,
            source: npt.NDArray[np.float32] = source,
            target: npt.NDArray[np.float32] = target,
            key: np.uint64 = key,
        ) -> None:
            done = chunk * _CHUNK_EDGES
            train_line(
                ends,
                others,
                chunk,
                min(_CHUNK_EDGES, samples - done),
                source,
                target,
                accept,
                other,
                config.negatives,
                rate - fall * done,
                fall,
                key,
            )

        _in_chunks(f"LINE, order {order}", chunks, config.threads, work, progress=progress)
        halves.append(unit_rows(source))
    return np.hstack(halves)


def _filled(
    graph: FriendGraph, vectors: npt.NDArray[np.float32], config: SocialConfig
) -> tuple[npt.NDArray[np.float32], int]:
    """Give users with friends but without a vector one; return how many there were.

    A user takes the mean of his friends' vectors where they have any. What is
    left are small separate circles that the leading eigenvectors do not reach:
    each gets one random direction, so that its members are related to each
    other and, on average, to nobody else.
    """
    mute = (graph.degree > 0) & ~vectors.any(axis=1)
    count = int(mute.sum())
    if not count:
        return vectors, 0
    import scipy.sparse.csgraph  # noqa: PLC0415 - see randomwalks

    adjacency = graph.adjacency()
    while True:
        rows = np.flatnonzero(mute)
        means = unit_rows(adjacency[rows] @ vectors.astype(np.float64))
        told = means.any(axis=1)
        if not told.any():
            break
        vectors[rows[told]] = means[told]
        mute[rows[told]] = False
    if mute.any():
        _, circle = scipy.sparse.csgraph.connected_components(adjacency, directed=False)
        chosen = np.unique(circle[mute])
        drawn = philox(config.seed, "social", "circles").standard_normal((len(chosen), config.dim))
        vectors[mute] = unit_rows(drawn)[np.searchsorted(chosen, circle[mute])]
    return vectors, count
