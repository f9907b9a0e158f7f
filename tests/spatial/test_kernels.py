"""Bounds are bounds, and what happens when they are not."""

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

from packedcases import SHAPES, expected, make_places, make_specs, plans, search

from shoal.spatial import _best_kernels as answering
from shoal.spatial import _bound_kernels as bounding
from shoal.spatial import _kernels as kernels
from shoal.spatial.packed import PackedLayout
from shoal.spatial.packed_query import encode_query
from shoal.spatial.query import MATCH_ALL, QueryPlan
from shoal.spatial.reference import score_all

CHECKS = settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def rows_below(layout, blocks):
    """Return the rows under every node of a kind of tree: the slow, obvious way."""
    if not blocks:
        n, start = layout.n, layout.level_start
        for level in range(len(start) - 1):
            size = 16 ** (level + 1)
            for i in range(start[level + 1] - start[level]):
                yield start[level] + i, np.arange(i * size, min(n, (i + 1) * size))
        return
    df = np.diff(layout.ptr.astype(np.int64))
    for tree, word in enumerate(np.flatnonzero(df > 16)):
        rows = layout.post[layout.ptr[word] : layout.ptr[word + 1]]
        node, size = int(layout.tree_start[tree]), 16
        while True:
            nodes = -(-len(rows) // size)
            for i in range(nodes):
                yield node + i, rows[i * size : (i + 1) * size]
            node += nodes
            if nodes <= 16:
                break
            size *= 16
        assert node == layout.tree_start[tree + 1]


@CHECKS
@given(st.data(), st.booleans())
def test_no_score_below_a_node_beats_its_bound(data, blocks):
    d = data.draw(st.integers(0, 3))
    places = make_places(
        data.draw(st.integers(0, 20)),
        data.draw(st.sampled_from([1, 17, 300, 600])),
        shape=data.draw(st.sampled_from(SHAPES)),
        d=d,
        missing=data.draw(st.sampled_from([0.0, 0.5])),
        vocabulary=4,
    )
    specs = make_specs(d)
    layout = PackedLayout.build(places, specs)
    plan = data.draw(plans(places, d=d, vocabulary=4))
    qi, qf = encode_query(layout, plan)
    count = len(layout.block_boxes) if blocks else len(layout.boxes)
    bound, near = np.empty(count), np.empty(count)
    text = float(plan.word_weights.sum())
    bounding.bounds_of_nodes(layout.addresses(), qi, qf, blocks, text, bound, near)
    _, km, qualifies = layout.parts(plan, np.arange(layout.n))
    found = score_all(layout.columns(), specs, plan)
    seen = 0
    for node, rows in rows_below(layout, blocks):
        seen += 1
        good = rows[qualifies[rows]]
        assert not len(good) or found.score[good].max() <= bound[node] + 1e-12
        assert not len(good) or km[good].min() >= near[node]
    assert seen == count


@CHECKS
@given(
    st.lists(st.integers(0, 60), max_size=40, unique=True).map(sorted),
    st.integers(0, 60),
    st.integers(0, 60),
)
def test_two_binary_searches_say_which_rows_a_node_has(rows, first, stop):
    post = np.array([*rows, 0], dtype=np.uint32)
    address = post.ctypes.data
    a = kernels.lower_bound(address, 0, len(rows), first)
    b = kernels.lower_bound(address, a, len(rows), max(first, stop))
    assert rows[a:b] == [row for row in rows if first <= row < max(first, stop)]
    assert kernels.has_row(address, 0, len(rows), first) == (first in rows)


@CHECKS
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=300, unique=False))
def test_the_heap_of_answers_sorts(pairs):
    k = 200
    best = (np.zeros(k), np.zeros(k), np.zeros(k, np.int64), np.zeros(k, np.int64))
    count = 0
    offered = []
    for key, (score, km) in enumerate(pairs):
        count = answering.put(best, count, k, float(score), float(km), key, key)
        offered.append((-score, km, key))
    answering.sort_heap(best, count)
    got = list(zip((-best[0][:count]).tolist(), best[1].tolist(), best[2].tolist(), strict=False))
    assert got == sorted(offered)[:k]


def nearest(k=10, **options):
    return QueryPlan(k=k, has_point=True, lon=12.5, lat=41.9, **options)


def wrong(layout, places, specs, plan_list):
    """Return how many of the queries a layout answers otherwise than the oracle."""
    count = 0
    for plan in plan_list:
        scores, kms, _ = expected(places, specs, plan)
        got = search(layout, plan).results()
        same = len(got) == min(plan.k, len(scores)) and np.allclose(
            [(score, km) for score, km, _ in got],
            np.stack([scores, kms], axis=1)[: plan.k],
            atol=1e-7,
        )
        count += not same
    return count


def queries(places, **options):
    rng = np.random.default_rng(0)
    for i in rng.integers(0, len(places), 150):
        yield QueryPlan(
            k=3, has_point=True, lon=float(places.lon[i]), lat=float(places.lat[i]), **options
        )


def damaged(layout, **changes):
    arrays = {name: array.copy() for name, array in layout.arrays().items()} | changes
    return PackedLayout.from_arrays(arrays, layout.meta())


ASKQ = {
    "weights": np.array([0.3, 0.0, 0.7, 0.0, 0.0]),
    "decay_scale": 200.0,
    "pref_column": np.array([0, 1], dtype=np.int32),
    "pref_flip": np.zeros(2, dtype=np.uint8),
    "pref_weight": np.array([0.5, 0.5]),
}
ONE_WORD = {"match": MATCH_ALL, "words": ("w00",), "word_weights": np.ones(1)}


@pytest.mark.parametrize("words", [{}, ONE_WORD], ids=["no word", "a word"])
def test_negative_control_boxes_that_are_too_small(words):
    """Boxes pulled in by a few per cent of their size lose answers, and the oracle notices."""
    places = make_places(1, 4000, shape="town", vocabulary=2)
    specs = make_specs(2)
    layout = PackedLayout.build(places, specs)
    plan_list = list(queries(places, **words))
    assert wrong(layout, places, specs, plan_list) == 0
    changes = {}
    for name in ("boxes", "block_boxes"):
        boxes = layout.arrays()[name].copy()
        size = boxes[:, 3:] - boxes[:, :3]
        boxes[:, :3] += 0.05 * size
        boxes[:, 3:] -= 0.05 * size
        changes[name] = boxes
    assert wrong(damaged(layout, **changes), places, specs, plan_list) > 0


def test_negative_control_boxes_that_are_not_widened():
    """Float32 boxes rounded inward lose answers a few decimetres apart."""
    rng = np.random.default_rng(0)
    places = make_places(2, 3000, shape="one spot", vocabulary=1, d=0, exact=True)
    places.lon[:] += rng.uniform(-2e-5, 2e-5, 3000)
    places.lat[:] += rng.uniform(-2e-5, 2e-5, 3000)
    layout = PackedLayout.build(places, ())
    plan_list = list(queries(places))
    assert wrong(layout, places, (), plan_list) == 0
    boxes = layout.boxes.copy()
    for _ in range(2):
        boxes[:, :3] = np.nextafter(boxes[:, :3], np.float32(np.inf))
        boxes[:, 3:] = np.nextafter(boxes[:, 3:], np.float32(-np.inf))
    assert wrong(damaged(layout, boxes=boxes), places, (), plan_list) > 0


@pytest.mark.parametrize("words", [{}, ONE_WORD], ids=["no word", "a word"])
def test_negative_control_attributes_of_the_wrong_orientation(words):
    places = make_places(3, 4000, shape="town", vocabulary=2)
    specs = make_specs(2, ("worst",))
    layout = PackedLayout.build(places, specs)
    plan_list = list(queries(places, **ASKQ, **words))
    assert wrong(layout, places, specs, plan_list) == 0
    flipped = damaged(
        layout,
        node_low=255 - layout.node_high,
        node_high=255 - layout.node_low,
        block_low=255 - layout.block_high,
        block_high=255 - layout.block_low,
    )
    assert wrong(flipped, places, specs, plan_list) > 0


@pytest.mark.parametrize("words", [{}, ONE_WORD], ids=["no word", "a word"])
def test_negative_control_attribute_bounds_a_few_per_cent_too_tight(words):
    places = make_places(4, 4000, shape="town", vocabulary=2)
    specs = make_specs(2, ("worst",))
    layout = PackedLayout.build(places, specs)
    plan_list = list(queries(places, **ASKQ, **words))
    assert wrong(layout, places, specs, plan_list) == 0
    tight = damaged(
        layout,
        node_low=np.minimum(255, layout.node_low.astype(int) + 40).astype(np.uint8),
        block_low=np.minimum(255, layout.block_low.astype(int) + 40).astype(np.uint8),
    )
    assert wrong(tight, places, specs, plan_list) > 0
