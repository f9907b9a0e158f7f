"""What ``shoal influence bench`` measures: every method on one graph, beside the exact greedy."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from shoal.core.errors import InputError, ShoalError

if TYPE_CHECKING:
    from shoal.influence.graph import Graph
    from shoal.influence.results import CoverResult

__all__ = ["compare"]


def compare(
    graph: Graph,
    k: int,
    hops: Iterable[int],
    methods: Iterable[str],
    *,
    certificate: bool = True,
    seed: int = 0,
    say: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Return a row a method and number of hops.

    Each row has ``covered``, ``share``, ``greedy_ratio`` (to the exact greedy, which
    always runs), ``certified`` (to an upper bound on any choice), ``bound_kind``,
    ``cpu`` (seconds of the processor, the graph being there) and ``note``.
    """
    rows = []
    for d in hops:
        rows += _at(graph, k, d, tuple(methods), certificate=certificate, seed=seed, say=say)
    return rows


def _at(
    graph: Graph,
    k: int,
    hops: int,
    methods: tuple[str, ...],
    *,
    certificate: bool,
    seed: int,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    asked: list[tuple[str, dict[str, Any]]] = [("exact", {"method": "exact"})]
    asked += [(name, {"method": name}) for name in methods if name != "exact"]
    asked.append(("auto + swap", {"method": "auto", "refine": "swap"}))
    rows: list[dict[str, Any]] = []
    greedy = best = 0.0
    bound: CoverResult | None = None
    for name, options in asked:
        say(f"{hops} hops: {name}")
        row: dict[str, Any] = {"hops": hops, "method": name, "note": ""}
        row |= dict.fromkeys(("covered", "share", "greedy_ratio", "certified", "bound_kind", "cpu"))
        rows.append(row)
        try:
            result, cpu = _timed(graph, k, hops, {**options, "seed": seed})
        except (ShoalError, ImportError) as error:
            if name == "exact" or (isinstance(error, InputError) and error.field in {"k", "hops"}):
                raise
            row["note"] = " ".join(str(error).split())
            continue
        if name == "exact":
            greedy = result.covered
        best = max(best, result.covered)
        row |= {"covered": result.covered, "share": result.covered / result.total, "cpu": cpu}
        row["greedy_ratio"] = result.covered / greedy if greedy else 1.0
        if name not in {result.method, "improved"}:
            row["note"] = result.method
    if certificate:
        from shoal.influence.cover import max_cover

        say(f"{hops} hops: the bound")
        bound = max_cover(graph, k, hops, refine="swap", certificate="lagrangian", seed=seed)
        for row in rows:
            if row["covered"] is not None and bound.upper_bound:
                row["certified"] = row["covered"] / bound.upper_bound
                row["bound_kind"] = bound.bound_kind
    return rows


def _timed(graph: Graph, k: int, hops: int, options: dict[str, Any]) -> tuple[CoverResult, float]:
    """Return an answer and its processor time; the first call compiles and is not counted."""
    from shoal.influence.cover import max_cover
    from shoal.influence.graph import Graph

    if options["method"] == "improved":
        return _improved(graph, k, hops)
    small = Graph.from_edges([0, 1, 2], [1, 2, 3], directed=True)
    max_cover(small, 1, hops, **options)
    began = time.process_time()
    result = max_cover(graph, k, hops, **options)
    return result, time.process_time() - began


def _improved(graph: Graph, k: int, hops: int) -> tuple[CoverResult, float]:
    """Return the choice of FastCover's improved form, which stands beside the solvers."""
    from shoal.influence.cover import max_cover
    from shoal.influence.fastcover import FastCover
    from shoal.influence.graph import Graph

    model = FastCover.bundled(hops, form="improved")
    model.select(Graph.from_edges([0, 1, 2], [1, 2, 3], directed=True), 1)
    began = time.process_time()
    seeds = graph.labels(model.select(graph, k))
    cpu = time.process_time() - began
    # Nothing is left to choose: this counts what the seeds cover.
    return max_cover(graph, len(seeds), hops, warm_start=seeds), cpu
