"""The packed layout against the oracle, over every kind of query."""

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

from packedcases import SHAPES, check, expected, make_places, make_specs, plans, search

from shoal.core.errors import InputError, IntegrityError
from shoal.spatial.columns import SearchStats
from shoal.spatial.packed import PackedLayout
from shoal.spatial.query import MATCH_ALL, MATCH_ANY, Answers, QueryPlan

CHECKS = settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@st.composite
def worlds(draw):
    d = draw(st.integers(0, 3))
    places = make_places(
        draw(st.integers(0, 50)),
        draw(st.sampled_from([0, 1, 2, 16, 17, 100, 300, 700])),
        shape=draw(st.sampled_from(SHAPES)),
        d=d,
        missing=draw(st.sampled_from([0.0, 0.3])),
        exact=draw(st.booleans()),
    )
    return places, make_specs(d)


@CHECKS
@given(st.data())
def test_answers_are_those_of_the_oracle(data):
    places, specs = data.draw(worlds())
    layout = PackedLayout.build(places, specs)
    for _ in range(6):
        check(layout, places, specs, data.draw(plans(places, d=len(specs))))


@CHECKS
@given(st.data())
def test_dead_rows_are_no_answers(data):
    places, specs = data.draw(worlds())
    layout = PackedLayout.build(places, specs)
    alive = np.random.default_rng(data.draw(st.integers(0, 9))).random(len(places)) < 0.6
    by_key = dict(zip(places.keys.tolist(), alive.tolist(), strict=True))
    live = np.array([by_key[key] for key in layout.keys.tolist()], dtype=np.uint8)
    plan = data.draw(plans(places, d=len(specs)))
    check(layout, places, specs, plan, alive=alive, live=live)


@CHECKS
@given(st.data())
def test_the_threshold_of_earlier_answers_carries_over(data):
    """Two halves searched one after the other give what the whole gives."""
    places, specs = data.draw(worlds())
    plan = data.draw(plans(places, d=len(specs)))
    whole = search(PackedLayout.build(places, specs), plan)
    answers = Answers(plan.k)
    half = np.arange(len(places)) % 2 == 0
    for part in (half, ~half):
        search(PackedLayout.build(rows_of(places, part), specs), plan, answers=answers)
    assert answers.results() == whole.results()


@CHECKS
@given(st.data())
def test_the_order_of_the_input_does_not_matter(data):
    places, specs = data.draw(worlds())
    plan = data.draw(plans(places, d=len(specs)))
    order = np.random.default_rng(1).permutation(len(places))
    other = PackedLayout.build(rows_of(places, order), specs)
    assert (
        search(other, plan).results() == search(PackedLayout.build(places, specs), plan).results()
    )


@CHECKS
@given(st.data())
def test_parts_are_those_of_the_search(data):
    places, specs = data.draw(worlds())
    layout = PackedLayout.build(places, specs)
    plan = data.draw(plans(places, d=len(specs)))
    answers = search(layout, plan)
    parts, km, qualifies = layout.parts(plan, answers.rows[: len(answers)])
    assert qualifies.all()
    score = np.zeros(len(answers))
    for j in range(5):
        if plan.weights[j] > 0:
            score += plan.weights[j] * parts[:, j]
    assert score.tolist() == answers.scores[: len(answers)].tolist()
    assert km.tolist() == answers.kms[: len(answers)].tolist()
    everything = layout.parts(plan, np.arange(len(layout)))[2]
    assert set(layout.keys[everything].tolist()) == set(expected(places, specs, plan)[2].tolist())


def rows_of(places, chosen):
    """Return some places in some order, with the words that they have."""
    chosen = np.flatnonzero(chosen) if chosen.dtype == bool else chosen
    pieces = [places.word_ids[places.word_ptr[row] : places.word_ptr[row + 1]] for row in chosen]
    return type(places)(
        keys=places.keys[chosen],
        lon=places.lon[chosen],
        lat=places.lat[chosen],
        words=places.words,
        word_ptr=np.concatenate([[0], np.cumsum([len(p) for p in pieces])]).astype(np.int64),
        word_ids=np.concatenate([*pieces, np.empty(0, dtype=np.int32)]).astype(np.int32),
        values=places.values[:, chosen],
    )


@pytest.mark.parametrize("exact", [False, True])
def test_columns_give_the_places_back(exact):
    places = make_places(3, 500, d=3, missing=0.2, exact=exact)
    layout = PackedLayout.build(places, make_specs(3))
    assert (layout.exact, layout.wide) == (exact, exact)
    again = layout.columns()
    order = np.argsort(again.keys)
    wanted = np.argsort(places.keys)
    assert (again.keys[order] == places.keys[wanted]).all()
    assert (again.lon[order] == places.lon[wanted]).all()
    assert (again.lat[order] == places.lat[wanted]).all()
    assert np.array_equal(again.values[:, order], places.values[:, wanted], equal_nan=True)
    assert list(again.words) == list(places.words)
    for row, place in zip(order.tolist(), wanted.tolist(), strict=True):
        mine = again.word_ids[again.word_ptr[row] : again.word_ptr[row + 1]]
        theirs = places.word_ids[places.word_ptr[place] : places.word_ptr[place + 1]]
        assert mine.tolist() == theirs.tolist()
    twice = PackedLayout.build(again, make_specs(3))
    for name, array in layout.arrays().items():
        assert np.array_equal(array, twice.arrays()[name], equal_nan=array.dtype.kind == "f"), name


def test_a_layout_is_read_back_from_mapped_arrays():
    places = make_places(4, 400)
    layout = PackedLayout.build(places, make_specs(2))
    arrays = {name: array.copy() for name, array in layout.arrays().items()}
    for array in arrays.values():
        array.flags.writeable = False
    again = PackedLayout.from_arrays(arrays, layout.meta())
    plan = QueryPlan(k=7, has_point=True, lon=3.0, lat=4.0, match=MATCH_ALL, words=("w00",),
                     word_weights=np.ones(1))  # fmt: skip
    check(again, places, make_specs(2), plan)
    assert again.columns().words == places.words


@pytest.mark.parametrize(
    "name", ["keys", "post", "boxes", "tree_start", "tree_bits", "terms_table", "level_start"]
)
def test_altered_arrays_are_refused(name):
    layout = PackedLayout.build(make_places(4, 100), make_specs(2))
    arrays = layout.arrays()
    with pytest.raises(IntegrityError):
        PackedLayout.from_arrays({k: a for k, a in arrays.items() if k != name}, layout.meta())
    with pytest.raises(IntegrityError):
        PackedLayout.from_arrays(arrays | {name: arrays[name].astype(np.complex64)}, layout.meta())
    if name != "terms_table":
        with pytest.raises(IntegrityError):
            PackedLayout.from_arrays(arrays | {name: arrays[name][:-1]}, layout.meta())
    with pytest.raises(IntegrityError):
        PackedLayout.from_arrays(arrays, {"n": 100})


def test_document_frequencies():
    places = make_places(5, 200)
    layout = PackedLayout.build(places, make_specs(2))
    df = np.bincount(places.word_ids, minlength=len(places.words))
    asked = [*places.words, "nothing"]
    assert layout.document_frequency(asked).tolist() == [*df.tolist(), 0]
    assert layout.document_frequency([]).tolist() == []


def test_what_a_plan_must_not_ask():
    layout = PackedLayout.build(make_places(5, 20), make_specs(2))
    with pytest.raises(InputError, match="visits"):
        search(layout, QueryPlan(k=1, weights=np.array([0.5, 0, 0, 0.5, 0])))
    words = tuple(f"x{i}" for i in range(65))
    with pytest.raises(InputError, match="64"):
        search(layout, QueryPlan(k=1, match=MATCH_ANY, words=words, word_weights=np.ones(65)))
    with pytest.raises(InputError, match="attribute"):
        search(
            layout,
            QueryPlan(
                k=1,
                pref_column=np.array([2], dtype=np.int32),
                pref_flip=np.zeros(1, dtype=np.uint8),
                pref_weight=np.ones(1),
            ),
        )
    with pytest.raises(InputError, match="mask"):
        search(layout, QueryPlan(k=1), live=np.ones(3, dtype=np.uint8))
    with pytest.raises(InputError, match="rows"):
        layout.parts(QueryPlan(k=1), np.array([20]))
    with pytest.raises(InputError, match="shape"):
        PackedLayout.build(make_places(5, 20), make_specs(3))


def test_a_word_of_no_place_empties_all_and_is_ignored_by_any():
    places = make_places(6, 200)
    specs = make_specs(2)
    layout = PackedLayout.build(places, specs)
    words = ("w00", "nothing")
    for match in (MATCH_ALL, MATCH_ANY):
        plan = QueryPlan(k=5, has_point=True, match=match, words=words,
                         word_weights=np.array([0.5, 0.5]))  # fmt: skip
        check(layout, places, specs, plan)


@pytest.mark.parametrize("k", [128, 129, 1000, 10_000])
def test_many_answers(k):
    places = make_places(7, 3000, vocabulary=4)
    specs = make_specs(2)
    layout = PackedLayout.build(places, specs)
    for match, words in ((0, ()), (MATCH_ALL, ("w00",)), (MATCH_ANY, ("w01", "w02"))):
        plan = QueryPlan(
            k=k,
            has_point=True,
            lon=1.0,
            match=match,
            words=words,
            word_weights=np.full(len(words), 1 / max(1, len(words))),
            weights=np.array([0.6, 0.4, 0.0, 0.0, 0.0]),
            decay_scale=20_000.0,
        )
        check(layout, places, specs, plan)


def test_a_near_query_touches_little():
    places = make_places(8, 5000, shape="world")
    layout = PackedLayout.build(places, make_specs(2))
    stats = SearchStats()
    plan = QueryPlan(k=5, has_point=True, lon=10.0, lat=50.0, match=MATCH_ALL, words=("w00",),
                     word_weights=np.ones(1))  # fmt: skip
    search(layout, plan, stats=stats)
    assert 0 < stats.nodes < 60
    assert 5 <= stats.scored <= stats.looked_at < 600


def test_equal_scores_do_not_force_a_scan():
    """Far away every space part is 0; distance decides, and pruning goes by it."""
    places = make_places(9, 5000, shape="world")
    layout = PackedLayout.build(places, make_specs(2))
    stats = SearchStats()
    plan = QueryPlan(k=5, has_point=True, lon=10.0, lat=50.0, match=MATCH_ANY, words=("w00",),
                     word_weights=np.ones(1), weights=np.array([0.5, 0.5, 0, 0, 0]),
                     decay_scale=1e-3)  # fmt: skip
    search(layout, plan, stats=stats)
    assert stats.looked_at < 600


def test_bytes_by_kind():
    layout = PackedLayout.build(make_places(5, 200), make_specs(2))
    sizes = layout.nbytes()
    assert sum(sizes.values()) == sum(a.nbytes for a in layout.arrays().values())
    assert sizes["keys"] == 1600
