"""Maximum cover by more than one process or machine: workers on Ray, each with the graph mapped.

Two ways. ``exact``: every worker has a tile of the candidates and answers "who of mine
adds most"; the best of all becomes a seed, and everyone is told. The sequence is that of
one process, ties included. ``random``: the candidates are split at random, every worker
solves its part alone, and a last greedy chooses among what they found (RandGreedi:
Barbosa, Ene, Nguyen and Ward, "The power of randomization", ICML 2015): two rounds of
messages, whatever k is, and in expectation at least (1 - 1/e) / 2 of the best.

The graph is a saved folder that every worker can read; processes of one machine share
its pages.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from shoal.core.errors import InputError, UnavailableError
from shoal.core.progress import track
from shoal.core.seeds import philox
from shoal.influence import _coverage_kernels as coverage_kernels
from shoal.influence.counting import coverage
from shoal.influence.cover import max_cover
from shoal.influence.graph import Graph, Rows
from shoal.influence.greedy import units_of
from shoal.influence.lazy import LazyRun
from shoal.influence.problem import CoverProblem, make_problem
from shoal.influence.results import CoverResult

__all__ = ["TileWorker", "ray_max_cover"]

#: Times that a worker which died is started again before that is an error.
RESTARTS = 3


class TileWorker:
    """Candidates of one tile: who of them adds most to the seeds so far.

    Works without Ray too, as the tests do.

    Parameters
    ----------
    folder : str
        The saved graph.
    tile : int64 [t]
        Rows of the candidates.
    k, hops : int
    weights : float64 [n], optional
    """

    def __init__(
        self,
        folder: str,
        tile: Rows,
        k: int,
        hops: int,
        weights: npt.NDArray[np.float64] | None = None,
    ) -> None:
        graph = Graph.load(folder)
        allowed = np.zeros(graph.n, dtype=np.uint8)
        allowed[tile] = 1
        problem = CoverProblem(graph=graph, k=k, hops=hops, weights=weights, allowed=allowed)
        self._run = LazyRun(problem, units_of(problem))
        # Alone, nobody's gain is above its ball: the expensive count, and each worker's own.
        ones = np.ones(graph.n) if weights is None else self._run.weight.astype(np.float64)
        balls = coverage_kernels.ball_weights(
            graph.out_ptr, graph.out_ids, np.int64(hops), ones, np.asarray(tile, dtype=np.int64)
        )
        # Above 2**53 a float64 sum may have rounded; a bound must not be below the truth.
        slack = 1.0 if weights is None else 1.0 + 1e-9
        self._heap = [
            (-ball * slack, row) for ball, row in zip(balls.tolist(), tile.tolist(), strict=True)
        ]
        heapq.heapify(self._heap)

    def best(self, chosen: Sequence[int] = ()) -> tuple[float, int] | None:
        """Make ``chosen`` rows seeds; return (gain in units, row) of the best of the tile.

        None if nobody of the tile adds anything.
        """
        run = self._run
        for row in chosen:
            run.choose(row)
        while self._heap:
            bound, row = self._heap[0]
            if run.counted[row] == run.picks:
                return -bound, row
            run.search(np.array([row], dtype=np.int64))
            gain = float(run.key[row])
            if gain <= 0.0:
                heapq.heappop(self._heap)
            else:
                heapq.heapreplace(self._heap, (-gain, row))
        return None


def ray_max_cover(
    path: str | Path,
    k: int,
    hops: int = 1,
    *,
    workers: int = 2,
    mode: Literal["exact", "random"] = "exact",
    weights: npt.ArrayLike | Mapping[Any, float] | None = None,
    candidates: Iterable[Any] | None = None,
    exclude: Iterable[Any] | None = None,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> CoverResult:
    """Choose seeds with workers on Ray; see :func:`shoal.influence.max_cover`.

    Parameters
    ----------
    path : path
        Folder of a saved graph (:meth:`Graph.save`) that all workers can read.
    k, hops : int
    workers : int
        Processes; Ray places them.
    mode : "exact" or "random"
        ``"exact"`` gives the seeds of ``max_cover(..., method="exact")``, with one round
        of messages a seed. ``"random"`` needs two rounds, and depends on ``seed`` and
        ``workers``.
    weights : array-like [n] or mapping, optional
        Worth of each node.
    candidates, exclude : iterable, optional
        Names of the only nodes that may be chosen, and of those that may not.
    options : mapping, optional
        Of the workers, as ``ray.remote`` takes them.
    seed : int
        Of the random split.

    Returns
    -------
    CoverResult
        ``work["restarts"]`` counts workers that died and were started again.

    Raises
    ------
    InputError
        An argument is wrong.
    UnavailableError
        Ray is not installed or not started, or a worker keeps dying.
    """
    ray = _ray()
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise InputError("must be a whole number, at least 1", field="workers", value=workers)
    if mode not in ("exact", "random"):
        raise InputError("must be exact or random", field="mode", value=mode)
    start, processor = time.perf_counter(), time.process_time()
    folder = str(Path(path).resolve())
    graph = Graph.load(folder)
    problem = make_problem(
        graph, k, hops, weights=weights, candidates=candidates, exclude=exclude, seed=seed
    )
    if problem.allowed is None:
        rows = np.arange(graph.n, dtype=np.int64)
    else:
        rows = np.flatnonzero(problem.allowed).astype(np.int64)
    if mode == "random":
        rows = philox(seed, "ray_cover").permutation(rows)
        tiles = [np.sort(part) for part in np.array_split(rows, workers)]
        seeds, restarts = _random(ray, problem, folder, tiles, dict(options or {}))
    else:
        # Dealt out one by one: neighbouring rows often have like degrees.
        tiles = [rows[first::workers] for first in range(workers)]
        seeds, restarts = _exact(ray, problem, folder, tiles, dict(options or {}))
    run = LazyRun(problem, units_of(problem))
    for row in seeds:
        run.choose(row)
    chosen = run.picked[: run.picks].copy()
    notes = ("fewer seeds than asked for: no node adds anything",) if len(chosen) < k else ()
    return CoverResult(
        seeds=graph.labels(chosen),
        rows=chosen,
        gains=np.asarray(run.gains[: run.picks] * run.units.unit, dtype=np.float64),
        covered=coverage(graph, graph.labels(chosen), hops, weights=problem.weights),
        total=problem.total,
        upper_bound=None,
        bound_kind=None,
        ratio=None,
        method=f"{mode} on {workers} Ray workers",
        refine=None,
        hops=hops,
        k=k,
        timings={
            "choose": time.perf_counter() - start,
            "cpu": time.process_time() - processor,
        },
        notes=notes,
        finished=True,
        graph=graph,
        weights=problem.weights,
        work={"workers": workers, "restarts": restarts},
    )


class _Tiles:
    """The workers of an exact run; one that dies is started again and told all seeds so far."""

    def __init__(
        self,
        ray: Any,
        problem: CoverProblem,
        folder: str,
        tiles: list[Rows],
        options: dict[str, Any],
    ) -> None:
        self._ray = ray
        self._actor = ray.remote(TileWorker).options(**options)
        weights = None if problem.weights is None else ray.put(problem.weights)
        self._arguments = [(folder, tile, problem.k, problem.hops, weights) for tile in tiles]
        self.actors = [self._actor.remote(*given) for given in self._arguments]
        self.restarts = 0

    def best(self, seeds: list[int]) -> tuple[float, int] | None:
        """Tell everyone the last seed; return the best (gain, row) of all, or None."""
        told = seeds[-1:]
        asked = [actor.best.remote(told) for actor in self.actors]
        found = []
        for i, reference in enumerate(asked):
            answer = self._wait(i, reference, seeds)
            if answer is not None:
                found.append(answer)
        return max(found, key=lambda one: (one[0], -one[1])) if found else None

    def _wait(self, i: int, reference: Any, seeds: list[int]) -> tuple[float, int] | None:
        errors = self._ray.exceptions
        for _ in range(RESTARTS + 1):
            try:
                answer: tuple[float, int] | None = self._ray.get(reference)
            except errors.RayActorError:
                self.restarts += 1
                self.actors[i] = self._actor.remote(*self._arguments[i])
                reference = self.actors[i].best.remote(list(seeds))
            else:
                return answer
        raise UnavailableError(
            f"worker {i} died {RESTARTS + 1} times",
            hint="is there memory for the graph and its labels on every node?",
        )

    def close(self) -> None:
        """End all workers."""
        for actor in self.actors:
            self._ray.kill(actor)


def _exact(
    ray: Any, problem: CoverProblem, folder: str, tiles: list[Rows], options: dict[str, Any]
) -> tuple[list[int], int]:
    workers = _Tiles(ray, problem, folder, tiles, options)
    seeds: list[int] = []
    try:
        for _ in track(range(problem.k), "choosing seeds"):
            found = workers.best(seeds)
            if found is None:
                break
            seeds.append(found[1])
    finally:
        workers.close()
    return seeds, workers.restarts


def _random(
    ray: Any, problem: CoverProblem, folder: str, tiles: list[Rows], options: dict[str, Any]
) -> tuple[list[int], int]:
    task = ray.remote(_solve_part).options(**({"max_retries": RESTARTS} | options))
    weights = None if problem.weights is None else ray.put(problem.weights)
    parts: list[tuple[list[int], float]] = ray.get(
        [
            task.remote(folder, tile, min(problem.k, len(tile)), problem.hops, weights)
            for tile in tiles
            if len(tile)
        ]
    )
    union = sorted({row for rows, _ in parts for row in rows})
    final, covered = _solve(
        problem.graph, np.array(union, dtype=np.int64), problem.k, problem.hops, problem.weights
    )
    alone, most = max(parts, key=lambda part: part[1])
    return (alone if most > covered else final), 0


def _solve_part(
    folder: str, tile: Rows, k: int, hops: int, weights: npt.NDArray[np.float64] | None
) -> tuple[list[int], float]:
    return _solve(Graph.load(folder), tile, k, hops, weights)


def _solve(
    graph: Graph, rows: Rows, k: int, hops: int, weights: npt.NDArray[np.float64] | None
) -> tuple[list[int], float]:
    result = max_cover(
        graph,
        min(k, len(rows)),
        hops,
        weights=weights,
        method="exact",
        candidates=graph.labels(rows),
    )
    return result.rows.tolist(), result.covered


def _ray() -> Any:
    try:
        import ray  # noqa: PLC0415  only where used
    except ImportError as error:
        raise UnavailableError(
            "Ray is not installed", hint="pip install 'shoal[influence-scale]'"
        ) from error
    if not ray.is_initialized():
        raise UnavailableError("Ray is not started", hint="ray.init() starts or joins a cluster")
    return ray
