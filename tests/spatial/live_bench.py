"""What the tests of the live index share: a plain layout, random places, and the comparison."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.spatial.columns import AttributeSpec, Layout, PlaceColumns, SearchStats
from shoal.spatial.query import (
    MATCH_ALL,
    MATCH_ANY,
    MATCH_EVERYTHING,
    TEXT_BM25,
    Answers,
    FilterPlan,
    QueryPlan,
    RegionPlan,
)
from shoal.spatial.reference import answer, score_all

SPECS = (
    AttributeSpec(name="price", low=0.0, high=10.0, missing="neutral"),
    AttributeSpec(name="noise", low=-1.0, high=1.0, missing="exclude"),
)
WORDS = ("bar", "café", "fish", "grill", "halal", "ice", "pizza", "steak", "vegan", "wok", "寿司")


class PlainLayout:
    """Every row scored by the reference: slow, and obviously a layout."""

    def __init__(self, columns: PlaceColumns) -> None:
        self._columns = columns

    @property
    def keys(self) -> npt.NDArray[np.int64]:
        return self._columns.keys

    def __len__(self) -> int:
        return len(self._columns)

    def document_frequency(self, words: Sequence[str]) -> npt.NDArray[np.int64]:
        df = dict.fromkeys(self._columns.words, 0)
        for i in self._columns.word_ids.tolist():
            df[self._columns.words[i]] += 1
        return np.array([df.get(word, 0) for word in words], dtype=np.int64)

    def search(
        self,
        plan: QueryPlan,
        answers: Answers,
        live: npt.NDArray[np.uint8] | None = None,
        stats: SearchStats | None = None,
    ) -> None:
        found = score_all(self._columns, SPECS, plan)
        keep = found.qualifies if live is None else found.qualifies & (live == 1)
        merged = answers.results()
        for row in np.flatnonzero(keep).tolist():
            merged.append((found.score[row], found.km[row], int(self.keys[row])))
        merged.sort(key=lambda one: (-one[0], one[1], one[2]))
        answers.count = min(answers.k, len(merged))
        for i, (score, km, key) in enumerate(merged[: answers.k]):
            answers.scores[i], answers.kms[i], answers.keys[i] = score, km, key
        if stats is not None:
            stats.scored += int(keep.sum())

    def parts(
        self, plan: QueryPlan, rows: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        found = score_all(self._columns, SPECS, plan)
        return found.parts[rows], found.km[rows], found.qualifies[rows]

    def columns(self) -> PlaceColumns:
        return self._columns

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        c = self._columns
        blob = np.frombuffer("\n".join(c.words).encode(), dtype=np.uint8)
        names = ("keys", "lon", "lat", "word_ptr", "word_ids", "values")
        return {name: getattr(c, name) for name in names} | {"blob": blob}

    def meta(self) -> dict[str, object]:
        return {"layout": "plain", "attributes": len(self._columns.values)}


def build_plain(columns: PlaceColumns) -> Layout:
    # Another order of rows than the caller's, as real layouts have.
    order = np.argsort(columns.lat, kind="stable")
    return PlainLayout(take(columns, order))


def load_plain(
    name: str, arrays: Mapping[str, npt.NDArray[Any]], meta: Mapping[str, Any]
) -> Layout:
    assert name == "plain"
    names = ("keys", "lon", "lat", "word_ptr", "word_ids", "values")
    text = bytes(arrays["blob"]).decode()
    return PlainLayout(
        PlaceColumns(
            words=text.split("\n") if text else [], **{name: arrays[name] for name in names}
        )
    )


def take(columns: PlaceColumns, order: npt.NDArray[np.int64]) -> PlaceColumns:
    rows = [columns.word_ids[columns.word_ptr[i] : columns.word_ptr[i + 1]] for i in order.tolist()]
    return PlaceColumns(
        keys=columns.keys[order],
        lon=columns.lon[order],
        lat=columns.lat[order],
        words=columns.words,
        word_ptr=np.cumsum([0, *(len(row) for row in rows)]).astype(np.int64),
        word_ids=np.concatenate(rows).astype(np.int32) if rows else np.empty(0, np.int32),
        values=columns.values[:, order],
    )


def make_places(
    keys: Sequence[int], seed: int, words: Sequence[str] = WORDS, most: int = 4
) -> PlaceColumns:
    """Random places: some at the very same point, some without words or attributes."""
    rng = np.random.Generator(np.random.Philox(seed))
    n = len(keys)
    lists = [
        sorted(rng.choice(len(words), size=rng.integers(0, most + 1), replace=False).tolist())
        for _ in range(n)
    ]
    used = sorted({i for one in lists for i in one}, key=lambda i: words[i].encode())
    rank = {i: r for r, i in enumerate(used)}
    ids = [sorted(rank[i] for i in one) for one in lists]
    values = np.round(rng.uniform(-2.0, 11.0, size=(2, n)), 3)
    values[rng.random((2, n)) < 0.2] = np.nan
    return PlaceColumns(
        keys=np.array(keys, dtype=np.int64),
        lon=np.round(rng.uniform(-180, 180, n), int(rng.integers(0, 8))),
        lat=np.round(rng.uniform(-90, 90, n), int(rng.integers(0, 8))),
        words=[words[i] for i in used],
        word_ptr=np.cumsum([0, *map(len, ids)]).astype(np.int64),
        word_ids=np.array([i for one in ids for i in one], dtype=np.int32),
        values=values,
    )


def make_plan(store_like: Any, seed: int, k: int = 5) -> QueryPlan:
    """A random query with the word weights of a snapshot (anything with its counts)."""
    rng = np.random.Generator(np.random.Philox(key=seed + (1 << 40)))
    words = tuple(
        WORDS[i] for i in rng.choice(len(WORDS), size=rng.integers(0, 4), replace=False).tolist()
    )
    df = store_like.document_frequency(words) if words else np.empty(0, dtype=np.int64)
    words = tuple(word for word, count in zip(words, df, strict=True) if count > 0)
    df = df[df > 0]
    idf = np.log1p((store_like.n_live - df + 0.5) / (df + 0.5))
    weights = rng.random(5) * np.array([1, 1, 1, 0, 0])
    match = MATCH_EVERYTHING
    if words:
        match = MATCH_ALL if rng.random() < 0.5 else MATCH_ANY
    preferred = rng.random() < 0.6
    if not preferred:
        weights[2] = 0
    region = None
    if rng.random() < 0.3:
        corners = np.array([[-120.0, -60.0], [130.0, 75.0]])
        region = RegionPlan(1, corners, np.zeros(1, dtype=np.int32), (0.0, 0.0, 1.0), 4.0)
    filters = None
    if rng.random() < 0.3:
        filters = FilterPlan(
            np.array([0], dtype=np.int32),
            np.array([0, 2], dtype=np.int32),
            np.array([-5.0, 6.0]),
            np.array([4.0, math.inf]),
        )
    return QueryPlan(
        k=k,
        has_point=True,
        lon=float(rng.uniform(-180, 180)),
        lat=float(rng.uniform(-90, 90)),
        match=match,
        words=words,
        word_weights=idf / idf.sum() if words else np.empty(0),
        text_kind=TEXT_BM25 if rng.random() < 0.5 else 0,
        mean_words=max(store_like.mean_words, 1e-9),
        weights=weights / weights.sum(),
        decay_kind=int(rng.integers(4)),
        decay_scale=5000.0,
        max_km=math.inf if rng.random() < 0.7 else 9000.0,
        pref_column=np.array([0, 1] if preferred else [], dtype=np.int32),
        pref_flip=np.array([0, 1] if preferred else [], dtype=np.uint8),
        pref_weight=np.array([0.6, 0.4] if preferred else []),
        filters=filters,
        region=region,
        without=(WORDS[int(rng.integers(len(WORDS)))],) if rng.random() < 0.3 else (),
    )


class Model:
    """Places in a dictionary: what the index should hold."""

    def __init__(self) -> None:
        self.places: dict[int, tuple[float, float, tuple[str, ...], tuple[float, ...]]] = {}

    def upsert(self, columns: PlaceColumns) -> None:
        self.places |= rows_of(columns)

    def delete(self, keys: Sequence[int]) -> int:
        return sum(self.places.pop(key, None) is not None for key in set(keys))


def rows_of(
    columns: PlaceColumns,
) -> dict[int, tuple[float, float, tuple[str, ...], tuple[float, ...]]]:
    """Each place as plain values, by key (NaN as -99, so that rows compare)."""
    found = {}
    for i, key in enumerate(columns.keys.tolist()):
        ids = columns.word_ids[columns.word_ptr[i] : columns.word_ptr[i + 1]]
        assert (np.diff(ids) > 0).all()
        assert key not in found
        found[key] = (
            float(columns.lon[i]),
            float(columns.lat[i]),
            tuple(columns.words[j] for j in ids),
            tuple(np.nan_to_num(columns.values[:, i], nan=-99.0).tolist()),
        )
    assert list(columns.words) == sorted(columns.words, key=str.encode)
    return found


def check(snapshot: Any, model: Model, seeds: Sequence[int] = (1, 2, 3), k: int = 5) -> None:
    """The snapshot holds exactly the model's places, with their statistics and answers."""
    columns = snapshot.columns()
    assert rows_of(columns) == model.places
    assert snapshot.n_live == len(model.places)
    words = [len(set(place[2])) for place in model.places.values()]
    assert snapshot.mean_words == (sum(words) / len(words) if words else 0.0)
    wanted = [*WORDS, "nowhere"]
    counts = [sum(word in place[2] for place in model.places.values()) for word in wanted]
    assert snapshot.document_frequency(wanted).tolist() == counts
    for seed in seeds:
        plan = make_plan(snapshot, seed, k)
        same_answers(ask(snapshot, plan), answer(columns, SPECS, plan))
        if len(columns):
            found = score_all(columns, SPECS, plan)
            parts, km, qualifies = snapshot.parts(plan, columns.keys)
            np.testing.assert_allclose(parts[qualifies], found.parts[qualifies], atol=1e-9)
            np.testing.assert_allclose(km, found.km, atol=1e-6)
            np.testing.assert_array_equal(qualifies, found.qualifies)


def ask(snapshot: Any, plan: QueryPlan) -> list[tuple[float, float, int]]:
    answers = Answers(plan.k)
    snapshot.search(plan, answers, SearchStats())
    return answers.results()


def same_answers(
    ours: Sequence[tuple[float, float, int]], theirs: Sequence[tuple[float, float, int]]
) -> None:
    """Equal scores; equal keys where no other score is near."""
    assert len(ours) == len(theirs)
    np.testing.assert_allclose(
        [one[0] for one in ours], [one[0] for one in theirs], atol=1e-9, rtol=0
    )
    scores = np.array([one[0] for one in theirs])
    for i, (mine, its) in enumerate(zip(ours, theirs, strict=True)):
        if i < len(theirs) - 1 and np.count_nonzero(np.abs(scores - scores[i]) < 1e-9) == 1:
            assert mine[2] == its[2]
