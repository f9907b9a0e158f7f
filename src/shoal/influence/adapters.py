"""Graphs of other libraries, in and out; none of them is imported before one of its graphs comes.

An arc (u, v) of the other graph says that u influences v; where it means the
opposite (u follows v, u depends on v), take :meth:`Graph.reversed`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from shoal.core.errors import InputError

if TYPE_CHECKING:
    from shoal.data.graphs import EdgeTable
    from shoal.influence.graph import Graph

__all__ = [
    "from_igraph",
    "from_networkit",
    "from_networkx",
    "from_pyg",
    "from_rustworkx",
    "from_scipy",
    "from_table",
    "to_networkx",
    "to_scipy",
]


def from_table(
    cls: type[Graph],
    table: EdgeTable,
    *,
    directed: bool | None,
    direction: str | None,
    n: int | None,
) -> Graph:
    """See :meth:`Graph.from_table`."""
    directed = table.directed if directed is None else directed
    direction = table.direction if direction is None else direction
    if direction not in {None, "forward", "backward"}:
        raise InputError("must be forward or backward", field="direction", value=direction)
    if directed and direction is None:
        raise InputError(
            "say which end of an arc influences the other",
            field="direction",
            hint='"forward": in a line "u v" u influences v; "backward": v influences u',
        )
    ends = (table.source, table.target)
    return cls.from_edges(
        *(ends[::-1] if direction == "backward" else ends),
        directed=directed,
        n=n,
        names=table.names,
        values=table.values,
    )


def from_scipy(
    cls: type[Graph],
    matrix: Any,
    *,
    directed: bool | None,
    values: bool = False,
    names: Sequence[Any] | None = None,
) -> Graph:
    """See :meth:`Graph.from_scipy`."""
    if not (hasattr(matrix, "tocoo") and hasattr(matrix, "shape")):
        raise InputError("must be a sparse matrix of scipy", field="matrix", value=type(matrix))
    if len(matrix.shape) != 2 or matrix.shape[0] != matrix.shape[1]:
        raise InputError("must be square", field="matrix", value=tuple(matrix.shape))
    arcs = matrix.tocoo()
    # What is stored as zero is no arc; as elsewhere in scipy, doubles are one entry.
    kept = arcs.data != 0
    return cls.from_edges(
        np.asarray(arcs.row, dtype=np.int64)[kept],
        np.asarray(arcs.col, dtype=np.int64)[kept],
        directed=directed,
        n=int(matrix.shape[0]),
        names=names,
        values=arcs.data[kept] if values else None,
    )


def from_networkx(
    cls: type[Graph], graph: Any, *, directed: bool | None = None, values: str | None = None
) -> Graph:
    """See :meth:`Graph.from_networkx`."""
    _has(graph, ("is_directed", "number_of_nodes", "edges"), "networkx")
    names = list(graph)
    row_of = {name: row for row, name in enumerate(names)}
    edges = [(row_of[u], row_of[v]) for u, v in graph.edges()]
    marks = None
    if values is not None:
        marks = [_mark(mark, row) for row, (_, _, mark) in enumerate(graph.edges(data=values))]
    says = _sense(bool(graph.is_directed()), directed)
    return _made(cls, edges, directed=says, names=names, n=len(names), values=marks)


def from_igraph(
    cls: type[Graph], graph: Any, *, directed: bool | None = None, values: str | None = None
) -> Graph:
    """See :meth:`Graph.from_igraph`."""
    _has(graph, ("is_directed", "vcount", "get_edgelist"), "igraph")
    named = "name" in graph.vs.attributes()
    marks = None
    if values is not None:
        if values not in graph.es.attributes():
            raise InputError("the edges have no such attribute", field="values", value=values)
        marks = [_mark(mark, row) for row, mark in enumerate(graph.es[values])]
    return _made(
        cls,
        graph.get_edgelist(),
        directed=_sense(bool(graph.is_directed()), directed),
        names=list(graph.vs["name"]) if named else None,
        n=graph.vcount(),
        values=marks,
    )


def from_networkit(
    cls: type[Graph], graph: Any, *, directed: bool | None = None, values: bool = False
) -> Graph:
    """See :meth:`Graph.from_networkit`."""
    _has(graph, ("isDirected", "upperNodeIdBound", "iterEdges"), "networkit")
    bound = graph.upperNodeIdBound()
    edges = np.array(list(graph.iterEdges()), dtype=np.int64).reshape(-1, 2)
    marks = [graph.weight(u, v) for u, v in edges.tolist()] if values else None
    names: list[int] | None = None
    if graph.numberOfNodes() < bound:  # nodes were removed
        names = list(graph.iterNodes())
        row_of = np.zeros(bound, dtype=np.int64)
        row_of[names] = np.arange(len(names))
        edges = row_of[edges]
    says = _sense(bool(graph.isDirected()), directed)
    n = len(names) if names is not None else bound
    return _made(cls, edges, directed=says, names=names, n=n, values=marks)


def from_rustworkx(
    cls: type[Graph], graph: Any, *, directed: bool | None = None, values: bool = False
) -> Graph:
    """See :meth:`Graph.from_rustworkx`."""
    _has(graph, ("edge_list", "node_indices", "nodes"), "rustworkx")
    indices = list(graph.node_indices())
    row_of = {index: row for row, index in enumerate(indices)}
    edges = [(row_of[u], row_of[v]) for u, v in graph.edge_list()]
    payload = list(graph.nodes())
    texts = all(isinstance(name, str) for name in payload) and len(set(payload)) == len(payload)
    marks = [_mark(mark, row) for row, mark in enumerate(graph.edges())] if values else None
    return _made(
        cls,
        edges,
        directed=_sense(hasattr(graph, "in_degree"), directed),
        names=payload if texts else indices,
        n=len(indices),
        values=marks,
    )


def from_pyg(
    cls: type[Graph], data: Any, *, directed: bool | None = None, values: str | None = None
) -> Graph:
    """See :meth:`Graph.from_pyg`."""
    _has(data, ("edge_index", "num_nodes", "is_undirected"), "torch_geometric")
    if data.edge_index is None:
        raise InputError("has no edge_index", field="data")
    pairs = np.asarray(data.edge_index.detach().cpu().numpy(), dtype=np.int64)
    marks = None
    if values is not None:
        found = getattr(data, values, None)
        if found is None:
            raise InputError("the data have no such attribute", field="values", value=values)
        marks = found.detach().cpu().numpy().reshape(-1)
    if directed is None:
        directed = not data.is_undirected()
    return cls.from_edges(
        pairs[0], pairs[1], directed=directed, n=int(data.num_nodes), values=marks
    )


def to_scipy(graph: Graph) -> Any:
    """See :meth:`Graph.to_scipy`."""
    from scipy.sparse import csr_array  # noqa: PLC0415 - only here

    data = np.ones(graph.m) if graph.values is None else np.asarray(graph.values)
    return csr_array((data, graph.out_ids, graph.out_ptr), shape=(graph.n, graph.n))


def to_networkx(graph: Graph) -> Any:
    """See :meth:`Graph.to_networkx`."""
    import networkx as nx  # noqa: PLC0415 - only here

    made = nx.DiGraph() if graph.directed else nx.Graph()
    names = graph.labels(np.arange(graph.n))
    made.add_nodes_from(names)
    source = np.repeat(np.arange(graph.n), graph.out_degrees()).tolist()
    ends = zip(source, graph.out_ids.tolist(), strict=True)
    if graph.values is None:
        made.add_edges_from((names[u], names[v]) for u, v in ends)
    else:
        marked = zip(ends, np.asarray(graph.values).tolist(), strict=True)
        made.add_weighted_edges_from((names[u], names[v], value) for (u, v), value in marked)
    return made


def _made(
    cls: type[Graph],
    edges: Sequence[tuple[int, int]] | npt.NDArray[np.int64],
    *,
    directed: bool,
    names: list[Any] | None,
    n: int,
    values: Iterable[float] | None,
) -> Graph:
    pairs = np.asarray(edges, dtype=np.int64).reshape(-1, 2)
    if names is not None and all(
        isinstance(name, int) and not isinstance(name, bool) for name in names
    ):
        whole = np.array(names, dtype=np.int64)
        numbered = np.array_equal(whole, np.arange(n))
        return cls.from_edges(
            pairs[:, 0],
            pairs[:, 1],
            directed=directed,
            n=n,
            names=None if numbered else whole,  # type: ignore[arg-type]
            values=None if values is None else list(values),
        )
    return cls.from_edges(
        pairs[:, 0],
        pairs[:, 1],
        directed=directed,
        n=n,
        names=names,
        values=None if values is None else list(values),
    )


def _has(graph: Any, names: tuple[str, ...], library: str) -> None:
    missing = [name for name in names if not hasattr(graph, name)]
    if missing:
        raise InputError(
            f"must be a graph of {library}: it has no {missing[0]!r}",
            field="graph",
            value=type(graph),
        )


def _sense(says: bool, asked: bool | None) -> bool:
    """Return whether the graph is directed; an undirected one cannot become directed."""
    if asked and not says:
        raise InputError(
            "the graph is undirected",
            field="directed",
            value=asked,
            hint="leave directed= out, or hand over a directed graph",
        )
    return says if asked is None else asked


def _mark(mark: Any, row: int) -> float:
    if mark is None or isinstance(mark, str | bytes):
        raise InputError("is no number", field="values", value=mark, row=row + 1)
    try:
        return float(mark)
    except (TypeError, ValueError):
        raise InputError("is no number", field="values", value=mark, row=row + 1) from None
