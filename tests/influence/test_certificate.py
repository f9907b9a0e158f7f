"""Bounds: never below the best, exact to the last bit, and what breaks them is caught."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import LinearConstraint, linprog, milp
from scipy.sparse import coo_array, hstack, identity

from shoal.core.errors import InputError
from shoal.influence import _certificate_kernels as kernels
from shoal.influence import greedy, lazy
from shoal.influence.certificate import evaluate, lagrangian, limits_of, online
from shoal.influence.counting import coverage, distance_labels
from shoal.influence.graph import Graph
from shoal.influence.problem import CoverProblem, make_problem
from shoal.influence.reach import reach_of
from shoal.influence.swap import refine


def balls(graph: Graph, hops: int) -> np.ndarray:
    """Return bool [n, n]: row i covers column j."""
    return np.array([distance_labels(graph, [v], hops) <= hops for v in range(graph.n)])


def best_of_all(problem: CoverProblem) -> Fraction:
    """Return the optimum by trying every set within the limits, in exact numbers."""
    n = problem.graph.n
    reach = balls(problem.graph, problem.hops)
    weight = (
        [Fraction(1)] * n if problem.weights is None else [Fraction(w) for w in problem.weights]
    )
    first = problem.warm_start.tolist()
    free = [
        v for v in range(n) if v not in first and (problem.allowed is None or problem.allowed[v])
    ]
    best = Fraction(0)
    for size in range(min(problem.k - len(first), len(free)) + 1):
        for more in itertools.combinations(free, size):
            rows = [*first, *more]
            if problem.budget is not None and problem.costs[rows].sum() > problem.budget:
                continue
            within = reach[rows].any(axis=0) if rows else np.zeros(n, dtype=bool)
            best = max(best, sum((weight[j] for j in np.flatnonzero(within)), Fraction(0)))
    return best


def solve(problem: CoverProblem):
    return (greedy if problem.hops == 1 else lazy).solve(problem)


WEIGHTS = st.sampled_from([0.0, 0.1, 1.0, 3.0, 1 / 3, 1e-9, 7e6])


@st.composite
def problems(draw, most=9):
    n = draw(st.integers(1, most))
    pairs = draw(st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=30))
    a, b = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    graph = Graph.from_edges(a, b, directed=draw(st.booleans()), n=n)
    k = draw(st.integers(1, min(n, 4)))
    options: dict = {}
    if draw(st.booleans()):
        options["weights"] = draw(st.lists(WEIGHTS, min_size=n, max_size=n))
    if draw(st.booleans()):
        options["costs"] = draw(st.lists(st.sampled_from([0.3, 1.0, 1.7]), min_size=n, max_size=n))
        options["budget"] = draw(st.sampled_from([0.9, 2.0, 3.4]))
    if draw(st.booleans()):
        options["exclude"] = draw(st.lists(st.integers(0, n - 1), max_size=n - 1, unique=True))
    if draw(st.booleans()) and "costs" not in options:
        options["warm_start"] = [draw(st.integers(0, n - 1))]
    try:
        return make_problem(graph, k, draw(st.integers(1, 3)), **options)
    except InputError:
        return make_problem(graph, k, 1)


@settings(max_examples=120)
@given(problems())
def test_bounds_are_never_below_the_best(problem):
    picked = solve(problem)
    best = best_of_all(problem)
    covered = float(picked.gains.sum())
    for bound in (
        online(problem, picked.rows, picked.gains),
        lagrangian(problem, picked.rows, covered, iterations=50),
        lagrangian(problem, picked.rows, 0.0, iterations=3),
    ):
        assert bound.kind == "proven"
        assert Fraction(bound.value) >= best
        assert bound.value <= problem.total * (1 + 1e-9) + 1e-12


@settings(max_examples=150)
@given(problems(), st.data())
def test_any_multipliers_prove_a_bound(problem, data):
    problem = replace(problem, warm_start=np.empty(0, dtype=np.int64))
    n = problem.graph.n
    lam = data.draw(st.lists(st.floats(0, 1), min_size=n, max_size=n))
    weight = np.ones(n) if problem.weights is None else problem.weights
    reach = reach_of(problem, weight, 1 << 20) if weight.sum() else None
    if reach is None:
        return
    assert Fraction(evaluate(reach, limits_of(problem, np.arange(0)), lam)) >= best_of_all(problem)


def test_fourteen_nodes_every_set():
    rng = np.random.default_rng(5)
    for trial in range(6):
        graph = Graph.from_edges(
            rng.integers(0, 14, 30), rng.integers(0, 14, 30), directed=True, n=14
        )
        problem = make_problem(graph, 3, 1 + trial % 2)
        picked = refine(problem, solve(problem).rows)
        bound = lagrangian(problem, picked.rows, float(picked.gains.sum()))
        assert picked.gains.sum() <= best_of_all(problem) <= bound.value


def random_graph(n: int, arcs: int, seed: int) -> Graph:
    rng = np.random.default_rng(seed)
    # Heavy tails: sources by a power of a uniform number.
    a = (n * rng.random(arcs) ** 3).astype(np.int64)
    return Graph.from_edges(a, rng.integers(0, n, arcs), directed=True, n=n)


def program(problem: CoverProblem):
    """Return (objective, A, upper) of max sum w y with y_j <= sum x_i, as a minimisation."""
    n = problem.graph.n
    i, j = np.nonzero(balls(problem.graph, problem.hops))
    cover = coo_array((np.ones(len(i)), (j, i)), shape=(n, n))
    weight = np.ones(n) if problem.weights is None else problem.weights
    rows = hstack([-cover, identity(n)])
    limit = np.concatenate([np.ones(n), np.zeros(n)])
    return np.concatenate([np.zeros(n), -weight]), rows.tocsr(), limit


@pytest.mark.parametrize(("hops", "seed"), [(1, 0), (1, 1), (2, 2)])
def test_against_the_integer_and_the_linear_program(hops, seed):
    graph = random_graph(200, 500, seed)
    weights = None if seed != 1 else np.random.default_rng(9).random(200)
    problem = make_problem(graph, 8, hops, weights=weights)
    picked = refine(problem, solve(problem).rows)
    covered = float(picked.gains.sum())
    objective, rows, limit = program(problem)
    constraints = [
        LinearConstraint(rows, -np.inf, 0),
        LinearConstraint(limit[None, :], 0, problem.k),
    ]
    whole = milp(objective, constraints=constraints, integrality=np.ones(400), bounds=(0, 1))
    assert whole.status == 0
    bound = lagrangian(problem, picked.rows, covered)
    assert covered <= -whole.fun * (1 + 1e-9)
    assert bound.value >= -whole.fun * (1 - 1e-9)
    relaxed = linprog(
        objective,
        A_ub=np.vstack([rows.toarray(), limit]),
        b_ub=np.concatenate([np.zeros(200), [problem.k]]),
        bounds=(0, 1),
    )
    # The dual's optimum is the linear program's: above it by less than 1 %, and, where
    # nothing is rounded down, never below it.
    assert bound.value <= -relaxed.fun * 1.01
    if weights is not None:
        assert bound.value >= -relaxed.fun * (1 - 1e-9)
    assert online(problem, picked.rows, picked.gains).value >= bound.value


def test_bound_of_a_budget_against_the_integer_program():
    graph = random_graph(120, 300, 4)
    costs = 0.5 + np.random.default_rng(3).random(120)
    problem = make_problem(graph, costs=costs, budget=6.0)
    picked = refine(problem, solve(problem).rows)
    objective, rows, _ = program(problem)
    constraints = [
        LinearConstraint(rows, -np.inf, 0),
        LinearConstraint(np.concatenate([costs, np.zeros(120)])[None, :], 0, 6.0),
    ]
    whole = milp(objective, constraints=constraints, integrality=np.ones(240), bounds=(0, 1))
    bound = lagrangian(problem, picked.rows, float(picked.gains.sum()))
    assert round(-whole.fun) <= bound.value <= 1.1 * -whole.fun


def test_a_tight_case_is_proven_optimal():
    graph = Graph.from_edges([0, 0, 1, 1], [2, 3, 4, 5], directed=True, n=6)
    problem = make_problem(graph, 2)
    bound = lagrangian(problem, [0, 1], 6.0)
    assert (bound.value, bound.kind) == (6.0, "proven")
    assert lagrangian(make_problem(graph, 1), [0], 3.0).value == 3.0


def test_multipliers_returned_prove_the_value_again():
    problem = make_problem(random_graph(300, 900, 7), 10)
    picked = solve(problem)
    bound = lagrangian(problem, picked.rows, float(picked.gains.sum()))
    assert bound.weights is not None and bound.iterations > 0
    reach = reach_of(problem, np.ones(300), 1 << 20)
    assert evaluate(reach, limits_of(problem, picked.rows), bound.weights) == bound.value


def test_with_a_target_choices_of_as_many_seeds_are_bounded():
    problem = make_problem(random_graph(300, 900, 8), target=0.3)
    picked = solve(problem)
    bound = lagrangian(problem, picked.rows, float(picked.gains.sum()))
    assert bound.value < 300
    same = make_problem(problem.graph, len(picked.rows))
    assert bound.value == lagrangian(same, picked.rows, float(picked.gains.sum())).value


def test_more_hops_within_the_memory_are_proven_and_beyond_it_statistical():
    problem = make_problem(random_graph(400, 1600, 9), 6, 2)
    picked = solve(problem)
    covered = float(picked.gains.sum())
    proven = lagrangian(problem, picked.rows, covered)
    assert (proven.kind, proven.method) == ("proven", "lagrangian over the closure")
    drawn = lagrangian(problem, picked.rows, covered, memory=20_000)
    assert drawn.kind == "statistical" or drawn.method == "online"
    assert covered <= drawn.value
    if drawn.kind == "statistical":
        assert "drawn targets, confidence 0.999" in drawn.method
        assert drawn.weights is None


def test_a_statistical_bound_holds_as_often_as_it_says():
    """At confidence .8, 60 samples: fewer than 24 misses but for a chance below 1e-4."""
    graph = random_graph(150, 500, 10)
    problem = make_problem(graph, 3, 2)
    picked = refine(problem, solve(problem).rows)
    covered = float(picked.gains.sum())
    missed = 0
    for seed in range(60):
        bound = lagrangian(
            replace(problem, seed=seed), picked.rows, covered, memory=6000, confidence=0.8,
            iterations=50,
        )  # fmt: skip
        missed += bound.value < covered
    assert missed < 24


@pytest.mark.parametrize("wrong", [-0.001, 1.5, math.nan, math.inf])
def test_multipliers_outside_are_refused(wrong):
    problem = make_problem(Graph.from_edges([0], [1], directed=True, n=3), 1)
    reach = reach_of(problem, np.ones(3), 1 << 20)
    with pytest.raises(InputError, match="row 2"):
        evaluate(reach, limits_of(problem, np.arange(0)), [0.5, wrong, 0.5])
    with pytest.raises(InputError, match="lam"):
        evaluate(reach, limits_of(problem, np.arange(0)), [0.5])


@pytest.mark.parametrize("confidence", [0.0, 1.0, math.nan])
def test_confidence_is_a_probability(confidence):
    problem = make_problem(Graph.from_edges([0], [1], directed=True, n=3), 1)
    with pytest.raises(InputError, match="confidence"):
        lagrangian(problem, [0], 2.0, confidence=confidence)


def plain_bound(problem: CoverProblem, lam: np.ndarray) -> float:
    """The formula in plain floats, without any check: what the controls break."""
    reach = balls(problem.graph, problem.hops)
    weight = np.ones(problem.graph.n) if problem.weights is None else problem.weights
    sums = np.sort(reach @ (weight * lam))
    return float((weight * (1 - lam)).sum() + sums[len(sums) - problem.k :].sum())


def test_negative_control_multipliers_above_one_prove_nothing():
    """Ten lonely nodes and one seed: lambda = 2 would claim that nothing can be covered."""
    problem = make_problem(Graph.from_edges([0], [1], directed=True, n=12), 1)
    best = best_of_all(problem)
    assert plain_bound(problem, np.ones(12)) >= best
    assert plain_bound(problem, np.full(12, 2.0)) < best
    # Below zero: nodes that the best set does cover are taken off twice.
    lam = np.ones(12)
    lam[:2] = -1
    assert plain_bound(problem, lam) >= best  # this one still holds, by its own slack ...
    dense = make_problem(
        Graph.from_edges(np.repeat([0, 1, 2], 3), [3, 4, 5] * 3, directed=True, n=6), 2
    )
    assert best_of_all(dense) == 5
    assert plain_bound(dense, np.array([0, 0, 0, 2.0, 2.0, 2.0])) > 5


def test_negative_control_rounding_down_is_caught():
    """Weights whose float sum lies below their exact sum: without the guard UB < optimum."""
    rng = np.random.default_rng(1)
    caught = 0
    for _ in range(20):
        weights = rng.random(40) / 3
        graph = Graph.from_edges(np.zeros(39, dtype=int), np.arange(1, 40), directed=True, n=40)
        problem = make_problem(graph, 1, weights=weights)
        best = sum((Fraction(w) for w in weights), Fraction(0))
        total = 0.0
        for w in weights:  # the bound at lambda = 0 and at lambda = 1 is this plain sum
            total = math.nextafter(total + w, 0.0)
        caught += Fraction(total) < best
        assert Fraction(lagrangian(problem, [0], float(weights.sum())).value) >= best
        assert Fraction(online(problem, [0], [total]).value) >= best
    assert caught == 20


def test_negative_control_rounding_a_whole_optimum_needs_whole_weights():
    graph = Graph.from_edges([0], [1], directed=True, n=3)
    problem = make_problem(graph, 1, weights=[0.75, 0.75, 0.1])
    bound = lagrangian(problem, [0], 1.5)
    assert 1.5 <= bound.value < 1.5 * (1 + 1e-9)
    assert math.floor(bound.value) < best_of_all(problem)


@settings(max_examples=60)
@given(problems(), st.integers(1, 4))
def test_top_marginals_are_exact_at_the_top(problem, k):
    graph, hops = problem.graph, problem.hops
    seeds = [0]
    label = distance_labels(graph, seeds, hops)
    weight = np.ones(graph.n)
    reach = balls(graph, hops)
    exact = (reach & ~reach[0]).sum(axis=1).astype(float)
    bound = exact + np.arange(graph.n) % 3
    order = np.argsort(-bound, kind="stable")
    kernels.top_marginals(
        graph.out_ptr, graph.out_ids, weight, label, np.int64(hops), order, bound,
        np.int64(min(k, graph.n)), np.int64(1 << 40),
    )  # fmt: skip
    top = np.sort(exact)[::-1][:k]
    np.testing.assert_array_equal(np.sort(bound)[::-1][:k], top)


def test_online_takes_the_best_prefix():
    problem = make_problem(random_graph(300, 1500, 11), 12)
    picked = solve(problem)
    bound = online(problem, picked.rows, picked.gains)
    reach = balls(problem.graph, 1)
    texts = []
    for turn in range(13):
        within = reach[picked.rows[:turn]].any(axis=0)
        gains = np.sort((reach & ~within).sum(axis=1))[-12:].sum()
        texts.append(within.sum() + gains)
    assert bound.value == min(texts)
    assert bound.value >= coverage(problem.graph, picked.rows)
