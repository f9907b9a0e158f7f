"""One hop: gains that are always right, because covering a node tells those who reach it.

Each node is covered once and tells each of its in-neighbours once, so all commits
together walk every arc at most twice.
"""

from __future__ import annotations

import numpy as np
from numba import njit

__all__ = [
    "bucket_order",
    "bucket_picks",
    "commit_counts",
    "commit_weights",
    "first_counts",
    "first_weights",
    "heap_of",
    "heap_picks",
    "set_keys",
]

# Places in `state`, int64: what a run that is cut into slices carries on.
PICKS, COVERED, ARCS, LEVEL, PLACE, WAITING, OVER, STALE, TOLD = range(9)


@njit(cache=True, nogil=True)
def first_counts(out_ptr):
    """Return how many nodes each node covers at one hop, itself included, int32 [n]."""
    n = len(out_ptr) - 1
    gain = np.empty(n, dtype=np.int32)
    for v in range(n):
        gain[v] = out_ptr[v + 1] - out_ptr[v] + 1
    return gain


@njit(cache=True, nogil=True)
def first_weights(out_ptr, out_ids, weight):
    """Return the weight that each node covers at one hop, int64 [n]."""
    n = len(out_ptr) - 1
    gain = weight.copy()
    for v in range(n):
        total = gain[v]
        for e in range(out_ptr[v], out_ptr[v + 1]):
            total += weight[out_ids[e]]
        gain[v] = total
    return gain


@njit(cache=True, nogil=True)
def commit_counts(v, out_ptr, out_ids, in_ptr, in_ids, gain, covered, fresh, state):
    """Cover what ``v`` reaches at one hop and take it from the gains of all who reach it.

    The newly covered are gathered first (``fresh``, room for n + 1): two short loops
    whose loads do not wait for each other.
    """
    size = 0
    if covered[v] == 0:
        covered[v] = 1
        fresh[0] = v
        size = 1
    for e in range(out_ptr[v], out_ptr[v + 1]):
        w = out_ids[e]
        fresh[size] = w
        size += 1 - covered[w]
        covered[w] = 1
    arcs = out_ptr[v + 1] - out_ptr[v]
    for i in range(size):
        w = fresh[i]
        gain[w] -= 1
        arcs += in_ptr[w + 1] - in_ptr[w]
        for e in range(in_ptr[w], in_ptr[w + 1]):
            gain[in_ids[e]] -= 1
    state[COVERED] += size
    state[ARCS] += arcs


@njit(cache=True, nogil=True)
def commit_weights(v, out_ptr, out_ids, in_ptr, in_ids, weight, gain, covered, state):
    """Do as :func:`commit_counts` where nodes have weights."""
    arcs = out_ptr[v + 1] - out_ptr[v]
    for place in range(out_ptr[v] - 1, out_ptr[v + 1]):
        w = out_ids[place] if place >= out_ptr[v] else v
        if covered[w] == 0:
            covered[w] = 1
            lost = weight[w]
            state[COVERED] += lost
            gain[w] -= lost
            for e in range(in_ptr[w], in_ptr[w + 1]):
                gain[in_ids[e]] -= lost
            arcs += in_ptr[w + 1] - in_ptr[w]
    state[ARCS] += arcs


@njit(cache=True, nogil=True)
def bucket_order(gain, allowed, everyone, most):
    """Return (order int32, end int64 [top + 2], floor): nodes by gain, falling, then by row.

    The nodes of gain g end at ``end[g]``. Once ``most`` nodes are in, no lower level is:
    those of gain ``floor`` and less are absent, and so are those not allowed.
    """
    n = len(gain)
    top = 0
    for v in range(n):
        if everyone or allowed[v] != 0:
            top = max(top, gain[v])
    begin = np.zeros(top + 2, dtype=np.int64)
    for v in range(n):
        if everyone or allowed[v] != 0:
            begin[gain[v]] += 1
    total = np.int64(0)
    floor = 0
    for g in range(top, -1, -1):
        count = begin[g]
        begin[g] = total
        if g == 0 or total >= most:
            floor = max(floor, g)
        else:
            total += count
    order = np.empty(total, dtype=np.int32)
    for v in range(n):
        if gain[v] > floor and (everyone or allowed[v] != 0):
            order[begin[gain[v]]] = v
            begin[gain[v]] += 1
    return order, begin, floor


@njit(cache=True, nogil=True)
def _sink(ids, place, size):
    """Restore a heap of rows, smallest first, below ``place``."""
    v = ids[place]
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        if child + 1 < size and ids[child + 1] < ids[child]:
            child += 1
        if ids[child] >= v:
            break
        ids[place] = ids[child]
        place = child
    ids[place] = v


@njit(cache=True, nogil=True)
def count_left(v, out_ptr, out_ids, covered):
    """Return how many nodes ``v`` would cover."""
    left = 1 - np.int64(covered[v])
    for e in range(out_ptr[v], out_ptr[v + 1]):
        left += 1 - covered[out_ids[e]]
    return left


@njit(cache=True, nogil=True)
def count_all(out_ptr, out_ids, covered, gain):
    """Write into ``gain`` how many nodes each would cover: one pass over the arcs."""
    for v in range(len(gain)):
        gain[v] = count_left(v, out_ptr, out_ids, covered)


@njit(cache=True, nogil=True)
def _refile(v, gain, head, follow):
    """Put ``v`` on the list of its present gain; nothing to gain, no list."""
    if gain[v] > 0:
        follow[v] = head[gain[v]]
        head[gain[v]] = v


@njit(cache=True, nogil=True)
def bucket_picks(
    out_ptr,
    out_ids,
    in_ptr,
    in_ids,
    gain,
    counted,
    covered,
    order,
    end,
    floor,
    head,
    follow,
    waiting,
    fresh,
    picked,
    gains,
    k,
    need,
    ask_arcs,
    slice_arcs,
    state,
):
    """Choose until ``k``, ``need`` or the end of the slice; largest gain first, then smallest row.

    Gains only fall. ``order`` holds each node where its first gain put it; a node
    found there with less goes to the list (``head``, ``follow``) of its present gain.
    When a level is reached, its list becomes a heap by row (``waiting``), so that the
    level is served in the order of rows whoever fell into it. It ends at ``floor``.

    Until ``state[TOLD]`` nodes are asked: one that comes to the front is counted anew
    (``counted`` says at which pick), which for few seeds touches few arcs. Once that
    has cost ``ask_arcs``, all are counted in one pass and from then on they are told.
    """
    stop = state[ARCS] + slice_arcs
    while state[PICKS] < k and state[COVERED] < need:
        if state[ARCS] >= stop:
            return
        level = state[LEVEL]
        if level <= floor:
            break
        if state[TOLD] == 0 and state[ARCS] > ask_arcs:
            count_all(out_ptr, out_ids, covered, gain)
            state[ARCS] += len(out_ids)
            state[TOLD] = 1
        told = state[TOLD] == 1
        best = np.int32(-1)
        while state[PLACE] < end[level]:
            v = order[state[PLACE]]
            if gain[v] == level:
                best = v
                break
            _refile(v, gain, head, follow)
            state[PLACE] += 1
        while state[WAITING] > 0 and gain[waiting[0]] != level:
            _refile(waiting[0], gain, head, follow)
            state[WAITING] -= 1
            waiting[0] = waiting[state[WAITING]]
            _sink(waiting, 0, state[WAITING])
        if state[WAITING] > 0 and (best < 0 or waiting[0] < best):
            best = waiting[0]
            state[WAITING] -= 1
            waiting[0] = waiting[state[WAITING]]
            _sink(waiting, 0, state[WAITING])
        elif best >= 0:
            state[PLACE] += 1
        else:
            level -= 1
            state[LEVEL] = level
            v = head[level] if level > 0 else np.int32(-1)
            size = 0
            while v >= 0:
                after = follow[v]
                if gain[v] == level:
                    waiting[size] = v
                    size += 1
                else:
                    _refile(v, gain, head, follow)
                v = after
            for place in range(size // 2 - 1, -1, -1):
                _sink(waiting, place, size)
            state[WAITING] = size
            continue
        if not told and counted[best] < state[PICKS]:
            gain[best] = count_left(best, out_ptr, out_ids, covered)
            counted[best] = state[PICKS]
            state[ARCS] += out_ptr[best + 1] - out_ptr[best]
            if gain[best] < level:
                _refile(best, gain, head, follow)
                continue
        picked[state[PICKS]] = best
        gains[state[PICKS]] = level
        state[PICKS] += 1
        if told:
            commit_counts(best, out_ptr, out_ids, in_ptr, in_ids, gain, covered, fresh, state)
        else:
            covered[best] = 1
            for e in range(out_ptr[best], out_ptr[best + 1]):
                covered[out_ids[e]] = 1
            state[COVERED] += level
    state[OVER] = 1


@njit(cache=True, nogil=True)
def set_keys(gain, cost, by_cost):
    """Return what greedy ranks by, float64 [n]: the gain, or the gain of a unit of cost."""
    key = gain.astype(np.float64)
    if by_cost:
        for v in range(len(key)):
            key[v] /= cost[v]
    return key


@njit(cache=True, nogil=True)
def _fall(heap, key, place, size):
    """Restore a heap of rows, largest key first and then smallest row, below ``place``."""
    v = heap[place]
    mine = key[v]
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        c = heap[child]
        if child + 1 < size:
            d = heap[child + 1]
            if key[d] > key[c] or (key[d] == key[c] and d < c):
                child += 1
                c = d
        if key[c] < mine or (key[c] == mine and c > v):
            break
        heap[place] = c
        place = child
    heap[place] = v


@njit(cache=True, nogil=True)
def heap_of(key, allowed, everyone):
    """Return the allowed nodes of positive key as a heap, int32."""
    heap = np.empty(len(key), dtype=np.int32)
    size = 0
    for v in range(len(key)):
        if key[v] > 0 and (everyone or allowed[v] != 0):
            heap[size] = v
            size += 1
    heap = heap[:size].copy()
    for place in range(size // 2 - 1, -1, -1):
        _fall(heap, key, place, size)
    return heap


@njit(cache=True, nogil=True)
def heap_picks(
    out_ptr,
    out_ids,
    in_ptr,
    in_ids,
    weight,
    gain,
    covered,
    cost,
    by_cost,
    budget,
    spent,
    heap,
    key,
    picked,
    gains,
    k,
    need,
    slice_arcs,
    state,
):
    """Choose as :func:`bucket_picks` where gains are no small numbers: weights or costs.

    ``key`` may be stale and is then too high; a node at the top whose key is out of
    date sinks to its place. What the rest of the budget cannot pay leaves for good.
    """
    stop = state[ARCS] + slice_arcs
    size = state[WAITING]
    while state[PICKS] < k and state[COVERED] < need:
        if state[ARCS] >= stop:
            state[WAITING] = size
            return
        if size == 0:
            break
        v = heap[0]
        fresh = np.float64(gain[v])
        if by_cost:
            fresh /= cost[v]
        affordable = budget < 0 or spent[0] + cost[v] <= budget
        if fresh > 0 and affordable and fresh < key[v]:
            key[v] = fresh
            state[STALE] += 1
            _fall(heap, key, 0, size)
            continue
        size -= 1
        if size:
            heap[0] = heap[size]
            _fall(heap, key, 0, size)
        if fresh <= 0 or not affordable:
            continue
        picked[state[PICKS]] = v
        gains[state[PICKS]] = gain[v]
        state[PICKS] += 1
        if budget >= 0:
            spent[0] += cost[v]
        commit_weights(v, out_ptr, out_ids, in_ptr, in_ids, weight, gain, covered, state)
    state[WAITING] = size
    state[OVER] = 1
