"""Vectors and friendships by row that grow between two trainings.

A new user gets the mean of his friends' vectors, and a new friendship moves both
ends as if each vector were the mean of the friends': stand-ins of ours until the
next training.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from shoal.spatial.socialgraph import FriendGraph
from shoal.spatial.socialvectors import unit_rows

__all__ = ["GrowingVectors"]

#: A sum of unit vectors shorter than this is rounding: they cancelled out.
_ROUNDING = 1e-6


class GrowingVectors:
    """Rows of unit (or zero) vectors, and who is whose friend.

    Attributes
    ----------
    rows : float32 [room, dim]
        The vectors; those from :meth:`__len__` on are room.
    """

    def __init__(self, vectors: npt.NDArray[np.float32], graph: FriendGraph) -> None:
        self.rows = np.ascontiguousarray(vectors, dtype=np.float32)
        self._n = len(self.rows)
        self._graph = graph
        self._later: dict[int, list[int]] = {}

    def __len__(self) -> int:
        """Return the number of users."""
        return self._n

    @property
    def vectors(self) -> npt.NDArray[np.float32]:
        """Return the vectors, float32 [users, dim]."""
        return self.rows[: self._n]

    def friends_of(self, row: int) -> set[int]:
        """Return the rows of a user's friends."""
        early = self._graph.of(row).tolist() if row < len(self._graph) else []
        return {*early, *self._later.get(row, ())}

    def graph(self) -> FriendGraph:
        """Return the graph with what was added since the training."""
        if self._n == len(self._graph) and not self._later:
            return self._graph
        more = [(u, v) for u, friends in self._later.items() for v in friends if u < v]
        pairs = np.array(more, dtype=np.int64).reshape(-1, 2)
        return FriendGraph.build(np.vstack([self._graph.pairs(), pairs]), n_users=self._n)

    def add(self, friends: Sequence[int]) -> int:
        """Add a user with the mean direction of his friends (each once); return his row."""
        mean = self.rows[friends].astype(np.float64).sum(axis=0, keepdims=True)
        if self._n == len(self.rows):
            room = max(16, self._n + self._n // 4)
            grown = np.zeros((room, self.rows.shape[1]), dtype=np.float32)
            grown[: self._n] = self.rows[: self._n]
            self.rows = grown
        new = self._n
        self.rows[new] = unit_rows(mean, least=_ROUNDING)[0]
        for friend in friends:
            self._later.setdefault(new, []).append(friend)
            self._later.setdefault(friend, []).append(new)
        self._n += 1
        return new

    def join(self, u: int, v: int) -> bool:
        """Note a friendship and move both ends to the direction of ``m z + z_other``.

        False, and nothing changes, where they are friends already.
        """
        friends_u, friends_v = self.friends_of(u), self.friends_of(v)
        if v in friends_u:
            return False
        z = self.rows[[u, v]].astype(np.float64)
        weight = np.array([[max(1, len(friends_u))], [max(1, len(friends_v))]])
        moved = weight * z + z[::-1]
        self.rows[[u, v]] = unit_rows(moved, least=_ROUNDING)
        self._later.setdefault(u, []).append(v)
        self._later.setdefault(v, []).append(u)
        return True

    def nearest(
        self, row: int, limit: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Return the rows of the ``limit`` most related users, the most related first."""
        cosine = self.rows[: self._n] @ self.rows[row]
        cosine[row] = 0.0
        some = np.flatnonzero(cosine > 0.0)
        if len(some) > limit:
            worst = np.partition(cosine[some], len(some) - limit)[len(some) - limit]
            some = some[cosine[some] >= worst]
        return _best_first(some, cosine[some], limit)

    def friends(
        self, row: int, limit: int | None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Return the rows of a user's friends, the most related first."""
        rows = np.array(sorted(self.friends_of(row)), dtype=np.int64)
        cosine = self.rows[rows] @ self.rows[row]
        return _best_first(rows, cosine, len(rows) if limit is None else limit)


def _best_first(
    rows: npt.NDArray[np.int64], cosine: npt.NDArray[np.float32], limit: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    order = np.lexsort((rows, -cosine))[:limit]
    return rows[order], np.clip(cosine[order].astype(np.float64), 0.0, 1.0)
