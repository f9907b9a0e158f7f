"""A grid of squares of about 3 km over generated places: who can reach what, by which weight."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Squares"]

_SIDE = 0.03  # degrees of latitude
_KM = 111.195  # kilometres in a degree
_LIMIT_KM = 20.0
_COLUMNS = 1 << 20


class Squares:
    """Places by squares, and the squares that each home reaches.

    Made by :meth:`of`; :meth:`reach` fixes the homes.
    """

    def __init__(self) -> None:
        empty = np.empty(0, dtype=np.int64)
        self.square_of_row = empty  # square of each place
        self.user_total: npt.NDArray[np.float64] = np.empty(
            0
        )  # sum of all weights that a user can reach
        self._keys = empty
        self._rows = empty  # places by square
        self._share: npt.NDArray[np.float64] = np.empty(0)  # running popularity in that order
        self._start: npt.NDArray[np.float64] = np.empty(0)  # running popularity before each square
        self._weight: npt.NDArray[np.float64] = np.empty(0)  # popularity of each square
        self._popularity: npt.NDArray[np.float64] = np.empty(0)
        self._lon: npt.NDArray[np.float64] = np.empty(0)  # middles of the squares
        self._lat: npt.NDArray[Any] = np.empty(0)
        self._scale = 1.0
        self._home = empty  # square of each user
        self._line = empty  # line of the reach of each user
        self._neighbours = np.empty((0, 0), dtype=np.int32)

    @classmethod
    def of(
        cls,
        lon: npt.NDArray[np.float64],
        lat: npt.NDArray[np.float64],
        popularity: npt.NDArray[np.float64],
    ) -> Squares:
        """Sort places into squares."""
        made = cls()
        line = np.floor((lat + 90.0) / _SIDE).astype(np.int64)
        key = line * _COLUMNS + np.floor((lon + 180.0) / _width(line)).astype(np.int64)
        made._keys, inverse = np.unique(key, return_inverse=True)
        made.square_of_row = inverse.ravel().astype(np.int64)
        made._rows = np.argsort(made.square_of_row, kind="stable")
        made._share = np.cumsum(popularity[made._rows])
        made._weight = np.bincount(made.square_of_row, weights=popularity).astype(np.float64)
        size = np.bincount(made.square_of_row)
        before = np.cumsum(size) - size
        made._start = np.concatenate([np.zeros(1), made._share])[before]
        made._popularity = popularity
        lines = made._keys // _COLUMNS
        made._lat = (lines + 0.5) * _SIDE - 90.0
        made._lon = (made._keys % _COLUMNS + 0.5) * _width(lines) - 180.0
        return made

    def reach(self, home: npt.NDArray[np.int64], scale_km: float) -> npt.NDArray[np.float64]:
        """Return the running share of the squares around every home.

        Parameters
        ----------
        home : int64 [users]
            Square of each user.
        scale_km : float
            Scale of the exponential fall.

        Returns
        -------
        float64 [homes * neighbours]
            Line h, which has the sum 1, ends at h + 1.
        """
        self._scale = scale_km
        self._home = home
        homes, self._line = np.unique(home, return_inverse=True)
        self._line = self._line.ravel()
        steps = math.ceil(_LIMIT_KM / (_SIDE * _KM))
        lines = self._keys[homes] // _COLUMNS
        neighbours, weights = [], []
        for up in range(-steps, steps + 1):
            line = lines + up
            column = np.floor((self._lon[homes] + 180.0) / _width(line)).astype(np.int64)
            for right in range(-steps, steps + 1):
                if math.hypot(up, right) > steps + 0.5:
                    continue
                key = line * _COLUMNS + column + right
                found = np.minimum(np.searchsorted(self._keys, key), len(self._keys) - 1)
                hit = self._keys[found] == key
                if not hit.any():
                    continue
                km = self._km(homes, found)
                hit &= km <= _LIMIT_KM
                weights.append(np.where(hit, np.exp(-km / scale_km) * self._weight[found], 0.0))
                neighbours.append(found.astype(np.int32))
        self._neighbours = np.stack(neighbours, axis=1)
        weight: npt.NDArray[np.float64] = np.stack(weights, axis=1)
        total = weight.sum(axis=1)
        self.user_total = total[self._line]
        share = np.cumsum(weight / total[:, None], axis=1)
        share = share / share[:, -1:]
        ends: npt.NDArray[np.float64] = (share + np.arange(len(homes))[:, None]).ravel()
        return ends

    def draw(
        self,
        reach: npt.NDArray[np.float64],
        user: npt.NDArray[np.int64],
        rng: np.random.Generator,
    ) -> npt.NDArray[np.int64]:
        """Draw a place for each entry of ``user``: its square by reach, then by popularity."""
        line = self._line[user]
        width = self._neighbours.shape[1]
        at = np.searchsorted(reach, line + rng.random(len(user)), side="right")
        at = np.minimum(at, line * width + width - 1)
        square = self._neighbours.ravel()[at]
        wanted = self._start[square] + rng.random(len(user)) * self._weight[square]
        place = np.minimum(np.searchsorted(self._share, wanted, side="right"), len(self._rows) - 1)
        return self._rows[place]

    def may_be_near(
        self, user: npt.NDArray[np.int64], row: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.bool_]:
        """Return which pairs of user and place are in reach, judged by latitude first."""
        here, there = self._home[user], self.square_of_row[row]
        near: npt.NDArray[np.bool_] = np.abs(self._lat[here] - self._lat[there]) * _KM <= _LIMIT_KM
        some = np.flatnonzero(near)
        near[some] = self._km(here[some], there[some]) <= _LIMIT_KM
        return near

    def base(
        self,
        user: npt.NDArray[np.int64],
        row: npt.NDArray[np.int64],
        reach: npt.NDArray[np.float64],
    ) -> npt.NDArray[np.float64]:
        """Return the chance with which :meth:`draw` gives a place to a user."""
        assert len(reach) == self._neighbours.size
        km = self._km(self._home[user], self.square_of_row[row])
        weight = np.exp(-km / self._scale) * self._popularity[row]
        chance: npt.NDArray[np.float64] = weight / self.user_total[user]
        return chance

    def _km(self, a: npt.NDArray[np.int64], b: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Return distances between middles of near squares, kilometres (a flat map)."""
        north = (self._lat[a] - self._lat[b]) * _KM
        east = (self._lon[a] - self._lon[b] + 180.0) % 360.0 - 180.0
        wide = np.cos(np.radians((self._lat[a] + self._lat[b]) / 2.0)) * _KM
        km: npt.NDArray[np.float64] = np.hypot(north, east * wide)
        return km


def _width(line: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return the width in degrees of the squares of a line, about 3 km everywhere."""
    middle = np.clip((line + 0.5) * _SIDE - 90.0, -89.9, 89.9)
    width: npt.NDArray[np.float64] = _SIDE / np.cos(np.radians(middle))
    return width
