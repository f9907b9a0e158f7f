"""Names of nodes of a graph that grows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.core.errors import InputError, NotFoundError

__all__ = ["NodeNames"]


class NodeNames:
    """Rows of names and names of rows.

    Parameters
    ----------
    n : int
    names : list, optional
        None: the rows are the names.
    """

    def __init__(self, n: int, names: list[Any] | None) -> None:
        self.n = n
        self.names = None if names is None else list(names)
        self._rows = None if names is None else {name: row for row, name in enumerate(names)}

    def rows(self, names: Iterable[Any], field: str) -> list[int]:
        """Return rows of names.

        Raises
        ------
        NotFoundError
            A name is unknown; it is named with its place.
        """
        rows = []
        for place, name in enumerate(names):
            row = self._find(name)
            if row is None:
                raise NotFoundError(f"{field}, row {place + 1}: there is no node {_plain(name)!r}")
            rows.append(row)
        return rows

    def labels(self, rows: npt.ArrayLike) -> list[Any]:
        """Return names of rows."""
        plain = np.asarray(rows, dtype=np.int64).tolist()
        return plain if self.names is None else [self.names[row] for row in plain]

    def unknown(self, names: Iterable[Any]) -> list[Any]:
        """Return those that are no nodes yet, once each, in their order.

        Raises
        ------
        InputError
            A name is of another kind than those that there are.
        """
        new = dict.fromkeys(_plain(name) for name in names if self._find(name) is None)
        texts = self.names is not None and bool(self.names) and isinstance(self.names[0], str)
        for name in new:
            right = isinstance(name, str) if texts else _is_integer(name) and name >= 0
            if not right:
                kind = "text" if texts else "integers from 0"
                raise InputError(f"names of this graph are {kind}", field="names", value=name)
        return list(new)

    def add(self, new: list[Any]) -> None:
        """Give the next rows the names ``new``, which must be unknown."""
        if self.names is None and new != list(range(self.n, self.n + len(new))):
            self.names = list(range(self.n))
            self._rows = {name: name for name in self.names}
        if self.names is not None and self._rows is not None:
            self._rows.update((name, self.n + place) for place, name in enumerate(new))
            self.names.extend(new)
        self.n += len(new)

    def _find(self, name: Any) -> int | None:
        if self._rows is not None:
            try:
                return self._rows.get(name)
            except TypeError:
                return None
        if _is_integer(name) and 0 <= name < self.n:
            return int(name)
        return None


def _is_integer(name: Any) -> bool:
    return isinstance(name, int | np.integer) and not isinstance(name, bool)


def _plain(name: Any) -> Any:
    return name.item() if isinstance(name, np.generic) else name
