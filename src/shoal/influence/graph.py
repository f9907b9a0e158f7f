"""A directed graph as two compressed sparse rows, with the names that its user gave the nodes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from shoal.core.errors import InputError, LimitError, NotFoundError
from shoal.influence import _graph_kernels as kernels

__all__ = ["Graph", "GraphReport", "Ids", "Rows"]

Ids: TypeAlias = npt.NDArray[np.int32]
Rows: TypeAlias = npt.NDArray[np.int64]
_Floats: TypeAlias = npt.NDArray[np.float64]

#: Most nodes: ids are int32. Arcs are counted in int64.
MAX_NODES = 2**31 - 1


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

    Build one with :meth:`from_edges` or from another library's graph; an undirected
    edge becomes two arcs. Nodes are rows 0 to n - 1 inside, and carry the names they
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
        a, b, names, count = _nodes_of(source, target, n)
        numbers = _numbers(values, len(a))
        if not directed:
            a, b = np.concatenate((a, b)), np.concatenate((b, a))
            numbers = None if numbers is None else np.concatenate((numbers, numbers))
        loops = int(np.count_nonzero(a == b))
        ptr, ids, arc = kernels.csr_of(count, b, a, True)
        ptr, ids, place = kernels.transpose(count, ptr, ids)
        ptr, ids, arc = kernels.drop_doubles(count, ptr, ids, arc[place])
        in_ptr, in_ids, in_places = kernels.transpose(count, ptr, ids)
        twice = 1 if directed else 2
        graph = cls(
            ptr,
            ids,
            in_ptr,
            in_ids,
            directed=directed,
            values=None if numbers is None else numbers[arc],
            names=names,
        )
        graph._in_places = in_places if numbers is not None else None
        graph.report = GraphReport(
            lines=len(a) // twice,
            self_loops=loops // twice,
            duplicates=(len(a) - loops - graph.m) // twice,
            isolated=graph.count_isolated(),
        )
        return graph

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
            given = np.asarray(list(names) if not isinstance(names, np.ndarray) else names)
            if given.size == 0:
                return np.empty(0, dtype=np.int64)
            if given.ndim != 1 or given.dtype.kind not in "iu":
                raise InputError("nodes of this graph are integers", field=field, value=given)
            wrong = np.flatnonzero((given < 0) | (given >= self.n))
            if len(wrong):
                raise NotFoundError(
                    f"{field}: there is no node {given[wrong[0]]}; the graph has 0 to {self.n - 1}"
                )
            return given.astype(np.int64)
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


def _nodes_of(
    source: Any, target: Any, n: int | None
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any] | list[str] | None, int]:
    """Return (source rows, target rows, names or None, number of nodes)."""
    a, b = _column(source, "source"), _column(target, "target")
    if len(a) != len(b):
        raise InputError(f"{len(a)} sources for {len(b)} targets", field="target")
    if n is not None:
        if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 0:
            raise InputError("must be a number of nodes", field="n", value=n)
        if n > MAX_NODES:
            raise LimitError(f"{n} nodes; at most {MAX_NODES} fit")
        for field, ids in (("source", a), ("target", b)):
            if ids.dtype.kind not in "iu" and len(ids):
                raise InputError("ids must be integers if n is given", field=field)
            wrong = np.flatnonzero((ids < 0) | (ids >= n)) if len(ids) else ids
            if len(wrong):
                row = int(wrong[0])
                raise InputError(
                    f"is not in 0 to {n - 1}", field=field, value=ids[row].item(), row=row + 1
                )
        return a.astype(np.int32), b.astype(np.int32), None, int(n)
    if (a.dtype.kind in "iu") != (b.dtype.kind in "iu") and len(a):
        raise InputError("ids of one side are integers and of the other text", field="target")
    if not len(a):
        return a.astype(np.int32), b.astype(np.int32), None, 0
    names, rows = np.unique(np.concatenate((a, b)), return_inverse=True)
    if len(names) > MAX_NODES:
        raise LimitError(f"{len(names)} nodes; at most {MAX_NODES} fit")
    rows = rows.astype(np.int32)
    kept: npt.NDArray[Any] | list[str] | None = names
    if names.dtype.kind in "iu":
        if names[0] == 0 and names[-1] == len(names) - 1:
            kept = None
    else:
        kept = [str(name) for name in names.tolist()]
    return rows[: len(a)], rows[len(a) :], kept, len(names)


def _column(values: Any, field: str) -> npt.NDArray[Any]:
    ids = np.asarray(values if hasattr(values, "__len__") else list(values))
    if ids.ndim != 1:
        raise InputError("must have one dimension", field=field, value=ids.shape)
    if not len(ids):
        return ids.astype(np.int64)
    if ids.dtype.kind == "f":
        # Whole numbers that came as floats are ids; anything else is a mistake with a row.
        wrong = np.flatnonzero(~np.isfinite(ids) | (ids != np.floor(ids)) | (np.abs(ids) >= 2**53))
        if len(wrong):
            row = int(wrong[0])
            raise InputError("is no id", field=field, value=ids[row].item(), row=row + 1)
        ids = ids.astype(np.int64)
    if ids.dtype.kind == "O":
        for row, value in enumerate(ids.tolist()):
            if not isinstance(value, str):
                raise InputError(
                    "is neither an integer nor text", field=field, value=value, row=row + 1
                )
        ids = ids.astype(str)
    if ids.dtype.kind not in "iuU":
        raise InputError("ids must be integers or text", field=field, value=ids.dtype.name)
    return ids


def _numbers(values: npt.ArrayLike | None, count: int) -> _Floats | None:
    if values is None:
        return None
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.shape != (count,):
        raise InputError(f"{numbers.shape} values for {count} arcs", field="values")
    wrong = np.flatnonzero(~np.isfinite(numbers))
    if len(wrong):
        row = int(wrong[0])
        raise InputError("is not finite", field="values", value=numbers[row].item(), row=row + 1)
    return numbers
