"""The search for the nearest places that have all words, where distance alone decides.

It compares ``h = sin(angle / 2)^2``, which is a quarter of the squared chord: no root,
no arc sine and no decay until the end. ``h`` is computed by polynomials, so it is near
the haversine form's but not equal to it. Therefore every row whose ``h`` is within a
margin of the k-th smallest is kept, and only these few are scored exactly and put in
order. The margin is a part in 10^8 and 10^-11 of the radius, which is thousands of
times what rounding and the polynomials can do, across the date line and at the poles
too. A node is left out by the same margin.

Score and nearness agree in order because every decay that this search is used for
never rises with the distance, not in the last bit either (``exp`` promises no such
thing), and because the words' part is the same for all answers.

Where words meet is found by bits, not by comparisons: the rows of the shortest list
are set in a bitmap, and the other lists are read from one end to the other past it.
That takes no branch that a processor could guess wrong, and reads memory in order.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from shoal.spatial._best_kernels import HEAPED, _grown, put, queue_pop, queue_push
from shoal.spatial._block_kernels import gallop
from shoal.spatial._bound_kernels import box_distance2
from shoal.spatial._build_kernels import FAN_OUT, load_f8, load_i8, load_u1, load_u4, prefetch
from shoal.spatial._kernels import (
    BLOCK_BOXES,
    COS_LAT,
    EXACT,
    KEYS,
    LAT,
    LAT32,
    LAT64,
    LIVE,
    LON,
    LON32,
    LON64,
    MAX_KM,
    N_WORDS,
    POST,
    PTR,
    WEIGHTS,
    WORDS,
    X,
    Y,
    Z,
    blend,
    decayed,
    distance_of,
    lower_bound,
    place_of,
    tree_of,
)
from shoal.spatial._score import EARTH_KM

__all__ = ["BITMAP", "CHUNK", "EDGE", "POOL", "begin_nearest", "half_chord2", "search_nearest"]

#: Words of 64 bits in the bitmap, which so covers 2^18 rows at a time.
BITMAP = 4096
#: Rows of the shortest list that are intersected at a time.
CHUNK = 4096
#: Rows that wait to be scored.
POOL = 1024
#: Places of the margin, the number of nearest and the nearest.
EDGE = 2 + HEAPED

#: Postings of the rarest word that are looked at without its tree, if it is the only one.
_FEW = 48
#: The same where there are others.
_MERGED = 640
#: Share of the answers above which a node with that many expected is searched by its children.
_SOME = 0.2
#: Rows asked for ahead of the one that is looked at.
_AHEAD = 24
#: A list this many times as long as the shortest is searched, not read.
_LONG = 24
_RAD = math.pi / 180.0
_SLACK, _SLACK_ANGLE = 1e-8, 1e-11


@njit(error_model="numpy")
def _sine(x):
    """Return sin(x), |x| <= pi / 2, to a part in 10^11: its series to the 15th power."""
    t = x * x
    s = -1.0 / 1307674368000.0
    s = s * t + 1.0 / 6227020800.0
    s = s * t - 1.0 / 39916800.0
    s = s * t + 1.0 / 362880.0
    s = s * t - 1.0 / 5040.0
    s = s * t + 1.0 / 120.0
    s = s * t - 1.0 / 6.0
    return x + x * t * s


@njit(error_model="numpy")
def half_chord2(lon, lat, cos_lat, sin_lat, to_lon, to_lat):
    """Return sin(angle / 2)^2 of two positions, degrees, near enough for the margin."""
    s = _sine((to_lat - lat) * (0.5 * _RAD))
    across = abs(to_lon - lon)
    c = _sine(min(across, 360.0 - across) * (0.5 * _RAD))
    s2 = s * s
    # The cosine of a sum: the other latitude's, without its own series.
    cos_other = cos_lat * (1.0 - 2.0 * s2) - sin_lat * 2.0 * s * math.sqrt(max(0.0, 1.0 - s2))
    return s2 + cos_lat * max(0.0, cos_other) * c * c


@njit(error_model="numpy")
def _margin(h):
    """Return a half chord (squared) beyond which nothing is as near as ``h``."""
    root = math.sqrt(h) + _SLACK_ANGLE
    return root * root * (1.0 + _SLACK)


@njit(error_model="numpy")
def _half_chord2_of_km(km):
    s = math.sin(min(0.5 * math.pi, 0.5 * km / EARTH_KM))
    return s * s


@njit(error_model="numpy")
def begin_nearest(qf, best, count, k, edge):
    """Set the margin by the largest distance and by the answers there are already."""
    edge[0] = _margin(_half_chord2_of_km(load_f8(qf, MAX_KM)))
    for i in range(count):
        edge[2 + i] = _half_chord2_of_km(best[1][i])
    edge[1] = count
    if count == k:
        edge[0] = min(edge[0], _margin(edge[1 + k]))


@njit(error_model="numpy")
def _settle(a, qi, qf, best, count, near, pooled, text, stats):
    """Score the rows that wait and are near enough, exactly; return the number of answers."""
    _, _, pool_h, pool_rows, edge = near
    k = len(best[0])
    for i in range(pooled):
        if pool_h[i] <= edge[0]:
            prefetch(load_i8(a, KEYS) + 8 * pool_rows[i])
    for i in range(pooled):
        if pool_h[i] > edge[0]:
            continue
        stats[1] += 1
        row = pool_rows[i]
        km = distance_of(a, qf, row)
        if km <= load_f8(qf, MAX_KM):
            score = blend(qf, decayed(qi, qf, km), text, 0.0)
            count = put(best, count, k, score, km, load_i8(load_i8(a, KEYS), row), row)
    return count


@njit(error_model="numpy")
def _ask(a, row):
    """Ask for the memory of a row's position."""
    if load_i8(a, EXACT):
        prefetch(load_i8(a, LON64) + 8 * row)
        prefetch(load_i8(a, LAT64) + 8 * row)
    else:
        prefetch(load_i8(a, LON32) + 4 * row)
        prefetch(load_i8(a, LAT32) + 4 * row)


@njit(error_model="numpy")
def _offer(a, qi, qf, best, count, near, pooled, first, stop, text, stats):
    """Keep those of the rows ``found[first:stop]`` that are near enough for now.

    Returns (number of answers, number of rows that wait).
    """
    _, found, pool_h, pool_rows, edge = near
    k = len(best[0])
    live = load_i8(qi, LIVE)
    lon, lat = load_f8(qf, LON), load_f8(qf, LAT)
    cos_lat, sin_lat = load_f8(qf, COS_LAT), load_f8(qf, Z)
    limit = edge[0]
    size = np.int64(edge[1])
    for i in range(first, stop):
        if i + _AHEAD < stop:
            _ask(a, found[i + _AHEAD])
        row = found[i]
        to_lon, to_lat = place_of(a, row)
        h = half_chord2(lon, lat, cos_lat, sin_lat, to_lon, to_lat)
        if h > limit or (live != 0 and load_u1(live, row) == 0):
            continue
        if pooled == POOL:
            kept = np.int64(0)
            for j in range(pooled):
                if pool_h[j] <= limit:
                    pool_h[kept], pool_rows[kept] = pool_h[j], pool_rows[j]
                    kept += 1
            pooled = kept
            if 2 * pooled > POOL:  # many at one distance
                count = _settle(a, qi, qf, best, count, near, pooled, text, stats)
                pooled = np.int64(0)
        pool_h[pooled], pool_rows[pooled] = h, row
        pooled += 1
        if size == k and h >= edge[1 + k]:
            continue
        j = size if size < k else size - 1
        size = j + 1
        while j > 0 and edge[1 + j] > h:
            edge[2 + j] = edge[1 + j]
            j -= 1
        edge[2 + j] = h
        if size == k:
            limit = min(limit, _margin(edge[1 + k]))
            edge[0] = limit
    edge[1] = size
    return count, pooled


@njit(error_model="numpy")
def _search_each(post, found, taken, low, high):
    """Keep those of the rows ``found[:taken]`` that are in ``post[low:high]``."""
    kept = np.int64(0)
    for i in range(taken):
        row = found[i]
        low = gallop(post, low, high, row)
        if low == high:
            break
        if load_u4(post, low) == row:
            found[kept] = row
            kept += 1
    return kept


@njit(error_model="numpy")
def _read_past(post, bitmap, found, taken, base_row, low, high):
    """As ``_search_each``, by bits: all rows are in ``base_row ..`` 2^18 further."""
    other = CHUNK + 1
    for i in range(taken):
        bit = found[i] - base_row
        bitmap[bit >> 6] |= np.uint64(1) << np.uint64(bit & 63)
        found[other + i] = bit >> 6
    kept = np.int64(0)
    for i in range(low, high):
        row = load_u4(post, i)
        bit = row - base_row
        found[kept] = row
        kept += np.int64((bitmap[bit >> 6] >> np.uint64(bit & 63)) & np.uint64(1))
    for i in range(taken):
        bitmap[found[other + i]] = np.uint64(0)
    return kept


@njit(error_model="numpy")
def _scan(a, qi, qf, best, count, near, pooled, ranges, base, text, stats):
    """Look at the rows that have all words in ``ranges[base:]``.

    Returns (number of answers, number of rows that wait).
    """
    bitmap, found, _, _, _ = near
    post = load_i8(a, POST)
    words = load_i8(qi, N_WORDS)
    short = np.int64(0)
    for w in range(words):
        if (
            ranges[base + 2 * w + 1] - ranges[base + 2 * w]
            < ranges[base + 2 * short + 1] - ranges[base + 2 * short]
        ):
            short = w
    i, stop = ranges[base + 2 * short], ranges[base + 2 * short + 1]
    stats[2] += stop - i
    while i < stop:
        base_row = load_u4(post, i)
        taken = np.int64(0)
        while taken < CHUNK and i < stop and load_u4(post, i) < base_row + 64 * BITMAP:
            found[taken] = load_u4(post, i)
            i += 1
            taken += 1
        last_row = load_u4(post, i - 1)
        stats[4] += taken
        for w in range(words):
            if w == short or taken == 0:
                continue
            low, high = ranges[base + 2 * w], ranges[base + 2 * w + 1]
            low = gallop(post, low, high, base_row)
            ranges[base + 2 * w] = low
            if high - low > _LONG * taken:
                taken = _search_each(post, found, taken, low, high)
                continue
            if low < high and load_u4(post, high - 1) > last_row:
                high = gallop(post, low, high, last_row + 1)
            taken = _read_past(post, bitmap, found, taken, base_row, low, high)
        stats[3] += taken
        for j in range(min(taken, _AHEAD)):
            _ask(a, found[j])
        count, pooled = _offer(
            a, qi, qf, best, count, near, pooled, np.int64(0), taken, text, stats
        )
    return count, pooled


@njit(error_model="numpy")
def _levels(a, word, df, table):
    """Fill first node and number of nodes of each level of a word's tree; return the levels."""
    start = tree_of(a, word)
    nodes = (df + FAN_OUT - 1) // FAN_OUT
    levels = np.int64(0)
    while True:
        table[2 * levels], table[2 * levels + 1] = start, nodes
        start += nodes
        levels += 1
        if nodes <= FAN_OUT:
            return levels
        nodes = (nodes + FAN_OUT - 1) // FAN_OUT


@njit(error_model="numpy")
def _narrow(a, words, t, first, last, ranges, base, used):
    """Set ``ranges[used:]`` to what of ``ranges[base:]`` lies in rows ``post[first:last]``.

    Those are the rows of a node of word ``t``. Returns how many rows are expected to
    have all words, were they strewn at random; -1 if none has.
    """
    post = load_i8(a, POST)
    from_row, to_row = load_u4(post, first), load_u4(post, last - 1) + 1
    expected = np.float64(last - first)
    for w in range(words):
        low, high = ranges[base + 2 * w], ranges[base + 2 * w + 1]
        if w == t:
            low, high = first, last
        else:
            low = lower_bound(post, low, high, from_row)
            high = gallop(post, low, high, to_row)
            if low == high:
                return -1.0
            expected *= (high - low) / (to_row - from_row)
        ranges[used + 2 * w], ranges[used + 2 * w + 1] = low, high
    return expected


@njit(error_model="numpy")
def search_nearest(a, qi, qf, best, count, work, near, stats):
    """Search one layout; return the number of answers.

    ``work`` as for ``_block_kernels.search_plain``; ``near`` holds the bitmap (uint64
    [BITMAP], all 0), rows (int64 [2 * CHUNK + 2]), half chords (float64) and rows
    (int64) that wait [POOL], and the margin (float64 [EDGE], see ``begin_nearest``),
    which goes on from one segment to the next.
    """
    heap, entries, node_at, base_at, bound_at, _, ranges, _, tables = work
    _, found, _, _, edge = near
    post = load_i8(a, POST)
    words = load_i8(qi, N_WORDS)
    k = len(best[0])
    t, least = np.int64(0), np.int64(-1)
    text = 0.0
    for w in range(words):
        word = load_i8(qi, WORDS + w)
        text += load_f8(qf, WEIGHTS + w)
        if word < 0:
            return count
        first, last = load_u4(load_i8(a, PTR), word), load_u4(load_i8(a, PTR), word + 1)
        ranges[2 * w], ranges[2 * w + 1] = first, last
        if least < 0 or last - first < least:
            t, least = w, last - first
    if least <= 0:
        return count
    zero = np.int64(0)
    pooled = np.int64(0)
    if least <= (_MERGED if words > 1 else _FEW):
        count, pooled = _scan(a, qi, qf, best, count, near, pooled, ranges, zero, text, stats)
        return _settle(a, qi, qf, best, count, near, pooled, text, stats)
    x, y, z = load_f8(qf, X), load_f8(qf, Y), load_f8(qf, Z)
    boxes = load_i8(a, BLOCK_BOXES)
    table = tables[0]
    begin = ranges[2 * t]
    stride = 2 * words
    used = stride
    room = len(heap)
    size = made = zero
    # The first step is into the nodes of the highest level, as if they were one's children.
    level = _levels(a, load_i8(qi, WORDS + t), least, table)
    parent, base = zero, zero
    waiting = zero  # rows of a leaf, asked for but not yet looked at
    half = zero
    tested = met = zero
    while True:
        # The children of a node.
        start = table[2 * level - 2]
        if made + FAN_OUT >= room:
            room *= 2
            heap, entries = _grown(heap, room), _grown(entries, room)
            node_at, base_at = _grown(node_at, room), _grown(base_at, room)
            bound_at = _grown(bound_at, room)
        for i in range(parent * FAN_OUT, min((parent + 1) * FAN_OUT, table[2 * level - 1])):
            bound = 0.25 * box_distance2(boxes, start + i, x, y, z)
            if bound > edge[0]:
                continue
            node_at[made] = ((level - 1) << 40) | i
            base_at[made], bound_at[made] = base, bound
            key = np.uint64(bound * 4e18)
            size = queue_push(heap, entries, size, key, np.uint32(made))
            made += 1
        # Nodes in which rows are looked at, until one comes that has children to look at.
        descend = False
        while not descend:
            if size == 0 or bound_at[np.int64(entries[0])] > edge[0]:
                if waiting == 0:
                    break
                count, pooled = _offer(
                    a, qi, qf, best, count, near, pooled, half, half + waiting, text, stats
                )
                waiting = zero
                continue
            entry = np.int64(entries[0])
            size = queue_pop(heap, entries, size)
            stats[0] += 1
            code = node_at[entry]
            level, parent = code >> 40, code & 0xFFFFFFFFFF
            base = base_at[entry]
            width = np.int64(FAN_OUT) << (4 * level)
            first = begin + parent * width
            last = min(begin + least, first + width)
            if size > 0:
                # What is likely to come next is on its way meanwhile.
                code = node_at[np.int64(entries[0])]
                ahead = code & 0xFFFFFFFFFF
                if words > 1 or (code >> 40) == 0:
                    prefetch(post + 4 * (begin + (ahead << (4 * (code >> 40) + 4))))
                else:
                    prefetch(boxes + 24 * (table[2 * (code >> 40) - 2] + ahead * FAN_OUT))
            if words > 1:
                if used + stride > len(ranges):
                    ranges = _grown(ranges, 2 * (used + stride))
                expected = _narrow(a, words, t, first, last, ranges, base, used)
                if expected < 0.0:
                    continue
                if tested > 0:
                    expected = max(expected, (last - first) * (met / tested))
                if level > 1 and expected > _SOME * k:
                    base = used
                    used += stride
                    descend = True
                    continue
                stats[3] = stats[4] = 0
                count, pooled = _scan(
                    a, qi, qf, best, count, near, pooled, ranges, used, text, stats
                )
                tested += stats[4]
                met += stats[3]
                continue
            if level > 0:
                descend = True
                continue
            # A leaf's rows are asked for while those of the leaf before are looked at.
            other = np.int64(FAN_OUT) - half
            for i in range(first, last):
                row = load_u4(post, i)
                found[other + i - first] = row
                _ask(a, row)
            if waiting > 0:
                count, pooled = _offer(
                    a, qi, qf, best, count, near, pooled, half, half + waiting, text, stats
                )
            stats[2] += last - first
            half, waiting = other, last - first
        if not descend:
            break
    return _settle(a, qi, qf, best, count, near, pooled, text, stats)
