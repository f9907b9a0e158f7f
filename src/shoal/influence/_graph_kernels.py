"""Compressed sparse rows in linear time: counting sorts, no comparison anywhere."""

from __future__ import annotations

import numpy as np
from numba import njit

__all__ = [
    "csr_of",
    "drop_doubles",
    "mark",
    "numbered",
    "once_each",
    "ranked",
    "rows_of_arcs",
    "transpose",
    "turned",
]


@njit(cache=True, nogil=True)
def csr_of(n, rows, columns, skip_loops):
    """Return (ptr int64 [n + 1], ids int32, arc int64) of arcs grouped by row.

    ``arc`` says which arc of the input stands at each place; within a row the order
    of the input is kept. With ``skip_loops`` arcs from a node to itself are left out.
    """
    ptr = np.zeros(n + 1, dtype=np.int64)
    for i in range(len(rows)):
        if not skip_loops or rows[i] != columns[i]:
            ptr[rows[i] + 1] += 1
    for v in range(n):
        ptr[v + 1] += ptr[v]
    place = ptr[:n].copy()
    ids = np.empty(ptr[n], dtype=np.int32)
    arc = np.empty(ptr[n], dtype=np.int64)
    for i in range(len(rows)):
        v = rows[i]
        if not skip_loops or v != columns[i]:
            ids[place[v]] = columns[i]
            arc[place[v]] = i
            place[v] += 1
    return ptr, ids, arc


@njit(cache=True, nogil=True)
def transpose(n, ptr, ids):
    """Return (ptr, ids, place) of the reversed arcs, each row ascending.

    ``place`` int64 says where each reversed arc stands in the input.
    """
    back = np.zeros(n + 1, dtype=np.int64)
    for e in range(len(ids)):
        back[ids[e] + 1] += 1
    for v in range(n):
        back[v + 1] += back[v]
    at = back[:n].copy()
    sources = np.empty(len(ids), dtype=np.int32)
    place = np.empty(len(ids), dtype=np.int64)
    for v in range(n):
        for e in range(ptr[v], ptr[v + 1]):
            w = ids[e]
            sources[at[w]] = v
            place[at[w]] = e
            at[w] += 1
    return back, sources, place


@njit(cache=True, nogil=True)
def drop_doubles(n, ptr, ids, arc):
    """Return rows without repeated ids, of rows that ascend; the first arc of each stays."""
    new_ptr = np.zeros(n + 1, dtype=np.int64)
    new_ids = np.empty_like(ids)
    new_arc = np.empty_like(arc)
    count = 0
    for v in range(n):
        for e in range(ptr[v], ptr[v + 1]):
            if e > ptr[v] and ids[e] == ids[e - 1]:
                continue
            new_ids[count] = ids[e]
            new_arc[count] = arc[e]
            count += 1
        new_ptr[v + 1] = count
    return new_ptr, new_ids[:count].copy(), new_arc[:count].copy()


@njit(cache=True, nogil=True)
def rows_of_arcs(n, rows, columns, both):
    """As :func:`csr_of` without loops and without saying which arc stands where.

    With ``both`` each arc stands in the rows of its two ends.
    """
    ptr = np.zeros(n + 1, dtype=np.int64)
    for i in range(len(rows)):
        if rows[i] != columns[i]:
            ptr[rows[i] + 1] += 1
            if both:
                ptr[columns[i] + 1] += 1
    for v in range(n):
        ptr[v + 1] += ptr[v]
    place = ptr[:n].copy()
    ids = np.empty(ptr[n], dtype=np.int32)
    for i in range(len(rows)):
        v, w = rows[i], columns[i]
        if v != w:
            ids[place[v]] = w
            place[v] += 1
            if both:
                ids[place[w]] = v
                place[w] += 1
    return ptr, ids


@njit(cache=True, nogil=True)
def turned(n, ptr, ids):
    """As :func:`transpose` without the places."""
    back = np.zeros(n + 1, dtype=np.int64)
    for e in range(len(ids)):
        back[ids[e] + 1] += 1
    for v in range(n):
        back[v + 1] += back[v]
    at = back[:n].copy()
    sources = np.empty(len(ids), dtype=np.int32)
    for v in range(n):
        for e in range(ptr[v], ptr[v + 1]):
            w = ids[e]
            sources[at[w]] = v
            at[w] += 1
    return back, sources


@njit(cache=True, nogil=True)
def once_each(n, ptr, ids):
    """As :func:`drop_doubles` without the arcs; ``ids`` is overwritten."""
    new_ptr = np.zeros(n + 1, dtype=np.int64)
    count = 0
    for v in range(n):
        first = count
        for e in range(ptr[v], ptr[v + 1]):
            if count == first or ids[count - 1] != ids[e]:
                ids[count] = ids[e]
                count += 1
        new_ptr[v + 1] = count
    return new_ptr, ids[:count].copy() if count < len(ids) else ids


@njit(cache=True, nogil=True)
def mark(ids, low, seen):
    """Set ``seen`` uint8 at each id, counted from the lowest one."""
    for i in range(len(ids)):
        seen[ids[i] - low] = 1


@njit(cache=True, nogil=True)
def ranked(ids, low, ranks, out):
    """Write the rank of each id, int32."""
    for i in range(len(ids)):
        out[i] = ranks[ids[i] - low]


@njit(cache=True, nogil=True)
def numbered(ids, out, keys, slots):
    """Number ids by first sight, from an open table of a power of two; return how many.

    ``out`` int32 takes each id's number, ``keys`` the ids in that order, ``slots``
    int32 (all -1) is the table. -1 is returned when more than half of it is full.
    """
    mask = np.uint64(len(slots) - 1)
    count = 0
    for i in range(len(ids)):
        # Fibonacci hashing: neighbours and multiples spread alike.
        mixed = np.uint64(ids[i]) * np.uint64(0x9E3779B97F4A7C15)
        at = (mixed ^ (mixed >> np.uint64(32))) & mask
        while slots[at] >= 0 and keys[slots[at]] != ids[i]:
            at = (at + np.uint64(1)) & mask
        if slots[at] < 0:
            if 2 * count >= len(slots):
                return -1
            keys[count] = ids[i]
            slots[at] = count
            count += 1
        out[i] = slots[at]
    return count
