"""From a table with named columns to places: which column is what, and what cannot be read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from shoal.core.errors import InputError
from shoal.data.placetable import BadRows, PlaceTable, Problem, build_table, keyword_array
from shoal.data.words import tokenize

__all__ = ["ColumnChoice", "numbers", "places_of_frame"]

#: Names under which a column is looked for; an earlier line wins over a later one.
_USUAL: dict[str, tuple[tuple[str, ...], ...]] = {
    "lon": (
        (
            "lon",
            "lng",
            "long",
            "longitude",
            "lon_deg",
            "longitude_deg",
            "geo_lon",
            "decimallongitude",
        ),
        ("x",),
    ),
    "lat": (
        ("lat", "latitude", "lat_deg", "latitude_deg", "geo_lat", "decimallatitude"),
        ("y",),
    ),
    "id": (
        ("id",),
        ("place_id", "poi_id", "business_id", "venue_id", "osm_id", "geonameid", "fsq_place_id"),
        ("poi", "key", "uuid", "gid", "fid", "@id"),
    ),
    "name": (("name",), ("names.primary", "title", "label", "display_name")),
    "keywords": (
        ("keywords",),
        ("tags", "categories", "category", "keyword", "words"),
        ("types", "description", "text"),
    ),
    "timezone": (("timezone", "time_zone", "tz"),),
    "category": (("category", "categories.primary", "kind", "type"),),
    "country": (("country_code", "country", "cc", "iso_country"),),
}
#: Texts that stand for a missing number.
_MISSING = ("", "na", "n/a", "null", "none", "-", "nan")
_COMMA = re.compile(r"^\s*[-+]?\d+,\d+\s*$")
_SEXAGESIMAL = re.compile(r"[°'″′\"NSEW]")


@dataclass(frozen=True)
class ColumnChoice:
    """Which columns a caller named; None looks for the usual names."""

    lon: str | None = None
    lat: str | None = None
    id: str | None = None
    name: str | None = None
    keywords: str | Sequence[str] | None = None
    attributes: Sequence[str] | Mapping[str, str] | None = None
    separator: str | None = None


def places_of_frame(
    frame: pl.DataFrame,
    choice: ColumnChoice,
    *,
    source: str,
    on_bad_row: BadRows = "error",
    position: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None = None,
    problems: Sequence[Problem] = (),
) -> PlaceTable:
    """Return the places of a table.

    Parameters
    ----------
    frame : polars.DataFrame
        One row a place.
    choice : ColumnChoice
        Which columns to read.
    source : str
        File name for messages.
    on_bad_row : {"error", "drop"}
        What happens to a row that cannot be used.
    position : (lon, lat), optional
        Positions that are no columns (from geometries).
    problems : sequence of Problem
        Rows whose position could not be had.

    Raises
    ------
    InputError
        A column is missing or there are several of its usual names, or as
        :func:`shoal.data.placetable.build_table`.
    """
    found = list(problems)
    if position is None:
        names = (
            _find("lon", choice.lon, frame, source, needed=True),
            _find("lat", choice.lat, frame, source, needed=True),
        )
        assert names[0] is not None and names[1] is not None
        lon, lon_problems = _position(frame[names[0]])
        lat, lat_problems = _position(frame[names[1]])
        found += [*lon_problems, *lat_problems]
        position_names = (names[0], names[1])
    else:
        lon, lat = position
        position_names = ("lon", "lat")
    attributes = {}
    for label, column in _attribute_columns(choice.attributes).items():
        _find(label, column, frame, source, needed=True)
        attributes[label], more = _attribute(frame[column])
        found += more
    name = _find("name", choice.name, frame, source)
    ids = _find("id", choice.id, frame, source)
    return build_table(
        lon,
        lat,
        pl.Series("id", np.arange(frame.height)) if ids is None else _ids(frame[ids]),
        source=source,
        keywords=_keywords(frame, choice, name, source),
        attributes=attributes,
        names=None if name is None else _texts(frame[name]),
        timezone=_optional(frame, "timezone", source),
        category=_optional(frame, "category", source),
        country=_optional(frame, "country", source),
        problems=found,
        on_bad_row=on_bad_row,
        position_names=position_names,
    )


def _find(
    role: str, named: str | None, frame: pl.DataFrame, source: str, *, needed: bool = False
) -> str | None:
    """Return the column of a role: the one named, or the one with a usual name."""
    columns = frame.columns
    if named is not None:
        if named in columns:
            return named
        raise InputError(
            f"no column {named!r}; there are {_listed(columns)}", field=role, source=source
        )
    for names in _USUAL[role]:
        candidates = [column for column in columns if column.strip().lower() in names]
        if len(candidates) > 1:
            raise InputError(
                f"several columns could be it: {', '.join(candidates)}",
                field=role,
                source=source,
                hint=f"name one with {role}=",
            )
        if candidates:
            return candidates[0]
    if needed:
        raise InputError(
            f"no column with a usual name for it; there are {_listed(columns)}",
            field=role,
            source=source,
            hint=f"name the column with {role}=",
        )
    return None


def _optional(frame: pl.DataFrame, role: str, source: str) -> list[str | None] | None:
    try:
        column = _find(role, None, frame, source)
    except InputError:  # nobody asked for it: an unclear one is left out
        return None
    if column is None or not (frame[column].dtype == pl.String or _is_category(frame[column])):
        return None
    return _texts(frame[column])


def _is_category(column: pl.Series) -> bool:
    return isinstance(column.dtype, (pl.Categorical, pl.Enum))


def _listed(columns: Sequence[str]) -> str:
    shown = ", ".join(columns[:20])
    return shown + (f" and {len(columns) - 20} more" if len(columns) > 20 else "")


def _attribute_columns(attributes: Sequence[str] | Mapping[str, str] | None) -> dict[str, str]:
    if attributes is None:
        return {}
    if isinstance(attributes, str):
        return {attributes: attributes}
    if isinstance(attributes, Mapping):
        return dict(attributes)
    return {name: name for name in attributes}


def numbers(column: pl.Series) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Return a column as float64, NaN where nothing stands, and which rows are no number."""
    if column.dtype.is_numeric() or column.dtype == pl.Null:
        return column.cast(pl.Float64).fill_null(np.nan).to_numpy(), np.zeros(len(column), np.bool_)
    text = column.cast(pl.String, strict=False).str.strip_chars()
    value = text.cast(pl.Float64, strict=False)
    missing = text.is_null() | text.str.to_lowercase().is_in(list(_MISSING))
    wrong = (value.is_null() & ~missing).to_numpy()
    return value.fill_null(np.nan).to_numpy(), wrong


def _position(column: pl.Series) -> tuple[npt.NDArray[np.float64], list[Problem]]:
    values, wrong = numbers(column)
    given = column.cast(pl.String, strict=False).str.strip_chars()
    missing = (given.is_null() | (given == "")).fill_null(value=True).to_numpy()
    hint = None
    if wrong.any():
        example = str(column[int(np.argmax(wrong))])
        if _COMMA.match(example):
            hint = "decimal commas: write 60.17, not 60,17"
        elif _SEXAGESIMAL.search(example):
            hint = "positions are decimal degrees: write 60.1699, not 60°10'12\""
    if len(missing) > 1 and missing[-1] and not missing[:-1].any():
        hint = "only the last row has none: the file may be cut short"
    return values, [
        Problem("position missing", missing, column.name, lambda _: None, hint),
        Problem("position is no number", wrong, column.name, lambda row: column[row], hint),
    ]


def _attribute(column: pl.Series) -> tuple[npt.NDArray[np.float64], list[Problem]]:
    values, wrong = numbers(column)
    return values, [
        Problem("attribute is no number", wrong, column.name, lambda row: column[row]),
        Problem("attribute is infinite", np.isinf(values), column.name, lambda row: column[row]),
    ]


def _ids(column: pl.Series) -> pl.Series:
    """Return ids as whole numbers where every one is written as one, else as texts."""
    column = column.alias("id")
    if column.dtype.is_integer():
        if column.dtype != pl.UInt64 or (column <= np.iinfo(np.int64).max).all():
            return column.cast(pl.Int64)
        return column.cast(pl.String)
    if column.dtype.is_float():
        whole = column.cast(pl.Int64, strict=False)
        same = (whole.cast(pl.Float64) == column) | column.is_null()
        return whole if same.all() else column.cast(pl.String)
    text = column.cast(pl.String, strict=False)
    text = text.set(text == "", None)
    number = text.cast(pl.Int64, strict=False)
    same = (number.cast(pl.String) == text) | text.is_null()
    return number if same.fill_null(value=False).all() else text


def _texts(column: pl.Series) -> list[str | None]:
    text = column.cast(pl.String, strict=False)
    return [value or None for value in text.to_list()]


def _keywords(frame: pl.DataFrame, choice: ColumnChoice, name: str | None, source: str) -> Any:
    """Return the words of each row from the columns named, the usual one, or the name."""
    if choice.keywords is None:
        found = _find("keywords", None, frame, source) or name
        columns = [] if found is None else [found]
    else:
        columns = [choice.keywords] if isinstance(choice.keywords, str) else list(choice.keywords)
        for column in columns:
            _find("keywords", column, frame, source, needed=True)
    parts = [frame[column] for column in columns]
    if len(parts) == 1 and isinstance(parts[0].dtype, (pl.List, pl.Array)):
        words = (
            parts[0].cast(pl.List(pl.String)).fill_null(pl.Series([[]], dtype=pl.List(pl.String)))
        )
        listed = words.list.drop_nulls().to_arrow()
        return listed.cast(pa.large_list(pa.large_string()))
    lists = [_split(part, choice.separator) for part in parts]
    if not lists:
        return keyword_array(None, frame.height)
    rows = [
        list(dict.fromkeys(word for part in row for word in part))
        for row in zip(*lists, strict=True)
    ]
    return keyword_array(rows, frame.height)


def _split(column: pl.Series, separator: str | None) -> list[list[str]]:
    if isinstance(column.dtype, (pl.List, pl.Array)):
        return [
            [str(word) for word in row if word is not None] if row is not None else []
            for row in column.to_list()
        ]
    texts = column.cast(pl.String, strict=False).to_list()
    if separator is None:
        return [tokenize(text) if text else [] for text in texts]
    return [
        [word.strip() for word in text.split(separator) if word.strip()] if text else []
        for text in texts
    ]
