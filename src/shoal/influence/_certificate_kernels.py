"""Bounds on what any choice can cover: the Lagrangian's descent, its value, and marginals.

Balls are rows of a CSR over targets; with ``own`` each candidate reaches itself too
(one hop: the graph's out-arcs). ``order`` lists the candidates by descending ball
weight, so that those whose whole ball weighs less than the k-th largest sum need no
look: multipliers are at most one.
"""

from __future__ import annotations

import numpy as np
from numba import njit

__all__ = [
    "BEST",
    "NOW",
    "QUIET",
    "THETA",
    "TOUCHED",
    "ball_heaviness",
    "balls_of",
    "commit_marginals",
    "count_balls",
    "descend",
    "sums_of",
    "top_marginals",
]

# Entries of the descent's state, float64.
BEST, NOW, THETA, QUIET, TOUCHED, CUT = range(6)


@njit(cache=True, nogil=True)
def ball_heaviness(ptr, ids, own, weight):
    """Return each candidate's ball weight, float64, and the most entries of a ball."""
    n = len(ptr) - 1
    ball = np.zeros(n, dtype=np.float64)
    most = np.int64(0)
    for v in range(n):
        total = weight[v] if own else 0.0
        for e in range(ptr[v], ptr[v + 1]):
            total += weight[ids[e]]
        ball[v] = total
        most = max(most, ptr[v + 1] - ptr[v] + 1)
    return ball, most


@njit(cache=True, nogil=True)
def sums_of(ptr, ids, own, share):
    """Return the sum of ``share`` over each candidate's ball, float64 [n]."""
    return ball_heaviness(ptr, ids, own, share)[0]


@njit(cache=True, nogil=True)
def fill_sums(ptr, ids, own, share, order, begin, end, sums):
    """Fill ``sums[i]`` for places ``begin`` to ``end`` of the order; return entries read."""
    touched = np.int64(0)
    for i in range(begin, end):
        v = order[i]
        total = share[v] if own else 0.0
        for e in range(ptr[v], ptr[v + 1]):
            total += share[ids[e]]
        sums[i] = total
        touched += ptr[v + 1] - ptr[v] + 1
    return touched


@njit(cache=True, nogil=True)
def first_below(order, ball, cut):
    """Return the first place whose ball weighs less than ``cut``."""
    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        if ball[order[middle]] < cut:
            high = middle
        else:
            low = middle + 1
    return low


@njit(cache=True, nogil=True)
def kth_largest(values, size, k, work):
    """Return the ``k``-th largest of ``values[:size]`` (Hoare's FIND); ``work`` is overwritten."""
    for i in range(size):
        work[i] = values[i]
    want = size - k
    low, high = 0, size - 1
    while low < high:
        pivot = work[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while work[i] < pivot:
                i += 1
            while work[j] > pivot:
                j -= 1
            if i <= j:
                work[i], work[j] = work[j], work[i]
                i += 1
                j -= 1
        if want <= j:
            high = j
        elif want >= i:
            low = i
        else:
            break
    return work[want]


@njit(cache=True, nogil=True)
def choose_top(sums, size, k, part, work):
    """Write places of the ``k`` largest of ``sums[:size]``; return (how many, their sum, k-th)."""
    edge = kth_largest(sums, size, k, work) if size > k else -1.0
    count = 0
    total = 0.0
    for i in range(size):
        if sums[i] > edge:
            part[count] = i
            count += 1
            total += sums[i]
    for i in range(size):
        if count == k or edge < 0:
            break
        if sums[i] == edge:
            part[count] = i
            count += 1
            total += sums[i]
    return count, total, max(edge, 0.0)


@njit(cache=True, nogil=True)
def choose_paid(sums, size, order, costs, budget, part):
    """Write places of the fractional knapsack's choice; return (how many, sum, share of the last).

    Those worth more than a price per cost, found by bisection; what is left buys a
    part of the next one.
    """
    high = 0.0
    for i in range(size):
        high = max(high, sums[i] / costs[order[i]])
    low = 0.0
    for _ in range(48):
        price = 0.5 * (low + high)
        spent = 0.0
        for i in range(size):
            if sums[i] > price * costs[order[i]]:
                spent += costs[order[i]]
        if spent > budget:
            low = price
        else:
            high = price
    count = 0
    total = 0.0
    left = budget
    partly = -1
    for i in range(size):
        cost = costs[order[i]]
        if sums[i] > high * cost:
            part[count] = i
            count += 1
            total += sums[i]
            left -= cost
        elif sums[i] > low * cost and partly < 0:
            partly = i
    if partly < 0 or left <= 0:
        return count, total, 1.0
    last = min(1.0, left / costs[order[partly]])
    part[count] = partly
    return count + 1, total + sums[partly] * last, last


@njit(cache=True, nogil=True)
def descend(
    ptr,
    ids,
    own,
    weight,
    order,
    ball,
    k,
    costs,
    budget,
    lower,
    lam,
    best,
    rounds,
    patience,
    state,
):
    """Take ``rounds`` steps of the projected subgradient with Polyak's length.

    ``lam`` float64 [targets] is where it stands and ``best`` the best so far, whose
    bound is ``state[BEST]`` (rounded as floats are: evaluate it apart). After
    ``patience`` steps without progress the length shrinks and the walk returns to the
    best. Components that stand at 0 or 1 and would leave are no part of the step
    (conditional subgradient: Larsson, Patriksson and Stroemberg 1996).
    """
    targets = len(weight)
    share = np.empty(targets, dtype=np.float64)
    covers = np.empty(targets, dtype=np.float64)
    sums = np.empty(len(order), dtype=np.float64)
    part = np.empty(len(order), dtype=np.int64)
    paid = np.empty(len(order), dtype=np.int64)
    work = np.empty(len(order), dtype=np.float64)
    for _ in range(rounds):
        base = 0.0
        for j in range(targets):
            share[j] = weight[j] * lam[j]
            base += weight[j] - share[j]
        size = first_below(order, ball, state[CUT]) if len(costs) == 0 else len(order)
        state[TOUCHED] += fill_sums(ptr, ids, own, share, order, 0, size, sums)
        last = 1.0
        count, total, edge = choose_top(sums, size, k, part, work)
        if len(costs) == 0:
            full = first_below(order, ball, edge)
            if full > size:
                state[TOUCHED] += fill_sums(ptr, ids, own, share, order, size, full, sums)
                count, total, edge = choose_top(sums, full, k, part, work)
            # The edge moves little from step to step.
            state[CUT] = edge * 0.95
        else:
            some, worth, piece = choose_paid(sums, size, order, costs, budget, paid)
            if worth < total:
                count, total, last = some, worth, piece
                part[:some] = paid[:some]
        now = base + total
        state[NOW] = now
        if now < state[BEST]:
            # Progress below a part in 10^5 of the gap does not count as such.
            if state[BEST] - now > 1e-5 * (state[BEST] - lower):
                state[QUIET] = 0
            else:
                state[QUIET] += 1
            state[BEST] = now
            best[:] = lam
        else:
            state[QUIET] += 1
        if state[QUIET] >= patience:
            state[QUIET] = 0
            state[THETA] *= 0.6
            lam[:] = best
        covers[:] = -1.0
        for c in range(count):
            v = order[part[c]]
            amount = last if c == count - 1 else 1.0
            if own:
                covers[v] += amount
            for e in range(ptr[v], ptr[v + 1]):
                covers[ids[e]] += amount
        square = 0.0
        for j in range(targets):
            slope = covers[j] * weight[j]
            if (slope > 0 and lam[j] <= 0) or (slope < 0 and lam[j] >= 1):
                slope = 0.0
            covers[j] = slope
            square += slope * slope
        if square == 0 or now <= lower:
            break
        step = state[THETA] * (now - lower) / square
        for j in range(targets):
            lam[j] = min(1.0, max(0.0, lam[j] - step * covers[j]))


# --- closures -----------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def count_balls(ptr, ids, hops, rows, limit):
    """Return the sizes of the balls of ``rows``, int64, until their sum passes ``limit``.

    The number of balls that were counted is the second value.
    """
    n = len(ptr) - 1
    seen = np.full(n, np.int32(-1), dtype=np.int32)
    queue = np.empty(n, dtype=np.int32)
    sizes = np.zeros(len(rows), dtype=np.int64)
    total = np.int64(0)
    for i in range(len(rows)):
        sizes[i] = search(ptr, ids, hops, rows[i], seen, i, queue)
        total += sizes[i]
        if total > limit:
            return sizes, i + 1
    return sizes, len(rows)


@njit(cache=True, nogil=True)
def search(ptr, ids, hops, v, seen, stamp, queue):
    """Write the ball of ``v`` to the queue and return its size."""
    queue[0] = v
    seen[v] = stamp
    begin = 0
    end = 1
    for _ in range(hops):
        last = end
        while begin < last:
            u = queue[begin]
            begin += 1
            for e in range(ptr[u], ptr[u + 1]):
                w = ids[e]
                if seen[w] != stamp:
                    seen[w] = stamp
                    queue[end] = w
                    end += 1
    return end


@njit(cache=True, nogil=True)
def balls_of(ptr, ids, hops, rows, sizes):
    """Return (ptr int64, ids int32) of the balls of ``rows``, the sizes known."""
    n = len(ptr) - 1
    seen = np.full(n, np.int32(-1), dtype=np.int32)
    queue = np.empty(n, dtype=np.int32)
    begin = np.zeros(len(rows) + 1, dtype=np.int64)
    for i in range(len(rows)):
        begin[i + 1] = begin[i] + sizes[i]
    members = np.empty(begin[len(rows)], dtype=np.int32)
    for i in range(len(rows)):
        size = search(ptr, ids, hops, rows[i], seen, i, queue)
        members[begin[i] : begin[i + 1]] = queue[:size]
    return begin, members


# --- marginals ----------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def commit_marginals(ptr, ids, in_ptr, in_ids, weight, v, covered, gain):
    """Cover the ball of ``v`` at one hop and lower the gains of all who reach it."""
    added = 0.0
    for e in range(ptr[v] - 1, ptr[v + 1]):
        j = v if e < ptr[v] else np.int64(ids[e])
        if covered[j]:
            continue
        covered[j] = 1
        added += weight[j]
        gain[j] -= weight[j]
        for x in range(in_ptr[j], in_ptr[j + 1]):
            gain[in_ids[x]] -= weight[j]
    return added


@njit(cache=True, nogil=True)
def top_marginals(ptr, ids, weight, label, hops, order, bound, k, limit):
    """Replace the largest bounds by exact marginals until the ``k`` largest are known.

    ``order`` lists candidates by descending ``bound``. Stops when the k-th largest
    exact value is no smaller than the next bound, or after ``limit`` arcs; what was
    not reached keeps its bound. Returns the arcs touched.
    """
    n = len(ptr) - 1
    seen = np.full(n, np.int32(-1), dtype=np.int32)
    queue = np.empty(n, dtype=np.int32)
    heap = np.empty(k, dtype=np.float64)
    size = 0
    arcs = np.int64(0)
    for i in range(len(order)):
        v = order[i]
        if arcs > limit or (size == k and heap[0] >= bound[v]):
            break
        total = 0.0
        queue[0] = v
        seen[v] = i
        begin = 0
        end = 1
        for depth in range(hops + 1):
            last = end
            while begin < last:
                u = queue[begin]
                begin += 1
                # A seed as near to u covers everything behind it as soon.
                if label[u] <= depth:
                    continue
                if label[u] > hops:
                    total += weight[u]
                if depth < hops:
                    arcs += ptr[u + 1] - ptr[u]
                    for e in range(ptr[u], ptr[u + 1]):
                        w = ids[e]
                        if seen[w] != i:
                            seen[w] = i
                            queue[end] = w
                            end += 1
        bound[v] = total
        if size < k:
            place = size
            size += 1
            while place > 0 and heap[(place - 1) // 2] > total:
                heap[place] = heap[(place - 1) // 2]
                place = (place - 1) // 2
            heap[place] = total
        elif total > heap[0]:
            place = 0
            while True:
                child = 2 * place + 1
                if child >= size:
                    break
                if child + 1 < size and heap[child + 1] < heap[child]:
                    child += 1
                if heap[child] >= total:
                    break
                heap[place] = heap[child]
                place = child
            heap[place] = total
    return arcs
