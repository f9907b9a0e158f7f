"""Prepared queries say what queries say, whatever the keywords and whoever writes."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shoal.core.errors import InputError
from shoal.spatial import SpatialKeywordIndex
from shoal.spatial.config import SpatialKeywordIndexConfig

HALF = "\ud800"  # of a surrogate pair
ODD: list[tuple[Any, ...]] = [
    ("",),
    ("", "a"),
    ("a", "", ""),
    (" ",),
    ("\ta",),
    ("a\n",),
    ("a b",),
    ("A", "a"),
    (HALF,),
    (HALF, "a"),
    ("a",) * 70,
    (),
]
WRONG: list[tuple[Any, ...]] = [(b"a",), (3,), (None,), ("a", 3), tuple(map(str, range(65)))]


def places(analyzer: Any, *, living: bool) -> SpatialKeywordIndex:
    index = SpatialKeywordIndex.build(
        [0.0, 1.0, 2.0], [0.0, 1.0, 2.0], keywords=[["a"], ["b"], ["a b"]], analyzer=analyzer
    )
    if living:
        index.upsert([3.0], [3.0], ids=[9], keywords=[["a", "b"]])
        index.delete([1])
    return index


def same(left: Any, right: Any) -> None:
    assert list(left.ids) == list(right.ids)
    np.testing.assert_allclose(left.scores, right.scores, rtol=0, atol=1e-12)


@pytest.mark.parametrize("living", [False, True])
@pytest.mark.parametrize("analyzer", ["words", "exact"])
@pytest.mark.parametrize("match", ["all", "any", "ranked"])
def test_odd_keywords_are_read_as_by_a_query(analyzer: str, match: Any, living: bool) -> None:
    with places(analyzer, living=living) as index:
        searcher = index.searcher(k=5, match=match)
        origin = np.zeros(len(ODD))
        batch = searcher.many(origin, origin, ODD, threads=1)
        for i, words in enumerate(ODD):
            wanted = index.query((0.0, 0.0), words, k=5, match=match)
            same(searcher(0.0, 0.0, words), wanted)
            count = batch.counts[i]
            assert batch.ids[i] == list(wanted.ids)
            np.testing.assert_allclose(batch.scores[i, :count], wanted.scores, atol=1e-12)
            alone = searcher.many(origin[:1], origin[:1], [words])
            assert alone.ids == [list(wanted.ids)]


@pytest.mark.parametrize("analyzer", ["words", "exact"])
@pytest.mark.parametrize("words", WRONG, ids=str)
def test_wrong_keywords_are_refused_as_by_a_query(analyzer: str, words: Any) -> None:
    with places(analyzer, living=False) as index:
        searcher = index.searcher(k=5)
        for ask in (
            lambda: index.query((0.0, 0.0), words),
            lambda: searcher(0.0, 0.0, words),
            lambda: searcher.many(np.zeros(1), np.zeros(1), [words]),
        ):
            with pytest.raises(InputError):
                ask()


def test_a_reader_names_what_came_with_a_refresh(tmp_path: Path) -> None:
    SpatialKeywordIndex.build([0.0], [0.0], keywords=[["a"]], ids=["first"]).save(tmp_path)
    with (
        SpatialKeywordIndex.open(tmp_path) as writer,
        SpatialKeywordIndex.open(tmp_path, read_only=True) as reader,
    ):
        searcher = reader.searcher(k=9)
        assert searcher(0.0, 0.0, ["a"]).ids == ["first"]
        for i in range(3):
            writer.upsert([i + 1.0], [0.0], ids=[f"new {i}"], keywords=[["a"]])
            writer.compact()
            assert reader.refresh()
            wanted = ["first", *(f"new {j}" for j in range(i + 1))]
            assert searcher(0.0, 0.0, ["a"]).ids == wanted
            assert searcher.many(np.zeros(1), np.zeros(1), [["a"]]).ids == [wanted]


@pytest.mark.parametrize("where", [None, {"price": ("<=", 9.0)}])
def test_a_batch_is_of_one_moment_while_places_come_and_go(where: Any) -> None:
    index = SpatialKeywordIndex.build(
        [0.0, 1.0],
        [0.0, 1.0],
        keywords=[["a"], ["a"]],
        attributes={"price": [1.0, 2.0]},
        config=SpatialKeywordIndexConfig(memtable_rows=64),
    )
    done = threading.Event()

    def write() -> None:
        i = 2
        while not done.is_set():
            index.upsert([0.5], [0.5], ids=[i], keywords=[["a"]], attributes={"price": [1.0]})
            if i % 5 == 0:
                index.delete(list(range(2, i)))
            i += 1

    thread = threading.Thread(target=write)
    thread.start()
    try:
        searcher = index.searcher(k=50, where=where)
        for _ in range(15):
            batch = searcher.many(np.zeros(8), np.zeros(8), [["a"]] * 8, threads=2)
            assert len(set(batch.counts.tolist())) == 1
            assert len({tuple(ids) for ids in batch.ids}) == 1
    finally:
        done.set()
        thread.join()
        index.close()
