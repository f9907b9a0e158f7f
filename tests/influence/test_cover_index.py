"""Updates: after every one the seeds are those of greedy from nothing."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core.errors import InputError, IntegrityError, NotFoundError
from shoal.influence import greedy, lazy
from shoal.influence.adjacency import Adjacency
from shoal.influence.counting import coverage
from shoal.influence.cover_index import CoverIndex
from shoal.influence.graph import Graph
from shoal.influence.problem import make_problem
from shoal.influence.standing_order import StandingOrder


def rebuilt(index: CoverIndex):
    """Return greedy's answer on the present graph, from nothing."""
    problem = index.problem()
    return (greedy if problem.hops == 1 else lazy).solve(problem)


def same(index: CoverIndex) -> None:
    expected, found = rebuilt(index), index.picked()
    assert found.rows.tolist() == expected.rows.tolist()
    np.testing.assert_allclose(found.gains, expected.gains)
    assert index.covered() == pytest.approx(
        coverage(index.graph(), index.seeds(), index.hops, weights=index.problem().weights)
    )


@st.composite
def histories(draw):
    n = draw(st.integers(2, 12))
    node = st.integers(0, n - 1)
    arcs = draw(st.lists(st.tuples(node, node), max_size=30))
    steps = draw(
        st.lists(st.tuples(st.sampled_from(["add", "drop", "node"]), node, node), max_size=25)
    )
    weights = draw(st.none() | st.lists(st.sampled_from([0.0, 1.0, 2.5]), min_size=n, max_size=n))
    exclude = draw(st.lists(node, max_size=1))
    return n, arcs, steps, weights, exclude, draw(st.booleans())


@pytest.mark.parametrize("hops", [1, 2, 3])
@settings(max_examples=60)
@given(history=histories(), k=st.integers(1, 6), eager=st.booleans())
def test_any_interleaving_equals_a_rebuild(hops, history, k, eager):
    n, arcs, steps, weights, exclude, directed = history
    a, b = np.array(arcs, dtype=np.int64).reshape(-1, 2).T
    graph = Graph.from_edges(a, b, directed=directed, n=n)
    index = CoverIndex(graph, min(k, n), hops, weights=weights, exclude=exclude)
    same(index)
    present = {(u, v) for u, v in arcs if u != v}
    for kind, u, v in steps:
        if kind == "node":
            index.add_nodes([index.n])
        elif kind == "add":
            index.add_edges([u], [v])
            present.add((u, v))
        elif u != v and index._order.out.has(u, v):
            index.remove_edges([u], [v])
            present.discard((u, v))
        if eager:
            same(index)
    same(index)
    # The rows hold what a plain set says.
    ptr, ids = index._order.out.pack()
    held = {(u, int(v)) for u in range(index.n) for v in ids[ptr[u] : ptr[u + 1]]}
    pairs = {(u, v) for u, v in present if u != v}
    if directed:
        assert held <= pairs
    fresh = Graph.from_edges(
        np.array([u for u, _ in sorted(held)], dtype=np.int64),
        np.array([v for _, v in sorted(held)], dtype=np.int64),
        directed=True,
        n=index.n,
    )
    np.testing.assert_array_equal(fresh.out_ids, index.graph().out_ids)
    np.testing.assert_array_equal(fresh.in_ids, index.graph().in_ids)


@pytest.mark.parametrize("hops", [1, 2])
def test_a_long_stream_on_a_larger_graph(hops):
    rng = np.random.default_rng(hops)
    n = 400
    a, b = (n * rng.random(1500) ** 3).astype(int), rng.integers(0, n, 1500)
    index = CoverIndex(Graph.from_edges(a, b, directed=True, n=n), 40, hops)
    for turn in range(120):
        u, v = int(n * rng.random() ** 3), int(rng.integers(0, n))
        if turn % 2:
            index.add_edges([u], [v])
        else:
            ptr, ids = index._order.out.pack()
            place = int(rng.integers(0, len(ids)))
            index.remove_edges([int(np.searchsorted(ptr, place, "right")) - 1], [int(ids[place])])
        assert index.picked().rows.tolist() == rebuilt(index).rows.tolist()
    stats = index.stats
    assert stats.updates <= 120
    assert stats.unchanged > 0
    assert stats.update_arcs < 120 * stats.build_arcs


def chain_of_stars() -> Graph:
    """Star 0 of five, star 1 of four; 2 shares 0's leaves."""
    a = [0] * 5 + [1] * 4 + [2] * 5
    b = [10, 11, 12, 13, 14, 20, 21, 22, 23, 10, 11, 12, 13, 24]
    return Graph.from_edges(a, b, directed=True, n=25)


def test_negative_control_gains_kept_over_a_removal_are_wrong(monkeypatch):
    """2 adds two beside 0; when 0 loses its leaves 2 must rise, and stale gains forbid it."""
    right = CoverIndex(chain_of_stars(), 2)
    assert right.seeds() == [0, 1]
    right.remove_edges([0, 0, 0], [11, 12, 13])
    assert right.seeds() == [2, 1]
    same(right)
    wrong = CoverIndex(chain_of_stars(), 2)
    monkeypatch.setattr(StandingOrder, "_cut_where_needed", lambda self, u, v: None)
    wrong.remove_edges([0, 0, 0], [11, 12, 13])
    assert wrong.seeds() == [0, 1]
    with pytest.raises(AssertionError):
        same(wrong)


def test_negative_control_bounds_not_raised_miss_a_new_hub(monkeypatch):
    right, wrong = CoverIndex(chain_of_stars(), 2), CoverIndex(chain_of_stars(), 2)
    right.add_edges([2, 2], [14, 20])
    assert right.seeds()[0] == 2
    same(right)
    monkeypatch.setattr(StandingOrder, "_cut_at_risers", lambda self, rows: None)
    wrong.add_edges([2, 2], [14, 20])
    with pytest.raises(AssertionError):
        same(wrong)


def test_an_arc_far_from_the_seeds_changes_nothing_and_costs_nothing():
    index = CoverIndex(chain_of_stars(), 2)
    before = index.stats
    assert index.add_edges([24], [10]) == 1
    assert index.seeds() == [0, 1]
    assert index.stats.repairs == before.repairs
    assert index.stats.unchanged == 1
    assert index.stats.update_arcs <= 5


def test_names_and_new_nodes():
    graph = Graph.from_edges(["a", "a", "b"], ["b", "c", "d"], directed=True)
    index = CoverIndex(graph, 1, weights={"a": 1, "b": 1, "c": 1, "d": 1})
    assert index.seeds() == ["a"]
    with pytest.raises(NotFoundError, match=r"row 1.*'x'"):
        index.add_edges(["x"], ["a"])
    assert index.add_edges(["x", "x", "x", "x"], ["a", "b", "c", "d"], new_nodes=True) == 4
    assert index.seeds() == ["x"]
    assert index.add_nodes(["z", "z", "a"], weights=[9, 3, 1]) == 1
    assert index.seeds() == ["z"]
    same(index)
    with pytest.raises(InputError, match="text"):
        index.add_nodes([7])


def test_integer_names_may_have_gaps():
    index = CoverIndex(Graph.from_edges([0], [1], directed=True, n=2), 2)
    index.add_nodes([900])
    index.add_edges([900], [1])
    assert index.seeds() == [0, 900]
    with pytest.raises(InputError, match="integers"):
        index.add_nodes(["b"])


def test_undirected_edges_go_both_ways():
    index = CoverIndex(Graph.from_edges([0, 1], [1, 2], directed=False, n=5), 1)
    assert index.seeds() == [1]
    assert index.add_edges([3, 3, 0], [0, 4, 1]) == 2
    assert index.m == 8
    index.remove_edges([2], [1])
    assert index.m == 6
    same(index)


def test_wrong_updates_change_nothing():
    index = CoverIndex(chain_of_stars(), 2)
    for source, target in (([0, 0], [10, 24]), ([0, 99], [10, 1])):
        with pytest.raises(NotFoundError):
            index.remove_edges(source, target)
    with pytest.raises(InputError, match="2 sources for 1 targets"):
        index.add_edges([0, 1], [2])
    with pytest.raises(InputError, match="weights"):
        index.add_nodes([25], weights=[np.nan])
    with pytest.raises(InputError, match="not used"):
        index.add_nodes([25], weights=[2.0])
    with pytest.raises(InputError, match="repair"):
        CoverIndex(chain_of_stars(), 2, repair="guess")
    assert index.m == 14
    assert index.stats.updates == 0
    assert index.add_edges([0, 3], [10, 3]) == 0  # there already, and a loop


def test_repair_by_swaps_is_never_worse():
    rng = np.random.default_rng(3)
    graph = Graph.from_edges(
        rng.integers(0, 200, 800), rng.integers(0, 200, 800), directed=True, n=200
    )
    plain, swapped = CoverIndex(graph, 12), CoverIndex(graph, 12, repair="swap")
    for u, v in zip(
        rng.integers(0, 200, 20).tolist(), rng.integers(0, 200, 20).tolist(), strict=True
    ):
        plain.add_edges([u], [v])
        swapped.add_edges([u], [v])
        assert swapped.covered() >= plain.covered()
        assert swapped.covered() == coverage(swapped.graph(), swapped.seeds())


@pytest.mark.parametrize("names", [None, "text", "numbers"])
def test_saved_and_loaded_it_goes_on(tmp_path, names):
    graph = chain_of_stars()
    if names is not None:
        table = [f"é{row}" if names == "text" else 100 + 3 * row for row in range(25)]
        graph = Graph(
            graph.out_ptr, graph.out_ids, graph.in_ptr, graph.in_ids, directed=True, names=table
        )
    index = CoverIndex(graph, 3, 2, weights=np.linspace(0, 2, 25))
    index.add_edges(graph.labels([5]), graph.labels([0]))
    index.save(tmp_path)
    again = CoverIndex.load(tmp_path)
    assert again.seeds() == index.seeds()
    for either in (index, again):
        either.remove_edges(graph.labels([0]), graph.labels([11]))
    assert again.picked().rows.tolist() == index.picked().rows.tolist()
    same(again)
    again.save(tmp_path)
    assert len(list(tmp_path.glob("index-*"))) == 1


def test_damaged_files_are_refused(tmp_path):
    with pytest.raises(NotFoundError):
        CoverIndex.load(tmp_path)
    CoverIndex(chain_of_stars(), 3).save(tmp_path)
    file = next(tmp_path.glob("index-*"))
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    with pytest.raises(IntegrityError, match="checksum"):
        CoverIndex.load(tmp_path)
    file.write_bytes(raw[:-9])
    with pytest.raises(IntegrityError):
        CoverIndex.load(tmp_path)
    CoverIndex(chain_of_stars(), 3).save(tmp_path)
    manifest = tmp_path / "manifest.json"
    facts = json.loads(manifest.read_text())
    for change in ({"graph_sha256": "0"}, {"schema": 9}, {"format": "x"}, {"unit": "?"}):
        manifest.write_text(json.dumps({**facts, **change}))
        with pytest.raises(IntegrityError):
            CoverIndex.load(tmp_path)
    manifest.write_text("{")
    with pytest.raises(IntegrityError, match="cut short"):
        CoverIndex.load(tmp_path)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6), st.integers(0, 6)), max_size=200))
def test_rows_that_move_hold_a_set(changes):
    rows = Adjacency(np.zeros(8, dtype=np.int64), np.empty(0, dtype=np.int32))
    held: set[tuple[int, int]] = set()
    for add, u, v in changes:
        if add:
            assert rows.insert(u, v) == ((u, v) not in held)
            held.add((u, v))
        else:
            assert rows.remove(u, v) == ((u, v) in held)
            held.discard((u, v))
    ptr, ids = rows.pack()
    assert [(u, int(v)) for u in range(7) for v in ids[ptr[u] : ptr[u + 1]]] == sorted(held)
    assert rows.m == len(held)


def test_rows_are_packed_when_most_of_the_pool_is_left_behind():
    rows = Adjacency(np.zeros(2001, dtype=np.int64), np.empty(0, dtype=np.int32))
    for size in range(40):
        for u in range(2000) if size < 2 else range(20):
            rows.insert(u, size)
    assert rows.m == 2000 * 2 + 20 * 38
    assert len(rows.pool) < 40_000


def test_the_question_of_an_index_is_a_problem():
    index = CoverIndex(chain_of_stars(), 2, exclude=[0], weights=np.full(25, 0.5))
    problem = index.problem()
    assert problem.allowed is not None and problem.allowed[0] == 0
    assert problem.weights is not None and problem.weights[3] == 0.5
    assert make_problem(index.graph(), 2).weights is None
