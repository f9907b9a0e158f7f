"""AND + nearest and the ranked form, ours against every peer, with the same answers."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from _qdrtree import ours
from _qdrtree.data import generated, geonames
from _qdrtree.peers.base import Missing, Peer
from _qdrtree.peers.duckdb import DuckDb
from _qdrtree.peers.postgis import PostGis
from _qdrtree.peers.sqlite import SqliteFts5, SqliteRtree
from _qdrtree.peers.tantivy import Tantivy
from _qdrtree.peers.xapian import Xapian
from _qdrtree.queries import CLASSES, Ask, and_plan, haversine, make_asks, ranked_plan
from _qdrtree.timing import Engine, Timed, one_cold_pass
from shoal.spatial import reference
from shoal.spatial.columns import PlaceColumns

PEERS: tuple[Callable[[], Peer], ...] = (
    SqliteFts5,
    SqliteRtree,
    Tantivy,
    Xapian,
    PostGis,
    DuckDb,
)
OURS = "shoal"
STATISTICS = ("p50_us", "p99_us", "mean_us")
KM_TOLERANCE, SCORE_TOLERANCE = 1e-6, 1e-9


def run(quick: bool, seed: int, data: Path, compiled: Callable[[], None]) -> dict[str, Any]:
    """Build every engine, ask each every query once, compare answers and times.

    ``compiled`` waits until our kernels are compiled.
    """
    places = geonames(data, 30_000 if quick else 200_000, seed)
    columns = places.columns
    asks = make_asks(columns, 150 if quick else 900, seed)
    warm_up = make_asks(columns, 15, seed + 1)
    print(f"data: {places.source}; {len(asks)} queries", flush=True)

    builds: dict[str, dict[str, float]] = {}
    peers, missing = _start_peers(columns, builds, quick)
    compiled()
    # The first build loads the compiled kernels; the second is the one that is timed.
    ours.build(generated(300, seed))
    start, wall = time.process_time(), time.perf_counter()
    index = ours.build(places)
    builds[OURS] = _spent(start, wall)
    start, wall = time.process_time(), time.perf_counter()
    quad = ours.build(places, "quad_cluster")
    builds["shoal, quad_cluster"] = _spent(start, wall)
    for name in (OURS, "shoal, quad_cluster"):
        print(f"built: {name}, {builds[name]}", flush=True)
    sizes = ours.layout_bytes(index)
    per_place = (sizes["total"] - sizes["dictionary"]) / len(columns)

    try:
        forms: dict[str, Any] = {}
        exact = True
        for form, options, plan_of in (
            ("and", ours.AND, and_plan),
            ("ranked", ours.RANKED, ranked_plan),
        ):
            engines = [
                Engine(OURS, ours.asker(index, options)),
                Engine("shoal, idx.query", ours.query_asker(index, options)),
                Engine("shoal, quad_cluster", ours.asker(quad, options)),
                *(_engine(peer, form) for peer in peers),
            ]
            timed = one_cold_pass(engines, asks, warm_up, rounds=3 if quick else 6, seed=seed)
            forms[form] = _compare(form, timed, asks, columns, peers)
            sample = asks[: 30 if quick else 120]
            forms[form]["wrong"] |= _against_reference(form, timed, sample, columns, plan_of)
            exact &= not any(forms[form]["wrong"].values())
            kernel = ours.in_kernel(index, options, asks)
            forms[form]["in_kernel_warm"] = Timed(kernel, []).quantiles()
            _print(form, forms[form])
    finally:
        for peer in peers:
            peer.close()
    return {
        "exact": exact,
        "and_ratio": forms["and"]["ratio"],
        "ranked_ratio": forms["ranked"]["ratio"],
        "best_peer": forms["and"]["best_peer"],
        "best_peer_ranked": forms["ranked"]["best_peer"],
        "and_p50_us": forms["and"]["engines"][OURS]["p50_us"],
        "ranked_p99_us": forms["ranked"]["engines"][OURS]["p99_us"],
        "bytes_per_object": per_place,
        "batch_scaling": batch_scaling(index, asks, quick),
        "builds": builds,
        "bytes": sizes,
        "missing": missing,
        "places": places.source,
        "files": places.files,
        "forms": forms,
        "peers": {peer.name: peer.version for peer in peers},
    }


def _spent(start: float, wall: float) -> dict[str, float]:
    return {
        "cpu_s": round(time.process_time() - start, 2),
        "wall_s": round(time.perf_counter() - wall, 2),
    }


def _start_peers(
    columns: PlaceColumns, builds: dict[str, dict[str, float]], quick: bool
) -> tuple[list[Peer], list[str]]:
    peers: list[Peer] = []
    missing = []
    for make in PEERS:
        try:
            peer = make()
        except Missing as lacking:
            missing.append(f"{make.__name__}: {lacking} is not installed")
            print(f"left out: {missing[-1]}", flush=True)
            continue
        peers.append(peer)
        if quick and isinstance(peer, DuckDb):
            peer.at_most = 45  # ten milliseconds a query: all of them would take half the minute
        folder = Path(tempfile.mkdtemp(prefix="peer-"))
        clock = peer.server_clock
        before = time.clock_gettime(clock) if clock is not None else 0.0
        start, wall = time.process_time(), time.perf_counter()
        peer.build(columns, folder)
        server = time.clock_gettime(clock) - before if clock is not None else 0.0
        made = _spent(start, wall)
        made["cpu_s"] = round(made["cpu_s"] + server, 2)
        made["bytes_per_object"] = round(peer.nbytes() / max(1, len(columns)), 1)
        builds[peer.name] = made
        print(f"built: {peer.name} {peer.version}, {made}", flush=True)
    return peers, missing


def _engine(peer: Peer, form: str) -> Engine:
    call = peer.and_nearest if form == "and" else peer.ranked
    return Engine(peer.name, call, peer.server_clock, peer.at_most)


def distances(ask: Ask, keys: Sequence[int], columns: PlaceColumns) -> np.ndarray:
    """Return the sorted distances of places, kilometres."""
    rows = np.asarray(keys, dtype=np.int64)
    return np.sort(haversine(ask.lon, ask.lat, columns.lon[rows], columns.lat[rows]))


def values_of(form: str, ask: Ask, answer: Any, columns: PlaceColumns) -> np.ndarray:
    """Return what is compared: distances of the AND form, scores of the ranked form."""
    if form == "and":
        keys = answer.ids if hasattr(answer, "ids") else answer
        return distances(ask, keys, columns)
    scores = answer.scores if hasattr(answer, "scores") else [score for _, score in answer]
    return np.sort(np.asarray(scores, dtype=np.float64))[::-1]


def same(form: str, one: np.ndarray, other: np.ndarray) -> bool:
    """Say whether two answers are the same by distances, or by scores."""
    tolerance = KM_TOLERANCE if form == "and" else SCORE_TOLERANCE
    return len(one) == len(other) and bool(np.allclose(one, other, rtol=0, atol=tolerance))


def _compare(
    form: str, timed: dict[str, Timed], asks: list[Ask], columns: PlaceColumns, peers: list[Peer]
) -> dict[str, Any]:
    wanted = [
        values_of(form, ask, answer, columns)
        for ask, answer in zip(asks, timed[OURS].answers, strict=True)
    ]
    wrong, engines = {}, {}
    for name, times in timed.items():
        wrong[name] = sum(
            not same(form, values_of(form, ask, answer, columns), want)
            for ask, answer, want in zip(asks, times.answers, wanted, strict=True)
            if answer is not None
        )
        engines[name] = times.quantiles() | {
            kind: round(float(np.nanmedian(times.us[[ask.kind == kind for ask in asks]])), 1)
            for kind in CLASSES
        }
    # A peer that was asked only some of the queries is shown, but sets no ratio.
    names = [peer.name for peer in peers if peer.at_most is None]
    ratio, best = float("inf"), "none"
    ratios = {}
    for statistic in STATISTICS:
        if not names:
            break
        fastest = min(names, key=lambda name: engines[name][statistic])
        ratios[statistic] = engines[fastest][statistic] / engines[OURS][statistic]
        if ratios[statistic] < ratio:
            ratio, best = ratios[statistic], fastest
    empty = sum(len(want) == 0 for want in wanted)
    return {
        "ratio": ratio if names else 0.0,
        "ratios": {name: round(value, 2) for name, value in ratios.items()},
        "best_peer": best,
        "engines": engines,
        "wrong": wrong,
        "empty_answers": empty,
    }


def _against_reference(
    form: str,
    timed: dict[str, Timed],
    asks: list[Ask],
    columns: PlaceColumns,
    plan_of: Callable[[Ask], Any],
) -> dict[str, int]:
    wrong = 0
    for ask, answer in zip(asks, timed[OURS].answers, strict=False):
        found = reference.answer(columns, (), plan_of(ask))
        column = 1 if form == "and" else 0
        want = np.array([row[column] for row in found])
        hits = np.asarray(answer.kms if form == "and" else answer.scores)
        wrong += not same(form, hits, want)
    return {"reference (float64 brute force)": wrong}


def batch_scaling(index: Any, asks: list[Ask], quick: bool) -> float:
    """Return the speed of ``query_many`` on two threads over one, medians of wall time."""
    asks = asks * (12 if quick else 6)
    points = np.array([(ask.lon, ask.lat) for ask in asks])
    words = [ask.words for ask in asks]
    searcher = index.searcher(k=10, **ours.RANKED)
    spent: dict[int, list[float]] = {1: [], 2: []}
    for repeat in range(9):
        for threads in (1, 2) if repeat % 2 else (2, 1):
            start = time.perf_counter()
            searcher.many(points[:, 0], points[:, 1], words, threads=threads)
            spent[threads].append(time.perf_counter() - start)
    return statistics.median(spent[1][1:]) / statistics.median(spent[2][1:])


def _print(form: str, found: dict[str, Any]) -> None:
    print(f"{form}: ratio {found['ratio']:.1f} against {found['best_peer']} {found['ratios']}")
    for name, row in found["engines"].items():
        classes = " ".join(f"{kind} {row[kind]:g}" for kind in CLASSES)
        print(
            f"  {name:24} p50 {row['p50_us']:>10.1f}  p99 {row['p99_us']:>10.1f}  "
            f"mean {row['mean_us']:>10.1f} us CPU   medians: {classes}   "
            f"wrong {found['wrong'].get(name, 0)} of {row['queries']}",
        )
    print(f"  in the kernel, warm: {found['in_kernel_warm']}")
    print(f"  wrong against the brute force: {found['wrong']['reference (float64 brute force)']}")
