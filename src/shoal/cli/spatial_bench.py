"""What ``shoal spatial bench`` measures: random queries of an index's own places."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from shoal.core.errors import InputError
from shoal.core.seeds import philox
from shoal.spatial.reference import answer

if TYPE_CHECKING:
    from shoal.spatial import Query, SpatialKeywordIndex
    from shoal.spatial.columns import PlaceColumns

__all__ = ["measure"]

#: Spread of the points around places, degrees.
_SPREAD = 0.5
#: The full scan adds its parts in another order.
_TOLERANCE = 1e-9


def measure(
    index: SpatialKeywordIndex, form: Query, *, queries: int, check: int, seed: int = 0
) -> dict[str, Any]:
    """Ask random queries of one form; return times and how many answers were wrong.

    Parameters
    ----------
    index : SpatialKeywordIndex
        With at least one place.
    form : Query
        Everything but point and keywords.
    queries, check : int
        How many to time, and how many of those to compare with a full scan.
    seed : int
        Of the points and keywords.
    """
    places = index.columns()
    if not len(places):
        raise InputError("the index holds no place")
    asked = _random(places, form, queries, seed)
    for one in asked:
        index.ask(one)  # compiles, and warms the caches
    cpu, wall = np.empty(queries), np.empty(queries)
    for i in philox(seed, "order").permutation(queries):
        clock, began = time.thread_time_ns(), time.perf_counter_ns()
        index.ask(asked[i])
        cpu[i] = (time.thread_time_ns() - clock) / 1e3
        wall[i] = (time.perf_counter_ns() - began) / 1e3
    wrong = sum(not _agrees(index, places, one) for one in asked[:check])
    return {
        "places": len(places),
        "queries": queries,
        "layout": index.config.layout,
        "cpu_us": _summary(cpu),
        "wall_us": _summary(wall),
        "checked": {"queries": min(check, queries), "wrong": wrong},
        "seed": seed,
    }


def _random(places: PlaceColumns, form: Query, count: int, seed: int) -> list[Query]:
    rng = philox(seed, "queries")
    rows = rng.integers(0, len(places), count)
    lon = (places.lon[rows] + rng.normal(0.0, _SPREAD, count) + 180.0) % 360.0 - 180.0
    lat = np.clip(places.lat[rows] + rng.normal(0.0, _SPREAD, count), -90.0, 90.0)
    wanted = rng.integers(1, 4, count)
    made = []
    for row, x, y, most in zip(rows.tolist(), lon.tolist(), lat.tolist(), wanted, strict=True):
        own = places.word_ids[places.word_ptr[row] : places.word_ptr[row + 1]]
        chosen = rng.permutation(own)[:most]
        words = [places.words[i] for i in chosen.tolist()]
        made.append(dataclasses.replace(form, point=(x, y), keywords=words))
    return made


def _agrees(index: SpatialKeywordIndex, places: PlaceColumns, query: Query) -> bool:
    """Compare scores and distances, which ties leave alone, with a scan of all places."""
    planned = index.plan(query)
    found = index.ask(query)
    best = [] if planned.empty else answer(places, index.attribute_specs, planned.plan)
    if len(best) != len(found):
        return False
    scores = np.array([score for score, _, _ in best])
    kms = np.array([km for _, km, _ in best])
    close = np.allclose(scores, found.scores, rtol=0.0, atol=_TOLERANCE)
    return close and np.allclose(kms, found.kms, rtol=1e-9, atol=1e-6)


def _summary(values: npt.NDArray[np.float64]) -> dict[str, float]:
    p50, p90, p99 = np.percentile(values, [50, 90, 99])
    named = {"p50": p50, "p90": p90, "p99": p99, "mean": values.mean()}
    return {name: round(float(value), 2) for name, value in named.items()}
