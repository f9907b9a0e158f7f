"""Greedy on floors: what a seed adds to the groups that still miss some."""

from __future__ import annotations

import numpy as np
from numba import njit

from shoal.influence._update_kernels import sink

__all__ = ["cover_groups", "floor_gain", "floor_picks"]


@njit(cache=True, nogil=True)
def floor_gain(ptr, ids, hops, v, of_ptr, of_ids, need, covered, seen, stamp, queue, fresh, write):
    """Return what ``v`` adds to floors: of each group at most what it still needs.

    ``of_ptr``, ``of_ids`` list the groups of each node, ``fresh`` int64 [groups] is
    scratch of zeros. With ``write`` the ball is covered and needs fall.
    """
    queue[0] = v
    seen[v] = stamp
    begin = 0
    end = 1
    for depth in range(hops + 1):
        last = end
        while begin < last:
            u = queue[begin]
            begin += 1
            if not covered[u]:
                for g in range(of_ptr[u], of_ptr[u + 1]):
                    fresh[of_ids[g]] += 1
                if write:
                    covered[u] = 1
            if depth < hops:
                for e in range(ptr[u], ptr[u + 1]):
                    if seen[ids[e]] != stamp:
                        seen[ids[e]] = stamp
                        queue[end] = ids[e]
                        end += 1
    gain = np.int64(0)
    for g in range(len(need)):
        added = min(fresh[g], need[g])
        gain += added
        if write:
            need[g] -= added
        fresh[g] = 0
    return gain


@njit(cache=True, nogil=True)
def cover_groups(ptr, ids, hops, rows, of_ptr, of_ids, need, covered):
    """Let the seeds ``rows`` cover their balls and lower the needs."""
    n = len(ptr) - 1
    seen = np.full(n, np.int32(-1), dtype=np.int32)
    queue = np.empty(n, dtype=np.int32)
    fresh = np.zeros(len(need), dtype=np.int64)
    for i in range(len(rows)):
        floor_gain(
            ptr, ids, hops, rows[i], of_ptr, of_ids, need, covered, seen, i, queue, fresh, True
        )


@njit(cache=True, nogil=True)
def floor_picks(
    ptr, ids, hops, bound, allowed, costs, money, most, of_ptr, of_ids, need, covered, picked
):
    """Pick lazily until no floor misses anything; return how many were picked.

    ``bound`` int64 is not below any node's gain; ``costs`` is empty without a budget.
    """
    n = len(ptr) - 1
    seen = np.full(n, np.int32(-1), dtype=np.int32)
    queue = np.empty(n, dtype=np.int32)
    fresh = np.zeros(len(need), dtype=np.int64)
    exact = np.full(n, np.int32(-1), dtype=np.int32)
    heap = np.empty(n, dtype=np.int32)
    size = 0
    for v in range(n):
        if allowed[v] and bound[v] > 0:
            heap[size] = v
            size += 1
    for place in range(size // 2 - 1, -1, -1):
        sink(heap, size, place, bound)
    stamp = np.int64(0)
    turn = 0
    while turn < most and size > 0 and need.sum() > 0:
        v = np.int64(heap[0])
        if bound[v] == 0:
            break
        affordable = len(costs) == 0 or costs[v] <= money
        if affordable and exact[v] != turn:
            bound[v] = floor_gain(
                ptr, ids, hops, v, of_ptr, of_ids, need, covered, seen, stamp, queue, fresh, False
            )
            stamp += 1
            exact[v] = turn
            sink(heap, size, 0, bound)
            continue
        size -= 1
        heap[0] = heap[size]
        if size > 0:
            sink(heap, size, 0, bound)
        if not affordable:
            continue
        floor_gain(
            ptr, ids, hops, v, of_ptr, of_ids, need, covered, seen, stamp, queue, fresh, True
        )
        stamp += 1
        if len(costs) > 0:
            money -= costs[v]
        picked[turn] = v
        turn += 1
    return turn
