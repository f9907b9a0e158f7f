"""The NETR-Tree: its structure, the user layer, and its files."""

from itertools import pairwise

import numpy as np
import pytest

from shoal.core.errors import InputError, IntegrityError
from shoal.spatial import reference
from shoal.spatial.columns import AttributeSpec, PlaceColumns
from shoal.spatial.netrtree import NetrLayout
from shoal.spatial.query import Answers, QueryPlan, SocialPlan
from shoal.spatial.userlayer import UserLayer
from shoal.spatial.visitconfig import VisitConfig
from shoal.spatial.visits import VisitStore

SPECS = [AttributeSpec(name="price", low=0, high=1)]


def places_of(n, seed=0):
    rng = np.random.default_rng(seed)
    chosen = [np.flatnonzero(rng.random(5) < 0.4) for _ in range(n)]
    return PlaceColumns(
        keys=rng.permutation(n).astype(np.int64),
        lon=rng.uniform(-180, 180, n),
        lat=rng.uniform(-90, 90, n),
        words=["bar", "cafe", "park", "spa", "zoo"],
        word_ptr=np.cumsum([0, *map(len, chosen)]).astype(np.int64),
        word_ids=np.concatenate([*chosen, np.empty(0)]).astype(np.int32),
        values=rng.random((1, n)),
    )


def unit(n, dim=8, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(n, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_nodes_hold_the_words_and_the_boxes_of_their_rows():
    layout = NetrLayout.build(places_of(2000), SPECS)
    arrays, columns = layout.arrays(), layout.columns()
    starts = arrays["level_start"].tolist()
    assert [b - a for a, b in pairwise(starts)] == [63, 2, 1]
    lon, lat = np.radians(columns.lon), np.radians(columns.lat)
    points = np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=1)
    for level in range(3):
        width = 32 ** (level + 1)
        for node in range(starts[level + 1] - starts[level]):
            at = starts[level] + node
            first, stop = node * width, min(2000, (node + 1) * width)
            words = columns.word_ids[columns.word_ptr[first] : columns.word_ptr[stop]]
            mine = arrays["set_ids"][arrays["set_ptr"][at] : arrays["set_ptr"][at + 1]]
            assert mine.tolist() == np.unique(words).tolist()
            box = arrays["boxes"][at]
            assert (points[first:stop].min(axis=0) >= box[:3]).all()
            assert (points[first:stop].max(axis=0) <= box[3:]).all()


def test_without_check_ins_it_answers_as_any_layout():
    places = places_of(500, seed=1)
    layout = NetrLayout.build(places, SPECS)
    rng = np.random.default_rng(1)
    for match in (0, 1, 2):
        words = ("bar", "spa")[: 2 * (match > 0)]
        plan = QueryPlan(
            k=9,
            has_point=True,
            lon=float(rng.uniform(-180, 180)),
            lat=20.0,
            match=match,
            words=words,
            word_weights=np.array([0.4, 0.6])[: len(words)],
            weights=np.array([0.5, 0.3, 0.2, 0, 0]),
            decay_scale=9000.0,
            pref_column=np.zeros(1, np.int32),
            pref_flip=np.zeros(1, np.uint8),
            pref_weight=np.ones(1),
        )
        answers = Answers(9)
        layout.search(plan, answers)
        want = reference.answer(places, SPECS, plan)
        np.testing.assert_allclose([a[0] for a in answers.results()], [a[0] for a in want])
        parts, km, good = layout.parts(plan, np.arange(500))
        found = reference.score_all(layout.columns(), SPECS, plan)
        np.testing.assert_allclose(parts, found.parts, atol=1e-12)
        np.testing.assert_allclose(km, found.km, atol=1e-8)
        assert (good == found.qualifies).all()
    assert layout.document_frequency(["bar", "none"])[1] == 0
    with pytest.raises(InputError, match="need visits"):
        layout.search(QueryPlan(k=1, weights=np.eye(5)[3]), Answers(1))


def test_a_cluster_bounds_the_relation_to_each_of_its_users():
    vectors = unit(400)
    vectors[7] = 0
    layer = UserLayer.fit(vectors)
    assert len(layer.radii) == 19
    assert layer.cluster[7] == 19
    for user in range(0, 400, 37):
        most = layer.most(None, vectors[user].astype(np.float64))
        relation = vectors.astype(np.float64) @ vectors[user]
        assert (relation <= most[layer.of(np.arange(400))]).all()
    assert layer.of(np.array([5000])).tolist() == [19]
    assert (UserLayer.fit(vectors).centres == layer.centres).all()
    nobody = UserLayer.fit(np.zeros((4, 8), np.float32))
    assert nobody.cluster.tolist() == [0] * 4 and nobody.width == 1


def test_the_report_counts_nodes_and_bytes():
    places = places_of(300, seed=2)
    rng = np.random.default_rng(2)
    store = VisitStore.build(
        places.keys,
        user=rng.integers(0, 50, 900),
        place=rng.integers(0, 300, 900),
        slot=rng.integers(0, 24, 900),
        user_vectors=unit(50),
        config=VisitConfig(time_slots=24),
    )
    report = NetrLayout.build(places, SPECS).report(store)
    assert (report["nodes"], report["levels"], report["user_clusters"]) == (11, 2, 7)
    assert report["clusters_per_node"] > 1
    assert report["bytes"]["total"] == sum(
        size for name, size in report["bytes"].items() if name != "total"
    )


def test_it_is_kept_in_arrays():
    layout = NetrLayout.build(places_of(100, seed=3), SPECS)
    again = NetrLayout.from_arrays(layout.arrays(), layout.meta())
    plan = QueryPlan(k=5, has_point=True, weights=np.eye(5)[0], decay_scale=20000.0)
    results = []
    for one in (layout, again):
        answers = Answers(5)
        one.search(plan, answers)
        results.append(answers.results())
    assert results[0] == results[1]
    arrays = layout.arrays()
    with pytest.raises(IntegrityError, match="set_ids"):
        NetrLayout.from_arrays({k: v for k, v in arrays.items() if k != "set_ids"}, layout.meta())
    with pytest.raises(IntegrityError, match="boxes"):
        NetrLayout.from_arrays({**arrays, "boxes": arrays["boxes"][1:]}, layout.meta())
    with pytest.raises(IntegrityError, match="version"):
        NetrLayout.from_arrays(arrays, {**layout.meta(), "version": 2})
    with pytest.raises(InputError, match="specs"):
        NetrLayout.build(places_of(3), [])


def test_a_cluster_set_without_a_visitor_is_caught():
    """Negative control: bounds that miss one cluster lose an answer."""
    places = places_of(300, seed=4)
    vectors = unit(50, seed=4)
    best = int(places.keys[0])
    store = VisitStore.build(
        places.keys,
        user=[9, 9, 9],
        place=[best] * 3,
        user_vectors=vectors,
        config=VisitConfig(time_slots=24, min_visitors=1),
    )
    layout = NetrLayout.build(places, SPECS)
    plan = QueryPlan(k=1, weights=np.eye(5)[4], social=SocialPlan(vectors[9]))
    answers = Answers(1)
    store.search(layout, plan, answers)
    assert answers.results()[0][2] == best
    visits = store.columns_of(layout)
    visits.clusters[:] = 0
    answers = Answers(1)
    store.search(layout, plan, answers)
    lost = answers.results()
    assert not lost or lost[0][2] != best
