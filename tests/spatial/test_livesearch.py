"""Prepared queries while an index changes: the answers of the moment, by brute force."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

from shoal.spatial import Linear, Weights, livesearch
from shoal.spatial import _live_kernels as kernels
from shoal.spatial.index import SpatialKeywordIndex

WORDS = [f"w{i}" for i in range(9)]
FORMS: dict[str, dict[str, Any]] = {
    "all": {"match": "all"},
    "any": {"match": "any", "decay": Linear(5000.0)},
    "ranked": {"match": "ranked", "weights": Weights(space=0.4, text=0.6)},
    "near": {"match": "any", "max_km": 3000.0},
    "cheap": {
        "match": "ranked",
        "prefer": {"price": "min"},
        "weights": Weights(space=0.3, text=0.3, attributes=0.4),
    },
    "filtered": {"match": "all", "where": {"price": ("<", 0.5)}},
}


def make(n: int = 60, seed: int = 0) -> SpatialKeywordIndex:
    rng = np.random.Generator(np.random.Philox(seed))
    index = SpatialKeywordIndex.build(
        np.zeros(0), np.zeros(0), attributes={"price": np.zeros(0)}, ids=np.zeros(0, np.int64)
    )
    write(index, np.arange(n), rng)
    index.flush()
    return index


def write(index: SpatialKeywordIndex, keys: Any, rng: np.random.Generator) -> None:
    price = rng.random(len(keys))
    price[rng.random(len(keys)) < 0.1] = np.nan
    index.upsert(
        rng.uniform(-180, 180, len(keys)),
        rng.uniform(-90, 90, len(keys)),
        ids=np.asarray(keys),
        keywords=[rng.choice(WORDS, rng.integers(0, 4)).tolist() for _ in keys],
        attributes={"price": price},
    )


def same(index: SpatialKeywordIndex, found: Any, where: Any, form: dict[str, Any], k: int) -> None:
    lon, lat, words = where
    expected = index.query((lon, lat), words, k, **form)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-12)
    np.testing.assert_allclose(found.kms, expected.kms, rtol=1e-12)
    assert list(found.ids) == list(expected.ids)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["upsert", "upsert", "delete", "flush", "compact", "all new"]),
        st.lists(st.integers(0, 90), min_size=1, max_size=15, unique=True),
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(steps=STEPS, seed=st.integers(0, 1 << 20), k=st.sampled_from([1, 5, 150]))
def test_prepared_queries_follow_every_change(
    steps: list[tuple[str, list[int]]], seed: int, k: int
) -> None:
    rng = np.random.Generator(np.random.Philox(seed))
    index = make(30, seed=seed)
    searchers = {name: index.searcher(k=k, **form) for name, form in FORMS.items()}
    for step, keys in steps:
        if step == "upsert":
            write(index, keys, rng)
        elif step == "delete":
            index.delete(keys)
        elif step == "flush":
            index.flush()
        elif step == "compact":
            index.compact()
        else:
            index.delete(np.arange(91))
            write(index, keys, rng)
        for name, form in FORMS.items():
            words = rng.choice([*WORDS, "unknown"], rng.integers(0, 4), replace=False).tolist()
            where = (float(rng.uniform(-180, 180)), float(rng.uniform(-90, 90)), words)
            same(index, searchers[name](*where), where, form, k)
            batch = searchers[name].many([where[0]], [where[1]], [words], threads=1)
            assert batch.ids[0] == list(index.query(where[:2], words, k, **form).ids)
    index.close()


@pytest.mark.parametrize("form", ["all", "any", "ranked", "cheap"])
def test_deaths_in_the_midst_of_a_call_are_mended(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that is between the mask and the new snapshot, at every call."""
    index = make()
    index.delete([50, 51])  # so that there is a mask
    search = index.searcher(k=20, **FORMS[form])
    where = (10.0, 10.0, [WORDS[1], WORDS[2]] if form != "all" else [WORDS[1]])
    expected = search(*where)
    assert len(expected.ids) > 3
    snapshot = index.snapshot()
    (view,) = snapshot.segments
    rows = view.find(np.array(sorted(expected.ids))[:3])
    view.segment.kill(rows)
    found = search(*where)
    assert list(found.ids) == list(expected.ids)
    np.testing.assert_array_equal(found.kms, expected.kms)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-12)
    # The control: without mending, the three are missing.
    monkeypatch.setattr(livesearch.LiveSearcher, "torn", lambda _: False)
    assert len(search(*where).ids) == len(expected.ids) - 3


def test_a_search_that_forgets_the_memtable_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    index = make()
    write(index, range(100, 130), np.random.Generator(np.random.Philox(5)))
    search = index.searcher(k=90, **FORMS["any"])
    where = (0.0, 0.0, [])
    same(index, search(*where), where, FORMS["any"], 90)
    monkeypatch.setattr(kernels, "search_recent", lambda _state, _records, _given, count: count)
    with pytest.raises(AssertionError):
        same(index, search(*where), where, FORMS["any"], 90)


def test_readers_beside_a_writer_see_each_place_once() -> None:
    n, stop, wrong = 40, threading.Event(), []
    index = SpatialKeywordIndex.build(np.zeros(n), np.zeros(n), keywords=[["w"]] * n)

    def read() -> None:
        search = index.searcher(k=2 * n, match="ranked")
        while not stop.is_set():
            found = search(0.0, 0.0, ["w"])
            if sorted(found.ids) != list(range(n)) or len(set(found.kms.tolist())) != 1:
                wrong.append(found)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for version in range(150):
        index.upsert(np.full(n, version % 90), np.zeros(n), ids=np.arange(n), keywords=[["w"]] * n)
        if version % 20 == 19:
            index.flush()
    stop.set()
    for thread in threads:
        thread.join()
    index.close()
    assert not wrong[:1]
