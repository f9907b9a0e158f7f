"""The web route of place search: answers, refusals that name the field, and ids of both kinds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from litestar import Litestar
from litestar.testing import TestClient

from shoal.core.errors import InputError, NotFoundError
from shoal.data.checkins import CheckinLog
from shoal.spatial import SpatialKeywordIndex
from shoal.spatial.config import SpatialKeywordIndexConfig
from shoal.tasks.place_search import MAX_RESULTS, PlaceSearch, create_app

Client = TestClient[Litestar]

PLACES: dict[str, Any] = {
    "lon": [24.94, 24.95, 25.20, 24.80],
    "lat": [60.17, 60.18, 60.25, 60.20],
    "keywords": ["pizza harbour", "pizza steak", "steak", "museum"],
    "attributes": {"price": [3.0, 1.0, 2.0, np.nan], "rating": [4.0, 5.0, 3.0, 1.0]},
    "labels": ["Marina", "Grill & <Co>", None, "Ateneum"],
}
HERE = {"lon": "24.94", "lat": "60.17"}


@pytest.fixture(scope="module")
def index() -> SpatialKeywordIndex:
    return SpatialKeywordIndex.build(**PLACES, ids=[10, -7, 30, 2**62])


@pytest.fixture(scope="module")
def client(index: SpatialKeywordIndex) -> Iterator[Client]:
    with TestClient(create_app(index, title="test places")) as client:
        yield client


@pytest.fixture(scope="module")
def text_client() -> Iterator[Client]:
    index = SpatialKeywordIndex.build(**PLACES, ids=["a", "b/ü", "-3", " "])
    with TestClient(create_app(index)) as client:
        yield client


def ask(client: Client, path: str = "/search", **params: Any) -> dict[str, Any]:
    answer = client.get(path, params=params)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("application/json")
    found: dict[str, Any] = answer.json()
    return found


def ids(found: dict[str, Any]) -> list[Any]:
    return [result["id"] for result in found["results"]]


# -- answers --------------------------------------------------------------------------------


def test_the_nearest_with_a_word(client: Client, index: SpatialKeywordIndex) -> None:
    found = ask(client, q="steak", **HERE)
    top = index.query((24.94, 60.17), "steak")
    assert ids(found) == list(top.ids) == [-7, 30]
    first = found["results"][0]
    assert first == {
        "rank": 1,
        "id": -7,
        "label": "Grill & <Co>",
        "lon": 24.95,
        "lat": 60.18,
        "score": top.scores[0],
        "km": top.kms[0],
    }
    assert found["results"][1]["label"] is None
    assert found["unknown_keywords"] == []
    assert found["scored"] >= 2
    assert found["took_ms"] >= 0


def test_a_point_is_written_in_two_ways(client: Client) -> None:
    one, other = ask(client, point="24.94,60.17"), ask(client, **HERE)
    assert one["results"] == other["results"]


def test_every_option_reaches_the_engine(client: Client) -> None:
    assert ids(ask(client, k="1", **HERE)) == [10]
    assert ids(ask(client, q="pizza steak", match="all")) == [-7]
    assert ids(ask(client, q="pizza nothing", match="all")) == []
    assert ask(client, q="pizza nothing", match="all")["unknown_keywords"] == ["nothing"]
    assert ids(ask(client, keywords=["pizza", "steak"])) == [-7]
    assert ids(ask(client, prefer="price:min"))[0] == -7
    assert ids(ask(client, prefer=["price:max", "rating:max*0"]))[0] == 10
    assert ids(ask(client, where=["price>1", "rating>=4"])) == [10]
    assert ids(ask(client, within="25.0,60.0,26.0,61.0")) == [30]
    assert ids(ask(client, max_km="0.5", **HERE)) == [10]
    assert set(ids(ask(client, without="pizza"))) == {30, 2**62}
    weighed = ask(client, weights="space=1,attributes=3", prefer="rating:max", explain="1", **HERE)
    assert set(weighed["results"][0]["parts"]) == {"space", "attributes"}


def test_parts_add_up_to_the_score(client: Client) -> None:
    found = ask(client, q="pizza", match="ranked", prefer="price:min", explain="yes", **HERE)
    for result in found["results"]:
        assert np.mean(list(result["parts"].values())) == pytest.approx(result["score"])
    assert "parts" not in ask(client, explain="0")["results"][0]


def test_answers_as_geojson(client: Client) -> None:
    wanted = {"accept": "application/geo+json"}
    answer = client.get("/search", params={"q": "steak", **HERE}, headers=wanted)
    assert answer.headers["content-type"].startswith("application/geo+json")
    found = json.loads(answer.content)
    assert found["type"] == "FeatureCollection"
    first = found["features"][0]
    assert first["id"] == -7
    assert first["geometry"] == {"type": "Point", "coordinates": [24.95, 60.18]}
    assert first["properties"]["label"] == "Grill & <Co>"
    assert {"rank", "score", "km"} <= set(first["properties"])


def test_about(client: Client) -> None:
    assert ask(client, "/about") == {
        "title": "test places",
        "places": 4,
        "layout": "packed",
        "attributes": [
            {"name": "price", "low": 1.0, "high": 3.0, "missing": "worst"},
            {"name": "rating", "low": 1.0, "high": 5.0, "missing": "worst"},
        ],
        "bounds": [24.8, 60.17, 25.2, 60.25],
        "time_slots": None,
        "users": False,
        "max_results": MAX_RESULTS,
    }


# -- why, and why not -----------------------------------------------------------------------


def test_explain_an_answer_and_one_that_is_none(client: Client) -> None:
    found = ask(client, "/explain", id="-7", q="steak", **HERE)
    assert (found["rank"], found["label"], found["reasons"]) == (1, "Grill & <Co>", [])
    missed = ask(client, "/explain", id="10", q="steak", **HERE)
    assert missed["rank"] is None
    assert any("steak" in reason for reason in missed["reasons"])


@pytest.mark.parametrize(
    "name", ["5", "abc", "--7", "1e3", "²", "9" * 19, "9" * 5000, "-", "", "é", "\x00"]
)
def test_there_is_no_such_place(client: Client, text_client: Client, name: str) -> None:
    for one in (client, text_client):
        answer = one.get("/explain", params={"id": name, "q": "steak"})
        assert answer.status_code == 404
        assert answer.headers["content-type"].startswith("application/problem+json")
        assert "no such place" in answer.json()["detail"]


def test_ids_that_are_texts(text_client: Client) -> None:
    assert ids(ask(text_client, q="steak", **HERE)) == ["b/ü", "-3"]
    for name in ("b/ü", "-3", " "):
        assert ask(text_client, "/explain", id=name)["id"] == name


def test_the_largest_id_survives_json(client: Client) -> None:
    answer = client.get("/search", params={"q": "museum"})
    assert json.loads(answer.content)["results"][0]["id"] == 2**62


# -- refusals -------------------------------------------------------------------------------

DEEP = '{"type":"Feature","geometry":' * 300
WRONG = [
    ({"k": "0"}, "k"),
    ({"k": "-1"}, "k"),
    ({"k": "1.5"}, "k"),
    ({"k": "nan"}, "k"),
    ({"k": "inf"}, "k"),
    ({"k": "many"}, "k"),
    ({"k": "9" * 5000}, "k"),
    ({"k": str(MAX_RESULTS + 1)}, "k"),
    ({"lon": "24.9"}, "lat"),
    ({"lat": "60"}, "lon"),
    ({"lon": "", "lat": "60"}, "lon"),
    ({"lon": "east", "lat": "60"}, "point"),
    ({"lon": "60.17", "lat": "124.94"}, "point"),
    ({"lon": "nan", "lat": "1"}, "point"),
    ({"lon": "1e400", "lat": "1"}, "point"),
    ({"lon": ["1", "2"], "lat": "1"}, "lon"),
    ({"point": "1"}, "point"),
    ({"point": "1,2,3"}, "point"),
    ({"point": "1,2", "lon": "1", "lat": "2"}, "point"),
    ({"colour": "red"}, "colour"),
    ({"match": "most"}, "match"),
    ({"q": "a", "keywords": "b"}, "q"),
    ({"q": ["a", "b"]}, "q"),
    ({"q": "a" * 10_001}, "keywords"),
    ({"keywords": ["a", "b" * 10_001]}, "keywords"),
    ({"q": " ".join(map(str, range(1500)))}, "keywords"),
    ({"without": "a" * 10_001}, "without"),
    ({"text": "short"}, "text"),
    ({"prefer": "price"}, "prefer"),
    ({"prefer": "colour:min"}, "prefer"),
    ({"prefer": "price:low"}, "prefer.price"),
    ({"prefer": "price:min*x"}, "prefer.price"),
    ({"prefer": "price:min*-1"}, "prefer.price"),
    ({"prefer": "price:min*0"}, "prefer"),
    ({"where": "price"}, "where"),
    ({"where": "<1"}, "where"),
    ({"where": "a" + " " * 9000 + "b"}, "where"),
    ({"where": "colour<1"}, "where"),
    ({"where": "price<cheap"}, "where.price"),
    ({"where": "price=1..x"}, "where.price"),
    ({"where": "price=1|x"}, "where.price"),
    ({"where": "price!=nan"}, "where.price"),
    ({"weights": "space=1"}, "point"),
    ({"weights": "size=1"}, "weights"),
    ({"weights": "text=x"}, "weights.text"),
    ({"weights": "text=-1"}, "weights.text"),
    ({"weights": "text=inf"}, "weights.text"),
    ({"weights": "text=0"}, "weights"),
    ({"weights": "attributes=1"}, "weights"),
    ({"weights": "time=1"}, "at"),
    ({"weights": "social=1"}, "user"),
    ({"decay": "linear"}, "decay"),
    ({"decay": "linear:0"}, "decay"),
    ({"decay": "linear:-3"}, "decay"),
    ({"decay": "linear:inf"}, "decay"),
    ({"decay": "steep:3"}, "decay"),
    ({"within": "1"}, "within"),
    ({"within": "1,2,3,north"}, "within"),
    ({"within": "1,5,3,4"}, "within"),
    ({"within": "-500,1,2,3"}, "within"),
    ({"within": "POINT(1 1)"}, "within"),
    ({"within": "POLYGON((0 0,1 1,0 1,1 0,0 0))"}, "within"),
    ({"within": "{}"}, "within"),
    ({"within": '{"type":5}'}, "within"),
    ({"within": '{"type":"Feature","geometry":"x"}'}, "within"),
    ({"within": '{"type":"Feature","geometry":[1]}'}, "within"),
    ({"within": '{"type":"FeatureCollection","features":5}'}, "within"),
    ({"within": '{"type":"FeatureCollection","features":[5]}'}, "within"),
    ({"within": '{"type":"Polygon","coordinates":[[[0,0],[1,1],[1,0]]]}'}, "within"),
    ({"within": '{"a":' * 1990}, "within"),
    ({"within": DEEP + "{}" + "}" * 300}, "within"),
    ({"max_km": "1"}, "max_km"),
    ({"max_km": "far", **HERE}, "max_km"),
    ({"max_km": "0", **HERE}, "max_km"),
    ({"user": "5"}, "user"),
    ({"user": "--5"}, "user"),
    ({"user": "9" * 5000}, "user"),
    ({"at": "5"}, "at"),
    ({"at": "9" * 5000}, "at"),
    ({"at": "noon"}, "at"),
    ({"at": "2026-05-01T19:30"}, "at"),
    ({"social": "all"}, "social"),
    ({"id": "10"}, "id"),
]


@pytest.mark.parametrize(
    ("params", "field"), WRONG, ids=[f"{i}-{field}" for i, (_, field) in enumerate(WRONG)]
)
def test_a_wrong_parameter_is_named(client: Client, params: dict[str, Any], field: str) -> None:
    for path in ("/search", "/explain"):
        more = {"id": "10"} if path == "/explain" else {}
        if more and "id" in params:
            continue
        answer = client.get(path, params={**params, **more})
        assert answer.status_code == 400, answer.text
        assert answer.headers["content-type"].startswith("application/problem+json")
        body = answer.json()
        assert body["status"] == 400
        assert body["field"] == field
        assert body["detail"]


def test_negative_control_right_parameters_are_answered(client: Client) -> None:
    blank = dict.fromkeys(("q", "lon", "lat", "point", "k", "prefer", "where", "weights"), "")
    assert len(ask(client, **blank)["results"]) == 4
    assert len(ask(client, k=str(MAX_RESULTS), max_km="inf", **HERE)["results"]) == 4


def test_explain_needs_an_id(client: Client) -> None:
    answer = client.get("/explain", params={"q": "steak"})
    assert (answer.status_code, answer.json()["field"]) == (400, "id")


@pytest.mark.parametrize("raw", [b"q=%00", b"q=%ff%fe", b"q=%ED%A0%80", b"q", b"&&", b"=", b"%"])
def test_odd_bytes_are_no_defect(client: Client, raw: bytes) -> None:
    answer = client.get("/search?" + raw.decode())
    assert answer.status_code in {200, 400}


def test_an_unknown_address_is_a_problem_document(client: Client) -> None:
    for answer, status in ((client.get("/nowhere"), 404), (client.post("/search"), 405)):
        assert answer.status_code == status
        assert answer.headers["content-type"].startswith("application/problem+json")
        assert answer.json()["status"] == status


# -- times and users ---------------------------------------------------------------------------


@pytest.mark.parametrize("users", [[5, 7, 5], ["5", "bob", "5"]], ids=["numbers", "texts"])
def test_times_and_users(users: list[Any]) -> None:
    log = CheckinLog(users, [1, 1, 0], [19, 19, 3], slots=24)
    index = SpatialKeywordIndex.build(
        **PLACES, checkins=log, config=SpatialKeywordIndexConfig(time_slots=24, min_visitors=1)
    )
    with TestClient(create_app(index)) as client:
        about = ask(client, "/about")
        assert (about["time_slots"], about["users"]) == (24, True)
        busy = ask(client, at="19", weights="time=1", explain="1")
        assert busy["results"][0]["id"] == 1
        times = {result["id"]: result["parts"]["time"] for result in busy["results"]}
        assert times[0] < times[1] == 1.0
        assert len(ask(client, at="2026-05-01T19:30+03:00")["results"]) == 4
        assert ask(client, user="5", weights="social=1")["neutral_user"] is True  # no relations
        for params, field in (
            ({"at": "24"}, "at"),
            ({"at": "2026-05-01T19:30"}, "at"),
            ({"user": "5", "social": "x"}, "social"),
        ):
            answer = client.get("/search", params=params)
            assert (answer.status_code, answer.json()["field"]) == (400, field)


# -- an index that changes, or has nothing -----------------------------------------------------


@pytest.mark.parametrize("given", [[], None])
def test_an_empty_index_answers(given: Any) -> None:
    index = SpatialKeywordIndex.build([], [], ids=given, attributes={"price": []})
    with TestClient(create_app(index)) as client:
        assert ask(client, q="pizza", **HERE)["results"] == []
        about = ask(client, "/about")
        assert (about["places"], about["bounds"]) == (0, None)
        assert client.get("/explain", params={"id": "1"}).status_code == 404


def test_changes_are_seen() -> None:
    index = SpatialKeywordIndex.build(**PLACES)
    service = PlaceSearch(index, "changing")
    assert service.about()["places"] == len(service.backdrop()) == 4
    index.upsert([10.0], [50.0], ids=[99], keywords=["pizza"], labels=["New"])
    index.delete([0])
    found = service.search({"q": "pizza", "point": "10,50"})
    assert [(r["id"], r["label"]) for r in found["results"]] == [(99, "New"), (1, "Grill & <Co>")]
    with pytest.raises(NotFoundError):
        service.explain({}, "0")


def test_the_backdrop_is_a_sample_that_is_made_anew() -> None:
    rng = np.random.default_rng(1)
    index = SpatialKeywordIndex.build(rng.uniform(-180, 180, 1000), rng.uniform(-80, 80, 1000))
    service = PlaceSearch(index)
    first = service.backdrop(most=100)
    assert first.shape == (100, 2)
    assert service.backdrop(most=100) is first
    index.delete(list(range(500)))
    assert service.backdrop(most=100) is not first


def test_text_options_without_the_web(index: SpatialKeywordIndex) -> None:
    with pytest.raises(InputError) as caught:
        PlaceSearch(index).read({"k": 501})
    assert caught.value.field == "k"
