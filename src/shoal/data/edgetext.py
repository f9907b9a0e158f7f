"""Edge lists as text: what separates, which columns, which line is wrong."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shoal.core.errors import InputError, UnavailableError

__all__ = ["Column", "EdgeColumns", "IdKind", "choose", "parse_edges"]

#: A column by its name, or by its number from 1.
Column: TypeAlias = int | str
IdKind: TypeAlias = Literal["auto", "integer", "text"]
_Bytes: TypeAlias = npt.NDArray[np.uint8]

_INTEGER = re.compile(rb"[-+]?\d+\Z")
#: Names under which a column is looked for; lower case.
_USUAL = {
    "source": ("source", "src", "from", "fromnodeid", "from_id", "source_id", "u", "node1", "id_1",
               "node_1", "user1", "follower"),
    "target": ("target", "dst", "dest", "to", "tonodeid", "to_id", "target_id", "v", "node2",
               "id_2", "node_2", "user2", "followee"),
}  # fmt: skip
_SNIFFED = 1 << 18
_SEPARATORS = {",": 44, ";": 59, "\t": 9, "|": 124, " ": 0}


@dataclass(frozen=True, eq=False)
class EdgeColumns:
    """What the columns of a file hold.

    Attributes
    ----------
    source, target : int64 [e]
        Ids, or rows of ``names``.
    names : list of str or None
        Ascending, where the ids are text.
    values : float64 [e] or None
    kinds : int64 [e] or None
        Rows of ``kind_names``.
    kind_names : tuple of str
    dropped : int
        Lines that were wrong and left out.
    notes : tuple of str
    """

    source: npt.NDArray[np.int64]
    target: npt.NDArray[np.int64]
    names: list[str] | None
    values: npt.NDArray[np.float64] | None
    kinds: npt.NDArray[np.int64] | None
    kind_names: tuple[str, ...]
    dropped: int
    notes: tuple[str, ...]


def choose(
    head: list[str] | None, count: int, wanted: dict[str, Column | None], source: str
) -> dict[str, int]:
    """Return the position from 0 of each wanted column, -1 for none.

    Parameters
    ----------
    head : list of str, optional
        Names of the columns, where the file has them.
    count : int
        How many there are.
    wanted : dict
        Column of ``source``, ``target``, ``values`` and ``kinds``; None looks for the
        usual names of the first two, and otherwise takes the first two columns.
    source : str
        The file's name, for messages.
    """
    places: dict[str, int] = {}
    plain = [name.strip().lower() for name in head or []]
    for role, column in wanted.items():
        if column is None:
            found = [plain.index(name) for name in _USUAL.get(role, ()) if name in plain]
            places[role] = found[0] if found else -1
        elif isinstance(column, str):
            if head is None or column not in head:
                listed = "no names" if head is None else ", ".join(head)
                raise InputError(
                    f"no column {column!r}: there are {listed}", field=role, source=source
                )
            places[role] = head.index(column)
        else:
            if isinstance(column, bool) or not 1 <= column <= count:
                raise InputError(
                    f"columns count from 1 to {count}", field=role, value=column, source=source
                )
            places[role] = column - 1
    if (
        wanted["source"] is None
        and wanted["target"] is None
        and min(places["source"], places["target"]) < 0
    ):
        places["source"], places["target"] = 0, 1
    for role in ("source", "target"):
        if places[role] < 0:
            raise InputError("say which column it is", field=role, source=source)
    used = [place for place in places.values() if place >= 0]
    if len(used) != len(set(used)):
        raise InputError("one column was named for two things", source=source, value=wanted)
    return places


def parse_edges(
    content: bytes,
    name: str,
    wanted: dict[str, Column | None],
    *,
    separator: str | None = None,
    ids: IdKind = "auto",
    header: bool | None = None,
    drop: bool = False,
) -> EdgeColumns:
    """Read the bytes of an edge list; see :func:`shoal.data.graphs.read_edge_table`."""
    try:
        from shoal.data import _edge_kernels as kernels  # noqa: PLC0415 - brings a compiler
    except ModuleNotFoundError:
        raise UnavailableError(
            "edge lists are read by 'numba', which is not installed",
            hint="pip install 'shoal[influence]'",
        ) from None
    if header is None and any(isinstance(column, str) for column in wanted.values()):
        header = True
    form = _sniff(content, name, separator=separator, ids=ids, header=header)
    places = choose(form.head, form.columns, wanted, name)
    order = [places[role] for role in ("source", "target", "values", "kinds")]
    text = np.frombuffer(content, dtype=np.uint8)
    lines = int(kernels.count_lines(text))
    spans = lines if not form.integers or max(order[2:]) >= 0 else 0
    numbers = np.empty((2, lines if form.integers else 0), dtype=np.int64)
    begin = np.empty((4, spans), dtype=np.int64)
    length = np.empty((4, spans), dtype=np.int32)
    state = np.array([form.offset, form.line, 0, 0], dtype=np.int64)
    rows, code, detail = kernels.scan(
        text, state, form.separator, form.columns, np.array(order, dtype=np.int64),
        form.integers, drop, numbers, begin, length,
    )  # fmt: skip
    if code:
        raise _wrong_line(text, state, (code, detail), form, name)
    if not rows:
        raise InputError("no arc in it", source=name)
    here = _Stretches(text, begin[:, :rows], length[:, :rows], name)
    names: list[str] | None = None
    if form.integers:
        source, target = numbers[0, :rows], numbers[1, :rows]
    else:
        source, target, names = here.nodes()
    values = here.numbers(2) if order[2] >= 0 else None
    kinds, kind_names = here.kinds(3) if order[3] >= 0 else (None, ())
    return EdgeColumns(
        source, target, names, values, kinds, kind_names, int(state[3]), _left_out(form, order)
    )


@dataclass(frozen=True)
class _Form:
    offset: int  # of the first line after the head
    line: int  # lines before it
    separator: int
    columns: int
    head: list[str] | None
    integers: bool


def _sniff(
    content: bytes, name: str, *, separator: str | None, ids: IdKind, header: bool | None
) -> _Form:
    """Look at the first lines: what separates, is there a head, are the ids integers."""
    start = 3 if content[:3] == b"\xef\xbb\xbf" else 0
    if content[:2] in {b"\xff\xfe", b"\xfe\xff"}:
        raise InputError("this is UTF-16, not UTF-8", source=name)
    if content[:14].lower() == b"%%matrixmarket":
        raise InputError(
            "this is a Matrix Market file",
            source=name,
            hint="Graph.from_scipy(scipy.io.mmread(path), directed=...)",
        )
    if separator is not None and separator not in _SEPARATORS:
        raise InputError(
            "must be one of ',', ';', '|', a tab or a space", field="separator", value=separator
        )
    if ids not in {"auto", "integer", "text"}:
        raise InputError("must be auto, integer or text", field="ids", value=ids)
    found: list[tuple[int, int, bytes]] = []  # offset behind the line, its number, its text
    at, line = start, 0
    while at < len(content) and len(found) < 2 and at < start + _SNIFFED:
        end = content.find(b"\n", at)
        end = len(content) if end < 0 else end
        raw, line, at = content[at:end].strip(b" \r\v"), line + 1, end + 1
        if raw.strip() and raw.lstrip()[:1] not in {b"#", b"%"}:
            found.append((at, line, raw))
    if not found:
        raise InputError("no arc in it", source=name)
    code = _SEPARATORS[separator] if separator is not None else _separator_of(found)
    first = _fields(found[0][2], code)
    data = _fields(found[-1][2], code)
    if header is None:
        header = _is_head(first, data if len(found) > 1 else None)
    if header and len(found) < 2:
        raise InputError("no arc in it, only names of columns", source=name)
    head = [field.decode("utf-8", "replace") for field in first] if header else None
    data = data if header else first
    if len(data) < 2:
        raise InputError(
            "a line needs two ids", row=found[1 if header else 0][1], source=name,
            value=b" ".join(data).decode("utf-8", "replace"),
        )  # fmt: skip
    offset, before = (found[0][0], found[0][1]) if header else (start, 0)
    whole = [_INTEGER.match(field) is not None for field in data]
    integers = ids == "integer" or (ids == "auto" and sum(whole[:2]) == 2)
    return _Form(offset, before, code, len(data), head, integers)


def _separator_of(found: list[tuple[int, int, bytes]]) -> int:
    for byte in (b",", b";", b"\t", b"|"):
        if byte not in found[0][2]:
            continue
        if byte == b"\t" and all(_same_split(line) for _, _, line in found):
            continue
        return byte[0]
    return 0


def _same_split(line: bytes) -> bool:
    """Say whether tabs and any blanks split a line alike: then any blank may separate."""
    return [field.strip() for field in line.split(b"\t")] == line.split()


def _fields(line: bytes, separator: int) -> list[bytes]:
    if not separator:
        return line.split()
    text = line.decode("utf-8", "surrogateescape").replace("\r", " ")
    try:
        fields = next(csv.reader([text], delimiter=chr(separator), skipinitialspace=True), [])
    except csv.Error:  # one field of a hundred thousand letters, say
        fields = text.split(chr(separator))
    return [field.strip().encode("utf-8", "surrogateescape") for field in fields]


def _is_head(first: list[bytes], second: list[bytes] | None) -> bool:
    """Say whether the first line names columns: words above numbers, or usual names."""
    named = [field.decode("utf-8", "replace").lower() for field in first]
    if set(named) & set(_USUAL["source"]) and set(named) & set(_USUAL["target"]):
        return True
    if second is None or any(_INTEGER.match(field) for field in first):
        return False
    return len(second) > 1 and all(_INTEGER.match(field) for field in second[:2])


def _wrong_line(
    text: _Bytes,
    state: npt.NDArray[np.int64],
    problem: tuple[int, int],
    form: _Form,
    name: str,
) -> InputError:
    code, detail = problem
    start = int(state[0])
    raw = text[start : start + 200].tobytes().split(b"\n")[0].decode("utf-8", "replace").strip()
    hint = 'on_bad_row="drop" leaves such lines out and counts them'
    if code == 1:
        what = f"{detail} columns where there should be {form.columns}"
    elif code == 2:
        what = "is no integer id"
        fields = _fields(raw.encode(), form.separator)
        raw = fields[detail].decode("utf-8", "replace") if detail < len(fields) else raw
        hint = 'ids="text" takes ids as names; ' + hint
    elif code == 3:
        what = "an id is missing"
    else:
        what = "a quote does not end, or stands inside a name"
    return InputError(what, row=int(state[1]), source=name, value=raw, hint=hint)


def _left_out(form: _Form, order: list[int]) -> tuple[str, ...]:
    rest = form.columns - sum(place >= 0 for place in order)
    if not rest:
        return ()
    return (f"{rest} further column{'s' if rest > 1 else ''} not read; values= or kinds= take one",)


class _Stretches:
    """Fields that were marked in the text, as names, numbers and kinds."""

    def __init__(
        self,
        text: _Bytes,
        begin: npt.NDArray[np.int64],
        length: npt.NDArray[np.int32],
        name: str,
    ) -> None:
        self.text, self.begin, self.length, self.name = text, begin, length, name

    def _strings(self, fields: tuple[int, ...]) -> Any:
        from shoal.data import _edge_kernels as kernels  # noqa: PLC0415

        begin = np.concatenate([self.begin[field] for field in fields])
        length = np.concatenate([self.length[field] for field in fields])
        data, offsets = kernels.gather(self.text, begin, length)
        made = pa.LargeStringArray.from_buffers(
            len(begin), pa.py_buffer(offsets), pa.py_buffer(data)
        )
        try:
            made.validate(full=True)
        except pa.ArrowInvalid:
            raise self._undecodable(begin, length) from None
        return made

    def _undecodable(
        self, begin: npt.NDArray[np.int64], length: npt.NDArray[np.int32]
    ) -> InputError:
        for start, size in zip(begin.tolist(), length.tolist(), strict=True):
            raw = self.text[start : start + size].tobytes()
            try:
                raw.decode()
            except UnicodeDecodeError:
                row = self._line(start)
                return InputError("is not UTF-8", value=raw, row=row, source=self.name)
        return InputError("is not UTF-8", source=self.name)

    def _line(self, offset: int) -> int:
        return 1 + int(np.count_nonzero(self.text[:offset] == 10))

    def nodes(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], list[str]]:
        """Return the rows of both ends in the ascending names of all nodes."""
        coded = self._strings((0, 1)).dictionary_encode()
        order = pc.sort_indices(coded.dictionary)
        names: list[str] = coded.dictionary.take(order).to_pylist()
        rank = np.empty(len(names), dtype=np.int64)
        rank[order.to_numpy()] = np.arange(len(names))
        rows = rank[coded.indices.to_numpy()]
        half = len(rows) // 2
        return rows[:half], rows[half:], names

    def numbers(self, field: int) -> npt.NDArray[np.float64]:
        """Return a column as finite numbers, or say which line is none."""
        texts = self._strings((field,))
        try:
            made = np.asarray(pc.cast(texts, pa.float64()))
        except pa.ArrowInvalid:
            made = np.array([_number(text) for text in texts.to_pylist()])
        wrong = np.flatnonzero(~np.isfinite(made))
        if len(wrong):
            row = int(wrong[0])
            raise InputError(
                "is no finite number",
                field="values",
                value=texts[row].as_py(),
                row=self._line(int(self.begin[field, row])),
                source=self.name,
            )
        return made

    def kinds(self, field: int) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
        """Return a column as rows of its different texts."""
        coded = self._strings((field,)).dictionary_encode()
        return coded.indices.to_numpy().astype(np.int64), tuple(coded.dictionary.to_pylist())


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
