"""Columns of layouts, kept for as long as their layouts live."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager

from shoal.spatial.columns import Layout
from shoal.spatial.visitcolumns import VisitColumns

__all__ = ["HeldColumns"]


class HeldColumns:
    """A table from layouts to their columns, which does not keep a layout alive."""

    def __init__(self) -> None:
        self._table: dict[int, tuple[weakref.ref[Layout], VisitColumns]] = {}

    def of(
        self,
        layout: Layout,
        make: Callable[[Layout], VisitColumns],
        lock: AbstractContextManager[object],
    ) -> VisitColumns:
        """Return the columns of a layout; made under the lock when it is first asked for."""
        known = self._table.get(id(layout))
        if known is not None and known[0]() is layout:
            return known[1]
        with lock:
            known = self._table.get(id(layout))
            if known is not None and known[0]() is layout:
                return known[1]
            columns = make(layout)
            name = id(layout)
            table = self._table

            def forget(_: object) -> None:
                table.pop(name, None)

            table[name] = (weakref.ref(layout, forget), columns)
            return columns

    def all(self) -> list[VisitColumns]:
        """Return the columns of all layouts that live."""
        return [columns for _, columns in list(self._table.values())]

    def clear(self) -> None:
        """Forget all columns; each is made again when it is asked for."""
        self._table = {}
