"""Recent rows: the kernel against the reference, views that do not change."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from live_bench import SPECS, WORDS, Model, ask, make_places, make_plan, rows_of, same_answers

from shoal.spatial.columns import PlaceColumns
from shoal.spatial.memtable import Memtable, MemtableView
from shoal.spatial.query import MATCH_ALL, MATCH_ANY, Answers, QueryPlan
from shoal.spatial.reference import answer, score_all


class Counts:
    """A view with the counts that a plan is made from."""

    def __init__(self, view: MemtableView) -> None:
        self.search, self.document_frequency = view.search, view.document_frequency
        self.n_live = len(view.live_rows())
        self.mean_words = 2.0


def filled(n: int = 200, seed: int = 1) -> Memtable:
    table = Memtable(SPECS, 4096)
    for start in range(0, n, 50):
        table.append(make_places(range(start, start + 50), seed + start))
    return table


@pytest.mark.parametrize("seed", range(40))
def test_the_scan_gives_the_references_answers(seed: int) -> None:
    table = filled(seed=seed)
    table.kill(list(range(0, 200, 7)))
    view = table.view()
    columns = view.columns()
    plan = make_plan(Counts(view), seed, k=9)
    same_answers(ask(Counts(view), plan), answer(columns, SPECS, plan))
    found = score_all(columns, SPECS, plan)
    parts, km, qualifies = view.parts(plan, view.live_rows())
    np.testing.assert_array_equal(qualifies, found.qualifies)
    np.testing.assert_allclose(parts[qualifies], found.parts[qualifies], atol=1e-12)
    np.testing.assert_allclose(km, found.km, atol=1e-6)


def test_a_view_does_not_change() -> None:
    table, views = Memtable(SPECS, 4096), []
    model = Model()
    for step in range(30):
        keys = list(range(step, step + 40, 3))
        table.kill(keys)
        columns = make_places(keys, step)
        table.append(columns)
        model.upsert(columns)
        table.kill([step])
        model.delete([step])
        views.append((table.view(), dict(model.places)))
    for view, places in views:
        assert rows_of(view.columns()) == places
        counts = [sum(word in place[2] for place in places.values()) for word in WORDS]
        assert view.document_frequency(WORDS).tolist() == counts
        keys = np.arange(-1, 80)
        assert [key for key, row in zip(keys, view.find(keys), strict=True) if row >= 0] == sorted(
            places
        )
    assert table.n_words == sum(len(place[2]) for place in model.places.values())


def test_words_that_share_a_bit_of_the_signature_are_told_apart() -> None:
    words = [f"w{i:03}" for i in range(130)]
    n = len(words)
    table = Memtable(SPECS, 4096)
    table.append(
        PlaceColumns(
            keys=np.arange(n, dtype=np.int64),
            lon=np.zeros(n),
            lat=np.linspace(-80, 80, n),
            words=words,
            word_ptr=np.arange(n + 1, dtype=np.int64),
            word_ids=np.arange(n, dtype=np.int32),
            values=np.zeros((2, n)),
        )
    )
    for match in (MATCH_ALL, MATCH_ANY):
        for i in (0, 1, 64, 65, 128):
            plan = QueryPlan(
                k=9, has_point=True, match=match, words=(words[i],), word_weights=np.ones(1)
            )
            answers = Answers(9)
            table.view().search(plan, answers)
            assert [key for _, _, key in answers.results()] == [i]


def test_time_and_social_parts_are_added_by_row() -> None:
    table = filled()
    table.kill([3])
    view = table.view()
    rng = np.random.Generator(np.random.Philox(1))
    time_part, social_part = rng.random(view.rows), rng.random(view.rows)
    plan = QueryPlan(k=20, has_point=True, weights=np.array([0.1, 0, 0, 0.6, 0.3]), slot=2)
    answers = Answers(20)
    view.search(plan, answers, time_part=time_part, social_part=social_part)
    live = view.live_rows()
    columns = view.columns()
    same_answers(
        answers.results(),
        answer(columns, SPECS, plan, time_part=time_part[live], social_part=social_part[live]),
    )


def test_a_scan_that_forgets_the_dead_is_caught() -> None:
    table = filled()
    table.kill(list(range(150)))
    view = table.view()
    wrong = dataclasses.replace(view, deaths=0)
    plan = QueryPlan(k=50, has_point=True, decay_scale=1e5)
    expected = answer(view.columns(), SPECS, plan)
    same_answers(ask(Counts(view), plan), expected)
    with pytest.raises(AssertionError):
        same_answers(ask(Counts(wrong), plan), expected)


def test_an_empty_memtable_answers_nothing() -> None:
    view = Memtable(SPECS, 1).view()
    answers = Answers(3)
    view.search(QueryPlan(k=3, has_point=True), answers)
    assert len(answers) == 0
    assert len(view.columns()) == 0
    assert view.document_frequency(["bar"]).tolist() == [0]
    assert view.find(np.array([1, 2])).tolist() == [-1, -1]
