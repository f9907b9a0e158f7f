"""The one exact checker, against sets, and the properties of what it counts."""

from __future__ import annotations

import networkx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core.errors import InputError, NotFoundError
from shoal.influence.counting import (
    FAR,
    ball_sizes,
    coverage,
    distance_labels,
    marginal_gains,
)
from shoal.influence.graph import Graph

DRAWN = st.tuples(
    st.integers(0, 10**6), st.integers(1, 25), st.integers(0, 80), st.booleans(), st.integers(1, 5)
)


def a_graph(drawn):
    seed, n, arcs, directed, _ = drawn
    random = np.random.default_rng(seed)
    return Graph.from_edges(
        random.integers(0, n, arcs), random.integers(0, n, arcs), n=n, directed=directed
    )


def as_networkx(graph):
    other = networkx.DiGraph()
    other.add_nodes_from(range(graph.n))
    source = np.repeat(np.arange(graph.n), graph.out_degrees())
    other.add_edges_from(zip(source.tolist(), graph.out_ids.tolist(), strict=True))
    return other


@given(DRAWN)
@settings(max_examples=60, deadline=None)
def test_labels_coverage_and_balls_are_those_of_breadth_first_search(drawn):
    graph, hops = a_graph(drawn), drawn[4]
    other = as_networkx(graph)
    away = {v: networkx.single_source_shortest_path_length(other, v, hops) for v in other}
    seeds = np.random.default_rng(drawn[0]).permutation(graph.n)[:3].tolist()
    nearest = [min((away[s].get(w, FAR) for s in seeds), default=FAR) for w in range(graph.n)]
    assert distance_labels(graph, seeds, hops).tolist() == nearest
    weights = np.arange(graph.n) / 4
    assert coverage(graph, seeds, hops) == sum(label != FAR for label in nearest)
    assert coverage(graph, seeds, hops, weights=weights) == sum(
        w for w, label in zip(weights, nearest, strict=True) if label != FAR
    )
    assert ball_sizes(graph, hops).tolist() == [len(away[v]) for v in range(graph.n)]
    more = [coverage(graph, [*seeds, v], hops) - coverage(graph, seeds, hops) for v in other]
    assert marginal_gains(graph, seeds, hops).tolist() == more


@given(DRAWN)
@settings(max_examples=60, deadline=None)
def test_monotone_and_submodular(drawn):
    graph, hops = a_graph(drawn), drawn[4]
    order = np.random.default_rng(drawn[0]).permutation(graph.n)
    small, large = order[: graph.n // 4], order[: graph.n // 2]
    assert coverage(graph, small, hops) <= coverage(graph, large, hops)
    assert (marginal_gains(graph, small, hops) >= marginal_gains(graph, large, hops)).all()


@given(DRAWN)
@settings(max_examples=40, deadline=None)
def test_names_do_not_matter(drawn):
    graph, hops = a_graph(drawn), drawn[4]
    turn = np.random.default_rng(drawn[0]).permutation(graph.n)
    source = np.repeat(np.arange(graph.n), graph.out_degrees())
    turned = Graph.from_edges(turn[source], turn[graph.out_ids], n=graph.n, directed=True)
    assert coverage(graph, [0], hops) == coverage(turned, [int(turn[0])], hops)
    assert ball_sizes(graph, hops).tolist() == ball_sizes(turned, hops)[turn].tolist()


def test_undirected_is_both_arcs_and_direction_matters():
    random = np.random.default_rng(0)
    a, b = random.integers(0, 40, 60), random.integers(0, 40, 60)
    both = Graph.from_edges(np.r_[a, b], np.r_[b, a], n=40, directed=True)
    assert (
        ball_sizes(Graph.from_edges(a, b, n=40, directed=False), 3) == ball_sizes(both, 3)
    ).all()
    one_way = Graph.from_edges(a, b, n=40, directed=True)
    assert ball_sizes(one_way, 2).tolist() != ball_sizes(one_way.reversed(), 2).tolist()


def test_approximate_balls_are_within_their_error():
    random = np.random.default_rng(1)
    graph = Graph.from_edges(
        random.integers(0, 3000, 15_000), random.integers(0, 3000, 15_000), n=3000, directed=True
    )
    for hops in (1, 2, 3):
        exact = ball_sizes(graph, hops)
        counted = ball_sizes(graph, hops, approx=True)
        # Standard error 6.5 %; few nodes may share a register, which costs whole nodes.
        assert (np.abs(counted - exact) <= 4 * 0.065 * exact + 3).mean() > 0.998
        assert abs((counted / exact).mean() - 1) < 0.065
    assert (ball_sizes(graph, 2, approx=True) == ball_sizes(graph, 2, approx=True)).all()


def test_named_nodes_and_empty_graphs():
    graph = Graph.from_edges(["a", "b"], ["b", "c"], directed=True)
    assert coverage(graph, ["a"], 2) == 3
    assert coverage(graph, [], 2) == 0
    assert coverage(graph, ["a", "a"], 1) == 2
    assert coverage(graph, ["a"], weights={"a": 1.5, "b": 0.25, "c": 9}) == 1.75
    empty = Graph.from_edges([], [], n=0, directed=True)
    assert coverage(empty, []) == 0
    assert ball_sizes(empty).tolist() == []


def test_bad_input():
    graph = Graph.from_edges([0], [1], n=3, directed=True)
    for hops in (0, -1, 127, 1.5, True):
        with pytest.raises(InputError, match="hops"):
            coverage(graph, [0], hops)
    with pytest.raises(NotFoundError, match="seeds"):
        coverage(graph, [3])
    with pytest.raises(InputError, match="weights"):
        coverage(graph, [0], weights=[1, 2, float("nan")])
    with pytest.raises(InputError, match="rows"):
        distance_labels(graph, [-1])
    with pytest.raises(InputError, match="approximately"):
        ball_sizes(graph, weights=[1, 1, 1], approx=True)
