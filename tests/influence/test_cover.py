"""The one call: against every choice, a MILP, and wrong input of every kind."""

from __future__ import annotations

import itertools
import json
import math
import sys
import types

import numpy as np
import pytest
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import eye_array, hstack, lil_array

from shoal.core.errors import InputError, UnavailableError
from shoal.influence.counting import ball_sizes, coverage
from shoal.influence.cover import METHODS, max_cover
from shoal.influence.graph import Graph
from shoal.influence.problem import make_problem
from shoal.influence.ranking import pick_by_score, vote_scores

OWN_METHODS = [method for method in METHODS if method != "grat"]


def a_graph(seed, n, arcs, directed=True):
    random = np.random.default_rng(seed)
    source = (random.random(arcs) ** 2 * n).astype(int)
    return Graph.from_edges(source, random.integers(0, n, arcs), n=n, directed=directed)


def best_of_all(graph, k, hops):
    return max(coverage(graph, rows, hops) for rows in itertools.combinations(range(graph.n), k))


@pytest.mark.parametrize("hops", [1, 2, 3])
def test_against_every_choice(hops):
    for seed in range(6):
        graph = a_graph(seed, 12, 16, directed=bool(seed % 2))
        for k in (1, 2, 3):
            best = best_of_all(graph, k, hops)
            for method in ("auto", "exact", "lazy", "sketch"):
                result = max_cover(graph, k, hops, method=method)
                assert result.covered == coverage(graph, result.seeds, hops)
                assert result.covered <= best
                assert result.covered >= (1 - (1 - 1 / k) ** k) * best - 1e-9
        assert max_cover(graph, 1, hops).covered == best_of_all(graph, 1, hops)


def optimum(graph, k, hops, weights):
    """The best choice by mixed-integer programming (HiGHS)."""
    n = graph.n
    reach = lil_array((n, n))
    for v in range(n):
        from_v = np.flatnonzero(ball_labels(graph, v, hops))
        reach[from_v, v] = 1
    answer = milp(
        np.r_[np.zeros(n), -weights],
        constraints=[
            LinearConstraint(hstack([-reach.tocsr(), eye_array(n)]).tocsr(), -np.inf, 0),
            LinearConstraint(np.r_[np.ones(n), np.zeros(n)][None, :], 0, k),
        ],
        bounds=Bounds(0, 1),
        integrality=np.r_[np.ones(n), np.zeros(n)],
    )
    return -answer.fun


def ball_labels(graph, v, hops):
    from shoal.influence.counting import distance_labels

    return distance_labels(graph, [v], hops) <= hops


@pytest.mark.parametrize(("hops", "n"), [(1, 200), (2, 120)])
def test_against_the_optimum(hops, n):
    graph = a_graph(hops, n, 3 * n)
    weights = np.random.default_rng(0).random(n)
    best = optimum(graph, 8, hops, weights)
    result = max_cover(graph, 8, hops, weights=weights)
    assert (1 - 1 / math.e) * best <= result.covered <= best * (1 + 1e-9)
    assert result.covered >= 0.9 * best  # far above the guarantee, as ever


@pytest.mark.parametrize("method", OWN_METHODS)
@pytest.mark.parametrize("hops", [1, 2, 3])
def test_every_method_keeps_every_limit(method, hops):
    graph = a_graph(7, 80, 220)
    random = np.random.default_rng(7)
    weights, costs = random.random(80), random.random(80) + 0.25
    result = max_cover(
        graph,
        15,
        hops,
        method=method,
        weights=weights,
        costs=costs,
        budget=6.0,
        candidates=range(70),
        exclude=[2, 3],
        warm_start=[75],
        seed=3,
    )
    assert result.seeds[0] == 75
    assert len(set(result.seeds)) == len(result.seeds) <= 15
    assert all(seed < 70 and seed not in (2, 3) for seed in result.seeds[1:])
    assert costs[result.rows].sum() <= 6.0
    assert result.covered == pytest.approx(coverage(graph, result.seeds, hops, weights=weights))
    assert result.gains.sum() == pytest.approx(result.covered)
    assert result.curve()[-1] == pytest.approx(result.covered)
    target = max_cover(graph, hops=hops, method=method, target=0.6)
    assert target.covered >= 0.6 * 80
    assert coverage(graph, target.seeds[:-1], hops) < 0.6 * 80
    json.dumps(result.to_json())


def test_named_nodes_prefixes_and_notes():
    graph = Graph.from_edges(list("aabcx"), list("bcdey"), directed=True)
    result = max_cover(graph, 4, 2)
    assert result.seeds == ["a", "x"]
    assert result.notes == ("2 seeds cover everything",)
    assert result.gains.tolist() == [5, 2]
    assert result.prefix(1).seeds == ["a"]
    assert result.prefix(1).covered == coverage(graph, ["a"], 2)
    for wrong in (-1, 3, 1.0, True):
        with pytest.raises(InputError, match="k"):
            result.prefix(wrong)
    note = max_cover(graph, 4, 2, candidates=["b", "c"]).notes
    assert note == ("2 seeds cover all that the candidates can cover",)
    (note,) = max_cover(graph, hops=1, target=1.0, candidates=["x"]).notes
    assert note.startswith("the target was not reached")
    assert max_cover(graph, 2, 1, weights=dict.fromkeys("abcdexy", 0.0)).seeds == []


def test_prefixes_are_the_answers_for_fewer():
    graph = a_graph(9, 90, 260)
    for hops in (1, 2):
        whole = max_cover(graph, 40, hops)
        for k in (1, 5, 17):
            assert max_cover(graph, k, hops).seeds == whole.seeds[:k]


def test_degenerate_graphs():
    empty = Graph.from_edges([], [], n=0, directed=True)
    assert max_cover(empty, target=0.5).seeds == []
    with pytest.raises(InputError, match="no nodes"):
        max_cover(empty, 1)
    lonely = Graph.from_edges([], [], n=4, directed=False)
    for hops in (1, 2, 4):
        for method in OWN_METHODS:
            assert sorted(max_cover(lonely, 3, hops, method=method).seeds) == [0, 1, 2]
    one = Graph.from_edges([0], [0], n=1, directed=True)
    assert max_cover(one, 1, 126).covered == 1


def test_the_farthest_hops():
    path = Graph.from_edges(range(299), range(1, 300), n=300, directed=True)
    for method in ("exact", "sketch"):
        result = max_cover(path, 3, 126, method=method)
        assert result.covered == 300
        assert result.gains[0] == 127 == ball_sizes(path, 126).max()


def test_scores_vote_and_degree():
    graph = Graph.from_edges([0, 0, 1, 2], [2, 3, 3, 3], n=4, directed=True)
    assert vote_scores(graph).tolist() == pytest.approx([1 + 1 / 3, 1 / 3, 1 / 3, 0])
    assert max_cover(graph, 2, method="degree").seeds == [0, 1]
    assert max_cover(graph, 2, method="vote").seeds == [0, 1]
    problem = make_problem(graph, 2)
    assert pick_by_score(problem, [0, 0, 5, 5], "mine").rows.tolist() == [2, 3]
    with pytest.raises(InputError, match="row 2"):
        pick_by_score(problem, [0, np.nan, 5, 5], "mine")
    with pytest.raises(InputError, match="scores"):
        pick_by_score(problem, [0, 5], "mine")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"k": 0}, "'k'"),
        ({"k": -3}, "'k'"),
        ({"k": 6}, "1 to 5"),
        ({"k": 1.5}, "'k'"),
        ({"k": True}, "'k'"),
        ({}, "how many"),
        ({"k": 1, "hops": 0}, "'hops'"),
        ({"k": 1, "hops": 127}, "'hops'"),
        ({"k": 1, "hops": "2"}, "'hops'"),
        ({"k": 1, "weights": [1, 1, math.nan, 1, 1]}, "node 'c'"),
        ({"k": 1, "weights": [1, 1, 1, -1, 1]}, "row 4"),
        ({"k": 1, "weights": [1, 1, 1, math.inf, 1]}, "row 4"),
        ({"k": 1, "weights": [1, 1]}, "'weights'"),
        ({"k": 1, "weights": ["x"] * 5}, "'weights'"),
        ({"k": 1, "weights": {"a": 1.0}}, "'b'"),
        ({"k": 1, "weights": {"zz": 1.0}}, "'zz'"),
        ({"budget": 3}, "costs"),
        ({"budget": 0, "costs": [1] * 5}, "'budget'"),
        ({"budget": math.nan, "costs": [1] * 5}, "'budget'"),
        ({"k": 1, "costs": [1] * 5}, "'costs'"),
        ({"budget": 3, "costs": [1, 1, 0, 1, 1]}, "row 3"),
        ({"target": 0}, "'target'"),
        ({"target": 1.01}, "'target'"),
        ({"k": 1, "candidates": []}, "'candidates'"),
        ({"k": 1, "candidates": "ab"}, "'candidates'"),
        ({"k": 1, "candidates": ["nobody"]}, "'nobody'"),
        ({"k": 1, "exclude": list("abcde")}, "'exclude'"),
        ({"k": 2, "warm_start": ["a", "a"]}, "twice"),
        ({"k": 1, "warm_start": ["a", "b"]}, "'warm_start'"),
        ({"budget": 1, "costs": [2] * 5, "warm_start": ["a"]}, "'warm_start'"),
        ({"k": 1, "time_limit": 0}, "'time_limit'"),
        ({"k": 1, "n_jobs": 0}, "'n_jobs'"),
        ({"k": 1, "seed": 0.5}, "'seed'"),
        ({"k": 1, "method": "best"}, "'method'"),
        ({"k": 1, "refine": "luck"}, "'refine'"),
        ({"k": 1, "certificate": "stamp"}, "'certificate'"),
    ],
)
def test_wrong_input_is_named(options, said):
    graph = Graph.from_edges(list("abcd"), list("bcde"), directed=True)
    with pytest.raises(InputError, match=said):
        max_cover(graph, **options)


def test_a_graph_is_asked_for():
    with pytest.raises(InputError, match="Graph"):
        max_cover([(0, 1)], 1)


def test_refined_and_proven():
    graph = a_graph(11, 150, 500)
    for hops in (1, 2):
        plain = max_cover(graph, 12, hops)
        result = max_cover(graph, 12, hops, refine="swap", certificate="lagrangian")
        assert plain.covered <= result.covered <= result.upper_bound
        assert result.ratio == pytest.approx(result.covered / result.upper_bound)
        online = max_cover(graph, 12, hops, certificate="online")
        assert online.covered <= online.upper_bound
        assert result.bound_kind == "proven"


def test_a_bar_does_not_change_the_answer():
    graph = a_graph(12, 60, 200)
    assert max_cover(graph, 9, 2, progress=True).seeds == max_cover(graph, 9, 2).seeds


def test_the_network_is_asked_for_by_name(monkeypatch):
    graph = a_graph(13, 40, 120)

    class Scores:
        @staticmethod
        def bundled(hops):
            assert hops == 3  # the farthest that networks were trained for
            return Scores()

        def score(self, graph):
            return -np.arange(graph.n, dtype=float)

    fake = types.ModuleType("shoal.influence.fastcover")
    fake.FastCover = Scores
    monkeypatch.setitem(sys.modules, "shoal.influence.fastcover", fake)
    result = max_cover(graph, 3, 5, method="grat")
    assert (result.seeds, result.method) == ([0, 1, 2], "grat")
    monkeypatch.setitem(sys.modules, "shoal.influence.fastcover", None)
    with pytest.raises(UnavailableError, match="grat"):
        max_cover(graph, 3, 1, method="grat")
