"""The search for all words where attributes count: best-first in the rarest word's own tree.

Whether a row has the other words is looked up last where good answers are known
already, and first where there are none or where the words hardly ever meet.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from shoal.spatial._best_kernels import (
    HEAPED,
    _grown,
    hopeless,
    put,
    queue_key,
    queue_pop,
    queue_push,
)
from shoal.spatial._block_kernels import gallop, near_km, too_far
from shoal.spatial._bound_kernels import (
    attribute_bound,
    box_distance2,
    combine,
    combined_cost,
    cost_limit,
    space_bound,
)
from shoal.spatial._build_kernels import (
    FAN_OUT,
    load_f4,
    load_f8,
    load_i8,
    load_u1,
    load_u4,
    prefetch,
)
from shoal.spatial._kernels import (
    BLOCK_BOXES,
    BLOCK_HIGH,
    BLOCK_LOW,
    FLIP,
    KEYS,
    LIVE,
    MAX_KM,
    N_PREFER,
    N_WORDS,
    POST,
    PREFER,
    PREFER_WEIGHT,
    PTR,
    SPEC_LOW,
    SPEC_MISSING,
    SPEC_SPAN,
    VALUES32,
    VALUES64,
    W_SPACE,
    WEIGHTS,
    WIDE,
    WORDS,
    N,
    X,
    Y,
    Z,
    blend,
    decayed,
    distance_of,
    lower_bound,
    tree_of,
)
from shoal.spatial._score import attribute_cost

__all__ = ["search_preferred"]

#: Postings that are looked at without a tree where there are other words.
FEW = 64
#: Postings that are looked at without going deeper where the words hardly ever meet.
SELDOM = 4096
#: More than what steps of 1 / 255 take from a bound on several attributes together.
TIGHT = 0.01


@njit(error_model="numpy")
def _has_others(a, qi, t, row, ranges, base):
    """Say whether a row has the words but ``t``; their cursors move on to it."""
    post = load_i8(a, POST)
    words = load_i8(qi, N_WORDS)
    for w in range(words):
        if w != t:
            stop = ranges[base + 2 * w + 1]
            cursor = gallop(post, ranges[base + 2 * words + w], stop, row)
            ranges[base + 2 * words + w] = cursor
            if cursor == stop or load_u4(post, cursor) != row:
                return False
    return True


@njit(error_model="numpy")
def _ask_for_values(a, qi, first, stop):
    """Ask for the memory of the attributes of the rows ``post[first:stop]``."""
    post, n, wide = load_i8(a, POST), load_i8(a, N), load_i8(a, WIDE) != 0
    size = np.int64(8) if wide else np.int64(4)
    values = load_i8(a, VALUES64) if wide else load_i8(a, VALUES32)
    for j in range(load_i8(qi, N_PREFER)):
        column = values + size * n * load_i8(qi, load_i8(qi, PREFER) + j)
        for i in range(first, stop):
            prefetch(column + size * load_u4(post, i))


@njit(error_model="numpy")
def _costs(a, qi, qf, rows, count, totals):
    """Set the rows' costs, to the last bit as ``attributes_of``; infinite: excluded."""
    n = load_i8(a, N)
    for i in range(count):
        totals[i] = 0.0
    for j in range(load_i8(qi, N_PREFER)):
        c = load_i8(qi, load_i8(qi, PREFER) + j)
        flip = load_i8(qi, load_i8(qi, FLIP) + j) != 0
        weight = load_f8(qf, load_i8(qi, PREFER_WEIGHT) + j)
        low, span = load_f8(load_i8(a, SPEC_LOW), c), load_f8(load_i8(a, SPEC_SPAN), c)
        missing = load_i8(load_i8(a, SPEC_MISSING), c)
        wide = load_i8(a, WIDE) != 0
        values = load_i8(a, VALUES64) + 8 * c * n if wide else load_i8(a, VALUES32) + 4 * c * n
        for i in range(count):
            value = load_f8(values, rows[i]) if wide else load_f4(values, rows[i])
            cost = attribute_cost(value, low, span, flip, missing)
            totals[i] += weight * cost if cost >= 0.0 else np.inf


@njit(error_model="numpy")
def _scan(a, qi, qf, best, count, t, first, stop, node, ranges, base, near, text, room, stats):
    """Offer the rows ``post[first:stop]`` of word ``t`` that have all words.

    ``near`` is the largest space part there can be; the blocks of these postings are
    the nodes from ``node`` on (-1: they have none). ``room``: rows and costs of a block.
    """
    post = load_i8(a, POST)
    live = load_i8(qi, LIVE)
    words = load_i8(qi, N_WORDS)
    k = len(best[0])
    worst = np.int64(0) if k > HEAPED else np.int64(k - 1)
    low, high = load_i8(a, BLOCK_LOW), load_i8(a, BLOCK_HIGH)
    rows, totals = room
    for w in range(words):
        ranges[base + 2 * words + w] = ranges[base + 2 * w]
    for block in range(first, stop, FAN_OUT):
        limit = cost_limit(qf, near, text, best[0][worst]) if count == k else np.inf
        if node >= 0:
            at = node + (block - first) // FAN_OUT
            if combined_cost(a, qi, qf, low, high, at) > limit:
                continue
        end = min(stop, block + FAN_OUT)
        words_first = words > 1 and (count < k or stats[4] > 8 * stats[3] + 64)
        if not words_first:
            _ask_for_values(a, qi, block, end)
        stats[2] += end - block
        found = np.int64(0)
        for i in range(block, end):
            row = load_u4(post, i)
            if not words_first or _has_others(a, qi, t, row, ranges, base):
                rows[found] = row
                found += 1
        if words_first:
            stats[4] += end - block
            stats[3] += found
        _costs(a, qi, qf, rows, found, totals)
        for i in range(found):
            if not totals[i] <= limit or totals[i] == np.inf:
                continue
            row, attributes = rows[i], 1.0 - totals[i]
            if words > 1 and not words_first:
                stats[4] += 1
                if not _has_others(a, qi, t, row, ranges, base):
                    continue
                stats[3] += 1
            if live != 0 and load_u1(live, row) == 0:
                continue
            if too_far(a, qi, qf, best, count, worst, row, text, attributes):
                continue
            km = distance_of(a, qf, row)
            if not km <= load_f8(qf, MAX_KM):
                continue
            stats[1] += 1
            score = blend(qf, decayed(qi, qf, km), text, attributes)
            if not hopeless(score, km, best, count, k, worst):
                count = put(best, count, k, score, km, load_i8(load_i8(a, KEYS), row), row)
    return count


@njit(error_model="numpy")
def search_preferred(a, qi, qf, best, count, work, stats):
    """Search the rarest word's tree; return the number of answers.

    ``work`` is as for ``_block_kernels.search_plain``.
    """
    heap, entries, node_at, base_at, bound_at, km_at, ranges, order, _ = work
    combine(a, qi, qf)
    post = load_i8(a, POST)
    words = load_i8(qi, N_WORDS)
    k = len(best[0])
    worst = np.int64(0) if k > HEAPED else np.int64(k - 1)
    stride = 3 * words  # from, to and a cursor for each word
    used = stride
    t, least = np.int64(0), load_i8(a, N) + 1
    text = 0.0
    for w in range(words):
        text += load_f8(qf, WEIGHTS + w)
        word = load_i8(qi, WORDS + w)
        if word < 0:
            return count
        ranges[2 * w] = load_u4(load_i8(a, PTR), word)
        ranges[2 * w + 1] = load_u4(load_i8(a, PTR), word + 1)
        if ranges[2 * w + 1] - ranges[2 * w] < least:
            t, least = np.int64(w), ranges[2 * w + 1] - ranges[2 * w]
    from_post, to_post = ranges[2 * t], ranges[2 * t + 1]
    zero = np.int64(0)
    block = (np.empty(FAN_OUT, np.int64), np.empty(FAN_OUT, np.float64))
    if least <= (FEW if words > 1 else FAN_OUT):
        return _scan(
            a,
            qi,
            qf,
            best,
            count,
            t,
            from_post,
            to_post,
            np.int64(-1),
            ranges,
            zero,
            1.0,
            text,
            block,
            stats,
        )
    # First node and number of nodes of each level; the node "above the root" is taken apart.
    levels = order
    start = tree_of(a, load_i8(qi, WORDS + t))
    nodes = (least + FAN_OUT - 1) // FAN_OUT
    level = zero
    while True:
        levels[2 * level], levels[2 * level + 1] = start, nodes
        start += nodes
        level += 1
        if nodes <= FAN_OUT:
            break
        nodes = (nodes + FAN_OUT - 1) // FAN_OUT
    room = len(heap)
    size = made = np.int64(0)
    base = zero
    child, stop = zero, levels[2 * level - 1]
    near = 1.0  # the largest space part of the node that is taken apart
    x, y, z = load_f8(qf, X), load_f8(qf, Y), load_f8(qf, Z)
    low, high = load_i8(a, BLOCK_LOW), load_i8(a, BLOCK_HIGH)
    while True:
        if made + FAN_OUT >= room:
            room *= 2
            heap, entries = _grown(heap, room), _grown(entries, room)
            node_at, base_at = _grown(node_at, room), _grown(base_at, room)
            bound_at, km_at = _grown(bound_at, room), _grown(km_at, room)
        level -= 1
        start = levels[2 * level]
        limit = cost_limit(qf, near, text, best[0][worst]) if count == k else np.inf
        while child < stop:
            i = child
            child += 1
            cost = combined_cost(a, qi, qf, low, high, start + i)
            if cost > limit:
                continue
            km = near_km(box_distance2(load_i8(a, BLOCK_BOXES), start + i, x, y, z))
            if km > load_f8(qf, MAX_KM):
                continue
            space = space_bound(qi, qf, km) if load_f8(qf, W_SPACE) > 0.0 else 0.0
            bound = blend(qf, space, text, 1.0 - cost)
            if count == k and bound - TIGHT < best[0][worst]:
                # Bounded apart, equal attributes have no slack, and equal scores are cut off.
                apart = attribute_bound(a, qi, qf, low, high, start + i)
                bound = min(bound, blend(qf, space, text, apart))
            if hopeless(bound, km, best, count, k, worst):
                continue
            node_at[made] = (level << 40) | i
            base_at[made], bound_at[made], km_at[made] = base, bound, km
            size = queue_push(heap, entries, size, queue_key(bound, km), np.uint32(made))
            made += 1
        # The most promising node: a block is looked at, any other taken apart.
        while True:
            if size == 0 or (
                count == k
                and (heap[0] >> np.uint64(32)) > (queue_key(best[0][worst], 0.0) >> np.uint64(32))
            ):
                return count
            entry = np.int64(entries[0])
            size = queue_pop(heap, entries, size)
            km = km_at[entry]
            if hopeless(bound_at[entry], km, best, count, k, worst):
                continue
            stats[0] += 1
            level = node_at[entry] >> 40
            i = node_at[entry] & 0xFFFFFFFFFF
            base = base_at[entry]
            width = np.int64(FAN_OUT) << (4 * level)
            first = from_post + i * width
            last = min(to_post, first + width)
            near = space_bound(qi, qf, km) if load_f8(qf, W_SPACE) > 0.0 else 0.0
            if level > 0 and words > 1:
                if used + stride > len(ranges):
                    ranges = _grown(ranges, 2 * (used + stride))
                from_row, to_row = load_u4(post, first), load_u4(post, last - 1) + 1
                empty = False
                for w in range(words):
                    if w != t:
                        at, end = ranges[base + 2 * w], ranges[base + 2 * w + 1]
                        at = lower_bound(post, at, end, from_row)
                        end = gallop(post, at, end, to_row)
                        ranges[used + 2 * w], ranges[used + 2 * w + 1] = at, end
                        empty |= at == end
                if empty:
                    continue
                base = used
                used += stride
            if level == 0 or (
                words > 1 and width <= SELDOM and stats[4] >= 64 and stats[4] > 16 * stats[3]
            ):
                count = _scan(
                    a,
                    qi,
                    qf,
                    best,
                    count,
                    t,
                    first,
                    last,
                    levels[0] + i * (width // FAN_OUT),
                    ranges,
                    base,
                    near,
                    text,
                    block,
                    stats,
                )
                continue
            child, stop = i * FAN_OUT, min((i + 1) * FAN_OUT, levels[2 * level - 1])
            break
