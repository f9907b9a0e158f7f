"""The live index: any order of writes equals a rebuild; readers see one moment."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

from live_bench import (
    SPECS,
    Model,
    PlainLayout,
    ask,
    build_plain,
    check,
    load_plain,
    make_places,
    make_plan,
    rows_of,
    same_answers,
)

from shoal.core.errors import ConflictError, InputError, NotFoundError
from shoal.spatial import segment as segment_module
from shoal.spatial.columns import Layout, PlaceColumns
from shoal.spatial.query import MATCH_EVERYTHING, Answers, QueryPlan
from shoal.spatial.reference import answer
from shoal.spatial.segments import SegmentStore


@pytest.fixture
def store() -> Iterator[SegmentStore]:
    with SegmentStore(SPECS, build_plain, load_plain, memtable_rows=16, fan_in=2) as made:
        yield made


STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("upsert"), st.lists(st.integers(-30, 30), min_size=1, max_size=40, unique=True)
        ),
        st.tuples(st.just("delete"), st.lists(st.integers(-30, 30), max_size=20)),
        st.tuples(st.just("flush"), st.just([])),
        st.tuples(st.just("compact"), st.just([])),
        st.tuples(st.just("load"), st.just([])),
    ),
    min_size=1,
    max_size=12,
)


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(steps=STEPS, seed=st.integers(0, 1 << 20))
def test_any_order_of_writes_equals_a_rebuild(
    steps: list[tuple[str, list[int]]], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    store, model = SegmentStore(SPECS, build_plain, load_plain, memtable_rows=16, fan_in=2), Model()
    for number, (step, keys) in enumerate(steps):
        if step == "upsert":
            columns = make_places(keys, seed + number)
            store.upsert(columns)
            model.upsert(columns)
        elif step == "delete":
            assert store.delete(np.array(keys, dtype=np.int64)) == model.delete(keys)
        elif step == "flush":
            store.flush()
        elif step == "compact":
            store.compact()
            assert len(store.snapshot().segments) <= 1
        else:
            folder = tmp_path_factory.mktemp("kept") / "index"
            store.save(folder, {"step": number})
            store.close()
            store = SegmentStore.load(folder, build_plain, load_plain, memtable_rows=16, fan_in=2)
            assert store.config == {"step": number}
        check(store.snapshot(), model, seeds=(seed, seed + 1))
    store.close()


def test_an_old_snapshot_keeps_seeing_what_it_saw(store: SegmentStore) -> None:
    model, old = Model(), []
    for round_ in range(12):
        columns = make_places(range(round_, 30 + round_), seed=round_)
        store.upsert(columns)
        model.upsert(columns)
        gone = list(range(3 * round_, 3 * round_ + 4))
        store.delete(np.array(gone))
        model.delete(gone)
        kept = Model()
        kept.places = dict(model.places)
        old.append((store.snapshot(), kept))
        if round_ % 4 == 3:
            store.compact()
    for snapshot, kept in old:
        check(snapshot, kept)


@pytest.mark.parametrize("revived", [0, 1, 1000])
def test_deaths_after_a_snapshot_do_not_reach_it(
    store: SegmentStore, monkeypatch: pytest.MonkeyPatch, revived: int
) -> None:
    """By its own mask (0), and by offering again what has died since."""
    monkeypatch.setattr(segment_module, "_REVIVED", revived)
    model = Model()
    columns = make_places(range(60), seed=1)
    store.upsert(columns)
    store.flush()
    model.upsert(columns)
    store.delete(np.array([3, 4]))
    model.delete([3, 4])
    snapshot = store.snapshot()
    check(snapshot, model)
    store.delete(np.arange(0, 60, 2))
    store.upsert(make_places(range(1, 60, 3), seed=2))
    check(snapshot, model)


def test_without_the_dead_offered_again_an_old_snapshot_would_miss_rows(
    store: SegmentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.upsert(make_places(range(60), seed=1))
    store.delete(np.array([3]))
    snapshot = store.snapshot()
    store.delete(np.arange(60))
    monkeypatch.setattr(segment_module.SegmentView, "revive", lambda *_: None)
    plan = QueryPlan(k=60, has_point=True, match=MATCH_EVERYTHING)
    assert len(ask(snapshot, plan)) == 0
    monkeypatch.undo()
    assert len(ask(snapshot, plan)) == 59


def test_readers_see_each_place_once_while_it_moves() -> None:
    n, stop, wrong = 40, threading.Event(), []

    def read(store: SegmentStore) -> None:
        plan = QueryPlan(k=2 * n, has_point=True, decay_scale=1e5)
        while not stop.is_set():
            snapshot = store.snapshot()
            found = ask(snapshot, plan)
            keys = sorted(key for _, _, key in found)
            if keys != list(range(n)):
                wrong.append(("keys", keys))
            columns = snapshot.columns()
            # Every place of a batch is moved to the same longitude: never half of them.
            if len(set(columns.lon.tolist())) != 1:
                wrong.append(("lon", sorted(set(columns.lon.tolist()))))
            if snapshot.n_live != n or snapshot.document_frequency(["w"])[0] != n:
                wrong.append(("counts", snapshot.n_live))

    def batch(version: int) -> PlaceColumns:
        return PlaceColumns(
            keys=np.arange(n, dtype=np.int64),
            lon=np.full(n, version % 180, dtype=np.float64),
            lat=np.linspace(-80, 80, n),
            words=["w"],
            word_ptr=np.arange(n + 1, dtype=np.int64),
            word_ids=np.zeros(n, dtype=np.int32),
            values=np.zeros((2, n)),
        )

    with SegmentStore(SPECS, build_plain, load_plain, memtable_rows=64, fan_in=2) as store:
        store.upsert(batch(0))
        threads = [threading.Thread(target=read, args=(store,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for version in range(150):
            store.upsert(batch(version))
            if version % 50 == 49:
                store.compact()
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong[:1]


def test_the_background_builds_and_merges(store: SegmentStore) -> None:
    model = Model()
    for start in range(0, 400, 10):
        columns = make_places(range(start, start + 10), seed=start)
        store.upsert(columns)
        model.upsert(columns)
    store.wait()
    snapshot = store.snapshot()
    assert 1 <= len(snapshot.segments) <= 8
    check(snapshot, model)


def test_an_error_of_the_background_reaches_the_next_call_and_nothing_is_lost() -> None:
    broken = True

    def build(columns: PlaceColumns) -> Layout:
        if broken:
            raise MemoryError("too little")
        return build_plain(columns)

    store, model = SegmentStore(SPECS, build, load_plain, memtable_rows=4), Model()
    with pytest.raises(MemoryError, match="too little"):
        for key in range(1000):
            columns = make_places([key], seed=key)
            store.upsert(columns)
            model.upsert(columns)
    check(store.snapshot(), model)
    broken = False
    store.flush()
    check(store.snapshot(), model)
    store.close()


def test_df_of_the_dead_is_counted_both_ways(store: SegmentStore) -> None:
    store.upsert(make_places(range(60), seed=1))
    before = store.snapshot()
    counts = []
    for first in range(0, 50, 10):
        store.delete(np.arange(first, first + 10))
        counts.append((store.snapshot(), Model()))
        counts[-1][1].places = rows_of(store.snapshot().columns())
    # The newest first, so that the cache is ahead of the older ones.
    for snapshot, model in reversed(counts):
        check(snapshot, model, seeds=())
    assert before.n_live == 60


def test_parts_of_an_unknown_key_say_so(store: SegmentStore) -> None:
    store.upsert(make_places([1, 2, 3], seed=1))
    plan = QueryPlan(k=1, has_point=True)
    with pytest.raises(NotFoundError, match="key 9"):
        store.snapshot().parts(plan, np.array([1, 9]))
    assert store.contains(np.array([1, 9, 3])).tolist() == [True, False, True]


def test_bad_columns_are_refused_and_change_nothing(store: SegmentStore) -> None:
    good = make_places([1, 2], seed=1)
    store.upsert(good)
    twice = make_places([5, 6, 5], seed=2)
    with pytest.raises(InputError, match=r"row 3.*twice.*got 5"):
        store.upsert(twice)
    narrow = PlaceColumns(
        good.keys, good.lon, good.lat, good.words, good.word_ptr, good.word_ids, good.values[:1]
    )
    with pytest.raises(InputError, match="2 attributes"):
        store.upsert(narrow)
    assert store.snapshot().n_live == 2
    with pytest.raises(InputError, match="fan_in"):
        SegmentStore(SPECS, build_plain, load_plain, fan_in=1)


def test_a_closed_store_refuses_writes_and_answers() -> None:
    store = SegmentStore(SPECS, build_plain, load_plain)
    store.upsert(make_places([1], seed=1))
    store.close()
    store.close()
    with pytest.raises(ConflictError, match="closed"):
        store.upsert(make_places([2], seed=1))
    assert len(ask(store.snapshot(), QueryPlan(k=3, has_point=True))) == 1


def test_single_is_the_layout_only_when_it_is_everything(store: SegmentStore) -> None:
    assert store.snapshot().single() is None
    store.upsert(make_places(range(20), seed=1))
    assert isinstance(store.snapshot().single(), PlainLayout)
    store.delete(np.array([3]))
    assert store.snapshot().single() is None
    store.compact()
    assert store.snapshot().single() is not None
    store.upsert(make_places([77], seed=1))
    assert store.snapshot().single() is None


class _Visits:
    """Time part by key, social part by key; asked for segments and for the memtable."""

    def __init__(self) -> None:
        self.searched = 0

    def parts(self, plan, keys):  # type: ignore[no-untyped-def]
        return (keys % 7) / 7.0, (keys % 5) / 5.0

    def search(self, layout, plan, answers, live, stats):  # type: ignore[no-untyped-def]
        self.searched += 1
        rows = np.arange(len(layout)) if live is None else np.flatnonzero(live)
        parts, km, qualifies = layout.parts(plan, rows)
        parts[:, 3], parts[:, 4] = self.parts(plan, layout.keys[rows])
        for i, row in enumerate(rows):
            if qualifies[i]:
                single = Answers(answers.k)
                single.count = 1
                single.scores[0] = parts[i] @ plan.weights
                single.kms[0], single.keys[0] = km[i], layout.keys[row]
                merged = sorted(
                    answers.results() + single.results(), key=lambda a: (-a[0], a[1], a[2])
                )[: answers.k]
                answers.count = len(merged)
                for j, (score, distance, key) in enumerate(merged):
                    answers.scores[j], answers.kms[j], answers.keys[j] = score, distance, key


def test_visits_are_asked_where_time_or_friends_count(store: SegmentStore) -> None:
    visits = _Visits()
    store.visits = visits
    store.upsert(make_places(range(40), seed=1))
    store.upsert(make_places(range(35, 47), seed=2))
    snapshot = store.snapshot()
    store.delete(np.array([1, 2, 36]))
    plain = make_plan(snapshot, 3)
    ask(snapshot, plain)
    assert visits.searched == 0
    plan = QueryPlan(
        k=20, has_point=True, weights=np.array([0.2, 0, 0, 0.5, 0.3]), decay_scale=9e3, slot=3
    )
    columns = snapshot.columns()
    time_part, social_part = visits.parts(plan, columns.keys)
    expected = answer(columns, SPECS, plan, time_part=time_part, social_part=social_part)
    same_answers(ask(snapshot, plan), expected)
    assert visits.searched == 1
    parts, _, _ = snapshot.parts(plan, columns.keys)
    np.testing.assert_array_equal(parts[:, 3], time_part)
