"""Check-ins: exact parts, bounds that hold through every change, answers against the oracle."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core.errors import InputError, IntegrityError, NotFoundError
from shoal.spatial import _visit_rows as kernels
from shoal.spatial import reference
from shoal.spatial.columns import AttributeSpec, PlaceColumns, SearchStats
from shoal.spatial.netr_visits import NetrVisits
from shoal.spatial.netrtree import NetrLayout
from shoal.spatial.packed import PackedLayout
from shoal.spatial.planner import Planner
from shoal.spatial.query import Answers, QueryPlan, SocialPlan
from shoal.spatial.timeslots import category_priors, circular_gaussian
from shoal.spatial.visitcolumns import VisitColumns
from shoal.spatial.visitconfig import VisitConfig
from shoal.spatial.visits import VisitStore
from shoal.spatial.visitsearch import search

SLOTS, USERS, DIM = 24, 60, 6
SPECS = [
    AttributeSpec(name="price", low=0, high=1, missing="worst"),
    AttributeSpec(name="noise", low=0.1, high=0.9, missing="neutral"),
]


def some_places(n, seed=0):
    rng = np.random.default_rng(seed)
    words = sorted("abcdefgh")
    chosen = [np.flatnonzero(rng.random(8) < 0.3) for _ in range(n)]
    values = rng.random((2, n))
    values[0, rng.random(n) < 0.2] = np.nan
    return PlaceColumns(
        keys=rng.permutation(n).astype(np.int64) * 3,
        lon=rng.normal(10, 0.3, n).round(5),
        lat=rng.normal(50, 0.3, n).round(5),
        words=words,
        word_ptr=np.cumsum([0, *map(len, chosen)]).astype(np.int64),
        word_ids=np.concatenate([*chosen, np.empty(0)]).astype(np.int32),
        values=values,
    )


def some_vectors(seed=0, users=USERS, dim=DIM):
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(users, dim))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[:3] = 0
    return vectors.astype(np.float32)


def some_visits(places, m, seed=0, vectors=None, **config):
    rng = np.random.default_rng(seed)
    n = len(places)
    return VisitStore.build(
        places.keys,
        user=rng.integers(0, USERS + 3, m),
        place=places.keys[np.abs(rng.normal(0, max(1, n / 4), m)).astype(int) % n],
        slot=rng.integers(-1, SLOTS, m),
        user_vectors=some_vectors(seed) if vectors is None else vectors,
        category=rng.integers(-1, 3, n),
        config=VisitConfig(time_slots=SLOTS, **config),
    )


def some_plan(rng, store, weights=None):
    words = tuple(rng.choice(list("abcdefgh"), rng.integers(0, 3), replace=False).tolist())
    shares = rng.random(len(words)) + 0.01
    if weights is None:
        weights = rng.random(5) * (rng.random(5) < 0.6)
        weights[rng.integers(5)] += 0.1
    friends = rng.random() < 0.4
    social = SocialPlan(vector=store.user_vector(int(rng.integers(0, USERS))))
    if friends:
        social = SocialPlan(
            vector=np.zeros(0, np.float32),
            friends=True,
            users=np.sort(rng.choice(USERS, 12, replace=False)).astype(np.int64),
            relation=rng.random(12),
        )
    prefers = rng.random() < 0.5
    return QueryPlan(
        k=int(rng.integers(1, 15)),
        has_point=True,
        lon=float(rng.normal(10, 0.3)),
        lat=float(rng.normal(50, 0.3)),
        match=int(rng.integers(1, 3)) if words else 0,
        words=words,
        word_weights=shares / shares.sum() if words else shares,
        text_kind=int(rng.integers(2)),
        mean_words=2.0,
        weights=weights / weights.sum(),
        decay_kind=int(rng.integers(4)),
        decay_scale=float(rng.choice([1, 10, 50])),
        max_km=float(rng.choice([np.inf, 40])),
        pref_column=np.array([0, 1][: 2 * prefers], dtype=np.int32),
        pref_flip=np.array([0, 1][: 2 * prefers], dtype=np.uint8),
        pref_weight=np.array([0.3, 0.7][: 2 * prefers]),
        without=("h",) if rng.random() < 0.2 else (),
        slot=int(rng.integers(-1, SLOTS)),
        social=social,
    )


def ask(store, layout, plan, live=None, stats=None):
    answers = Answers(plan.k)
    store.search(layout, plan, answers, live, stats)
    return answers.results()


def same_scores(got, want):
    assert len(got) == len(want)
    np.testing.assert_allclose([s for s, _, _ in got], [s for s, _, _ in want], atol=1e-11)


# --- answers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"social_map": "positive", "normaliser": "total", "prior_weight": 1.0},
        {"smoothing_hours": 0.0, "min_visitors": 1},
    ],
    ids=["half", "positive", "bare"],
)
@pytest.mark.parametrize("n", [1, 16, 17, 700])
def test_answers_are_those_of_the_oracle_in_every_layout_and_way(n, config):
    rng = np.random.default_rng(n)
    places = some_places(n, seed=n)
    store = some_visits(places, 6 * n, seed=n, **config)
    packed, netr = PackedLayout.build(places, SPECS), NetrLayout.build(places, SPECS)
    extremes = [np.eye(5)[i] for i in range(5)]
    for number in range(40):
        plan = some_plan(rng, store, extremes[number] if number < 5 else None)
        time, social = store.parts(plan, places.keys)
        want = reference.answer(places, SPECS, plan, time_part=time, social_part=social)
        got = ask(store, packed, plan)
        same_scores(got, want)
        assert ask(store, netr, plan) == got
        for planner in (
            Planner(mode="tree"),
            Planner(mode="scan"),
            Planner(probe=2, share=0.0),
        ):
            answers = Answers(plan.k)
            columns = store.columns_of(packed)
            search(packed, columns, plan, answers, store=store, planner=planner)
            assert answers.results() == got


def test_dead_rows_are_no_answers_and_segments_share_a_threshold():
    rng = np.random.default_rng(4)
    places = some_places(300, seed=4)
    store = some_visits(places, 2000, seed=4)
    for layout in (PackedLayout.build(places, SPECS), NetrLayout.build(places, SPECS)):
        live = (rng.random(300) < 0.5).astype(np.uint8)
        plan = some_plan(rng, store)
        alive = set(layout.keys[live > 0].tolist())
        everything = QueryPlan(**{**_fields(plan), "k": 300})
        want = [a for a in ask(store, layout, everything) if a[2] in alive]
        assert ask(store, layout, plan, live) == want[: plan.k]
        stats = SearchStats()
        answers = Answers(plan.k)
        store.search(layout, plan, answers, live, stats)
        store.search(layout, plan, answers, 1 - live, stats)
        assert answers.results() == ask(store, layout, plan)
        assert stats.nodes > 0
        with pytest.raises(InputError, match="live has"):
            ask(store, layout, plan, live[:3])


def _fields(plan):
    return {name: getattr(plan, name) for name in plan.__dataclass_fields__}


def test_a_layout_without_bounds_is_searched_row_by_row():
    class Plain:
        def __init__(self, layout):
            self.inner = layout
            self.keys = layout.keys
            self.parts = layout.parts

        def __len__(self):
            return len(self.inner)

    rng = np.random.default_rng(5)
    places = some_places(200, seed=5)
    store = some_visits(places, 900, seed=5)
    layout = PackedLayout.build(places, SPECS)
    for _ in range(10):
        plan = some_plan(rng, store)
        assert ask(store, Plain(layout), plan) == ask(store, layout, plan)


def test_a_rotation_of_the_embedding_leaves_the_answers_equal():
    places = some_places(200, seed=6)
    rng = np.random.default_rng(6)
    turn, _ = np.linalg.qr(rng.normal(size=(DIM, DIM)))
    vectors = some_vectors(6)
    store = some_visits(places, 900, seed=6)
    turned = some_visits(places, 900, seed=6, vectors=(vectors @ turn).astype(np.float32))
    layout = PackedLayout.build(places, SPECS)
    for user in range(3, 20):
        answers = [
            ask(
                s,
                layout,
                QueryPlan(k=5, weights=np.eye(5)[4], social=SocialPlan(s.user_vector(user))),
            )
            for s in (store, turned)
        ]
        np.testing.assert_allclose(
            [a[0] for a in answers[0]], [a[0] for a in answers[1]], atol=1e-6
        )


# --- values -------------------------------------------------------------------------------------


@pytest.mark.parametrize("normaliser", ["max", "total"])
def test_the_time_part_is_that_of_the_definition(normaliser):
    places = some_places(30, seed=7)
    store = some_visits(places, 300, seed=7, normaliser=normaliser, prior_weight=2.0)
    offsets, weights = circular_gaussian(SLOTS, 1.0)
    counts = np.array([store.counts(key) for key in places.keys], dtype=float)
    kinds = store.log.category[store.log.find(places.keys)]
    table = np.array([counts[kinds == kind].sum(axis=0) for kind in range(3)])
    table = np.vstack([table, counts[kinds == -1].sum(axis=0)])
    priors = category_priors(table, 1.0, normaliser=normaliser)
    for slot in (0, 5, 23):
        smooth = sum(
            w * np.roll(counts, o, axis=1) for o, w in zip(offsets.tolist(), weights, strict=True)
        )
        whole = smooth.max(axis=1) if normaliser == "max" else counts.sum(axis=1)
        want = (smooth[:, slot] + 2.0 * priors[kinds, slot]) / (whole + 2.0)
        got = store.time_part(places.keys, slot)
        np.testing.assert_allclose(got, np.minimum(1, want), atol=1e-7)
        assert (got >= 0).all() and (got <= 1).all()
    assert (store.time_part(places.keys, -1) == 0).all()


def test_the_social_part_is_the_mean_relation_to_the_visitors():
    keys = np.arange(2)
    vectors = some_vectors(8)
    user = [5, 5, 5, 5, 5, 5, 5, 6, 7, 8, 9]
    place = [0] * 9 + [1, 1]
    store = VisitStore.build(
        keys, user=user, place=place, user_vectors=vectors, config=VisitConfig(clip_per_user=5)
    )
    z = vectors[10].astype(float)
    mean = (5 * vectors[5].astype(float) + vectors[6] + vectors[7]) / 7
    part = store.social_part(keys, SocialPlan(vectors[10]))
    np.testing.assert_allclose(part, [(1 + z @ mean) / 2, 0.5], atol=1e-7)
    friends = SocialPlan(
        np.zeros(0, np.float32), True, np.array([5, 8, 40]), np.array([0.5, 1.0, 1.0])
    )
    np.testing.assert_allclose(store.social_part(keys, friends), [2.5 / 7, 0.0])
    assert store.visitors(keys).tolist() == [3, 2]


def test_columns_parts_and_a_search_see_the_same_bits():
    places = some_places(100, seed=9)
    store = some_visits(places, 900, seed=9)
    columns = store.columns(places.keys)
    for slot in (0, 13):
        assert (columns.times[slot, :100] == store.time_part(places.keys, slot)).all()
    vectors = np.array([columns.vector(row) for row in range(100)])[:, :DIM]
    assert (vectors == store.place_vectors(places.keys)).all()
    layout = PackedLayout.build(places, SPECS)
    plan = QueryPlan(k=100, weights=np.eye(5)[4], social=SocialPlan(store.user_vector(9)))
    part = dict(zip(places.keys.tolist(), store.parts(plan, places.keys)[1], strict=True))
    assert all(score == part[key] for score, _, key in ask(store, layout, plan))


# --- changes ------------------------------------------------------------------------------------

_step = st.one_of(
    st.tuples(
        st.just("record"), st.integers(0, 20), st.integers(0, 44), st.integers(-1, SLOTS - 1)
    ),
    st.tuples(st.just("delete"), st.integers(0, 20)),
    st.tuples(st.just("compact")),
)


def _fresh(store, keys, category, events, config):
    user, place, slot = (
        (np.array(c, dtype=np.int64) for c in zip(*events, strict=True))
        if (events)
        else (np.empty(0, np.int64),) * 3
    )
    return VisitStore.build(
        keys,
        user=user,
        place=place,
        slot=slot,
        user_vectors=store.user_vectors,
        category=category,
        config=config,
    )


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(_step, max_size=25), st.booleans())
def test_bounds_hold_and_values_are_exact_through_every_change(steps, positive):
    config = VisitConfig(
        time_slots=SLOTS, min_visitors=2, social_map="positive" if positive else "half"
    )
    places = some_places(40, seed=10)
    keys = np.concatenate([places.keys, [1, 4, 7, 10, 13]])
    rng = np.random.default_rng(10)
    events = [
        (int(u), int(k), int(s))
        for u, k, s in zip(
            rng.integers(0, 20, 60), rng.choice(places.keys, 60), rng.integers(-1, SLOTS, 60),
            strict=True,
        )
    ]  # fmt: skip
    store = _fresh(
        VisitStore.build(places.keys, user_vectors=some_vectors(10)),
        places.keys,
        None,
        events,
        config,
    )
    packed, netr = PackedLayout.build(places, SPECS), NetrLayout.build(places, SPECS)
    ask_all = [some_plan(rng, store) for _ in range(3)]
    for step in steps:
        for layout in (packed, netr):
            store.columns_of(layout)
        if step[0] == "record":
            event = step[1], int(keys[step[2]]), step[3]
            store.record(*event)
            events.append(event)
        elif step[0] == "delete":
            gone = sum(event[0] == step[1] for event in events)
            assert store.delete_user(step[1]) == gone
            events = [event for event in events if event[0] != step[1]]
        else:
            store.compact()
        assert store.n_checkins == len(events)
        assert sum(store.counts(key).sum() for key in keys) == sum(e[2] >= 0 for e in events)
        assert_bounds_hold(store.columns_of(packed))
        assert_netr_bounds_hold(store, netr)
    store.compact()
    again = _fresh(store, np.sort(store.log.place_keys), None, events, config)
    assert (again.place_vectors(keys) == store.place_vectors(keys)).all()
    assert (again.visitors(keys) == store.visitors(keys)).all()
    for slot in range(0, SLOTS, 5):
        assert (again.time_part(keys, slot) == store.time_part(keys, slot)).all()
    for plan in ask_all:
        assert ask(again, packed, plan) == ask(store, packed, plan) == ask(store, netr, plan)


def assert_bounds_hold(columns: VisitColumns):
    """Every node's bounds hold each of its rows, for users of all directions."""
    n, dim = len(columns), columns.dim
    vectors = columns.vectors.reshape(-1, dim, 16).transpose(0, 2, 1).reshape(-1, dim)[:n]
    boxes = columns.boxes.reshape(-1, dim, 2, 16)
    centres = columns.centres.reshape(-1, dim, 16)
    users = np.vstack([some_vectors(3, 30, dim)[3:], vectors[:5]]).astype(np.float64)
    for level, group in enumerate(columns.group_start.tolist()):
        width = 16 ** (level + 1)
        for node in range(int(columns.level_start[level + 1] - columns.level_start[level])):
            rows = slice(node * width, min(n, (node + 1) * width))
            at, lane = group + node // 16, node % 16
            most = columns.time_max[:, at * 16 + lane] / 255.0
            assert (columns.times[:, rows].max(axis=1) <= most).all()
            assert (vectors[rows] >= boxes[at, :, 0, lane]).all()
            assert (vectors[rows] <= boxes[at, :, 1, lane]).all()
            x = vectors[rows].astype(np.float64) @ users.T
            away = vectors[rows].astype(np.float64) - centres[at, :, lane]
            radius = float(columns.radii[at * 16 + lane])
            assert (np.sqrt((away**2).sum(axis=1)) <= radius).all(), "ball"
            length = np.linalg.norm(users, axis=1)
            assert (x <= users @ centres[at, :, lane] + radius * length + 1e-12).all(), "ball"


def assert_netr_bounds_hold(store, layout):
    visits = store.columns_of(layout)
    assert isinstance(visits, NetrVisits)
    n, dim = len(visits), visits.dim
    vectors = visits.vectors.reshape(-1, dim, 16).transpose(0, 2, 1).reshape(-1, dim)[:n]
    for user in range(0, 20, 6):
        social = SocialPlan(store.user_vector(user))
        query = store.query_vector(social)
        most = visits.users.most(social, query)
        x = vectors.astype(np.float64) @ query
        for level in range(len(visits.tree.level_start) - 1):
            width = 32 ** (level + 1)
            for node in range(
                int(visits.tree.level_start[level + 1] - visits.tree.level_start[level])
            ):
                place = int(visits.tree.level_start[level]) + node
                rows = slice(node * width, min(n, (node + 1) * width))
                times = visits.times[:, rows].max(axis=1)
                assert (times <= visits.node_times[:, place] / 255.0).all()
                bits = np.unpackbits(visits.clusters[place].view(np.uint8), bitorder="little")
                here = most[np.flatnonzero(bits)]
                assert x[rows].max() <= here.max(initial=-1.0)


def test_a_ball_without_its_rounding_is_caught(monkeypatch):
    places = some_places(40, seed=11)
    store = some_visits(places, 400, seed=11)
    columns = store.columns(places.keys)
    assert_bounds_hold(columns)
    # The radius as it would be if it were rounded to the nearest float32, or down.
    columns.radii[:] = (columns.radii.astype(np.float64) / (1.0 + 2.4e-7)).astype(np.float32)
    columns.radii[:] = np.nextafter(columns.radii, np.float32(0))
    with pytest.raises(AssertionError, match="ball"):
        assert_bounds_hold(columns)


def test_an_ancestor_that_is_not_widened_is_caught(monkeypatch):
    places = some_places(700, seed=12)
    store = some_visits(places, 3000, seed=12)
    layout = PackedLayout.build(places, SPECS)
    columns = store.columns_of(layout)
    monkeypatch.setattr(VisitColumns, "_widen", lambda *_: None)
    for user in range(3, 9):
        for _ in range(20):
            store.record(user, int(layout.keys[650]), 3)
    with pytest.raises(AssertionError):
        assert_bounds_hold(columns)
    # The oracle sees it too: the busiest place at three o'clock is lost.
    plan = QueryPlan(k=1, weights=np.eye(5)[3], slot=3)
    columns.time_max[3] = 0
    found = ask(store, layout, plan)
    time, _ = store.parts(plan, places.keys)
    want = reference.answer(places, SPECS, plan, time_part=time)
    assert found != want or found[0][0] != want[0][0]


def test_smoothing_raises_the_neighbouring_slots_too():
    places = some_places(300, seed=13)
    store = VisitStore.build(places.keys, config=VisitConfig(time_slots=SLOTS))
    layout = PackedLayout.build(places, SPECS)
    columns = store.columns_of(layout)
    store.record(1, int(layout.keys[5]), 0)
    for slot in (22, 23, 0, 1, 2):
        assert columns.times[slot, 5] > 0
        assert (columns.time_max[slot, [0, columns.group_start[1] * 16]] > 0).all()


def test_a_new_place_may_be_visited_and_many_at_once():
    store = VisitStore.build(np.arange(3), user_vectors=some_vectors())
    layout_keys = np.arange(200)
    columns = store.columns(layout_keys)
    assert len(columns) == 200
    store.record_many([5, 6, 7] * 100, np.repeat(np.arange(100, 200), 3).tolist())
    assert store.n_checkins == 300
    assert store.visitors(layout_keys[100:]).tolist() == [3] * 100
    assert store.places_of(5).tolist() == list(range(100, 200))
    with pytest.raises(NotFoundError):
        store.places_of(1)
    with pytest.raises(InputError, match="row 2"):
        store.record_many([1, 1], [0, 0], [0, 200])
    with pytest.raises(InputError):
        store.record(-1, 0)
    assert store.n_checkins == 300


def test_readers_during_writes_see_one_moment():
    places = some_places(400, seed=14)
    store = some_visits(places, 2000, seed=14)
    layout = PackedLayout.build(places, SPECS)
    plan = QueryPlan(k=20, weights=np.eye(5)[4], social=SocialPlan(store.user_vector(9)))
    ask(store, layout, plan)
    stop = threading.Event()
    errors = []

    def read():
        while not stop.is_set():
            found = ask(store, layout, plan)
            if len(found) != 20 or found != sorted(found, key=lambda a: (-a[0], a[1], a[2])):
                errors.append(found)

    reader = threading.Thread(target=read)
    reader.start()
    rng = np.random.default_rng(14)
    for _ in range(300):
        store.record(int(rng.integers(USERS)), int(rng.choice(places.keys)), 3)
    stop.set()
    reader.join()
    assert not errors
    time, social = store.parts(plan, places.keys)
    same_scores(
        ask(store, layout, plan),
        reference.answer(places, SPECS, plan, time_part=time, social_part=social),
    )


# --- keeping, and bad input ---------------------------------------------------------------------


def test_a_store_is_kept_in_arrays():
    places = some_places(50, seed=15)
    store = some_visits(places, 300, seed=15, min_visitors=2)
    store.record(4, int(places.keys[0]), 7)
    store.delete_user(9)
    again = VisitStore.from_arrays(store.arrays(), store.meta())
    store.compact()
    assert again.config == store.config
    for slot in (0, 7):
        assert (again.time_part(places.keys, slot) == store.time_part(places.keys, slot)).all()
    assert (again.place_vectors(places.keys) == store.place_vectors(places.keys)).all()
    assert set(store.nbytes()) == {"log", "sums", "user_vectors", "columns", "total"}
    arrays = store.arrays()
    with pytest.raises(IntegrityError, match="event_slot"):
        VisitStore.from_arrays({k: v for k, v in arrays.items() if k != "event_slot"}, store.meta())
    with pytest.raises(IntegrityError, match="fit together"):
        VisitStore.from_arrays({**arrays, "event_place": arrays["event_place"][1:]}, store.meta())
    with pytest.raises(IntegrityError, match="version"):
        VisitStore.from_arrays(arrays, {"version": 9})


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"place_keys": [1, 1]}, "place_keys"),
        ({"place": [1, 5]}, "place"),
        ({"user": [0, -1]}, "user"),
        ({"slot": [0, 168]}, "slot"),
        ({"slot": [0]}, "slot"),
        ({"category": [0]}, "category"),
        ({"user_vectors": [[1.0, np.nan]]}, "user_vectors"),
        ({"user_vectors": [[1.0, 1.0]]}, "user_vectors"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_bad_input_is_refused(change, field):
    given_ = {"place_keys": [1, 2], "user": [0, 1], "place": [1, 2], "slot": [0, 1]} | change
    with pytest.raises(InputError) as found:
        VisitStore.build(np.array(given_.pop("place_keys")), **given_)
    assert found.value.field == field


def test_another_embedding_and_a_wrong_slot_are_refused():
    places = some_places(20, seed=16)
    store = some_visits(places, 50, seed=16)
    layout = PackedLayout.build(places, SPECS)
    wrong = QueryPlan(k=1, weights=np.eye(5)[4], social=SocialPlan(np.ones(9, np.float32)))
    with pytest.raises(InputError, match="coordinates"):
        ask(store, layout, wrong)
    with pytest.raises(InputError, match="slot"):
        ask(store, layout, QueryPlan(k=1, weights=np.eye(5)[3], slot=SLOTS))


def test_no_places_have_no_answers():
    places = some_places(0)
    store = VisitStore.build(places.keys)
    plan = QueryPlan(k=3, weights=np.eye(5)[4], social=SocialPlan(np.zeros(4, np.float32)))
    for layout in (PackedLayout.build(places, SPECS), NetrLayout.build(places, SPECS)):
        assert ask(store, layout, plan) == []


def test_sums_by_blocks_are_the_sums_one_by_one():
    rng = np.random.default_rng(17)
    values, vector = rng.normal(size=3 * 8 * 16).astype(np.float32), rng.normal(size=8)
    got = kernels.row_dot(values, 8 * 16 + 5, vector)
    want = 0.0
    for j in range(8):
        want += vector[j] * float(values[8 * 16 + 5 + j * 16])
    assert got == want
