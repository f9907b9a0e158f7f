"""A layout held as flat arrays by name: what the trees of places have alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from shoal.core.errors import IntegrityError
from shoal.spatial.columns import AttributeSpec, PlaceColumns
from shoal.spatial.placearrays import fixed
from shoal.spatial.terms import Terms

__all__ = ["FlatLayout", "with_terms"]

_TERMS = "terms_"


class FlatLayout:
    """Places in an order, their words, and the arrays of a tree over them.

    ``KIND`` is the layout's name in ``meta``, of which this is version 1, and
    ``NAMES`` are those of the arrays beside the terms'; ``PLACES`` are among them.
    """

    KIND: ClassVar[str]
    NAMES: ClassVar[tuple[str, ...]]

    def __init__(self, arrays: Mapping[str, npt.NDArray[Any]], meta: Mapping[str, Any]) -> None:
        self._meta = dict(meta)
        self.specs = tuple(AttributeSpec(**spec) for spec in meta["specs"])
        # Read-only views: memory-mapped files and fresh arrays are one type to the kernels.
        self._arrays = {name: fixed(arrays[name]) for name in self.NAMES}
        self.terms = Terms.from_arrays(
            {
                name.removeprefix(_TERMS): array
                for name, array in arrays.items()
                if name.startswith(_TERMS)
            }
        )

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]], meta: Mapping[str, Any]) -> Self:
        """Return the layout that :meth:`arrays` and :meth:`meta` came from.

        Raises
        ------
        IntegrityError
            An array or entry is missing, the version is unknown, or lengths
            that belong together differ.
        """
        if meta.get("layout") != cls.KIND or meta.get("version") != 1:
            raise IntegrityError(
                f"no {cls.KIND} layout of version 1: {meta.get('layout')!r} {meta.get('version')!r}"
            )
        try:
            found = cls(arrays, meta)
        except KeyError as error:
            raise IntegrityError(f"{cls.KIND} layout without {error.args[0]!r}") from None
        held, n = found._arrays, len(found)
        lengths = {
            "word_ptr": n + 1,
            ("lon64" if meta["exact"] else "lon32"): n,
            ("lat64" if meta["exact"] else "lat32"): n,
            **found._lengths(),
        }
        for name, length in lengths.items():
            if len(held[name]) != length:
                raise IntegrityError(
                    f"array {name!r} has {len(held[name])} entries instead of {length}"
                )
        return found

    def _lengths(self) -> dict[str, int]:
        """Return how long the arrays of the tree must be."""
        raise NotImplementedError

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._arrays["keys"])

    @property
    def keys(self) -> npt.NDArray[np.int64]:
        """Return the key of each row, int64 [n]."""
        return self._arrays["keys"]

    def positions(
        self, rows: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return (lon, lat) of rows, degrees, float64 each."""
        held = self._arrays
        if self._meta["exact"]:
            return held["lon64"][rows], held["lat64"][rows]
        return held["lon32"][rows] / 1e7, held["lat32"][rows] / 1e7

    def columns(self) -> PlaceColumns:
        """Return the places as columns, in row order."""
        held = self._arrays
        exact, wide = self._meta["exact"], self._meta["wide"]
        return PlaceColumns(
            keys=held["keys"],
            lon=held["lon64"] if exact else held["lon32"] / 1e7,
            lat=held["lat64"] if exact else held["lat32"] / 1e7,
            words=self.terms.words(),
            word_ptr=held["word_ptr"],
            word_ids=held["word_ids"],
            values=held["values64"] if wide else held["values32"].astype(np.float64),
        )

    def arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """Return the flat arrays that a file holds, by name."""
        named = {_TERMS + name: array for name, array in self.terms.arrays().items()}
        return {**self._arrays, **named}

    def meta(self) -> dict[str, object]:
        """Return what :meth:`from_arrays` needs beside the arrays; JSON only."""
        return dict(self._meta)


def with_terms(
    arrays: Mapping[str, npt.NDArray[Any]], columns: PlaceColumns
) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of a layout together with those of its words."""
    named = Terms.build(columns.words).arrays()
    return {**arrays, **{_TERMS + name: array for name, array in named.items()}}
