"""Generated friendships: near users of one community know each other more often."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from shoal.core.seeds import philox
from shoal.data.checkins import Friendships

__all__ = ["generate_friends"]

_EARTH_KM = 6371.0088
#: Chance of a pair from two communities, relative to one.
_OTHERS = 0.1
_SIDES = (0.5, 1.0, 2.0, 4.0, 8.0, 30.0)  # degrees
_MOST_SQUARES = 2_500
_ROUNDS = 60


def generate_friends(
    lon: npt.NDArray[np.float64],
    lat: npt.NDArray[np.float64],
    community: npt.NDArray[np.int64],
    *,
    mean_friends: float = 10.0,
    seed: int = 0,
) -> Friendships:
    """Draw pairs with a chance of about 1 / (d + 1 km), less between communities.

    Proposals come from squares by a bound of that chance; a proposal is taken
    with the quotient, so within a community the law holds up to the assumption
    that communities are spread alike.

    Parameters
    ----------
    lon, lat : float64 [users]
        Homes, degrees.
    community : int64 [users]
        From 0.
    mean_friends : float
        Mean number of friends of a user. Very small or sparse populations may
        get fewer.
    seed : int
        Any integer.
    """
    users = len(lon)
    wanted = min(round(users * mean_friends / 2), users * (users - 1) // 4)
    if wanted < 1:
        return Friendships.of([], [])
    rng = philox(seed, "friends")
    groups = int(community.max()) + 1
    square = _squares(lon, lat)
    count = np.bincount(square)
    # Users by (square, community), so that a draw from both is one index.
    order = np.argsort(square * groups + community, kind="stable")
    size = np.bincount(square * groups + community, minlength=len(count) * groups)
    start = np.cumsum(size) - size
    unit = _unit(lon, lat)
    lower = _least_km(unit, square, len(count))
    share = np.cumsum(count[None, :] / (lower + 1.0), axis=1)
    share /= share[:, -1:]
    flat = (share + np.arange(len(count))[:, None]).ravel()
    own = 1.0 / (1.0 + _OTHERS * (groups - 1))
    activity = np.cumsum(np.exp(rng.normal(0.0, 0.8, users)))
    pairs = np.empty(0, dtype=np.int64)
    tries = 4 * wanted
    for _ in range(_ROUNDS):
        drawn = np.sort(rng.random(tries)) * activity[-1]
        a = np.minimum(np.searchsorted(activity, drawn, side="right"), users - 1)
        a = a[np.argsort(square[a], kind="stable")]
        home = square[a]
        there = np.searchsorted(flat, home + rng.random(tries), side="right") - home * len(count)
        there = np.clip(there, 0, len(count) - 1)
        group = community[a]
        away = rng.random(tries) >= own
        if groups > 1:
            step = rng.integers(1, groups, tries)
            group = np.where(away, (group + step) % groups, group)
        room = there * groups + group
        b = order[
            np.minimum(start[room] + (rng.random(tries) * size[room]).astype(np.int64), users - 1)
        ]
        fits = (size[room] > 0) & (a != b)
        a, b, home, there = a[fits], b[fits], home[fits], there[fits]
        taken = rng.random(len(a)) < (lower[home, there] + 1.0) / (_km(unit[a], unit[b]) + 1.0)
        a, b = a[taken], b[taken]
        fresh = np.minimum(a, b) * users + np.maximum(a, b)
        pairs = np.unique(np.concatenate([pairs, fresh]))
        if len(pairs) >= wanted:
            break
        rate = max(len(fresh) / tries, 0.002)
        tries = int(np.clip((wanted - len(pairs)) / rate * 1.1, 1_000, 8_000_000))
    if len(pairs) > wanted:
        pairs = np.sort(rng.permutation(pairs)[:wanted])
    return Friendships(np.stack([pairs // users, pairs % users], axis=1))


def _squares(lon: npt.NDArray[np.float64], lat: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Return the number of each user's square, of a size that gives few enough squares."""
    square = np.zeros(len(lon), dtype=np.int64)
    for side in _SIDES:
        key = np.floor((lat + 90.0) / side) * 1000.0 + np.floor((lon + 180.0) / side)
        keys, inverse = np.unique(key, return_inverse=True)
        square = inverse.ravel().astype(np.int64)
        if len(keys) <= _MOST_SQUARES:
            break
    return square


def _unit(lon: npt.NDArray[np.float64], lat: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    x, y = np.radians(lon), np.radians(lat)
    return np.stack([np.cos(y) * np.cos(x), np.cos(y) * np.sin(x), np.sin(y)], axis=1)


def _km(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return great-circle distances of unit vectors, kilometres."""
    chord2 = ((a - b) ** 2).sum(axis=-1)
    km: npt.NDArray[np.float64] = (
        2.0 * _EARTH_KM * np.arcsin(np.minimum(np.sqrt(chord2) / 2.0, 1.0))
    )
    return km


def _least_km(
    unit: npt.NDArray[np.float64], square: npt.NDArray[np.int64], squares: int
) -> npt.NDArray[np.float64]:
    """Return a lower bound of the distance between users of two squares, kilometres."""
    middle: npt.NDArray[np.float64] = np.stack(
        [np.bincount(square, weights=unit[:, axis], minlength=squares) for axis in range(3)], axis=1
    )
    middle = middle / np.maximum(np.linalg.norm(middle, axis=1, keepdims=True), 1e-12)
    radius = np.zeros(squares)
    np.maximum.at(radius, square, _km(unit, middle[square]))
    cosine = np.clip(middle @ middle.T, -1.0, 1.0)
    apart = _EARTH_KM * np.arccos(cosine)
    least: npt.NDArray[np.float64] = np.maximum(apart - radius[:, None] - radius[None, :], 0.0)
    np.fill_diagonal(least, 0.0)
    return least
