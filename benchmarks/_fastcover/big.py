"""Ten million arcs: from an edge list on disk to a thousand seeds, seconds and memory."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from shoal.data import graphgen
from shoal.influence import Graph, max_cover

_HERE = Path(__file__).resolve()


def run(seed: int, scale: int = 20, arcs: int = 10_000_000) -> dict[str, Any]:
    """Write the graph, then load and solve it in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        made = graphgen.rmat(scale, arcs, seed=seed + 9100)
        _write(path / "edges.txt", made.source, made.target)
        del made
        found = {}
        for form in ("edges.txt", "saved"):
            text = subprocess.run(
                [sys.executable, str(_HERE), folder, form],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
            found[form] = json.loads(text.splitlines()[-1])
            print(f"ten million arcs, from {form}: {found[form]}", flush=True)
    return found


def _write(path: Path, source: np.ndarray, target: np.ndarray) -> None:
    import polars as pl

    pl.DataFrame({"u": source, "v": target}).write_csv(path, include_header=False, separator=" ")


def _solve(folder: Path, form: str) -> dict[str, Any]:
    import resource

    small = Graph.from_edges([0, 1], [1, 2], directed=True)
    max_cover(small, 1, 2)  # compiled before the clock starts
    cpu, wall = time.process_time(), time.perf_counter()
    if form == "saved":
        graph = Graph.load(folder / "graph", mmap=True)
    else:
        graph = Graph.read_edgelist(folder / form, directed=True, direction="forward")
    loaded = time.perf_counter() - wall
    result = max_cover(graph, 1000, 2, n_jobs=2)
    took = time.perf_counter() - wall
    spent = time.process_time() - cpu
    if form != "saved":
        graph.save(folder / "graph")
    return {
        "nodes": graph.n,
        "arcs": graph.m,
        "load_s": round(loaded, 2),
        "solve_s": round(took - loaded, 2),
        "wall_s": round(took, 2),
        "cpu_s": round(spent, 2),
        "method": result.method,
        "covered": result.covered,
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }


if __name__ == "__main__":
    print(json.dumps(_solve(Path(sys.argv[1]), sys.argv[2])))
