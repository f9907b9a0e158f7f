"""Rows of arcs that can change: compressed sparse rows with room at the end of each."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np

from shoal.influence import _update_kernels as kernels
from shoal.influence.graph import Ids, Rows

__all__ = ["Adjacency"]

_Arrays: TypeAlias = tuple[Rows, Rows, Ids]


class Adjacency:
    """Who follows whom, in one direction, under insertion and removal.

    Each row is ascending and contiguous in a pool; one that is full moves to the
    pool's end with twice the room, and the pool is packed when most of it is left
    behind. Finding an arc costs a logarithm of its row, changing one the row's length.

    Parameters
    ----------
    ptr, ids : int64 [n + 1], int32 [m]
        The rows to start from; they are copied.
    """

    def __init__(self, ptr: Rows, ids: Ids) -> None:
        self.n = len(ptr) - 1
        self._start(ptr, ids)

    def _start(self, ptr: Rows, ids: Ids) -> None:
        self.first = np.array(ptr[:-1], dtype=np.int64)
        self.length = np.diff(ptr).astype(np.int64)
        self.space = self.length.copy()
        self.pool = np.empty(len(ids) + max(len(ids) // 4, 64), dtype=np.int32)
        self.pool[: len(ids)] = ids
        self._used = np.array([len(ids)], dtype=np.int64)

    @property
    def arrays(self) -> _Arrays:
        """What kernels read: (first, length, pool)."""
        return self.first, self.length, self.pool

    @property
    def m(self) -> int:
        """Number of arcs."""
        return int(self.length.sum())

    def has(self, u: int, v: int) -> bool:
        """Say whether the arc is there."""
        return bool(kernels.find(*self.arrays, np.int64(u), np.int64(v)) >= 0)

    def insert(self, u: int, v: int) -> bool:
        """Add an arc; return False if it was there."""
        while True:
            done = kernels.insert(
                self.first, self.length, self.space, self.pool, self._used, np.int64(u), np.int64(v)
            )
            if done >= 0:
                return bool(done)
            self._make_room(int(2 * self.space[u] + 4))

    def remove(self, u: int, v: int) -> bool:
        """Take an arc away; return False if it was not there."""
        return bool(kernels.remove(self.first, self.length, self.pool, np.int64(u), np.int64(v)))

    def add_rows(self, count: int) -> None:
        """Add empty rows."""
        self.first = np.concatenate((self.first, np.zeros(count, dtype=np.int64)))
        self.length = np.concatenate((self.length, np.zeros(count, dtype=np.int64)))
        self.space = np.concatenate((self.space, np.zeros(count, dtype=np.int64)))
        self.n += count

    def pack(self) -> tuple[Rows, Ids]:
        """Return the rows as (ptr, ids)."""
        ptr, ids = kernels.pack(*self.arrays, np.int64(self.n))
        return ptr, ids

    def _make_room(self, room: int) -> None:
        if self._used[0] > 2 * self.m + 1024:
            self._start(*self.pack())
        if self._used[0] + room > len(self.pool):
            pool = np.empty(max(int(1.5 * len(self.pool)), int(self._used[0]) + room), np.int32)
            pool[: self._used[0]] = self.pool[: self._used[0]]
            self.pool = pool

    def nbytes(self) -> int:
        """Return the bytes of the arrays."""
        return 3 * self.first.nbytes + self.pool.nbytes
