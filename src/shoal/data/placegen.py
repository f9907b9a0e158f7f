"""Generated places: real cities, made-up streets, words by Zipf's law, attributes on request.

For tests and benchmarks at sizes for which no licence allows a real set. The
same seed gives the same places to the last bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shoal.core.errors import InputError
from shoal.core.seeds import philox
from shoal.data.placetable import PlaceTable
from shoal.data.placewords import Vocabulary, builtin_vocabulary, nsi_vocabulary

__all__ = ["AttributeCase", "Centres", "generate_places", "generated_centres", "geonames_centres"]

#: ``correlated``: price by kind, noise with price and density; ``independent``: three
#: independent uniform columns, the worst case for pruning.
AttributeCase: TypeAlias = Literal["correlated", "independent", "none"]

_KM_PER_DEGREE = 111.195
#: Seven digits, as map data has them; lossless as whole numbers of 1e-7 degree.
_DIGITS = 7


@dataclass(frozen=True, eq=False)
class Centres:
    """Where places cluster.

    Parameters
    ----------
    lon, lat : float64 [c]
        Degrees.
    weight : float64 [c]
        Share of the places, any positive scale.
    timezone : list of str [c]
        IANA zones.
    """

    lon: npt.NDArray[np.float64]
    lat: npt.NDArray[np.float64]
    weight: npt.NDArray[np.float64]
    timezone: list[str]


def geonames_centres(path: str | Path | None = None, *, power: float = 0.8) -> Centres:
    """Return the places of GeoNames as centres, weighted by population to a power.

    Parameters
    ----------
    path : path-like, optional
        A GeoNames dump; the shipped sample of 4,000 cities if absent.
    power : float
        Exponent of the population.
    """
    from shoal.data.geonames import load_sample, read_geonames  # noqa: PLC0415

    table = load_sample() if path is None else read_geonames(path, on_bad_row="drop")
    people = np.nan_to_num(table.attributes["population"])
    zones = [zone or "UTC" for zone in table.timezone or []]
    return Centres(table.lon, table.lat, np.maximum(people, 1.0) ** power, zones)


def generated_centres(count: int = 4_000, *, seed: int = 0) -> Centres:
    """Return made-up centres: uniform on the land-like half of the sphere, Zipf weights."""
    if count < 1:
        raise InputError("at least one centre is needed", field="count", value=count)
    rng = philox(seed, "centres")
    lon = rng.uniform(-180.0, 180.0, count)
    lat = np.degrees(np.arcsin(rng.uniform(-0.8, 0.9, count)))
    zones = [
        f"Etc/GMT{-hours:+d}" if hours else "Etc/GMT" for hours in np.round(lon / 15).astype(int)
    ]
    return Centres(lon, lat, np.arange(1.0, count + 1.0, dtype=np.float64) ** -0.86, zones)


def generate_places(
    n: int,
    *,
    seed: int = 0,
    centres: Centres | None = None,
    vocabulary: Vocabulary | str | Path | None = None,
    attributes: AttributeCase = "correlated",
    extra_words: int = 3,
    jitter_km: tuple[float, float] = (1.0, 5.0),
    zipf: float = 1.0,
) -> PlaceTable:
    """Generate places.

    A place lies at a centre drawn by weight, moved by a Gaussian whose width is
    the centre's own, between ``jitter_km``. Its kind is drawn by Zipf's law, it
    has the words of its kind and 0 to ``extra_words`` further ones, by Zipf's
    law too.

    Parameters
    ----------
    n : int
        How many; a million take some seconds.
    seed : int
        Any integer.
    centres : Centres, optional
        By default the shipped sample of GeoNames; :func:`geonames_centres` of a
        whole dump, or :func:`generated_centres`.
    vocabulary : Vocabulary or path, optional
        By default the built-in list; a path is a name-suggestion-index file.
    attributes : {"correlated", "independent", "none"}
        ``price``, ``noise`` and ``rating`` in [0, 1]. Correlated: price is the
        kind's mean + N(0, .15), noise goes with price and with the local density
        (about .5 each), rating is independent. Independent: three uniform columns.
    extra_words : int
        Most further words of a place.
    jitter_km : (float, float)
        Least and greatest width of a centre, kilometres.
    zipf : float
        Exponent of both laws.

    Returns
    -------
    PlaceTable
        Ids 0 to n - 1, with ``category`` and ``timezone``.
    """
    if isinstance(n, bool) or n < 1:
        raise InputError("at least one place is needed", field="n", value=n)
    if attributes not in {"correlated", "independent", "none"}:
        raise InputError(
            'attributes are "correlated", "independent" or "none"',
            field="attributes",
            value=attributes,
        )
    if not 0.0 <= jitter_km[0] <= jitter_km[1]:
        raise InputError("jitter is (least, greatest) km", field="jitter_km", value=jitter_km)
    centres = centres or geonames_centres()
    if not isinstance(vocabulary, Vocabulary):
        vocabulary = builtin_vocabulary() if vocabulary is None else nsi_vocabulary(vocabulary)
    centre, lon, lat = _positions(n, seed, centres, jitter_km)
    kind = _zipf(n, len(vocabulary.kinds), zipf, philox(seed, "kinds"))
    return PlaceTable(
        ids=np.arange(n, dtype=np.int64),
        lon=lon,
        lat=lat,
        keywords=_keywords(kind, vocabulary, extra_words, zipf, philox(seed, "words")),
        attributes=_attributes(attributes, kind, lon, lat, philox(seed, "attributes")),
        timezone=[centres.timezone[i] for i in centre.tolist()],
        category=[vocabulary.kinds[i] for i in kind.tolist()],
        source=f"generated (seed {seed})",
    )


def _positions(
    n: int, seed: int, centres: Centres, jitter_km: tuple[float, float]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    rng = philox(seed, "positions")
    share = np.cumsum(centres.weight)
    centre = np.searchsorted(share, rng.random(n) * share[-1], side="right")
    centre = np.minimum(centre, len(share) - 1)
    width = rng.uniform(*jitter_km, len(share))[centre] / _KM_PER_DEGREE
    lat = centres.lat[centre] + rng.standard_normal(n) * width
    lat = np.where(np.abs(lat) > 90.0, np.sign(lat) * 180.0 - lat, lat)
    wide = np.maximum(np.cos(np.radians(centres.lat[centre])), 0.01)
    lon = centres.lon[centre] + rng.standard_normal(n) * width / wide
    lon = (lon + 180.0) % 360.0 - 180.0
    return centre.astype(np.int64), np.round(lon, _DIGITS), np.round(lat, _DIGITS)


def _zipf(n: int, ranks: int, exponent: float, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    share = np.cumsum(np.arange(1, ranks + 1, dtype=np.float64) ** -exponent)
    drawn = np.searchsorted(share, rng.random(n) * share[-1], side="right").astype(np.int64)
    kinds: npt.NDArray[np.int64] = np.minimum(drawn, ranks - 1)
    return kinds


def _keywords(
    kind: npt.NDArray[np.int64],
    vocabulary: Vocabulary,
    most: int,
    zipf: float,
    rng: np.random.Generator,
) -> pa.Array:
    """Return each place's words, those of its kind first, each once."""
    words = list(
        dict.fromkeys([w for own in vocabulary.kind_words for w in own] + vocabulary.extra_words)
    )
    number = {word: i for i, word in enumerate(words)}
    own_flat = np.array([number[w] for own in vocabulary.kind_words for w in own], dtype=np.int64)
    own_count = np.array([len(own) for own in vocabulary.kind_words], dtype=np.int64)
    own_start = np.cumsum(own_count) - own_count
    n = len(kind)
    extra_count = rng.integers(0, most + 1, n)
    rank = _zipf(int(extra_count.sum()), len(vocabulary.extra_words), zipf, rng)
    extra_id = np.array([number[word] for word in vocabulary.extra_words], dtype=np.int64)

    counts = own_count[kind] + extra_count
    rows = np.repeat(np.arange(n), counts)
    place = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    is_own = place < own_count[kind][rows]
    ids = np.empty(len(rows), dtype=np.int64)
    ids[is_own] = own_flat[(own_start[kind][rows] + place)[is_own]]
    ids[~is_own] = extra_id[rank]
    # A stable sort keeps the first place of a word; the others go.
    order = np.argsort(rows * len(words) + ids, kind="stable")
    key = (rows * len(words) + ids)[order]
    kept = np.zeros(len(rows), dtype=np.bool_)
    kept[order] = np.concatenate([[True], key[1:] != key[:-1]]) if len(key) else False
    offsets = np.zeros(n + 1, dtype=np.int64)
    np.cumsum(np.bincount(rows[kept], minlength=n), out=offsets[1:])
    flat = pa.array(words, type=pa.large_string()).take(pa.array(ids[kept]))
    return pa.LargeListArray.from_arrays(pa.array(offsets), flat)


def _attributes(
    case: AttributeCase,
    kind: npt.NDArray[np.int64],
    lon: npt.NDArray[np.float64],
    lat: npt.NDArray[np.float64],
    rng: np.random.Generator,
) -> dict[str, npt.NDArray[np.float64]]:
    n = len(kind)
    if case == "none":
        return {}
    if case == "independent":
        return {name: _stored(rng.random(n)) for name in ("price", "noise", "rating")}
    mean = rng.uniform(0.15, 0.85, int(kind.max()) + 1)[kind]
    price = np.clip(mean + rng.normal(0.0, 0.15, n), 0.0, 1.0)
    # Half of the variance of noise comes from price and density together.
    common = _standard(_standard(price) + _standard(_density_rank(lon, lat)))
    noise = 0.5 + 0.2 * (np.sqrt(0.5) * common + np.sqrt(0.5) * rng.standard_normal(n))
    rating = rng.beta(5.0, 2.0, n)
    return {
        "price": _stored(price),
        "noise": _stored(np.clip(noise, 0.0, 1.0)),
        "rating": _stored(rating),
    }


def _stored(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Round to what float32 holds, so that an index keeps the column at half the size."""
    return values.astype(np.float32).astype(np.float64)


def _standard(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    spread = float(values.std())
    centred: npt.NDArray[np.float64] = values - values.mean()
    return centred / spread if spread > 0 else centred


def _density_rank(
    lon: npt.NDArray[np.float64], lat: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return in [0, 1] how many places share a square of about 1 km, as a rank."""
    cell = np.floor(lat * 100).astype(np.int64) * 100_000 + np.floor(lon * 100).astype(np.int64)
    _, inverse, count = np.unique(cell, return_inverse=True, return_counts=True)
    crowd = count[inverse.ravel()]
    rank = np.empty(len(lon))
    rank[np.argsort(crowd, kind="stable")] = np.arange(len(lon))
    ranked: npt.NDArray[np.float64] = rank / max(len(lon) - 1, 1)
    return ranked
