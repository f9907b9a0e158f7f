"""A plan in the numbers of the QDR-Tree's kernels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from shoal.spatial import _qdr_kernels as kernels
from shoal.spatial.placearrays import fixed
from shoal.spatial.query import TEXT_BM25, QueryPlan

__all__ = ["QueryWords", "kernel_query"]


class QueryWords(NamedTuple):
    """The words of a plan, int64 each: number here, leaf, bit there, source; and the unwanted."""

    ids: npt.NDArray[np.int64]
    leaf: npt.NDArray[np.int64]
    bit: npt.NDArray[np.int64]
    source: npt.NDArray[np.int64]
    without: npt.NDArray[np.int64]


def kernel_query(
    plan: QueryPlan,
    words: QueryWords,
    live: npt.NDArray[np.uint8] | None,
    *,
    switches: tuple[bool, bool, bool],
) -> kernels.Query:
    """Return a plan in numbers; ``switches`` say whether bitmaps, corners and skylines are used."""
    filters, region = plan.filters, plan.region
    x, y, z, cos_lat = kernels.query_point(float(plan.lon), float(plan.lat))
    return kernels.Query(
        has_point=bool(plan.has_point),
        lon=float(plan.lon),
        lat=float(plan.lat),
        cos_lat=cos_lat,
        x=x,
        y=y,
        z=z,
        match=int(plan.match),
        words=fixed(words.ids, np.int64),
        word_weights=fixed(plan.word_weights, np.float64),
        leaf_of=fixed(words.leaf),
        bit_of=fixed(words.bit),
        source_of=fixed(words.source),
        bm25=plan.text_kind == TEXT_BM25,
        k1=float(plan.bm25_k1),
        b=float(plan.bm25_b),
        mean_words=float(plan.mean_words),
        weights=fixed(plan.weights, np.float64),
        decay_kind=int(plan.decay_kind),
        decay_scale=float(plan.decay_scale),
        max_km=float(plan.max_km),
        pref_column=fixed(plan.pref_column, np.int32),
        pref_flip=fixed(plan.pref_flip, np.uint8),
        pref_weight=fixed(plan.pref_weight, np.float64),
        filter_column=fixed(filters.column if filters else (), np.int32),
        filter_ptr=fixed(filters.ptr if filters else (0,), np.int32),
        filter_low=fixed(filters.low if filters else (), np.float64),
        filter_high=fixed(filters.high if filters else (), np.float64),
        region_kind=int(region.kind) if region else 0,
        region_points=fixed(region.points if region else np.empty((0, 2)), np.float64),
        region_ptr=fixed(region.ptr if region else (0,), np.int32),
        cap_x=float(region.cap[0]) if region else 0.0,
        cap_y=float(region.cap[1]) if region else 0.0,
        cap_z=float(region.cap[2]) if region else 0.0,
        cap_chord2=float(region.cap_chord2) if region else 4.0,
        without=fixed(words.without[words.without >= 0], np.int64),
        live=fixed(live if live is not None else (), np.uint8),
        use_bitmaps=switches[0],
        use_corners=switches[1],
        use_skylines=switches[2],
    )
