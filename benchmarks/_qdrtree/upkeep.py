"""Updates while queries run, and the ten-million build (both for the full run alone)."""

from __future__ import annotations

import resource
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from _qdrtree import ours
from _qdrtree.data import generated, geonames, word_lists
from _qdrtree.queries import make_asks
from shoal.core.seeds import philox
from shoal.spatial.index import SpatialKeywordIndex

RATE, BATCH = 10_000, 100


def run_updates(seed: int, data: Path, seconds: float = 10.0) -> dict[str, Any]:
    """Upsert 10,000 places a second while another thread queries; p99 against idle (wall time)."""
    places = geonames(data, 200_000, seed)
    columns = places.columns
    index = ours.build(places)
    asks = make_asks(columns, 600, seed + 3)
    ask = ours.asker(index, ours.AND)
    words = list(word_lists(columns))
    rng = philox(seed, 51)
    for item in asks[:200]:
        ask(item)

    def latencies(until: float) -> list[float]:
        spent = []
        i = 0
        while time.perf_counter() < until:
            start = time.perf_counter()
            ask(asks[i % len(asks)])
            spent.append((time.perf_counter() - start) * 1e6)
            i += 1
            if i % 50 == 0:
                time.sleep(0.001)
        return spent

    idle = latencies(time.perf_counter() + seconds / 2)
    written = 0
    failure: list[BaseException] = []
    began = time.perf_counter()
    until = began + seconds

    def write() -> None:
        nonlocal written
        try:
            while time.perf_counter() < until:
                due = began + written / RATE
                if (wait := due - time.perf_counter()) > 0:
                    time.sleep(wait)
                rows = rng.integers(0, len(columns), BATCH)
                ids = np.unique(rows)
                index.upsert(
                    columns.lon[ids],
                    columns.lat[ids],
                    ids=columns.keys[ids],
                    keywords=[words[i] for i in ids.tolist()],
                )
                written += BATCH
        except BaseException as error:  # shown by the caller's thread
            failure.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    busy = latencies(until)
    writer.join()
    took = time.perf_counter() - began
    if failure:
        raise failure[0]
    p99_idle, p99_busy = (float(np.percentile(spent, 99)) for spent in (idle, busy))
    index.close()
    return {
        "upserts_per_s": round(written / took),
        "queries_per_s": round(len(busy) / took),
        "p50_us_idle": round(float(np.percentile(idle, 50)), 1),
        "p50_us_busy": round(float(np.percentile(busy, 50)), 1),
        "p99_us_idle": round(p99_idle, 1),
        "p99_us_busy": round(p99_busy, 1),
        "p99_ratio": round(p99_busy / p99_idle, 2),
        "note": "wall time, one writing and one querying thread of one process, memory only",
    }


def run_huge(seed: int, places: int = 10_000_000) -> dict[str, Any]:
    """Build, save and open ten million places; seconds, and the peak of memory."""
    made = generated(places, seed)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    start, wall = time.process_time(), time.perf_counter()
    index = ours.build(made)
    built_cpu, built = time.process_time() - start, time.perf_counter() - wall
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index"
        wall = time.perf_counter()
        index.save(path)
        saved = time.perf_counter() - wall
        index.close()
        wall = time.perf_counter()
        opened = SpatialKeywordIndex.load(path, mmap=True)
        took = time.perf_counter() - wall
        ask = make_asks(made.columns, 1, seed)[0]
        wall = time.perf_counter()
        found = ours.asker(opened, ours.AND)(ask)
        first = time.perf_counter() - wall
        opened.close()
    return {
        "places": len(made),
        "build_cpu_s": round(built_cpu, 1),
        "build_wall_s": round(built, 1),
        "peak_gib": round(peak, 2),
        "peak_gib_of_generating": round(before, 2),
        "save_s": round(saved, 2),
        "open_s": round(took, 3),
        "first_query_s": round(first, 4),
        "first_answers": len(found.ids),
    }
