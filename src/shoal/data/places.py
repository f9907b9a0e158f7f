"""Places from files: CSV, Parquet, JSON, GeoJSON, GeoNames dumps and OpenStreetMap extracts."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from shoal.core.errors import InputError, NotFoundError
from shoal.data.jsonrows import frame_of_records, json_lines
from shoal.data.placecolumns import ColumnChoice, places_of_frame
from shoal.data.placetable import BadRows, PlaceTable
from shoal.data.sourcefile import bare_suffix, read_text
from shoal.data.words import tokenize

__all__ = ["FORMATS", "PlaceTable", "load_places_sample", "read_places", "tokenize"]

#: Formats that :func:`read_places` knows.
FORMATS = ("csv", "tsv", "parquet", "jsonl", "geojson", "geonames", "osm")

_BY_SUFFIX = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".geoparquet": "parquet",
    ".json": "geojson",
    ".geojson": "geojson",
    ".geojsonl": "geojson",
    ".geojsons": "geojson",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".pbf": "osm",
    ".osm": "osm",
}
_DELIMITERS = ",;\t|"


def read_places(
    path: str | Path,
    *,
    format: str | None = None,
    lon: str | None = None,
    lat: str | None = None,
    id: str | None = None,
    name: str | None = None,
    keywords: str | Sequence[str] | None = None,
    attributes: Sequence[str] | Mapping[str, str] | None = None,
    separator: str | None = None,
    encoding: str = "utf-8",
    on_bad_row: BadRows = "error",
) -> PlaceTable:
    """Read places from a file.

    Parameters
    ----------
    path : path-like
        A .csv, .tsv, .jsonl or .geojson (also .gz, .bz2, .xz, .zst or .zip), a
        .parquet, a GeoNames dump (.txt or .zip), or an OpenStreetMap extract
        (.osm.pbf, .osm).
    format : str, optional
        One of :data:`FORMATS`; by default from the name, and for .txt from the
        number of columns.
    lon, lat, id, name : str, optional
        Columns; by default those with a usual name (lon, lng, longitude, x, ...).
        Without an id column the rows are numbered from 0. A column of a nested
        record is written ``outer.inner``.
    keywords : str or sequence of str, optional
        Columns with the words of a place: lists, or texts that are split into
        words (:func:`shoal.data.words.tokenize`). By default a usual one
        (keywords, tags, categories, ...), else the name. For OpenStreetMap: tags.
    attributes : sequence of str or mapping, optional
        Columns with numbers, or new name -> column. None by default.
    separator : str, optional
        Splits a text of keywords instead of the analyzer: ``"|"``.
    encoding : str
        Of a text file.
    on_bad_row : {"error", "drop"}
        Stop at the first row that cannot be used, or leave such rows out and
        count them in ``dropped``.

    Returns
    -------
    PlaceTable
        ``notes`` says what looks wrong and is no error, such as columns of
        longitude and latitude that look swapped.

    Raises
    ------
    NotFoundError
        There is no such file.
    InputError
        The file is empty, cut short, of another encoding or format; a column is
        missing or unclear; or a row cannot be used (row numbers count from 1,
        without the line of column names).
    """
    path = Path(path)
    kind = format or _kind(path)
    choice = ColumnChoice(lon, lat, id, name, keywords, attributes, separator)
    if kind == "osm":
        from shoal.data.osm import read_osm  # noqa: PLC0415 - osmium only where it is needed

        return read_osm(path, keywords=keywords, attributes=attributes, on_bad_row=on_bad_row)
    if kind == "geonames":
        from shoal.data.geonames import read_geonames  # noqa: PLC0415

        return read_geonames(path, attributes=attributes, on_bad_row=on_bad_row)
    if kind == "geojson":
        from shoal.data.geojson import read_geojson  # noqa: PLC0415 - shapely

        return read_geojson(path, choice, encoding=encoding, on_bad_row=on_bad_row)
    if kind == "parquet":
        return _read_parquet(path, choice, on_bad_row)
    if kind in {"csv", "tsv"}:
        frame = _read_csv(path, "\t" if kind == "tsv" else None, encoding)
    elif kind == "jsonl":
        text = read_text(path, encoding=encoding)
        if _holds_features(text):
            from shoal.data.geojson import places_of_geojson  # noqa: PLC0415

            return places_of_geojson(text, choice, source=path.name, on_bad_row=on_bad_row)
        frame = frame_of_records(list(json_lines(text, path.name)), path.name)
    else:
        raise InputError(
            f"no such format; the formats are {', '.join(FORMATS)}", field="format", value=kind
        )
    return places_of_frame(frame, choice, source=path.name, on_bad_row=on_bad_row)


def load_places_sample() -> PlaceTable:
    """Return the shipped sample: the 4,000 most populous places of GeoNames (CC BY 4.0).

    See :func:`shoal.data.geonames.load_sample`.
    """
    from shoal.data.geonames import load_sample  # noqa: PLC0415

    return load_sample()


def _kind(path: Path) -> str:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is not there"
        raise NotFoundError(f"{path} {what}", hint="give the path of a file")
    suffix = bare_suffix(path)
    if suffix in _BY_SUFFIX:
        return _BY_SUFFIX[suffix]
    if suffix in {".txt", ""}:
        head = read_text(path).partition("\n")[0]
        return "geonames" if head.count("\t") == 18 else "csv"
    raise InputError(
        f"cannot tell the format of a {suffix} file",
        source=path.name,
        hint=f"say it with format=, one of {', '.join(FORMATS)}",
    )


def _read_csv(path: Path, delimiter: str | None, encoding: str) -> pl.DataFrame:
    text = read_text(path, encoding=encoding)
    head = text.lstrip().partition("\n")[0]
    if not head:
        raise InputError("the file is empty", source=path.name)
    if delimiter is None:
        delimiter = max(_DELIMITERS, key=head.count)
    try:
        # Texts only, so that a value which is no number is found and named.
        frame = pl.read_csv(
            io.BytesIO(text.encode()), separator=delimiter, infer_schema=False, null_values=[]
        )
    except pl.exceptions.PolarsError as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"not a readable table: {reason}",
            source=path.name,
            hint="a quote that is not closed, a row with too many fields, or a file cut short",
        ) from error
    if frame.is_empty():
        raise InputError("there is a line of column names and no row", source=path.name)
    return frame


def _read_parquet(path: Path, choice: ColumnChoice, on_bad_row: BadRows) -> PlaceTable:
    try:
        frame = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"not a readable Parquet file: {reason}",
            source=path.name,
            hint="it may be cut short: the footer is at its end",
        ) from error
    for _ in range(4):  # records within records: outer.inner
        nested = [c for c, kind in frame.schema.items() if isinstance(kind, pl.Struct)]
        for column in nested:
            inner = frame[column].struct.unnest()
            inner.columns = [f"{column}.{name}" for name in inner.columns]
            frame = frame.drop(column).hstack(inner)
    if choice.lon is None and choice.lat is None:
        geometry = next((c for c in ("geometry", "geom", "wkb_geometry") if c in frame), None)
        if geometry is not None and frame[geometry].dtype == pl.Binary:
            from shoal.data.geojson import places_of_wkb  # noqa: PLC0415 - shapely

            return places_of_wkb(frame, geometry, choice, source=path.name, on_bad_row=on_bad_row)
    return places_of_frame(frame, choice, source=path.name, on_bad_row=on_bad_row)


def _holds_features(text: str) -> bool:
    head = text.lstrip("\x1e \t\r\n")[:4096]
    return '"Feature"' in head or '"FeatureCollection"' in head
