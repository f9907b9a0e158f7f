"""Hilbert order of positions: neighbours in the order are neighbours on the map."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from shoal.spatial import _build_kernels as kernels

__all__ = ["hilbert_key", "hilbert_order"]


def hilbert_key(
    lon: npt.NDArray[np.float64], lat: npt.NDArray[np.float64]
) -> npt.NDArray[np.uint64]:
    """Return the place of each position on a Hilbert curve.

    Parameters
    ----------
    lon, lat : float64 [n]
        Degrees, finite, in [-180, 180] and [-90, 90].

    Returns
    -------
    uint64 [n]
        Place on the curve through 2^26 x 2^26 cells of 360 / 2^26 degrees
        (60 cm at the equator); the upper half of the square is empty, since a
        degree counts the same in both directions.
    """
    keys = np.empty(len(lon), dtype=np.uint64)
    # Writable ones: for mapped arrays the kernel would be compiled again.
    x, y = (np.require(degrees, np.float64, ["C", "W"]) for degrees in (lon, lat))
    kernels.hilbert_keys(x, y, keys)
    return keys


def hilbert_order(
    lon: npt.NDArray[np.float64], lat: npt.NDArray[np.float64]
) -> npt.NDArray[np.int64]:
    """Return the permutation that puts positions in Hilbert order; equal cells keep their order.

    Parameters
    ----------
    lon, lat : float64 [n]
        Degrees, finite, in [-180, 180] and [-90, 90].

    Returns
    -------
    int64 [n]
        ``order[i]`` is the position that becomes row ``i``.
    """
    return np.argsort(hilbert_key(lon, lat), kind="stable").astype(np.int64, copy=False)
