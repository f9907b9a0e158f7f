"""What the published layout costs beside the packed one, and what each of its filters saves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from _qdrtree import ours
from _qdrtree.askq import make_asks
from _qdrtree.data import PlaceSet, boston, generated, geonames
from _qdrtree.timing import kernel_us
from shoal.spatial import Linear, Weights
from shoal.spatial.columns import SearchStats
from shoal.spatial.query import Answers
from shoal.spatial.request import Query

FILTERS = {
    "all filters": {},
    "without bitmaps": {"use_bitmaps": False},
    "without skylines (corner bound alone)": {"use_skylines": False},
    "without corners (skyline bound alone)": {"use_corners": False},
    "without attribute bounds": {"use_skylines": False, "use_corners": False},
}


def run(quick: bool, seed: int, data: Path) -> dict[str, Any]:
    """Report the structure and the work of each data set."""
    sets: dict[str, PlaceSet] = {"generated": generated(20_000 if quick else 200_000, seed)}
    real = boston(data)
    if real is not None:
        sets["boston"] = real
    if not quick:
        sets["geonames"] = geonames(data, 200_000, seed)
    found: dict[str, Any] = {}
    exact = True
    for name, places in sets.items():
        quad, packed = ours.build(places, "quad_cluster"), ours.build(places)
        layout: Any = quad.snapshot().single()
        work: dict[str, Any] = {}
        asks = make_asks(places, 40 if quick else 200, seed + 2)
        for alpha in ((0.5,) if quick else (0.5, 0.2)) if places.specs else (1.0,):
            options = _options(places, alpha)
            queries = [Query(point=(a.lon, a.lat), keywords=a.words, k=10, **options) for a in asks]
            rows = {}
            for label, switches in FILTERS.items():
                if not places.specs and {"use_corners", "use_skylines"} & set(switches):
                    continue
                for switch in ("use_bitmaps", "use_corners", "use_skylines"):
                    setattr(layout, switch, switches.get(switch, True))
                rows[label], _ = _work(quad, queries)
            rows["packed layout"], others = _work(packed, queries)
            for switch in ("use_bitmaps", "use_corners", "use_skylines"):
                setattr(layout, switch, True)
            _, scores = _work(quad, queries, timed=False)
            differing = sum(
                len(a) != len(b) or not np.array_equal(a, b)
                for a, b in zip(scores, others, strict=True)
            )
            exact &= differing == 0
            work[f"alpha {alpha}"] = {"differing_answers": differing, "work": rows}
            for label, row in rows.items():
                print(f"{name}, alpha {alpha}, {label}: {row}", flush=True)
        report = layout.report()
        kept = ("replication", "largest_share", "leaves", "depth", "words_clustered", "nodes")
        print(f"{name}: quad_cluster " + ", ".join(f"{key} {report[key]}" for key in kept))
        found[name] = {
            "places": places.source,
            "structure": report,
            "bytes_per_object": (report["bytes"]["total"] - report["bytes"]["terms"]) / len(places),
            "queries": work,
        }
    return {"exact": exact, "sets": found}


def _options(places: PlaceSet, alpha: float) -> dict[str, Any]:
    if not places.specs:
        return {"match": "all", "decay": Linear(max_km=100.0)}
    return {
        "match": "all",
        "decay": Linear(max_km=20.0),
        "weights": Weights(space=alpha, attributes=1 - alpha),
        "prefer": {spec.name: "min" for spec in places.specs},
    }


def _work(
    index: Any, queries: list[Query], *, timed: bool = True
) -> tuple[dict[str, float], list[np.ndarray]]:
    """Return the mean work of a search inside the layout, and the scores of every answer."""
    snapshot = index.snapshot()
    layout = snapshot.single()
    stats = SearchStats()
    scores, spent = [], []
    for query in queries:
        plan = index.plan(query, snapshot).plan
        answers = Answers(plan.k)
        layout.search(plan, answers, None, stats)
        scores.append(answers.scores[: len(answers)].copy())
        if timed:

            def search(repeats: int, plan: Any = plan) -> None:
                for _ in range(repeats):
                    layout.search(plan, Answers(plan.k))

            spent.append(kernel_us(search))
    m = len(queries)
    row = {
        "nodes": round(stats.nodes / m, 1),
        "scored": round(stats.scored / m, 1),
        "looked_at": round(stats.looked_at / m, 1),
        **{name: round(count / m, 1) for name, count in stats.more.items()},
    }
    if timed:
        row |= {
            "search_p50_us": round(float(np.percentile(spent, 50)), 1),
            "search_p99_us": round(float(np.percentile(spent, 99)), 1),
        }
    return row, scores
