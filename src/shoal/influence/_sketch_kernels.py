"""Who reaches 512 targets at once: one bit a target, one line of memory a node and arc."""

from __future__ import annotations

import numpy as np
from numba import njit

__all__ = ["TILE", "count_tile", "one_hop", "sample_gains", "spread", "tell_reachers", "tighten"]

#: Targets of a tile: eight words, a cache line.
TILE = 512


@njit(cache=True, nogil=True)
def _ones(x):
    """Return the number of bits set; the compiler knows this form as one instruction."""
    x = x - ((x >> np.uint64(1)) & np.uint64(0x5555555555555555))
    x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
    x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((x * np.uint64(0x0101010101010101)) >> np.uint64(56))


@njit(cache=True, nogil=True)
def one_hop(targets, in_ptr, in_ids, bits, live):
    """Set the bits of those who reach each target in at most one hop.

    ``bits`` uint64 [n, 8] is cleared where ``live`` says that it was used.
    """
    for v in range(len(live)):
        if live[v]:
            live[v] = 0
            for j in range(8):
                bits[v, j] = np.uint64(0)
    for i in range(len(targets)):
        t = targets[i]
        word = i >> 6
        bit = np.uint64(1) << np.uint64(i & 63)
        bits[t, word] |= bit
        live[t] = 1
        for e in range(in_ptr[t], in_ptr[t + 1]):
            u = in_ids[e]
            bits[u, word] |= bit
            live[u] = 1


@njit(cache=True, nogil=True)
def spread(out_ptr, out_ids, bits, live, further, further_live):
    """Write into ``further`` the bits one hop further out."""
    for v in range(len(live)):
        a, b, c, d = bits[v, 0], bits[v, 1], bits[v, 2], bits[v, 3]
        p, q, r, s = bits[v, 4], bits[v, 5], bits[v, 6], bits[v, 7]
        for e in range(out_ptr[v], out_ptr[v + 1]):
            w = out_ids[e]
            if live[w]:
                a |= bits[w, 0]
                b |= bits[w, 1]
                c |= bits[w, 2]
                d |= bits[w, 3]
                p |= bits[w, 4]
                q |= bits[w, 5]
                r |= bits[w, 6]
                s |= bits[w, 7]
        further[v, 0], further[v, 1], further[v, 2], further[v, 3] = a, b, c, d
        further[v, 4], further[v, 5], further[v, 6], further[v, 7] = p, q, r, s
        further_live[v] = (a | b | c | d | p | q | r | s) != 0


@njit(cache=True, nogil=True)
def _worth(word, first, worth):
    """Return the weight of the targets whose bits are set in ``word``."""
    total = np.int64(0)
    j = first
    while word != 0:
        if word & np.uint64(1):
            total += worth[j]
        word >>= np.uint64(1)
        j += 1
    return total


@njit(cache=True, nogil=True)
def count_tile(out_ptr, out_ids, bits, live, worth, weighted, rows, size, found):
    """Add to ``found[v]`` the worth of the targets one hop further from each v of ``rows``."""
    for i in range(size):
        v = rows[i]
        a, b, c, d = bits[v, 0], bits[v, 1], bits[v, 2], bits[v, 3]
        p, q, r, s = bits[v, 4], bits[v, 5], bits[v, 6], bits[v, 7]
        for e in range(out_ptr[v], out_ptr[v + 1]):
            w = out_ids[e]
            if live[w]:
                a |= bits[w, 0]
                b |= bits[w, 1]
                c |= bits[w, 2]
                d |= bits[w, 3]
                p |= bits[w, 4]
                q |= bits[w, 5]
                r |= bits[w, 6]
                s |= bits[w, 7]
        if weighted:
            found[v] += _worth(a, 0, worth) + _worth(b, 64, worth) + _worth(c, 128, worth)
            found[v] += _worth(d, 192, worth) + _worth(p, 256, worth) + _worth(q, 320, worth)
            found[v] += _worth(r, 384, worth) + _worth(s, 448, worth)
        else:
            found[v] += _ones(a) + _ones(b) + _ones(c) + _ones(d)
            found[v] += _ones(p) + _ones(q) + _ones(r) + _ones(s)


@njit(cache=True, nogil=True)
def tell_reachers(targets, in_ptr, in_ids, hops, weight, weighted, mark, stamp, queue, found):
    """Add the weight of each target to ``found`` of those who reach it; return the next stamp."""
    for t in targets:
        worth = np.int64(weight[t]) if weighted else np.int64(1)
        stamp += 1
        mark[t] = stamp
        queue[0] = t
        found[t] += worth
        begin = 0
        end = 1
        for _ in range(hops):
            last = end
            while begin < last:
                x = queue[begin]
                begin += 1
                for e in range(in_ptr[x], in_ptr[x + 1]):
                    u = in_ids[e]
                    if mark[u] != stamp:
                        mark[u] = stamp
                        queue[end] = u
                        end += 1
                        found[u] += worth
    return stamp


@njit(cache=True, nogil=True)
def tighten(rows, size, found, rest, key, cost, by_cost, best):
    """Lower keys to what was found and all that is left; keep in ``rows`` those that may win.

    Return how many were kept. A node may win if its key is not below ``best``.
    """
    kept = 0
    for i in range(size):
        v = rows[i]
        most = np.float64(found[v] + rest)
        if by_cost:
            most /= cost[v]
        key[v] = min(key[v], most)
        if key[v] >= best:
            rows[kept] = v
            kept += 1
    return kept


@njit(cache=True, nogil=True)
def sample_gains(bits, covered, rows, gains):
    """Write how many targets each of ``rows`` reaches that ``covered`` uint64 [8] lacks."""
    for i in range(len(rows)):
        v = rows[i]
        total = np.int64(0)
        for j in range(8):
            total += _ones(bits[v, j] & ~covered[j])
        gains[i] = total
