"""How much each method covers, as a share of what exact greedy covers, and what is proven."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from _fastcover import checker
from _fastcover.data import GraphSet
from shoal.influence import FastCover, max_cover

#: Roles whose ratios enter the means: nothing was learned from these, nor chosen on them.
UNSEEN = ("unseen", "generated")


def run(sets: list[GraphSet], quick: bool) -> dict[str, Any]:
    """Solve every graph for all hops and numbers of seeds."""
    ks = (10, 50, 200, 1000)
    cells: list[dict[str, Any]] = []
    for one in sets:
        for hops in (1, 2, 3):
            cells += _graph(one, hops, ks, quick)
    return {"cells": cells, **_summary(cells)}


def _graph(one: GraphSet, hops: int, ks: tuple[int, ...], quick: bool) -> list[dict[str, Any]]:
    graph = one.graph
    most = min(max(ks), graph.n)
    start = time.process_time()
    greedy = max_cover(graph, most, hops, method="exact")
    greedy_cpu = time.process_time() - start
    orders: dict[str, np.ndarray] = {}
    spent: dict[str, float] = {}
    for name, call in _one_pass(one, hops, most).items():
        start = time.process_time()
        orders[name] = call()
        spent[name] = time.process_time() - start
    improved = FastCover.bundled(hops, form="improved")
    improved.select(graph, 1)  # compiled before the clock starts
    cells = []
    for k in (k for k in ks if k <= graph.n):
        # Not nested: the improved form spreads its passes over the seeds it is asked for.
        start = time.process_time()
        orders["grat improved"] = np.asarray(improved.select(graph, k))
        spent["grat improved"] = time.process_time() - start
        reached = checker.covered(graph, greedy.rows[:k], hops)
        cell: dict[str, Any] = {
            "graph": one.name,
            "role": one.role,
            "hops": hops,
            "k": k,
            "greedy": reached,
            "greedy_cpu_s": round(greedy_cpu, 5),
            "one_pass_cpu_s": {name: round(seconds, 5) for name, seconds in spent.items()},
            "ratio": {
                name: round(checker.covered(graph, rows[:k], hops) / reached, 4)
                for name, rows in orders.items()
            },
        }
        if k == most or k in (50, 200) or not quick:
            start = time.process_time()
            auto = max_cover(
                graph,
                k,
                hops,
                method="auto",
                refine="swap",
                certificate="lagrangian" if hops == 1 else "online",
            )
            count = checker.covered(graph, auto.rows, hops)
            if count != auto.covered:
                raise AssertionError(f"{one.name}: {auto.covered} claimed, {count} counted")
            cell["ratio"]["auto + swap"] = round(count / reached, 6)
            cell["auto_method"] = auto.method
            cell["auto_cpu_s"] = round(time.process_time() - start, 4)
            cell["auto_steps_s"] = {key: round(value, 4) for key, value in auto.timings.items()}
            assert auto.upper_bound is not None
            cell["certified"] = round(count / auto.upper_bound, 5)
            cell["bound"] = auto.bound_kind
        cells.append(cell)
        shown = "  ".join(f"{name} {value:.3f}" for name, value in cell["ratio"].items())
        proven = (
            f"  certified {cell['certified']:.4f} ({cell['bound']})" if "certified" in cell else ""
        )
        print(f"{one.name} d={hops} k={k}: greedy {reached}  {shown}{proven}", flush=True)
    return cells


def _one_pass(one: GraphSet, hops: int, k: int) -> dict[str, Callable[[], np.ndarray]]:
    graph = one.graph

    def learned(seed: int) -> Callable[[], np.ndarray]:
        net = FastCover.bundled(hops, form="paper", seed=seed)
        net.select(graph, 1)  # compiled before the clock starts
        return lambda: np.asarray(net.select(graph, k))

    calls: dict[str, Callable[[], np.ndarray]] = {
        f"grat paper, seed {seed}": learned(seed) for seed in FastCover.bundled_seeds()
    }
    for method in ("vote", "degree"):
        calls[method] = lambda method=method: max_cover(graph, k, hops, method=method).rows
    return calls


def _summary(cells: list[dict[str, Any]]) -> dict[str, Any]:
    unseen = [cell for cell in cells if cell["role"] in UNSEEN]
    if not unseen:
        unseen = cells

    def of(prefix: str) -> list[float]:
        return [
            value
            for cell in unseen
            for name, value in cell["ratio"].items()
            if name.startswith(prefix)
        ]

    paper, improved = of("grat paper"), of("grat improved")
    by_seed: dict[str, list[float]] = {}
    losses = []
    for cell in unseen:
        mean_of_seeds = statistics.mean(
            v for name, v in cell["ratio"].items() if name.startswith("grat paper")
        )
        for name, value in cell["ratio"].items():
            if name.startswith("grat paper"):
                by_seed.setdefault(name, []).append(value)
        losses += [
            f"{cell['graph']} d={cell['hops']} k={cell['k']}: paper's form"
            f" {mean_of_seeds:.3f}, {heuristic} {cell['ratio'][heuristic]:.3f}"
            for heuristic in ("vote", "degree")
            if cell["ratio"][heuristic] > mean_of_seeds
        ]
    one_hop = [cell["certified"] for cell in cells if cell["hops"] == 1 and "certified" in cell]
    auto = [cell["ratio"]["auto + swap"] for cell in cells if "auto + swap" in cell["ratio"]]
    return {
        "onepass_paper_mean": statistics.mean(paper),
        "onepass_paper_min": min(paper),
        "onepass_paper_by_seed": {
            name: round(statistics.mean(values), 4) for name, values in by_seed.items()
        },
        "onepass_paper_spread": statistics.stdev(paper),
        "onepass_mean": statistics.mean(improved),
        "onepass_min": min(improved),
        "vote_mean": statistics.mean(of("vote")),
        "degree_mean": statistics.mean(of("degree")),
        "losses": losses,
        "auto_min_ratio": min(auto),
        "certified_min": min(one_hop),
        "certified_median": statistics.median(one_hop),
    }
