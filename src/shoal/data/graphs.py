"""Edge lists from files: text, packed or not, Parquet and GraphML, checked line by line."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from shoal.core.errors import InputError, UnavailableError
from shoal.data.edgetext import Column, IdKind, choose, parse_edges
from shoal.data.sourcefile import bare_suffix, read_bytes

__all__ = ["EdgeTable", "read_edge_table"]

_FORMATS = {".parquet": "parquet", ".pq": "parquet", ".graphml": "graphml"}


@dataclass(frozen=True, eq=False)
class EdgeTable:
    """Arcs or edges of a file, in its order, nothing cleaned yet.

    Attributes
    ----------
    source, target : int64 [e]
        Ids as they stand in the file, or rows of ``names``.
    names : list of str or None
        Names of the nodes where ids are text; ascending but for GraphML, which has
        an order of its own and nodes without arcs.
    values : float64 [e] or None
        A finite number of each arc.
    kinds : int64 [e] or None
        Rows of ``kind_names``.
    kind_names : tuple of str
    directed : bool or None
        What the file says; None where its format cannot.
    direction : {"forward", "backward"} or None
        Whether ``source`` influences ``target`` or the other way, where it is known.
    dropped : int
        Lines that were wrong and left out.
    notes : tuple of str
        What was not read.
    """

    source: npt.NDArray[np.int64]
    target: npt.NDArray[np.int64]
    names: list[str] | None = None
    values: npt.NDArray[np.float64] | None = None
    kinds: npt.NDArray[np.int64] | None = None
    kind_names: tuple[str, ...] = ()
    directed: bool | None = None
    direction: Literal["forward", "backward"] | None = None
    dropped: int = 0
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.source)

    def of_kinds(self, kinds: Iterable[str]) -> EdgeTable:
        """Return the arcs of some kinds only; every node stays.

        Raises
        ------
        InputError
            No column of kinds was read, or no arc has such a kind.
        """
        if self.kinds is None:
            raise InputError("no column of kinds was read", field="kinds")
        wanted = set(kinds)
        unknown = sorted(wanted - set(self.kind_names))
        if unknown:
            listed = ", ".join(self.kind_names[:9])
            raise InputError(f"kinds are {listed}", field="kinds", value=unknown[0])
        rows = [row for row, name in enumerate(self.kind_names) if name in wanted]
        kept = np.flatnonzero(np.isin(self.kinds, rows))
        return replace(
            self,
            source=self.source[kept],
            target=self.target[kept],
            values=None if self.values is None else self.values[kept],
            kinds=self.kinds[kept],
        )


def read_edge_table(
    path: str | Path,
    *,
    format: Literal["text", "parquet", "graphml"] | None = None,
    source: Column | None = None,
    target: Column | None = None,
    values: Column | None = None,
    kinds: Column | None = None,
    separator: str | None = None,
    ids: IdKind = "auto",
    header: bool | None = None,
    on_bad_row: Literal["error", "drop"] = "error",
) -> EdgeTable:
    """Read an edge list.

    Parameters
    ----------
    path : path-like
        Text (also .gz, .bz2, .xz, .zst, .zip), Parquet or GraphML, told apart by
        name. In text each line is an arc; lines that begin with ``#`` or ``%`` are
        comments.
    format : {"text", "parquet", "graphml"}, optional
        Where the name does not say.
    source, target, values, kinds : int or str, optional
        Columns, by number from 1 or by name. Without them ``source`` and ``target``
        are columns with a usual name (source, src, from, u, ...) or the first two;
        values and kinds are read only where they are asked for.
    separator : str, optional
        Of text: ``","``, ``";"``, ``"|"``, a tab, or a space for any blanks. Seen
        from the first lines otherwise.
    ids : {"auto", "integer", "text"}
        Auto goes by the first line; a later line that differs is an error.
    header : bool, optional
        Whether the first line names columns; seen from it otherwise.
    on_bad_row : {"error", "drop"}
        Stop at a line that cannot be read, or leave it out and count it.

    Raises
    ------
    NotFoundError
        No such file.
    InputError
        It is empty, cut short, not packed as its name says, or a line has another
        number of columns, an id that is no integer among integers, an empty id, or
        a value that is not finite; the message names file and row.
    """
    path = Path(path)
    if on_bad_row not in {"error", "drop"}:
        raise InputError("must be error or drop", field="on_bad_row", value=on_bad_row)
    kind = format or _FORMATS.get(bare_suffix(path), "text")
    wanted = {"source": source, "target": target, "values": values, "kinds": kinds}
    content = read_bytes(path)
    if kind == "parquet":
        return _read_parquet(content, path.name, wanted)
    if kind == "graphml":
        return _read_graphml(content, path.name, wanted)
    if kind != "text":
        raise InputError("must be text, parquet or graphml", field="format", value=kind)
    found = parse_edges(
        content,
        path.name,
        wanted,
        separator=separator,
        ids=ids,
        header=header,
        drop=on_bad_row == "drop",
    )
    return EdgeTable(
        found.source,
        found.target,
        names=found.names,
        values=found.values,
        kinds=found.kinds,
        kind_names=found.kind_names,
        dropped=found.dropped,
        notes=found.notes,
    )


# --- Parquet ----------------------------------------------------------------------------------


def _read_parquet(content: bytes, name: str, wanted: dict[str, Column | None]) -> EdgeTable:
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    try:
        file = pq.ParquetFile(io.BytesIO(content))
        head = list(file.schema_arrow.names)
        places = choose(head, len(head), wanted, name)
        table = file.read(columns=[head[place] for place in places.values() if place >= 0])
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"not a readable Parquet file: {error}", source=name) from None
    if not table.num_rows:
        raise InputError("no arc in it", source=name)
    found = {
        role: table.column(head[place]).combine_chunks()
        for role, place in places.items()
        if place >= 0
    }
    for role, column in found.items():
        if column.null_count:
            row = int(np.flatnonzero(np.asarray(column.is_null()))[0]) + 1
            raise InputError("is missing", field=role, row=row, source=name)
    texts = [pa.types.is_string(c.type) or pa.types.is_large_string(c.type) for c in found.values()]
    a, b = found["source"], found["target"]
    names: list[str] | None = None
    if all(texts[:2]):
        coded = pa.chunked_array([a.cast(pa.large_string()), b.cast(pa.large_string())])
        coded = coded.combine_chunks().dictionary_encode()
        source, target, names = _rows_of(coded, len(a))
    else:
        source, target = (
            _whole(column, role, name) for role, column in (("source", a), ("target", b))
        )
    kinds: npt.NDArray[np.int64] | None = None
    kind_names: tuple[str, ...] = ()
    if "kinds" in found:
        coded = found["kinds"].cast(pa.string()).dictionary_encode()
        kinds, kind_names = (
            coded.indices.to_numpy().astype(np.int64),
            tuple(coded.dictionary.to_pylist()),
        )
    return EdgeTable(
        source,
        target,
        names=names,
        values=_floats(found["values"], name) if "values" in found else None,
        kinds=kinds,
        kind_names=kind_names,
    )


def _rows_of(coded: Any, half: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any], list[str]]:
    import pyarrow.compute as pc  # noqa: PLC0415

    order = pc.sort_indices(coded.dictionary)
    rank = np.empty(len(order), dtype=np.int64)
    rank[order.to_numpy()] = np.arange(len(order))
    rows = rank[coded.indices.to_numpy()]
    return rows[:half], rows[half:], coded.dictionary.take(order).to_pylist()


def _whole(column: Any, role: str, name: str) -> npt.NDArray[np.int64]:
    import pyarrow as pa  # noqa: PLC0415

    try:
        return np.asarray(column.cast(pa.int64())).astype(np.int64, copy=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise InputError(
            f"ids must be integers or text: {error}", field=role, source=name
        ) from None


def _floats(column: Any, name: str) -> npt.NDArray[np.float64]:
    import pyarrow as pa  # noqa: PLC0415

    try:
        made = np.asarray(column.cast(pa.float64()))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise InputError(f"must be numbers: {error}", field="values", source=name) from None
    wrong = np.flatnonzero(~np.isfinite(made))
    if len(wrong):
        row = int(wrong[0])
        raise InputError(
            "is no finite number", field="values", value=float(made[row]), row=row + 1, source=name
        )
    return made


# --- GraphML ----------------------------------------------------------------------------------


def _read_graphml(content: bytes, name: str, wanted: dict[str, Column | None]) -> EdgeTable:
    try:
        import networkx as nx  # noqa: PLC0415
    except ModuleNotFoundError:
        raise UnavailableError(
            "GraphML is read by 'networkx', which is not installed", hint="pip install networkx"
        ) from None
    from xml.etree.ElementTree import ParseError  # noqa: PLC0415 - networkx parses by it

    if isinstance(wanted["source"], str) or isinstance(wanted["target"], str):
        raise InputError("GraphML says itself what source and target are", source=name)
    try:
        graph = nx.read_graphml(io.BytesIO(content))
    except (ParseError, nx.NetworkXError, ValueError, KeyError, StopIteration) as error:
        raise InputError(f"not a readable GraphML file: {error}", source=name) from None
    names = [str(node) for node in graph]
    row_of = {node: row for row, node in enumerate(graph)}
    ends = [(row_of[u], row_of[v]) for u, v in graph.edges()]
    pairs = np.array(ends, dtype=np.int64).reshape(-1, 2)
    values: npt.NDArray[np.float64] | None = None
    if wanted["values"] is not None:
        values = np.empty(len(pairs))
        for row, (_, _, mark) in enumerate(graph.edges(data=wanted["values"])):
            number = mark if isinstance(mark, int | float) else float("nan")
            if not np.isfinite(number):
                raise InputError(
                    "is no finite number", field="values", value=mark, row=row + 1, source=name
                )
            values[row] = number
    kinds: npt.NDArray[np.int64] | None = None
    kind_names: tuple[str, ...] = ()
    if wanted["kinds"] is not None:
        marks = [str(mark) for _, _, mark in graph.edges(data=wanted["kinds"])]
        kind_names = tuple(dict.fromkeys(marks))
        kinds = np.array([kind_names.index(mark) for mark in marks], dtype=np.int64)
    return EdgeTable(
        pairs[:, 0].copy(),
        pairs[:, 1].copy(),
        names=names,
        values=values,
        kinds=kinds,
        kind_names=kind_names,
        directed=bool(graph.is_directed()),
    )
