"""Areas: the kernel against shapely, the cap against every point inside, what is refused."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import shapely
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from shoal.core.errors import InputError
from shoal.spatial import _score
from shoal.spatial.regions import make_region

SQUARE = [(0, 0), (10, 0), (10, 10), (0, 10)]


def inside(region, lon, lat):
    return bool(_score.in_region(region.kind, region.points, region.ptr, float(lon), float(lat)))


def test_a_box_has_its_edges():
    region = make_region((-1, -2, 3, 4))
    assert inside(region, -1, -2)
    assert inside(region, 3, 4)
    assert not inside(region, 3.0001, 0)


def test_a_box_across_the_antimeridian():
    region = make_region((170, -10, -170, 10))
    assert inside(region, 175, 0)
    assert inside(region, -175, 0)
    assert inside(region, 180, 0)
    assert not inside(region, 0, 0)
    # The cap is the narrow side's, not the wide one's.
    assert region.cap[0] == pytest.approx(-1, abs=1e-9)
    assert region.cap_chord2 < 0.2


def test_every_way_to_write_a_polygon_is_the_same():
    shape = shapely.Polygon(SQUARE)
    geojson = json.loads(shapely.to_geojson(shape))
    forms = [
        SQUARE,
        np.array(SQUARE, dtype=float),
        shape,
        shape.wkt,
        geojson,
        json.dumps(geojson),
        {"type": "Feature", "properties": {}, "geometry": geojson},
        {"type": "FeatureCollection", "features": [{"type": "Feature", "geometry": geojson}]},
    ]
    for form in forms:
        region = make_region(form)
        assert region.kind == 2
        assert inside(region, 5, 5)
        assert not inside(region, 11, 5)


def test_a_hole_is_outside_and_an_island_in_it_inside():
    island = shapely.Polygon([(4, 4), (6, 4), (6, 6), (4, 6)])
    shape = shapely.MultiPolygon(
        [shapely.Polygon(SQUARE, [[(2, 2), (8, 2), (8, 8), (2, 8)]]), island]
    )
    region = make_region(shape)
    assert inside(region, 1, 1)
    assert not inside(region, 3, 3)
    assert inside(region, 5, 5)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-170, 170), st.floats(-85, 85)), min_size=3, max_size=8),
    st.integers(0, 2**32 - 1),
)
def test_the_kernel_agrees_with_shapely_and_the_cap_holds_the_area(corners, seed):
    shape = shapely.Polygon(corners).convex_hull
    assume(shape.geom_type == "Polygon" and shape.area > 1e-3)
    region = make_region(shape)
    rng = np.random.default_rng(seed)
    west, south, east, north = shape.bounds
    points = rng.uniform((west, south), (east, north), size=(50, 2))
    near_edge = shapely.distance(shapely.points(points), shape.boundary) < 1e-9
    expected = shapely.contains(shape, shapely.points(points))
    found = np.array([inside(region, *point) for point in points])
    assert (found == expected)[~near_edge].all()
    for lon, lat in [*points[found].tolist(), *shapely.get_coordinates(shape).tolist()]:
        vector = _score.unit_vector(lon, lat)
        chord2 = sum((a - b) ** 2 for a, b in zip(vector, region.cap, strict=True))
        assert chord2 <= region.cap_chord2


@settings(max_examples=150, deadline=None)
@given(
    st.floats(-180, 180), st.floats(-90, 90), st.floats(-180, 180), st.floats(-90, 90), st.data()
)
def test_the_cap_of_a_box_holds_its_points(west, south, east, north, data):
    south, north = min(south, north), max(south, north)
    region = make_region((west, south, east, north))
    width = east - west if west <= east else east - west + 360
    share_x, share_y = data.draw(st.floats(0, 1)), data.draw(st.floats(0, 1))
    lon = west + share_x * width
    lon = lon - 360 if lon > 180 else lon
    lat = min(north, south + share_y * (north - south))
    assume(inside(region, lon, lat))
    vector = _score.unit_vector(lon, lat)
    chord2 = sum((a - b) ** 2 for a, b in zip(vector, region.cap, strict=True))
    assert chord2 <= region.cap_chord2


@pytest.mark.parametrize(
    ("area", "message"),
    [
        ((0, 5, 1, 4), "south edge"),
        ((0, math.nan, 1, 4), "not finite"),
        ((0, 0, 999, 4), "out of range"),
        ([(0, 0), (1, 1)], "three corners"),
        ([(0, 0), (1, 1), (1, 0), (0, 1)], "not valid"),
        ([(0, 100), (1, 100), (1, 120)], "swapped"),
        ("POINT (1 2)", "not Point"),
        ("POLYGON EMPTY", "not nothing"),
        ("POLYGON ((1 2", "WKT"),
        ('{"type": "Polygon"', "GeoJSON"),
        ({"type": "FeatureCollection", "features": []}, "one feature"),
        ({"type": "Nonsense"}, "GeoJSON"),
        (7, "an area is"),
        ("", "WKT"),
        ([["a", "b"]], "an area is"),
    ],
    ids=range(15),
)
def test_what_is_no_area_is_refused(area, message):
    with pytest.raises(InputError) as caught:
        make_region(area)
    assert message in f"{caught.value.message} {caught.value.hint}"
    assert caught.value.field == "within"


def test_a_region_is_passed_through():
    region = make_region((0, 0, 1, 1))
    assert make_region(region) is region
