"""Plain breadth-first search, apart from the solvers: what they are checked against."""

from __future__ import annotations

import numpy as np
from numba import njit

__all__ = ["ball_weights", "distances", "spread_registers"]

FAR = 127


@njit(cache=True, nogil=True)
def distances(ptr, ids, seeds, hops):
    """Return hops from the nearest seed, int8 [n]; 127 beyond ``hops``."""
    n = len(ptr) - 1
    label = np.full(n, np.int8(FAR), dtype=np.int8)
    queue = np.empty(n, dtype=np.int32)
    end = 0
    for s in seeds:
        if label[s] != 0:
            label[s] = 0
            queue[end] = s
            end += 1
    begin = 0
    while begin < end:
        v = queue[begin]
        begin += 1
        if label[v] == hops:
            break
        for e in range(ptr[v], ptr[v + 1]):
            w = ids[e]
            if label[w] == FAR:
                label[w] = label[v] + 1
                queue[end] = w
                end += 1
    return label


@njit(cache=True, nogil=True)
def ball_weights(ptr, ids, hops, weight, rows):
    """Return the sum of ``weight`` within ``hops`` of each of ``rows``, float64."""
    n = len(ptr) - 1
    seen = np.full(n, -1, dtype=np.int32)
    queue = np.empty(n, dtype=np.int32)
    sums = np.zeros(len(rows), dtype=np.float64)
    for i in range(len(rows)):
        v = rows[i]
        seen[v] = i
        queue[0] = v
        begin = 0
        end = 1
        total = weight[v]
        for _ in range(hops):
            last = end
            while begin < last:
                u = queue[begin]
                begin += 1
                for e in range(ptr[u], ptr[u + 1]):
                    w = ids[e]
                    if seen[w] != i:
                        seen[w] = i
                        queue[end] = w
                        end += 1
                        total += weight[w]
        sums[i] = total
    return sums


@njit(cache=True, nogil=True)
def spread_registers(ptr, ids, registers):
    """Return registers uint8 [n, r]: each node's maximum with those it influences."""
    after = registers.copy()
    width = registers.shape[1]
    for v in range(len(ptr) - 1):
        for e in range(ptr[v], ptr[v + 1]):
            w = ids[e]
            for r in range(width):
                after[v, r] = max(after[v, r], registers[w, r])
    return after
