"""Loops of overlap-aware FastCover: what a node could add, and who votes for whom."""

from __future__ import annotations

import numpy as np
from numba import njit

__all__ = ["LANES", "reach_lanes", "tally"]

#: Ways of counting what a node reaches, side by side so that an arc gathers them at once.
LANES = 4

#: Counts of walks grow as powers of the degree; they stop here instead of at infinity.
_MOST = np.float32(1e30)


@njit(cache=True, nogil=True)
def reach_lanes(out_ptr, out_ids, in_ptr, labels, hops):
    """Return float32 [n, 4]: uncovered nodes that each node reaches, counted by walks.

    With D the distance labels of the seeds chosen so far, from j = d down to 0:

        c_d(w) = s(w) [D(w) > d]
        c_j(w) = s(w) [D(w) > d] + sum of f(x) c_{j+1}(x) over x in N+(w), D(x) > j + 1

    where s = 1 and f = 1, indeg^-1/2, indeg^-1 in lanes 0 to 2, and s = f = 1 / indeg
    in lane 3. Lane 0 is an upper bound of the marginal gain, and equal to it at d = 1.
    """
    n = len(out_ptr) - 1
    share = np.empty((n, LANES), dtype=np.float32)
    now = np.zeros((n, LANES), dtype=np.float32)
    for v in range(n):
        inverse = np.float32(1.0) / np.float32(max(in_ptr[v + 1] - in_ptr[v], 1))
        share[v, 0] = np.float32(1.0)
        share[v, 1] = np.sqrt(inverse)
        share[v, 2] = inverse
        share[v, 3] = inverse
        if labels[v] > hops:
            now[v, 0] = np.float32(1.0)
            now[v, 1] = share[v, 1]
            now[v, 2] = inverse
            now[v, 3] = inverse * inverse
    after = np.zeros((n, LANES), dtype=np.float32)
    for back in range(hops):
        level = hops - 1 - back
        for w in range(n):
            if labels[w] <= level:
                for lane in range(LANES):
                    after[w, lane] = np.float32(0.0)
                continue
            a = np.float32(0.0)
            b = np.float32(0.0)
            c = np.float32(0.0)
            d = np.float32(0.0)
            if labels[w] > hops:
                a = b = c = np.float32(1.0)
                d = share[w, 3]
            for e in range(out_ptr[w], out_ptr[w + 1]):
                x = out_ids[e]
                a += now[x, 0]
                b += now[x, 1]
                c += now[x, 2]
                d += now[x, 3]
            if level == 0:
                after[w, 0] = min(a, _MOST)
                after[w, 1] = min(b, _MOST)
                after[w, 2] = c
                after[w, 3] = d
            else:
                after[w, 0] = min(a, _MOST)
                after[w, 1] = min(b, _MOST) * share[w, 1]
                after[w, 2] = c * share[w, 2]
                after[w, 3] = d * share[w, 3]
        now, after = after, now
        # A walk may go on from w at depth `level` only if D(w) > level: those are zero above.
    return now


@njit(cache=True, nogil=True)
def tally(in_ptr, in_ids, labels, hops, keys, votes):
    """Let every uncovered node vote for the strongest node within ``hops`` of it.

    ``keys`` int64 [n], all different, larger is stronger; below 0: may not be voted
    for. The largest key travels ``hops`` arcs: no closure, and no node counts twice.
    Adds the votes to ``votes`` int64 [n] by the row that is kept in a key's low bits.
    """
    n = len(in_ptr) - 1
    now = keys
    after = keys.copy()
    for step in range(1, hops + 1):
        for v in range(n):
            # Only these can still pass a key on to an uncovered node in time.
            if labels[v] <= step:
                continue
            best = now[v]
            for e in range(in_ptr[v], in_ptr[v + 1]):
                best = max(best, now[in_ids[e]])
            after[v] = best
        if step == 1:
            now = after
            after = now.copy()
        else:
            now, after = after, now
    for v in range(n):
        if labels[v] > hops and now[v] >= 0:
            votes[np.int64(0x7FFFFFFF) - (now[v] & np.int64(0x7FFFFFFF))] += 1
