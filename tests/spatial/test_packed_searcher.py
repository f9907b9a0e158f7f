"""Prepared searches against the oracle, one by one and many at once."""

import dataclasses
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

from packedcases import SHAPES, expected, make_places, make_specs, plans

from shoal.core.errors import InputError
from shoal.spatial import _block_kernels as fast
from shoal.spatial.packed import PackedLayout
from shoal.spatial.query import MATCH_ALL, MATCH_ANY, MATCH_EVERYTHING, QueryPlan

CHECKS = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def with_words(layout, plan, words, lon, lat):
    """Return the plan of a call, made the obvious way; None if nothing can match."""
    known = [word for word in dict.fromkeys(words) if word in set(layout.terms.words())]
    if words and (not known or (plan.match == MATCH_ALL and len(known) < len(set(words)))):
        return None
    df = layout.document_frequency(known)
    idf = np.log1p((layout.n - df + 0.5) / (df + 0.5))
    return dataclasses.replace(
        plan,
        lon=lon,
        lat=lat,
        match=plan.match if words else MATCH_EVERYTHING,
        words=tuple(known),
        word_weights=idf / idf.sum() if known else idf,
    )


def same(places, specs, plan, got):
    if plan is None:
        return not got
    scores, kms, keys = expected(places, specs, plan)
    known = dict(zip(keys.tolist(), zip(scores.tolist(), kms.tolist(), strict=True), strict=True))
    return (
        len(got) == min(plan.k, len(keys))
        and np.allclose([score for score, _, _ in got], scores[: plan.k], rtol=0, atol=1e-11)
        and all(np.allclose(known[key], (score, km), atol=1e-6) for score, km, key in got)
    )


@CHECKS
@given(st.data())
def test_calls_and_batches_are_the_oracles(data):
    d = data.draw(st.integers(0, 2))
    places = make_places(
        data.draw(st.integers(0, 50)),
        data.draw(st.sampled_from([1, 17, 300, 700])),
        shape=data.draw(st.sampled_from(SHAPES)),
        d=d,
        missing=data.draw(st.sampled_from([0.0, 0.3])),
        exact=data.draw(st.booleans()),
    )
    specs = make_specs(d)
    layout = PackedLayout.build(places, specs)
    plan = data.draw(plans(places, d=d))
    plan = dataclasses.replace(
        plan, match=plan.match or MATCH_ANY, words=(), word_weights=np.empty(0)
    )
    if data.draw(st.booleans()):
        plan = dataclasses.replace(
            plan, has_point=True, filters=None, region=None, without=(), text_kind=0
        )
    searcher = layout.searcher(plan)
    names = st.sampled_from([*places.words, "nothing", "é"])
    asked = data.draw(
        st.lists(
            st.tuples(st.lists(names, max_size=4), st.sampled_from([0.0, 24.9, -180.0])),
            min_size=1,
            max_size=4,
        )
    )
    lon = np.array([x for _, x in asked])
    lat = np.full(len(asked), 60.2)
    scores, kms, keys, counts = searcher.many(lon, lat, [words for words, _ in asked])
    for i, (words, x) in enumerate(asked):
        count = searcher(x, 60.2, words)
        got = searcher.answers.results()
        assert count == len(got)
        assert same(places, specs, with_words(layout, plan, words, x, 60.2), got)
        assert counts[i] == count
        batch = zip(scores[i].tolist(), kms[i].tolist(), keys[i].tolist(), strict=True)
        assert list(batch)[:count] == got


def test_many_takes_ids_and_threads():
    places = make_places(1, 2000)
    layout = PackedLayout.build(places, make_specs(2))
    searcher = layout.searcher(QueryPlan(k=5, has_point=True, match=MATCH_ALL))
    words = [["w00"], ["w01", "w00"], []]
    lon, lat = np.array([0.0, 20.0, -50.0]), np.array([0.0, 60.0, 10.0])
    wanted = searcher.many(lon, lat, words)
    ptr, ids = np.array([0, 1, 3, 3]), layout.terms.ids(["w00", "w01", "w00"])
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: searcher.many(lon, lat, (ptr, ids)), range(16)):
            for one, other in zip(found, wanted, strict=True):
                assert np.array_equal(one, other)
    assert [len(part) for part in searcher.many([], [], [])] == [0, 0, 0, 0]


def test_what_a_searcher_refuses():
    layout = PackedLayout.build(make_places(1, 50), make_specs(2))
    plan = QueryPlan(k=2, has_point=True, match=MATCH_ALL)
    with pytest.raises(InputError, match="visits"):
        layout.searcher(dataclasses.replace(plan, weights=np.array([0.5, 0, 0, 0, 0.5])))
    searcher = layout.searcher(plan)
    with pytest.raises(InputError, match="64"):
        searcher(0.0, 0.0, [f"x{i}" for i in range(65)])
    with pytest.raises(InputError, match="one length"):
        searcher.many([0.0], [0.0, 1.0], [["w00"]])
    with pytest.raises(InputError, match="no such word"):
        searcher.many([0.0], [0.0], (np.array([0, 1]), np.array([99])))


@given(
    st.tuples(st.floats(-180, 180), st.floats(-90, 90)),
    st.tuples(st.floats(-180, 180), st.floats(-90, 90)),
)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_cheap_distances_are_never_too_long(here, there):
    reals = np.zeros(100)
    reals[0], reals[1] = here
    from shoal.spatial import _kernels as kernels

    kernels.locate(reals.ctypes.data)
    a, b = np.radians(here), np.radians(there)
    h = np.sin((b[1] - a[1]) / 2) ** 2
    h += np.cos(a[1]) * np.cos(b[1]) * np.sin((b[0] - a[0]) / 2) ** 2
    km = 2 * 6371.0088 * np.arcsin(min(1.0, np.sqrt(h)))
    assert fast.least_km(reals.ctypes.data, *there) <= km
    assert fast.near_km(4 * h) <= km
