"""The slow, obvious answer: every place scored in float64 with NumPy, then sorted.

This is the oracle of the tests and of ``shoal spatial bench``, and it shares no
code with the layouts. It follows the definitions of ``query.QueryPlan`` word
for word. Scores agree with the layouts to about 1e-12 (other order of
rounding), so compare scores, and ids only where the scores differ by more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shoal.spatial.columns import AttributeSpec, PlaceColumns
from shoal.spatial.query import (
    MATCH_ALL,
    MATCH_ANY,
    TEXT_BM25,
    FilterPlan,
    QueryPlan,
    RegionPlan,
)

__all__ = ["ReferenceScores", "answer", "score_all"]

_EARTH_KM = 6371.0088


@dataclass(frozen=True, slots=True)
class ReferenceScores:
    """Every place's score for one query.

    ``parts`` float64 [n, 5] in the order of ``scoring.PARTS``, ``km`` and
    ``score`` float64 [n], ``qualifies`` bool [n].
    """

    parts: npt.NDArray[np.float64]
    km: npt.NDArray[np.float64]
    score: npt.NDArray[np.float64]
    qualifies: npt.NDArray[np.bool_]


def score_all(
    places: PlaceColumns,
    specs: Sequence[AttributeSpec],
    plan: QueryPlan,
    *,
    time_part: npt.NDArray[np.float64] | None = None,
    social_part: npt.NDArray[np.float64] | None = None,
) -> ReferenceScores:
    """Score every place.

    Parameters
    ----------
    places : PlaceColumns
        The places, n of them.
    specs : sequence of AttributeSpec
        One for each row of ``places.values``.
    plan : QueryPlan
        The query.
    time_part, social_part : float64 [n], optional
        The time part at the plan's slot and the social part for the plan's
        user; 0 where not given.

    Returns
    -------
    ReferenceScores
    """
    n = len(places)
    parts = np.zeros((n, 5))
    qualifies = np.ones(n, dtype=bool)
    km = np.zeros(n)
    if plan.has_point:
        km = _haversine(plan.lon, plan.lat, places.lon, places.lat)
        parts[:, 0] = _decay(plan.decay_kind, plan.decay_scale, km)
        qualifies &= km <= plan.max_km

    has = _word_table(places, (*plan.words, *plan.without))
    wanted, unwanted = has[:, : len(plan.words)], has[:, len(plan.words) :]
    if plan.match == MATCH_ALL:
        qualifies &= wanted.all(axis=1)
    elif plan.match == MATCH_ANY:
        qualifies &= wanted.any(axis=1)
    qualifies &= ~unwanted.any(axis=1)
    if len(plan.words):
        for j, weight in enumerate(plan.word_weights):
            parts[:, 1] += np.where(wanted[:, j], weight, 0.0)
        if plan.text_kind == TEXT_BM25:
            length = np.diff(places.word_ptr)
            k1, b = plan.bm25_k1, plan.bm25_b
            norm = 1.0 + k1 * (1.0 - b + b * length / plan.mean_words)
            parts[:, 1] *= np.minimum(1.0, (1.0 + k1 * (1.0 - b)) / norm)

    if len(plan.pref_column):
        total = np.zeros(n)
        for column, flip, weight in zip(
            plan.pref_column, plan.pref_flip, plan.pref_weight, strict=True
        ):
            spec, raw = specs[column], places.values[column]
            cost = np.clip((raw - spec.low) / spec.span, 0.0, 1.0)
            if flip:
                cost = 1.0 - cost
            gone = np.isnan(raw)
            if spec.missing == "exclude":
                qualifies &= ~gone
            total += weight * np.where(gone, {"worst": 1.0}.get(spec.missing, 0.5), cost)
        parts[:, 2] = 1.0 - total
    if time_part is not None:
        parts[:, 3] = time_part
    if social_part is not None:
        parts[:, 4] = social_part

    if plan.filters is not None:
        qualifies &= _passes(plan.filters, places.values)
    if plan.region is not None:
        qualifies &= _inside(plan.region, places.lon, places.lat)
    used = plan.weights > 0
    score = parts[:, used] @ plan.weights[used] if used.any() else np.zeros(n)
    return ReferenceScores(parts=parts, km=km, score=score, qualifies=qualifies)


def answer(
    places: PlaceColumns,
    specs: Sequence[AttributeSpec],
    plan: QueryPlan,
    *,
    time_part: npt.NDArray[np.float64] | None = None,
    social_part: npt.NDArray[np.float64] | None = None,
) -> list[tuple[float, float, int]]:
    """Return (score, distance km, key) of the best ``plan.k`` places, the best first."""
    found = score_all(places, specs, plan, time_part=time_part, social_part=social_part)
    rows = np.flatnonzero(found.qualifies)
    order = np.lexsort((places.keys[rows], found.km[rows], -found.score[rows]))
    return [
        (float(found.score[row]), float(found.km[row]), int(places.keys[row]))
        for row in rows[order][: plan.k]
    ]


def _haversine(
    lon: float, lat: float, lons: npt.NDArray[np.float64], lats: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    phi, phis = np.radians(lat), np.radians(lats)
    h = (
        np.sin((phis - phi) / 2) ** 2
        + np.cos(phi) * np.cos(phis) * np.sin(np.radians(lons - lon) / 2) ** 2
    )
    distance: npt.NDArray[np.float64] = 2 * _EARTH_KM * np.arcsin(np.sqrt(np.minimum(1.0, h)))
    return distance


def _decay(kind: int, scale: float, km: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    forms = (
        lambda d: np.maximum(0.0, 1.0 - d / scale),
        lambda d: scale / (scale + d),
        lambda d: np.exp(-d / scale),
        lambda d: np.exp(-0.5 * (d / scale) ** 2),
    )
    part: npt.NDArray[np.float64] = forms[kind](km)
    return part


def _word_table(places: PlaceColumns, words: Sequence[str]) -> npt.NDArray[np.bool_]:
    table = np.zeros((len(places), len(words)), dtype=bool)
    rows = np.repeat(np.arange(len(places)), np.diff(places.word_ptr))
    wanted = set(words)
    number = {word: i for i, word in enumerate(places.words) if word in wanted}
    for j, word in enumerate(words):
        if word in number:
            table[rows[places.word_ids == number[word]], j] = True
    return table


def _passes(filters: FilterPlan, values: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    passed = np.ones(values.shape[1], dtype=bool)
    for group, column in enumerate(filters.column):
        raw = values[column]
        any_interval = np.zeros(values.shape[1], dtype=bool)
        for i in range(filters.ptr[group], filters.ptr[group + 1]):
            any_interval |= (raw >= filters.low[i]) & (raw <= filters.high[i])
        passed &= any_interval
    return passed


def _inside(
    region: RegionPlan, lon: npt.NDArray[np.float64], lat: npt.NDArray[np.float64]
) -> npt.NDArray[np.bool_]:
    if region.kind == 1:
        (west, south), (east, north) = region.points
        in_lon = (lon >= west) & (lon <= east) if west <= east else (lon >= west) | (lon <= east)
        box: npt.NDArray[np.bool_] = in_lon & (lat >= south) & (lat <= north)
        return box
    inside = np.zeros(len(lon), dtype=bool)
    for ring in range(len(region.ptr) - 1):
        corners = region.points[region.ptr[ring] : region.ptr[ring + 1]]
        for (x1, y1), (x2, y2) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            crosses = (y1 > lat) != (y2 > lat)
            if y1 == y2:
                continue
            # The order of operations is part of the definition: see _score.in_region.
            inside ^= crosses & (lon < (x2 - x1) * (lat - y1) / (y2 - y1) + x1)
    return inside
