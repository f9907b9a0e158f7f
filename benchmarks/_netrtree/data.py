"""Places with visits and friends: Gowalla with generated words and hours, and generated whole.

The layout of ``--data`` is told in ``_qdrtree/data.py``. Gowalla_1 has
positions, friendships and visits, but no words and no hours: both are generated
here (a category a place by Zipf's law, hours by the category's rhythm), so a
report must call the set semi-synthetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from _qdrtree.data import document_frequencies, find_file, idf_shares, read_lines
from shoal.core.seeds import philox
from shoal.spatial.columns import PlaceColumns

CATEGORIES = 120
#: Weights of (space, text, time, social).
MIXES = ((0.4, 0.2, 0.2, 0.2), (0.25, 0.25, 0.25, 0.25), (0.1, 0.1, 0.1, 0.7))
MAX_KM = 20.0


@dataclass(frozen=True)
class VisitedPlaces:
    """Places, who was where in which slot (one row a visit), and who knows whom.

    ``vectors`` float32 [users, dim] are given where the users are generated; else
    they are trained from ``edges``.
    """

    columns: PlaceColumns
    category: np.ndarray
    user: np.ndarray
    place: np.ndarray
    slot: np.ndarray
    edges: np.ndarray
    n_users: int
    slots: int
    source: str
    vectors: np.ndarray | None = None
    files: tuple[Path, ...] = ()

    def __len__(self) -> int:
        return len(self.columns)


@dataclass(frozen=True)
class Ask:
    """One query; ``words`` may be empty."""

    user: int
    lon: float
    lat: float
    words: tuple[str, ...]
    shares: tuple[float, ...]
    slot: int
    k: int = 10


def gowalla(
    folder: Path, seed: int, *, limit: int | None = None, users: int | None = None
) -> VisitedPlaces | None:
    """Return Gowalla_1, or None where it is missing.

    With ``limit`` only the places most visited, with ``users`` only the users who
    visited these most.
    """
    names = ("poi_coos.txt", "social_relations.txt", "tune.txt", "test.txt")
    paths = [find_file(folder, f"lbsn_gowalla1/{name}") for name in names]
    if any(path is None for path in paths):
        return None
    tables = [_table(path) for path in paths if path is not None]
    position, edges = tables[0], tables[1].astype(np.int64)
    visits = np.concatenate(tables[2:]).astype(np.int64)
    n, n_users = len(position), int(max(edges.max(), visits[:, 0].max())) + 1
    if limit is not None and limit < n:
        popular = np.bincount(visits[:, 1], weights=visits[:, 2], minlength=n)
        kept = np.sort(np.argsort(-popular, kind="stable")[:limit])
        new = np.full(n, -1)
        new[kept] = np.arange(limit)
        position, n = position[kept], limit
        visits = visits[new[visits[:, 1]] >= 0]
        visits[:, 1] = new[visits[:, 1]]
    if users is not None and users < n_users:
        active = np.bincount(visits[:, 0], weights=visits[:, 2], minlength=n_users)
        kept = np.sort(np.argsort(-active, kind="stable")[:users])
        new = np.full(n_users, -1)
        new[kept] = np.arange(users)
        visits[:, 0], edges, n_users = new[visits[:, 0]], new[edges], users
        visits, edges = visits[visits[:, 0] >= 0], edges[(edges >= 0).all(axis=1)]
    rows = np.repeat(np.arange(len(visits)), visits[:, 2])
    rng = philox(seed, 61)
    category = _zipf(rng, CATEGORIES, n)
    place = visits[rows, 1]
    return VisitedPlaces(
        columns=_columns(position[:, 2], position[:, 1], category, rng),
        category=category.astype(np.int32),
        user=visits[rows, 0],
        place=place,
        slot=_hours(category[place], 168, rng),
        edges=edges,
        n_users=n_users,
        slots=168,
        source=f"Gowalla_1, {n:,} places, {n_users:,} users, {len(rows):,} visits; "
        "words and hours generated (semi-synthetic)",
        files=tuple(path for path in paths if path is not None),
    )


def generated(n: int, users: int, visits: int, seed: int) -> VisitedPlaces:
    """Return generated places, users and visits.

    Users live in towns and belong to a community of their town, which is what
    their vectors show; they visit places near home, popular ones more often, and
    seven in ten friends are of the same community. 24 slots a day.
    """
    rng = philox(seed, 62)
    towns = max(8, n // 2000)
    town_lon = rng.uniform(-170, 170, towns)
    town_lat = np.degrees(np.arcsin(rng.uniform(-0.6, 0.9, towns)))
    town = np.sort(_zipf(rng, towns, n, 0.7))
    lon = np.round(town_lon[town] + rng.normal(0, 0.06, n), 6)
    lat = np.round(np.clip(town_lat[town] + rng.normal(0, 0.05, n), -90, 90), 6)
    # Within a town places are in the order of their longitude: an index near another is near it.
    order = np.lexsort((lon, town))
    town, lon, lat = town[order], lon[order], lat[order]
    category = _zipf(rng, CATEGORIES, n)
    first = np.searchsorted(town, np.arange(towns))
    size = np.bincount(town, minlength=towns)

    home = town[rng.integers(0, n, users)]
    where = rng.random(users)
    community = home * 8 + (where * 8).astype(np.int64)
    centres = rng.standard_normal((towns * 8, 32))
    vectors = centres[community] + 0.7 * rng.standard_normal((users, 32))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)

    user = rng.integers(0, users, visits)
    at = where[user] + rng.normal(0, 0.08, visits)
    rank = np.clip(at % 1.0, 0, 0.999999) * size[home[user]]
    # Popular places are those with a round number in their block of ten.
    popular = rng.random(visits) < 0.5
    local = np.where(popular, rank.astype(np.int64) // 10 * 10, rank.astype(np.int64))
    place = np.minimum(first[home[user]] + local, first[home[user]] + size[home[user]] - 1)
    by_community = np.argsort(community, kind="stable")
    place_in = np.empty(users, dtype=np.int64)
    place_in[by_community] = np.arange(users)
    one = rng.integers(0, users, users * 4)
    near = by_community[np.clip(place_in[one] + rng.integers(-30, 31, users * 4), 0, users - 1)]
    other = np.where(rng.random(users * 4) < 0.7, near, rng.integers(0, users, users * 4))
    edges = np.stack([one, other], axis=1)
    edges = edges[one != other]
    return VisitedPlaces(
        columns=_columns(lon, lat, category, rng),
        category=category.astype(np.int32),
        user=user,
        place=place,
        slot=_hours(category[place], 24, rng),
        edges=edges,
        n_users=users,
        slots=24,
        source=f"generated, {n:,} places, {users:,} users, {visits:,} visits, seed {seed}",
        vectors=vectors.astype(np.float32),
    )


def make_asks(places: VisitedPlaces, count: int, seed: int) -> list[Ask]:
    """Return queries of visitors near a place they visited; half of them have one or two words."""
    rng = philox(seed, 63)
    columns = places.columns
    df = document_frequencies(columns)
    asks = []
    for number in range(count):
        visit = int(rng.integers(len(places.user)))
        at = int(places.place[visit])
        words: tuple[str, ...] = ()
        shares: tuple[float, ...] = ()
        if number % 2:
            row = int(rng.integers(len(columns)))
            ids = columns.word_ids[columns.word_ptr[row] : columns.word_ptr[row + 1]]
            chosen = rng.permutation(ids)[: 1 + (number // 2) % 2]
            words = tuple(columns.words[i] for i in chosen)
            shares = idf_shares([int(df[i]) for i in chosen], len(columns))
        asks.append(
            Ask(
                user=int(places.user[visit]),
                lon=float(np.clip(columns.lon[at] + rng.normal(0, 0.02), -180, 180)),
                lat=float(np.clip(columns.lat[at] + rng.normal(0, 0.02), -90, 90)),
                words=words,
                shares=shares,
                slot=int(rng.integers(places.slots)),
            )
        )
    return asks


def _table(path: Path) -> np.ndarray:
    return np.loadtxt(read_lines(path), dtype=np.float64, ndmin=2)


def _zipf(rng: np.random.Generator, kinds: int, n: int, power: float = 1.0) -> np.ndarray:
    weight = 1.0 / np.arange(1, kinds + 1) ** power
    return np.searchsorted(np.cumsum(weight) / weight.sum(), rng.random(n)).astype(np.int64)


def _columns(
    lon: np.ndarray, lat: np.ndarray, category: np.ndarray, rng: np.random.Generator
) -> PlaceColumns:
    """Return places with their category as a word, and one or two of 300 further words."""
    n = len(lon)
    rows = [np.arange(n), np.arange(n)]
    words = [category, CATEGORIES + _zipf(rng, 300, n, 0.8)]
    more = np.flatnonzero(rng.random(n) < 0.5)
    rows.append(more)
    words.append(CATEGORIES + _zipf(rng, 300, len(more), 0.8))
    pairs = np.unique((np.concatenate(rows) << 32) | np.concatenate(words))
    used, ids = np.unique(pairs & 0xFFFFFFFF, return_inverse=True)
    ptr = np.zeros(n + 1, dtype=np.int64)
    np.cumsum(np.bincount(pairs >> 32, minlength=n), out=ptr[1:])
    return PlaceColumns(
        keys=np.arange(n, dtype=np.int64),
        lon=np.ascontiguousarray(lon),
        lat=np.ascontiguousarray(lat),
        words=[f"w{number:04d}" for number in used.tolist()],
        word_ptr=ptr,
        word_ids=ids.astype(np.int32),
        values=np.empty((0, n)),
    )


def _hours(category: np.ndarray, slots: int, rng: np.random.Generator) -> np.ndarray:
    """Return a slot for each visit: the hour around the category's own, any day of the week."""
    hour = (8 + category * 5 % 14 + np.rint(rng.normal(0, 2.0, len(category)))) % 24
    day = rng.integers(0, 7, len(category)) if slots == 168 else 0
    found: np.ndarray = (day * 24 + hour).astype(np.int64)
    return found
