"""Cascades against enumeration: every live-edge world of a small graph, summed by its chance."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core.errors import InputError, NotFoundError
from shoal.influence import Graph
from shoal.influence.cascades import IndependentCascade, LinearThreshold, Model, spread
from shoal.influence.opim import influence_max
from shoal.influence.rr_sets import ReverseSets

# Sigmas that an estimate may be off: about six false alarms in 100,000 tests.
SIGMAS = 4.0


def small_graph(seed: int, n: int = 6, m: int = 10) -> Graph:
    rng = np.random.default_rng(seed)
    pairs = rng.permutation([(u, v) for u in range(n) for v in range(n) if u != v])[:m]
    values = rng.uniform(0.05, 0.4, m)
    # Linear threshold wants at most 1 at each node.
    values /= np.maximum(1.0, 1.1 * np.bincount(pairs[:, 1], values, n))[pairs[:, 1]]
    return Graph.from_edges(pairs[:, 0], pairs[:, 1], directed=True, n=n, values=values)


def arcs_of(graph: Graph) -> list[tuple[int, int]]:
    sources = np.repeat(np.arange(graph.n), graph.out_degrees())
    return list(zip(sources.tolist(), graph.out_ids.tolist(), strict=True))


def reach(n: int, live: list[tuple[int, int]], seeds: list[int]) -> set[int]:
    found, front = set(seeds), list(seeds)
    while front:
        front = [v for u, v in live if u in front and v not in found]
        found.update(front)
    return found


def enumerate_cascade(graph: Graph, chance: list[float], seeds: list[int]) -> float:
    """Expected reach: a sum over all 2 ** m worlds."""
    arcs, total = arcs_of(graph), 0.0
    for world in itertools.product((False, True), repeat=len(arcs)):
        p = math.prod(c if on else 1 - c for c, on in zip(chance, world, strict=True))
        total += p * len(
            reach(graph.n, [a for a, on in zip(arcs, world, strict=True) if on], seeds)
        )
    return total


def enumerate_threshold(graph: Graph, weight: list[float], seeds: list[int]) -> float:
    """Expected reach where each node listens to one of its arcs in, or to none."""
    arcs, total = arcs_of(graph), 0.0
    choices: list[list[tuple[tuple[int, int] | None, float]]] = []
    for v in range(graph.n):
        into = [(arc, w) for arc, w in zip(arcs, weight, strict=True) if arc[1] == v]
        choices.append([*into, (None, 1.0 - sum(w for _, w in into))])
    for world in itertools.product(*choices):
        p = math.prod(w for _, w in world)
        total += p * len(reach(graph.n, [arc for arc, _ in world if arc is not None], seeds))
    return total


def models_of(graph: Graph) -> list[tuple[Model, list[float]]]:
    by_degree = [1.0 / graph.in_degrees()[v] for _, v in arcs_of(graph)]
    assert graph.values is not None
    return [
        (IndependentCascade("wc"), by_degree),
        (IndependentCascade(0.3), [0.3] * graph.m),
        (IndependentCascade("values"), graph.values.tolist()),
        (LinearThreshold(), by_degree),
        (LinearThreshold("values"), graph.values.tolist()),
    ]


@pytest.mark.parametrize("which", range(5))
def test_spread_equals_the_enumeration(which: int) -> None:
    graph = small_graph(which)
    model, chance = models_of(graph)[which]
    exact_of = enumerate_threshold if isinstance(model, LinearThreshold) else enumerate_cascade
    for seeds in ([0], [1, 4]):
        exact = exact_of(graph, chance, seeds)
        runs = 40_000
        forward = spread(graph, seeds, model, n_sim=runs, seed=3, confidence=0.9999)
        assert forward.low - 1e-9 <= exact <= forward.high + 1e-9
        backward = spread(graph, seeds, model, n_sim=runs, seed=3, method="reverse")
        sigma = graph.n * math.sqrt(exact / graph.n * (1 - exact / graph.n) / runs)
        assert abs(backward.mean - exact) <= SIGMAS * sigma
        # The control: sets along the arcs instead of against them estimate something else.
        wrong = spread(
            graph.reversed(), seeds, IndependentCascade(0.9), n_sim=runs, method="reverse"
        )
        assert abs(wrong.mean - exact) > SIGMAS * sigma


def test_weighted_spread_counts_worth() -> None:
    graph = small_graph(9)
    worth = np.array([0.0, 1.0, 2.0, 0.5, 10.0, 0.0])
    arcs = arcs_of(graph)
    exact = 0.0
    for world in itertools.product((False, True), repeat=len(arcs)):
        live = [a for a, on in zip(arcs, world, strict=True) if on]
        p = 0.3 ** sum(world) * 0.7 ** (len(arcs) - sum(world))
        exact += p * sum(worth[v] for v in reach(graph.n, live, [2]))
    options = {"weights": worth, "n_sim": 40_000, "confidence": 0.9999}
    for method in ("simulate", "reverse"):
        found = spread(graph, [2], IndependentCascade(0.3), method=method, **options)  # type: ignore[arg-type]
        assert found.low - 1e-9 <= exact <= found.high + 1e-9


def test_the_intervals_hold_as_often_as_they_say() -> None:
    graph = small_graph(5)
    exact = enumerate_cascade(graph, [0.3] * graph.m, [0])
    for method in ("simulate", "reverse"):
        held = 0
        for seed in range(400):
            found = spread(
                graph,
                [0],
                IndependentCascade(0.3),
                n_sim=400,
                seed=seed,
                confidence=0.9,
                method=method,  # type: ignore[arg-type]
            )
            held += found.low <= exact <= found.high
        # 400 trials at 0.9: below 336 has a chance of 1e-4.
        assert held >= 336


@pytest.mark.parametrize("model", [IndependentCascade(), LinearThreshold()], ids=["ic", "lt"])
def test_the_proof_holds_in_its_share_of_seeds(model: Model) -> None:
    graph = small_graph(11, n=7, m=11)
    chance = [1.0 / graph.in_degrees()[v] for _, v in arcs_of(graph)]
    exact_of = enumerate_threshold if isinstance(model, LinearThreshold) else enumerate_cascade
    worth = {
        pair: exact_of(graph, chance, list(pair)) for pair in itertools.combinations(range(7), 2)
    }
    best = max(worth.values())
    failures = 0
    for seed in range(200):
        found = influence_max(graph, 2, model, eps=0.2, delta=0.1, seed=seed)
        true = worth[tuple(sorted(found.rows.tolist()))]  # type: ignore[index]
        failures += found.lower > true or found.upper < best
        assert found.finished
        assert true >= (1 - 1 / math.e - 0.2) * best
    # 200 trials at 0.1: above 36 has a chance of 1e-4.
    assert failures <= 36


def test_greedy_over_sets_equals_naive_greedy() -> None:
    rng = np.random.default_rng(2)
    pairs = rng.integers(0, 60, (250, 2))
    graph = Graph.from_edges(pairs[:, 0], pairs[:, 1], directed=True, n=60)
    sets = ReverseSets(graph, IndependentCascade(0.2), seed=4)
    sets.grow(700)
    whole = [
        set(sets.members[sets.set_ptr[i] : sets.set_ptr[i + 1]].tolist()) for i in range(sets.count)
    ]
    for allowed in (None, (np.arange(60) % 3 != 0).astype(np.uint8)):
        rows, gains, left = sets.cover(12, allowed)
        open_sets = list(whole)
        for row, gain in zip(rows.tolist(), gains.tolist(), strict=True):
            counts = [
                sum(v in one for one in open_sets) if allowed is None or allowed[v] else 0
                for v in range(60)
            ]
            assert (row, gain) == (int(np.argmax(counts)), max(counts))
            open_sets = [one for one in open_sets if row not in one]
        counts = [
            sum(v in one for one in open_sets) if allowed is None or allowed[v] else 0
            for v in range(60)
        ]
        assert left == sum(sorted(counts)[-12:])
        assert sets.hits(rows) == gains.sum()


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.integers(1, 900))
def test_sets_do_not_depend_on_steps_or_threads(seed: int, step: int) -> None:
    graph = small_graph(1)
    one = ReverseSets(graph, IndependentCascade("values"), seed=seed)
    one.grow(2500)
    other = ReverseSets(graph, IndependentCascade("values"), seed=seed, n_jobs=2)
    other.grow(step)
    other.grow(2500)
    np.testing.assert_array_equal(one.set_ptr, other.set_ptr)
    np.testing.assert_array_equal(one.members, other.members)


def test_results_do_not_depend_on_threads_and_streams_differ() -> None:
    graph = small_graph(3)
    alone = spread(graph, [0], n_sim=500, seed=1)
    assert spread(graph, [0], n_sim=500, seed=1, n_jobs=3) == alone
    assert spread(graph, [0], n_sim=500, seed=2) != alone
    one, two = (ReverseSets(graph, IndependentCascade(), stream=name) for name in ("a", "b"))
    one.grow(300)
    two.grow(300)
    assert not np.array_equal(one.set_ptr, two.set_ptr)


def test_certain_arcs_reach_what_the_graph_reaches() -> None:
    path = Graph.from_edges([0, 1, 2], [1, 2, 3], directed=True, n=6)
    for model in (IndependentCascade(1.0), LinearThreshold()):
        assert spread(path, [1], model, n_sim=50).mean == 3.0
        sets = ReverseSets(path, model)
        sets.grow(200)
        for i in range(200):
            members = sets.members[sets.set_ptr[i] : sets.set_ptr[i + 1]].tolist()
            assert members == ([members[0]] if members[0] > 3 else list(range(members[0], -1, -1)))
    assert spread(path, [1], IndependentCascade(0.0), n_sim=50).mean == 1.0
    result = influence_max(path, 3, IndependentCascade(1.0), seed=0)
    assert sorted(result.seeds) == [0, 4, 5]
    more = influence_max(path, 5, IndependentCascade(1.0), seed=0)
    assert len(more.seeds) == 3
    assert "add nothing" in more.notes[0]


def test_names_masks_and_time() -> None:
    graph = Graph.from_edges(list("abcde"), list("bcdea"), directed=True)
    result = influence_max(graph, 1, candidates=["b", "c"], exclude=["c"])
    assert result.seeds == ["b"]
    assert result.to_json()["seeds"] == ["b"]
    assert result.confidence == 1 - 1 / 5
    short = influence_max(small_graph(1), 2, IndependentCascade(0.1), ratio=0.999, time_limit=0.01)
    assert not short.finished
    assert "time ran out" in short.notes[0]
    assert 0 < short.ratio < 0.999


def test_bad_input_is_named() -> None:
    graph = small_graph(0)
    for field, options in (
        ("k", {"k": 0}),
        ("k", {"k": 7}),
        ("eps", {"eps": 0.7}),
        ("eps", {"eps": math.nan}),
        ("ratio", {"ratio": 1.0}),
        ("delta", {"delta": 0.0}),
        ("weights", {"weights": [1, 2]}),
        ("weights", {"weights": [0.0] * 6}),
        ("weights", {"weights": [1, 1, 1, -1, 1, 1]}),
        ("weights", {"weights": [1, 1, math.nan, 1, 1, 1]}),
        ("candidates", {"candidates": [1], "exclude": [1]}),
        ("time_limit", {"time_limit": 0}),
        ("n_jobs", {"n_jobs": 0}),
    ):
        with pytest.raises(InputError) as caught:
            influence_max(graph, **{"k": 2, **options})  # type: ignore[arg-type]
        assert caught.value.field == field
    with pytest.raises(NotFoundError, match="no node 99"):
        spread(graph, [99])
    with pytest.raises(InputError, match="probability"):
        IndependentCascade(1.5)
    with pytest.raises(InputError, match="wc, values"):
        IndependentCascade("no")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="uniform"):
        LinearThreshold("no")  # type: ignore[arg-type]
    bare = Graph.from_edges([0], [1], directed=True)
    with pytest.raises(InputError, match="no values"):
        spread(bare, [0], IndependentCascade("values"))
    heavy = Graph.from_edges([0, 1], [2, 2], directed=True, values=[0.7, 0.7])
    with pytest.raises(InputError, match="above 1"):
        spread(heavy, [0], LinearThreshold("values"))
    odd = Graph.from_edges(["x"], ["y"], directed=True, values=[1.2])
    with pytest.raises(InputError, match="'x' to 'y'"):
        spread(odd, ["x"], IndependentCascade("values"))
    empty = Graph.from_edges([], [], directed=True)
    assert spread(empty, []).mean == 0.0
    assert spread(empty, [], method="reverse").mean == 0.0
