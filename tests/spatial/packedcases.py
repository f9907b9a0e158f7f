"""Places and queries for the tests of the packed layout, and the comparison with the oracle."""

from __future__ import annotations

import dataclasses

import numpy as np
from hypothesis import strategies as st

from shoal.spatial.columns import AttributeSpec, PlaceColumns
from shoal.spatial.query import (
    MATCH_ALL,
    MATCH_ANY,
    MATCH_EVERYTHING,
    Answers,
    FilterPlan,
    QueryPlan,
    RegionPlan,
)
from shoal.spatial.reference import score_all

POLICIES = ("worst", "neutral", "exclude")
SHAPES = ("world", "town", "pole", "antimeridian", "one spot", "grid")


def make_places(seed, n, *, shape="world", d=2, vocabulary=12, missing=0.0, exact=False):
    """Return ``n`` places: few different words, attribute values and sometimes positions."""
    rng = np.random.default_rng(seed)
    lon, lat = rng.uniform(-180, 180, n), np.degrees(np.arcsin(rng.uniform(-1, 1, n)))
    if shape == "town":
        lon, lat = rng.normal(24.9, 0.2, n), rng.normal(60.2, 0.1, n)
    elif shape == "pole":
        lat = 90 - np.abs(rng.normal(0, 0.01, n))
        lat[: n // 8] = 90
    elif shape == "antimeridian":
        lon = (rng.normal(180, 0.05, n) + 180) % 360 - 180
        lat = rng.normal(0, 0.05, n)
        lon[: n // 8], lon[n // 8 : n // 4] = 180, -180
    elif shape == "one spot":
        lon, lat = np.full(n, 7.5), np.full(n, -3.25)
    elif shape == "grid":
        lon, lat = rng.integers(-2, 3, n) * 1.0, rng.integers(-2, 3, n) * 1.0
    if not exact:
        lon, lat = np.round(lon, 6), np.round(lat, 6)
    # Words of very different frequency, so that each way of searching is taken.
    chance = 1.0 / np.arange(1, vocabulary + 1) ** 1.3
    has = rng.random((n, vocabulary)) < chance
    words = sorted(f"w{i:02d}" for i in range(vocabulary))
    steps = rng.integers(0, 6, (d, n)) / 5.0
    values = np.where(rng.random((d, n)) < 0.5, steps, rng.uniform(-0.2, 1.2, (d, n)))
    values[rng.random((d, n)) < missing] = np.nan
    if not exact:
        values = values.astype(np.float32).astype(np.float64)
    return PlaceColumns(
        keys=rng.permutation(n).astype(np.int64) * 3 - 5,
        lon=lon,
        lat=lat,
        words=words,
        word_ptr=np.concatenate([[0], np.cumsum(has.sum(axis=1))]).astype(np.int64),
        word_ids=np.nonzero(has)[1].astype(np.int32),
        values=values,
    )


def make_specs(d, policies=POLICIES):
    return tuple(
        AttributeSpec(name=f"a{j}", low=0.0, high=1.0, missing=policies[j % len(policies)])
        for j in range(d)
    )


@st.composite
def plans(draw, places, *, d, vocabulary=12, k=None):
    """Draw a query that uses any of the options."""
    has_point = draw(st.booleans()) or draw(st.booleans())
    match = draw(st.sampled_from([MATCH_EVERYTHING, MATCH_ALL, MATCH_ALL, MATCH_ANY, MATCH_ANY]))
    names = [f"w{i:02d}" for i in range(vocabulary)]
    words = ()
    if match != MATCH_EVERYTHING:
        words = tuple(draw(st.lists(st.sampled_from(names), min_size=1, max_size=4, unique=True)))
    weights = np.zeros(5)
    weights[:3] = [draw(st.sampled_from([0.0, 0.2, 0.5, 1.0])) for _ in range(3)]
    columns = []
    if d:
        columns = draw(st.lists(st.integers(0, d - 1), max_size=d, unique=True))
    if not columns:
        weights[2] = 0.0
    if not words:
        weights[1] = 0.0
    if not has_point:
        weights[0] = 0.0
    if weights.sum() == 0.0:
        weights[0] = 1.0
    weights /= weights.sum()
    share = np.array([draw(st.sampled_from([0.5, 1.0, 3.0])) for _ in words])
    spot = draw(st.integers(0, max(0, len(places) - 1)))
    lon, lat = draw(st.sampled_from([(0.0, 0.0), (180.0, -17.0), (-180.0, 89.9), (24.9, 60.1)]))
    if len(places) and draw(st.booleans()):
        lon, lat = float(places.lon[spot]), float(places.lat[spot])
    return QueryPlan(
        k=draw(st.sampled_from([1, 3, 10, 40, 200])) if k is None else k,
        has_point=has_point,
        lon=lon,
        lat=lat,
        match=match,
        words=words,
        word_weights=share / share.sum() if words else share,
        text_kind=draw(st.sampled_from([0, 1])),
        mean_words=2.5,
        weights=weights,
        decay_kind=draw(st.sampled_from([0, 0, 1, 2, 3])),
        decay_scale=draw(st.sampled_from([1.0, 20.0, 3000.0, 30000.0])),
        max_km=draw(st.sampled_from([float("inf"), float("inf"), 2000.0, 15.0, 1e-3])),
        pref_column=np.array(columns, dtype=np.int32),
        pref_flip=np.array([draw(st.integers(0, 1)) for _ in columns], dtype=np.uint8),
        pref_weight=np.full(len(columns), 1.0 / max(1, len(columns))),
        filters=draw(st.none() | filters(d)) if d else None,
        region=draw(st.none() | regions(lon, lat)),
        without=tuple(draw(st.lists(st.sampled_from([*names, "none"]), max_size=2, unique=True))),
    )


@st.composite
def filters(draw, d):
    bounds = sorted([draw(st.sampled_from([-np.inf, 0.0, 0.3, 0.6])), draw(st.floats(0, 1.1))])
    return FilterPlan(
        column=np.array([draw(st.integers(0, d - 1))], dtype=np.int32),
        ptr=np.array([0, 2], dtype=np.int32),
        low=np.array([bounds[0], 0.8]),
        high=np.array([bounds[1], 0.8]),
    )


@st.composite
def regions(draw, lon, lat):
    from shoal.spatial.regions import make_region

    half = draw(st.sampled_from([0.05, 3.0, 40.0]))
    south, north = max(-90.0, lat - half), min(90.0, lat + half)
    west, east = lon - half, lon + half
    if draw(st.booleans()):
        west = west + 360 if west < -180 else west
        east = east - 360 if east > 180 else east
        return make_region((west, south, east, north))
    west, east = max(-180.0, west), min(180.0, east)
    corners = [(west, south), (east, south), ((west + east) / 2, north)]
    region: RegionPlan = make_region({"type": "Polygon", "coordinates": [[*corners, corners[0]]]})
    return region


def expected(places, specs, plan, alive=None):
    """Return every qualifying place as (score, km, key), in the order of answers."""
    found = score_all(places, specs, plan)
    good = found.qualifies if alive is None else found.qualifies & alive
    rows = np.flatnonzero(good)
    order = np.lexsort((places.keys[rows], found.km[rows], -found.score[rows]))
    rows = rows[order]
    return found.score[rows], found.km[rows], places.keys[rows]


def search(layout, plan, live=None, answers=None, stats=None):
    answers = Answers(plan.k) if answers is None else answers
    layout.search(plan, answers, live, stats)
    return answers


def check(layout, places, specs, plan, *, alive=None, live=None):
    """Compare a search with the oracle: scores in order, and that each key has its score."""
    answers = search(layout, plan, live)
    scores, kms, keys = expected(places, specs, plan, alive)
    count = min(plan.k, len(keys))
    assert answers.count == count
    got = answers.results()
    assert np.allclose([score for score, _, _ in got], scores[:count], rtol=0, atol=1e-11)
    known = {int(key): (s, m) for key, s, m in zip(keys, scores, kms, strict=True)}
    for score, km, key in got:
        assert abs(known[key][0] - score) < 1e-11
        assert abs(known[key][1] - km) < 1e-6
    assert len({key for _, _, key in got}) == count
    ranks = [(-score, km, key) for score, km, key in got]
    assert ranks == sorted(ranks)
    assert (layout.keys[answers.rows[:count]] == answers.keys[:count]).all()
    # Where scores tie, distance decides: a tie that rounding cannot make must be kept to.
    if count and count < len(keys):
        last_score, last_km, _ = got[-1]
        better = (scores > last_score + 1e-11) | ((scores == last_score) & (kms < last_km - 1e-6))
        assert set(keys[better].tolist()) <= set(answers.keys[:count].tolist())
    return answers


def without_reference(plan):
    """Return the plan without what the oracle would take long for."""
    return dataclasses.replace(plan, region=None)
