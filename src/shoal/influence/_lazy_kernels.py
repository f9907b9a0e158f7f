"""Two hops and more: distance labels cut the searches, and bounds say whom not to search from.

``label[w]`` is the distance of w from the seeds, 127 beyond ``hops``.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from shoal.influence._greedy_kernels import _fall

__all__ = [
    "bound_pass",
    "commit",
    "lazy_picks",
    "lower_keys",
    "restore_heap",
    "search",
    "search_rows",
]

# Places in `state`, int64: what a run that is cut into slices carries on.
PICKS, COVERED, ARCS, SIZE, EVALUATIONS, OVER, STAMP, SINCE = range(8)

#: The mark of a covered node: above every stamp.
DONE = np.int32(2**31 - 1)


@njit(cache=True, nogil=True)
def bound_pass(ptr, ids, label, hops, depth, weight, weighted, cap, deeper, bound):
    """Write c_depth into ``bound`` from c_(depth + 1) in ``deeper``.

    c_j(w) bounds what a search that stands at w after j hops can still find: nothing
    if a seed is as near to w, else w itself if it is uncovered and the sum over those
    it reaches (FastCover sheet, 4.3). Integers, and sums stop at ``cap``, the weight
    that is uncovered: no rounding, so never below the truth.
    """
    last = depth == hops
    for w in range(len(ptr) - 1):
        total = np.int64(0)
        if label[w] > depth:
            if label[w] > hops:
                total = np.int64(weight[w]) if weighted else np.int64(1)
            if not last:
                for e in range(ptr[w], ptr[w + 1]):
                    total += deeper[ids[e]]
                    # Where weights are large a sum of many could leave int64.
                    if weighted and total > cap:
                        break
            total = min(total, cap)
        bound[w] = total


@njit(cache=True, nogil=True)
def search(v, ptr, ids, label, hops, weight, weighted, mark, seen, stamp, queue, state):
    """Return what ``v`` would add: a breadth-first search that stops where a seed is as near.

    ``mark`` keeps who was counted, and DONE where there is nothing to count: so
    the last hop, which is most of the work, looks at one array and never branches.
    ``seen`` keeps who was queued; ``queue`` has room for n + 1.
    """
    if label[v] == 0:
        return np.int64(0)
    gain = np.int64(0)
    if mark[v] < stamp:
        gain = np.int64(weight[v]) if weighted else np.int64(1)
        mark[v] = stamp
    seen[v] = stamp
    queue[0] = v
    begin = 0
    end = 1
    arcs = np.int64(0)
    for depth in range(1, hops):
        last = end
        while begin < last:
            u = queue[begin]
            begin += 1
            arcs += ptr[u + 1] - ptr[u]
            for e in range(ptr[u], ptr[u + 1]):
                w = ids[e]
                queue[end] = w
                # Where a seed is nearer now it is nearer at every later hop too.
                end += np.int64(label[w] > depth) & np.int64(seen[w] != stamp)
                seen[w] = stamp
                fresh = np.int64(mark[w] < stamp)
                mark[w] = max(mark[w], stamp)
                if weighted:
                    fresh *= np.int64(weight[w])
                gain += fresh
    while begin < end:
        u = queue[begin]
        begin += 1
        arcs += ptr[u + 1] - ptr[u]
        if weighted:
            for e in range(ptr[u], ptr[u + 1]):
                w = ids[e]
                if mark[w] < stamp:
                    mark[w] = stamp
                    gain += np.int64(weight[w])
        else:
            for e in range(ptr[u], ptr[u + 1]):
                w = ids[e]
                gain += np.int64(mark[w] < stamp)
                mark[w] = max(mark[w], stamp)
    state[ARCS] += arcs
    return gain


@njit(cache=True, nogil=True)
def commit(v, ptr, ids, label, hops, weight, weighted, mark, queue, state):
    """Make ``v`` a seed: write the labels that fall; return the weight newly covered.

    A label falls at most ``hops + 1`` times, so all commits together walk every arc
    at most ``hops`` times.
    """
    if label[v] == 0:
        return np.int64(0)
    gain = np.int64(0)
    if label[v] > hops:
        gain = np.int64(weight[v]) if weighted else np.int64(1)
        mark[v] = DONE
    label[v] = 0
    queue[0] = v
    begin = 0
    end = 1
    for depth in range(1, hops + 1):
        last = end
        while begin < last:
            u = queue[begin]
            begin += 1
            state[ARCS] += ptr[u + 1] - ptr[u]
            for e in range(ptr[u], ptr[u + 1]):
                w = ids[e]
                if label[w] > depth:
                    if label[w] > hops:
                        gain += np.int64(weight[w]) if weighted else np.int64(1)
                        mark[w] = DONE
                    label[w] = depth
                    queue[end] = w
                    end += 1
    state[COVERED] += gain
    return gain


@njit(cache=True, nogil=True)
def lower_keys(key, bound, cost, by_cost, heap, size):
    """Lower keys to fresh bounds and restore the heap; return (size, how many fell)."""
    fell = 0
    kept = 0
    for place in range(size):
        v = heap[place]
        fresh = np.float64(bound[v])
        if by_cost:
            fresh /= cost[v]
        if fresh < key[v]:
            key[v] = fresh
            fell += 1
        if key[v] > 0:
            heap[kept] = v
            kept += 1
    for place in range(kept // 2 - 1, -1, -1):
        _fall(heap, key, place, kept)
    return kept, fell


@njit(cache=True, nogil=True)
def restore_heap(heap, key, size):
    """Restore the heap after keys have fallen."""
    for place in range(size // 2 - 1, -1, -1):
        _fall(heap, key, place, size)


@njit(cache=True, nogil=True)
def search_rows(
    rows,
    ptr,
    ids,
    label,
    hops,
    weight,
    weighted,
    mark,
    seen,
    queue,
    cost,
    by_cost,
    key,
    counted,
    state,
):
    """Search from each of ``rows`` and make its key the truth; return the largest."""
    best = np.float64(0)
    for v in rows:
        state[STAMP] += 1
        state[EVALUATIONS] += 1
        stamp = np.int32(state[STAMP])
        gain = search(v, ptr, ids, label, hops, weight, weighted, mark, seen, stamp, queue, state)
        counted[v] = state[PICKS]
        key[v] = gain
        if by_cost:
            key[v] /= cost[v]
        best = max(best, key[v])
    return best


@njit(cache=True, nogil=True)
def lazy_picks(
    ptr,
    ids,
    label,
    hops,
    weight,
    weighted,
    mark,
    seen,
    queue,
    cost,
    by_cost,
    budget,
    spent,
    heap,
    key,
    counted,
    picked,
    gains,
    k,
    need,
    slice_arcs,
    state,
):
    """Choose until ``k``, ``need`` or ``slice_arcs``; largest key first, then smallest row.

    ``key`` is never below the truth. A node at the top is searched from; if nothing
    was chosen since (``counted``), its key is the truth and it is chosen.
    """
    stop = state[ARCS] + slice_arcs
    size = state[SIZE]
    while state[PICKS] < k and state[COVERED] < need and size > 0:
        if state[ARCS] >= stop:
            state[SIZE] = size
            return
        v = heap[0]
        if budget >= 0 and spent[0] + cost[v] > budget:
            size -= 1
            heap[0] = heap[size]
            _fall(heap, key, 0, size)
            continue
        if counted[v] == state[PICKS]:
            size -= 1
            heap[0] = heap[size]
            _fall(heap, key, 0, size)
            picked[state[PICKS]] = v
            gains[state[PICKS]] = commit(
                v, ptr, ids, label, hops, weight, weighted, mark, queue, state
            )
            state[PICKS] += 1
            if budget >= 0:
                spent[0] += cost[v]
            continue
        state[STAMP] += 1
        state[EVALUATIONS] += 1
        gain = search(
            v,
            ptr,
            ids,
            label,
            hops,
            weight,
            weighted,
            mark,
            seen,
            np.int32(state[STAMP]),
            queue,
            state,
        )
        counted[v] = state[PICKS]
        key[v] = gain
        if by_cost:
            key[v] /= cost[v]
        if gain == 0:
            size -= 1
            heap[0] = heap[size]
        _fall(heap, key, 0, size)
    state[SIZE] = size
    state[OVER] = 1
