"""Places of the benchmarks: read from a data folder, or generated where it lacks them.

Layout of the folder (``--data``, else ``SHOAL_DATA``, else ``../shared/data``);
every file may also be there compressed, with ``.xz`` behind its name::

    geo/geonames_cities500/cities500.txt     GeoNames dump: 19 columns, tabs
    geo/yelp_boston_attrs/business.jsonl     one business a line: longitude, latitude,
                                             categories, attributes {Price Range, Noise Level}
    geo/lbsn_gowalla1/poi_coos.txt           poi, lat, lon
    geo/lbsn_gowalla1/social_relations.txt   user, user
    geo/lbsn_gowalla1/{tune,test}.txt        user, poi, visits

``geo/`` itself may be left out, so that ``--data`` can also name that folder.
"""

from __future__ import annotations

import itertools
import json
import lzma
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shoal.core.seeds import philox
from shoal.data.words import tokenize
from shoal.spatial.columns import AttributeSpec, PlaceColumns
from shoal.spatial.ingest import make_columns, make_specs

ROOT = Path(__file__).resolve().parents[2]
NOISE = {"quiet": 1.0, "average": 2.0, "loud": 3.0, "very_loud": 4.0}


@dataclass(frozen=True)
class PlaceSet:
    """Places with what is known about them; ``source`` says where they are from."""

    columns: PlaceColumns
    specs: tuple[AttributeSpec, ...]
    source: str
    files: tuple[Path, ...] = ()

    def __len__(self) -> int:
        return len(self.columns)


def data_folder(option: Path | None) -> Path:
    """Return the folder of the data, which need not exist."""
    if option is not None:
        return option
    return Path(os.environ.get("SHOAL_DATA", ROOT.parent / "shared" / "data"))


def find_file(folder: Path, name: str) -> Path | None:
    """Return ``geo/<name>`` or ``<name>`` below a folder, plain or ``.xz``, or None."""
    for base in (folder / "geo", folder):
        for suffix in ("", ".xz"):
            path = base / (name + suffix)
            if path.exists():
                return path
    return None


def read_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a text file, compressed or not."""
    compressed = path.suffix == ".xz"
    with (
        lzma.open(path, "rt", encoding="utf-8")
        if compressed
        else path.open(encoding="utf-8") as text
    ):
        for line in text:
            yield line.rstrip("\n")


def word_lists(columns: PlaceColumns) -> Iterator[list[str]]:
    """Yield each place's words."""
    words, ids, ptr = columns.words, columns.word_ids.tolist(), columns.word_ptr.tolist()
    for a, b in itertools.pairwise(ptr):
        yield [words[i] for i in ids[a:b]]


def geonames(folder: Path, limit: int, seed: int) -> PlaceSet:
    """Return GeoNames places (at most ``limit`` of them, drawn at random), or generated ones.

    Their words are those of the names, the feature code and the country.
    """
    path = find_file(folder, "geonames_cities500/cities500.txt")
    if path is None:
        return generated(limit, seed, attributes=0)
    rows = [line.split("\t") for line in read_lines(path)]
    if len(rows) > limit:
        kept = np.sort(philox(seed, 11).permutation(len(rows))[:limit])
        rows = [rows[i] for i in kept.tolist()]
    keywords = [[*tokenize(r[1]), *tokenize(r[3]), *tokenize(r[7]), *tokenize(r[8])] for r in rows]
    columns = make_columns(
        [float(r[5]) for r in rows],
        [float(r[4]) for r in rows],
        keys=np.arange(len(rows), dtype=np.int64),
        keywords=keywords,
    )
    return PlaceSet(columns, (), f"GeoNames cities500, {len(rows):,} places", (path,))


def boston(folder: Path) -> PlaceSet | None:
    """Return Boston's businesses with price and noise, or None where they are missing."""
    path = find_file(folder, "yelp_boston_attrs/business.jsonl")
    if path is None:
        return None
    rows = [json.loads(line) for line in read_lines(path)]
    values: dict[str, list[float]] = {"price": [], "noise": []}
    for row in rows:
        known = row.get("attributes") or {}
        values["price"].append(float(known.get("Price Range") or np.nan))
        values["noise"].append(NOISE.get(known.get("Noise Level"), np.nan))
    specs = make_specs(values, missing="worst")
    columns = make_columns(
        [row["longitude"] for row in rows],
        [row["latitude"] for row in rows],
        keys=np.arange(len(rows), dtype=np.int64),
        keywords=[[word for name in row["categories"] for word in tokenize(name)] for row in rows],
        attributes=values,
        specs=specs,
    )
    return PlaceSet(columns, specs, f"Yelp Boston, {len(rows):,} businesses", (path,))


def generated(n: int, seed: int, *, attributes: int = 3, categories: int = 400) -> PlaceSet:
    """Return ``n`` places around random towns: one category, its group, up to three more words.

    Categories follow Zipf's law, as do the further words; the attributes are
    independent and uniform, the worst case of any bound on them.
    """
    rng = philox(seed, 12)
    towns = max(20, n // 200)
    town_lon = rng.uniform(-170.0, 170.0, towns)
    town_lat = np.degrees(np.arcsin(rng.uniform(-0.6, 0.9, towns)))
    town = _zipf(rng, towns, n, 0.8)
    spread = rng.uniform(0.01, 0.05, towns)[town]
    lon = np.clip(town_lon[town] + rng.normal(0, 1, n) * spread, -180, 180)
    lat = np.clip(town_lat[town] + rng.normal(0, 1, n) * spread, -90, 90)
    category = _zipf(rng, categories, n, 1.0)
    rows = [np.arange(n), np.arange(n)]
    words = [category, categories + category % 25]
    extra = rng.integers(0, 4, n)
    for i in range(3):
        more = np.flatnonzero(extra > i)
        rows.append(more)
        words.append(categories + 25 + _zipf(rng, 20_000, len(more), 1.0))
    pairs = (np.concatenate(rows) << 32) | np.concatenate(words)
    del rows, words
    pairs.sort()
    pairs = pairs[np.concatenate([[True], pairs[1:] != pairs[:-1]])]
    ptr = np.zeros(n + 1, dtype=np.int64)
    np.cumsum(np.bincount(pairs >> 32, minlength=n), out=ptr[1:])
    pairs &= 0xFFFFFFFF
    used = np.bincount(pairs) > 0
    ids = (np.cumsum(used, dtype=np.int32) - np.int32(1))[pairs]
    del pairs
    # In the order of their bytes.
    names = [f"w{number:06d}" for number in np.flatnonzero(used).tolist()]
    names_of = [f"a{j}" for j in range(attributes)]
    columns = PlaceColumns(
        keys=np.arange(n, dtype=np.int64),
        lon=np.round(lon, 6),
        lat=np.round(lat, 6),
        words=names,
        word_ptr=ptr,
        word_ids=ids,
        values=rng.random((attributes, n), dtype=np.float32).astype(np.float64),
    )
    specs = tuple(AttributeSpec(name=name, low=0.0, high=1.0) for name in names_of)
    return PlaceSet(columns, specs, f"generated, {n:,} places, seed {seed}")


def document_frequencies(columns: PlaceColumns) -> np.ndarray:
    """Return in how many places each word of the vocabulary occurs."""
    return np.bincount(columns.word_ids, minlength=len(columns.words))


def idf_shares(frequencies: Sequence[int], n: int) -> tuple[float, ...]:
    """Return each word's share of the text part, from document frequencies."""
    df = np.asarray(frequencies, dtype=np.float64)
    idf = np.log(1.0 + (n - df + 0.5) / (df + 0.5))
    return tuple((idf / idf.sum()).tolist())


def _zipf(rng: np.random.Generator, kinds: int, n: int, power: float) -> np.ndarray:
    weight = 1.0 / np.arange(1, kinds + 1) ** power
    return np.searchsorted(np.cumsum(weight) / weight.sum(), rng.random(n)).astype(np.int64)
