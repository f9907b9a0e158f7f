"""Ten million places: built, saved, opened by another process, and asked."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from _qdrtree import ours
from _qdrtree.data import generated
from _qdrtree.queries import and_plan, make_asks
from shoal.spatial import reference
from shoal.spatial.index import SpatialKeywordIndex

#: How many answers are compared with a full scan, and how many are timed.
CHECKED, TIMED = 5, 200


def run(seed: int, places: int = 10_000_000) -> dict[str, Any]:
    """Build, save and open so many generated places; seconds, bytes, and peaks of memory.

    A peak is the greatest resident size of the process up to then, what it was
    fed with included: the columns, and the words as Python lists.
    """
    small = generated(300, seed)  # compiles and loads the kernels
    ours.asker(ours.build(small), ours.AND)(make_asks(small.columns, 1, seed)[0])
    start = time.process_time()
    made = generated(places, seed)
    generating, generated_peak = time.process_time() - start, _peak_gib()
    start, wall = time.process_time(), time.perf_counter()
    index = ours.build(made)
    built_cpu, built = time.process_time() - start, time.perf_counter() - wall
    peak = _peak_gib()
    print(f"built: {built_cpu:.1f} s CPU, peak {peak:.2f} GiB", flush=True)
    sizes = ours.layout_bytes(index)
    asks = make_asks(made.columns, TIMED, seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index"
        wall = time.perf_counter()
        index.save(path)
        saved = time.perf_counter() - wall
        index.close()
        del index
        on_disk = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        opened = _open_elsewhere(path, asks[0])
        with SpatialKeywordIndex.load(path, mmap=True) as again:
            ask = ours.asker(again, ours.AND)
            spent, wrong = [], 0
            for item in asks:
                clock = time.thread_time_ns()
                found = ask(item)
                spent.append((time.thread_time_ns() - clock) / 1e3)
                if len(spent) <= CHECKED:
                    want = [km for _, km, _ in reference.answer(made.columns, (), and_plan(item))]
                    wrong += not np.allclose(found.kms, want, rtol=0, atol=1e-6)
    return {
        "places": len(made),
        "generate_cpu_s": round(generating, 1),
        "build_cpu_s": round(built_cpu, 1),
        "build_wall_s": round(built, 1),
        "peak_gib": round(peak, 2),
        "peak_gib_of_generating": round(generated_peak, 2),
        "save_s": round(saved, 2),
        "bytes_on_disk": on_disk,
        "bytes_per_object": round((sizes["total"] - sizes["dictionary"]) / len(made), 1),
        **opened,
        "and_p50_us": round(float(np.percentile(spent, 50)), 1),
        "and_p99_us": round(float(np.percentile(spent, 99)), 1),
        "checked": min(CHECKED, len(asks)),
        "wrong": wrong,
    }


def _peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _open_elsewhere(path: Path, ask: Any) -> dict[str, float]:
    """Return what opening takes a process that has its modules but nothing of the index."""
    words = json.dumps([ask.lon, ask.lat, list(ask.words)])
    command = [sys.executable, "-m", "_qdrtree.huge", str(path), words]
    there = Path(__file__).resolve().parents[1]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=there).stdout
    found: dict[str, float] = json.loads(said.splitlines()[-1])
    return found


def _open(path: str, words: str) -> None:
    lon, lat, keywords = json.loads(words)
    clock, wall = time.process_time(), time.perf_counter()
    index = SpatialKeywordIndex.load(path, mmap=True)
    took, cpu = time.perf_counter() - wall, time.process_time() - clock
    wall = time.perf_counter()
    answers = index.searcher(k=10, **ours.AND)(lon, lat, keywords)
    first = time.perf_counter() - wall
    found = {
        "open_s": round(took, 4),
        "open_cpu_s": round(cpu, 4),
        "first_query_s": round(first, 4),
        "first_answers": len(answers.ids),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    _open(*sys.argv[1:])
