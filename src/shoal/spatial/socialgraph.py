"""Who is friends with whom: checked pairs of users as a graph in CSR form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.core.errors import InputError
from shoal.spatial.ids import Ids

__all__ = ["FriendGraph", "rows_of_ids"]

#: Friends are stored as int32 rows.
_MOST_USERS = 2**31 - 1


@dataclass(frozen=True, slots=True)
class FriendGraph:
    """An undirected graph without loops and without repeated edges.

    Parameters
    ----------
    ptr : int64 [n + 1], friends : int32 [2 * edges]
        The friends of user u are ``friends[ptr[u]:ptr[u + 1]]``, ascending.
    given, self_loops, duplicates : int
        Pairs read, and of these dropped as "friend of himself" or as repeated
        (in either direction).
    """

    ptr: npt.NDArray[np.int64]
    friends: npt.NDArray[np.int32]
    given: int = 0
    self_loops: int = 0
    duplicates: int = 0

    def __len__(self) -> int:
        """Return the number of users."""
        return len(self.ptr) - 1

    @property
    def edges(self) -> int:
        """Return the number of friendships."""
        return len(self.friends) // 2

    @property
    def degree(self) -> npt.NDArray[np.int64]:
        """Return the number of friends of each user, int64 [n]."""
        return np.diff(self.ptr)

    def of(self, user: int) -> npt.NDArray[np.int32]:
        """Return the friends of one user, ascending."""
        return self.friends[self.ptr[user] : self.ptr[user + 1]]

    def adjacency(self) -> Any:
        """Return the graph as a ``scipy.sparse.csr_array`` of float64 ones [n, n]."""
        import scipy.sparse  # noqa: PLC0415 - 0.2 s that a loaded embedding need not pay

        ones = np.ones(len(self.friends))
        return scipy.sparse.csr_array((ones, self.friends, self.ptr), shape=(len(self), len(self)))

    @classmethod
    def empty(cls, n_users: int = 0) -> FriendGraph:
        """Return the graph in which nobody is anybody's friend."""
        return cls(np.zeros(n_users + 1, dtype=np.int64), np.empty(0, dtype=np.int32))

    @classmethod
    def build(cls, edges: Any, *, n_users: int | None = None) -> FriendGraph:
        """Check pairs of user numbers and make the graph.

        Parameters
        ----------
        edges : array of int [e, 2]
            Pairs of users, numbered from 0, in any order and direction. Whole
            numbers in floating point are taken.
        n_users : int, optional
            Number of users; by default the largest number plus 1.

        Raises
        ------
        InputError
            A pair is no pair, not whole, negative or too large; names the row.
        """
        pairs = _checked_pairs(edges)
        if n_users is not None and (
            isinstance(n_users, bool) or not 0 <= int(n_users) <= _MOST_USERS
        ):
            raise InputError("must be in 0 ... 2^31 - 1", field="n_users", value=n_users)
        limit = _MOST_USERS if n_users is None else int(n_users)
        wrong = (pairs < 0) | (pairs >= limit)
        if wrong.any():
            row = int(np.argmax(wrong.any(axis=1)))
            value = int(pairs[row][wrong[row]][0])
            raise InputError(
                "a user is numbered from 0"
                if value < 0
                else f"there are {limit} users, numbered from 0",
                field="edges",
                value=value,
                row=row + 1,
            )
        n = limit if n_users is not None else (int(pairs.max()) + 1 if len(pairs) else 0)
        loops = pairs[:, 0] == pairs[:, 1]
        proper = pairs[~loops]
        low, high = proper.min(axis=1, initial=n), proper.max(axis=1, initial=0)
        code = np.unique(low * np.int64(max(n, 1)) + high)  # below 2^62
        low, high = np.divmod(code, max(n, 1))
        return cls._of_unique(
            n,
            low,
            high,
            given=len(pairs),
            self_loops=int(loops.sum()),
            duplicates=len(proper) - len(code),
        )

    @classmethod
    def _of_unique(
        cls,
        n: int,
        low: npt.NDArray[np.int64],
        high: npt.NDArray[np.int64],
        *,
        given: int,
        self_loops: int,
        duplicates: int,
    ) -> FriendGraph:
        ends = np.concatenate([low, high])
        others = np.concatenate([high, low])
        order = np.lexsort((others, ends))
        ptr = np.zeros(n + 1, dtype=np.int64)
        np.cumsum(np.bincount(ends, minlength=n), out=ptr[1:])
        return cls(ptr, others[order].astype(np.int32), given, self_loops, duplicates)

    def pairs(self) -> npt.NDArray[np.int64]:
        """Return every friendship once, int64 [edges, 2], the smaller number first."""
        ends = np.repeat(np.arange(len(self), dtype=np.int64), self.degree)
        once = ends < self.friends
        return np.column_stack([ends[once], self.friends[once].astype(np.int64)])


def rows_of_ids(edges: Any, ids: Ids) -> npt.NDArray[np.int64]:
    """Return pairs of external ids as pairs of rows, int64 [e, 2].

    Raises
    ------
    InputError
        An entry is no pair, or names a user who is not among ``ids``; names the row.
    """
    table = edges.to_numpy() if hasattr(edges, "to_numpy") else edges
    if isinstance(table, np.ndarray) and table.dtype.kind in "iu" and table.shape[1:] == (2,):
        flat: Any = table.ravel()
    else:
        rows_given = table.tolist() if isinstance(table, np.ndarray) else list(table)
        flat = []
        for row, pair in enumerate(rows_given):
            if isinstance(pair, (str, bytes)) or not hasattr(pair, "__len__") or len(pair) != 2:
                raise InputError("a friendship is a pair", field="edges", value=pair, row=row + 1)
            flat.extend(pair)
    if len(flat) == 0:
        return np.empty((0, 2), dtype=np.int64)
    try:
        found = ids.find(flat)
    except InputError:
        i = next(i for i, user in enumerate(flat) if not _could_be(user, ids))
        kind = "a text" if ids.kind == "text" else "a whole number"
        raise InputError(
            f"ids of these users are {kind} each", field="edges", value=flat[i], row=i // 2 + 1
        ) from None
    if (found < 0).any():
        i = int(np.argmax(found < 0))
        value = flat[i].item() if isinstance(flat, np.ndarray) else flat[i]
        raise InputError("no such user", field="edges", value=value, row=i // 2 + 1)
    return found.reshape(-1, 2)


def _could_be(user: Any, ids: Ids) -> bool:
    try:
        ids.find([user])
    except InputError:
        return False
    return True


def _checked_pairs(edges: Any) -> npt.NDArray[np.int64]:
    table = edges.to_numpy() if hasattr(edges, "to_numpy") else edges
    try:
        array = np.asarray(table)
    except ValueError:
        array = np.empty(0, dtype=object)
    if array.size == 0 and array.dtype != object:
        return np.empty((0, 2), dtype=np.int64)
    if array.ndim != 2 or array.shape[1] != 2 or array.dtype.kind not in "iuf":
        raise InputError(
            "must be pairs of whole numbers, shape [e, 2]",
            field="edges",
            value=f"{array.dtype} {list(array.shape)}",
            hint="with ids of another kind, name the users: fit(edges, users=...)",
        )
    if array.dtype.kind == "f":
        wrong = ~(np.isfinite(array) & (array == np.floor(array)) & (np.abs(array) < 2.0**53))
    elif array.dtype == np.uint64:
        wrong = array > np.uint64(_MOST_USERS)
    else:
        return array.astype(np.int64, copy=False)
    if wrong.any():
        row = int(np.argmax(wrong.any(axis=1)))
        raise InputError(
            "a user is a whole number",
            field="edges",
            value=array[row][wrong[row]][0].item(),
            row=row + 1,
        )
    return array.astype(np.int64)
