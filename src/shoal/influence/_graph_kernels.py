"""Compressed sparse rows in linear time: counting sorts, no comparison anywhere."""

from __future__ import annotations

import numpy as np
from numba import njit

__all__ = ["csr_of", "drop_doubles", "transpose"]


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
