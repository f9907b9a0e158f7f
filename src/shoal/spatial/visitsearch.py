"""Search of the packed tree with all five parts, and of any layout row by row."""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt

from shoal.core.errors import InputError
from shoal.spatial import _memtable_kernels as offering
from shoal.spatial import _score
from shoal.spatial import _visit_kernels as kernels
from shoal.spatial import _visit_rows as counted
from shoal.spatial import _visit_values as given
from shoal.spatial.columns import Layout, SearchStats
from shoal.spatial.placearrays import fixed
from shoal.spatial.planner import Planner
from shoal.spatial.query import TEXT_BM25, Answers, QueryPlan

if TYPE_CHECKING:
    from shoal.spatial.packed import PackedLayout
    from shoal.spatial.visitcolumns import VisitColumns
    from shoal.spatial.visits import VisitStore

__all__ = ["add_counts", "kernel_query", "search", "search_all", "search_layout"]


def search(
    layout: PackedLayout,
    columns: VisitColumns,
    plan: QueryPlan,
    answers: Answers,
    live: npt.NDArray[np.uint8] | None = None,
    *,
    stats: SearchStats | None = None,
    store: VisitStore,
    planner: Planner | None = None,
) -> None:
    """Offer every row that can be among the best ``plan.k`` to ``answers``, by all five parts.

    ``VisitStore.search`` is the way in where check-ins may come meanwhile: this
    takes the columns as they are.

    Parameters
    ----------
    layout : PackedLayout
        The places.
    columns : VisitColumns
        What ``store.columns_of(layout)`` returned.
    plan : QueryPlan
        The query.
    answers : Answers
        Answers of other segments, if any; added to.
    live : uint8 [n], optional
        1 for rows that are alive.
    stats : SearchStats, optional
        Added to; ``more`` gets ``leaves``, ``scans`` and ``sampled_leaves``.
    store : VisitStore
        Where the columns come from; it says what a user's relations are worth.
    planner : Planner, optional
        When to scan; the store's by default.

    Raises
    ------
    InputError
        The user's vector, the slot or ``live`` does not fit.
    """
    if live is not None and len(live) != len(layout):
        raise InputError(f"live has {len(live)} entries for {len(layout)} rows", field="live")
    if len(layout) == 0:
        return
    planner = planner or store.planner
    ids = layout.terms.ids(plan.words) if plan.words else np.empty(0, dtype=np.int64)
    without = layout.terms.ids(plan.without) if plan.without else np.empty(0, dtype=np.int64)
    query = kernel_query(store, columns, plan, live, (ids, without[without >= 0]))
    places, tree = _layout_arrays(layout)
    counts = np.zeros(counted.COUNTS, dtype=np.int64)
    answers.count = kernels.search(
        places,
        tree,
        columns.kernel,
        query,
        planner.mode_code,
        planner.sample // 16,
        planner.share,
        np.empty((7, 16), dtype=np.float64),
        np.zeros((max(1, len(plan.words)), 2), dtype=np.int64),
        np.empty(planner.probe, dtype=np.int64),
        answers.scores,
        answers.kms,
        answers.keys,
        answers.rows,
        answers.count,
        answers.k,
        counts,
    )
    add_counts(stats, counts)


def search_layout(
    store: VisitStore,
    layout: Layout,
    plan: QueryPlan,
    answers: Answers,
    *,
    live: npt.NDArray[np.uint8] | None,
    stats: SearchStats | None,
) -> None:
    """Search a layout by all five parts in the way that it allows.

    The packed layout and ``netr`` are searched under bounds; of any other all
    rows are scored.
    """
    own = getattr(layout, "search_visits", None)
    if own is not None:
        own(store, plan, answers, live=live, stats=stats)
    elif hasattr(layout, "level_start"):
        packed = cast("PackedLayout", layout)
        search(packed, store.columns_of(layout), plan, answers, live, stats=stats, store=store)
    else:
        search_all(store, layout, plan, answers, live=live, stats=stats)


def search_all(
    store: VisitStore,
    layout: Layout,
    plan: QueryPlan,
    answers: Answers,
    *,
    live: npt.NDArray[np.uint8] | None,
    stats: SearchStats | None,
) -> None:
    """Score every row of a layout that has no bounds on time and social, and offer it."""
    rows = np.arange(len(layout), dtype=np.int64)
    weights = plan.weights.copy()
    weights[3:] = 0.0
    parts, km, qualifies = layout.parts(dataclasses.replace(plan, weights=weights), rows)
    parts[:, 3], parts[:, 4] = store.parts(plan, layout.keys)
    if live is not None:
        qualifies = qualifies & (live > 0)
    answers.count = offering.offer_rows(
        plan.weights,
        parts,
        km,
        qualifies,
        layout.keys,
        rows,
        answers.scores,
        answers.kms,
        answers.keys,
        answers.rows,
        answers.count,
        answers.k,
    )
    if stats is not None:
        stats.looked_at += len(rows)
        stats.scored += int(np.count_nonzero(qualifies))


def add_counts(stats: SearchStats | None, counts: npt.NDArray[np.int64]) -> None:
    """Add a kernel's counts to ``stats``."""
    if stats is None:
        return
    stats.nodes += int(counts[counted.NODES])
    stats.scored += int(counts[counted.SCORED])
    stats.looked_at += int(counts[counted.LOOKED_AT])
    for name, place in (
        ("leaves", counted.LEAVES),
        ("scans", counted.SCANS),
        ("sampled_leaves", counted.SAMPLED),
    ):
        stats.more[name] = stats.more.get(name, 0) + int(counts[place])


def kernel_query(
    store: VisitStore,
    columns: VisitColumns,
    plan: QueryPlan,
    live: npt.NDArray[np.uint8] | None,
    words: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]],
    *,
    alone: bool = False,
) -> given.Query:
    """Return a plan in numbers; ``words`` are the ids of its words and of the unwanted ones.

    ``alone``: for the parts of the place itself, without time and social.
    """
    slots = store.config.time_slots
    slot = -1 if alone or not plan.weights[3] > 0 else plan.slot
    if not -1 <= slot < slots:
        raise InputError(f"a slot lies in 0 .. {slots - 1}", field="at", value=slot)
    social = plan.social if plan.weights[4] > 0 and not alone else None
    vector = store.query_vector(social)
    step, lower = _steps(len(vector))
    rows, shares, most = _NO_ROWS, _NO_REALS, _NO_REALS
    if social is not None and social.friends:
        rows, shares, most = _related_rows(store, columns, plan)
    filters, region, prefers = plan.filters, plan.region, len(plan.pref_column) > 0
    x, y, z = _score.unit_vector(float(plan.lon), float(plan.lat))
    cap = (*region.cap, region.cap_chord2) if region else (0.0, 0.0, 0.0, 4.0)
    reals = np.array(
        [float(plan.has_point), x, y, z, plan.max_km, plan.decay_scale, *cap], dtype=np.float64
    )
    return given.Query(
        has_point=bool(plan.has_point),
        lon=float(plan.lon),
        lat=float(plan.lat),
        cos_lat=float(given.cos_of_degrees(float(plan.lat))),
        match=int(plan.match),
        words=fixed(words[0], np.int64) if len(words[0]) else _NO_ROWS,
        word_weights=fixed(plan.word_weights, np.float64) if len(words[0]) else _NO_REALS,
        without=fixed(words[1], np.int64) if len(words[1]) else _NO_ROWS,
        bm25=plan.text_kind == TEXT_BM25,
        k1=float(plan.bm25_k1),
        b=float(plan.bm25_b),
        mean_words=float(plan.mean_words),
        weights=fixed(plan.weights, np.float64),
        decay_kind=int(plan.decay_kind),
        decay_scale=float(plan.decay_scale),
        max_km=float(plan.max_km),
        pref_column=fixed(plan.pref_column, np.int32) if prefers else _NO_I4,
        pref_flip=fixed(plan.pref_flip, np.uint8) if prefers else _NO_LIVE,
        pref_weight=fixed(plan.pref_weight, np.float64) if prefers else _NO_REALS,
        filter_column=fixed(filters.column, np.int32) if filters else _NO_I4,
        filter_ptr=fixed(filters.ptr, np.int32) if filters else _NO_PTR,
        filter_low=fixed(filters.low, np.float64) if filters else _NO_REALS,
        filter_high=fixed(filters.high, np.float64) if filters else _NO_REALS,
        region_kind=int(region.kind) if region else 0,
        region_points=fixed(region.points, np.float64) if region else _NO_POINTS,
        region_ptr=fixed(region.ptr, np.int32) if region else _NO_PTR,
        live=fixed(live, np.uint8) if live is not None else _NO_LIVE,
        slot=int(slot),
        form=store.form(social),
        vector=fixed(vector),
        # The term of a coordinate that is never below a row's: with the maximum where the
        # user's coordinate is positive, with the minimum elsewhere.
        pick=fixed(lower + (vector > 0) * 16),
        step=step,
        length=float(np.sqrt(vector @ vector)) * (1.0 + 1e-12),
        reals=fixed(reals),
        related_rows=fixed(rows, np.int64) if len(rows) else _NO_ROWS,
        related=fixed(shares, np.float64) if len(rows) else _NO_REALS,
        related_max=fixed(most, np.float64) if len(rows) else _NO_REALS,
    )


@lru_cache(maxsize=16)
def _steps(dim: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the places of coordinates in a block, and of their minima in a group of boxes."""
    steps = np.arange(dim, dtype=np.int64)
    return fixed(steps * 16), fixed(steps * 32)


_NO_ROWS = fixed(np.empty(0, dtype=np.int64))
_NO_REALS = fixed(np.empty(0, dtype=np.float64))
_NO_I4 = fixed(np.empty(0, dtype=np.int32))
_NO_PTR = fixed(np.zeros(1, dtype=np.int32))
_NO_POINTS = fixed(np.empty((0, 2), dtype=np.float64))
_NO_LIVE = fixed(np.empty(0, dtype=np.uint8))


def _related_rows(
    store: VisitStore, columns: VisitColumns, plan: QueryPlan
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return (rows, ascending, their shares of related visits, maxima over 64 of these)."""
    assert plan.social is not None
    places, shares = store.related(plan.social)
    rows = columns.rows_of(store.log.keys_of(places))
    order = np.argsort(rows, kind="stable")
    order = order[rows[order] >= 0]
    rows, shares = rows[order], shares[order]
    most = np.maximum.reduceat(shares, np.arange(0, len(shares), 64)) if len(shares) else _NO_REALS
    return rows, shares, most


def _layout_arrays(layout: PackedLayout) -> tuple[given.Places, given.Tree]:
    known: tuple[given.Places, given.Tree] | None = layout.__dict__.get("_visit_arrays")
    if known is None:
        places = given.Places(
            keys=fixed(layout.keys),
            lon32=fixed(layout.lon32),
            lat32=fixed(layout.lat32),
            lon64=fixed(layout.lon64),
            lat64=fixed(layout.lat64),
            exact=bool(layout.exact),
            values32=fixed(layout.values32),
            values64=fixed(layout.values64),
            wide=bool(layout.wide),
            lengths=fixed(layout.lengths),
            post=fixed(layout.post),
            ptr=fixed(layout.ptr),
            low=fixed([spec.low for spec in layout.specs], np.float64),
            span=fixed([spec.span for spec in layout.specs], np.float64),
            missing=fixed([spec.missing_code for spec in layout.specs], np.int64),
        )
        tree = given.Tree(
            boxes=fixed(layout.boxes),
            level_start=fixed(layout.level_start),
            node_low=fixed(layout.node_low),
            node_high=fixed(layout.node_high),
        )
        known = layout.__dict__["_visit_arrays"] = (places, tree)
    return known
