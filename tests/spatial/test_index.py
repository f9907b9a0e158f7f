"""The index as its users see it: every layout against the slow reference, through changes."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core.errors import InputError, NotFoundError
from shoal.spatial import (
    AttributeSpec,
    Gauss,
    Linear,
    Query,
    Saturation,
    SpatialKeywordIndex,
    SpatialKeywordIndexConfig,
    Weights,
    reference,
)

LAYOUTS = ("packed", "quad_cluster")
WORDS = ["pizza", "steak", "sushi", "bar", "cafe", "park", "museum", "fuel", "hotel", "quiet"]


def made(n=400, *, seed=0, layout="packed", **options):
    rng = np.random.default_rng(seed)
    centre = rng.uniform((-170, -80), (170, 80), size=(6, 2))
    at = centre[rng.integers(0, 6, n)] + rng.normal(0, 2.0, (n, 2))
    lon, lat = np.round(at[:, 0], 5), np.clip(np.round(at[:, 1], 5), -90, 90)
    rank = np.arange(1, len(WORDS) + 1)
    keywords = [
        list(
            rng.choice(
                WORDS, size=rng.integers(0, 5), replace=False, p=(1 / rank) / (1 / rank).sum()
            )
        )
        for _ in range(n)
    ]
    price = rng.integers(1, 5, n).astype(float)
    price[rng.random(n) < 0.2] = np.nan
    attributes = {"price": price, "noise": rng.random(n)}
    return SpatialKeywordIndex.build(
        lon, lat, keywords=keywords, attributes=attributes, layout=layout, **options
    )


def expected(index, query):
    """Return the reference's answers and the plan's emptiness for a query."""
    planned = index.plan(query)
    if planned.empty:
        return []
    return reference.answer(index.columns(), index.attribute_specs, planned.plan)


def check(index, query):
    top = index.ask(query)
    wanted = expected(index, query)
    assert len(top) == len(wanted)
    assert top.scores == pytest.approx([score for score, _, _ in wanted], abs=1e-9)
    assert top.kms == pytest.approx([km for _, km, _ in wanted], abs=1e-6)
    # Ids are compared where neither score nor distance ties within rounding.
    for i, (score, km, key) in enumerate(wanted):
        near = [w for w in wanted if abs(w[0] - score) < 1e-9 and abs(w[1] - km) < 1e-6]
        if len(near) == 1 and i < len(wanted) - 1:
            assert index.ids.find([top.ids[i]])[0] == key
    return top


QUERIES = {
    "nearest": Query(point=(10, 50)),
    "all": Query(point=(10, 50), keywords=["pizza", "bar"]),
    "any": Query(point=(-60, -10), keywords=["sushi", "fuel"], match="any", k=25),
    "ranked": Query(
        point=(100, 20), keywords="pizza quiet park", match="ranked", decay=Linear(500)
    ),
    "bm25": Query(
        point=(100, 20), keywords="pizza cafe", match="ranked", text="bm25", decay=Saturation(50)
    ),
    "text alone": Query(keywords="pizza quiet", match="ranked", k=30),
    "askq": Query(
        point=(10, 50),
        keywords="pizza",
        prefer={"price": "min", "noise": "min"},
        decay=Linear(3000),
    ),
    "flipped": Query(point=(10, 50), prefer={"noise": "max"}, decay=Gauss(800), k=15),
    "filters": Query(point=(10, 50), where={"price": ("<=", 2), "noise": (">", 0.3)}, k=40),
    "box": Query(point=(10, 50), within=(-40, -60, 60, 60), k=40),
    "limit": Query(point=(10, 50), max_km=4000, k=1000),
    "without": Query(point=(10, 50), keywords="pizza", without="bar steak", k=40),
    "everything": Query(
        point=(-100, 30),
        keywords="pizza bar museum",
        match="ranked",
        weights=Weights(space=0.5, text=0.2, attributes=0.3),
        prefer={"price": ("min", 2), "noise": "max"},
        where={"noise": ("<", 0.9)},
        without="fuel",
        decay=Saturation(100),
        k=12,
    ),
    "unknown": Query(point=(0, 0), keywords="durian"),
    "all of them": Query(point=(0, 0), k=100_000),
}


@pytest.fixture(scope="module", params=LAYOUTS)
def index(request):
    return made(layout=request.param)


@pytest.mark.parametrize("name", QUERIES)
def test_answers_equal_the_reference(index, name):
    check(index, QUERIES[name])


def test_layouts_agree_to_the_last_bit():
    a, b = (made(layout=layout) for layout in LAYOUTS)
    for query in QUERIES.values():
        x, y = a.ask(query), b.ask(query)
        assert x.ids == y.ids
        assert x.scores.tolist() == y.scores.tolist()
        assert x.kms.tolist() == y.kms.tolist()


def test_components_add_up_to_the_score(index):
    query = Query(
        point=(10, 50),
        keywords="pizza bar",
        match="ranked",
        prefer={"price": "min"},
        weights={"space": 2, "text": 1, "attributes": 1},
        decay=Saturation(200),
        explain=True,
    )
    top = index.ask(query)
    c = top.components
    assert set(c) == {"space", "text", "attributes"}
    assert 0.5 * c["space"] + 0.25 * c["text"] + 0.25 * c["attributes"] == pytest.approx(top.scores)
    assert top[0].parts["space"] == c["space"][0]


def test_unknown_keywords_are_reported(index):
    top = index.query((0, 0), ["pizza", "durian"], match="ranked")
    assert top.unknown_keywords == ("durian",)
    assert len(top) == 10
    assert len(index.query((0, 0), ["pizza", "durian"])) == 0


def test_a_searcher_gives_the_same_answers(index):
    forms = [
        {},
        {"match": "ranked", "decay": Linear(500)},
        {"match": "ranked", "text": "bm25", "decay": Saturation(30), "k": 7},
        {"prefer": {"price": "min"}, "decay": Linear(2000)},
        {"match": "any", "where": {"noise": ("<", 0.5)}, "k": 20},
        {"within": (-40, -60, 60, 60), "without": "fuel"},
    ]
    rng = np.random.default_rng(5)
    for form in forms:
        searcher = index.searcher(**form)
        for words in (
            [],
            ["pizza"],
            ["pizza", "bar"],
            ["Bar", "bar", "quiet"],
            ["durian"],
            ["cafe", "durian"],
        ):
            if not words and form.get("text"):
                continue
            lon, lat = rng.uniform(-180, 180), rng.uniform(-90, 90)
            hits = searcher(lon, lat, words)
            weights = None if words else _weights_without_words(form)
            top = index.query((lon, lat), words, **{"k": 10, **form, "weights": weights})
            assert list(hits.ids) == top.ids
            assert hits.scores.tolist() == pytest.approx(top.scores.tolist(), abs=1e-12)


def _weights_without_words(form):
    # A prepared form keeps its weights: without words the text part is 0 for every place.
    if form.get("match") == "ranked":
        return {"space": 1, "text": 1}
    return None


def test_a_searcher_follows_changes():
    index = made(50)
    searcher = index.searcher(k=1)
    assert searcher(0.0, 0.0).kms[0] > 0
    index.upsert([0.0], [0.0], ids=[1000], keywords=[["oasis"]])
    assert searcher(0.0, 0.0).ids[0] == 1000
    assert searcher(0.0, 0.0, ["oasis"]).ids[0] == 1000
    index.compact()
    assert searcher(0.0, 0.0, ["oasis"]).ids[0] == 1000
    index.delete([1000])
    assert len(searcher(0.0, 0.0, ["oasis"]).ids) == 0


def test_a_searcher_refuses_what_a_query_refuses(index):
    with pytest.raises(InputError):
        index.searcher(k=0)
    with pytest.raises(InputError, match="no such option"):
        index.searcher(colour="red")
    searcher = index.searcher()
    with pytest.raises(InputError):
        searcher(0.0, 91.0)
    with pytest.raises(InputError):
        searcher(math.nan, 0.0)
    with pytest.raises(InputError):
        searcher(0.0, 0.0, [3])


@pytest.mark.parametrize("threads", [1, 2])
def test_many_queries_at_once_are_the_same(index, threads):
    rng = np.random.default_rng(2)
    points = rng.uniform((-180, -90), (180, 90), size=(30, 2))
    words = [list(rng.choice(WORDS, size=rng.integers(1, 3), replace=False)) for _ in range(29)]
    words.append(["durian"])
    batch = index.query_many(points, words, 5, match="ranked", decay=Linear(300), threads=threads)
    assert len(batch) == 30
    for i, (point, entry) in enumerate(zip(points, words, strict=True)):
        top = index.query(point, entry, 5, match="ranked", decay=Linear(300))
        assert list(batch.ids[i]) == top.ids
        assert batch.counts[i] == len(top)
        assert batch.scores[i, : len(top)].tolist() == pytest.approx(top.scores.tolist(), abs=1e-12)
        assert np.isnan(batch.scores[i, len(top) :]).all()


def test_no_queries_at_once(index):
    assert len(index.query_many(np.empty((0, 2)), [])) == 0
    with pytest.raises(InputError):
        index.query_many([[0, 0]], [])
    with pytest.raises(InputError):
        index.query_many([0, 0], [["a"]])


def test_one_answer_after_the_other(index):
    query = {"keywords": "pizza", "match": "ranked", "decay": Linear(4000)}
    everything = index.query((10, 50), k=100_000, **query)
    found = list(index.iter_query((10, 50), **query))
    assert [place.id for place in found] == everything.ids
    first = list(itertools.islice(index.iter_query((10, 50), **query), 3))
    assert [place.id for place in first] == everything.ids[:3]


def test_an_iteration_keeps_its_moment():
    index = made(100)
    before = index.query((0, 0), k=100).ids
    places = index.iter_query((0, 0))
    got = [next(places).id]
    index.delete(before)
    got += [place.id for place in places]
    assert got == before


def test_why_not(index):
    query = Query(point=(10, 50), keywords=["pizza"], k=3, max_km=20000, decay=Linear(9000))
    top = index.ask(query)
    first = index.explain(query, top.ids[0])
    assert (first.rank, first.reasons, first.words) == (1, [], {"pizza": 1.0})
    assert first.score == pytest.approx(top.scores[0])
    everything = index.query((10, 50), ["pizza"], k=1000).ids
    later = index.explain(query, everything[-1])
    assert later.rank is None
    assert later.worst_score == pytest.approx(top.scores[-1])
    assert "others score higher" in later.reasons[0]
    lacking = next(i for i in range(400) if i not in everything)
    assert "lacks the keyword 'pizza'" in index.explain(query, lacking).reasons[0]
    narrow = index.replace(
        query, max_km=1e-6, within=(0, 0, 1e-6, 1e-6), where={"noise": ("<", -1)}, without="pizza"
    )
    reasons = " ".join(index.explain(narrow, everything[-1]).reasons)
    for piece in ("farther away", "outside the area", "conditions of where", "was excluded"):
        assert piece in reasons
    with pytest.raises(NotFoundError):
        index.explain(query, 10**6)
    assert set(first.as_dict()) >= {"parts", "weights", "reasons"}


def test_why_not_a_missing_attribute():
    specs = [AttributeSpec(name="price", low=0, high=1, missing="exclude")]
    index = SpatialKeywordIndex.build(
        [0, 1], [0, 0], attributes={"price": [math.nan, 0.5]}, attribute_specs=specs
    )
    query = Query(point=(0, 0), prefer={"price": "min"})
    assert index.ask(query).ids == [1]
    assert "missing" in index.explain(query, 0).reasons[0]


def test_the_skyline_is_what_nothing_beats(index):
    top = index.skyline({"price": "min", "noise": "max"}, point=(10, 50), keywords="pizza")
    columns = index.columns()
    everything = index.query((10, 50), "pizza", k=10_000)
    row = {int(key): i for i, key in enumerate(columns.keys)}
    costs = {
        place.id: (
            4.0
            if math.isnan(columns.values[0, row[place.id]])
            else columns.values[0, row[place.id]],
            -columns.values[1, row[place.id]],
            place.km,
        )
        for place in everything
    }

    def beats(a, b):
        return all(x <= y for x, y in zip(a, b, strict=True)) and a != b

    best = {i for i, c in costs.items() if not any(beats(d, c) for d in costs.values())}
    assert set(top.ids) == best
    with pytest.raises(InputError, match="qualify"):
        index.skyline({"price": "min"}, limit=5)


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=12, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("uuddfc"), st.integers(0, 60), st.integers(0, 2**31)), max_size=12
    )
)
def test_after_any_changes_answers_are_those_of_a_rebuild(layout, steps):
    config = SpatialKeywordIndexConfig(layout=layout, memtable_rows=16, fan_in=2)
    with made(40, config=config, layout=layout) as index:
        for what, key, seed in steps:
            rng = np.random.default_rng(seed)
            if what == "u":
                ids = np.unique(rng.integers(0, 70, size=rng.integers(1, 25)))
                index.upsert(
                    rng.uniform(-180, 180, len(ids)),
                    rng.uniform(-90, 90, len(ids)),
                    ids=ids,
                    keywords=[list(rng.choice(WORDS, 2, replace=False)) for _ in ids],
                    attributes={
                        "price": rng.integers(1, 5, len(ids)),
                        "noise": rng.random(len(ids)),
                    },
                )
            elif what == "d":
                index.delete([key, key + 1])
            elif what == "f":
                index.flush()
            else:
                index.compact()
            for name in ("ranked", "bm25", "askq", "any", "everything"):
                check(index, index.replace(QUERIES[name], k=8))
        assert len(index) == len(index.columns())


def test_text_ids_and_labels():
    index = SpatialKeywordIndex.build(
        [0, 1, 2],
        [0, 0, 0],
        keywords=["harbour", "harbour", "park"],
        ids=["b", "a", "c"],
        labels=["Bay", None, "Central"],
    )
    top = index.query((0.4, 0))
    assert top.ids == ["b", "a", "c"]
    assert [place.label for place in top] == ["Bay", None, "Central"]
    index.upsert([0.4], [0], ids=["d"], labels=["Dock"], keywords=["harbour"])
    index.upsert([5], [0], ids=["a"])
    top = index.query((0.4, 0))
    assert top.ids == ["d", "b", "c", "a"]
    assert [place.label for place in top] == ["Dock", "Bay", "Central", None]
    assert index.delete(["b", "never seen"]) == 1
    assert index.query((0.4, 0), "harbour").ids == ["d"]
    with pytest.raises(InputError, match="texts"):
        index.upsert([0], [0], ids=[7])


def test_equal_places_come_in_the_order_of_their_ids():
    index = SpatialKeywordIndex.build([0] * 5, [0] * 5, ids=[5, 3, 9, 1, 7], keywords=["a"] * 5)
    assert index.query((0, 0), "a", k=4).ids == [1, 3, 5, 7]
    assert index.query(keywords="a", match="ranked", k=3).ids == [1, 3, 5]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_empty_index_answers(layout):
    index = SpatialKeywordIndex.build([], [], layout=layout, attributes={"price": []})
    assert len(index.query((0, 0))) == 0
    assert len(index.query((0, 0), "pizza", match="ranked", prefer={"price": "min"})) == 0
    assert list(index.iter_query((0, 0))) == []
    assert len(index.searcher()(0.0, 0.0, ["pizza"]).ids) == 0
    assert len(index.skyline({"price": "min"})) == 0
    index.upsert([1], [1], ids=[4])
    assert index.query((0, 0)).ids == [4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lon": [0, 999], "lat": [0, 0]}, "out of range"),
        ({"lon": [0], "lat": [0, 1]}, "longitudes"),
        ({"lon": [0, 0], "lat": [0, 0], "ids": [1, 1]}, "twice"),
        ({"lon": [0, 0], "lat": [0, 0], "ids": [1]}, "ids for"),
        ({"lon": [0, 0], "lat": [0, 0], "ids": ["a", 1]}, "all whole numbers or all texts"),
        ({"lon": [0], "lat": [0], "attributes": {"p": [math.inf]}}, "finite"),
        ({"lon": [0], "lat": [0], "labels": []}, "labels"),
        ({"lon": [0], "lat": [0], "layout": "rtree"}, "layout"),
    ],
    ids=range(8),
)
def test_what_cannot_be_built_is_refused(arguments, message):
    with pytest.raises((InputError, ValueError), match=message):
        SpatialKeywordIndex.build(**arguments)


def test_an_upsert_that_is_wrong_changes_nothing():
    index = made(10)
    with pytest.raises(InputError):
        index.upsert([0, 0], [0, 99], ids=[1, 2])
    with pytest.raises(InputError, match="twice"):
        index.upsert([0, 0], [0, 9], ids=[1, 1])
    with pytest.raises(InputError):
        index.upsert([0], [0], ids=[1], attributes={"colour": [1]})
    assert len(index) == 10
