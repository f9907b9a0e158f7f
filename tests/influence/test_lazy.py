"""Exact greedy beyond one hop: labels, bounds, narrowing; against the definition."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.influence import _lazy_kernels as kernels
from shoal.influence import greedy, lazy, sketch
from shoal.influence.counting import coverage, distance_labels, marginal_gains
from shoal.influence.graph import Graph
from shoal.influence.problem import fixed_point, make_problem
from shoal.influence.tiles import ReachTiles


def a_graph(seed, n, arcs, directed=True):
    random = np.random.default_rng(seed)
    # Squared: some nodes have many arcs, most have few.
    source = (random.random(arcs) ** 2 * n).astype(int)
    return Graph.from_edges(source, random.integers(0, n, arcs), n=n, directed=directed)


def balls(graph, hops):
    """What each node reaches, by sets."""
    reach = [{v} for v in range(graph.n)]
    for _ in range(hops):
        reach = [
            reach[v].union(
                *(reach[w] for w in graph.out_ids[graph.out_ptr[v] : graph.out_ptr[v + 1]])
            )
            for v in range(graph.n)
        ]
    return reach


def by_definition(problem, by_cost=False):
    """Greedy as it is defined: every gain anew at every turn, ties to the smallest row."""
    reach = balls(problem.graph, problem.hops)
    n = problem.graph.n
    units = [1] * n if problem.weights is None else fixed_point(problem.weights).units.tolist()
    need = sum(units) if problem.target is None else problem.target * sum(units) * (1 - 1e-12)
    covered, rows, gains, spent = set(), [], [], 0.0

    def gain(v):
        return sum(units[w] for w in reach[v] - covered)

    def choose(v):
        nonlocal spent
        rows.append(v)
        gains.append(gain(v))
        covered.update(reach[v])
        spent += 0.0 if problem.costs is None else problem.costs[v]

    for v in problem.warm_start.tolist():
        choose(v)
    while len(rows) < problem.k and sum(gains) < need:
        open_ = [
            v
            for v in range(n)
            if v not in rows
            and (problem.allowed is None or problem.allowed[v])
            and (problem.budget is None or spent + problem.costs[v] <= problem.budget)
        ]
        best = max(
            open_,
            key=lambda v: (float(gain(v)) / problem.costs[v] if by_cost else float(gain(v)), -v),
            default=None,
        )
        if best is None or gain(best) == 0:
            break
        choose(best)
    return rows


GRAPHS = st.tuples(st.integers(0, 10**6), st.integers(1, 30), st.integers(0, 90), st.booleans())


def eager_narrowing(monkeypatch):
    """Narrow at every chance: the small graphs of tests would never come to it."""
    monkeypatch.setattr(lazy, "_NARROW_FROM", -1)
    monkeypatch.setattr(lazy, "_NARROW_TO", -1)
    monkeypatch.setattr(lazy, "SLICE_ARCS", 5)
    monkeypatch.setattr(lazy, "TILE", 7)


@pytest.fixture(params=["as it is", "narrowed"])
def narrowing(request, monkeypatch):
    if request.param == "narrowed":
        eager_narrowing(monkeypatch)
    return request.param


@pytest.mark.parametrize("hops", [1, 2, 3, 5])
@pytest.mark.parametrize("directed", [True, False])
def test_sequence_is_greedy_by_definition(narrowing, hops, directed):
    for seed in range(12):
        graph = a_graph(seed, 40, 70, directed)
        problem = make_problem(graph, 40, hops)
        picked = lazy.solve(problem)
        assert picked.rows.tolist() == by_definition(problem)
        assert picked.gains.sum() == coverage(graph, picked.rows, hops)
        assert picked.finished


@pytest.mark.parametrize("hops", [1, 2, 3])
def test_weights_costs_target_masks_and_first_seeds(narrowing, hops):
    for seed in range(10):
        random = np.random.default_rng(seed)
        graph = a_graph(seed, 36, 60)
        weights = random.integers(0, 6, 36) / 4 if seed % 2 else random.random(36)
        options = {
            "weights": weights,
            "candidates": range(3, 36),
            "exclude": [5, 9],
            "warm_start": [0, 20],
        }
        problem = make_problem(graph, 9, hops, **options)
        assert lazy.solve(problem).rows.tolist() == by_definition(problem)
        assert greedy.solve(replace(problem, hops=1)).rows.tolist() == by_definition(
            replace(problem, hops=1)
        )
        problem = make_problem(graph, None, hops, weights=weights, target=0.7)
        picked = lazy.solve(problem)
        assert picked.rows.tolist() == by_definition(problem)
        assert picked.gains.sum() >= 0.7 * weights.sum() - 1e-9
        costs = random.integers(1, 9, 36) / 2
        problem = make_problem(graph, None, hops, weights=weights, costs=costs, budget=12.0)
        picked = lazy.solve(problem)
        choices = [by_definition(problem, by_cost=flag) for flag in (True, False)]
        covered = [coverage(graph, rows, hops, weights=weights) for rows in choices]
        assert picked.rows.tolist() == choices[int(covered[1] > covered[0])]
        assert costs[picked.rows].sum() <= 12.0


def test_narrowing_takes_place_and_leaves_the_sequence(monkeypatch):
    graph = a_graph(3, 3000, 24_000)
    problem = make_problem(graph, 60, 3)
    plain = lazy.solve(problem)
    monkeypatch.setattr(lazy, "_NARROW_FROM", 0)
    monkeypatch.setattr(lazy, "SLICE_ARCS", 2000)
    narrowed = lazy.solve(problem)
    assert narrowed.work["tiles"] > 2
    assert narrowed.rows.tolist() == plain.rows.tolist()
    assert narrowed.gains.tolist() == plain.gains.tolist()


@given(GRAPHS, st.integers(1, 4), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_bounds_are_never_below_the_gain(drawn, hops, chosen):
    seed, n, arcs, directed = drawn
    graph = a_graph(seed, n, arcs, directed)
    random = np.random.default_rng(seed)
    weights = random.random(n) + 1e-9
    problem = make_problem(graph, n, hops, weights=weights)
    run = lazy.LazyRun(problem, fixed_point(weights))
    seeds = random.permutation(n)[: min(chosen, n - 1)]
    for row in seeds:
        run.choose(int(row))
    assert run.label.tolist() == distance_labels(graph, seeds, hops).tolist()
    bound = run._bound(graph.out_ptr, graph.out_ids, run.label)
    exact = balls(graph, hops)
    covered = set().union(*(exact[v] for v in seeds)) if len(seeds) else set()
    units = fixed_point(weights).units
    for v in range(n):
        truth = sum(int(units[w]) for w in exact[v] - covered)
        assert int(bound[v]) >= truth
        if v not in seeds:
            assert run.search(np.array([v])) == float(truth)
            assert truth * fixed_point(weights).unit == pytest.approx(
                marginal_gains(graph, seeds, hops, weights=weights)[v], abs=1e-12
            )


def test_bounds_rounded_down_or_kept_in_float32_would_be_caught(monkeypatch):
    """Negative control: the tests above see bounds that fall below the truth."""
    honest = kernels.bound_pass

    def spoiled(change):
        def bound_pass(*arguments):
            honest(*arguments)
            arguments[-1][:] = change(arguments[-1])

        return bound_pass

    def differs(change):
        monkeypatch.setattr(kernels, "bound_pass", spoiled(change))
        wrong = 0
        for seed in range(20):
            graph = a_graph(seed, 40, 110)
            weights = np.random.default_rng(seed).integers(2**24, 2**24 + 9, 40).astype(float)
            problem = make_problem(graph, 40, 2, weights=weights)
            bound = lazy.LazyRun(problem, fixed_point(weights))._bound(
                graph.out_ptr, graph.out_ids, np.full(40, 127, dtype=np.int8)
            )
            truth = [sum(fixed_point(weights).units[list(ball)]) for ball in balls(graph, 2)]
            wrong += bool((bound < np.array(truth)).any())
        monkeypatch.setattr(kernels, "bound_pass", honest)
        return wrong

    assert differs(lambda bound: bound) == 0
    assert differs(lambda bound: bound.astype(np.float32).astype(np.int64)) > 0
    assert differs(lambda bound: bound - bound // 1000) > 0
    # And the sequence itself goes wrong where bounds are too low by a third.
    monkeypatch.setattr(kernels, "bound_pass", spoiled(lambda bound: bound * 2 // 3))
    problems = [make_problem(a_graph(seed, 40, 70), 40, 2) for seed in range(20)]
    assert any(lazy.solve(p).rows.tolist() != by_definition(p) for p in problems)


@given(GRAPHS, st.integers(2, 5))
@settings(max_examples=40, deadline=None)
def test_tiles_count_whom_each_reaches(drawn, hops):
    seed, n, arcs, directed = drawn
    graph = a_graph(seed, n, arcs, directed)
    targets = np.random.default_rng(seed).permutation(n)[: n // 2 + 1].astype(np.int64)
    rows = np.arange(n, dtype=np.int64)
    exact = balls(graph, hops)
    tiles = ReachTiles(graph, hops)
    for worth in (None, np.arange(1, len(targets) + 1, dtype=np.int64)):
        for _ in range(2):  # the second time in rooms that are not clean
            found = np.zeros(n, dtype=np.int64)
            tiles.count(targets, rows, n, found, worth)
            value = dict(
                zip(targets.tolist(), worth if worth is not None else [1] * n, strict=False)
            )
            assert found.tolist() == [sum(value.get(w, 0) for w in exact[v]) for v in range(n)]
    bits, _ = tiles.reach(targets, hops)
    for i, target in enumerate(targets.tolist()):
        reached = (bits[:, i // 64] >> np.uint64(i % 64)) & np.uint64(1)
        assert reached.tolist() == [target in exact[v] for v in range(n)]


def test_sketch_is_close_says_so_and_repeats():
    graph = a_graph(1, 2000, 9000)
    problem = make_problem(graph, 30, 2, seed=5)
    head = sketch.solve(problem)
    assert "statistical" in head.method
    assert head.rows.tolist() == sketch.solve(problem).rows.tolist()
    assert head.gains.sum() == coverage(graph, head.rows, 2)
    assert head.gains.sum() >= 0.98 * lazy.solve(problem).gains.sum()
    weights = np.random.default_rng(0).random(2000)
    costs = np.random.default_rng(1).random(2000) + 0.5
    problem = make_problem(
        graph, None, 3, weights=weights, costs=costs, budget=20.0, warm_start=[7]
    )
    head = sketch.solve(problem)
    assert head.rows[0] == 7
    assert costs[head.rows].sum() <= 20.0
    assert head.gains.sum() == pytest.approx(coverage(graph, head.rows, 3, weights=weights))
    assert head.gains.sum() >= 0.98 * lazy.solve(problem).gains.sum()


def test_late_and_interrupted_runs_return_what_there_is(monkeypatch):
    graph = a_graph(2, 500, 3000)
    problem = make_problem(graph, 100, 2, time_limit=1e-9)
    monkeypatch.setattr(lazy, "SLICE_ARCS", 3000)
    for picked in (lazy.solve(problem), sketch.solve(problem)):
        assert not picked.finished
        assert len(picked.rows) < 100
        assert picked.gains.sum() == coverage(graph, picked.rows, 2)

    def press(done):
        if done >= 3:
            raise KeyboardInterrupt

    whole = lazy.solve(replace(problem, deadline=None))
    picked = lazy.solve(replace(problem, deadline=None, watch=press))
    assert not picked.finished
    assert 3 <= len(picked.rows) < 100
    assert picked.rows.tolist() == whole.rows.tolist()[: len(picked.rows)]
