"""The QDR-Tree against the reference in every mode, its bounds, its filters and its files."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core.errors import InputError, IntegrityError
from shoal.spatial import reference
from shoal.spatial.columns import AttributeSpec, PlaceColumns, SearchStats
from shoal.spatial.qdrtree import QuadClusterLayout
from shoal.spatial.query import (
    MATCH_ALL,
    MATCH_ANY,
    MATCH_EVERYTHING,
    TEXT_BM25,
    Answers,
    FilterPlan,
    QueryPlan,
)
from shoal.spatial.regions import make_region

SPECS = (
    AttributeSpec(name="price", low=0.0, high=1.0),
    AttributeSpec(name="noise", low=0.1, high=0.9, missing="neutral"),
    AttributeSpec(name="rating", low=0.0, high=1.0, missing="exclude"),
)
WORDS = [f"w{i:02}" for i in range(40)]


def make_places(
    seed: int, n: int, *, spread: float = 1.0, lossy: bool = False, missing: float = 0.2
) -> PlaceColumns:
    """Places around (179.5, 60) with Zipf words; coordinates repeat, some have no words."""
    random = np.random.default_rng(seed)
    digits = 12 if lossy else 3
    rows = [
        np.unique(np.minimum(random.zipf(1.4, random.integers(0, 6)) - 1, len(WORDS) - 1))
        for _ in range(n)
    ]
    ptr = np.concatenate([[0], np.cumsum([len(row) for row in rows], dtype=np.int64)])
    lon = 179.5 + spread * random.normal(size=n)
    values = random.integers(0, 9, (3, n)) / 8 if not lossy else random.random((3, n))
    values[random.random((3, n)) < missing] = np.nan
    return PlaceColumns(
        keys=random.permutation(4 * n)[:n].astype(np.int64),
        lon=np.round((lon + 180.0) % 360.0 - 180.0, digits),
        lat=np.round(np.clip(60 + spread * random.normal(size=n), -90, 90), digits),
        words=WORDS,
        word_ptr=ptr.astype(np.int64),
        word_ids=np.concatenate([np.empty(0), *rows]).astype(np.int32),
        values=values,
    )


def build(places: PlaceColumns, **options) -> QuadClusterLayout:
    options = {"min_df": 8, "leaf_words": 3, "fan_out": 4, "skyline_cap": 4, **options}
    return QuadClusterLayout.build(places, SPECS, **options)


def ask(layout, plan, live=None, stats=None) -> list[tuple[float, float, int]]:
    answers = Answers(plan.k)
    layout.search(plan, answers, live, stats)
    return answers.results()


def sorted_rows(layout, plan, live=None) -> list[tuple[float, float, int]]:
    """Every row scored by ``parts`` and sorted: what ``search`` must give to the last bit."""
    parts, kms, good = layout.parts(plan, np.arange(len(layout)))
    if live is not None:
        good &= live.astype(bool)
    score = np.zeros(len(layout))
    for part in range(5):
        if plan.weights[part] > 0:
            score += plan.weights[part] * parts[:, part]
    rows = np.flatnonzero(good)
    order = rows[np.lexsort((layout.keys[rows], kms[rows], -score[rows]))][: plan.k]
    return list(
        zip(score[order].tolist(), kms[order].tolist(), layout.keys[order].tolist(), strict=True)
    )


def assert_exact(layout, places: PlaceColumns, plan: QueryPlan, live=None) -> None:
    """The search finds what sorting all rows finds, and rows score as the reference says."""
    assert ask(layout, plan, live) == sorted_rows(layout, plan, live)
    found = reference.score_all(places, SPECS, plan)
    row_of = {int(key): row for row, key in enumerate(places.keys)}
    rows = np.array([row_of[int(key)] for key in layout.keys], dtype=np.int64)
    parts, kms, good = layout.parts(plan, np.arange(len(layout)))
    assert np.array_equal(good, found.qualifies[rows])
    used = plan.weights > 0
    assert np.abs(parts - found.parts[rows])[np.ix_(good, used)].max(initial=0) < 1e-9
    assert kms == pytest.approx(found.km[rows], abs=1e-6)


def random_plan(seed: int) -> QueryPlan:
    """A plan of any kind that this layout takes."""
    random = np.random.default_rng(seed)
    match = int(random.choice([MATCH_EVERYTHING, MATCH_ALL, MATCH_ANY]))
    words: tuple[str, ...] = ()
    if match:
        chosen = np.minimum(random.zipf(1.4, random.integers(1, 5)) - 1, 41)
        words = tuple(dict.fromkeys(f"w{int(i):02}" for i in chosen))  # w40, w41 are unknown
    word_weights = random.random(len(words)) + 1e-3
    chosen = random.permutation(3)[: random.integers(0, 4)].astype(np.int32)
    shares = random.random(len(chosen)) + 1e-3
    weights = np.zeros(5)
    weights[:3] = random.random(3) * (random.random(3) < 0.6)
    has_point = bool(random.random() < 0.85)
    weights[0] *= has_point
    if not weights.any():
        weights[1 - has_point] = 1.0
    filters = None
    if random.random() < 0.3:
        filters = FilterPlan(
            column=np.array([0, 1], dtype=np.int32),
            ptr=np.array([0, 1, 3], dtype=np.int32),
            low=np.array([0.25, 0.0, 0.5]),
            high=np.array([1.0, 0.25, 0.75]),
        )
    region = None
    if random.random() < 0.3:
        region = make_region(
            (178.5, 59.0, -179.5, 61.0)
            if random.random() < 0.5
            else [(178.0, 59.0), (179.9, 59.2), (179.0, 61.5)]
        )
    return QueryPlan(
        k=int(random.choice([1, 3, 10, 60])),
        has_point=has_point,
        lon=float(random.choice([179.4, -179.9, 3.0])),
        lat=float(random.normal(60, 1)),
        match=match,
        words=words,
        word_weights=word_weights / word_weights.sum() if words else word_weights,
        text_kind=int(random.integers(2)),
        mean_words=2.2,
        weights=weights / weights.sum(),
        decay_kind=int(random.integers(4)),
        decay_scale=float(random.choice([3.0, 60.0])),
        max_km=float(random.choice([np.inf, np.inf, 80.0])),
        pref_column=chosen,
        pref_flip=random.integers(0, 2, len(chosen)).astype(np.uint8),
        pref_weight=shares / shares.sum() if len(chosen) else shares,
        filters=filters,
        region=region,
        without=("w02", "w41") if random.random() < 0.2 else (),
    )


PLACES = make_places(1, 500)
LAYOUT = build(PLACES)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.integers(0, 2**32))
def test_any_query_is_answered_exactly(seed):
    plan = random_plan(seed)
    live = None
    if seed % 3 == 0:
        live = (np.random.default_rng(seed).random(len(PLACES)) < 0.7).astype(np.uint8)
    assert_exact(LAYOUT, PLACES, plan, live)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.integers(0, 2**32),
    st.integers(1, 90),
    st.sampled_from([0.0, 1e-4, 1.0, 40.0]),
    st.booleans(),
    st.sampled_from([{}, {"depth": 0}, {"max_words": 0}, {"leaf_words": 1, "skyline_cap": 1}]),
)
def test_any_set_of_places_is_answered_exactly(seed, n, spread, lossy, options):
    places = make_places(seed, n, spread=spread, lossy=lossy)
    layout = build(places, **{"min_df": 2, **options})
    for i in range(5):
        assert_exact(layout, places, random_plan(seed + i))


def plan_of(words: tuple[str, ...] = ("w00", "w03"), **changes) -> QueryPlan:
    """Space, text and attributes, all lower is better."""
    base = QueryPlan(
        k=10,
        has_point=True,
        lon=179.5,
        lat=60.0,
        match=MATCH_ANY,
        words=words,
        word_weights=np.full(len(words), 1 / max(1, len(words))),
        weights=np.array([0.4, 0.2, 0.4, 0.0, 0.0]),
        decay_scale=100.0,
        pref_column=np.array([0, 1], dtype=np.int32),
        pref_flip=np.zeros(2, dtype=np.uint8),
        pref_weight=np.array([0.5, 0.5]),
    )
    return dataclasses.replace(base, **changes)


@pytest.mark.parametrize("bitmaps", [True, False], ids=["bitmaps", "no-bitmaps"])
@pytest.mark.parametrize("corners", [True, False], ids=["corners", "no-corners"])
@pytest.mark.parametrize("skylines", [True, False], ids=["skylines", "no-skylines"])
def test_filters_change_the_work_and_not_the_answers(bitmaps, corners, skylines):
    view = LAYOUT.replace(use_bitmaps=bitmaps, use_corners=corners, use_skylines=skylines)
    assert LAYOUT.use_bitmaps and LAYOUT.use_corners and LAYOUT.use_skylines
    full, part = SearchStats(), SearchStats()
    for seed in range(60):
        plan = random_plan(seed)
        assert ask(view, plan, stats=part) == ask(LAYOUT, plan, stats=full)
    assert part.nodes >= full.nodes
    assert bitmaps or part.more["bitmap_prunes"] < full.more["bitmap_prunes"]
    assert skylines == (part.more["skyline_tests"] > 0)
    assert corners == (part.more["corner_prunes"] > 0)


def test_each_filter_prunes_something():
    stats = SearchStats()
    for seed in range(200):
        ask(LAYOUT, random_plan(seed), stats=stats)
    for name in ("bitmap_prunes", "corner_prunes", "skyline_prunes", "duplicates", "tail_lists"):
        assert stats.more[name] > 0, name
    assert 0 < stats.scored <= stats.looked_at


def faulty(arrays_changed: dict[str, np.ndarray], layout=LAYOUT) -> QuadClusterLayout:
    return QuadClusterLayout.from_arrays({**layout.arrays(), **arrays_changed}, layout.meta())


def mistakes(layout: QuadClusterLayout) -> int:
    """Queries of 300 whose answers the broken layout gets wrong."""
    wrong = 0
    for seed in range(300):
        plan = random_plan(seed)
        wrong += ask(layout, plan) != sorted_rows(layout, plan)
    return wrong


def test_control_no_mistakes_without_a_fault():
    assert mistakes(LAYOUT) == 0


def test_control_skyline_of_the_wrong_orientation_is_caught():
    sky = LAYOUT.arrays()["sky"].copy()
    sky[:, 0] = 1.0 - sky[:, 0]
    assert mistakes(faulty({"sky": sky})) > 0


def test_control_bitmap_with_one_bit_missing_is_caught():
    # The bit of the most frequent clustered word in the root of its tree.
    held = LAYOUT.arrays()
    place = int(held["clustered_df"].argmax())
    tree, bit = int(held["clustered_leaf"][place]), int(held["clustered_bit"][place])
    root = held["level_first"][held["level_ptr"][tree + 1]] - 1
    at = held["bit_first"][tree] + held["bit_width"][tree] * (
        root - held["level_first"][held["level_ptr"][tree]]
    )
    bits = held["bits"].copy()
    assert bits[at + bit // 64] >> np.uint64(bit % 64) & np.uint64(1)
    bits[at + bit // 64] &= ~(np.uint64(1) << np.uint64(bit % 64))
    assert mistakes(faulty({"bits": bits})) > 0


@pytest.mark.parametrize("name", ["node_low", "sky"])
def test_control_bound_too_tight_is_caught(name):
    array = LAYOUT.arrays()[name]
    assert mistakes(faulty({name: (array * 0.9 + 0.1).astype(np.float32)})) > 0


def test_control_maxima_too_low_are_caught():
    # They bound the attributes of which more is better.
    assert mistakes(faulty({"node_high": LAYOUT.arrays()["node_high"] * np.float32(0.8)})) > 0


def test_control_boxes_too_small_are_caught():
    boxes = LAYOUT.arrays()["boxes"]
    middle = (boxes[:, :3] + boxes[:, 3:]) / 2
    small = np.concatenate([middle, middle], axis=1).astype(np.float32)
    assert mistakes(faulty({"boxes": small})) > 0


def members_of(layout: QuadClusterLayout, tree: int, level: int, number: int) -> np.ndarray:
    held = layout.arrays()
    fan_out = int(layout.meta()["fan_out"])
    first, stop = held["member_ptr"][tree], held["member_ptr"][tree + 1]
    rows = (
        np.arange(len(layout))
        if tree == len(held["member_ptr"]) - 2
        else held["members"][first:stop].astype(np.int64)
    )
    return rows[number * fan_out ** (level + 1) : (number + 1) * fan_out ** (level + 1)]


def test_every_node_covers_what_is_below_it():
    layout = LAYOUT
    held, columns = layout.arrays(), layout.columns()
    lon, lat = np.radians(columns.lon), np.radians(columns.lat)
    xyz = np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=1)
    cost = np.stack(
        [
            np.clip((row - spec.low) / spec.span, 0, 1)
            for row, spec in zip(columns.values, SPECS, strict=True)
        ],
        axis=1,
    )
    cost[:, 1] = np.where(np.isnan(cost[:, 1]), 0.5, cost[:, 1])
    lower = np.where(np.isnan(cost), 1.0, cost)
    trees = len(held["member_ptr"]) - 1
    seen = 0
    for tree in range(trees):
        base = held["level_ptr"][tree]
        words = held["clustered"][held["clustered_leaf"] == tree]
        bit = held["clustered_bit"][held["clustered_leaf"] == tree]
        for level in range(held["level_ptr"][tree + 1] - base):
            nodes = range(held["level_first"][base + level], held["level_first"][base + level + 1])
            for number, node in enumerate(nodes):
                rows = members_of(layout, tree, level, number)
                seen += len(rows) * (level == 0)
                assert (held["boxes"][node, :3] <= xyz[rows].min(axis=0)).all()
                assert (held["boxes"][node, 3:] >= xyz[rows].max(axis=0)).all()
                assert held["node_low"][node] == pytest.approx(lower[rows].min(axis=0), abs=1e-6)
                assert (held["node_low"][node] <= lower[rows].min(axis=0)).all()
                assert (held["node_high"][node] >= np.nanmax(cost[rows], axis=0, initial=0)).all()
                sky = held["sky"][held["sky_ptr"][node] : held["sky_ptr"][node + 1]]
                assert 1 <= len(sky) <= 4
                for row in rows:
                    assert (sky <= lower[row]).all(axis=1).any()
                assert np.array_equal(sky.min(axis=0), held["node_low"][node])
                if tree < trees - 1:
                    width = held["bit_width"][tree]
                    at = held["bit_first"][tree] + width * (node - held["level_first"][base])
                    for word, b in zip(words, bit, strict=True):
                        has = any(
                            word in columns.word_ids[columns.word_ptr[r] : columns.word_ptr[r + 1]]
                            for r in rows
                        )
                        stored = held["bits"][at + b // 64] >> np.uint64(b % 64) & np.uint64(1)
                        assert has == bool(stored)
    assert seen == len(held["members"]) + len(layout)


def test_layers_are_what_the_method_says():
    held, report = LAYOUT.arrays(), LAYOUT.report()
    frequency = np.bincount(PLACES.word_ids, minlength=len(WORDS))
    assert held["clustered"].tolist() == np.flatnonzero(frequency >= 8).tolist()
    assert sorted(held["qc_words"].tolist()) == held["clustered"].tolist()
    for node in range(len(held["qc_leaf"])):
        children = held["qc_children"][node]
        first, stop = held["qc_word_range"][node]
        if held["qc_leaf"][node] >= 0:
            assert (children == -1).all()
            assert stop - first <= 3 or held["qc_level"][node] == 4
            words = set(held["qc_words"][first:stop].tolist())
            rows = members_of(LAYOUT, held["qc_leaf"][node], 99, 0)
            columns = LAYOUT.columns()
            expected = [
                row
                for row in range(len(LAYOUT))
                if words & set(columns.word_ids[columns.word_ptr[row] : columns.word_ptr[row + 1]])
            ]
            assert rows.tolist() == expected
        else:
            ranges = held["qc_word_range"][children[children >= 0]]
            assert (ranges[0, 0], ranges[-1, 1]) == (first, stop)
            assert (ranges[1:, 0] == ranges[:-1, 1]).all()
    sizes = np.diff(held["member_ptr"])[:-1]
    assert report["leaves"] == len(sizes)
    assert report["replication"] == sizes.sum() / report["places_in_trees"]
    assert report["largest_share"] == sizes.max() / len(LAYOUT)
    assert report["words_clustered"] + report["words_in_tail"] == len(WORDS)
    assert report["bytes"]["total"] == sum(array.nbytes for array in LAYOUT.arrays().values())
    json.dumps(report)


def test_match_all_takes_the_smallest_source():
    frequency = dict(zip(WORDS, LAYOUT.document_frequency(WORDS).tolist(), strict=True))
    rare = min((word for word in WORDS if 0 < frequency[word] < 8), key=frequency.__getitem__)
    stats = SearchStats()
    plan = plan_of(("w00", rare), match=MATCH_ALL)
    assert_exact(LAYOUT, PLACES, plan)
    ask(LAYOUT, plan, stats=stats)
    assert (stats.more["trees"], stats.more["tail_lists"]) == (0, 1)
    assert stats.looked_at == frequency[rare]
    stats = SearchStats()
    ask(LAYOUT, plan_of(("w00", "w01"), match=MATCH_ALL), stats=stats)
    assert (stats.more["trees"], stats.more["tail_lists"]) == (1, 0)


def test_ties_stop_the_search_by_distance():
    # Beyond the reach of the decay every score is 0: distance alone decides, and must prune.
    stats = SearchStats()
    plan = plan_of(
        (), match=MATCH_EVERYTHING, weights=np.array([1.0, 0, 0, 0, 0]), lat=20.0, decay_scale=1.0
    )
    assert_exact(LAYOUT, PLACES, plan)
    ask(LAYOUT, plan, stats=stats)
    assert stats.scored < len(PLACES) / 2


def test_answers_of_other_segments_are_the_threshold():
    plan = plan_of()
    answers = Answers(plan.k)
    halves = [np.arange(0, 500, 2), np.arange(1, 500, 2)]
    for rows in halves:
        build(take(PLACES, rows)).search(plan, answers)
    assert answers.results() == ask(LAYOUT, plan)


def take(places: PlaceColumns, rows: np.ndarray) -> PlaceColumns:
    words = [places.word_ids[places.word_ptr[r] : places.word_ptr[r + 1]] for r in rows]
    return PlaceColumns(
        keys=places.keys[rows],
        lon=places.lon[rows],
        lat=places.lat[rows],
        words=places.words,
        word_ptr=np.concatenate([[0], np.cumsum([len(w) for w in words])]).astype(np.int64),
        word_ids=np.concatenate(words).astype(np.int32),
        values=places.values[:, rows],
    )


def test_order_of_the_input_does_not_matter():
    order = np.random.default_rng(4).permutation(len(PLACES))
    other = build(take(PLACES, order))
    for seed in range(60):
        assert ask(other, random_plan(seed)) == ask(LAYOUT, random_plan(seed))


def test_the_same_seed_gives_the_same_bytes():
    again = build(PLACES)
    for name, array in LAYOUT.arrays().items():
        assert np.array_equal(array, again.arrays()[name], equal_nan=array.dtype.kind == "f"), name
    assert again.meta() == LAYOUT.meta()


@pytest.mark.parametrize("lossy", [False, True], ids=["narrow", "wide"])
def test_arrays_and_meta_give_the_layout_back(lossy):
    places = make_places(7, 200, lossy=lossy)
    layout = build(places)
    meta = json.loads(json.dumps(layout.meta()))
    assert (meta["exact"], meta["wide"]) == (lossy, lossy)
    again = QuadClusterLayout.from_arrays(
        {name: array.copy() for name, array in layout.arrays().items()}, meta
    )
    for seed in range(40):
        assert ask(again, random_plan(seed)) == ask(layout, random_plan(seed))
    assert again.report() == layout.report()
    assert np.array_equal(again.document_frequency(WORDS), layout.document_frequency(WORDS))


@pytest.mark.parametrize("lossy", [False, True], ids=["narrow", "wide"])
def test_columns_are_the_places_given(lossy):
    places = make_places(8, 100, lossy=lossy)
    columns = build(places).columns()
    back = take(columns, np.argsort(columns.keys))
    given_rows = take(places, np.argsort(places.keys))
    assert list(back.words) == WORDS
    for name in ("keys", "lon", "lat", "word_ptr", "word_ids", "values"):
        assert np.array_equal(
            getattr(back, name), getattr(given_rows, name), equal_nan=name == "values"
        ), name


def test_document_frequency():
    frequency = np.bincount(PLACES.word_ids, minlength=len(WORDS))
    assert LAYOUT.document_frequency([*WORDS, "unknown"]).tolist() == [*frequency.tolist(), 0]
    assert LAYOUT.document_frequency([]).tolist() == []


def test_empty_index():
    layout = build(make_places(0, 0))
    assert len(layout) == 0
    for seed in range(30):
        assert ask(layout, random_plan(seed)) == []
    again = QuadClusterLayout.from_arrays(layout.arrays(), layout.meta())
    assert len(again.columns()) == 0
    assert layout.report()["leaves"] == 0


def test_one_object_and_all_at_one_point():
    one = make_places(3, 1, missing=0.0)
    assert len(ask(build(one), plan_of((), match=MATCH_EVERYTHING))) == 1
    places = make_places(5, 300, spread=0.0)
    assert len(np.unique(places.lon)) == 1
    layout = build(places)
    for seed in range(60):
        assert_exact(layout, places, random_plan(seed))


def test_poles():
    places = dataclasses.replace(
        make_places(6, 200), lat=np.round(np.random.default_rng(6).uniform(-90, 90, 200), 2)
    )
    places = dataclasses.replace(places, lat=np.where(places.lat > 60, 90.0, places.lat))
    layout = build(places)
    for seed in range(60):
        lat = float(np.random.default_rng(seed).choice([90.0, -90.0, 89.999]))
        assert_exact(layout, places, dataclasses.replace(random_plan(seed), lat=lat))


def test_no_attributes_and_no_words():
    places = dataclasses.replace(PLACES, values=np.empty((0, len(PLACES))))
    layout = QuadClusterLayout.build(places, (), min_df=8, leaf_words=3, fan_out=4)
    none = np.empty(0, dtype=np.int32)
    plan = plan_of(
        pref_column=none, pref_flip=none.astype(np.uint8), pref_weight=none.astype(np.float64)
    )
    assert ask(layout, plan) == sorted_rows(layout, plan)
    bare = dataclasses.replace(
        PLACES, words=[], word_ptr=np.zeros(501, dtype=np.int64), word_ids=none
    )
    layout = build(bare)
    assert layout.report()["replication"] == 0.0
    assert ask(layout, plan_of()) == []
    assert_exact(layout, bare, plan_of((), match=MATCH_EVERYTHING))


def test_bm25_damps_long_places():
    plan = plan_of(text_kind=TEXT_BM25, mean_words=1.0, weights=np.array([0, 1.0, 0, 0, 0]))
    assert_exact(LAYOUT, PLACES, plan)
    assert ask(LAYOUT, plan) != ask(LAYOUT, dataclasses.replace(plan, text_kind=0))


def test_agrees_with_the_packed_layout_to_the_last_bit():
    packed = pytest.importorskip("shoal.spatial.packed", reason="the packed layout is not there")
    other = packed.PackedLayout.build(PLACES, SPECS)
    for seed in range(300):
        plan = random_plan(seed)
        assert ask(LAYOUT, plan) == ask(other, plan)


def test_bad_options_and_plans():
    for option, value in (
        ("leaf_words", 0),
        ("depth", -1),
        ("fan_out", 1),
        ("skyline_cap", 0),
        ("min_df", 0),
        ("max_words", -1),
    ):
        with pytest.raises(InputError, match=option):
            build(PLACES, **{option: value})
    with pytest.raises(InputError, match="specs"):
        QuadClusterLayout.build(PLACES, SPECS[:1])
    for part in (3, 4):
        weights = np.zeros(5)
        weights[part] = 1.0
        with pytest.raises(InputError, match="no time and no social") as caught:
            ask(LAYOUT, plan_of(weights=weights))
        assert "netr" in caught.value.hint
    with pytest.raises(InputError, match="live"):
        ask(LAYOUT, plan_of(), np.ones(3, dtype=np.uint8))
    with pytest.raises(InputError, match="rows"):
        LAYOUT.parts(plan_of(), np.array([500]))


def test_damaged_arrays_are_refused():
    arrays, meta = LAYOUT.arrays(), LAYOUT.meta()
    with pytest.raises(IntegrityError, match="sky_ptr"):
        QuadClusterLayout.from_arrays(
            {name: array for name, array in arrays.items() if name != "sky_ptr"}, meta
        )
    with pytest.raises(IntegrityError, match="node_low"):
        faulty({"node_low": arrays["node_low"][:-1]})
    with pytest.raises(IntegrityError, match="version 1"):
        QuadClusterLayout.from_arrays(arrays, {**meta, "version": 2})
