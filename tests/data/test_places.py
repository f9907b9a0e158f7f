"""Places from every format, and what is said of files that cannot be used."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import zipfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core.errors import InputError, NotFoundError
from shoal.data.geonames import make_sample, read_geonames, sample_frame
from shoal.data.places import load_places_sample, read_places

CSV = """\
id,name,lon,lat,tags,price,timezone
7,Café Engel,24.9521,60.1695,cafe|breakfast,2.5,Europe/Helsinki
9,Steak_House,24.94,60.17,steak|pizza,,Europe/Helsinki
"""


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def csv_of(rows: list[str], head: str = "id,lon,lat,keywords") -> str:
    return "\n".join([head, *rows]) + "\n"


def packed(content: bytes, suffix: str) -> bytes:
    if suffix == ".gz":
        return gzip.compress(content)
    if suffix == ".bz2":
        return bz2.compress(content)
    if suffix == ".xz":
        return lzma.compress(content)
    if suffix == ".zst":
        zstd = pytest.importorskip("backports.zstd", reason="needs backports.zstd")
        return bytes(zstd.compress(content))
    if suffix == ".zip":
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("readme.txt", "x" * 10_000)
            archive.writestr("places.csv", content)
        return stream.getvalue()
    return content


@pytest.mark.parametrize("suffix", ["", ".gz", ".bz2", ".xz", ".zst", ".zip"])
def test_csv_plain_and_packed(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"p.csv{suffix}", packed(CSV.encode(), suffix))
    table = read_places(path, attributes=["price"], separator="|")
    assert table.ids.tolist() == [7, 9]
    assert table.lon.tolist() == [24.9521, 24.94]
    assert table.lat.tolist() == [60.1695, 60.17]
    assert table.keyword_lists() == [["cafe", "breakfast"], ["steak", "pizza"]]
    assert table.attributes["price"][0] == 2.5
    assert np.isnan(table.attributes["price"][1])
    assert table.names == ["Café Engel", "Steak_House"]
    assert table.timezone == ["Europe/Helsinki"] * 2
    assert (table.dropped, table.notes) == ({}, ())


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_delimiters_are_seen(tmp_path: Path, delimiter: str) -> None:
    text = "\ufeff" + "id,LNG,Latitude,name\n1,2.5,48,a b\n".replace(",", delimiter)
    table = read_places(write(tmp_path / "p.csv", text))
    assert (table.lon[0], table.lat[0], table.words(0)) == (2.5, 48.0, ["a", "b"])


def test_named_columns_and_several_of_keywords(tmp_path: Path) -> None:
    text = "ref,east,north,title,kind,stars\nA1,2,48,Le Bon,Bistro bon,4\n,3,49,x,y,5\n"
    path = write(tmp_path / "p.csv", text)
    table = read_places(
        path,
        lon="east",
        lat="north",
        id="ref",
        name="title",
        keywords=["title", "kind"],
        attributes={"quality": "stars"},
        on_bad_row="drop",
    )
    assert table.ids == ["A1"]
    assert table.words(0) == ["le", "bon", "bistro"]
    assert table.attributes["quality"].tolist() == [4.0]
    assert table.dropped == {"no id": 1}
    assert read_places(path, lon="east", lat="north").ids.tolist() == [0, 1]


def test_keywords_of_several_words_are_split_on_request(tmp_path: Path) -> None:
    path = write(tmp_path / "p.csv", csv_of(["1,2,48,Fast Food|Bar", "2,2,48,", "3,2,48,bar"]))
    table = read_places(path, separator="|")
    assert table.keyword_lists() == [["Fast Food", "Bar"], [], ["bar"]]
    assert table.split_keywords().keyword_lists() == [["fast", "food", "bar"], [], ["bar"]]
    whole = read_places(write(path, csv_of(["3,2,48,bar"])))
    assert whole.split_keywords() is whole


def test_ids_keep_their_leading_zeros(tmp_path: Path) -> None:
    path = write(tmp_path / "p.csv", csv_of(["007,2,48,a", "12,2,48,a"]))
    assert read_places(path).ids == ["007", "12"]


def test_parquet_lists_records_and_geometry(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {
            "id": ["a", "b"],
            "names": [{"primary": "Eins"}, {"primary": "Zwei"}],
            "categories": [["bar", None, "pub"], None],
            "stars": [4, None],
        }
    )
    positions = frame.with_columns(longitude=pl.Series([7.5, 8.0]), latitude=pl.Series([47.0, 46]))
    positions.write_parquet(tmp_path / "p.parquet")
    table = read_places(tmp_path / "p.parquet", attributes=["stars"])
    assert table.keyword_lists() == [["bar", "pub"], []]
    assert table.names == ["Eins", "Zwei"]
    assert table.attributes["stars"][0] == 4.0
    assert np.isnan(table.attributes["stars"][1])

    shapes = [shapely.to_wkb(shapely.Point(7.5, 47)), shapely.to_wkb(shapely.box(7, 45, 9, 47))]
    frame.with_columns(geometry=pl.Series(shapes)).write_parquet(tmp_path / "g.parquet")
    assert read_places(tmp_path / "g.parquet").lat.tolist() == [47.0, 46.0]


def feature(geometry: object, **properties: object) -> dict[str, object]:
    return {"type": "Feature", "id": properties.pop("fid", 1), "geometry": geometry,
            "properties": properties}  # fmt: skip


def test_geojson_in_its_forms(tmp_path: Path) -> None:
    square = [[[0, 0], [2, 0], [2, 2], [0, 2], [0, 0]]]
    features = [
        feature({"type": "Point", "coordinates": [2.5, 48, 31]}, fid="n1", tags=["bar"], price=3),
        feature({"type": "Polygon", "coordinates": square}, fid="w2", tags=["park", "green"]),
    ]
    whole = json.dumps({"type": "FeatureCollection", "features": features})
    lines = "\n".join(map(json.dumps, features))
    sequence = "".join(f"\x1e{json.dumps(item)}\n" for item in features)
    for name, text in {
        "a.geojson": whole,
        "b.json": json.dumps(features),
        "c.geojsonl": lines,
        "d.ndjson": lines,
        "e.geojsons": sequence,
    }.items():
        table = read_places(write(tmp_path / name, text), attributes=["price"])
        assert table.ids == ["n1", "w2"], name
        assert table.lon.tolist() == [2.5, 1.0]
        assert table.lat.tolist() == [48.0, 1.0]
        assert table.keyword_lists() == [["bar"], ["park", "green"]]
        assert table.attributes["price"][0] == 3.0
    one = read_places(write(tmp_path / "f.geojson", json.dumps(features[0])))
    assert len(one) == 1


def test_geojson_that_cannot_be_used(tmp_path: Path) -> None:
    def read(text: str, **options: object):
        return read_places(write(tmp_path / "x.geojson", text), **options)

    point = feature({"type": "Point", "coordinates": [2.5, 48]})
    empty = feature(None, fid=2)
    with pytest.raises(InputError, match="no usable geometry") as failed:
        read(json.dumps({"type": "FeatureCollection", "features": [point, empty]}))
    assert failed.value.row == 2
    both = json.dumps({"type": "FeatureCollection", "features": [point, empty]})
    assert read(both, on_bad_row="drop").dropped == {"no usable geometry": 1}
    with pytest.raises(InputError, match="no places"):
        read('{"type": "FeatureCollection", "features": []}')
    with pytest.raises(InputError, match="not a GeoJSON feature"):
        read('{"type": "Topology"}')
    with pytest.raises(InputError, match="JSON"):
        read(both[:-20])
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::3857"}}
    with pytest.raises(InputError, match="WGS 84"):
        read(json.dumps({"type": "FeatureCollection", "crs": crs, "features": [point]}))


def test_json_lines_of_records(tmp_path: Path) -> None:
    rows = [
        {"business_id": "x", "longitude": -71.05, "latitude": 42.3, "categories": ["Bar"],
         "attributes": {"Price Range": 2}},
        {"business_id": "y", "longitude": -71.06, "latitude": 42.4, "categories": []},
    ]  # fmt: skip
    path = write(tmp_path / "b.jsonl", "\n".join(map(json.dumps, rows)))
    table = read_places(path, attributes={"price": "attributes.Price Range"})
    assert table.ids == ["x", "y"]
    assert table.keyword_lists() == [["Bar"], []]
    assert table.attributes["price"][0] == 2.0
    with pytest.raises(InputError, match=r"row 2.*not JSON"):
        read_places(write(path, path.read_bytes()[:-5]))


def geonames_row(number: int, lat: str = "60.2", lon: str = "24.9") -> str:
    names = [str(number), "Hélsinki", "Helsinki", 'Stadi,"Хельсинки']
    codes = ["P", "PPLC", "FI", "", "01", "", "", "", "558457", "", "26"]
    return "\t".join([*names, lat, lon, *codes, "Europe/Helsinki", "2019-01-01"])


@pytest.mark.parametrize("name", ["FI.txt", "FI.txt.xz", "FI.zip"])
def test_geonames_dumps(tmp_path: Path, name: str) -> None:
    rows = f"{geonames_row(1)}\n{geonames_row(2).replace('26	Eu', '-9999	Eu')}\n"
    content = rows.encode()
    if name.endswith(".zip"):
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("FI.txt", content)
        content = stream.getvalue()
    elif name.endswith(".xz"):
        content = lzma.compress(content)
    path = write(tmp_path / name, content)
    table = read_places(path, format=None if ".txt" in name else "geonames")
    assert table.ids.tolist() == [1, 2]
    assert table.words(0) == ["hélsinki", "helsinki", "stadi", "хельсинки"]
    assert table.attributes["population"].tolist() == [558457.0] * 2
    assert table.attributes["elevation"][0] == 26.0
    assert np.isnan(table.attributes["elevation"][1])
    assert table.timezone == ["Europe/Helsinki"] * 2
    assert table.category == ["PPLC"] * 2
    assert list(read_geonames(path, attributes={"people": "population"}).attributes) == ["people"]


def test_geonames_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="19 columns"):
        read_geonames(write(tmp_path / "a.txt", "1\t2\n"))
    bad = write(tmp_path / "b.txt", f"{geonames_row(1)}\n{geonames_row(2, lat='north')}\n")
    with pytest.raises(InputError, match="north") as failed:
        read_geonames(bad)
    assert failed.value.row == 2
    assert read_geonames(bad, on_bad_row="drop").dropped == {"position is no number": 1}
    with pytest.raises(InputError, match="population, elevation"):
        read_geonames(bad, attributes=["people"])


OSM = """<?xml version="1.0"?><osm version="0.6">
<node id="1" lat="60.0" lon="24.0" version="1"><tag k="amenity" v="fast_food"/>
  <tag k="name" v="Pizza One"/><tag k="capacity" v="40"/></node>
<node id="2" lat="60.0" lon="24.0" version="1"/><node id="3" lat="60.0" lon="24.2" version="1"/>
<node id="4" lat="60.2" lon="24.2" version="1"/><node id="5" lat="60.2" lon="24.0" version="1"/>
<node id="6" lat="60.2" lon="24.0" version="1"><tag k="highway" v="stop"/></node>
<way id="9" version="1"><nd ref="2"/><nd ref="3"/><nd ref="4"/><nd ref="5"/><nd ref="2"/>
  <tag k="shop" v="mall"/><tag k="capacity" v="many"/></way>
<way id="10" version="1"><nd ref="2"/><nd ref="3"/><tag k="tourism" v="attraction"/></way>
<way id="11" version="1"><nd ref="2"/><nd ref="77"/><tag k="tourism" v="attraction"/></way>
</osm>"""


def test_openstreetmap(tmp_path: Path) -> None:
    pytest.importorskip("osmium", reason="needs osmium")
    table = read_places(write(tmp_path / "a.osm", OSM), attributes=["capacity"])
    places = zip(table.lon, table.lat, table.keyword_lists(), strict=True)
    rows = dict(zip(table.ids, places, strict=True))
    assert sorted(rows) == ["n1", "w10", "w9"]
    assert rows["n1"] == (24.0, 60.0, ["fast", "food", "pizza", "one"])
    assert rows["w9"][:2] == (pytest.approx(24.1), pytest.approx(60.1))
    assert rows["w10"][:2] == (pytest.approx(24.1), pytest.approx(60.0))
    assert table.category == ["fast_food", "mall", "attraction"]
    assert table.attributes["capacity"][0] == 40.0
    assert np.isnan(table.attributes["capacity"][1])
    assert table.dropped == {"nodes outside of the extract": 1}
    with pytest.raises(InputError, match="not a readable OpenStreetMap file"):
        read_places(write(tmp_path / "b.osm", OSM[:300]))
    with pytest.raises(InputError, match="no object"):
        read_places(write(tmp_path / "c.osm", '<osm version="0.6"></osm>'))
    with pytest.raises(InputError, match="not a readable"):
        read_places(write(tmp_path / "d.osm.pbf", b"no protobuf at all"))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("2,,48,x", "position missing"),
        ("2,nan,48,x", "not finite"),
        ("2,inf,48,x", "not finite"),
        ("2,180.5,48,x", "out of range"),
        ("2,2,-90.01,x", "out of range"),
        ("2,east,48,x", "no number"),
        (",2,48,x", "no id"),
        ("1,2,48,x", "duplicate id"),
    ],
)
def test_bad_rows_are_named_or_dropped_and_counted(tmp_path: Path, row: str, reason: str) -> None:
    path = write(tmp_path / "p.csv", csv_of(["1,2,48,a", row, "3,3,48,b"]))
    with pytest.raises(InputError, match=rf"p\.csv, row 2.*{reason}") as failed:
        read_places(path)
    assert failed.value.row == 2
    table = read_places(path, on_bad_row="drop")
    assert len(table) == 2
    assert table.ids.tolist() == [1, 3]
    assert table.keyword_lists() == [["a"], ["b"]]
    ((said, count),) = table.dropped.items()
    assert reason in said
    assert count == 1


def test_hints_for_usual_mistakes(tmp_path: Path) -> None:
    def hint(text: str, **options: object) -> str:
        with pytest.raises(InputError) as failed:
            read_places(write(tmp_path / "p.csv", text), **options)
        return failed.value.hint or ""

    assert "decimal comma" in hint('id;lon;lat\n1;"2,5";48\n')
    assert "decimal degrees" in hint("id,lon,lat\n1,2°30'E,48\n")
    assert "cut short" in hint("id,lon,lat\n1,2,48\n2,3,48\n3,4")
    assert "swapped" in hint(csv_of(["1,48,-120,a", "2,40,-110,b"]))
    assert "encoding" in hint("id,lon,lat,name\n1,2,48,Café\n2,2,48,b\n".encode("latin-1"))
    assert "utf-16" in hint("id,lon,lat\n1,2,48\n".encode("utf-16"))
    assert "attributes" not in hint("id,lon,lat,p\n1,2,48,cheap\n", attributes=["p"])


def test_columns_that_are_missing_or_unclear(tmp_path: Path) -> None:
    def message(head: str, **options: str) -> str:
        with pytest.raises(InputError) as failed:
            read_places(write(tmp_path / "p.csv", f"{head}\n1,2,3\n"), **options)
        return failed.value.message

    assert "there are a, b, c" in message("a,b,c")
    assert "lng, lon" in message("lng,lon,lat")
    assert "no column 'east'" in message("a,lon,lat", lon="east")
    assert "place_id, poi_id" in message("place_id,poi_id,lat", lon="place_id")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.csv", b"", "empty"),
        ("a.csv", b"\n\n", "empty"),
        ("a.csv", b"id,lon,lat\n", "no row"),
        ("a.csv", b'id,lon,lat\n1,"2,48\n2,3,48\n', "readable table|missing|number"),
        ("a.csv", b"id,lon,lat\n1,2,48,9,9\n", "readable table"),
        ("a.csv.gz", gzip.compress(CSV.encode())[:-12], "cut short"),
        ("a.csv.xz", lzma.compress(CSV.encode())[:-12], "cut short"),
        ("a.csv.bz2", bz2.compress(CSV.encode())[:-12], "cut short"),
        ("a.csv.gz", b"plain text", "not a readable .gz"),
        ("a.csv.zip", b"plain text", "not a readable .zip"),
        ("a.parquet", b"PAR1 and no more", "Parquet"),
        ("a.geojson", b"{", "JSON"),
        ("a.xyz", b"1", "format"),
    ],
    ids=range(13),
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as failed:
        read_places(write(tmp_path / name, content))
    assert name in failed.value.message or failed.value.field


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="not there"):
        read_places(tmp_path / "none.csv")
    with pytest.raises(NotFoundError, match="folder"):
        read_places(tmp_path)
    path = write(tmp_path / "a.csv", CSV)
    with pytest.raises(InputError, match="no such format"):
        read_places(path, format="excel")
    with pytest.raises(InputError, match="no such encoding"):
        read_places(path, encoding="klingon")
    with pytest.raises(InputError, match="on_bad_row"):
        read_places(path, on_bad_row="ignore")


def test_a_file_whose_rows_all_fail(tmp_path: Path) -> None:
    path = write(tmp_path / "p.csv", csv_of(["1,x,48,a", "2,y,48,b"]))
    with pytest.raises(InputError, match="no row can be used: position is no number 2"):
        read_places(path, on_bad_row="drop")


def cities(country: str) -> pl.DataFrame:
    frame = sample_frame().filter(pl.col("country") == country)
    return frame.select("id", lon="lat", lat="lon", country="country", timezone="timezone")


@pytest.mark.parametrize(
    "kept", [["timezone"], ["country"], []], ids=["timezone", "country", "none"]
)
@pytest.mark.parametrize("country", ["GB", "DE", "BR"])
def test_swapped_columns_in_range_are_said(tmp_path: Path, country: str, kept: list[str]) -> None:
    swapped = cities(country).select("id", "lon", "lat", *kept)
    swapped.write_csv(tmp_path / "swapped.csv")
    table = read_places(tmp_path / "swapped.csv")
    assert len(table.notes) == 1
    assert "swapped" in table.notes[0]
    right = swapped.rename({"lon": "lat", "lat": "lon"})
    right.write_csv(tmp_path / "right.csv")
    assert read_places(tmp_path / "right.csv").notes == ()


def test_dropping_does_not_hide_swapped_columns(tmp_path: Path) -> None:
    cities("US").select("id", "lon", "lat").write_csv(tmp_path / "us.csv")
    with pytest.raises(InputError, match="swapped"):
        read_places(tmp_path / "us.csv", on_bad_row="drop")


def test_negative_control_real_places_are_never_called_swapped() -> None:
    from shoal.data.plausible import swap_note

    table = load_places_sample()
    frame = sample_frame()
    for country in frame["country"].unique().to_list():
        rows = (frame["country"] == country).to_numpy()
        zones = [zone for zone, kept in zip(table.timezone, rows, strict=True) if kept]
        assert swap_note(table.lon[rows], table.lat[rows]) is None, country
        assert swap_note(table.lon[rows], table.lat[rows], timezone=zones) is None, country


def test_sample_is_what_make_sample_cuts(tmp_path: Path) -> None:
    table = load_places_sample()
    assert len(table) == 4000
    assert "helsinki" in table.words(table.ids.tolist().index(658225))
    assert len(set(table.timezone)) > 200
    rows = "\n".join(geonames_row(i).replace("558457", str(i * 10)) for i in range(1, 6))
    make_sample(write(tmp_path / "d.txt", rows + "\n"), tmp_path / "cut.parquet", places=2, names=1)
    cut = pl.read_parquet(tmp_path / "cut.parquet")
    assert cut["id"].to_list() == [4, 5]
    assert cut["alternates"].to_list() == ["Stadi"] * 2
    assert cut.schema == sample_frame().schema


coordinates = st.tuples(
    st.floats(-180, 180).map(lambda value: round(value, 7)),
    st.floats(-90, 90).map(lambda value: round(value, 7)),
)
words = st.lists(st.text("abcäß日", min_size=1, max_size=4), max_size=3, unique=True)


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.tuples(coordinates, words), min_size=1, max_size=8))
def test_every_format_gives_the_same_places(rows, tmp_path_factory) -> None:
    folder = tmp_path_factory.mktemp("formats")
    ids = [f"p{i}" for i in range(len(rows))]
    lon = [where[0] for where, _ in rows]
    lat = [where[1] for where, _ in rows]
    lists = [found for _, found in rows]
    frame = pl.DataFrame({"id": ids, "lon": lon, "lat": lat})
    joined = frame.with_columns(keywords=pl.Series(["|".join(found) for found in lists]))
    joined.write_csv(folder / "a.csv")
    joined.write_csv(folder / "a.tsv", separator="\t")
    frame.with_columns(keywords=pl.Series(lists, dtype=pl.List(pl.String))).write_parquet(
        folder / "a.parquet"
    )
    features = [
        feature({"type": "Point", "coordinates": [x, y]}, fid=i, keywords=found)
        for i, x, y, found in zip(ids, lon, lat, lists, strict=True)
    ]
    whole = {"type": "FeatureCollection", "features": features}
    write(folder / "a.geojson", json.dumps(whole))
    for name in ("a.csv", "a.tsv", "a.parquet", "a.geojson"):
        table = read_places(folder / name, separator="|")
        assert list(table.ids) == ids
        assert table.lon.tolist() == lon
        assert table.lat.tolist() == lat
        assert table.keyword_lists() == lists
        half = table.take(np.arange(len(ids)) % 2 == 0)
        assert list(half.ids) == ids[::2]
        assert half.keyword_lists() == lists[::2]
