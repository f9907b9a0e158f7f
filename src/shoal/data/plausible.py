"""Whether two columns of positions are swapped although every value is in range.

Three signs, the first that can speak decides: the places' own time zones, their
countries, and whether they lie near cities. Each compares the columns as they
are with the columns swapped, against the shipped sample of cities.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

__all__ = ["swap_note"]

#: Rows that are looked at; more would not change the verdict.
_LOOKED_AT = 20_000
#: Places of which one sign needs at least so many.
_ENOUGH = 5
#: Share of places that must be nearer when swapped.
_MAJORITY = 0.7
#: Swapped must be nearer by this factor, and as declared at least so many degrees off.
_FACTOR, _OFF = 3.0, 10.0
#: Half a side of the square around a city that counts as near it, degrees.
_NEAR = 2


def swap_note(
    lon: npt.NDArray[np.float64],
    lat: npt.NDArray[np.float64],
    *,
    timezone: Sequence[str | None] | None = None,
    country: Sequence[str | None] | None = None,
) -> str | None:
    """Return a warning if longitude and latitude look swapped.

    Parameters
    ----------
    lon, lat : float64 [n]
        Degrees, in range.
    timezone, country : sequences of n texts, optional
        What the source says of each place: an IANA zone, a two-letter code.

    Returns
    -------
    str or None
        The warning in one line, with its reason; None when nothing speaks for it.
    """
    if len(lon) < _ENOUGH or np.abs(lon).max() > 90.0:
        return None
    step = max(1, len(lon) // _LOOKED_AT)
    lon, lat = lon[::step], lat[::step]
    for declared, column, what in ((timezone, "timezone", "time zone"), (country, "country", "")):
        if declared is None:
            continue
        verdict = _against_centres(lon, lat, declared[::step], column)
        if verdict is None:
            continue
        share, count = verdict
        if share < _MAJORITY:
            return None
        return (
            f"longitude and latitude look swapped: {share:.0%} of {count:,} places are far from "
            f"their {what or column} as they are, and near it if swapped"
        )
    here, swapped = _near_cities(lon, lat), _near_cities(lat, lon)
    if swapped >= 0.5 and here < 0.2 * swapped:
        return (
            f"longitude and latitude look swapped: {here:.0%} of the places lie near a city as "
            f"they are, {swapped:.0%} if swapped"
        )
    return None


def _against_centres(
    lon: npt.NDArray[np.float64],
    lat: npt.NDArray[np.float64],
    declared: Sequence[str | None],
    column: str,
) -> tuple[float, int] | None:
    """Return the share of places that only fit their declared zone or country swapped."""
    table = _centres(column)
    names, code = np.unique(
        np.array([name or "" for name in declared], dtype=object), return_inverse=True
    )
    centres = np.array([table.get(str(name), (np.nan, np.nan)) for name in names])
    x, y = centres[code.ravel()].T
    known = np.isfinite(x)
    if known.sum() < _ENOUGH:
        return None
    as_is = np.hypot(_turn(lon - x), lat - y)[known]
    swapped = np.hypot(_turn(lat - x), lon - y)[known]
    only_swapped = (as_is > _OFF) & (swapped * _FACTOR < as_is)
    return float(only_swapped.mean()), int(known.sum())


def _turn(degrees: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return differences of longitudes in [-180, 180)."""
    turned: npt.NDArray[np.float64] = (degrees + 180.0) % 360.0 - 180.0
    return turned


@functools.cache
def _centres(column: str) -> dict[str, tuple[float, float]]:
    rows = _cities().group_by(column).agg(pl.col("lon").median(), pl.col("lat").median())
    return {name: (lon, lat) for name, lon, lat in rows.iter_rows()}


@functools.cache
def _cities() -> pl.DataFrame:
    from shoal.data.geonames import sample_frame  # noqa: PLC0415 - only for unclear files

    return sample_frame()


@functools.cache
def _city_squares() -> npt.NDArray[np.bool_]:
    squares = np.zeros((180 + 2 * _NEAR, 360), dtype=np.bool_)
    cities = _cities()
    x = np.floor(cities["lon"].to_numpy() + 180).astype(np.int64)
    y = np.floor(cities["lat"].to_numpy() + 90).astype(np.int64) + _NEAR
    for dx in range(-_NEAR, _NEAR + 1):
        for dy in range(-_NEAR, _NEAR + 1):
            squares[y + dy, (x + dx) % 360] = True
    return squares[_NEAR:-_NEAR]


def _near_cities(lon: npt.NDArray[np.float64], lat: npt.NDArray[np.float64]) -> float:
    x = np.floor(lon + 180).astype(np.int64) % 360
    y = np.minimum(np.floor(lat + 90).astype(np.int64), 179)
    return float(_city_squares()[y, x].mean())
