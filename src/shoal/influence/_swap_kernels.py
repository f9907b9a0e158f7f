"""Exchanging one seed for another: exact gains from counts (one hop) and double labels (more).

Weights are integers (``fixed_point``), so every sum is exact and no change drifts.

**One hop.** ``count[j]`` says how many seeds reach j and ``owner[j]`` is the sum of
their slots: where the count is one, the owner is the slot that alone covers j.

**Several hops.** Each node keeps its two nearest different seeds, (near, by) and
(next, next_by), within the hops. A node whose second label is missing is covered by
one seed alone. A search from a candidate that meets a node at depth t with a second
label <= t may stop there: two seeds reach everything behind it as soon. So one
exchange is judged exactly at the price of a pruned search.
"""

from __future__ import annotations

import numpy as np
from numba import njit

__all__ = [
    "ARCS",
    "FAR",
    "PLACE",
    "SWAPS",
    "ball_units",
    "bounds_far",
    "count_covers",
    "label_twice",
    "losses_far",
    "sweep_far",
    "sweep_near",
]

FAR = 127

# Entries of the state that a sweep keeps.
PLACE, ARCS, SWAPS = range(3)


@njit(cache=True, nogil=True)
def ball_units(ptr, ids, weight):
    """Return the weight within one hop of each node, itself included, int64 [n]."""
    n = len(ptr) - 1
    ball = np.empty(n, dtype=np.int64)
    for v in range(n):
        ball[v] = weight[v]
        for e in range(ptr[v], ptr[v + 1]):
            ball[v] += weight[ids[e]]
    return ball


@njit(cache=True, nogil=True)
def count_covers(ptr, ids, weight, seeds, count, owner, loss):
    """Fill counts, owners and what each slot alone covers, from nothing."""
    for slot in range(len(seeds)):
        enter(ptr, ids, weight, seeds[slot], slot, count, owner, loss)


@njit(cache=True, nogil=True)
def enter(ptr, ids, weight, v, slot, count, owner, loss):
    """Count ``v`` as the seed of ``slot``."""
    for e in range(ptr[v] - 1, ptr[v + 1]):
        j = v if e < ptr[v] else np.int64(ids[e])
        if count[j] == 0:
            loss[slot] += weight[j]
        elif count[j] == 1:
            loss[owner[j]] -= weight[j]
        count[j] += 1
        owner[j] += slot


@njit(cache=True, nogil=True)
def leave(ptr, ids, weight, v, slot, count, owner, loss):
    """Take ``v`` out of ``slot``."""
    for e in range(ptr[v] - 1, ptr[v + 1]):
        j = v if e < ptr[v] else np.int64(ids[e])
        count[j] -= 1
        owner[j] -= slot
        if count[j] == 1:
            loss[owner[j]] += weight[j]
    loss[slot] = 0


@njit(cache=True, nogil=True)
def best_slot(v, fresh, touched, size, shared, loss, fixed, costs, room, seeds, cheapest):
    """Return (slot, delta) of the best exchange for ``v``; ties go to the smallest slot."""
    slot = np.int64(-1)
    delta = np.int64(0)
    for t in range(size):
        r = touched[t]
        if r >= fixed and (len(costs) == 0 or costs[v] - costs[seeds[r]] <= room):
            gain = fresh + shared[r] - loss[r]
            if gain > delta or (gain == delta and slot >= 0 and r < slot):
                slot, delta = r, gain
    if len(costs) == 0:
        gain = fresh - loss[cheapest]
        better = gain > delta or (gain == delta and cheapest < slot)
        if shared[cheapest] == 0 and gain > 0 and better:
            slot, delta = cheapest, gain
    elif fresh > loss[cheapest]:
        for r in range(fixed, len(seeds)):
            if shared[r] == 0 and costs[v] - costs[seeds[r]] <= room:
                gain = fresh - loss[r]
                if gain > delta or (gain == delta and slot >= 0 and r < slot):
                    slot, delta = r, gain
    return slot, delta


@njit(cache=True, nogil=True)
def least(loss, fixed):
    """Return the slot after the fixed ones that alone covers least."""
    slot = fixed
    for r in range(fixed + 1, len(loss)):
        if loss[r] < loss[slot]:
            slot = r
    return slot


@njit(cache=True, nogil=True)
def sweep_near(
    ptr,
    ids,
    weight,
    order,
    ball,
    seeds,
    is_seed,
    fixed,
    costs,
    room,
    count,
    owner,
    loss,
    limit,
    state,
):
    """Try candidates of ``order`` from ``state[PLACE]`` on until ``limit`` arcs were touched.

    ``order`` holds candidates by descending ``ball`` weight. Each one takes the place
    of the seed for which the coverage rises most, if it rises. ``room`` float64 [1] is
    the money left; ``costs`` is empty where there are none.
    """
    touched = np.empty(len(seeds), dtype=np.int64)
    shared = np.zeros(len(seeds), dtype=np.int64)
    cheapest = least(loss, fixed)
    stop = state[ARCS] + limit
    while state[PLACE] < len(order) and state[ARCS] < stop:
        v = order[state[PLACE]]
        if ball[v] <= loss[cheapest]:
            # What v adds beyond a seed's loss is at most its ball beyond the least loss.
            state[PLACE] = len(order)
            break
        state[PLACE] += 1
        if is_seed[v]:
            continue
        fresh = np.int64(0)
        size = 0
        for e in range(ptr[v] - 1, ptr[v + 1]):
            j = v if e < ptr[v] else np.int64(ids[e])
            if count[j] == 0:
                fresh += weight[j]
            elif count[j] == 1 and weight[j] > 0:
                r = owner[j]
                if shared[r] == 0:
                    touched[size] = r
                    size += 1
                shared[r] += weight[j]
        state[ARCS] += ptr[v + 1] - ptr[v] + 1
        slot, _ = best_slot(
            v, fresh, touched, size, shared, loss, fixed, costs, room[0], seeds, cheapest
        )
        for t in range(size):
            shared[touched[t]] = 0
        if slot >= 0:
            s = seeds[slot]
            leave(ptr, ids, weight, s, slot, count, owner, loss)
            enter(ptr, ids, weight, v, slot, count, owner, loss)
            state[ARCS] += ptr[s + 1] - ptr[s] + ptr[v + 1] - ptr[v] + 2
            if len(costs) > 0:
                room[0] += costs[s] - costs[v]
            seeds[slot] = v
            is_seed[s] = 0
            is_seed[v] = 1
            state[SWAPS] += 1
            cheapest = least(loss, fixed)


# --- several hops -------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def label_twice(ptr, ids, seeds, hops):
    """Return (near, next int8 [n], by, next_by int32 [n]) of the two nearest seeds' slots.

    One search from all seeds, level by level: the first two different slots that
    arrive at a node are its labels and travel on. O(m) a level.
    """
    n = len(ptr) - 1
    near = np.full(n, np.int8(FAR), dtype=np.int8)
    second = np.full(n, np.int8(FAR), dtype=np.int8)
    by = np.full(n, np.int32(-1), dtype=np.int32)
    second_by = np.full(n, np.int32(-1), dtype=np.int32)
    queue = np.empty(2 * n, dtype=np.int32)
    slots = np.empty(2 * n, dtype=np.int32)
    end = 0
    for slot in range(len(seeds)):
        near[seeds[slot]] = 0
        by[seeds[slot]] = slot
        queue[end] = seeds[slot]
        slots[end] = slot
        end += 1
    begin = 0
    for depth in range(1, hops + 1):
        last = end
        while begin < last:
            u = queue[begin]
            slot = slots[begin]
            begin += 1
            for e in range(ptr[u], ptr[u + 1]):
                w = ids[e]
                if second[w] != FAR or by[w] == slot:
                    continue
                if near[w] == FAR:
                    near[w] = depth
                    by[w] = slot
                else:
                    second[w] = depth
                    second_by[w] = slot
                queue[end] = w
                slots[end] = slot
                end += 1
    return near, second, by, second_by


@njit(cache=True, nogil=True)
def losses_far(weight, near, second, by, loss):
    """Fill what each slot alone covers."""
    loss[:] = 0
    for j in range(len(weight)):
        if near[j] != FAR and second[j] == FAR:
            loss[by[j]] += weight[j]


@njit(cache=True, nogil=True)
def bounds_far(ptr, ids, weight, label, hops):
    """Return float64 [n] never below what each node reaches of those whose label is FAR.

    Backward recursion of the sheet, 4.3: over walks that pass no node whose label is
    at most their length so far. Rounded up by a part in 10^9 a level, far above the
    rounding of the sums.
    """
    n = len(ptr) - 1
    now = np.empty(n, dtype=np.float64)
    for v in range(n):
        now[v] = weight[v] if label[v] == FAR else 0
    after = now.copy()
    for j in range(hops - 1, -1, -1):
        for v in range(n):
            total = np.float64(weight[v] if label[v] == FAR else 0)
            if label[v] > j:
                for e in range(ptr[v], ptr[v + 1]):
                    if label[ids[e]] > j + 1:
                        total += now[ids[e]]
                after[v] = total * (1 + 1e-9)
            else:
                after[v] = 0
        now, after = after, now
    return now


@njit(cache=True, nogil=True)
def enter_far(
    ptr, ids, weight, v, slot, hops, near, second, by, second_by, loss, seen, stamp, queue
):
    """Give ``v`` the slot: labels fall where it is nearer. Return the arcs touched."""
    arcs = np.int64(0)
    queue[0] = v
    seen[v] = stamp
    begin = 0
    end = 1
    for depth in range(hops + 1):
        last = end
        while begin < last:
            u = queue[begin]
            begin += 1
            if second[u] <= depth:
                continue
            if near[u] == FAR:
                loss[slot] += weight[u]
            elif second[u] == FAR:
                loss[by[u]] -= weight[u]
            if depth < near[u]:
                second[u] = near[u]
                second_by[u] = by[u]
                near[u] = depth
                by[u] = slot
            else:
                second[u] = depth
                second_by[u] = slot
            if depth < hops:
                arcs += ptr[u + 1] - ptr[u]
                for e in range(ptr[u], ptr[u + 1]):
                    if seen[ids[e]] != stamp:
                        seen[ids[e]] = stamp
                        queue[end] = ids[e]
                        end += 1
    return arcs


@njit(cache=True, nogil=True)
def leave_far(
    ptr,
    ids,
    in_ptr,
    in_ids,
    weight,
    s,
    slot,
    hops,
    near,
    second,
    by,
    second_by,
    loss,
    seen,
    stamp,
    queue,
    hit,
):
    """Take the slot of ``s`` out of all labels and refill them. Return the arcs touched.

    A node holds the slot only if the way to it passes no node whose second label is
    smaller than the depth there, so the search finds all holders. The refill goes by
    ascending depth: when depth L is filled, all labels below L are final.
    """
    arcs = np.int64(0)
    queue[0] = s
    seen[s] = stamp
    begin = 0
    end = 1
    hits = 0
    for depth in range(hops + 1):
        last = end
        while begin < last:
            u = queue[begin]
            begin += 1
            if second[u] < depth:
                continue
            if by[u] == slot or second_by[u] == slot:
                hit[hits] = u
                hits += 1
            if depth < hops:
                arcs += ptr[u + 1] - ptr[u]
                for e in range(ptr[u], ptr[u + 1]):
                    if seen[ids[e]] != stamp:
                        seen[ids[e]] = stamp
                        queue[end] = ids[e]
                        end += 1
    for i in range(hits):
        u = hit[i]
        if by[u] == slot:
            near[u] = second[u]
            by[u] = second_by[u]
        second[u] = FAR
        second_by[u] = -1
    loss[slot] = 0
    for depth in range(1, hops + 1):
        for i in range(hits):
            u = hit[i]
            if second[u] != FAR:
                continue
            arcs += in_ptr[u + 1] - in_ptr[u]
            for e in range(in_ptr[u], in_ptr[u + 1]):
                x = in_ids[e]
                for turn in range(2):
                    label = near[x] if turn == 0 else second[x]
                    giver = by[x] if turn == 0 else second_by[x]
                    if label != depth - 1 or giver == by[u]:
                        continue
                    if near[u] == FAR:
                        near[u] = depth
                        by[u] = giver
                    else:
                        second[u] = depth
                        second_by[u] = giver
                        break
                if second[u] != FAR:
                    break
    for i in range(hits):
        u = hit[i]
        if near[u] != FAR and second[u] == FAR:
            loss[by[u]] += weight[u]
    return arcs


@njit(cache=True, nogil=True)
def sweep_far(
    ptr,
    ids,
    in_ptr,
    in_ids,
    weight,
    order,
    seeds,
    is_seed,
    fixed,
    hops,
    costs,
    room,
    near,
    second,
    by,
    second_by,
    loss,
    seen,
    limit,
    state,
):
    """As :func:`sweep_near`, over double labels; ``seen`` int32 [n + 1] ends with its stamp."""
    n = len(ptr) - 1
    touched = np.empty(len(seeds), dtype=np.int64)
    shared = np.zeros(len(seeds), dtype=np.int64)
    queue = np.empty(n, dtype=np.int32)
    hit = np.empty(n, dtype=np.int32)
    cheapest = least(loss, fixed)
    stop = state[ARCS] + limit
    while state[PLACE] < len(order) and state[ARCS] < stop:
        v = order[state[PLACE]]
        state[PLACE] += 1
        if is_seed[v]:
            continue
        seen[n] += 1
        stamp = seen[n]
        fresh = np.int64(0)
        size = 0
        queue[0] = v
        seen[v] = stamp
        begin = 0
        end = 1
        for depth in range(hops + 1):
            last = end
            while begin < last:
                u = queue[begin]
                begin += 1
                if second[u] <= depth:
                    continue
                if near[u] == FAR:
                    fresh += weight[u]
                elif second[u] == FAR and weight[u] > 0:
                    r = by[u]
                    if shared[r] == 0:
                        touched[size] = r
                        size += 1
                    shared[r] += weight[u]
                if depth < hops:
                    state[ARCS] += ptr[u + 1] - ptr[u]
                    for e in range(ptr[u], ptr[u + 1]):
                        w = ids[e]
                        if seen[w] != stamp:
                            seen[w] = stamp
                            queue[end] = w
                            end += 1
        slot, _ = best_slot(
            v, fresh, touched, size, shared, loss, fixed, costs, room[0], seeds, cheapest
        )
        for t in range(size):
            shared[touched[t]] = 0
        if slot >= 0:
            s = seeds[slot]
            seen[n] += 1
            state[ARCS] += leave_far(
                ptr,
                ids,
                in_ptr,
                in_ids,
                weight,
                s,
                slot,
                hops,
                near,
                second,
                by,
                second_by,
                loss,
                seen,
                seen[n],
                queue,
                hit,
            )
            seen[n] += 1
            state[ARCS] += enter_far(
                ptr,
                ids,
                weight,
                v,
                slot,
                hops,
                near,
                second,
                by,
                second_by,
                loss,
                seen,
                seen[n],
                queue,
            )
            if len(costs) > 0:
                room[0] += costs[s] - costs[v]
            seeds[slot] = v
            is_seed[s] = 0
            is_seed[v] = 1
            state[SWAPS] += 1
            cheapest = least(loss, fixed)
