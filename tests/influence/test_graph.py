"""Graphs: rows against a slow builder, what is cleaned and counted, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core.errors import InputError, LimitError, NotFoundError
from shoal.influence import Graph, graph_build


def slow_rows(pairs, nodes, directed):
    """The rows of a graph by sets: node -> ascending nodes."""
    reached = {node: set() for node in nodes}
    for a, b in pairs:
        if a != b:
            reached[a].add(b)
            if not directed:
                reached[b].add(a)
    return {node: sorted(found) for node, found in reached.items()}


def rows_of(graph, ptr, ids):
    names = graph.labels(np.arange(graph.n))
    return {name: [names[i] for i in ids[ptr[v] : ptr[v + 1]]] for v, name in enumerate(names)}


def agrees(graph, pairs, nodes, directed):
    out = slow_rows(pairs, nodes, directed)
    back = slow_rows([(b, a) for a, b in pairs], nodes, directed)
    assert rows_of(graph, graph.out_ptr, graph.out_ids) == out
    assert rows_of(graph, graph.in_ptr, graph.in_ids) == back
    assert graph.out_ptr.dtype == graph.in_ptr.dtype == np.int64
    assert graph.out_ids.dtype == graph.in_ids.dtype == np.int32
    assert graph.m == len(graph.out_ids) == sum(map(len, out.values()))
    loops = sum(a == b for a, b in pairs)
    once = sum(map(len, out.values())) // (1 if directed else 2)
    report = graph.report
    assert (report.lines, report.self_loops) == (len(pairs), loops)
    assert report.duplicates == len(pairs) - loops - once
    assert report.isolated == sum(not out[v] and not back[v] for v in nodes)


PAIRS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=40)
#: Near each other, far apart, below zero, and at the ends of int64.
SPREADS = [lambda i: i, lambda i: 3 * i + 7, lambda i: i * 10**15 - 5, lambda i: -(2**63) + i]


@settings(max_examples=120, deadline=None, derandomize=True)
@given(PAIRS, st.booleans(), st.sampled_from(range(5)), st.booleans())
def test_rows_are_those_of_the_slow_builder(pairs, directed, form, weighted):
    values = np.arange(len(pairs), dtype=float) if weighted else None
    if form == 4:
        pairs = [(f"n{a}", f"n{b}") for a, b in pairs]
    elif form:
        pairs = [(SPREADS[form](a), SPREADS[form](b)) for a, b in pairs]
    source, target = [a for a, _ in pairs], [b for _, b in pairs]
    if form == 0:
        graph = Graph.from_edges(source, target, directed=directed, n=12, values=values)
        agrees(graph, pairs, range(12), directed)
    else:
        graph = Graph.from_edges(source, target, directed=directed, values=values)
        agrees(graph, pairs, sorted({*source, *target}), directed)
    if weighted:
        first = {}
        for (a, b), value in zip(pairs, range(len(pairs)), strict=True):
            first.setdefault((a, b), value)
        if not directed:
            for (a, b), value in list(first.items()):
                first[b, a] = min(value, first.get((b, a), value))
        names = graph.labels(np.arange(graph.n))
        source = np.repeat(np.arange(graph.n), graph.out_degrees())
        for u, v, value in zip(source, graph.out_ids, graph.values, strict=True):
            key = names[u], names[v]
            if directed:
                assert first[key] == value
            else:
                assert value in {first[key], first[key[::-1]]} | set(map(float, range(len(pairs))))
        assert sorted(graph.in_values()) == sorted(graph.values)


def test_hashing_grows_and_agrees_with_sorting():
    rng = np.random.default_rng(1)
    ids = rng.integers(-(2**62), 2**62, 90_000)
    source, target = rng.choice(ids, 200_000), rng.choice(ids, 200_000)
    graph = Graph.from_edges(source, target, directed=True)
    names, rows = np.unique(np.concatenate((source, target)), return_inverse=True)
    assert np.array_equal(graph.names, names)
    same = Graph.from_edges(rows[:200_000], rows[200_000:], directed=True, n=len(names))
    assert np.array_equal(graph.out_ids, same.out_ids)
    assert np.array_equal(graph.in_ids, same.in_ids)


def test_negative_control_a_builder_that_keeps_doubles_is_caught(monkeypatch):
    monkeypatch.setattr(graph_build.kernels, "once_each", lambda n, ptr, ids: (ptr, ids))
    pairs = [(0, 1), (0, 1)]
    graph = Graph.from_edges([0, 0], [1, 1], directed=True)
    with pytest.raises(AssertionError):
        agrees(graph, pairs, range(2), True)


def test_an_undirected_graph_is_its_own_reverse():
    graph = Graph.from_edges([0, 1], [1, 2], directed=False)
    assert graph.in_ids is graph.out_ids
    assert np.array_equal(graph.reversed().out_ids, graph.out_ids)


def test_the_input_is_left_alone():
    source = np.array([5, 6, 7], dtype=np.int32)
    source.flags.writeable = False
    graph = Graph.from_edges(source, [6, 7, 5], directed=True)
    assert source.tolist() == graph.names.tolist() == [5, 6, 7]
    assert Graph.from_edges(source, [0, 1, 2], directed=True, n=8).m == 3


def test_names_given_apart():
    graph = Graph.from_edges([0, 1], [1, 0], directed=True, names=["b", "a", "alone"])
    assert (graph.n, graph.report.isolated, graph.labels([0, 2])) == (3, 1, ["b", "alone"])
    assert graph.rows(["alone"]).tolist() == [2]
    for names, n, words in [(["a", "a"], None, "twice"), (["a", "b"], 3, "2 names for 3")]:
        with pytest.raises(InputError, match=words):
            Graph.from_edges([0], [1], directed=True, names=names, n=n)


def test_empty_and_isolated():
    assert Graph.from_edges([], [], directed=True).n == 0
    graph = Graph.from_edges([], [], directed=False, n=4)
    assert (graph.n, graph.m, graph.report.isolated) == (4, 0, 4)
    loops = Graph.from_edges([3, 3], [3, 3], directed=True)
    assert (loops.n, loops.m, loops.report.self_loops) == (1, 0, 2)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: Graph.from_edges([0], [1]), InputError, "direction"),
        (lambda: Graph.from_edges([0], [1, 2], directed=True), InputError, "1 sources for 2"),
        (lambda: Graph.from_edges([0, -1], [1, 1], directed=True, n=3), InputError, "row 2"),
        (lambda: Graph.from_edges([0, 1], [1, 3], directed=True, n=3), InputError, "row 2"),
        (lambda: Graph.from_edges([0, 1.5], [1, 3], directed=True), InputError, "row 2"),
        (lambda: Graph.from_edges([0, float("nan")], [1, 3], directed=True), InputError, "row 2"),
        (lambda: Graph.from_edges(["a", None], ["b", "c"], directed=True), InputError, "row 2"),
        (lambda: Graph.from_edges(["a"], [1], directed=True), InputError, "one side"),
        (lambda: Graph.from_edges([[0]], [1], directed=True), InputError, "dimension"),
        (lambda: Graph.from_edges([True], [1], directed=True), InputError, "integers or text"),
        (lambda: Graph.from_edges([0], [1], directed=True, n=-1), InputError, "'n'"),
        (lambda: Graph.from_edges([0], [1], directed=True, n=2**31), LimitError, "2147483648"),
        (
            lambda: Graph.from_edges(np.array([2**63], np.uint64), [1], directed=True),
            InputError,
            "above",
        ),
        (
            lambda: Graph.from_edges([0, 1], [1, 2], directed=True, values=[1, float("nan")]),
            InputError,
            "row 2.*finite",
        ),
        (lambda: Graph.from_edges([0], [1], directed=True, values=[]), InputError, "values"),
    ],
)
def test_bad_input_is_named(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_more_arcs_than_int32_are_counted(monkeypatch):
    """The kernels count in int64: rows of 2**31 arcs and more have places of their own."""
    from shoal.influence import _graph_kernels as kernels

    ptr, _ = kernels.rows_of_arcs(3, np.array([0], np.int32), np.array([1], np.int32), False)
    assert ptr.dtype == np.int64
    # A row whose arcs begin beyond int32 is addressed as such by what reads it.
    graph = Graph(
        np.array([0, 2**31 + 5, 2**31 + 5]),
        np.broadcast_to(np.int32(1), 2**31 + 5),
        np.array([0, 0, 2**31 + 5]),
        np.broadcast_to(np.int32(0), 2**31 + 5),
        directed=True,
    )
    assert graph.m == 2**31 + 5
    assert graph.out_degrees().tolist() == [2**31 + 5, 0]


def test_unknown_names():
    graph = Graph.from_edges([10, 20], [20, 30], directed=True)
    with pytest.raises(NotFoundError, match="seeds: there is no node 11"):
        graph.rows([11], field="seeds")
    with pytest.raises(NotFoundError, match="no node 5"):
        Graph.from_edges([0], [1], directed=True).rows([5])
    with pytest.raises(InputError):
        Graph.from_edges([0], [1], directed=True).rows(["x"])


# --- files and senses -----------------------------------------------------------------------------


def test_direction_must_be_said_and_turns_the_arcs(tmp_path):
    path = tmp_path / "needs.txt"
    path.write_text("app lib\nlib libc\n")
    for said in ({}, {"directed": True}, {"directed": True, "direction": "up"}):
        with pytest.raises(InputError, match="direction"):
            Graph.read_edgelist(path, **said)
    forward = Graph.read_edgelist(path, directed=True, direction="forward")
    backward = Graph.read_edgelist(path, directed=True, direction="backward")
    assert forward.labels(forward.out_ids[: forward.out_ptr[1]]) == ["lib"]
    row = backward.rows(["libc"])[0]
    assert backward.labels(backward.out_ids[backward.out_ptr[row] : backward.out_ptr[row + 1]]) == [
        "lib"
    ]
    assert backward.digest() == forward.reversed().digest() != forward.digest()
    assert Graph.read_edgelist(path, directed=False).m == 4


def test_columns_kinds_and_n(tmp_path):
    path = tmp_path / "e.txt"
    path.write_text("0 1 x .5\n1 2 y .25\n")
    graph = Graph.read_edgelist(
        path, directed=True, direction="forward", n=5, kinds=3, values=4, only=["y"]
    )
    assert (graph.n, graph.m, graph.values.tolist()) == (5, 1, [0.25])


def test_parquet_and_graphml(tmp_path):
    import networkx as nx
    import polars as pl

    pl.DataFrame({"src": [1], "dst": [2]}).write_parquet(tmp_path / "e.parquet")
    graph = Graph.read_parquet(tmp_path / "e.parquet", directed=True, direction="backward")
    assert (graph.names.tolist(), graph.out_degrees().tolist()) == ([1, 2], [0, 1])
    nx.write_graphml(nx.path_graph(["c", "a", "b"]), tmp_path / "g.graphml")
    graph = Graph.read_graphml(tmp_path / "g.graphml")
    assert (graph.directed, graph.names, graph.m) == (False, ["c", "a", "b"], 4)
    nx.write_graphml(nx.DiGraph([("x", "y")]), tmp_path / "d.graphml")
    with pytest.raises(InputError, match="which end"):
        Graph.read_graphml(tmp_path / "d.graphml")
