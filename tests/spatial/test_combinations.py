"""Attributes bounded together: the columns, what a query makes of them, and the controls."""

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

from packedcases import SHAPES, check, make_places, make_specs

from shoal.core.errors import IntegrityError
from shoal.spatial import _bound_kernels as bounding
from shoal.spatial.combinations import column_count, combinations, fill_combinations
from shoal.spatial.packed import PackedLayout
from shoal.spatial.packed_query import encode_query
from shoal.spatial.query import MATCH_ALL, MATCH_EVERYTHING, QueryPlan

CHECKS = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
MISSING_COST = {"worst": 1.0, "neutral": 0.5}


def cost_of(spec, value, flip):
    """Return one attribute's cost, None if the row is excluded: the definition."""
    if np.isnan(value):
        return MISSING_COST.get(spec.missing)
    cost = min(1.0, max(0.0, (value - spec.low) / spec.span))
    return 1.0 - cost if flip else cost


def cost_of_row(specs, values, preferences):
    costs = [cost_of(specs[c], values[c], flip) for c, flip, _ in preferences]
    if None in costs:
        return None
    return sum(weight * cost for cost, (_, _, weight) in zip(costs, preferences, strict=True))


def test_columns_of_one_group_and_of_more():
    assert [list(combinations(d)) for d in (0, 1)] == [[], []]
    assert list(combinations(2)) == [((0, False), (1, False)), ((0, False), (1, True))]
    three = [tuple(-j - 1 if flip else j + 1 for j, flip in c) for c in combinations(3)]
    assert three[:6] == [(1, 2), (1, -2), (1, 3), (1, -3), (2, 3), (2, -3)]
    assert three[6:] == [(1, 2, 3), (1, 2, -3), (1, -2, 3), (1, -2, -3)]
    for d in range(12):
        assert len(list(combinations(d))) == column_count(d)
    assert all({j // 3 for j, _ in c} in ({0}, {1}, {2}) for c in combinations(8))


@CHECKS
@given(st.integers(0, 1000), st.integers(2, 5), st.sampled_from([0.0, 0.4]))
def test_columns_bound_the_mean_from_both_sides(seed, d, missing):
    places, specs = make_places(seed, 40, d=d, missing=missing), make_specs(d)
    width = d + column_count(d)
    low, high = np.zeros((40, width), np.uint8), np.zeros((40, width), np.uint8)
    fill_combinations(places.values, specs, low, high)
    assert not low[:, :d].any() and not high[:, :d].any()
    for row in range(40):
        for column, chosen in enumerate(combinations(d), d):
            share = 1.0 / len(chosen)
            for turned, byte in ((False, low[row, column]), (True, 255 - int(high[row, column]))):
                wish = [(j, flip != turned, share) for j, flip in chosen]
                mean = cost_of_row(specs, places.values[:, row], wish)
                if mean is None:
                    assert byte == 255
                else:
                    assert mean - 1.01 / 255 <= byte / 255 <= mean


@st.composite
def preferences(draw, d):
    columns = draw(st.lists(st.integers(0, d - 1), min_size=1, max_size=d + 1))
    weights = [draw(st.sampled_from([0.0, 0.2, 0.2, 0.5, 1.0])) for _ in columns]
    total = sum(weights) or 1.0
    return [(c, draw(st.booleans()), w / total) for c, w in zip(columns, weights, strict=True)]


def plan_of(wish, **options):
    return QueryPlan(
        **{"k": 5, "has_point": True, "lon": 24.9, "lat": 60.2, "decay_scale": 30.0} | options,
        pref_column=np.array([c for c, _, _ in wish], dtype=np.int32),
        pref_flip=np.array([flip for _, flip, _ in wish], dtype=np.uint8),
        pref_weight=np.array([weight for _, _, weight in wish]),
    )


def combined_costs(layout, plan):
    """Return the combined bound on the cost of each node of the tree over rows."""
    qi, qf = encode_query(layout, plan)
    a, i, f = layout.addresses().ctypes.data, qi.ctypes.data, qf.ctypes.data
    bounding.combine(a, i, f)
    low, high = layout.node_low.ctypes.data, layout.node_high.ctypes.data
    return [
        bounding.combined_cost(a, i, f, low, high, node) for node in range(len(layout.node_low))
    ]


@CHECKS
@given(st.data())
def test_no_row_costs_less_than_its_nodes_bound(data):
    d = data.draw(st.integers(1, 7))
    missing = data.draw(st.sampled_from([0.0, 0.3]))
    places = make_places(data.draw(st.integers(0, 9)), 300, d=d, missing=missing)
    specs = make_specs(d)
    layout = PackedLayout.build(places, specs)
    wish = data.draw(preferences(d))
    bounds = combined_costs(layout, plan_of(wish))
    values = layout.columns().values
    for row in range(layout.n):
        cost = cost_of_row(specs, values[:, row], wish)
        if cost is not None:
            for level in range(len(layout.level_start) - 1):
                node = int(layout.level_start[level]) + row // 16 ** (level + 1)
                assert bounds[node] <= cost


def test_independent_attributes_are_bounded_far_better_together():
    places, specs = make_places(0, 4096, d=3), make_specs(3, ("worst",))
    places.values[:] = np.random.default_rng(99).random((3, 4096))  # independent of the positions
    layout = PackedLayout.build(places, specs)
    wish = [(0, False, 1 / 3), (1, False, 1 / 3), (2, False, 1 / 3)]
    together = np.array(combined_costs(layout, plan_of(wish)))[:256]
    apart = layout.node_low[:256, :3].mean(axis=1) / 255
    least = layout.columns().values.mean(axis=0).reshape(256, 16).min(axis=1)
    assert (together <= least + 1e-9).all()
    assert (least - together).max() < 0.005
    assert np.median(least - apart) > 0.1


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.tuples(*[st.floats(0, 1) for _ in range(5)]),
    st.sampled_from([0.0, 1e-9, 0.2, 0.8, 1.0]),
)
def test_a_cost_above_the_limit_reaches_no_score(parts, weight):
    space, less, text, cost, score = parts
    qf = np.zeros(200)
    qf[bounding.W_SPACE], qf[bounding.W_TEXT] = (1 - weight) / 2, (1 - weight) / 2
    qf[bounding.W_ATTRIBUTES] = weight
    limit = bounding.cost_limit(qf.ctypes.data, space, text, score)
    if cost > limit:
        row = (1 - weight) / 2 * space * less + (1 - weight) / 2 * text + weight * (1 - cost)
        assert row < score


@CHECKS
@given(st.data())
def test_searches_with_preferences_are_the_oracles(data):
    """Larger than in ``test_packed``: trees of several levels, and words that seldom meet."""
    d = data.draw(st.integers(1, 5))
    places = make_places(
        data.draw(st.integers(0, 30)),
        data.draw(st.sampled_from([300, 1500, 6000])),
        shape=data.draw(st.sampled_from(SHAPES)),
        d=d,
        vocabulary=8,
        missing=data.draw(st.sampled_from([0.0, 0.3])),
        exact=data.draw(st.booleans()),
    )
    specs = make_specs(d)
    layout = PackedLayout.build(places, specs)
    alive = np.random.default_rng(1).random(len(places)) < data.draw(st.sampled_from([0.5, 1.0]))
    by_key = dict(zip(places.keys.tolist(), alive.tolist(), strict=True))
    live = np.array([by_key[key] for key in layout.keys.tolist()], dtype=np.uint8)
    for _ in range(4):
        words = data.draw(st.lists(st.integers(0, 7), min_size=1, max_size=3, unique=True))
        attributes = data.draw(st.sampled_from([0.0, 0.2, 0.5, 0.8, 1.0]))
        plan = plan_of(
            data.draw(preferences(d)),
            k=data.draw(st.sampled_from([1, 10, 150])),
            lon=float(places.lon[0]),
            lat=float(places.lat[0]),
            match=MATCH_ALL,
            words=tuple(f"w{w:02d}" for w in words),
            word_weights=np.full(len(words), 1 / len(words)),
            weights=np.array([1 - attributes, 0.0, attributes, 0.0, 0.0]),
            decay_kind=data.draw(st.sampled_from([0, 0, 1, 2, 3])),
            max_km=data.draw(st.sampled_from([float("inf"), 15.0])),
        )
        check(layout, places, specs, plan, alive=alive, live=None if alive.all() else live)


WISH = [(0, False, 0.4), (1, True, 0.35), (2, False, 0.25)]


def mistakes(layout, places, specs, match):
    """Return how many queries a layout answers otherwise than the oracle."""
    count = 0
    words = {"match": MATCH_ALL, "words": ("w00",), "word_weights": np.ones(1)}
    for row in np.random.default_rng(0).integers(0, len(places), 100):
        plan = plan_of(
            WISH,
            k=3,
            lon=float(places.lon[row]),
            lat=float(places.lat[row]),
            weights=np.array([0.3, 0.0, 0.7, 0.0, 0.0]),
            **(words if match == MATCH_ALL else {"match": match}),
        )
        try:
            check(layout, places, specs, plan)
        except AssertionError:
            count += 1
    return count


@pytest.mark.parametrize("match", [MATCH_EVERYTHING, MATCH_ALL], ids=["no word", "a word"])
def test_negative_control_columns_that_are_too_tight_or_turned_round(match):
    places, specs = make_places(3, 4000, shape="town", vocabulary=2, d=3), make_specs(3)
    layout = PackedLayout.build(places, specs)
    assert mistakes(layout, places, specs, match) == 0
    held = layout.arrays()

    def with_columns(change):
        arrays = {name: array.copy() for name, array in held.items()}
        for kind in ("node", "block"):
            low, high = arrays[f"{kind}_low"], arrays[f"{kind}_high"]
            low[:, 3:], high[:, 3:] = change(low[:, 3:].astype(int), high[:, 3:].astype(int))
        return PackedLayout.from_arrays(arrays, layout.meta())

    tight = with_columns(lambda low, high: (np.minimum(255, low + 20), np.maximum(0, high - 20)))
    assert mistakes(tight, places, specs, match) > 0
    turned = with_columns(lambda low, high: (255 - low, 255 - high))
    assert mistakes(turned, places, specs, match) > 0


def test_files_without_the_columns_are_read_and_answer_the_same():
    places, specs = make_places(5, 2000, shape="town", vocabulary=3, d=3), make_specs(3)
    layout = PackedLayout.build(places, specs)
    arrays = dict(layout.arrays())
    for name in ("node_low", "node_high", "block_low", "block_high"):
        arrays[name] = np.ascontiguousarray(arrays[name][:, :3])
    old = PackedLayout.from_arrays(arrays, layout.meta())
    for match in (MATCH_EVERYTHING, MATCH_ALL):
        assert mistakes(old, places, specs, match) == 0
    assert sum(old.nbytes().values()) < sum(layout.nbytes().values())
    arrays["block_low"] = arrays["block_low"][:, :2]
    with pytest.raises(IntegrityError, match="block_low"):
        PackedLayout.from_arrays(arrays, layout.meta())
