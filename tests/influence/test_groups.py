"""Floors: met where greedy can, said by name, and refused where they make no sense."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core.errors import InputError
from shoal.influence import greedy
from shoal.influence.counting import distance_labels
from shoal.influence.cover import max_cover
from shoal.influence.graph import Graph
from shoal.influence.groups import CoverGroup, floor_seeds, floors_met
from shoal.influence.problem import make_problem


def two_villages() -> Graph:
    """A town around 0 (ten leaves) and a village around 1 (three)."""
    return Graph.from_edges([0] * 10 + [1] * 3, list(range(2, 15)), directed=True, n=16)


def test_a_floor_brings_the_village_in():
    graph, problem = two_villages(), make_problem(two_villages(), 1)
    village = CoverGroup("village", [12, 13, 14], 1.0)
    assert greedy.solve(problem).rows.tolist() == [0]
    assert not floors_met(problem, [village], [0])[0].met
    first = floor_seeds(problem, [village])
    assert first.tolist() == [1]
    report = floors_met(problem, [village], first)[0]
    assert (report.name, report.covered, report.needed, report.size, report.met) == (
        "village", 3, 3, 3, True,
    )  # fmt: skip
    both = make_problem(graph, 2)
    picked = greedy.solve(replace(both, warm_start=floor_seeds(both, [village])))
    assert sorted(picked.rows.tolist()) == [0, 1]


@settings(max_examples=80)
@given(st.data())
def test_each_pick_is_the_greedy_one(data):
    n = data.draw(st.integers(2, 10))
    node = st.integers(0, n - 1)
    pairs = data.draw(st.lists(st.tuples(node, node), max_size=25))
    a, b = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    graph = Graph.from_edges(a, b, directed=True, n=n)
    hops = data.draw(st.integers(1, 3))
    groups = [
        CoverGroup(f"g{i}", nodes, data.draw(st.sampled_from([0.3, 0.5, 1.0])))
        for i, nodes in enumerate(
            data.draw(st.lists(st.lists(node, min_size=1, unique=True), min_size=1, max_size=3))
        )
    ]
    problem = make_problem(graph, data.draw(st.integers(1, n)), hops)
    rows = floor_seeds(problem, groups)

    def value(chosen):
        return sum(min(f.covered, f.needed) for f in floors_met(problem, groups, chosen))

    for turn, row in enumerate(rows.tolist()):
        values = [value([*rows[:turn], v]) for v in range(n)]
        assert row == int(np.argmax(values))
        assert values[row] > value(rows[:turn])
    met = all(f.met for f in floors_met(problem, groups, rows))
    assert met or len(rows) == problem.k
    within = distance_labels(graph, rows, hops) <= hops
    for group, report in zip(groups, floors_met(problem, groups, rows), strict=True):
        assert report.covered == sum(within[v] for v in group.nodes)


def test_limits_bind():
    graph = two_villages()
    village = CoverGroup("village", [12, 13, 14], 1.0)
    shut = make_problem(graph, 2, exclude=[1])
    assert 1 not in floor_seeds(shut, [village])
    assert not floors_met(shut, [village], floor_seeds(shut, [village]))[0].met
    costs = np.ones(16)
    costs[1] = 9
    poor = make_problem(graph, costs=costs, budget=2)
    assert costs[floor_seeds(poor, [village])].sum() <= 2
    kept = make_problem(graph, 2, warm_start=[5])
    assert floor_seeds(kept, [village]).tolist() == [5, 1]
    assert floor_seeds(kept, []).tolist() == [5]


@pytest.mark.parametrize(
    "group",
    [
        CoverGroup("a", [], 0.5),
        CoverGroup("a", [99], 0.5),
        CoverGroup("a", [1], 0.0),
        CoverGroup("a", [1], 1.5),
        CoverGroup("a", [1], float("nan")),
        "a",
    ],
)
def test_groups_that_make_no_sense(group):
    with pytest.raises(InputError):
        floor_seeds(make_problem(two_villages(), 1), [group])


def test_two_groups_of_one_name():
    twice = [CoverGroup("a", [1], 0.5), CoverGroup("a", [2], 0.5)]
    with pytest.raises(InputError, match="two groups"):
        floor_seeds(make_problem(two_villages(), 1), twice)


def test_max_cover_meets_floors_and_says_so():
    result = max_cover(
        two_villages(), 2, groups=[CoverGroup("village", [12, 13, 14], 1.0)], refine="swap"
    )
    assert sorted(result.seeds) == [0, 1]
    assert "floor of village met: 3 of 3 needed" in result.notes
    lost = max_cover(two_villages(), 1, groups=[CoverGroup("all", range(16), 1.0)])
    assert any("floor of all NOT met: 11 of 16" in note for note in lost.notes)
