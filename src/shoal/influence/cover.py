"""One call for the whole job: choose, refine, prove."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.core.errors import InputError
from shoal.influence import greedy, lazy
from shoal.influence.coverage import coverage
from shoal.influence.graph import Graph
from shoal.influence.problem import CoverProblem, make_problem
from shoal.influence.results import Bound, CoverResult, Picked

__all__ = ["METHODS", "max_cover"]

METHODS = ("auto", "exact", "lazy", "sketch", "grat", "degree", "vote")
REFINEMENTS = (None, "swap")
CERTIFICATES = (None, "online", "lagrangian")


def max_cover(
    graph: Graph,
    k: int | None = None,
    hops: int = 1,
    *,
    weights: npt.ArrayLike | Mapping[Any, float] | None = None,
    costs: npt.ArrayLike | Mapping[Any, float] | None = None,
    budget: float | None = None,
    target: float | None = None,
    method: str = "auto",
    refine: str | None = None,
    certificate: str | None = None,
    candidates: Iterable[Any] | None = None,
    exclude: Iterable[Any] | None = None,
    warm_start: Iterable[Any] | None = None,
    time_limit: float | None = None,
    n_jobs: int = 1,
    seed: int = 0,
) -> CoverResult:
    """Choose seeds that reach the most within ``hops``."""
    for name, value, known in (
        ("method", method, METHODS),
        ("refine", refine, REFINEMENTS),
        ("certificate", certificate, CERTIFICATES),
    ):
        if value not in known:
            raise InputError(
                f"must be one of {', '.join(map(str, known))}", field=name, value=value
            )
    timings: dict[str, float] = {}
    start, processor = time.perf_counter(), time.process_time()
    problem = make_problem(
        graph,
        k,
        hops,
        weights=weights,
        costs=costs,
        budget=budget,
        target=target,
        candidates=candidates,
        exclude=exclude,
        warm_start=warm_start,
        time_limit=time_limit,
        n_jobs=n_jobs,
        seed=seed,
    )
    picked = _choose(problem, method)
    timings["choose"] = time.perf_counter() - start
    notes: list[str] = []
    name = picked.method
    if refine == "swap":
        begin = time.perf_counter()
        picked = importlib.import_module("shoal.influence.swap").refine(problem, picked.rows)
        notes.append("gains are those of the refined set in its own greedy order")
        timings["refine"] = time.perf_counter() - begin
    covered = coverage(graph, graph.labels(picked.rows), problem.hops, weights=problem.weights)
    bound: Bound | None = None
    if certificate is not None:
        begin = time.perf_counter()
        module = importlib.import_module("shoal.influence.certificate")
        if certificate == "online":
            bound = module.online(problem, picked.rows, picked.gains)
        else:
            bound = module.lagrangian(problem, picked.rows, covered)
        timings["certificate"] = time.perf_counter() - begin
    if not picked.finished:
        notes.append("the time ran out")
    if k is not None and len(picked.rows) < problem.k:
        notes.append(f"{len(picked.rows)} seeds cover all that can be covered")
    timings["cpu"] = time.process_time() - processor
    return CoverResult(
        seeds=graph.labels(picked.rows),
        rows=picked.rows,
        gains=picked.gains,
        covered=covered,
        total=problem.total,
        upper_bound=None if bound is None else bound.value,
        bound_kind=None if bound is None else bound.kind,
        ratio=None if bound is None or bound.value <= 0 else covered / bound.value,
        method=name,
        refine=refine,
        hops=problem.hops,
        k=problem.k,
        timings=timings,
        notes=tuple(notes),
        finished=picked.finished,
        graph=graph,
        weights=problem.weights,
        work=picked.work,
    )


def _choose(problem: CoverProblem, method: str) -> Picked:
    if problem.graph.n == 0:
        return Picked(np.empty(0, dtype=np.int64), np.empty(0), True, method)
    return greedy.solve(problem) if problem.hops == 1 else lazy.solve(problem)
