"""JSON records as table columns."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from shoal.core.errors import InputError

__all__ = ["frame_of_records", "json_lines"]


def json_lines(text: str, source: str) -> Iterator[dict[str, Any]]:
    """Yield the objects of newline-delimited JSON (or of a JSON text sequence, RFC 7464).

    Raises
    ------
    InputError
        A line is no JSON object; the last one, if the file is cut short.
    """
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.strip("\x1e \t\r")
        if not line:
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"not JSON: {error.msg}", row=number, source=source) from None
        if not isinstance(record, dict):
            raise InputError("not a JSON object", row=number, source=source)
        yield record


def frame_of_records(records: Sequence[Mapping[str, Any]], source: str) -> pl.DataFrame:
    """Return records as a table; nested ones become columns ``outer.inner``.

    Raises
    ------
    InputError
        There is no record.
    """
    if not records:
        raise InputError("the file is empty", source=source)
    columns: dict[str, list[Any]] = {}
    for row, record in enumerate(records):
        for name, value in _flatten(record, ""):
            values = columns.setdefault(name, [])
            values.extend([None] * (row - len(values)))
            values.append(value)
    for values in columns.values():
        values.extend([None] * (len(records) - len(values)))
    return pl.DataFrame([_column(name, values) for name, values in columns.items()])


def _flatten(record: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in record.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _column(name: str, values: list[Any]) -> pl.Series:
    """Return lists of texts if any value is a list, else numbers if all are, else texts."""
    kinds = {type(value) for value in values} - {type(None)}
    if list in kinds:
        lists = [v if isinstance(v, list) or v is None else [v] for v in values]
        words = [None if v is None else [_text(w) for w in v if w is not None] for v in lists]
        return pl.Series(name, words, dtype=pl.List(pl.String))
    if kinds and kinds <= {int} and all(v is None or abs(v) < 2**63 for v in values):
        return pl.Series(name, values, dtype=pl.Int64)
    if kinds and kinds <= {int, float}:
        floats = [None if v is None else float(v) for v in values]
        return pl.Series(name, floats, dtype=pl.Float64)
    return pl.Series(name, [None if v is None else _text(v) for v in values], dtype=pl.String)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
