"""The benchmark of exact spatial keyword search: ours and five peers on the same queries.

    python benchmarks/qdrtree.py [--quick] [--data DIR] [--seed N] [--huge]

AND + nearest and the ranked blend against SQLite (FTS5, and FTS5 with R*Tree),
Tantivy, Xapian, PostgreSQL with PostGIS and DuckDB; attribute preferences
(ASKQ); what the published layout costs; batches, updates, bytes and builds. A
peer that is not installed is left out, and said. The layout of ``--data`` is
told in ``_qdrtree/data.py``; what a folder lacks is generated, and said.

Figures are CPU time of single public Python calls, one shuffled pass with the
caches flushed between engines, a server's own process where there is one. The
last line of standard output is one JSON object; the full run also writes
``evidence/qdrtree.json``. ``--huge`` runs another part alone: ten million places
(some minutes, and five GiB of memory), whose figures it adds to that file.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
# One thread a process: CPU time is what is compared.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

KEYS = (
    "exact",
    "and_ratio",
    "ranked_ratio",
    "best_peer",
    "and_p50_us",
    "ranked_p99_us",
    "askq_p99_us",
    "bytes_per_object",
    "batch_scaling",
)
#: Bars of the issue, with the side on which a figure must lie.
BARS = {
    "and_ratio": (">=", 10.0),
    "ranked_ratio": (">=", 10.0),
    "askq_p50_us": ("<=", 20.0),
    "askq_p99_us": ("<=", 300.0),
    "bytes_per_object": ("<=", 60.0),
    "batch_scaling": (">=", 1.8),
    "updates_p99_ratio": ("<=", 3.0),
}


def measure(quick: bool, seed: int, data: Path) -> dict[str, Any]:
    """Run every part and return everything it found."""
    from _qdrtree import warm

    compiled = warm.start("packed", "quad_cluster")
    from _qdrtree import askq, quadcluster, upkeep, versus

    parts = {
        "versus": lambda: versus.run(quick, seed, data, compiled),
        "askq": lambda: askq.run(quick, seed, data),
        "quad_cluster": lambda: quadcluster.run(quick, seed, data),
    }
    if not quick:
        parts["updates"] = lambda: upkeep.run_updates(seed, data)
    found: dict[str, Any] = {}
    for name, part in parts.items():
        start = time.perf_counter()
        found[name] = part()
        found[name]["seconds"] = round(time.perf_counter() - start, 1)
        print(f"{name}: {found[name]['seconds']} s", flush=True)
    return found


def measure_huge(seed: int, load: float, evidence: Path) -> None:
    """Run the part of ten million places, add it to the evidence, and print it."""
    from _qdrtree import huge
    from _qdrtree.record import add_huge

    found = huge.run(seed)
    add_huge(found, seed, load, evidence)
    print(json.dumps({**found, "load": round(load, 2)}))


def collect(found: dict[str, Any]) -> dict[str, Any]:
    """Return the figures by name: those of the last line, and those that only the table has."""
    versus, askq = found["versus"], found["askq"]
    figures = {key: versus[key] for key in KEYS if key in versus}
    figures["exact"] = all(found[part]["exact"] for part in ("versus", "askq", "quad_cluster"))
    figures |= {key: askq[key] for key in ("askq_p50_us", "askq_p99_us")}
    if "updates" in found:
        figures["updates_p99_ratio"] = found["updates"]["p99_ratio"]
        figures["upserts_per_s"] = found["updates"]["upserts_per_s"]
    return figures


def print_table(figures: dict[str, Any]) -> None:
    """Print each figure with its bar."""
    print(f"{'exact':24} {figures['exact']!s:>10}")
    for name, (side, bar) in BARS.items():
        if name not in figures:
            continue
        value = figures[name]
        held = value >= bar if side == ">=" else value <= bar
        print(f"{name:24} {value:>10.4g}   bar {side} {bar:<6g} {'held' if held else 'MISSED'}")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="within a minute: fewer places")
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--huge", action="store_true", help="ten million places, alone")
    options = parser.parse_args()
    if options.huge and options.quick:
        parser.error("--huge is no quick run")
    load = os.getloadavg()[0]
    evidence = HERE.parent / "evidence" / "qdrtree.json"
    if options.huge:
        measure_huge(options.seed, load, evidence)
        return
    from _qdrtree.data import data_folder

    found = measure(options.quick, options.seed, data_folder(options.data))
    figures = collect(found)
    if not options.quick:
        from _qdrtree.record import write

        write(found, figures, options.seed, load, evidence)
    print_table(figures)
    line = {
        key: round(figures[key], 3) if isinstance(figures[key], float) else figures[key]
        for key in KEYS
    }
    print(json.dumps({**line, "load": round(load, 2)}))


if __name__ == "__main__":
    main()
