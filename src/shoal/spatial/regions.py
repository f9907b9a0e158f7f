"""Areas that answers must lie in: boxes and polygons, checked and made flat.

A polygon may come as GeoJSON, WKT, a shapely geometry or a list of corners;
shapely reads and repairs nothing silently: what is not valid is refused with
its reason. The test of a point is the kernel's (``_score.in_region``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from shoal.core.errors import InputError
from shoal.spatial.query import RegionPlan

__all__ = ["make_region"]

#: A squared chord that holds the whole sphere: no cap.
_NO_CAP = 4.0
#: Widening of a cap, chord: rounding of the float32 boxes and of the unit vectors.
_CAP_SLACK = 1e-6
#: Longest step between two points of an edge when the cap is measured, degrees.
_STEP = 1.0


def make_region(area: object) -> RegionPlan:
    """Return an area as flat arrays.

    Parameters
    ----------
    area : sequence, mapping, str or shapely geometry
        A box as (west, south, east, north) in degrees (west > east crosses the
        antimeridian); or a polygon as a list of at least three (lon, lat)
        corners, a GeoJSON geometry or feature, WKT, or anything with
        ``__geo_interface__``. Multipolygons and holes are kept (even-odd rule).

    Returns
    -------
    RegionPlan

    Raises
    ------
    InputError
        A coordinate is not finite or out of range, the shape is not valid, or
        it is no area at all.
    """
    if isinstance(area, RegionPlan):
        return area
    if isinstance(area, str):
        return _polygons(_read_text(area))
    if isinstance(area, Mapping):
        return _polygons(_read_geojson(area))
    if hasattr(area, "__geo_interface__"):
        return _polygons(_read_geojson(area.__geo_interface__))
    if isinstance(area, (Sequence, np.ndarray)):
        try:
            corners = np.asarray(area, dtype=np.float64)
        except (TypeError, ValueError):
            raise InputError(
                "an area is (west, south, east, north) or a list of (lon, lat)",
                field="within",
                value=area,
            ) from None
        if corners.shape == (4,):
            return _box(corners)
        if corners.ndim == 2 and corners.shape[1] == 2:
            if len(corners) < 3:
                raise InputError("a polygon needs at least three corners", field="within")
            _check_corners(corners)
            return _polygons(shapely.Polygon(corners))
    raise InputError(
        "an area is (west, south, east, north), a list of (lon, lat), GeoJSON or WKT",
        field="within",
        value=area,
    )


def _check_corners(corners: npt.NDArray[np.float64]) -> None:
    if not np.isfinite(corners).all():
        raise InputError("a corner of the area is not finite", field="within")
    if np.abs(corners[:, 0]).max() > 180 or np.abs(corners[:, 1]).max() > 90:
        raise InputError(
            "a corner of the area is out of range",
            field="within",
            hint="corners are (lon, lat) in degrees; are the two swapped?",
        )


def _box(edges: npt.NDArray[np.float64]) -> RegionPlan:
    west, south, east, north = (float(value) for value in edges)
    points = np.array([[west, south], [east, north]])
    _check_corners(points)
    if south > north:
        raise InputError(
            "the south edge lies north of the north edge", field="within", value=edges.tolist()
        )
    width = east - west if west <= east else east - west + 360.0
    outline = _outline(np.array([west, south]), np.array([west + width, north]))
    return _plan(1, points, np.array([0, 2], dtype=np.int32), outline, wide=width > 180.0)


def _outline(
    low: npt.NDArray[np.float64], high: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return points on the edges of a box, close together."""
    lon = np.linspace(low[0], high[0], max(2, math.ceil((high[0] - low[0]) / _STEP) + 1))
    lat = np.linspace(low[1], high[1], max(2, math.ceil((high[1] - low[1]) / _STEP) + 1))
    edges = [
        np.stack([lon, np.full(len(lon), low[1])], axis=1),
        np.stack([lon, np.full(len(lon), high[1])], axis=1),
        np.stack([np.full(len(lat), low[0]), lat], axis=1),
        np.stack([np.full(len(lat), high[0]), lat], axis=1),
    ]
    return np.concatenate(edges)


def _read_text(text: str) -> Any:
    stripped = text.strip()
    if stripped.startswith("{"):
        try:
            return _read_geojson(json.loads(stripped))
        except (ValueError, RecursionError) as error:
            raise InputError(f"not GeoJSON: {error}", field="within") from None
    try:
        return shapely.from_wkt(stripped)
    except shapely.errors.ShapelyError as error:
        raise InputError(f"neither GeoJSON nor WKT: {error}", field="within") from None


def _read_geojson(geojson: Mapping[str, Any]) -> Any:
    if not isinstance(geojson, Mapping):
        raise InputError("not a GeoJSON object", field="within", value=geojson)
    kind = geojson.get("type")
    if kind == "Feature":
        return _read_geojson(geojson.get("geometry") or {})
    if kind == "FeatureCollection":
        features = geojson.get("features") or []
        if not isinstance(features, list) or len(features) != 1:
            features = features if isinstance(features, list) else []
            raise InputError(
                f"an area is one feature; this collection has {len(features)}", field="within"
            )
        return _read_geojson(features[0])
    try:
        return shapely.from_geojson(json.dumps(geojson))
    except (shapely.errors.ShapelyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"not a GeoJSON geometry: {error}", field="within") from None


def _polygons(shape: Any) -> RegionPlan:
    if shape is None or shape.is_empty or shape.geom_type not in {"Polygon", "MultiPolygon"}:
        found = "nothing" if shape is None or shape.is_empty else shape.geom_type
        raise InputError(f"an area is a polygon, not {found}", field="within")
    _check_corners(shapely.get_coordinates(shape))
    if not shape.is_valid:
        reason = shapely.is_valid_reason(shape)
        raise InputError(f"the polygon is not valid: {reason}", field="within")
    parts = shape.geoms if shape.geom_type == "MultiPolygon" else [shape]
    rings = [
        shapely.get_coordinates(ring)[:-1]  # shapely repeats the first corner
        for part in parts
        for ring in (part.exterior, *part.interiors)
    ]
    ptr = np.cumsum([0, *(len(ring) for ring in rings)]).astype(np.int32)
    points = np.concatenate(rings)
    west, south, east, north = shape.bounds
    # The bounding box's cap holds the polygon's, and its outline is short.
    outline = _outline(np.array([west, south]), np.array([east, north]))
    return _plan(2, points, ptr, outline, wide=east - west > 180.0)


def _plan(
    kind: int,
    points: npt.NDArray[np.float64],
    ptr: npt.NDArray[np.int32],
    outline: npt.NDArray[np.float64],
    *,
    wide: bool,
) -> RegionPlan:
    cap, chord2 = ((0.0, 0.0, 1.0), _NO_CAP) if wide else _cap(outline)
    return RegionPlan(
        kind=kind, points=np.ascontiguousarray(points), ptr=ptr, cap=cap, cap_chord2=chord2
    )


def _cap(outline: npt.NDArray[np.float64]) -> tuple[tuple[float, float, float], float]:
    """Return a cap (centre on the sphere, squared chord) that holds a box's area.

    The points of a box within 180 degrees of longitude that are farthest from
    its middle lie on its outline; between two points of the outline, at most
    ``_STEP`` degrees apart, an edge can bulge by no more than half that step.
    """
    lon, lat = np.radians(outline[:, 0]), np.radians(outline[:, 1])
    vectors = np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=1)
    middle = np.radians((outline.min(axis=0) + outline.max(axis=0)) / 2)
    centre = np.array(
        [
            math.cos(middle[1]) * math.cos(middle[0]),
            math.cos(middle[1]) * math.sin(middle[0]),
            math.sin(middle[1]),
        ]
    )
    farthest = math.sqrt(float(((vectors - centre) ** 2).sum(axis=1).max()))
    chord = farthest + math.radians(_STEP) / 2 + _CAP_SLACK
    if chord >= 2.0:
        return (0.0, 0.0, 1.0), _NO_CAP
    return (float(centre[0]), float(centre[1]), float(centre[2])), chord * chord
