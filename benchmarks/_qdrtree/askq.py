"""ASKQ as we define it: keywords as AND, then a blend of nearness and attribute preferences."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from _qdrtree import ours
from _qdrtree.data import PlaceSet, boston, generated
from _qdrtree.queries import Ask
from _qdrtree.versus import SCORE_TOLERANCE
from shoal.core.seeds import philox
from shoal.spatial import Linear, Weights, reference
from shoal.spatial.query import MATCH_ALL, QueryPlan

ALPHAS = (0.8, 0.5, 0.2)


def run(quick: bool, seed: int, data: Path) -> dict[str, Any]:
    """Time every weighting on Boston's restaurants and on generated places."""
    size = 100_000 if quick else 1_000_000
    sets = {"generated": (generated(size, seed), 20.0, 150 if quick else 300)}
    real = boston(data)
    if real is None:
        print("left out: Boston's restaurants (geo/yelp_boston_attrs is missing)", flush=True)
    else:
        sets["boston"] = (real, 5.0, 150 if quick else 300)
    found: dict[str, Any] = {}
    exact, worst = True, {"p50_us": 0.0, "p99_us": 0.0}
    for name, (places, max_km, count) in sets.items():
        index = ours.build(places)
        asks = make_asks(places, count, seed)
        rows: dict[str, Any] = {}
        for alpha in ALPHAS:
            options = {
                "match": "all",
                "decay": Linear(max_km=max_km),
                "weights": Weights(space=alpha, attributes=1 - alpha),
                "prefer": {spec.name: "min" for spec in places.specs},
            }
            us = ours.in_kernel(index, options, asks)
            wrong = check(
                places, index, options, asks[: 20 if quick else 60], alpha=alpha, max_km=max_km
            )
            exact &= wrong == 0
            row = {
                "wrong": wrong,
                "p50_us": round(float(np.percentile(us, 50)), 2),
                "p99_us": round(float(np.percentile(us, 99)), 2),
                "mean_us": round(float(us.mean()), 2),
            }
            worst = {key: max(worst[key], row[key]) for key in worst}
            rows[str(alpha)] = row
            print(f"askq {name}, {len(places):,} places, alpha {alpha}: {row}", flush=True)
        found[name] = {"places": places.source, "alphas": rows}
    return {
        "exact": exact,
        "askq_p50_us": worst["p50_us"],
        "askq_p99_us": worst["p99_us"],
        "sets": found,
    }


def make_asks(places: PlaceSet, count: int, seed: int) -> list[Ask]:
    """Return queries of one or two words that occur together, near some place."""
    rng = philox(seed, 41)
    columns = places.columns
    asks: list[Ask] = []
    while len(asks) < count:
        row, at = (int(i) for i in rng.integers(len(columns), size=2))
        ids = columns.word_ids[columns.word_ptr[row] : columns.word_ptr[row + 1]]
        if not len(ids):
            continue
        chosen = rng.permutation(ids)[: 1 + len(asks) % 2]
        m = len(chosen)
        asks.append(
            Ask(
                lon=float(np.clip(columns.lon[at] + rng.normal(0, 0.02), -180, 180)),
                lat=float(np.clip(columns.lat[at] + rng.normal(0, 0.02), -90, 90)),
                words=tuple(columns.words[i] for i in chosen),
                shares=(1 / m,) * m,
                counts=(0,) * m,
                kind="askq",
            )
        )
    return asks


def check(
    places: PlaceSet,
    index: Any,
    options: dict[str, Any],
    asks: list[Ask],
    *,
    alpha: float,
    max_km: float,
) -> int:
    """Return how many answers differ from the brute force."""
    d = len(places.specs)
    plan = QueryPlan(
        k=10,
        has_point=True,
        match=MATCH_ALL,
        weights=np.array([alpha, 0.0, 1 - alpha, 0.0, 0.0]),
        decay_scale=max_km,
        pref_column=np.arange(d, dtype=np.int32),
        pref_flip=np.zeros(d, dtype=np.uint8),
        pref_weight=np.full(d, 1 / d),
    )
    ask_ours = ours.asker(index, options)
    wrong = 0
    for ask in asks:
        want = reference.answer(
            places.columns,
            places.specs,
            replace(
                plan,
                lon=ask.lon,
                lat=ask.lat,
                words=ask.words,
                word_weights=np.array(ask.shares),
            ),
        )
        scores = np.asarray(ask_ours(ask).scores)
        wrong += len(scores) != len(want) or not np.allclose(
            scores, [row[0] for row in want], rtol=0, atol=SCORE_TOLERANCE
        )
    return wrong
