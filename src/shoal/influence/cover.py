"""One call for the whole job: choose, refine, prove."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.core.errors import InputError, UnavailableError
from shoal.core.progress import progress as progress_of
from shoal.influence import greedy, lazy, sketch
from shoal.influence.counting import coverage
from shoal.influence.graph import Graph
from shoal.influence.groups import CoverGroup, floor_seeds, floors_met
from shoal.influence.problem import CoverProblem, make_problem
from shoal.influence.ranking import pick_by_score, vote_scores
from shoal.influence.results import Bound, CoverResult, Picked

__all__ = ["METHODS", "max_cover"]

METHODS = ("auto", "exact", "lazy", "sketch", "grat", "degree", "vote")
REFINEMENTS = (None, "swap")
CERTIFICATES = (None, "online", "lagrangian")

#: Bundled networks were trained for one to so many hops; the last one serves beyond.
_TRAINED_HOPS = 3


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
    groups: Sequence[CoverGroup] | None = None,
    warm_start: Iterable[Any] | None = None,
    time_limit: float | None = None,
    n_jobs: int = 1,
    seed: int = 0,
    progress: bool = False,
) -> CoverResult:
    """Choose seeds that reach the most within ``hops``, and say how good the choice is.

    The best choice is NP-hard to find; greedy covers at least 1 - 1/e of it for every
    k (Nemhauser, Wolsey and Fisher 1978), usually within a few per cent, and a
    certificate bounds how far from it the answer can be. Method FastCover: Ni et al.,
    arXiv 2111.00463; the solvers follow their own modules.

    Parameters
    ----------
    graph : Graph
        The arc (u, v) says that u influences v.
    k : int, optional
        Most seeds. Without it ``budget`` or ``target`` ends the choice.
    hops : int
        How far a seed reaches, 1 to 126; it reaches itself.
    weights, costs : array-like [n] or mapping by name, optional
        What covering a node counts (one each without), and what choosing it costs.
        With costs the better of greedy by gain and greedy by gain per cost is taken.
    budget : float, optional
        Most that the seeds may cost together; needs ``costs``.
    target : float, optional
        Share in (0, 1] of the total weight; choosing ends when it is reached.
    method : str
        ``"auto"`` and ``"exact"``: the exact greedy SEQUENCE, ties to the smallest row;
        exact is said of the sequence, it is not the optimum. Buckets at one hop, lazy
        beyond. ``"lazy"``: lazy at any number of hops. ``"sketch"``: the first seeds by
        a sample (statistical), then lazy. ``"grat"``: one pass of the bundled FastCover
        network (needs torch). ``"degree"``, ``"vote"``: heuristics to compare with.
    refine : str, optional
        ``"swap"``: exchange seeds one at a time while the coverage rises. Never worse.
    certificate : str, optional
        ``"online"`` or ``"lagrangian"``: an upper bound on any choice within the limits.
    candidates, exclude : iterable of names, optional
        Who may be chosen, and who may not; all are reached and counted.
    groups : sequence of CoverGroup, optional
        Shares of groups of nodes that must be covered first; the notes say of each
        whether it was met. What is guaranteed: :mod:`shoal.influence.groups`. A
        certificate then bounds choices that begin with the floors' seeds.
    warm_start : iterable of names, optional
        The first seeds, which stay.
    time_limit : float, optional
        Seconds. What is there by then is the answer, with ``finished`` False and a
        note; Ctrl-C does the same.
    n_jobs : int
        Threads, for refinements and certificates that can use them; the solvers run on one.
        The answer does not depend on it.
    seed : int
        Of what is drawn.
    progress : bool
        Show a bar on a terminal.

    Returns
    -------
    CoverResult
        ``gains`` is nested: the first j seeds are the answer for k = j. Fewer than k
        seeds if they cover all that can be covered, and a note says so.

    Raises
    ------
    InputError
        Naming the field, and the row or node.
    UnavailableError
        ``method="grat"`` without torch.
    """
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
    timings["check"] = time.perf_counter() - start
    if groups:
        begin = time.perf_counter()
        problem = replace(problem, warm_start=floor_seeds(problem, groups))
        timings["floors"] = time.perf_counter() - begin
    with progress_of("Choosing seeds", problem.k) if progress else nullcontext() as bar:
        if bar is not None:
            problem = replace(problem, watch=lambda done: bar.advance(done - bar.done))
        begin = time.perf_counter()
        picked = _choose(problem, method)
        timings["choose"] = time.perf_counter() - begin
    notes: list[str] = [] if picked.finished else ["stopped before the end: time or the user"]
    name, work = picked.method, dict(picked.work)
    if refine == "swap":
        begin = time.perf_counter()
        picked = _refined(problem, picked, notes)
        work.update({f"refine_{key}": value for key, value in picked.work.items()})
        timings["refine"] = time.perf_counter() - begin
    if problem.weights is None:
        covered = float(picked.gains.sum())  # whole numbers: what each seed added, exactly
    else:
        covered = coverage(graph, graph.labels(picked.rows), problem.hops, weights=problem.weights)
    bound = None
    if certificate is not None:
        begin = time.perf_counter()
        bound = _bound(problem, picked, covered, certificate)
        timings["certificate"] = time.perf_counter() - begin
    if picked.finished:
        notes += _shortfalls(problem, picked, covered, asked=k)
    for floor in floors_met(problem, groups, picked.rows) if groups else ():
        said = "met" if floor.met else "NOT met"
        notes.append(f"floor of {floor.name} {said}: {floor.covered} of {floor.needed} needed")
    timings["all"] = time.perf_counter() - start
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
        work=work,
    )


def _choose(problem: CoverProblem, method: str) -> Picked:
    graph = problem.graph
    if graph.n == 0:
        return Picked(np.empty(0, dtype=np.int64), np.empty(0), True, method)
    if method == "sketch":
        return sketch.solve(problem)
    if method == "lazy":
        return lazy.solve(problem)
    if method == "degree":
        return pick_by_score(problem, graph.out_degrees(), method)
    if method == "vote":
        return pick_by_score(problem, vote_scores(graph), method)
    if method == "grat":
        return pick_by_score(problem, _grat_scores(problem), method)
    # Measured on 8 graphs of 0.1 to 10 M arcs at two and three hops: the sampled head saves
    # a quarter to a half of the time and loses up to 0.3 % at k = 10. "auto" keeps the sequence.
    return greedy.solve(problem) if problem.hops == 1 else lazy.solve(problem)


def _grat_scores(problem: CoverProblem) -> npt.NDArray[np.float64]:
    try:
        module = importlib.import_module("shoal.influence.fastcover")
    except ModuleNotFoundError as error:
        raise UnavailableError(
            f"method 'grat' needs {error.name}, which is not installed",
            hint="install shoal[influence,torch], or use another method",
        ) from None
    model = module.FastCover.bundled(min(problem.hops, _TRAINED_HOPS))
    return np.asarray(model.score(problem.graph), dtype=np.float64)


def _refined(problem: CoverProblem, picked: Picked, notes: list[str]) -> Picked:
    """Return the seeds after exchanges; the seeds as they were if the user stops it."""
    swap = importlib.import_module("shoal.influence.swap")
    try:
        better: Picked = swap.refine(problem, picked.rows)
    except KeyboardInterrupt:
        notes.append("the exchange of seeds was stopped; these are the seeds before it")
        return replace(picked, finished=False)
    notes.append("gains are those of the refined set in its own greedy order")
    if not better.finished:
        notes.append("the exchange of seeds was cut short")
    return replace(better, finished=better.finished and picked.finished)


def _bound(problem: CoverProblem, picked: Picked, covered: float, certificate: str) -> Bound:
    module = importlib.import_module("shoal.influence.certificate")
    bound: Bound
    if certificate == "online":
        bound = module.online(problem, picked.rows, picked.gains)
    else:
        bound = module.lagrangian(problem, picked.rows, covered)
    return bound


def _shortfalls(
    problem: CoverProblem, picked: Picked, covered: float, *, asked: int | None
) -> list[str]:
    """Return notes on what was asked for and is not there, and why."""
    total, count = problem.total, len(picked.rows)
    if problem.target is not None and covered < problem.target * total * (1 - 1e-12):
        return [f"the target was not reached: {covered / total:.4g} of the weight is covered"]
    if problem.budget is not None or asked is None or count >= asked or problem.target is not None:
        return []
    if covered >= total * (1 - 1e-12):
        return [f"{count} seeds cover everything"]
    return [f"{count} seeds cover all that the candidates can cover"]
