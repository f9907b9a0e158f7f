"""From columns of names to rows of nodes and compressed sparse rows, lean at ten million arcs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from shoal.core.errors import InputError, LimitError, NotFoundError
from shoal.influence import _graph_kernels as kernels

__all__ = ["MAX_NODES", "Built", "build_arrays", "rows_by_number"]

_Floats: TypeAlias = npt.NDArray[np.float64]
_Array: TypeAlias = npt.NDArray[Any]
Names: TypeAlias = Sequence[Any] | npt.NDArray[Any]

#: Most nodes: ids are int32. Arcs are counted in int64.
MAX_NODES = 2**31 - 1
#: Ids this close together are ranked by a table of marks, others by hashing.
_SPREAD = 4


@dataclass(frozen=True, eq=False)
class Built:
    """Arrays of a graph, and what was left out on the way.

    Attributes
    ----------
    out_ptr, in_ptr : int64 [n + 1]
    out_ids, in_ids : int32 [m]
    names : sequence or None
    values : float64 [m] or None
    in_places : int64 [m] or None
        Where each arc of ``in_ids`` stands in ``out_ids``; with values only.
    lines, self_loops, duplicates : int
    """

    out_ptr: npt.NDArray[np.int64]
    out_ids: npt.NDArray[np.int32]
    in_ptr: npt.NDArray[np.int64]
    in_ids: npt.NDArray[np.int32]
    names: Names | None
    values: _Floats | None
    in_places: npt.NDArray[np.int64] | None
    lines: int
    self_loops: int
    duplicates: int


def build_arrays(
    source: Any,
    target: Any,
    *,
    directed: bool,
    n: int | None,
    names: Names | None,
    values: npt.ArrayLike | None,
) -> Built:
    """Return the arrays of a graph; see :meth:`shoal.influence.graph.Graph.from_edges`."""
    if names is not None:
        if n is not None and n != len(names):
            raise InputError(f"{len(names)} names for {n} nodes", field="names")
        n = len(names)
        if len(set(_plain(names))) < n:
            raise InputError("a name stands there twice", field="names", value=_twice(names))
    a, b, own, count = _nodes_of(source, target, n)
    kept = names if names is not None else own
    numbers = _numbers(values, len(a))
    loops = int(np.count_nonzero(a == b))
    lines = len(a)
    given = (1 if directed else 2) * (lines - loops)
    if numbers is not None:
        if not directed:
            a, b = np.concatenate((a, b)), np.concatenate((b, a))
            numbers = np.concatenate((numbers, numbers))
        ptr, ids, arc = kernels.csr_of(count, b, a, True)
        ptr, ids, place = kernels.transpose(count, ptr, ids)
        ptr, ids, arc = kernels.drop_doubles(count, ptr, ids, arc[place])
        in_ptr, in_ids, in_places = kernels.transpose(count, ptr, ids)
        numbers = numbers[arc]
    else:
        in_places = None
        ptr, ids = kernels.rows_of_arcs(count, b, a, not directed)
        del a, b
        ptr, ids = kernels.turned(count, ptr, ids)
        ptr, ids = kernels.once_each(count, ptr, ids)
        # An undirected graph is its own reverse.
        in_ptr, in_ids = kernels.turned(count, ptr, ids) if directed else (ptr, ids)
    twice = 1 if directed else 2
    return Built(
        ptr, ids, in_ptr, in_ids, kept, numbers, in_places, lines, loops,
        (given - len(ids)) // twice,
    )  # fmt: skip


def rows_by_number(n: int, names: Iterable[Any], field: str) -> npt.NDArray[np.int64]:
    """Return nodes whose rows are their names, checked."""
    given = np.asarray(names if isinstance(names, np.ndarray) else list(names))
    if given.size == 0:
        return np.empty(0, dtype=np.int64)
    if given.ndim != 1 or given.dtype.kind not in "iu":
        raise InputError("nodes of this graph are integers", field=field, value=given)
    wrong = np.flatnonzero((given < 0) | (given >= n))
    if len(wrong):
        raise NotFoundError(
            f"{field}: there is no node {given[wrong[0]]}; the graph has 0 to {n - 1}"
        )
    return given.astype(np.int64)


def _plain(names: Names) -> list[Any]:
    return names.tolist() if isinstance(names, np.ndarray) else list(names)


def _twice(names: Names) -> Any:
    seen: set[Any] = set()
    for name in _plain(names):
        if name in seen:
            return name
        seen.add(name)
    return None


def _nodes_of(
    source: Any, target: Any, n: int | None
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], Names | None, int]:
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
            if len(ids) and (ids.min() < 0 or ids.max() >= n):
                row = int(np.flatnonzero((ids < 0) | (ids >= n))[0])
                raise InputError(
                    f"is not in 0 to {n - 1}", field=field, value=ids[row].item(), row=row + 1
                )
        return a.astype(np.int32), b.astype(np.int32), None, int(n)
    if (a.dtype.kind in "iu") != (b.dtype.kind in "iu") and len(a):
        raise InputError("ids of one side are integers and of the other text", field="target")
    if not len(a):
        return a.astype(np.int32), b.astype(np.int32), None, 0
    if a.dtype.kind in "iu":
        return _integer_nodes(a, b)
    names, rows = np.unique(np.concatenate((a, b)), return_inverse=True)
    _check_count(len(names))
    short = rows.astype(np.int32)
    return short[: len(a)], short[len(a) :], [str(name) for name in names.tolist()], len(names)


def _integer_nodes(
    a: _Array, b: _Array
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], _Array | None, int]:
    """Return rows in ascending order of the ids that occur, without sorting the arcs."""
    if max(a.dtype.itemsize, b.dtype.itemsize) == 8 and "u" in {a.dtype.kind, b.dtype.kind}:
        for field, ids in (("source", a), ("target", b)):
            if ids.dtype.kind != "u":
                continue
            wrong = np.flatnonzero(ids > np.iinfo(np.int64).max)
            if len(wrong):
                row = int(wrong[0])
                raise InputError(
                    "is above 2**63 - 1", field=field, value=ids[row].item(), row=row + 1
                )
    a, b = (np.array(ids, dtype=np.int64, order="C", copy=_must_copy(ids)) for ids in (a, b))
    low, high = min(int(a.min()), int(b.min())), max(int(a.max()), int(b.max()))
    rows = np.empty(len(a), dtype=np.int32), np.empty(len(b), dtype=np.int32)
    if high - low < _SPREAD * 2 * len(a) + 1024:
        seen = np.zeros(high - low + 1, dtype=np.uint8)
        for ids in (a, b):
            kernels.mark(ids, low, seen)
        names = np.flatnonzero(seen)
        _check_count(len(names))
        ranks = np.cumsum(seen, dtype=np.int64).astype(np.int32) - np.int32(1)
        for ids, out in zip((a, b), rows, strict=True):
            kernels.ranked(ids, low, ranks, out)
        names += low
    else:
        names = _hashed(a, b, rows)
    whole = names[0] == 0 and names[-1] == len(names) - 1
    return rows[0], rows[1], None if whole else names, len(names)


def _hashed(a: _Array, b: _Array, rows: tuple[npt.NDArray[np.int32], ...]) -> _Array:
    """Fill in the rows of far-apart ids; return the ids in ascending order."""
    both = np.concatenate((a, b))
    out = np.empty(len(both), dtype=np.int32)
    size = 1 << 16
    while True:
        keys = np.empty(size // 2 + 1, dtype=np.int64)
        count = kernels.numbered(both, out, keys, np.full(size, -1, dtype=np.int32))
        if count >= 0:
            break
        if size >= 2**32:
            raise LimitError(f"more than {MAX_NODES} nodes")
        size *= 8
    del both
    keys = keys[:count]
    order = np.argsort(keys)
    ranks = np.empty(count, dtype=np.int32)
    ranks[order] = np.arange(count, dtype=np.int32)
    np.take(ranks, out[: len(a)], out=rows[0])
    np.take(ranks, out[len(a) :], out=rows[1])
    return keys[order]


def _must_copy(ids: _Array) -> bool | None:
    """Kernels are compiled for arrays that may be written; others are copied."""
    return None if ids.flags.writeable else True


def _check_count(count: int) -> None:
    if count > MAX_NODES:
        raise LimitError(f"{count} nodes; at most {MAX_NODES} fit")


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
