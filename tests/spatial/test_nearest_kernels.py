"""AND + nearest by its own search: the answers of the general one, to the last bit."""

import dataclasses
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

from packedcases import SHAPES, expected, make_places, make_specs

from shoal.spatial import _call_kernels as calling
from shoal.spatial import _nearest_kernels as nearest
from shoal.spatial import _segment_kernels as searches
from shoal.spatial.columns import PlaceColumns
from shoal.spatial.packed import PackedLayout
from shoal.spatial.packed_searcher import PackedSearcher
from shoal.spatial.query import MATCH_ALL, QueryPlan

NEAREST = QueryPlan(
    k=10, has_point=True, match=MATCH_ALL, weights=np.array([1.0, 0.0, 0.0, 0.0, 0.0])
)
NAMES = ("scores", "kms", "keys", "rows")


def both(layout, plan, lon, lat, words, *, live=None):
    """Return the answers of this search and those of the general one."""
    found = []
    for general in (False, True):
        searcher = PackedSearcher(layout, plan, live=[live])
        if general:
            searcher._state[calling.SEARCH_AT] = searches.address_of(searches.GENERAL)
        count = searcher(lon, lat, words)
        found.append([getattr(searcher.answers, name)[:count].tolist() for name in NAMES])
    return found


def haversine(a, b):
    """Return sin(angle / 2)^2 as the scores have it."""
    (lon, lat), (to_lon, to_lat) = a, b
    half = math.pi / 360.0
    s = math.sin((to_lat - lat) * half)
    c = math.sin((to_lon - lon) * half)
    return s * s + math.cos(2 * half * lat) * math.cos(2 * half * to_lat) * c * c


positions = st.tuples(
    st.floats(-180, 180) | st.sampled_from([180.0, -180.0, 179.9999999, -179.9999999]),
    st.floats(-90, 90) | st.sampled_from([90.0, -90.0, 89.9999999, 89.99999]),
)
steps = st.tuples(*[st.sampled_from([0.0, 1e-7, -1e-7, 3e-5, 1e-3])] * 2)


@given(positions, positions, steps, st.booleans())
@settings(max_examples=500, deadline=None, derandomize=True)
def test_half_chords_are_within_the_margin(here, there, step, close):
    if close:
        there = here[0] + step[0], here[1] + step[1]
        there = (there[0] + 180) % 360 - 180, max(-90.0, min(90.0, there[1]))
    true = haversine(here, there)
    lat = math.radians(here[1])
    near = nearest.half_chord2(*here, math.cos(lat), math.sin(lat), *there)
    # Twice, since two rows are compared, each with its own error.
    assert near <= nearest._margin(true) and true <= nearest._margin(near)
    slack = 0.25 * (nearest._margin(true) - true)
    assert abs(near - true) <= slack


@given(st.data())
@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
def test_answers_are_those_of_the_general_search(data):
    places = make_places(
        data.draw(st.integers(0, 30)),
        data.draw(st.sampled_from([1, 17, 300, 2500])),
        shape=data.draw(st.sampled_from(SHAPES)),
        d=0,
        exact=data.draw(st.booleans()),
    )
    layout = PackedLayout.build(places, ())
    plan = dataclasses.replace(
        NEAREST,
        k=data.draw(st.sampled_from([1, 10, 100, 128, 129])),
        decay_kind=data.draw(st.sampled_from([0, 1, 2])),
        decay_scale=data.draw(st.sampled_from([20.0, 3000.0])),
        max_km=data.draw(st.sampled_from([math.inf, math.inf, 9000.0, 40.0, 1e-3])),
        weights=np.array(data.draw(st.sampled_from([(1.0, 0, 0, 0, 0), (0.5, 0.5, 0, 0, 0)]))),
    )
    live = None
    if data.draw(st.booleans()):
        live = (np.random.default_rng(3).random(layout.n) < 0.5).astype(np.uint8)
    for _ in range(3):
        lon, lat = data.draw(positions)
        if data.draw(st.booleans()):
            spot = data.draw(st.integers(0, layout.n - 1))
            lon, lat = float(places.lon[spot]), float(places.lat[spot])
        names = st.sampled_from(places.words)
        words = data.draw(st.lists(names, min_size=1, max_size=4, unique=True))
        found, wanted = both(layout, plan, lon, lat, words, live=live)
        assert found == wanted


def frequent_words(n, shares, seed=1, spot=False):
    """Return ``n`` places, each with each word by its share."""
    rng = np.random.default_rng(seed)
    has = rng.random((n, len(shares))) < np.array(shares)
    lon, lat = rng.uniform(-180, 180, n), np.degrees(np.arcsin(rng.uniform(-1, 1, n)))
    if spot:
        lon, lat = np.full(n, 7.5), np.full(n, -3.25)
    return PlaceColumns(
        keys=rng.permutation(n).astype(np.int64),
        lon=np.round(lon, 6),
        lat=np.round(lat, 6),
        words=[f"w{i:02d}" for i in range(len(shares))],
        word_ptr=np.concatenate([[0], np.cumsum(has.sum(axis=1))]).astype(np.int64),
        word_ids=np.nonzero(has)[1].astype(np.int32),
        values=np.empty((0, n)),
    )


@pytest.mark.parametrize("shares", [(1.0, 0.9), (0.5, 0.5, 0.4), (0.9, 0.01, 0.9), (0.2, 0.1)])
def test_frequent_words(shares):
    """Trees of three levels, whole nodes intersected, and long lists beside short ones."""
    places = frequent_words(30_000, shares)
    layout = PackedLayout.build(places, ())
    for i in range(20):
        lon, lat = float(places.lon[i]), float(places.lat[i])
        for words in (places.words, places.words[:1], places.words[-1:]):
            found, wanted = both(layout, NEAREST, lon, lat, words)
            assert found == wanted
            assert len(wanted[0]) == 10


def test_more_rows_than_bits():
    """Lists that are wider than the bitmap are taken in pieces."""
    places = frequent_words(64 * nearest.BITMAP + 70_000, (0.002, 0.004, 0.3))
    layout = PackedLayout.build(places, ())
    for lon, lat in ((0.0, 0.0), (170.0, -40.0)):
        for words in (places.words[:2], places.words[1:], places.words):
            found, wanted = both(layout, NEAREST, lon, lat, words)
            assert found == wanted


@pytest.mark.parametrize("shares", [(1.0,), (0.9, 0.8)], ids=["one word", "two words"])
def test_more_places_at_one_distance_than_may_wait(shares):
    places = frequent_words(5 * nearest.POOL, shares, spot=True)
    layout = PackedLayout.build(places, ())
    for lon, lat in ((7.5, -3.25), (8.0, 60.0)):
        found, wanted = both(layout, NEAREST, lon, lat, places.words)
        assert found == wanted
        keys = expected(places, (), dataclasses.replace(
            NEAREST, lon=lon, lat=lat, words=tuple(places.words),
            word_weights=np.full(len(shares), 1.0 / len(shares)),
        ))[2]  # fmt: skip
        assert found[2] == keys[:10].tolist()


def test_a_broken_bound_is_noticed():
    """Negative control: boxes moved inward lose answers, and the comparison finds it."""
    places = frequent_words(30_000, (0.5, 0.5))
    layout = PackedLayout.build(places, ())
    arrays = dict(layout.arrays())
    boxes = arrays["block_boxes"].copy()
    middle = 0.5 * (boxes[:, :3] + boxes[:, 3:])
    boxes[:, :3], boxes[:, 3:] = middle, middle
    broken = PackedLayout.from_arrays(arrays | {"block_boxes": boxes}, layout.meta())
    wrong = 0
    for i in range(30):
        lon, lat = float(places.lon[i]), float(places.lat[i])
        wrong += (
            both(broken, NEAREST, lon, lat, ["w00"])[0]
            != both(layout, NEAREST, lon, lat, ["w00"])[0]
        )
    assert wrong


def test_a_search_touches_little():
    places = frequent_words(30_000, (0.5, 0.5))
    layout = PackedLayout.build(places, make_specs(0))
    searcher = PackedSearcher(layout, NEAREST)
    for words, most in ((["w00"], 200), (["w00", "w01"], 2000)):
        searcher._stats[:] = 0
        searcher(10.0, 50.0, words)
        nodes, scored, looked = searcher._stats[:3].tolist()
        assert 0 < nodes < 40
        assert 10 <= scored <= looked < most
