"""Updates while queries run (for the full run alone)."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from _qdrtree import ours
from _qdrtree.data import geonames, word_lists
from _qdrtree.queries import make_asks
from shoal.core.seeds import philox

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
    # Who waits for a core or the lock waits long: so these, and how busy the machine was.
    found["busy_share_above_1_ms"] = round(float(np.mean(busy[:, 0] > 1000.0)), 5)
    found["wall_max_us_busy"] = round(float(busy[:, 0].max()), 1)
    found["load_1_minute"] = round(os.getloadavg()[0], 2)
    found["p99_ratio"] = found["wall_p99_ratio"]
    return found
