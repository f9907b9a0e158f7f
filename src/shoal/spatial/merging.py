"""When segments are merged, and how: columns of several put together, the dead left out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from shoal.spatial.columns import PlaceColumns

if TYPE_CHECKING:
    from shoal.spatial.segment import SegmentView

__all__ = ["empty_columns", "keep_rows", "merge_columns", "overdue"]


def overdue(views: Sequence[SegmentView], memtable_rows: int, fan_in: int) -> Sequence[SegmentView]:
    """Return segments that are to become one: mostly dead, or ``fan_in`` of about one size.

    Sizes are counted in memtables; those of one size differ by less than ``fan_in``
    times. None where there is nothing to merge.
    """
    levels: dict[int, list[SegmentView]] = {}
    for view in views:
        if 2 * view.deaths > len(view.segment):
            return (view,)
        size = max(1.0, view.n_live / memtable_rows)
        levels.setdefault(int(math.log(size, fan_in) + 1e-9), []).append(view)
    for _, group in sorted(levels.items()):
        if len(group) >= fan_in:
            return group
    return ()


def empty_columns(attributes: int) -> PlaceColumns:
    """Return the columns of no place with a number of attributes."""
    return PlaceColumns(
        keys=np.empty(0, dtype=np.int64),
        lon=np.empty(0),
        lat=np.empty(0),
        words=[],
        word_ptr=np.zeros(1, dtype=np.int64),
        word_ids=np.empty(0, dtype=np.int32),
        values=np.empty((attributes, 0)),
    )


def keep_rows(columns: PlaceColumns, rows: npt.NDArray[np.bool_]) -> PlaceColumns:
    """Return the columns of the rows where ``rows`` (bool [n]) says so, in their order.

    Words that none of them has are left out of the vocabulary.
    """
    counts = np.diff(columns.word_ptr)
    ptr = np.zeros(int(np.count_nonzero(rows)) + 1, dtype=np.int64)
    np.cumsum(counts[rows], out=ptr[1:])
    ids = columns.word_ids[np.repeat(rows, counts)]
    used = np.zeros(len(columns.words), dtype=np.bool_)
    used[ids] = True
    number = np.cumsum(used, dtype=np.int32) - np.int32(1)
    return PlaceColumns(
        keys=columns.keys[rows],
        lon=columns.lon[rows],
        lat=columns.lat[rows],
        words=[columns.words[i] for i in np.flatnonzero(used).tolist()],
        word_ptr=ptr,
        word_ids=number[ids],
        values=columns.values[:, rows],
    )


def merge_columns(parts: Sequence[PlaceColumns], attributes: int) -> PlaceColumns:
    """Return all rows of several columns, one after the other.

    Parameters
    ----------
    parts : sequence of PlaceColumns
        No key occurs twice in them.
    attributes : int
        Rows of ``values``.
    """
    parts = [part for part in parts if len(part)]
    if not parts:
        return empty_columns(attributes)
    if len(parts) == 1:
        return parts[0]
    words = sorted(set().union(*(part.words for part in parts)))
    number = {word: i for i, word in enumerate(words)}
    ids, ptrs, start = [], [np.zeros(1, dtype=np.int64)], 0
    for part in parts:
        # Both vocabularies are sorted, so ids stay ascending within a row.
        new = np.array([number[word] for word in part.words], dtype=np.int32)
        ids.append(new[part.word_ids] if len(part.word_ids) else part.word_ids)
        ptrs.append(part.word_ptr[1:] + start)
        start += len(part.word_ids)
    return PlaceColumns(
        keys=np.concatenate([part.keys for part in parts]),
        lon=np.concatenate([part.lon for part in parts]),
        lat=np.concatenate([part.lat for part in parts]),
        words=words,
        word_ptr=np.concatenate(ptrs),
        word_ids=np.concatenate(ids),
        values=np.concatenate([part.values for part in parts], axis=1),
    )
