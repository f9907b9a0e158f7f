"""Bounds on sums of attributes, because minima of several attributes are no bound worth having.

The least cost of each of three independent attributes over 16 rows is about 0.06, the
least of their mean about 0.24: no row has all the minima. So nodes also keep, for
attributes taken together, the least mean of their costs. Attributes are taken in
groups of three in the order of the index; in a group every pair and the three together
have a column for each way of preferring low or high values. Any weights are then
bounded by a sum over few columns (``_bound_kernels.combine``); attributes of different
groups are bounded apart.

A column is a made-up attribute: the mean of two or three oriented costs. As for the
others ``low`` bounds it from below, and ``255 - high`` bounds from below the mean of
the same attributes, each preferred the other way round. The columns of a group of three
attributes 0, 1, 2 are, the first attribute preferred low throughout::

    0 1   0 -1   0 2   0 -2   1 2   1 -2   0 1 2   0 1 -2   0 -1 2   0 -1 -2
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from shoal.spatial.columns import AttributeSpec

__all__ = ["column_count", "combinations", "fill_combinations"]

#: Attributes of a group, and columns that a whole group has.
GROUP = 3
GROUP_COLUMNS = 10
#: Rows whose costs are held at once.
_ROWS = 8192


def combinations(d: int) -> Iterator[tuple[tuple[int, bool], ...]]:
    """Yield the columns of ``d`` attributes: (attribute, preferred high) of each."""
    for first in range(0, d, GROUP):
        members = range(first, min(d, first + GROUP))
        for size in range(2, len(members) + 1):
            for chosen in itertools.combinations(members, size):
                for flips in itertools.product((False, True), repeat=size - 1):
                    yield tuple(zip(chosen, (False, *flips), strict=True))


def column_count(d: int) -> int:
    """Return the number of columns of ``d`` attributes beside their own."""
    return GROUP_COLUMNS * (d // GROUP) + (2 if d % GROUP == 2 else 0)


def fill_combinations(
    values: npt.NDArray[np.float64],
    specs: Sequence[AttributeSpec],
    low: npt.NDArray[np.uint8],
    high: npt.NDArray[np.uint8],
) -> None:
    """Set the columns behind the attributes' own of every row.

    Parameters
    ----------
    values : float64 [d, n]
        Attributes as given, NaN where missing.
    specs : sequence of AttributeSpec
        d of them.
    low, high : uint8 [n, d + column_count(d)]
        Bounds in 255ths; the columns from d on are set. ``low / 255`` is not above
        the mean of the costs, ``1 - high / 255`` not above that of the costs the
        other way round. A row that every query with these attributes excludes gets
        255 and 0, which change no node's bounds.
    """
    d, n = values.shape
    made = list(combinations(d))
    for start in range(0, n, _ROWS if made else n + 1):
        rows = slice(start, start + _ROWS)
        costs, gone = [], []
        for spec, given in zip(specs, values[:, rows], strict=True):
            missing = np.isnan(given)
            cost = np.clip((given - spec.low) / spec.span, 0.0, 1.0)
            # What a missing value costs does not depend on the preference.
            stands_for = 0.5 if spec.missing == "neutral" else 1.0
            costs.append([np.where(missing, stands_for, c) for c in (cost, 1.0 - cost)])
            gone.append(missing & (spec.missing == "exclude"))
        for column, combination in enumerate(made, d):
            away = np.any([gone[j] for j, _ in combination], axis=0)
            scale = 255.0 / len(combination)
            for bounds, turned, nothing in ((low, False, 255), (high, True, 0)):
                total = np.add.reduce([costs[j][flip != turned] for j, flip in combination])
                # The subtrahend is far more than the rounding of the sums can be.
                least = np.maximum(0.0, np.floor(total * scale - 1e-6)).astype(np.uint8)
                bounds[rows, column] = np.where(away, nothing, 255 - least if turned else least)
