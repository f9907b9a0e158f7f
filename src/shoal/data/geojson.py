"""Places from GeoJSON (RFC 7946) and from geometry columns; other shapes by their centroid."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import shapely
from shapely.geometry import shape

from shoal.core.errors import InputError
from shoal.data.jsonrows import frame_of_records, json_lines
from shoal.data.placecolumns import ColumnChoice, places_of_frame
from shoal.data.placetable import BadRows, PlaceTable, Problem
from shoal.data.sourcefile import read_text

__all__ = ["places_of_geojson", "places_of_wkb", "read_geojson"]

_PLAIN_DEGREES = ("CRS84", "EPSG::4326", "EPSG:4326", "4979")


def read_geojson(
    path: str | Path,
    choice: ColumnChoice | None = None,
    *,
    encoding: str = "utf-8",
    on_bad_row: BadRows = "error",
) -> PlaceTable:
    """Read a FeatureCollection, one Feature, or one Feature a line.

    Parameters
    ----------
    path : path-like
        The file, perhaps packed.
    choice : ColumnChoice, optional
        Which properties to read; positions come from the geometries.
    encoding : str
        Of the file.
    on_bad_row : {"error", "drop"}
        What happens to a feature without a usable position.

    Raises
    ------
    InputError
        The file is no GeoJSON, is not in longitude and latitude, or as
        :func:`shoal.data.placecolumns.places_of_frame`.
    """
    text = read_text(path, encoding=encoding)
    return places_of_geojson(
        text, choice or ColumnChoice(), source=Path(path).name, on_bad_row=on_bad_row
    )


def places_of_geojson(
    text: str, choice: ColumnChoice, *, source: str, on_bad_row: BadRows = "error"
) -> PlaceTable:
    """Return the places of GeoJSON text; see :func:`read_geojson`."""
    features = _features(text, source)
    lon, lat, problems = _positions([feature.get("geometry") for feature in features])
    rows: list[dict[str, Any]] = []
    for feature in features:
        properties = feature.get("properties")
        row = dict(properties) if isinstance(properties, dict) else {}
        if "id" in feature:  # the feature's own id, before a property called so
            row["id"] = feature["id"]
        rows.append(row)
    return places_of_frame(
        frame_of_records(rows, source).with_columns(pl.Series("", np.zeros(len(rows)))),
        choice,
        source=source,
        on_bad_row=on_bad_row,
        position=(lon, lat),
        problems=problems,
    )


def places_of_wkb(
    frame: pl.DataFrame,
    column: str,
    choice: ColumnChoice,
    *,
    source: str,
    on_bad_row: BadRows = "error",
) -> PlaceTable:
    """Return the places of a table with geometries as WKB (GeoParquet)."""
    shapes = shapely.from_wkb(frame[column].to_numpy(), on_invalid="ignore")
    lon, lat, problems = _centroids(shapes)
    return places_of_frame(
        frame.drop(column),
        choice,
        source=source,
        on_bad_row=on_bad_row,
        position=(lon, lat),
        problems=problems,
    )


def _features(text: str, source: str) -> list[dict[str, Any]]:
    try:
        whole = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg != "Extra data" and not text.startswith("\x1e"):
            raise InputError(
                f"line {error.lineno} is not JSON: {error.msg}",
                source=source,
                hint="the file may be cut short" if error.pos >= len(text.rstrip()) - 1 else None,
            ) from None
        found = list(json_lines(text, source))
    else:
        if isinstance(whole, list):  # seen in the wild, although no GeoJSON
            found = whole
        elif isinstance(whole, dict) and whole.get("type") == "FeatureCollection":
            _check_system(whole.get("crs"), source)
            found = whole.get("features") or []
        else:
            found = [whole]
    for row, feature in enumerate(found, 1):
        if not isinstance(feature, dict) or feature.get("type") != "Feature":
            kind = feature.get("type") if isinstance(feature, dict) else feature
            raise InputError("not a GeoJSON feature", value=kind, row=row, source=source)
    if not found:
        raise InputError("no places in it", source=source)
    return found


def _check_system(crs: Any, source: str) -> None:
    """Refuse coordinates that say they are no longitude and latitude (GeoJSON of 2008)."""
    if not isinstance(crs, dict):
        return
    name = str((crs.get("properties") or {}).get("name", ""))
    if name and not any(known in name for known in _PLAIN_DEGREES):
        raise InputError(
            "coordinates are not longitude and latitude (WGS 84)",
            field="crs",
            value=name,
            source=source,
            hint="convert the file first, for example with ogr2ogr -t_srs EPSG:4326",
        )


def _positions(
    geometries: Sequence[Any],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], list[Problem]]:
    shapes = np.empty(len(geometries), dtype=object)
    lon, lat = np.full(len(geometries), np.nan), np.full(len(geometries), np.nan)
    for row, geometry in enumerate(geometries):
        try:
            if geometry["type"] == "Point":  # the common case needs no geometry object
                lon[row], lat[row] = (float(value) for value in geometry["coordinates"][:2])
            else:
                shapes[row] = shape(geometry)
        except (AttributeError, KeyError, TypeError, ValueError, shapely.errors.ShapelyError):
            continue
    other = np.array([item is not None for item in shapes])
    x, y, _ = _centroids(shapes[other])
    lon[other], lat[other] = x, y
    missing = np.isnan(lon) | np.isnan(lat)
    return lon, lat, [Problem("no usable geometry", missing, "geometry", lambda r: geometries[r])]


def _centroids(
    shapes: npt.NDArray[np.object_],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], list[Problem]]:
    centroids = shapely.centroid(shapes)
    lon, lat = shapely.get_x(centroids), shapely.get_y(centroids)
    missing = np.isnan(lon) | np.isnan(lat)
    return lon, lat, [Problem("no usable geometry", missing, "geometry", lambda r: str(shapes[r]))]
