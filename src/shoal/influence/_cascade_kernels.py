"""Cascades: reverse-reachable sets, and simulations forward.

Random numbers are SplitMix64 streams, one for each set or simulation and keyed by
(seed, number): what a set holds depends neither on the order of the work nor on the
number of threads. Coins of simulations are keyed by the arc too, so that two seed
sets meet the same luck.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

__all__ = [
    "count_hits",
    "cover_sets",
    "invert",
    "sample_cascade_sets",
    "sample_walk_sets",
    "simulate_cascades",
    "simulate_thresholds",
]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _S11 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11)
_UNIT = 2.0**-53


@njit(cache=True)
def mix(z):
    """Return SplitMix64's scrambling of a 64-bit number."""
    z = (z ^ (z >> _S30)) * _FIRST
    z = (z ^ (z >> _S27)) * _SECOND
    return z ^ (z >> _S31)


@njit(cache=True)
def unit(z):
    """Return a float64 in (0, 1) of 64 random bits; never 0, so that its logarithm is finite."""
    return (np.float64(z >> _S11) + 0.5) * _UNIT


@njit(cache=True)
def draw_root(n, cumulative, u):
    """Return a node, drawn evenly or in proportion to weights whose running sum is given."""
    if len(cumulative) == 0:
        return min(n - 1, np.int64(u * n))
    wanted = u * cumulative[n - 1]
    low, high = 0, n - 1
    while low < high:
        middle = (low + high) >> 1
        if cumulative[middle] > wanted:
            high = middle
        else:
            low = middle + 1
    return low


@njit(cache=True, nogil=True)
def sample_cascade_sets(
    n, ptr, ids, inverse_log, probability, cumulative, seed, first, count, set_ptr, members, stamp
):
    """Fill sets of those who would reach a random node under independent cascade.

    ``ptr, ids`` are the arcs in. ``inverse_log[v]`` is ``1 / log(1 - p)`` if all arcs
    into v have the same p, else NaN, and then ``probability`` (in the order of
    ``ids``) is tossed arc by arc. Set ``first + i`` goes to
    ``members[set_ptr[i]:set_ptr[i + 1]]``. Returns how many were finished before
    ``members`` was full. ``stamp`` int64 [n] must be below 0 or hold other sets' numbers.
    """
    for i in range(count):
        state = mix(seed + np.uint64(first + i) * _GOLDEN)
        begin = set_ptr[i]
        end = begin
        state += _GOLDEN
        root = draw_root(n, cumulative, unit(mix(state)))
        mark = first + i
        stamp[root] = mark
        if end >= len(members):
            return i
        members[end] = root
        end += 1
        head = begin
        while head < end:
            v = members[head]
            head += 1
            start, stop = ptr[v], ptr[v + 1]
            if end + (stop - start) > len(members):
                return i
            factor = inverse_log[v]
            if not math.isnan(factor):
                e = start
                while True:
                    state += _GOLDEN
                    step = math.log(unit(mix(state))) * factor
                    if not step < stop - e:
                        break
                    e += np.int64(step)
                    w = ids[e]
                    if stamp[w] != mark:
                        stamp[w] = mark
                        members[end] = w
                        end += 1
                    e += 1
                    if e >= stop:
                        break
            else:
                for e in range(start, stop):
                    state += _GOLDEN
                    if unit(mix(state)) < probability[e]:
                        w = ids[e]
                        if stamp[w] != mark:
                            stamp[w] = mark
                            members[end] = w
                            end += 1
        set_ptr[i + 1] = end
    return count


@njit(cache=True, nogil=True)
def sample_walk_sets(n, ptr, ids, running, cumulative, seed, first, count, set_ptr, members, stamp):
    """Fill sets of those who would reach a random node under linear threshold.

    Each node listens to at most one of those that influence it, chosen by its arc's
    weight: a set is a walk backwards that ends when nobody is listened to or someone
    comes again. ``running`` is the sum of weights within each node's arcs in up to
    and with each arc; empty for weights of 1 / indegree.
    """
    for i in range(count):
        state = mix(seed + np.uint64(first + i) * _GOLDEN)
        begin = set_ptr[i]
        end = begin
        state += _GOLDEN
        v = draw_root(n, cumulative, unit(mix(state)))
        mark = first + i
        while stamp[v] != mark:
            if end >= len(members):
                return i
            stamp[v] = mark
            members[end] = v
            end += 1
            start, stop = ptr[v], ptr[v + 1]
            if start == stop:
                break
            state += _GOLDEN
            u = unit(mix(state))
            if len(running) == 0:
                v = ids[start + min(stop - start - 1, np.int64(u * (stop - start)))]
                continue
            if u >= running[stop - 1]:
                break
            low, high = start, stop - 1
            while low < high:
                middle = (low + high) >> 1
                if running[middle] > u:
                    high = middle
                else:
                    low = middle + 1
            v = ids[low]
        set_ptr[i + 1] = end
    return count


@njit(cache=True, nogil=True)
def invert(n, set_ptr, members):
    """Return (ptr int64 [n + 1], sets int32): the sets that hold each node, ascending."""
    ptr = np.zeros(n + 1, dtype=np.int64)
    for e in range(len(members)):
        ptr[members[e] + 1] += 1
    for v in range(n):
        ptr[v + 1] += ptr[v]
    place = ptr[:n].copy()
    sets = np.empty(len(members), dtype=np.int32)
    for i in range(len(set_ptr) - 1):
        for e in range(set_ptr[i], set_ptr[i + 1]):
            v = members[e]
            sets[place[v]] = i
            place[v] += 1
    return ptr, sets


@njit(cache=True, nogil=True)
def cover_sets(n, set_ptr, members, node_ptr, node_sets, k, allowed, rows, gains):
    """Choose up to ``k`` nodes that together hit most sets, greedily; ties by the smallest row.

    Writes the nodes and how many more sets each hits. Returns (how many were chosen,
    sum of the ``k`` largest counts that are left): the second bounds what any ``k``
    nodes could add. Time O(n + members + largest count).
    """
    gain = np.empty(n, dtype=np.int64)
    most = 0
    for v in range(n):
        gain[v] = node_ptr[v + 1] - node_ptr[v]
        if len(allowed) and not allowed[v]:
            gain[v] = 0
        most = max(most, gain[v])
    # Buckets as linked lists. A node's bucket is never below its gain; it moves when met.
    head = np.full(most + 1, -1, dtype=np.int64)
    after = np.empty(n, dtype=np.int64)
    for v in range(n - 1, -1, -1):
        after[v] = head[gain[v]]
        head[gain[v]] = v
    covered = np.zeros(len(set_ptr) - 1, dtype=np.uint8)
    count = 0
    here = np.empty(n, dtype=np.int64)
    for level in range(most, 0, -1):
        # Nodes only ever move down, so that once a level is reached nobody joins it.
        size = 0
        v = head[level]
        while v >= 0:
            if gain[v] == level:
                here[size] = v
                size += 1
                v = after[v]
            else:
                following = after[v]
                place = max(0, gain[v])
                after[v] = head[place]
                head[place] = v
                v = following
        if size > 1:
            here[:size].sort()
        for j in range(size):
            v = here[j]
            if count == k:
                break
            if gain[v] < level:
                place = max(0, gain[v])
                after[v] = head[place]
                head[place] = v
                continue
            rows[count] = v
            gains[count] = level
            count += 1
            for e in range(node_ptr[v], node_ptr[v + 1]):
                i = node_sets[e]
                if not covered[i]:
                    covered[i] = 1
                    for f in range(set_ptr[i], set_ptr[i + 1]):
                        gain[members[f]] -= 1
        if count == k:
            break
    left = 0
    if len(allowed):
        for v in range(n):
            if not allowed[v]:
                gain[v] = 0
    tally = np.zeros(most + 1, dtype=np.int64)
    for v in range(n):
        tally[max(0, gain[v])] += 1
    wanted = k
    for g in range(most, 0, -1):
        taken = min(wanted, tally[g])
        left += taken * g
        wanted -= taken
    return count, left


@njit(cache=True, nogil=True)
def count_hits(set_ptr, members, chosen):
    """Return how many sets hold a chosen node (``chosen`` bool [n])."""
    hits = 0
    for i in range(len(set_ptr) - 1):
        for e in range(set_ptr[i], set_ptr[i + 1]):
            if chosen[members[e]]:
                hits += 1
                break
    return hits


@njit(cache=True, nogil=True)
def simulate_cascades(n, ptr, ids, probability, weights, seeds, seed, first, count, reached):
    """Write the weight that independent cascades reach from ``seeds`` to ``reached[:count]``.

    ``ptr, ids, probability`` are the arcs out; ``weights`` float64 [n] or empty.
    """
    stamp = np.full(n, -1, dtype=np.int64)
    queue = np.empty(n, dtype=np.int32)
    for i in range(count):
        luck = mix(seed + np.uint64(first + i) * _GOLDEN)
        end = 0
        for s in seeds:
            if stamp[s] != i:
                stamp[s] = i
                queue[end] = s
                end += 1
        head = 0
        while head < end:
            v = queue[head]
            head += 1
            for e in range(ptr[v], ptr[v + 1]):
                w = ids[e]
                if stamp[w] != i and unit(mix(luck + np.uint64(e) * _GOLDEN)) < probability[e]:
                    stamp[w] = i
                    queue[end] = w
                    end += 1
        reached[i] = _weight(weights, queue, end)


@njit(cache=True, nogil=True)
def simulate_thresholds(n, ptr, ids, share, weights, seeds, seed, first, count, reached):
    """Write the weight that linear thresholds reach from ``seeds`` to ``reached[:count]``.

    ``share`` is the weight of each arc out at its target.
    """
    stamp = np.full(n, -1, dtype=np.int64)
    touched = np.full(n, -1, dtype=np.int64)
    heard = np.zeros(n)
    queue = np.empty(n, dtype=np.int32)
    for i in range(count):
        luck = mix(seed + np.uint64(first + i) * _GOLDEN)
        end = 0
        for s in seeds:
            if stamp[s] != i:
                stamp[s] = i
                queue[end] = s
                end += 1
        head = 0
        while head < end:
            v = queue[head]
            head += 1
            for e in range(ptr[v], ptr[v + 1]):
                w = ids[e]
                if stamp[w] == i:
                    continue
                if touched[w] != i:
                    touched[w] = i
                    heard[w] = 0.0
                heard[w] += share[e]
                if heard[w] > unit(mix(luck + np.uint64(w) * _GOLDEN)):
                    stamp[w] = i
                    queue[end] = w
                    end += 1
        reached[i] = _weight(weights, queue, end)


@njit(cache=True)
def _weight(weights, queue, end):
    if len(weights) == 0:
        return np.float64(end)
    total = 0.0
    for j in range(end):
        total += weights[queue[j]]
    return total
