"""Greedy at one hop: buckets and heap, against the definition and against each other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.influence import _greedy_kernels as kernels
from shoal.influence import greedy, lazy
from shoal.influence.counting import coverage, marginal_gains
from shoal.influence.graph import Graph
from shoal.influence.problem import fixed_point, make_problem


def a_graph(seed, n, arcs, directed=True):
    random = np.random.default_rng(seed)
    source = (random.random(arcs) ** 2 * n).astype(int)
    return Graph.from_edges(source, random.integers(0, n, arcs), n=n, directed=directed)


def by_definition(graph, k, units, *, costs=None, budget=None, allowed=None, by_cost=False):
    reach = [
        {v, *graph.out_ids[graph.out_ptr[v] : graph.out_ptr[v + 1]].tolist()}
        for v in range(graph.n)
    ]
    covered, rows, spent = set(), [], 0.0
    while len(rows) < k:
        open_ = [
            v
            for v in range(graph.n)
            if (allowed is None or v in allowed)
            and (budget is None or spent + costs[v] <= budget)
            and reach[v] - covered
        ]
        gains = {v: float(sum(int(units[w]) for w in reach[v] - covered)) for v in open_}
        best = max(
            open_, key=lambda v: (gains[v] / costs[v] if by_cost else gains[v], -v), default=None
        )
        if best is None or gains[best] == 0:
            break
        rows.append(best)
        covered |= reach[best]
        spent += 0.0 if costs is None else costs[best]
    return rows


@pytest.fixture(params=["asked", "told", "asked then told"])
def manner(request, monkeypatch):
    """Both ways to keep gains, and the change from one to the other in mid-run."""
    monkeypatch.setattr(greedy, "ORDERED_NODES", 1)  # the floor is met, and everything redone
    if request.param == "told":
        monkeypatch.setattr(greedy, "ASKED_SEEDS", 0)
    elif request.param == "asked then told":
        monkeypatch.setattr(greedy, "ASKED_WALKS", 0)
        monkeypatch.setattr(greedy, "SLICE_ARCS", 20)
    return request.param


@pytest.mark.parametrize("directed", [True, False])
def test_sequence_is_greedy_by_definition(manner, directed):
    for seed in range(25):
        graph = a_graph(seed, 60, 40 + 8 * seed, directed)
        problem = make_problem(graph, 60)
        picked = greedy.solve(problem)
        assert picked.rows.tolist() == by_definition(graph, 60, np.ones(60))
        assert picked.gains.sum() == coverage(graph, picked.rows)
        few = make_problem(graph, 7, candidates=range(10, 50), exclude=[20])
        assert greedy.solve(few).rows.tolist() == by_definition(
            graph, 7, np.ones(60), allowed={*range(10, 50)} - {20}
        )


@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(0, 160), st.booleans())
@settings(max_examples=80, deadline=None)
def test_buckets_heap_and_lazy_agree(seed, n, arcs, directed):
    graph = a_graph(seed, n, arcs, directed)
    problem = make_problem(graph, n)
    buckets = greedy.solve(problem)
    heap = greedy.solve(replace(problem, weights=np.ones(n)))
    assert buckets.rows.tolist() == heap.rows.tolist() == lazy.solve(problem).rows.tolist()
    assert buckets.gains.tolist() == heap.gains.tolist()
    assert (np.diff(buckets.gains) <= 0).all()
    half = greedy.solve(replace(problem, k=max(1, n // 2)))
    assert half.rows.tolist() == buckets.rows.tolist()[: max(1, n // 2)]


def test_weights_and_costs():
    for seed in range(20):
        random = np.random.default_rng(seed)
        graph = a_graph(seed, 50, 150)
        weights = random.random(50) if seed % 2 else random.integers(0, 4, 50).astype(float)
        units = fixed_point(weights).units
        picked = greedy.solve(make_problem(graph, 12, weights=weights))
        assert picked.rows.tolist() == by_definition(graph, 12, units)
        assert picked.gains.sum() == pytest.approx(coverage(graph, picked.rows, weights=weights))
        costs = random.integers(1, 7, 50) / 2
        limits = {"costs": costs, "budget": 9.5}
        picked = greedy.solve(make_problem(graph, weights=weights, **limits))
        choices = [
            by_definition(graph, 50, units, by_cost=flag, **limits) for flag in (True, False)
        ]
        value = [coverage(graph, rows, weights=weights) for rows in choices]
        assert picked.rows.tolist() == choices[int(value[1] > value[0])]


def test_target_with_costs_takes_the_cheaper_way():
    # The hub covers all at a price; the cheap nodes cover as much for less.
    graph = Graph.from_edges([0, 0, 0, 0, 1, 3], [1, 2, 3, 4, 2, 4], n=5, directed=True)
    costs = np.array([10.0, 1, 9, 1, 9])
    picked = greedy.solve(make_problem(graph, target=0.8, costs=costs))
    assert sorted(picked.rows.tolist()) == [1, 3]


def test_first_seeds_stay_and_count():
    graph = a_graph(4, 50, 120)
    for weights in (None, np.ones(50)):
        picked = greedy.solve(make_problem(graph, 8, warm_start=[49, 3], weights=weights))
        assert picked.rows[:2].tolist() == [49, 3]
        assert len(set(picked.rows.tolist())) == 8
        assert picked.gains.sum() == coverage(graph, picked.rows)
        assert picked.gains[2] == marginal_gains(graph, [49, 3]).max()


def test_fixed_point_keeps_whole_numbers_and_binary_fractions():
    weights = np.array([0.0, 1.0, 0.375, 2**40, 3.5])
    fixed = fixed_point(weights)
    assert (fixed.units * fixed.unit == weights).all()
    assert 2**59 <= fixed.total < 2**61
    assert fixed_point(np.zeros(3)).total == 0


def test_gains_that_are_not_taken_back_are_caught(monkeypatch):
    """Negative control: without telling the in-neighbours the sequence is another one."""

    def deaf(v, *_):
        return None

    graph = a_graph(0, 60, 240)
    source = kernels.bucket_picks.py_func
    names = dict(source.__globals__)
    monkeypatch.setitem(source.__globals__, "commit_counts", deaf)
    monkeypatch.setattr(kernels, "bucket_picks", source)
    monkeypatch.setattr(greedy, "ASKED_SEEDS", 0)
    picked = greedy.solve(make_problem(graph, 20))
    assert picked.rows.tolist() != by_definition(graph, 20, np.ones(60))
    assert picked.gains.sum() != coverage(graph, picked.rows)
    assert names["commit_counts"] is not deaf
