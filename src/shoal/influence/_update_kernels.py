"""Kernels of the cover index: rows that move, searches over them, and greedy in stretches.

A graph that changes is kept as rows in one pool: row v is
``pool[first[v] : first[v] + length[v]]``, ascending, with room up to ``space[v]``. A
full row moves to the end of the pool with twice the room.
"""

from __future__ import annotations

import numpy as np
from numba import njit

__all__ = [
    "FAR",
    "ball_by_depth",
    "commit",
    "deepest_bounds",
    "extend",
    "find",
    "insert",
    "marginal",
    "pack",
    "remove",
    "uncovered_by_depth",
]

FAR = 127

# Entries of the work that is counted.
ARCS, EVALUATIONS, REFRESHES = range(3)


@njit(cache=True, nogil=True)
def find(first, length, pool, u, v):
    """Return the place of ``v`` in row ``u``, or -1 - (where it would stand)."""
    low = first[u]
    high = first[u] + length[u]
    while low < high:
        middle = (low + high) // 2
        if pool[middle] < v:
            low = middle + 1
        else:
            high = middle
    if low < first[u] + length[u] and pool[low] == v:
        return low
    return -1 - low


@njit(cache=True, nogil=True)
def insert(first, length, space, pool, used, u, v):
    """Put ``v`` into row ``u``. Return 1, 0 if it was there, or -1 if the pool is too small.

    ``used`` int64 [1] is the end of the pool's used part.
    """
    place = find(first, length, pool, u, v)
    if place >= 0:
        return 0
    place = -1 - place
    if length[u] == space[u]:
        room = max(np.int64(4), 2 * space[u])
        if used[0] + room > len(pool):
            return -1
        offset = place - first[u]
        begin = used[0]
        for i in range(length[u]):
            pool[begin + i] = pool[first[u] + i]
        first[u] = begin
        space[u] = room
        used[0] += room
        place = begin + offset
    for i in range(first[u] + length[u], place, -1):
        pool[i] = pool[i - 1]
    pool[place] = v
    length[u] += 1
    return 1


@njit(cache=True, nogil=True)
def remove(first, length, pool, u, v):
    """Take ``v`` out of row ``u``; return 1, or 0 if it was not there."""
    place = find(first, length, pool, u, v)
    if place < 0:
        return 0
    for i in range(place, first[u] + length[u] - 1):
        pool[i] = pool[i + 1]
    length[u] -= 1
    return 1


@njit(cache=True, nogil=True)
def pack(first, length, pool, n):
    """Return the rows as (ptr int64 [n + 1], ids int32)."""
    ptr = np.zeros(n + 1, dtype=np.int64)
    for v in range(n):
        ptr[v + 1] = ptr[v] + length[v]
    ids = np.empty(ptr[n], dtype=np.int32)
    for v in range(n):
        for i in range(length[v]):
            ids[ptr[v] + i] = pool[first[v] + i]
    return ptr, ids


# --- searches -----------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def ball_by_depth(first, length, pool, u, depth_most, seen, stamp, queue, ends, work):
    """Write whom ``u`` reaches within ``depth_most`` hops; return how many.

    Over rows of in-arcs: who reaches ``u``. ``ends[t]`` is where depth t ends in the
    queue.
    """
    queue[0] = u
    seen[u] = stamp
    begin = 0
    end = 1
    ends[0] = 1
    for depth in range(1, depth_most + 1):
        last = end
        while begin < last:
            w = queue[begin]
            begin += 1
            work[ARCS] += length[w]
            for i in range(first[w], first[w] + length[w]):
                x = pool[i]
                if seen[x] != stamp:
                    seen[x] = stamp
                    queue[end] = x
                    end += 1
        ends[depth] = end
    return end


@njit(cache=True, nogil=True)
def uncovered_by_depth(queue, ends, label, weight, sums):
    """Fill ``sums[t]``: weight up to depth t of a search that ``label`` leaves uncovered."""
    begin = np.int64(0)
    total = np.int64(0)
    for depth in range(len(ends)):
        for i in range(begin, ends[depth]):
            if label[queue[i]] == FAR:
                total += weight[queue[i]]
        begin = ends[depth]
        sums[depth] = total


@njit(cache=True, nogil=True)
def marginal(first, length, pool, v, hops, label, weight, seen, stamp, queue, work):
    """Return what ``v`` adds to the seeds of ``label``: stops where a seed is as near."""
    total = np.int64(0)
    queue[0] = v
    seen[v] = stamp
    begin = 0
    end = 1
    work[EVALUATIONS] += 1
    for depth in range(hops + 1):
        last = end
        while begin < last:
            u = queue[begin]
            begin += 1
            if label[u] <= depth:
                continue
            if label[u] == FAR:
                total += weight[u]
            if depth < hops:
                work[ARCS] += length[u]
                for i in range(first[u], first[u] + length[u]):
                    w = pool[i]
                    if seen[w] != stamp:
                        seen[w] = stamp
                        queue[end] = w
                        end += 1
    return total


@njit(cache=True, nogil=True)
def commit(first, length, pool, v, hops, label, queue, work):
    """Write the distances from the new seed ``v`` where they are smaller."""
    if label[v] == 0:
        return
    label[v] = 0
    queue[0] = v
    begin = 0
    end = 1
    for depth in range(1, hops + 1):
        last = end
        while begin < last:
            u = queue[begin]
            begin += 1
            work[ARCS] += length[u]
            for i in range(first[u], first[u] + length[u]):
                w = pool[i]
                if label[w] > depth:
                    label[w] = depth
                    queue[end] = w
                    end += 1


@njit(cache=True, nogil=True)
def deepest_bounds(first, length, pool, n, hops, label, weight, most, bound, work):
    """Lower ``bound`` to the backward recursion of the sheet, 4.3, where that is smaller.

    Integers; sums stop at ``most``, the weight of all nodes: nothing is rounded.
    """
    now = np.empty(n, dtype=np.int64)
    after = np.empty(n, dtype=np.int64)
    for v in range(n):
        now[v] = weight[v] if label[v] == FAR else 0
    for j in range(hops - 1, -1, -1):
        for v in range(n):
            total = np.int64(0)
            if label[v] > j:
                if label[v] == FAR:
                    total = weight[v]
                for i in range(first[v], first[v] + length[v]):
                    x = pool[i]
                    if label[x] > j + 1:
                        total += now[x]
                        if total > most:
                            total = most
                            break
            after[v] = total
            work[ARCS] += length[v]
        now, after = after, now
    for v in range(n):
        bound[v] = min(bound[v], now[v])
    work[REFRESHES] += 1


# --- greedy in stretches ------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def above(bound, a, b):
    """Say whether ``a`` comes before ``b``: the larger bound, then the smaller row."""
    return bound[a] > bound[b] or (bound[a] == bound[b] and a < b)


@njit(cache=True, nogil=True)
def sink(heap, size, place, bound):
    """Restore the heap below ``place``."""
    v = heap[place]
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        if child + 1 < size and above(bound, heap[child + 1], heap[child]):
            child += 1
        if not above(bound, heap[child], v):
            break
        heap[place] = heap[child]
        place = child
    heap[place] = v


@njit(cache=True, nogil=True)
def heap_of(heap, n, bound, allowed, label):
    """Fill the heap with whoever may add something; return its size."""
    size = 0
    for v in range(n):
        if allowed[v] and bound[v] > 0 and label[v] != 0:
            heap[size] = v
            size += 1
    for place in range(size // 2 - 1, -1, -1):
        sink(heap, size, place, bound)
    return size


@njit(cache=True, nogil=True)
def extend(
    first,
    length,
    pool,
    n,
    hops,
    weight,
    most,
    allowed,
    label,
    bound,
    saved,
    picked,
    gains,
    begin,
    end,
    seen,
    queue,
    work,
):
    """Choose greedily for rounds ``begin`` to ``end``; return the round that it came to.

    ``bound`` must not be below anyone's marginal gain, and stays so. ``saved`` gets
    the bounds as they are when the first pick is known and not yet committed.
    ``seen`` int32 [n + 1] ends with its stamp.
    """
    heap = np.empty(n, dtype=np.int32)
    exact = np.full(n, np.int32(-1), dtype=np.int32)
    size = heap_of(heap, n, bound, allowed, label)
    patience = 4 * np.int64(hops) * (np.int64(n) + length[:n].sum())
    since = work[ARCS]
    turn = begin
    while turn < end:
        while size > 0 and exact[heap[0]] != turn:
            v = heap[0]
            seen[n] += 1
            bound[v] = marginal(
                first, length, pool, v, hops, label, weight, seen, seen[n], queue, work
            )
            exact[v] = turn
            if bound[v] == 0:
                size -= 1
                heap[0] = heap[size]
            if size > 0:
                sink(heap, size, 0, bound)
            if hops > 1 and work[ARCS] - since > patience:
                deepest_bounds(first, length, pool, n, hops, label, weight, most, bound, work)
                size = heap_of(heap, n, bound, allowed, label)
                since = work[ARCS]
                patience *= 2
        if turn == begin:
            saved[:n] = bound[:n]
        if size == 0:
            break
        v = heap[0]
        picked[turn] = v
        gains[turn] = bound[v]
        commit(first, length, pool, v, hops, label, queue, work)
        size -= 1
        heap[0] = heap[size]
        if size > 0:
            sink(heap, size, 0, bound)
        turn += 1
    return turn
