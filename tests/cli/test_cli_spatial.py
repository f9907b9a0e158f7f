"""``shoal spatial``: from a file to answers, and what is said of wrong use."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

from shoal.cli import cli
from shoal.data.placegen import generate_places
from shoal.spatial import SpatialKeywordIndex

CSV = """\
id,name,lon,lat,tags,price
1,Café Engel,24.9521,60.1695,Fast Food|Cafe,2
2,Steak House,24.9400,60.1700,steak|pizza,4
3,Pizza One,24.9300,60.1800,pizza,
4,Pizza Two,25.9300,60.1800,pizza|cafe,1
"""


def run(*words: object, fails: int | None = None):
    result = CliRunner().invoke(cli, ["spatial", *map(str, words), "--json"])
    if fails is None:
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)
    assert result.exit_code == fails, result.output
    return json.loads(result.stderr)


def text(*words: object) -> str:
    result = CliRunner().invoke(cli, ["spatial", *map(str, words)])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("spatial") / "places.csv"
    path.write_text(CSV)
    return path


@pytest.fixture(scope="module")
def index(source: Path) -> Path:
    folder = source.parent / "index"
    made = run("build", source, folder, "--separator", "|", "--attribute", "price:1..4:neutral")
    assert (made["places"], made["dropped"], made["notes"]) == (4, {}, [])
    assert made["attributes"] == [{"name": "price", "low": 1.0, "high": 4.0, "missing": "neutral"}]
    return folder


def ids(*words: object) -> list[int]:
    return [answer["id"] for answer in run("query", *words)["answers"]]


def test_nearest_of_a_keyword(index: Path) -> None:
    found = run("query", index, "--at", "24.94,60.17", "--keywords", "pizza", "--explain")
    assert [answer["id"] for answer in found["answers"]] == [2, 3, 4]
    first = found["answers"][0]
    assert (first["label"], first["km"]) == ("Steak House", 0.0)
    assert first["parts"]["space"] == 1.0
    assert found["unknown_keywords"] == []
    assert ids(index, "--at", "24.94,60.17", "--keywords", "fast food") == [1]
    assert ids(index, "--at", "24.94,60.17", "--keywords", "FOOD", "--keywords", "fast") == [1]
    assert ids(index, "--at", "24.94,60.17", "--k", "1") == [2]


def test_options_of_a_query(index: Path, tmp_path: Path) -> None:
    at = (index, "--at", "24.94,60.17")
    assert ids(*at, "--keywords", "pizza cafe", "--match", "any", "--max-km", "10") == [2, 1, 3]
    assert ids(*at, "--keywords", "pizza", "--where", "price<=2") == [4]
    assert ids(*at, "--where", "price=1..2") == [1, 4]
    cheap = (*at, "--prefer", "price:min", "--weights", "attributes=1")
    assert ids(*cheap, "--k", "2") == [4, 1]
    assert ids(*at, "--keywords", "pizza", "--without", "cafe") == [2, 3]
    assert ids(*at, "--within", "24.92,60.175,24.94,60.19") == [3]
    area = tmp_path / "area.geojson"
    ring = [[24.92, 60.175], [24.94, 60.175], [24.94, 60.19], [24.92, 60.175]]
    ring[3:3] = [[24.92, 60.19]]
    area.write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    assert ids(*at, "--within", area) == [3]
    assert ids(*at, "--decay", "gauss:2", "--match", "ranked", "--keywords", "cafe") == [1, 4]


def test_what_a_person_sees(index: Path) -> None:
    shown = text("query", index, "--at", "24.94,60.17", "--keywords", "pizza", "--explain")
    head, first, *_ = shown.splitlines()
    assert head.split() == ["#", "id", "name", "km", "score", "space"]
    assert first.split() == ["1", "2", "Steak", "House", "0.000", "1.0000", "1.0000"]
    assert "no place has: sushi" in text("query", index, "--keywords", "sushi")
    why = text("query", index, "--at", "24.94,60.17", "--keywords", "pizza", "--why", "1")
    assert "1: not among the answers" in why
    assert "pizza" in why


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--at", "60.17"], "LON,LAT"),
        (["--at", "24.9,x"], "not a number"),
        (["--at", "60,124.9"], "out of range"),
        (["--where", "stars>3"], "no such attribute; the index has price"),
        (["--prefer", "price"], "NAME:min"),
        (["--weights", "distance=1"], "the parts are"),
        (["--decay", "linear"], "FORM:KM"),
        (["--k", "0"], "positive"),
        (["--within", "1,2,3"], "within"),
    ],
)
def test_wrong_queries_are_one_line(index: Path, words: list[str], said: str) -> None:
    problem = run("query", index, *words, fails=2)
    assert said in problem["message"] or said in (problem["hint"] or ""), problem


def test_building_refuses_and_replaces(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "made" / "index"
    run("build", source, folder)
    assert "holds an index already" in run("build", source, folder, fails=2)["message"]
    assert run("build", source, folder, "--force", "--layout", "packed")["places"] == 4
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("no index")
    for extra in ([], ["--force"]):
        assert "is no index" in run("build", source, other, *extra, fails=2)["message"]
    assert (other / "thesis.txt").read_text() == "no index"
    assert sorted(path.name for path in folder.parent.iterdir()) == ["index"]


def test_bad_rows_and_notes_are_said(tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(CSV + "5,Nowhere,nan,60,pizza,1\n")
    problem = run("build", path, tmp_path / "a", fails=2)
    assert "row 5" in problem["message"]
    assert not (tmp_path / "a").exists()
    made = run("build", path, tmp_path / "a", "--drop-bad-rows")
    assert made["dropped"] == {"position not finite": 1}

    swapped = pl.DataFrame({"lon": np.linspace(50, 53, 30), "lat": np.linspace(8, 12, 30)})
    swapped.with_columns(timezone=pl.lit("Europe/Berlin")).write_csv(tmp_path / "s.csv")
    result = CliRunner().invoke(
        cli, ["spatial", "build", str(tmp_path / "s.csv"), str(tmp_path / "s")]
    )
    assert result.exit_code == 0
    assert "warning: longitude and latitude look swapped" in result.stderr


@pytest.mark.parametrize("attribute", ["", ":1..2", "price:low..high", "price:1..2:some"])
def test_wrong_attributes(source: Path, tmp_path: Path, attribute: str) -> None:
    problem = run("build", source, tmp_path / "a", "--attribute", attribute, fails=2)
    assert "attribute" in problem["message"]


def test_interrupts_leave_nothing_half_made(source: Path, tmp_path: Path, monkeypatch) -> None:
    save = SpatialKeywordIndex.save

    def interrupted(self, folder):
        save(self, folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(SpatialKeywordIndex, "save", interrupted)
    words = ["spatial", "build", str(source), str(tmp_path / "index")]
    assert CliRunner().invoke(cli, words).exit_code == 130
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_index(tmp_path: Path, index: Path) -> None:
    assert run("query", tmp_path / "nothing", fails=4)["error"] == "NotFoundError"


def test_bench_checks_its_answers(tmp_path: Path) -> None:
    table = generate_places(2_000, seed=1)
    frame = pl.DataFrame(
        {
            "id": table.ids,
            "lon": table.lon,
            "lat": table.lat,
            "keywords": table.keyword_lists(),
            **table.attributes,
        }
    )
    frame.write_parquet(tmp_path / "p.parquet")
    run("build", tmp_path / "p.parquet", tmp_path / "i", "--attribute", "price")
    for form in (["--match", "all"], ["--match", "ranked", "--prefer", "price:min"]):
        report = run("bench", tmp_path / "i", "--queries", 30, "--check", 30, *form)
        assert report["checked"] == {"queries": 30, "wrong": 0}
        assert report["cpu_us"]["p50"] <= report["cpu_us"]["p99"]
    last = text("bench", tmp_path / "i", "--queries", 3).splitlines()[-1]
    assert json.loads(last)["queries"] == 3


def test_negative_control_bench_catches_wrong_answers(tmp_path: Path, monkeypatch) -> None:
    pl.DataFrame({"lon": [1.0, 2.0, 3.0], "lat": [1.0] * 3, "keywords": [["a"]] * 3}).write_parquet(
        tmp_path / "p.parquet"
    )
    run("build", tmp_path / "p.parquet", tmp_path / "i")
    ask = SpatialKeywordIndex.ask

    def wrong(self, query):
        top = ask(self, query)
        top.kms[-1] += 0.5
        return top

    monkeypatch.setattr(SpatialKeywordIndex, "ask", wrong)
    result = CliRunner().invoke(cli, ["spatial", "bench", str(tmp_path / "i"), "--queries", "2"])
    assert result.exit_code == 1
    assert "differ from the full scan" in result.stderr
