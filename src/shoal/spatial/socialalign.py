"""The rotation that brings new vectors closest to earlier ones."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from shoal.core.errors import InputError
from shoal.spatial.socialvectors import unit_rows

__all__ = ["turned_to"]


def turned_to(
    vectors: npt.NDArray[np.float32],
    rows: npt.NDArray[np.int64],
    earlier: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.float32], int, float]:
    """Turn vectors so that some of them fit earlier ones best.

    The rotation of the least squared difference (orthogonal Procrustes,
    Schönemann 1966) is applied to all.

    Parameters
    ----------
    vectors : float32 [n, dim]
    rows : int64 [m]
        Those that have an earlier vector.
    earlier : float32 [m, dim]
        That vector.

    Returns
    -------
    turned : float32 [n, dim]
    told : int
        Rows with a vector that is not zero both times; the rotation is theirs.
    cosine : float
        Their mean cosine after the turn.

    Raises
    ------
    InputError
        There is no such row.
    """
    a = vectors[rows].astype(np.float64)
    b = earlier.astype(np.float64)
    told = a.any(axis=1) & b.any(axis=1)
    if not told.any():
        raise InputError("no user with a vector is in both", field="previous")
    left, _, right = np.linalg.svd(a[told].T @ b[told])
    turned = unit_rows(vectors.astype(np.float64) @ (left @ right))
    cosine = np.einsum("ij,ij->i", turned[rows][told].astype(np.float64), b[told])
    return turned, int(told.sum()), float(cosine.mean())
