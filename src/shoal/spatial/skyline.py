"""Skylines: the rows that no other row beats in every coordinate, lower being better.

A row dominates another when it is nowhere above it and somewhere below. For
weights that are not negative, the least weighted sum over the skyline is the
least over all rows, so a node of a tree needs to keep no more than its skyline
to bound its attributes (Börzsönyi, Kossmann and Stocker, "The skyline
operator", ICDE 2001; block-nested loops).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from shoal.core.errors import InputError
from shoal.spatial._skyline_kernels import merge_surplus, skyline_window

__all__ = ["capped_skyline", "corner", "skyline"]


def skyline(values: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Return the rows that no other row dominates.

    Parameters
    ----------
    values : float [n, d]
        Lower is better in every column; infinite values are fine. What a
        missing value means is for the caller to decide: NaN is refused.

    Returns
    -------
    int64 [s]
        Row numbers from 0, ascending. Rows that are equal do not dominate each
        other, so all of them are in or none.

    Raises
    ------
    InputError
        ``values`` is not two-dimensional or has a NaN.

    Notes
    -----
    Rows are looked at in the order of their sums, so none of those found is
    thrown out again (Chomicki et al., "Skyline with presorting", ICDE 2003).
    """
    points = _points(values)
    n, d = points.shape
    if n == 0 or d == 0:
        return np.arange(n, dtype=np.int64)
    columns = tuple(points[:, c] for c in range(d - 1, -1, -1))
    if np.isfinite(points).all():
        with np.errstate(over="ignore"):
            columns = (*columns, points.sum(axis=1))
    # A sum of infinities may be NaN: then the columns alone give an order in which
    # no row comes before one that dominates it.
    found: npt.NDArray[np.int64] = skyline_window(points, np.lexsort(columns))
    found.sort()
    return found


def capped_skyline(values: npt.ArrayLike, cap: int) -> npt.NDArray[np.float64]:
    """Return at most ``cap`` points below which no row of ``values`` lies.

    The skyline without repeats; where it has more than ``cap`` points, pairs
    are replaced by their coordinate-wise minimum. Every row of ``values`` is
    covered by (nowhere below) one of the points, so for weights that are not
    negative the least weighted sum over the points is a lower bound of the
    least over the rows, and no less than that of the :func:`corner`.

    Parameters
    ----------
    values : float [n, d]
        Lower is better, no NaN.
    cap : int
        At least 1.

    Returns
    -------
    float64 [s, d]

    Raises
    ------
    InputError
        ``values`` is not two-dimensional or has a NaN, or ``cap`` is below 1.
    """
    if cap < 1:
        raise InputError("a skyline has at least one point", field="cap", value=cap)
    points = _points(values)
    if points.shape[0] == 0 or points.shape[1] == 0:
        return points[:cap].copy()
    window = np.unique(points[skyline(points)], axis=0)
    kept: npt.NDArray[np.float64] = window[: merge_surplus(window, len(window), cap)].copy()
    return kept


def corner(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return the minimum of every column of ``values`` [n, d], n at least 1."""
    points = _points(values)
    if len(points) == 0:
        raise InputError("no rows have no corner", field="values")
    least: npt.NDArray[np.float64] = points.min(axis=0)
    return least


def _points(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    points = np.ascontiguousarray(values, dtype=np.float64)
    if points.ndim != 2:
        raise InputError("values need rows and columns", field="values", value=points.shape)
    gone = np.isnan(points).any(axis=1)
    if gone.any():
        raise InputError("a value is NaN", field="values", row=int(gone.argmax()) + 1)
    return points
