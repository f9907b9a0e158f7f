"""External ids: what callers call places and users, and the numbers the engine uses.

Whole-number ids of places are their own keys. Text ids, and ids of users, are
numbered in the order in which they first came; the numbers stay when more are
added, so that saved arrays and running readers keep their meaning.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shoal.core.errors import InputError, NotFoundError
from shoal.spatial.terms import Terms
from shoal.spatial.vocabulary import Vocabulary

__all__ = ["IdKind", "Ids"]

IdKind = Literal["int", "text", "int-numbered"]

_UNKNOWN = -1


class Ids:
    """Both directions between external ids and int64 keys.

    Parameters
    ----------
    kind : {"int", "text", "int-numbered"}
        ``int``: an id is its own key. ``text``: texts, numbered. ``int-numbered``:
        whole numbers of any size, numbered densely (users).

    Notes
    -----
    The ids of the first build lie in compact sorted arrays; later ones in a
    dictionary. One writer adds; readers may read at the same time.
    """

    def __init__(self, kind: IdKind) -> None:
        self.kind: IdKind = kind
        self._terms = Terms.build([])
        self._numbers = np.empty(0, dtype=np.int64)  # sorted, for "int-numbered"
        self._key_of_rank = np.empty(0, dtype=np.int64)
        self._rank_of_key = np.empty(0, dtype=np.int64)
        self._later: dict[Any, int] = {}
        self._later_ids: list[Any] = []

    @classmethod
    def of(
        cls, ids: Any, n: int | None = None, *, dense: bool = False
    ) -> tuple[Ids, npt.NDArray[np.int64]]:
        """Make the map for some first ids and return it with their keys.

        Parameters
        ----------
        ids : sequence of int or str, or None
            The ids; None numbers ``n`` things from 0.
        n : int, optional
            How many, for ``ids=None``.
        dense : bool
            Number whole-number ids densely instead of using them as keys.

        Raises
        ------
        InputError
            Ids of mixed or unfit types.
        """
        if ids is None:
            return cls("int"), np.arange(n or 0, dtype=np.int64)
        texts = _texts(ids)
        if texts is not None:
            made = cls("text")
            return made, made._first_texts(texts)
        column = _column(ids)
        if column.dtype == np.int64 and not dense:
            return cls("int"), column
        if column.dtype != np.int64:
            # Texts, but not of the plain kind: whatever is wrong with one is said of it.
            made = cls("text")
            return made, made._first_texts(pa.array(_encodable(column), pa.large_string()))
        made = cls("int-numbered")
        return made, made._first_numbers(column)

    def __len__(self) -> int:
        """Return how many ids are numbered (0 for ids that are their own keys)."""
        return len(self._rank_of_key) + len(self._later_ids)

    def add(self, ids: Any) -> npt.NDArray[np.int64]:
        """Return the keys of ids, numbering those that are new.

        Raises
        ------
        InputError
            The ids are of another type than the map's.
        """
        column = self._checked(ids)
        if self.kind == "int":
            return column
        keys = self._lookup(column)
        for i in np.flatnonzero(keys == _UNKNOWN):
            value = column[i] if self.kind == "text" else int(column[i])
            key = self._later.get(value)
            if key is None:
                key = len(self)
                self._later_ids.append(value)
                self._later[value] = key
            keys[i] = key
        return keys

    def put(self, ids: Sequence[Any], keys: Sequence[int]) -> None:
        """Give ids their keys again, as a journal says they had."""
        for one, key in zip(ids, keys, strict=True):
            if self._lookup(_column([one]))[0] == key:
                continue
            first = len(self._rank_of_key)
            while len(self._later_ids) <= key - first:
                self._later_ids.append(None)  # a number that never came to be used
            self._later_ids[key - first] = one
            self._later[one] = key

    def find(self, ids: Any) -> npt.NDArray[np.int64]:
        """Return the keys of ids, -1 for those never seen."""
        column = self._checked(ids)
        return column if self.kind == "int" else self._lookup(column)

    def get(self, one: Any, what: str = "id") -> int:
        """Return the key of one id.

        Raises
        ------
        NotFoundError
            It was never seen.
        """
        key = int(self.find([one])[0])
        if key == _UNKNOWN and self.kind != "int":
            raise NotFoundError(f"no such {what}: {one!r}")
        return key

    def names(self, keys: npt.NDArray[np.int64]) -> list[Any]:
        """Return the external ids of keys."""
        if self.kind == "int":
            plain: list[Any] = keys.tolist()
            return plain
        first = len(self._rank_of_key)
        return [
            self._later_ids[key - first] if key >= first else self._early(key)
            for key in keys.tolist()
        ]

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the map as flat arrays (what was added later is merged in)."""
        if self.kind == "int":
            return {}
        if not self._later_ids:
            return self._arrays(self._key_of_rank, self._terms, self._numbers)
        everything = self.names(np.arange(len(self), dtype=np.int64))
        # A number that never came to be used has no id.
        number = {one: key for key, one in enumerate(everything) if one is not None}
        ordered = sorted(number)
        key_of_rank = np.array([number[one] for one in ordered], dtype=np.int64)
        if self.kind == "text":
            return self._arrays(key_of_rank, Terms.build(ordered), self._numbers)
        return self._arrays(key_of_rank, self._terms, np.array(ordered, dtype=np.int64))

    def _arrays(
        self, key_of_rank: npt.NDArray[np.int64], terms: Terms, numbers: npt.NDArray[np.int64]
    ) -> dict[str, npt.NDArray[Any]]:
        arrays = {"key_of_rank": key_of_rank, "count": np.array([len(self)])}
        if self.kind == "text":
            return arrays | {f"terms.{name}": array for name, array in terms.arrays().items()}
        return arrays | {"numbers": numbers}

    @classmethod
    def from_arrays(cls, kind: IdKind, arrays: dict[str, npt.NDArray[Any]]) -> Ids:
        """Return the map that :meth:`arrays` came from."""
        made = cls(kind)
        if kind == "int":
            return made
        if kind == "text":
            made._terms = Terms.from_arrays(
                {k.removeprefix("terms."): v for k, v in arrays.items() if k.startswith("terms.")}
            )
        else:
            made._numbers = arrays["numbers"]
        made._set_order(arrays["key_of_rank"], int(arrays["count"][0]))
        return made

    def _first_texts(self, column: pa.LargeStringArray) -> npt.NDArray[np.int64]:
        """Number the first texts by their first place; return the key of each entry."""
        encoded = column.dictionary_encode()  # numbers them just so
        order = pc.sort_indices(encoded.dictionary)
        self._terms = Terms.build(Vocabulary(encoded.dictionary.take(order)))
        self._set_order(order.to_numpy().astype(np.int64))
        keys: npt.NDArray[np.int64] = encoded.indices.to_numpy().astype(np.int64)
        return keys

    def _first_numbers(self, column: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Number the first whole numbers by their first place; return the key of each entry."""
        numbers, first, inverse = np.unique(column, return_index=True, return_inverse=True)
        key_of_rank = np.empty(len(numbers), dtype=np.int64)
        key_of_rank[np.argsort(first, kind="stable")] = np.arange(len(numbers))
        self._numbers = numbers
        self._set_order(key_of_rank)
        keys: npt.NDArray[np.int64] = key_of_rank[inverse.ravel()]
        return keys

    def _set_order(self, key_of_rank: npt.NDArray[np.int64], count: int | None = None) -> None:
        self._key_of_rank = key_of_rank
        self._rank_of_key = np.full(
            len(key_of_rank) if count is None else count, _UNKNOWN, dtype=np.int64
        )
        self._rank_of_key[key_of_rank] = np.arange(len(key_of_rank))

    def _lookup(self, column: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        if self.kind == "text":
            ranks = self._terms.ids(column.tolist())
        elif len(self._numbers):
            ranks = np.searchsorted(self._numbers, column)
            hit = ranks < len(self._numbers)
            hit[hit] = self._numbers[ranks[hit]] == column[hit]
            ranks = np.where(hit, ranks, _UNKNOWN)
        else:
            ranks = np.full(len(column), _UNKNOWN, dtype=np.int64)
        keys = np.full(len(column), _UNKNOWN, dtype=np.int64)
        known = ranks >= 0
        keys[known] = self._key_of_rank[ranks[known]]
        if self._later:
            for i in np.flatnonzero(~known):
                keys[i] = self._later.get(column[i], _UNKNOWN)
        return keys

    def _early(self, key: int) -> Any:
        rank = int(self._rank_of_key[key])
        if rank == _UNKNOWN:
            return None
        return self._terms.word(rank) if self.kind == "text" else int(self._numbers[rank])

    def _checked(self, ids: Any) -> npt.NDArray[Any]:
        column = _column(ids)
        wants_text = self.kind == "text"
        if len(column) and (column.dtype == object) != wants_text:
            raise InputError(
                f"ids of this index are {'texts' if wants_text else 'whole numbers'}",
                field="ids",
                value=column[0],
            )
        return column


def _texts(ids: Any) -> pa.LargeStringArray | None:
    """Return ids as a column if all are plainly texts that are not empty, else None."""
    if isinstance(ids, np.ndarray):
        if ids.dtype.kind not in "OU":
            return None
        ids = ids.tolist()
    if isinstance(ids, (list, tuple)):
        if not ids or not isinstance(ids[0], str):
            return None
        try:
            ids = pa.array(ids)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            return None
    elif hasattr(ids, "to_arrow"):
        ids = ids.to_arrow()
    if isinstance(ids, pa.ChunkedArray):
        ids = ids.combine_chunks()
    if not isinstance(ids, pa.Array) or ids.null_count or not len(ids):
        return None
    kind = ids.type
    if not (
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    ):
        return None
    column = ids if kind == pa.large_string() else ids.cast(pa.large_string())
    return column if pc.min(pc.binary_length(column)).as_py() else None


def _encodable(column: npt.NDArray[Any]) -> list[str]:
    """Return texts, or raise for the first that UTF-8 cannot hold."""
    texts: list[str] = column.tolist()
    for row, text in enumerate(texts):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InputError(
                "an id must be text that UTF-8 can hold", field="ids", value=repr(text), row=row + 1
            ) from None
    return texts


def _column(ids: Any) -> npt.NDArray[Any]:
    """Return ids as int64, or as an object array of texts."""
    if hasattr(ids, "to_pylist"):
        ids = ids.to_pylist()
    elif hasattr(ids, "to_numpy") and not isinstance(ids, np.ndarray):
        ids = ids.to_numpy()
    if isinstance(ids, np.ndarray) and ids.dtype.kind in "iu":
        if ids.dtype == np.uint64 and len(ids) and int(ids.max()) > np.iinfo(np.int64).max:
            raise InputError("an id is above 2^63 - 1", field="ids", value=int(ids.max()))
        return np.ascontiguousarray(ids, dtype=np.int64)
    values: Sequence[Any] = ids.tolist() if isinstance(ids, np.ndarray) else list(ids)
    if all(
        isinstance(value, (int, np.integer)) and not isinstance(value, bool) for value in values
    ):
        try:
            return np.array(values, dtype=np.int64)
        except OverflowError:
            raise InputError("an id does not fit into 64 bits", field="ids") from None
    column = np.empty(len(values), dtype=object)
    for row, value in enumerate(values):
        if not isinstance(value, str) or not value:
            raise InputError(
                "ids are all whole numbers or all texts that are not empty",
                field="ids",
                value=value,
                row=row + 1,
            )
        column[row] = value
    return column
