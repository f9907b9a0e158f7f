"""Graphs of other libraries: the same arcs, names and values, there and back."""

from __future__ import annotations

import igraph
import networkit
import networkx as nx
import numpy as np
import pytest
import rustworkx
import scipy.sparse as sp
import torch

from shoal.core.errors import InputError
from shoal.influence import Graph

PAIRS = [(0, 1), (0, 2), (2, 1), (3, 0), (1, 3), (4, 1)]
VALUES = [0.5, 1.5, 2.5, 3.5, 4.5, 5.5]


def theirs(library, directed):
    if library == "networkx":
        graph = (nx.DiGraph if directed else nx.Graph)()
        graph.add_nodes_from(range(6))
        graph.add_weighted_edges_from((u, v, w) for (u, v), w in zip(PAIRS, VALUES, strict=True))
        return Graph.from_networkx, graph, "weight"
    if library == "igraph":
        graph = igraph.Graph(n=6, edges=PAIRS, directed=directed)
        graph.es["w"] = VALUES
        return Graph.from_igraph, graph, "w"
    if library == "networkit":
        graph = networkit.Graph(6, weighted=True, directed=directed)
        for (u, v), w in zip(PAIRS, VALUES, strict=True):
            graph.addEdge(u, v, w)
        return Graph.from_networkit, graph, True
    if library == "rustworkx":
        graph = (rustworkx.PyDiGraph if directed else rustworkx.PyGraph)()
        graph.add_nodes_from([None] * 6)
        graph.add_edges_from([(u, v, w) for (u, v), w in zip(PAIRS, VALUES, strict=True)])
        return Graph.from_rustworkx, graph, True
    from torch_geometric.data import Data

    index, weight = torch.tensor(PAIRS).T, torch.tensor(VALUES, dtype=torch.float64)
    if not directed:
        index, weight = torch.cat((index, index.flip(0)), 1), torch.cat((weight, weight))
    return Graph.from_pyg, Data(edge_index=index, edge_weight=weight, num_nodes=6), "edge_weight"


@pytest.mark.parametrize("directed", [True, False])
@pytest.mark.parametrize("library", ["networkx", "igraph", "networkit", "rustworkx", "pyg"])
def test_the_arcs_are_the_same(library, directed):
    read, graph, values = theirs(library, directed)
    ours = Graph.from_edges(*zip(*PAIRS, strict=True), directed=directed, n=6, values=VALUES)
    found = read(graph, values=values)
    assert (found.directed, found.n, found.names) == (directed, 6, None)
    assert found.digest() == ours.digest()
    bare = Graph.from_edges(*zip(*PAIRS, strict=True), directed=directed, n=6)
    assert read(graph).digest() == bare.digest() != bare.reversed().digest() or not directed
    if directed:
        both = Graph.from_edges(*zip(*PAIRS, strict=True), directed=False, n=6)
        assert read(graph, directed=False).digest() == both.digest()
    elif library != "pyg":
        with pytest.raises(InputError, match="undirected"):
            read(graph, directed=True)


@pytest.mark.parametrize("directed", [True, False])
def test_scipy_and_back(directed):
    ours = Graph.from_edges(*zip(*PAIRS, strict=True), directed=directed, n=6, values=VALUES)
    matrix = ours.to_scipy()
    assert matrix[4, 1] == 5.5
    again = Graph.from_scipy(matrix, directed=True, values=True)
    assert np.array_equal(again.out_ids, ours.out_ids)
    assert np.array_equal(again.values, ours.values)
    stored_zero = sp.coo_array(([0.0, 1.0], ([0, 1], [1, 0])), shape=(2, 2))
    assert Graph.from_scipy(stored_zero, directed=True).m == 1
    with pytest.raises(InputError, match="direction"):
        Graph.from_scipy(matrix)
    with pytest.raises(InputError, match="square"):
        Graph.from_scipy(sp.coo_array((2, 3)), directed=True)
    with pytest.raises(InputError, match="sparse"):
        Graph.from_scipy(np.eye(2), directed=True)


@pytest.mark.parametrize("directed", [True, False])
def test_networkx_and_back(directed):
    source = (nx.DiGraph if directed else nx.Graph)([("b", "a"), ("a", "c")])
    source.add_node("alone")
    graph = Graph.from_networkx(source)
    assert graph.names == ["b", "a", "c", "alone"]
    back = graph.to_networkx()
    assert set(back.nodes) == set(source.nodes)
    assert set(back.edges) == set(source.edges)
    weighted = nx.DiGraph()
    weighted.add_edge((1, 2), "x", weight=0.5)
    again = Graph.from_networkx(weighted, values="weight").to_networkx()
    assert again[(1, 2)]["x"]["weight"] == 0.5


def test_names_and_gaps():
    named = igraph.Graph(edges=[(0, 1)], directed=True)
    named.vs["name"] = ["ann", "bob"]
    assert Graph.from_igraph(named).names == ["ann", "bob"]
    texts = rustworkx.PyDiGraph()
    texts.add_nodes_from(["x", "y", "z"])
    texts.add_edge(0, 2, None)
    texts.remove_node(1)
    assert Graph.from_rustworkx(texts).names == ["x", "z"]
    holed = networkit.Graph(4, directed=True)
    holed.addEdge(0, 3)
    holed.removeNode(1)
    graph = Graph.from_networkit(holed)
    assert (list(graph.names), graph.m) == ([0, 2, 3], 1)
    assert graph.labels([graph.out_ids[0]]) == [3]


def test_what_is_no_graph_or_no_number():
    for read in (
        Graph.from_networkx,
        Graph.from_igraph,
        Graph.from_networkit,
        Graph.from_rustworkx,
        Graph.from_pyg,
    ):
        with pytest.raises(InputError, match="must be a graph of"):
            read([[0, 1]])
    graph = nx.DiGraph([(0, 1)])
    for mark in (None, "much", float("nan")):
        graph[0][1]["weight"] = mark
        with pytest.raises(InputError, match="row 1"):
            Graph.from_networkx(graph, values="weight")
    with pytest.raises(InputError, match="no such attribute"):
        Graph.from_igraph(igraph.Graph(edges=[(0, 1)]), values="w")
