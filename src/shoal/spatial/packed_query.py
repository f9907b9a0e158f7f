"""A query plan as the two arrays that the packed layout's kernels read."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from shoal.core.errors import InputError
from shoal.spatial import _kernels as k
from shoal.spatial.query import TEXT_BM25, QueryPlan

if TYPE_CHECKING:
    from shoal.spatial.packed import PackedLayout

__all__ = ["encode_query"]

#: The last plan of each thread, encoded: an index asks every segment the same.
_last = threading.local()


def encode_query(
    layout: PackedLayout, plan: QueryPlan
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return a plan as (integers int64, reals float64), laid out as ``_kernels`` says.

    Raises
    ------
    InputError
        There are more words than kernels take, or an attribute is not the layout's.
    """
    same = plan is getattr(_last, "plan", None) and len(layout.specs) == _last.width
    if same and plan.filters is None:
        # The same question to another segment: but for the words' ids, all is as it was.
        integers, reals = _last.integers.copy(), _last.reals
    else:
        integers, reals = _encode(layout, plan)
        _last.plan, _last.width = plan, len(layout.specs)
        _last.integers, _last.reals = integers.copy(), reals
    if plan.words or plan.without:
        ids = layout.terms.ids((*plan.words, *plan.without))
        integers[k.WORDS : k.WORDS + len(plan.words)] = ids[: len(plan.words)]
        first = k.WORDS + k.MAX_WORDS
        integers[first : first + len(plan.without)] = ids[len(plan.words) :]
    return integers, reals.copy()


def _encode(
    layout: PackedLayout, plan: QueryPlan
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return the arrays of a plan without its words' ids."""
    _check(layout, plan)
    filters, region = plan.filters, plan.region
    integers = np.zeros(k.INTEGERS, dtype=np.int64)
    reals = np.zeros(k.REALS, dtype=np.float64)
    integers[k.K] = plan.k
    integers[k.HAS_POINT] = plan.has_point
    integers[k.MATCH] = plan.match
    integers[k.BM25] = plan.text_kind == TEXT_BM25
    integers[k.DECAY_KIND] = plan.decay_kind
    integers[k.REGION] = 0 if region is None else region.kind
    integers[k.N_WORDS] = len(plan.words)
    integers[k.N_WITHOUT] = len(plan.without)
    integers[k.N_PREFER] = len(plan.pref_column)
    if plan.words:
        reals[k.WEIGHTS : k.WEIGHTS + len(plan.words)] = plan.word_weights
    reals[k.LON], reals[k.LAT] = plan.lon, plan.lat
    reals[k.SCALE], reals[k.MAX_KM] = plan.decay_scale, plan.max_km
    reals[k.K1], reals[k.B], reals[k.MEAN_WORDS] = plan.bm25_k1, plan.bm25_b, plan.mean_words
    # Without a point every distance is 0, and so is the part: see the reference.
    reals[k.W_SPACE : k.W_ATTRIBUTES + 1] = plan.weights[:3]
    lists: dict[int, npt.NDArray[np.int64]] = {
        k.PREFER: plan.pref_column.astype(np.int64),
        k.FLIP: plan.pref_flip.astype(np.int64),
    }
    if filters is not None:
        integers[k.N_GROUPS] = len(filters.column)
        low, high = _hulls(layout, plan)
        lists |= {
            k.GROUP: filters.column.astype(np.int64),
            k.GROUP_PTR: filters.ptr.astype(np.int64),
            k.GROUP_LOW: low,
            k.GROUP_HIGH: high,
        }
    none = np.empty(0)
    real_lists = {
        k.PREFER_WEIGHT: plan.pref_weight,
        k.LOW: none if filters is None else filters.low,
        k.HIGH: none if filters is None else filters.high,
        k.POINTS: none if region is None else region.points.astype(np.float64).ravel(),
        k.POINTS_STOP: none,
    }
    reals[k.CAP_CHORD2] = 4.0
    if region is not None:
        if region.kind == 2:
            lists[k.RINGS] = region.ptr.astype(np.int64)
        reals[k.CAP_X], reals[k.CAP_Y], reals[k.CAP_Z] = region.cap
        # A little more, for the rounding of the cap's point and of the rows'.
        reals[k.CAP_CHORD2] = region.cap_chord2 * (1.0 + 1e-9) + 1e-14
    place = k.INTEGERS
    for name, values in lists.items():
        integers[name] = place
        place += len(values)
    integers[k.RINGS_STOP] = place
    place = k.REALS
    for name, reals_of in real_lists.items():
        integers[name] = place
        place += len(reals_of)
    return (
        np.concatenate([integers, *lists.values()]),
        np.concatenate([reals, *real_lists.values()]),
    )


def _check(layout: PackedLayout, plan: QueryPlan) -> None:
    for field, words in (("keywords", plan.words), ("without", plan.without)):
        if len(words) > k.MAX_WORDS:
            raise InputError(
                f"a query has at most {k.MAX_WORDS} different keywords",
                field=field,
                value=len(words),
            )
    for columns in (plan.pref_column, () if plan.filters is None else plan.filters.column):
        for column in columns:
            if not 0 <= column < len(layout.specs):
                raise InputError("there is no such attribute", field="prefer", value=int(column))


def _hulls(
    layout: PackedLayout, plan: QueryPlan
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return, for each filter, bounds in 255ths of the costs of the values that pass it."""
    assert plan.filters is not None
    low = np.empty(len(plan.filters.column), dtype=np.int64)
    high = np.empty(len(plan.filters.column), dtype=np.int64)
    for group, column in enumerate(plan.filters.column):
        spec = layout.specs[column]
        first, stop = plan.filters.ptr[group], plan.filters.ptr[group + 1]
        if first == stop:
            low[group], high[group] = 1, 0
            continue
        least = min(
            1.0, max(0.0, (float(plan.filters.low[first:stop].min()) - spec.low) / spec.span)
        )
        most = min(
            1.0, max(0.0, (float(plan.filters.high[first:stop].max()) - spec.low) / spec.span)
        )
        # Outward by a whole step: no care for the last bit is needed here.
        low[group] = math.floor(least * 255.0) - 1
        high[group] = math.ceil(most * 255.0) + 1
    return low, high
