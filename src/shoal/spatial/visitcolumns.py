"""Time and social values aligned to the rows of a layout, with the bounds of its tree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.spatial import _visit_values as kernels

__all__ = ["VisitColumns", "tree_levels"]


def tree_levels(rows: int) -> npt.NDArray[np.int64]:
    """Return where each level of a 16-ary tree over so many rows starts (int64 [levels + 1])."""
    counts: list[int] = []
    left = rows
    while left > 1 or (left == 1 and not counts):
        left = (left + 15) // 16
        counts.append(left)
    starts = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=starts[1:])
    return starts


class VisitColumns:
    """What a layout's rows are worth in time and social, made by ``VisitStore.columns``.

    Level ``l`` node ``i`` covers the rows ``i * 16**(l + 1) ..``, as in the packed
    layout. The store changes the values in place: bounds are widened before a
    value changes and never drawn in again, until the store is compacted.

    Attributes
    ----------
    keys : int64 [n]
        Key of each row.
    dim : int
        Coordinates of a vector, padded with zeros to a multiple of 4.
    times : float32 [slots, 16 * leaves]
        The time part of each row at each slot.
    vectors : float32 [leaves * dim * 16]
        Blocks ``[leaf][coordinate][row]``.
    time_max : uint8 [slots, 16 * groups]
        For each node the ceiling of 255 times its largest time part.
    boxes, centres, radii : float32
        Blocks ``[group][coordinate][low, high][node]``, ``[group][coordinate][node]``
        and one radius a node. A group is up to 16 siblings.
    group_start : int64 [levels]
        First group of each level.
    level_start : int64 [levels + 1]
        First node of each level.
    """

    def __init__(
        self,
        keys: npt.NDArray[np.int64],
        times: npt.NDArray[np.float32],
        vectors: npt.NDArray[np.float32],
        dim: int,
        *,
        bounds: bool = True,
    ) -> None:
        self.keys = keys
        self.times = times
        self.vectors = vectors
        self.dim = dim
        self._order = np.argsort(keys, kind="stable")
        self._sorted = keys[self._order]
        n, slots = len(keys), times.shape[0]
        self.level_start = tree_levels(n)
        per_level = np.diff(self.level_start)
        starts = np.zeros(len(per_level) + 1, dtype=np.int64)
        np.cumsum((per_level + 15) // 16, out=starts[1:])
        self.group_start = starts[:-1].copy()
        groups = int(starts[-1]) if bounds else 0
        self.time_max = np.zeros((slots, 16 * groups), dtype=np.uint8)
        self.boxes = np.zeros(groups * dim * 32, dtype=np.float32)
        self.centres = np.zeros(groups * dim * 16, dtype=np.float32)
        self.radii = np.zeros(16 * groups, dtype=np.float32)
        self.bounded = bounds
        if bounds:
            kernels.time_maxima(times, n, self.level_start, self.group_start, self.time_max)
            kernels.vector_bounds(
                vectors,
                n,
                dim,
                self.level_start,
                self.group_start,
                self.boxes,
                self.centres,
                self.radii,
            )
        self.kernel = self._tuple()

    def __len__(self) -> int:
        return len(self.keys)

    def rows_of(self, keys: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the row of each key, -1 for those that are not here."""
        if len(self.keys) == 0:
            return np.full(len(keys), -1, dtype=np.int64)
        place = np.minimum(np.searchsorted(self._sorted, keys), len(self.keys) - 1)
        rows: npt.NDArray[np.int64] = np.where(
            self._sorted[place] == keys, self._order[place], -1
        ).astype(np.int64)
        return rows

    def vector(self, row: int) -> npt.NDArray[np.float32]:
        """Return a copy of a row's vector, float32 [dim]."""
        blocks = self.vectors.reshape(-1, self.dim, 16)
        found: npt.NDArray[np.float32] = blocks[row >> 4, :, row & 15].copy()
        return found

    def change(
        self,
        row: int,
        times: npt.NDArray[np.float32],
        vector: npt.NDArray[np.float32],
        visitors: Sequence[int] = (),
    ) -> None:
        """Give a row new values; its ancestors are widened first. For the one writer.

        ``visitors`` are the users who came, for bounds that are sets of users.
        """
        if self.bounded:
            self._widen(row, times, vector)
        self.times[:, row] = times
        self.vectors.reshape(-1, self.dim, 16)[row >> 4, : len(vector), row & 15] = vector

    def _widen(
        self, row: int, times: npt.NDArray[np.float32], vector: npt.NDArray[np.float32]
    ) -> None:
        kernels.widen(row, times, vector, self.kernel, self.level_start)

    def nbytes(self) -> dict[str, int]:
        """Return the bytes of values and of bounds, and their ``total``."""
        values = self.times.nbytes + self.vectors.nbytes
        bounds = sum(a.nbytes for a in (self.time_max, self.boxes, self.centres, self.radii))
        keys = self.keys.nbytes + self._order.nbytes + self._sorted.nbytes
        return {"values": values, "bounds": bounds, "keys": keys, "total": values + bounds + keys}

    def _tuple(self) -> Any:
        return kernels.Visits(
            times=self.times,
            time_max=self.time_max,
            vectors=self.vectors,
            boxes=self.boxes,
            centres=self.centres,
            radii=self.radii,
            group_start=self.group_start,
            dim=self.dim,
        )
