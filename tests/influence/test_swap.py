"""Swap search: never worse, exact counts and labels, limits kept."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core.errors import InputError
from shoal.influence import _swap_kernels as kernels
from shoal.influence.counting import coverage, distance_labels
from shoal.influence.graph import Graph
from shoal.influence.problem import make_problem
from shoal.influence.swap import refine


@st.composite
def cases(draw):
    n = draw(st.integers(2, 14))
    pairs = draw(st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=40))
    a, b = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    graph = Graph.from_edges(a, b, directed=draw(st.booleans()), n=n)
    weights = draw(
        st.none() | st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.25]), min_size=n, max_size=n)
    )
    seeds = draw(st.permutations(range(n)))[: draw(st.integers(1, min(5, n)))]
    return graph, weights, np.array(seeds, dtype=np.int64), draw(st.integers(1, 4))


def balls(graph: Graph, hops: int) -> list[set[int]]:
    return [set(np.flatnonzero(distance_labels(graph, [v], hops) <= hops)) for v in range(graph.n)]


def value(sets: list[set[int]], rows, weight: np.ndarray) -> float:
    reached = set().union(*(sets[v] for v in rows)) if len(rows) else set()
    return float(sum(weight[j] for j in reached))


@settings(max_examples=150)
@given(cases())
def test_never_worse_and_ends_where_no_exchange_helps(case):
    graph, weights, seeds, hops = case
    weight = np.ones(graph.n) if weights is None else np.array(weights)
    problem = make_problem(graph, len(seeds), hops, weights=weights)
    picked = refine(problem, seeds)
    sets = balls(graph, hops)
    after = value(sets, picked.rows, weight)
    assert after >= value(sets, seeds, weight)
    assert picked.gains.sum() == pytest.approx(after)
    assert picked.work["local_optimum"] == 1
    assert len(set(picked.rows.tolist())) == len(picked.rows) <= len(seeds)
    rest = set(range(graph.n)) - set(picked.rows.tolist())
    for place, v in itertools.product(range(len(picked.rows)), sorted(rest)):
        other = [*picked.rows[:place], v, *picked.rows[place + 1 :]]
        assert value(sets, other, weight) <= after + 1e-9
    # Its own greedy order: gains are marginal, and none later would have added more.
    for turn, gain in enumerate(picked.gains):
        before = value(sets, picked.rows[:turn], weight)
        adds = [value(sets, [*picked.rows[:turn], v], weight) - before for v in picked.rows[turn:]]
        assert gain == pytest.approx(max(adds))
        assert adds[0] == pytest.approx(gain)


@settings(max_examples=150)
@given(cases(), st.data())
def test_double_labels_stay_exact_under_exchanges(case, data):
    """Near and next labels after leave and enter are those of a fresh search."""
    graph, _, seeds, hops = case
    weight = np.arange(1, graph.n + 1, dtype=np.int64)
    reach = np.int64(hops)
    near, second, by, second_by = kernels.label_twice(graph.out_ptr, graph.out_ids, seeds, reach)
    loss = np.zeros(len(seeds), dtype=np.int64)
    kernels.losses_far(weight, near, second, by, loss)
    seen = np.zeros(graph.n + 1, dtype=np.int32)
    queue, hit = np.empty(graph.n, dtype=np.int32), np.empty(graph.n, dtype=np.int32)
    for stamp in range(1, 9, 2):
        outside = sorted(set(range(graph.n)) - set(seeds.tolist()))
        if not outside:
            return
        slot = data.draw(st.integers(0, len(seeds) - 1))
        v = data.draw(st.sampled_from(outside))
        kernels.leave_far(
            graph.out_ptr, graph.out_ids, graph.in_ptr, graph.in_ids, weight, seeds[slot], slot,
            reach, near, second, by, second_by, loss, seen, stamp, queue, hit,
        )  # fmt: skip
        kernels.enter_far(
            graph.out_ptr, graph.out_ids, weight, np.int64(v), slot,
            reach, near, second, by, second_by, loss, seen, stamp + 1, queue,
        )  # fmt: skip
        seeds[slot] = v
        each = np.array([distance_labels(graph, [s], hops) for s in seeds])
        ordered = np.sort(each, axis=0)
        np.testing.assert_array_equal(near, ordered[0])
        np.testing.assert_array_equal(second, ordered[1] if len(seeds) > 1 else 127)
        alone = [
            weight[(each[i] <= hops) & ((each <= hops).sum(axis=0) == 1)].sum()
            for i in range(len(seeds))
        ]
        np.testing.assert_array_equal(loss, alone)


@settings(max_examples=60)
@given(cases())
def test_bounds_are_never_below_what_is_reached(case):
    graph, _, seeds, hops = case
    weight = np.ones(graph.n, dtype=np.int64)
    label = distance_labels(graph, seeds, hops)
    bound = kernels.bounds_far(graph.out_ptr, graph.out_ids, weight, label, np.int64(hops))
    for v, ball in enumerate(balls(graph, hops)):
        assert bound[v] >= sum(label[j] == 127 for j in ball)


def hub_graph() -> Graph:
    """Two stars that greedy must split: 0 overlaps both 1 and 2."""
    a = [0] * 6 + [1] * 5 + [2] * 5
    b = [10, 11, 12, 20, 21, 22, 10, 11, 12, 13, 14, 20, 21, 22, 23, 24]
    return Graph.from_edges(a, b, directed=True, n=30)


def test_escapes_the_trap_of_greedy():
    graph = hub_graph()
    problem = make_problem(graph, 2)
    assert coverage(graph, [0, 1]) == 10
    picked = refine(problem, [0, 1])
    assert sorted(picked.rows.tolist()) == [1, 2]
    assert picked.gains.tolist() == [6, 6]
    assert picked.method == "swap"


@pytest.mark.parametrize("hops", [1, 2])
def test_limits_are_kept(hops):
    graph = hub_graph()
    kept = refine(make_problem(graph, 2, hops, warm_start=[0]), [0, 1])
    assert kept.rows[0] == 0
    shut = refine(make_problem(graph, 2, hops, exclude=[2]), [0, 1])
    assert 2 not in shut.rows
    costs = np.ones(30)
    costs[2] = 5
    dear = refine(make_problem(graph, hops=hops, costs=costs, budget=3), [0, 1])
    assert 2 not in dear.rows
    assert costs[dear.rows].sum() <= 3
    costs[2] = 2
    paid = refine(make_problem(graph, hops=hops, costs=costs, budget=3), [0, 1])
    assert sorted(paid.rows.tolist()) == [1, 2]


def test_towards_a_target_fewer_seeds_may_do():
    graph = hub_graph()
    problem = make_problem(graph, target=12 / 30)
    picked = refine(problem, [0, 1, 2])
    assert len(picked.rows) <= 3
    assert picked.gains.sum() >= 12


def test_a_deadline_that_has_passed_is_said():
    problem = make_problem(hub_graph(), 2, time_limit=1e-9)
    picked = refine(problem, [0, 1])
    assert not picked.finished
    assert picked.gains.sum() >= 10


def test_little_effort_is_said():
    rng = np.random.default_rng(1)
    graph = Graph.from_edges(
        rng.integers(0, 300, 900), rng.integers(0, 300, 900), directed=True, n=300
    )
    problem = make_problem(graph, 20, 2)
    rows = np.arange(20)
    little = refine(problem, rows, max_arcs=1)
    assert little.work["local_optimum"] == 0
    assert refine(problem, rows).gains.sum() >= little.gains.sum()


@pytest.mark.parametrize("rows", [[0, 0], [0, 99], [-1]])
def test_rows_must_be_seeds(rows):
    with pytest.raises(InputError, match="rows"):
        refine(make_problem(hub_graph(), 2), rows)


def test_warm_start_must_come_first():
    with pytest.raises(InputError, match="warm start"):
        refine(make_problem(hub_graph(), 2, warm_start=[3]), [0, 3])


def test_negative_control_pruning_by_the_first_label_misses_exchanges():
    """Stopping where ONE seed is as near (the rule for marginal gains) would be wrong here."""
    # 0 -> 1 -> {2, 3}; 4 -> 1 and 4 -> 5: 4 is better than 0, but all of 0's nodes lie behind 1.
    graph = Graph.from_edges([0, 1, 1, 4, 4, 4], [1, 2, 3, 1, 5, 6], directed=True, n=7)
    problem = make_problem(graph, 1, 2)
    assert refine(problem, [0]).rows.tolist() == [4]
    near = distance_labels(graph, [0], 2)
    blind = kernels.bounds_far(
        graph.out_ptr, graph.out_ids, np.ones(7, dtype=np.int64), near, np.int64(2)
    )
    assert blind[4] < 4 <= coverage(graph, [4], 2) - 1  # what the wrong rule would see
