"""A directed graph as two compressed sparse rows, with the names that its user gave the nodes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from shoal.core.errors import InputError, NotFoundError
from shoal.influence import _graph_kernels as kernels
from shoal.influence import adapters, graph_files
from shoal.influence.graph_build import build_arrays, rows_by_number

if TYPE_CHECKING:
    from shoal.data.graphs import EdgeTable

__all__ = ["Direction", "Graph", "GraphReport", "Ids", "Rows"]

Ids: TypeAlias = npt.NDArray[np.int32]
Rows: TypeAlias = npt.NDArray[np.int64]
_Floats: TypeAlias = npt.NDArray[np.float64]
#: Which end of a line's arc influences the other: the first or the second.
Direction: TypeAlias = Literal["forward", "backward"]


@dataclass(frozen=True, slots=True)
class GraphReport:
    """What was found while a graph was built, and what was left out.

    Attributes
    ----------
    lines : int
        Arcs or edges that were given.
    self_loops : int
        Left out: a node reaches itself anyway.
    duplicates : int
        Left out: the arc was there already (for undirected graphs, in either sense).
    isolated : int
        Nodes without any arc; they stay.
    """

    lines: int
    self_loops: int
    duplicates: int
    isolated: int


class Graph:
    """A directed graph; the arc (u, v) says that u influences v.

    Build one with :meth:`from_edges`, from a file or from another library's graph; an
    undirected edge becomes two arcs. Nodes are rows 0 to n - 1 inside, and carry the names they
    came with: results and arguments of the solvers speak of names. The arrays must
    not be changed.

    Attributes
    ----------
    n, m : int
        Nodes, and arcs after cleaning (an undirected edge counts twice).
    directed : bool
        As its user said.
    out_ptr, in_ptr : int64 [n + 1]
        Where each node's arcs begin.
    out_ids, in_ids : int32 [m]
        Nodes that a node influences, and those that influence it; ascending.
    values : float64 [m], optional
        A number of each arc, in the order of ``out_ids``: a probability or a weight.
    names : sequence, optional
        The name of each node; None if the rows are the names.
    report : GraphReport
    """

    __slots__ = (
        "_in_places",
        "_rows_of",
        "directed",
        "in_ids",
        "in_ptr",
        "m",
        "n",
        "names",
        "out_ids",
        "out_ptr",
        "report",
        "values",
    )

    def __init__(
        self,
        out_ptr: Rows,
        out_ids: Ids,
        in_ptr: Rows,
        in_ids: Ids,
        *,
        directed: bool,
        values: _Floats | None = None,
        names: Sequence[Any] | npt.NDArray[Any] | None = None,
        report: GraphReport | None = None,
    ) -> None:
        self.n, self.m = len(out_ptr) - 1, len(out_ids)
        self.directed = directed
        self.out_ptr, self.out_ids = out_ptr, out_ids
        self.in_ptr, self.in_ids = in_ptr, in_ids
        self.values, self.names = values, names
        self.report = report or GraphReport(self.m, 0, 0, self.count_isolated())
        self._rows_of: dict[Any, int] | None = None
        self._in_places: Rows | None = None

    def __repr__(self) -> str:
        kind = "directed" if self.directed else "undirected"
        return f"<Graph {kind}, {self.n:,} nodes, {self.m:,} arcs>"

    # --- building -----------------------------------------------------------------------------

    @classmethod
    def from_edges(
        cls,
        source: npt.ArrayLike | Sequence[Any],
        target: npt.ArrayLike | Sequence[Any],
        *,
        directed: bool | None = None,
        n: int | None = None,
        names: Sequence[Any] | None = None,
        values: npt.ArrayLike | None = None,
    ) -> Graph:
        """Return the graph of arcs from ``source`` to ``target``.

        Parameters
        ----------
        source, target : array-like [e]
            Names of nodes: integers or strings. ``source`` influences ``target``.
        directed : bool
            Must be said. False makes two arcs of each pair.
        n : int, optional
            Nodes are 0 to ``n - 1`` and need no names; isolated ones are kept.
            Without it the names are those that occur, in ascending order.
        names : sequence, optional
            ``source`` and ``target`` are rows of these names, each of which stands once.
        values : array-like [e], optional
            A finite number of each arc. Of repeated arcs the first one counts.

        Raises
        ------
        InputError
            ``directed`` is not said, the lengths differ, an id is negative, out of
            range, no integer and no text, or a value is not finite; the row is named.
        LimitError
            More nodes than fit int32.
        """
        if directed is None:
            raise InputError(
                "say whether the arcs have a direction",
                field="directed",
                hint="directed=True: source influences target; directed=False: each the other",
            )
        made = build_arrays(source, target, directed=directed, n=n, names=names, values=values)
        graph = cls(
            made.out_ptr,
            made.out_ids,
            made.in_ptr,
            made.in_ids,
            directed=directed,
            values=made.values,
            names=made.names,
        )
        graph._in_places = made.in_places
        graph.report = GraphReport(
            lines=made.lines,
            self_loops=made.self_loops,
            duplicates=made.duplicates,
            isolated=graph.count_isolated(),
        )
        return graph

    @classmethod
    def read_edgelist(
        cls,
        path: str | Path,
        *,
        directed: bool | None = None,
        direction: Direction | None = None,
        n: int | None = None,
        only: Iterable[str] | None = None,
        **columns: Any,
    ) -> Graph:
        """Return the graph of a file: text (also packed), Parquet or GraphML, by its name.

        Parameters
        ----------
        path : path-like
        directed : bool
            Must be said, but for GraphML, which says it itself.
        direction : {"forward", "backward"}
            Must be said of a directed graph. Forward: a line ``u v`` says that u
            influences v. Backward: that v influences u, as where u depends on v,
            cites v or follows v.
        n : int, optional
            Nodes are 0 to ``n - 1``; otherwise those that occur.
        only : iterable of str, optional
            Kinds of arcs to keep; ``kinds=`` says which column they stand in.
        **columns
            As in :func:`shoal.data.graphs.read_edge_table`: ``source``, ``target``,
            ``values``, ``kinds``, ``separator``, ``ids``, ``header``, ``on_bad_row``.

        Raises
        ------
        InputError
            As :func:`shoal.data.graphs.read_edge_table` and :meth:`from_edges`.
        """
        from shoal.data.graphs import read_edge_table  # noqa: PLC0415

        table = read_edge_table(path, **columns)
        table = table if only is None else table.of_kinds(only)
        return cls.from_table(table, directed=directed, direction=direction, n=n)

    @classmethod
    def read_parquet(cls, path: str | Path, **options: Any) -> Graph:
        """Return the graph of a Parquet file, as :meth:`read_edgelist`."""
        return cls.read_edgelist(path, format="parquet", **options)

    @classmethod
    def read_graphml(cls, path: str | Path, **options: Any) -> Graph:
        """Return the graph of a GraphML file, as :meth:`read_edgelist`."""
        return cls.read_edgelist(path, format="graphml", **options)

    @classmethod
    def from_table(
        cls,
        table: EdgeTable,
        *,
        directed: bool | None = None,
        direction: Direction | None = None,
        n: int | None = None,
    ) -> Graph:
        """Return the graph of a table of arcs; see :meth:`read_edgelist`."""
        return adapters.from_table(cls, table, directed=directed, direction=direction, n=n)

    @classmethod
    def from_scipy(
        cls,
        matrix: Any,
        *,
        directed: bool | None = None,
        values: bool = False,
        names: Sequence[Any] | None = None,
    ) -> Graph:
        """Return the graph of a square sparse matrix: entry (u, v) says u influences v.

        ``values`` keeps the entries as values of the arcs; stored zeros are no arcs.
        """
        return adapters.from_scipy(cls, matrix, directed=directed, values=values, names=names)

    @classmethod
    def from_networkx(cls, graph: Any, **options: Any) -> Graph:
        """Return the graph of a networkx graph; ``values`` names an attribute of its edges.

        It says itself whether it is directed; ``directed=False`` joins both ways.
        """
        return adapters.from_networkx(cls, graph, **options)

    @classmethod
    def from_igraph(cls, graph: Any, **options: Any) -> Graph:
        """Return the graph of an igraph graph, as :meth:`from_networkx`; names are ``name``."""
        return adapters.from_igraph(cls, graph, **options)

    @classmethod
    def from_networkit(cls, graph: Any, **options: Any) -> Graph:
        """Return the graph of a networkit graph; ``values=True`` takes its weights."""
        return adapters.from_networkit(cls, graph, **options)

    @classmethod
    def from_rustworkx(cls, graph: Any, **options: Any) -> Graph:
        """Return the graph of a rustworkx graph; texts of nodes are names, otherwise indices.

        ``values=True`` takes what stands on the edges as numbers.
        """
        return adapters.from_rustworkx(cls, graph, **options)

    @classmethod
    def from_pyg(cls, data: Any, **options: Any) -> Graph:
        """Return the graph of PyG's ``Data``; ``values`` names an attribute such as edge_weight."""
        return adapters.from_pyg(cls, data, **options)

    @classmethod
    def load(cls, folder: str | Path, *, mmap: bool = True, verify: bool = True) -> Graph:
        """Return a saved graph, its arrays mapped or read.

        ``verify=False`` leaves out the checksum of all bytes; that the rows fit each
        other is always checked.

        Raises
        ------
        NotFoundError
            There is no graph.
        IntegrityError
            A file is missing, cut short, altered or of a newer form.
        """
        return graph_files.load_graph(cls, folder, mmap=mmap, verify=verify)

    def save(self, folder: str | Path) -> None:
        """Write the graph into a folder; one that is there is replaced in one step.

        Raises
        ------
        InputError
            The folder holds something else, or a name is neither integer nor text.
        """
        graph_files.save_graph(self, folder)

    def digest(self) -> str:
        """Return the SHA-256 of arcs and values, to tell whether two graphs are the same."""
        return graph_files.graph_digest(self)

    def to_scipy(self) -> Any:
        """Return the arcs as a ``scipy.sparse.csr_array``, with ones where they have no values."""
        return adapters.to_scipy(self)

    def to_networkx(self) -> Any:
        """Return the graph as a networkx ``DiGraph`` or ``Graph``, values as ``weight``."""
        return adapters.to_networkx(self)

    def reversed(self) -> Graph:
        """Return the graph with every arc turned round; the arrays are shared."""
        return Graph(
            self.in_ptr,
            self.in_ids,
            self.out_ptr,
            self.out_ids,
            directed=self.directed,
            values=None if self.values is None else self.in_values(),
            names=self.names,
            report=self.report,
        )

    # --- degrees and values -------------------------------------------------------------------

    def out_degrees(self) -> Rows:
        """Return how many nodes each node influences, int64 [n]."""
        return np.diff(self.out_ptr)

    def in_degrees(self) -> Rows:
        """Return how many nodes influence each node, int64 [n]."""
        return np.diff(self.in_ptr)

    def count_isolated(self) -> int:
        """Return the number of nodes without any arc."""
        return int(np.count_nonzero(self.out_degrees() + self.in_degrees() == 0))

    def in_values(self) -> _Floats:
        """Return the arcs' values in the order of ``in_ids``, float64 [m].

        Raises
        ------
        InputError
            The arcs have no values.
        """
        if self.values is None:
            raise InputError("the graph's arcs have no values", field="values")
        if self._in_places is None:
            self._in_places = kernels.transpose(self.n, self.out_ptr, self.out_ids)[2]
        return np.asarray(self.values)[self._in_places]

    def nbytes(self) -> int:
        """Return the bytes of the arrays, names left out."""
        structure = self.out_ptr.nbytes + self.out_ids.nbytes + self.in_ptr.nbytes
        structure += self.in_ids.nbytes
        return structure + (0 if self.values is None else self.values.nbytes)

    # --- names --------------------------------------------------------------------------------

    def rows(self, names: Iterable[Any], *, field: str = "nodes") -> Rows:
        """Return the rows of nodes by name, int64.

        Raises
        ------
        NotFoundError
            A name is not in the graph.
        InputError
            A name is no integer though the rows are the names.
        """
        if self.names is None:
            return rows_by_number(self.n, names, field)
        if self._rows_of is None:
            self._rows_of = {name: row for row, name in enumerate(_plain(self.names))}
        found = np.empty(0, dtype=np.int64)
        try:
            found = np.array([self._rows_of[name] for name in _plain(names)], dtype=np.int64)
        except (KeyError, TypeError) as error:
            raise NotFoundError(f"{field}: there is no node {error.args[0]!r}") from None
        return found

    def labels(self, rows: npt.ArrayLike) -> list[Any]:
        """Return the names of rows."""
        chosen = np.asarray(rows, dtype=np.int64)
        if self.names is None:
            return _plain(chosen)
        if isinstance(self.names, np.ndarray):
            return _plain(self.names[chosen])
        return [self.names[row] for row in chosen.tolist()]


def _plain(names: Iterable[Any]) -> list[Any]:
    return list(names.tolist() if isinstance(names, np.ndarray) else names)
