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

    def latencies(until: float) -> np.ndarray:
        """Return (wall, CPU of this thread) of each query, microseconds."""
        spent = []
        i = 0
        while time.perf_counter() < until:
            start, cpu = time.perf_counter(), time.thread_time_ns()
            ask(asks[i % len(asks)])
            used = (time.thread_time_ns() - cpu) / 1e3
            spent.append(((time.perf_counter() - start) * 1e6, used))
            i += 1
            if i % 50 == 0:
                time.sleep(0.001)
        return np.array(spent)

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
    index.close()
    found: dict[str, Any] = {
        "upserts_per_s": round(written / took),
        "queries_per_s": round(len(busy) / took),
        "note": "one writing and one querying thread of one process, memory only; wall holds "
        "the waiting for the interpreter's lock and for a core, CPU does not",
    }
    for column, name in enumerate(("wall", "cpu")):
        for share in (50, 99):
            calm = float(np.percentile(idle[:, column], share))
            under = float(np.percentile(busy[:, column], share))
            found[f"{name}_p{share}_us_idle"] = round(calm, 1)
            found[f"{name}_p{share}_us_busy"] = round(under, 1)
            found[f"{name}_p{share}_ratio"] = round(under / calm, 2)
    found["p99_ratio"] = found["wall_p99_ratio"]
    return found


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
