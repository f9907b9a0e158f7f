"""One data set: answers checked, ours and the scans timed in turns."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from _netrtree import ours
from _netrtree.brute import FullScan, time_table
from _netrtree.data import MIXES, Ask, VisitedPlaces, make_asks
from _netrtree.peers import DuckDbScan, SqliteScan
from _netrtree.peers import duckdb as duckdb_module
from _qdrtree.timing import Engine, one_cold_pass
from shoal.spatial import reference
from shoal.spatial.columns import SearchStats
from shoal.spatial.social import SocialEmbedding

#: The package keeps the time and social parts as float32; the check has float64 throughout.
TOLERANCE = 1e-6
#: Against its own float64 parts the package's scores must agree to rounding.
TIGHT = 1e-12


def run(places: VisitedPlaces, *, count: int, seed: int, few: int, sql: bool) -> dict[str, Any]:
    """Measure every weight mix.

    Parameters
    ----------
    places : VisitedPlaces
    count : int
        Queries a mix.
    seed : int
    few : int
        Queries that the slow engines are asked: ``netr`` and those of SQL.
    sql : bool
        Whether the SQL engines are built.
    """
    start = time.process_time()
    vectors = places.vectors
    if vectors is None:
        fitted = SocialEmbedding.fit(
            places.edges, method="svd", dim=32, seed=seed, n_users=places.n_users, progress=False
        )
        vectors = fitted.vectors
    embedding_s = time.process_time() - start
    packed = ours.Ours("packed", places, vectors, None)
    engines_ours = [packed]
    lacking = ours.netr_missing()
    if lacking is None:
        engines_ours.append(ours.Ours("netr", places, vectors, packed.store))
    else:
        print(f"left out: {lacking}", flush=True)
    table = time_table(places)
    exact_scan = FullScan(places, vectors, np.float64, table)
    scan = FullScan(places, vectors, np.float32, table)
    peers: list[Any] = [scan]
    if sql:
        peers.append(SqliteScan(scan))
        if duckdb_module is None:
            print("left out: the package duckdb is not installed", flush=True)
        else:
            peers.append(DuckDbScan(scan))
    asks = make_asks(places, count, seed)
    warm_up = make_asks(places, 10, seed + 1)
    print(f"data: {places.source}; embedding {embedding_s:.1f} s CPU", flush=True)

    mixes: dict[str, Any] = {}
    wrong = 0
    for mix in MIXES:
        row = _one_mix(
            places, mix, (asks, warm_up), engines_ours, (exact_scan, peers), few=few, seed=seed
        )
        wrong += sum(row["wrong"].values())
        mixes[" ".join(f"{weight:g}" for weight in mix)] = row
        print(f"{mix}: scan / ours {row['scan_ratio']:.2f}, wrong {row['wrong']}")
        for name, line in row["engines"].items():
            print(f"  {name:26} {line}", flush=True)
    return {
        "exact": wrong == 0,
        "places": places.source,
        "embedding_cpu_s": round(embedding_s, 1),
        "build_cpu_s": {each.name: round(each.build_s, 2) for each in engines_ours},
        "bytes": {each.name: each.layout.nbytes() for each in engines_ours}
        | {"visits": packed.store.nbytes()},
        "netr_structure": None if lacking else engines_ours[1].layout.report(packed.store),
        "mixes": mixes,
        "peers": {peer.name: peer.version for peer in peers},
        "netr": lacking or "measured",
    }


def _one_mix(
    places: VisitedPlaces,
    mix: tuple[float, ...],
    queries: tuple[list[Ask], list[Ask]],
    mine: list[ours.Ours],
    scans: tuple[FullScan, list[Any]],
    *,
    few: int,
    seed: int,
) -> dict[str, Any]:
    asks, warm_up = queries
    exact_scan, peers = scans
    plans = {id(ask): mine[0].plan(ask, mix) for ask in (*asks, *warm_up)}
    engines = [
        Engine(
            f"shoal, {each.name}",
            lambda ask, each=each: each.search(plans[id(ask)]),
            at_most=None if each.name == "packed" else few,
        )
        for each in mine
    ]
    engines += [
        Engine(peer.name, lambda ask, peer=peer: peer.top(ask, mix), None, few if i else None)
        for i, peer in enumerate(peers)
    ]
    timed = one_cold_pass(engines, asks, warm_up, rounds=4, seed=seed)
    found: dict[str, Any] = {"engines": {}, "wrong": {}}
    want = [np.array([s for _, s in exact_scan.top(ask, mix)]) for ask in asks]
    for name, times in timed.items():
        found["engines"][name] = times.quantiles()
        found["wrong"][name] = sum(
            not _same(answer, scores)
            for answer, scores in zip(times.answers, want, strict=True)
            if answer is not None
        )
    found["wrong"]["own parts (float64 brute force)"] = _against_own_parts(
        places, mine[0], [plans[id(ask)] for ask in asks[:40]]
    )
    for each in mine:
        stats = SearchStats()
        asked = asks if each.name == "packed" else asks[:few]
        for ask in asked:
            each.search(plans[id(ask)], stats)
        line = found["engines"][f"shoal, {each.name}"]
        # A place counts as scored once any part of its score was computed, whether or not the
        # rest was then left out: the stricter reading of the bar.
        line["scored_share"] = round(stats.looked_at / len(asked) / len(places), 5)
        line["scored_in_full"] = round(stats.scored / len(asked) / len(places), 5)
        line["nodes"] = round(stats.nodes / len(asked), 1)
        line |= {key: round(value / len(asked), 3) for key, value in stats.more.items()}
    scan_us, our_us = timed[peers[0].name].us, timed["shoal, packed"].us
    found["scan_ratio"] = float(scan_us.mean() / our_us.mean())
    found["scan_ratio_p50"] = round(float(np.median(scan_us) / np.median(our_us)), 2)
    found["queries_slower_than_scan"] = round(float((our_us > scan_us).mean()), 4)
    return found


def _same(answer: Any, want: np.ndarray) -> bool:
    if isinstance(answer, list):
        scores = np.array([score for _, score in answer])
    else:
        scores = answer.scores[: len(answer)]
    return len(scores) == len(want) and bool(np.allclose(scores, want, rtol=0, atol=TOLERANCE))


def _against_own_parts(places: VisitedPlaces, mine: ours.Ours, plans: list[Any]) -> int:
    """Return how many answers differ from the package's brute force over its own exact parts."""
    keys = places.columns.keys
    wrong = 0
    for plan in plans:
        time_part, social_part = mine.store.parts(plan, keys)
        rows = reference.answer(
            places.columns, (), plan, time_part=time_part, social_part=social_part
        )
        answers = mine.search(plan)
        scores = answers.scores[: len(answers)]
        wrong += len(rows) != len(scores) or not np.allclose(
            scores, [row[0] for row in rows], rtol=0, atol=TIGHT
        )
    return wrong
