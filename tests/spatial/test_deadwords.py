"""Words of dead rows: counted by kernels as they die, against counting them one by one."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from live_bench import SPECS, WORDS, build_plain, make_places

from shoal.spatial import deadwords
from shoal.spatial.columns import Layout, PlaceColumns
from shoal.spatial.packed import PackedLayout
from shoal.spatial.segment import Segment, find_living


def packed(columns: PlaceColumns) -> Layout:
    return PackedLayout.build(columns, SPECS)


def slow(segment: Segment, rows: np.ndarray) -> list[int]:
    columns = segment.layout.columns()
    held = [
        {columns.words[i] for i in columns.word_ids[a:b]}
        for a, b in zip(columns.word_ptr[:-1], columns.word_ptr[1:], strict=True)
    ]
    return [sum(word in held[row] for row in rows.tolist()) for word in [*WORDS, "nowhere"]]


@pytest.mark.parametrize("build", [packed, build_plain], ids=["packed", "plain"])
@pytest.mark.parametrize("stretch", [1, 20, 2048])
def test_every_view_keeps_its_counts(
    build: object, stretch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadwords, "_STRETCH", stretch)
    columns = make_places(range(300), seed=3)
    segment = Segment.of(build(columns), columns)  # type: ignore[operator]
    rng = np.random.Generator(np.random.Philox(4))
    order, views = rng.permutation(300), []
    for first in range(0, 300, 25):
        rows = order[first : first + 25]
        expected = int(segment.lengths[rows].sum())
        assert segment.kill(rows) == expected
        views.append((segment.view(), order[: first + 25]))
    for view, rows in reversed(views):
        assert view.dead_frequency([*WORDS, "nowhere"]).tolist() == slow(segment, rows)


def test_counting_that_begins_with_a_reader_goes_on_with_the_writer() -> None:
    columns = make_places(range(120), seed=3)
    segment = Segment.of(packed(columns), columns)
    segment.kill(np.arange(20), count=False)
    old = segment.view()
    segment.kill(np.arange(20, 30), count=False)
    assert old.dead_frequency([*WORDS, "nowhere"]).tolist() == slow(segment, np.arange(20))
    segment.kill(np.arange(30, 50))
    new = segment.view()
    assert new.dead_frequency([*WORDS, "nowhere"]).tolist() == slow(segment, np.arange(50))
    assert old.dead_frequency([*WORDS, "nowhere"]).tolist() == slow(segment, np.arange(20))


def test_a_stretch_that_is_cut_short_is_caught() -> None:
    columns = make_places(range(120), seed=3)
    segment = Segment.of(packed(columns), columns)
    segment.kill(np.arange(40))
    view = segment.view()
    words = view.dead_words()
    wrong = words._replace(stop=words.stop - 40)
    counted = segment._dead_words
    assert counted is not None
    assert counted.frequency(WORDS, words).tolist() == slow(segment, np.arange(40))[:-1]
    assert counted.frequency(WORDS, wrong).tolist() != slow(segment, np.arange(40))[:-1]


@pytest.mark.parametrize("together", [1, 7, 4096])
def test_keys_are_found_where_they_live(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from shoal.spatial import segment as module

    monkeypatch.setattr(module, "_TOGETHER", together)
    rng = np.random.Generator(np.random.Philox(7))
    segments, lives = [], {}
    for number in range(4):
        keys = np.unique(rng.integers(-200, 200, 1 + 40 * number))
        keys = np.array([key for key in keys.tolist() if key not in lives])
        columns = make_places(keys.tolist(), seed=number)
        segments.append(Segment.of(packed(columns), columns))
        rows = np.flatnonzero(rng.random(len(keys)) < 0.3)
        segments[-1].kill(rows)
        for row, key in enumerate(segments[-1].keys.tolist()):
            if row not in set(rows.tolist()):
                lives[key] = (number, row)
    wanted = rng.permutation(np.arange(-210, 210))
    where, rows = find_living(segments, wanted)
    for key, number, row in zip(wanted.tolist(), where.tolist(), rows.tolist(), strict=True):
        if key in lives:
            assert (number, row) == lives[key]
        else:
            assert number == -1
