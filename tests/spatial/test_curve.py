"""The curve: every cell once, neighbours next to each other."""

import numpy as np

from shoal.spatial.curve import hilbert_key, hilbert_order

CELL = 360.0 / 2**26


def test_successive_places_are_neighbouring_cells():
    rng = np.random.default_rng(0)
    side = 32
    x0, y0 = rng.integers(0, 2**26 - side, 2) // side * side
    y0 //= 2
    y0 = y0 // side * side
    x, y = np.meshgrid(np.arange(side), np.arange(side))
    x, y = x.ravel() + x0, y.ravel() + y0
    keys = hilbert_key((x + 0.5) * CELL - 180, (y + 0.5) * CELL - 90).astype(np.int64)
    order = np.argsort(keys)
    assert np.array_equal(np.diff(keys[order]), np.ones(side * side - 1))
    steps = np.abs(np.diff(x[order])) + np.abs(np.diff(y[order]))
    assert (steps == 1).all()


def test_corners_of_the_world_and_equal_positions():
    lon = np.array([180.0, -180.0, 180.0, 0.0, 0.0])
    lat = np.array([90.0, -90.0, -90.0, 0.0, 0.0])
    order = hilbert_order(lon, lat)
    assert sorted(order.tolist()) == [0, 1, 2, 3, 4]
    assert order.tolist().index(3) + 1 == order.tolist().index(4)
    assert hilbert_key(lon, lat).dtype == np.uint64


def test_nothing():
    assert hilbert_order(np.empty(0), np.empty(0)).tolist() == []


def test_rows_near_each_other_are_near_on_the_map():
    rng = np.random.default_rng(1)
    lon, lat = rng.uniform(-180, 180, 4096), rng.uniform(-90, 90, 4096)
    order = hilbert_order(lon, lat)
    step = np.hypot(np.diff(lon[order]), np.diff(lat[order]))
    assert np.median(step) < 6
