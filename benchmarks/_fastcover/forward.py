"""FastCover's forward pass against the time that moving its bytes takes on this machine."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from _fastcover.data import GraphSet
from _fastcover.timing import in_turns
from shoal.influence import FastCover
from shoal.influence.fused import plain_forward

WIDTH = 32


@njit(nogil=True)
def move(ptr, ids, rows, out, scalars, sums):  # noqa: PLR0917  a kernel
    """Move what the fused form must move: two passes of one number an arc, one of 32."""
    n = len(ptr) - 1
    for v in range(n):
        total = np.float32(0.0)
        for e in range(ptr[v], ptr[v + 1]):
            total += scalars[ids[e]]
        sums[v] = total
    for v in range(n):
        for c in range(WIDTH):
            out[v, c] = np.float32(0.0)
        for e in range(ptr[v], ptr[v + 1]):
            w = ids[e]
            for c in range(WIDTH):
                out[v, c] += rows[w, c]
    for v in range(n):
        total = np.float32(0.0)
        for e in range(ptr[v], ptr[v + 1]):
            total += scalars[ids[e]]
        sums[v] += total


def run(sets: list[GraphSet], quick: bool) -> dict[str, Any]:
    """Measure the fused pass, the plain one in torch, and the limit, in turns."""
    rows = [_graph(one, 3 if quick else 5) for one in (sets[-1:] if quick else sets[-4:])]
    return {
        "rows": rows,
        "forward_limit_ratio": max(row["ratio"] for row in rows),
        "forward_gap": max(row["largest_gap"] for row in rows),
    }


def _graph(one: GraphSet, repeats: int) -> dict[str, Any]:
    graph = one.graph
    net = FastCover.bundled(1, form="paper")
    h = np.ones((graph.n, WIDTH), dtype=np.float32)
    out = np.empty_like(h)
    scalars, sums = np.ones(graph.n, np.float32), np.empty(graph.n, np.float32)
    timed = in_turns(
        {
            "fused": lambda: net.score(graph),
            "torch": lambda: net.score(graph, fused=False),
            "limit": lambda: move(graph.out_ptr, graph.out_ids, h, out, scalars, sums),
        },
        repeats,
    )
    seconds = {name: spent for name, (spent, _) in timed.items()}
    row = {
        "graph": one.name,
        "arcs": graph.m,
        "cpu_s": {name: round(value, 5) for name, value in seconds.items()},
        "ratio": seconds["fused"] / seconds["limit"],
        "torch_over_fused": seconds["torch"] / seconds["fused"],
        "ns_per_arc": round(seconds["fused"] / graph.m * 1e9, 2),
        "largest_gap": _gap(timed["fused"][1], plain_forward(net.weights, graph)),
    }
    print(f"forward {row}", flush=True)
    return row


def _gap(fused: np.ndarray, plain: np.ndarray) -> float:
    """Return the largest difference to the plain form in float64, by the largest score."""
    return float(np.max(np.abs(fused - plain)) / max(1.0, float(np.max(np.abs(plain)))))
