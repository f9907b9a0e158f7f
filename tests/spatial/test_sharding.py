"""Shards give the answers of one index, ask as few of themselves as they can, and fail aloud."""

from __future__ import annotations

import dataclasses
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core.errors import (
    ConflictError,
    InputError,
    IntegrityError,
    NotFoundError,
    UnavailableError,
)
from shoal.spatial import AttributeSpec, Gauss, Linear, Saturation, Weights, reference
from shoal.spatial.index import SpatialKeywordIndex
from shoal.spatial.outline import Outline, ShardBounds
from shoal.spatial.query import Answers
from shoal.spatial.request import Query
from shoal.spatial.sharding import ShardedIndex
from shoal.spatial.shards import ShardHost
from shoal.spatial.shardstore import hilbert_cuts

SPECS = (
    AttributeSpec(name="price", low=1, high=4),
    AttributeSpec(name="noise", low=0, high=1, missing="neutral"),
    AttributeSpec(name="stars", low=0, high=5, missing="exclude"),
)
WORDS = ("bar", "cafe", "pizza", "ramen", "rare", "steak")
SHARDS = 5


def raw_places(n, seed=0, *, clustered=False):
    rng = np.random.default_rng(seed)
    lon, lat = rng.uniform(-180, 180, n), rng.uniform(-90, 90, n)
    if clustered:
        at = rng.integers(0, 8, n)
        lon = np.clip(rng.uniform(-180, 180, 8)[at] + rng.normal(0, 0.2, n), -180, 180)
        lat = np.clip(rng.uniform(-80, 80, 8)[at] + rng.normal(0, 0.2, n), -90, 90)
    values = rng.uniform(0, 5, (3, n)).round(1)
    values[rng.random((3, n)) < 0.2] = np.nan
    return {
        "lon": lon.round(4),
        "lat": lat.round(4),
        "keywords": [
            list(rng.choice(WORDS, rng.integers(0, 4), p=[0.3, 0.3, 0.2, 0.1, 0.02, 0.08]))
            for _ in range(n)
        ],
        "attributes": dict(zip(("price", "noise", "stars"), values, strict=True)),
    }


def pair(n, seed=0, shards=SHARDS, **options):
    """Return one index and a sharded one of the same places."""
    index = SpatialKeywordIndex.build(**(raw_places(n, seed) | options), attribute_specs=SPECS)
    return index, ShardedIndex.of_index(index, shards)


@pytest.fixture(scope="module")
def both():
    return pair(600, seed=1)


def same(one, many, query: Query):
    """Check that both answer alike to the last bit; return the sharded answers."""
    expected, found = one.ask(query), many.ask(query)
    assert found.ids == expected.ids
    assert found.scores.tolist() == expected.scores.tolist()
    assert found.kms.tolist() == expected.kms.tolist()
    assert found.unknown_keywords == expected.unknown_keywords
    if query.explain:
        assert found.components.keys() == expected.components.keys()
        for part, values in expected.components.items():
            assert found.components[part].tolist() == values.tolist()
    return found


def right(index, query: Query, found):
    """Check answers against the oracle: scores always, ids where they cannot be a tie."""
    planned = index.plan(query)
    if planned.empty:
        assert found.ids == []
        return
    expected = reference.answer(index.columns(), SPECS, planned.plan)
    assert len(found) == len(expected)
    np.testing.assert_allclose(found.scores, [e[0] for e in expected], rtol=0, atol=1e-9)


points = st.tuples(
    st.one_of(st.floats(-180, 180), st.sampled_from([-180.0, 180.0, 0.0, 179.99])),
    st.one_of(st.floats(-90, 90), st.sampled_from([-90.0, 90.0, 0.0])),
)
queries = st.builds(
    Query,
    point=points,
    keywords=st.lists(st.sampled_from([*WORDS, "nowhere"]), max_size=3),
    k=st.sampled_from([1, 3, 10, 1000]),
    match=st.sampled_from(["all", "any", "ranked"]),
    prefer=st.none()
    | st.dictionaries(
        st.sampled_from(["price", "noise", "stars"]),
        st.sampled_from(["min", "max", ("max", 0.3)]),
        min_size=1,
    ),
    where=st.none()
    | st.sampled_from([{"price": ("<=", 2)}, {"stars": ("between", 4, 5)}, {"noise": ("in", [9])}]),
    decay=st.sampled_from([None, Linear(3000), Saturation(500), Gauss(2000), Linear(0.1)]),
    within=st.none()
    | st.sampled_from([(-20, -20, 40, 40), (170, -50, -170, 50), [(0, 0), (60, 0), (30, 50)]]),
    max_km=st.sampled_from([None, 500.0, 5000.0]),
    without=st.sampled_from([(), ("bar",)]),
    text=st.sampled_from(["coverage", "bm25"]),
    explain=st.booleans(),
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(query=queries)
def test_shards_answer_as_one_index_and_as_the_oracle(both, query):
    index, sharded = both
    right(index, query, same(index, sharded, query))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    query=queries,
    weights=st.tuples(*[st.sampled_from([0.0, 0.01, 0.5, 1.0])] * 3).filter(any),
)
def test_any_blend_of_weights(both, query, weights):
    space, text, attributes = weights
    if attributes and not query.prefer:
        query = dataclasses.replace(query, prefer={"price": "min"})
    query = dataclasses.replace(query, weights=Weights(space, text, attributes))
    same(*both, query)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(query=queries)
def test_the_bound_of_a_shard_is_above_all_that_it_holds(both, query):
    index, sharded = both
    planned = index.plan(query)
    snapshot = sharded.snapshot()
    frequency = snapshot.shard_frequency(planned.plan.words)
    score, km, possible = snapshot.bounds.upper(planned.plan, frequency)
    plan = dataclasses.replace(planned.plan, k=1000)
    for shard, host in enumerate(sharded.transport.hosts):
        inside = reference.answer(host.index.columns(), SPECS, plan)
        if planned.empty:
            continue
        assert possible[shard] or not inside
        assert all(s <= score[shard] + 1e-12 and d >= km[shard] - 1e-6 for s, d, _ in inside)
        # As the layouts score, not one bit may be above.
        answers = Answers(plan.k)
        host.index.snapshot().search(plan, answers)
        assert all(s <= score[shard] and d >= km[shard] for s, d, _ in answers.results())


@pytest.mark.parametrize("break_it", ["box", "attributes", "words", "order"])
def test_a_bound_that_is_too_tight_is_caught(both, monkeypatch, break_it):
    """Negative control: the comparison above must notice each of these."""
    index, sharded = both
    whole = ShardBounds.upper

    def upper(self, plan, frequency):
        score, km, possible = whole(self, plan, frequency)
        if break_it == "box":
            middle = (self.box[:3] + self.box[3:]) / 2
            self = ShardBounds(sharded.snapshot().outlines, SPECS)
            self.box = np.concatenate([middle, middle])
            return whole(self, plan, frequency)
        if break_it == "attributes":
            self = ShardBounds(sharded.snapshot().outlines, SPECS)
            self.low, self.high = self.high, self.low
            return whole(self, plan, frequency)
        if break_it == "words":
            return score, km, possible & (frequency > 2).all(axis=0)
        return score * 0.9, km, possible

    monkeypatch.setattr(ShardBounds, "upper", upper)
    rng = np.random.default_rng(4)
    wrong = 0
    for _ in range(60):
        query = Query(
            point=(rng.uniform(-180, 180), rng.uniform(-90, 90)),
            keywords=["rare"] if break_it == "words" else [],
            decay=Linear(20_000),
            prefer={"price": "min", "stars": "max"},
            k=3,
        )
        wrong += index.ask(query).ids != sharded.ask(query).ids
    assert wrong


def test_ties_are_broken_alike_wherever_the_places_lie():
    n = 64
    lon, lat = np.tile([-90.0, 90.0], n // 2), np.zeros(n)
    index = SpatialKeywordIndex.build(lon, lat, keywords=["pizza"] * n, ids=np.arange(n)[::-1])
    sharded = ShardedIndex.of_index(index, 4)
    for k in (1, 5, 40, 64):
        same(index, sharded, Query(point=(0.0, 0.0), keywords=["pizza"], k=k))
        same(index, sharded, Query(keywords=["pizza"], k=k, match="ranked"))


def test_a_local_question_asks_one_shard_of_many():
    raw = raw_places(4000, seed=2, clustered=True)
    index = SpatialKeywordIndex.build(**raw, attribute_specs=SPECS)
    sharded = ShardedIndex.of_index(index, 16)
    asked = []
    for i in range(0, 4000, 50):
        query = Query(point=(raw["lon"][i], raw["lat"][i]), k=5, match="any", keywords=["bar"])
        found = same(index, sharded, query)
        asked.append(found.stats.more["shards_asked"])
        assert found.stats.more["shards"] == 16
    assert np.mean(asked) < 4
    assert min(asked) == 1


def test_a_word_that_few_shards_have_asks_only_those():
    n = 400
    raw = raw_places(n, seed=3)
    raw["keywords"] = [["unique"] if i == 123 else ["common"] for i in range(n)]
    index = SpatialKeywordIndex.build(**raw, attribute_specs=SPECS)
    sharded = ShardedIndex.of_index(index, 8)
    found = same(index, sharded, Query(point=(0, 0), keywords=["unique"], k=10))
    assert found.stats.more["shards_asked"] == 1
    same(index, sharded, Query(point=(0, 0), keywords=["unique", "common"], match="ranked"))
    none = same(index, sharded, Query(point=(0, 0), keywords=["nowhere"]))
    assert none.stats.more["shards_asked"] == 0


def test_a_full_list_ends_the_search_beyond_a_clipped_decay():
    """Beyond max_km of the decay all score 0 and nearness decides: not all shards need be asked."""
    index, sharded = pair(800, seed=4, shards=16)
    found = same(index, sharded, Query(point=(20, 20), k=3, decay=Linear(0.001)))
    assert found.scores.tolist() == [0, 0, 0]
    assert found.stats.more["shards_asked"] < 10


@pytest.mark.parametrize(("n", "shards"), [(0, 3), (1, 4), (3, 8), (50, 1)])
def test_few_places_and_many_shards(n, shards):
    index, sharded = pair(n, seed=5, shards=shards)
    assert sharded.n_shards == shards
    assert sum(sharded.shard_sizes) == len(sharded) == n
    for match in ("all", "ranked"):
        same(index, sharded, Query(point=(1, 2), keywords=["bar"], match=match, k=5))
    same(index, sharded, Query(k=7))


def test_the_antimeridian_and_the_poles():
    lon = np.array([179.9, -179.9, 180.0, -180.0, 0.0, 120.0, -60.0])
    lat = np.array([0.0, 0.0, 10.0, 10.0, 90.0, 89.9, -90.0])
    index = SpatialKeywordIndex.build(lon, lat)
    sharded = ShardedIndex.of_index(index, 7)
    for point in ((180, 0), (-180, 0), (179.95, 5), (0, 90), (77, -90)):
        for k in (1, 2, 7):
            same(index, sharded, Query(point=point, k=k))
    same(index, sharded, Query(point=(180, 0), within=(179, -5, -179, 5)))


# --- changes --------------------------------------------------------------------------------------


def check_all(index, sharded, seed=0):
    rng = np.random.default_rng(seed)
    assert len(index) == len(sharded)
    for match in ("all", "any", "ranked"):
        for _ in range(6):
            words = list(rng.choice(WORDS, 2))
            point = (rng.uniform(-180, 180), rng.uniform(-90, 90))
            prefer = {"price": "min", "stars": "max"} if rng.random() < 0.5 else None
            same(index, sharded, Query(point, words, 8, match, prefer=prefer, decay=Linear(9000),
                                       text="bm25"))  # fmt: skip


def test_changes_reach_the_shard_that_owns_the_place():
    index, sharded = pair(200, seed=6)
    rng = np.random.default_rng(7)
    for step in range(12):
        raw = raw_places(15, seed=100 + step)
        ids = rng.choice(260, 15, replace=False)  # some new, most moved across shards
        for one in (index, sharded):
            one.upsert(**raw, ids=ids)
        gone = rng.choice(260, 6, replace=False)
        assert index.delete(gone) == sharded.delete(gone)
        if step == 5:
            sharded.flush()
        if step == 8:
            sharded.compact()
        check_all(index, sharded, seed=step)
    total = np.concatenate([host.index.columns().keys for host in sharded.transport.hosts])
    assert len(total) == len(np.unique(total)) == len(index)


def test_a_moved_place_leaves_its_old_shard():
    index = SpatialKeywordIndex.build([-100.0, -99.0, 100.0, 101.0], [0.0, 0, 0, 0])
    sharded = ShardedIndex.of_index(index, 2)
    assert sharded.shard_sizes == [2, 2]
    sharded.upsert([100.5], [0.0], ids=[0])
    assert sharded.shard_sizes == [1, 3]
    assert sharded.query(point=(100.5, 0), k=1).ids == [0]
    assert sharded.query(point=(-100, 0), k=1).ids == [1]
    assert len(sharded) == 4


def test_a_query_sees_a_change_whole_or_not_at_all():
    """A place that hops between two shards is there exactly once in every answer."""
    index = SpatialKeywordIndex.build(np.linspace(-170, 170, 40), np.zeros(40), ids=np.arange(40))
    sharded = ShardedIndex.of_index(index, 4)
    problems, done = [], threading.Event()

    def read():
        while not done.is_set():
            try:
                found = sharded.query(point=(0, 0), k=50)
            except ConflictError as error:
                problems.append(str(error))
                continue
            if sorted(found.ids) != list(range(40)):
                problems.append(sorted(found.ids))

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for step in range(150):
        sharded.upsert([170.0 if step % 2 else -170.0], [1.0], ids=[0])
    done.set()
    for reader in readers:
        reader.join()
    assert not [p for p in problems if not isinstance(p, str)]


def test_a_state_that_is_gone_is_an_error_not_a_wrong_answer():
    _, sharded = pair(50, seed=8)
    old = sharded.snapshot()
    query = Query(point=(0, 0), k=60)
    before = sharded.search(query, snapshot=old)[0].results()
    for i in range(4):
        sharded.upsert([10.0], [10.0], ids=[1000 + i])
    assert sharded.search(query, snapshot=old)[0].results() == before
    for i in range(10):
        sharded.upsert([10.0], [10.0], ids=[2000 + i])
    with pytest.raises(ConflictError, match="gone"):
        sharded.search(query, snapshot=old)
    assert len(sharded.ask(query)) == 60


def test_rebalancing_changes_no_answer():
    index, sharded = pair(300, seed=9, shards=2)
    old = sharded.snapshot()
    sharded.rebalance(7)
    assert sharded.n_shards == 7
    assert max(sharded.shard_sizes) - min(sharded.shard_sizes) <= 2
    check_all(index, sharded)
    query = Query(point=(3, 4), k=9)
    assert sharded.search(query, snapshot=old)[0].results() == index.search(query)[0].results()
    raw = raw_places(20, seed=10)
    for one in (index, sharded):
        one.upsert(**raw, ids=np.arange(290, 310))
    check_all(index, sharded)


# --- the rest of an index's face ------------------------------------------------------------------


def test_batches_answer_as_single_questions(both):
    index, sharded = both
    rng = np.random.default_rng(11)
    points = np.stack([rng.uniform(-180, 180, 80), rng.uniform(-90, 90, 80)], axis=1)
    words = [list(rng.choice([*WORDS, "nowhere"], rng.integers(0, 3))) for _ in range(80)]
    for options in ({"match": "ranked"}, {"prefer": {"stars": "max"}}, {"k": 700}):
        expected = index.query_many(points, words, **options)
        found = sharded.query_many(points, words, **options)
        assert [list(ids) for ids in found.ids] == [list(ids) for ids in expected.ids]
        np.testing.assert_array_equal(found.scores, expected.scores)
        np.testing.assert_array_equal(found.kms, expected.kms)
        assert found.counts.tolist() == expected.counts.tolist()
    assert len(sharded.query_many(np.empty((0, 2)), [])) == 0
    with pytest.raises(InputError, match="entries of keywords"):
        sharded.query_many(points, words[:3])


def test_searcher_iteration_explanation_and_skyline(both):
    index, sharded = both
    one, many = (x.searcher(k=4, match="any")(12.0, 50.0, ["bar"]) for x in both)
    assert list(one.ids) == list(many.ids)
    assert one.scores.tolist() == many.scores.tolist()
    first = [place.id for place, _ in zip(sharded.iter_query((5, 5)), range(70), strict=False)]
    assert first == index.query((5, 5), k=70).ids
    query = Query(point=(0, 0), keywords=["bar"], match="ranked", prefer={"price": "min"}, k=5)
    for place in (index.ask(query).ids[0], 17, 18):
        assert sharded.explain(query, place).as_dict() == index.explain(query, place).as_dict()
    with pytest.raises(NotFoundError):
        sharded.explain(query, 99_999)
    wish = {"price": "min", "stars": "max"}
    assert sharded.skyline(wish).ids == index.skyline(wish).ids


def test_text_ids_and_labels_stay_with_the_coordinator():
    raw = raw_places(90, seed=12)
    names = [f"place-{i}" for i in range(90)][::-1]
    index = SpatialKeywordIndex.build(**raw, ids=names, labels=names, attribute_specs=SPECS)
    sharded = ShardedIndex.build(**raw, ids=names, labels=names, attribute_specs=SPECS, shards=3)
    found = same(index, sharded, Query(point=(8, 8), k=20))
    assert found.labels == found.ids
    assert sharded.delete(["place-1", "unheard of"]) == 1
    with pytest.raises(InputError, match="texts"):
        sharded.delete([1])


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        ({"user": 3}, "no time and social"),
        ({"at": 3}, "no time and social"),
        ({"weights": {"space": -1}}, "not negative"),
        ({"point": (500, 0)}, "out of range"),
        ({"k": 0}, "positive"),
        ({"colour": "red"}, "no such option"),
    ],
)
def test_bad_questions_are_refused_by_name(both, asked, match):
    with pytest.raises(InputError, match=match):
        both[1].query(**({"point": (0, 0)} | asked))


@pytest.mark.parametrize("shards", [0, -1, 1.5, True])
def test_a_number_of_shards_that_is_none(shards):
    with pytest.raises(InputError, match="at least one shard"):
        ShardedIndex.build([0.0], [0.0], shards=shards)


def test_cuts_part_evenly_and_keep_equal_positions_together():
    rng = np.random.default_rng(0)
    cuts = hilbert_cuts(rng.uniform(-180, 180, 1000), rng.uniform(-90, 90, 1000), 10)
    assert (np.diff(cuts.astype(np.int64)) > 0).all()
    index = SpatialKeywordIndex.build(np.ones(30), np.ones(30))
    assert sorted(ShardedIndex.of_index(index, 4).shard_sizes) == [0, 0, 0, 30]


def test_an_outline_comes_back_from_json_exactly(both):
    for outline in both[1].snapshot().outlines:
        again = Outline.from_json(outline.to_json())
        for item in dataclasses.fields(Outline):
            np.testing.assert_array_equal(getattr(again, item.name), getattr(outline, item.name))


# --- shards that fail -----------------------------------------------------------------------------


class Deaf(ShardHost):
    """A shard that can be switched off."""

    off = False

    def search(self, epoch, asks):
        if self.off:
            raise UnavailableError("gone")
        return super().search(epoch, asks)


def test_a_shard_that_is_gone_is_an_error_or_a_named_gap():
    index, sharded = pair(300, seed=13)
    hosts = sharded.transport.hosts
    query = Query(point=(0, 0), k=300)
    deaf = Deaf(hosts[2].index, hosts[2].outline())
    hosts[2] = deaf
    same(index, sharded, query)
    deaf.off = True
    with pytest.raises(UnavailableError, match="shard 2"):
        sharded.ask(query)
    found = sharded.ask(query, partial=True)
    assert found.missing_shards == (2,)
    there = set(deaf.index.columns().keys.tolist())
    assert set(found.ids) == set(range(300)) - there
    near = deaf.index.columns()
    with pytest.raises(UnavailableError, match="shard 2"):
        sharded.query((near.lon[0], near.lat[0]), k=1)
    deaf.off = False
    assert sharded.ask(query, partial=True).missing_shards == ()


# --- folders --------------------------------------------------------------------------------------


def test_a_saved_index_comes_back(tmp_path):
    raw = raw_places(150, seed=14)
    names = [f"p{i}" for i in range(150)]
    index = SpatialKeywordIndex.build(**raw, ids=names, labels=names, attribute_specs=SPECS)
    sharded = ShardedIndex.of_index(index, 3)
    folder = tmp_path / "shards"
    sharded.save(folder)
    for mmap in (True, False):
        again = ShardedIndex.load(folder, mmap=mmap)
        check_all(index, again)
        assert same(index, again, Query(point=(0, 0), k=4)).labels
    raw = raw_places(10, seed=15)
    for one in (index, again):
        one.upsert(**raw, ids=[f"p{i}" for i in range(145, 155)])
    again.save(folder)
    check_all(index, ShardedIndex.load(folder))
    assert len([item for item in folder.iterdir() if item.is_dir()]) == 1  # old files are gone


def test_a_folder_that_is_no_index_or_is_damaged(tmp_path):
    with pytest.raises(NotFoundError, match="no sharded index"):
        ShardedIndex.load(tmp_path / "nothing")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    _, sharded = pair(40, seed=16, shards=2)
    with pytest.raises(InputError, match="something else"):
        sharded.save(tmp_path / "other")
    sharded.save(tmp_path / "kept")
    names = next((tmp_path / "kept").glob("*/names.safetensors"))
    names.write_bytes(names.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match="names"):
        ShardedIndex.load(tmp_path / "kept")
    manifest = tmp_path / "kept" / "manifest.json"
    manifest.write_text(manifest.read_text()[:100])
    with pytest.raises(IntegrityError, match="manifest"):
        ShardedIndex.load(tmp_path / "kept")


def test_a_save_that_fails_leaves_the_old_index(tmp_path, monkeypatch):
    index, sharded = pair(40, seed=17, shards=2)
    sharded.save(tmp_path / "kept")
    sharded.delete([1, 2])

    def fail(self, folder):
        raise OSError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(ShardHost, "save", fail)
        with pytest.raises(OSError, match="disk full"):
            sharded.save(tmp_path / "kept")
    check_all(index, ShardedIndex.load(tmp_path / "kept"))


# --- Ray ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster():
    ray = pytest.importorskip("ray", reason="ray is not installed")
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=80 * 1024 * 1024,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield ray
    ray.shutdown()


def test_ray_must_be_started():
    ray = pytest.importorskip("ray", reason="ray is not installed")
    if ray.is_initialized():
        pytest.skip("Ray runs already")
    with pytest.raises(UnavailableError, match="not started"):
        ShardedIndex.on_ray(SpatialKeywordIndex.build([0.0], [0.0]))


def test_a_missing_ray_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(UnavailableError, match="Ray is not installed") as caught:
        ShardedIndex.on_ray("anywhere")
    assert "spatial-scale" in caught.value.hint


@pytest.mark.slow
def test_actors_answer_as_one_index_and_come_back_from_the_dead(cluster, tmp_path):
    index, local = pair(300, seed=18, shards=2)
    remote = ShardedIndex.on_ray(local)
    try:
        check_all(index, remote)
        raw = raw_places(20, seed=19)
        for one in (index, remote):
            one.upsert(**raw, ids=np.arange(290, 310))
        assert index.delete([3, 4]) == remote.delete([3, 4])
        check_all(index, remote)
        points = [[0, 0], [120, 30]]
        found = remote.query_many(points, [["bar"], []], match="any")
        expected = index.query_many(points, [["bar"], []], match="any")
        assert [list(ids) for ids in found.ids] == [list(ids) for ids in expected.ids]

        everything = Query(k=400)
        cluster.kill(remote.transport.actors[1])
        with pytest.raises(UnavailableError, match="shard 1"):
            remote.ask(everything)
        assert remote.ask(everything, partial=True).missing_shards == (1,)
    finally:
        remote.close()


@pytest.mark.slow
def test_actors_of_a_folder_are_started_again(cluster, tmp_path):
    index, local = pair(200, seed=20, shards=2)
    local.save(tmp_path / "kept")
    remote = ShardedIndex.on_ray(tmp_path / "kept")
    try:
        raw = raw_places(20, seed=21)
        for one in (index, remote):
            one.upsert(**raw, ids=np.arange(190, 210))
        cluster.kill(remote.transport.actors[1])
        check_all(index, remote)  # files and the changes since
        assert remote.transport.restarts == 1
        remote.save(tmp_path / "kept")
        assert index.delete([5]) == remote.delete([5])
        cluster.kill(remote.transport.actors[0])
        check_all(index, remote)
    finally:
        remote.close()
