"""Places as flat arrays in the form that kernels and files have."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.spatial.columns import PlaceColumns

__all__ = ["PLACES", "fixed", "in_order", "place_arrays", "widened"]

_E7 = 1e7

#: Names of the arrays that hold places.
PLACES = (
    *("keys", "lon32", "lat32", "lon64", "lat64", "values32", "values64"),
    *("word_ptr", "word_ids"),
)


def in_order(columns: PlaceColumns, order: npt.NDArray[np.int64]) -> PlaceColumns:
    """Return the places in another order; ``order`` int64 [n] names the old rows."""
    lengths = np.diff(columns.word_ptr)[order]
    ptr = np.zeros(len(order) + 1, dtype=np.int64)
    np.cumsum(lengths, out=ptr[1:])
    # Each word's old place: its row's start plus its number within the row.
    old = np.repeat(columns.word_ptr[:-1][order] - ptr[:-1], lengths) + np.arange(ptr[-1])
    return PlaceColumns(
        keys=columns.keys[order],
        lon=columns.lon[order],
        lat=columns.lat[order],
        words=columns.words,
        word_ptr=ptr,
        word_ids=columns.word_ids[old],
        values=columns.values[:, order],
    )


def place_arrays(columns: PlaceColumns) -> tuple[dict[str, npt.NDArray[Any]], bool, bool]:
    """Return (arrays of the places, float64 positions?, float64 values?).

    The narrow form, integers of 1e-7 degree and float32, is used where it gives
    back every value exactly.
    """
    lon32 = np.rint(columns.lon * _E7).astype(np.int32)
    lat32 = np.rint(columns.lat * _E7).astype(np.int32)
    exact = bool((lon32 / _E7 != columns.lon).any() or (lat32 / _E7 != columns.lat).any())
    with np.errstate(over="ignore"):
        values32 = columns.values.astype(np.float32)
    same = (values32 == columns.values) | np.isnan(columns.values)
    wide = not bool(same.all())
    n = len(columns)
    return (
        {
            "keys": columns.keys.astype(np.int64),
            "lon32": lon32[: 0 if exact else n],
            "lat32": lat32[: 0 if exact else n],
            "lon64": columns.lon[: n if exact else 0].astype(np.float64),
            "lat64": columns.lat[: n if exact else 0].astype(np.float64),
            "values32": np.ascontiguousarray(values32[:, : 0 if wide else n]),
            "values64": np.ascontiguousarray(columns.values[:, : n if wide else 0], np.float64),
            "word_ptr": columns.word_ptr.astype(np.int64),
            "word_ids": columns.word_ids.astype(np.int32),
        },
        exact,
        wide,
    )


def widened(
    low: npt.NDArray[np.float64], high: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return float32 bounds outside float64 ones, by no more than rounding needs."""
    down, up = low.astype(np.float32), high.astype(np.float32)
    down = np.where(down > low, np.nextafter(down, np.float32(-np.inf)), down)
    up = np.where(up < high, np.nextafter(up, np.float32(np.inf)), up)
    return np.ascontiguousarray(down), np.ascontiguousarray(up)


def fixed(values: Any, dtype: Any = None) -> npt.NDArray[Any]:
    """Return a contiguous read-only view, so that a kernel is compiled for one kind of array."""
    view = np.ascontiguousarray(values, dtype=dtype).view()
    view.setflags(write=False)
    return view
