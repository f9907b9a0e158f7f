"""The fast searches: all words, or any word, by the words' own trees over their postings.

They answer queries with a point and without filters, area, excluded words and BM25;
``_kernels`` answers the others. What makes them fast is that memory is asked for
early: the rows of a block are known before the first of them is looked at. Bounds
are over dead rows too, and so still bounds; a row's death is looked up last.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from shoal.spatial._best_kernels import HEAPED, _grown, put, queue_key, queue_pop, queue_push
from shoal.spatial._bound_kernels import attribute_part, box_distance2, combine, space_bound
from shoal.spatial._build_kernels import (
    FAN_OUT,
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
    MATCH,
    MAX_KM,
    N_PREFER,
    N_WORDS,
    POST,
    PTR,
    VALUES32,
    VALUES64,
    W_ATTRIBUTES,
    W_SPACE,
    WEIGHTS,
    WIDE,
    WORDS,
    N,
    X,
    Y,
    Z,
    attributes_of,
    blend,
    decayed,
    distance_of,
    lower_bound,
    place_of,
    tree_of,
)
from shoal.spatial._score import EARTH_KM

__all__ = ["ROOM", "least_km", "near_km", "search_plain"]

#: Nodes for which a search has room at first.
ROOM = 1024
#: Postings of the rarest word that are looked at without a tree.
FEW = 64
#: The same where there are other words, most of which these postings' places lack.
MERGED = 512
#: Postings that are looked at without going deeper where the words hardly ever meet.
SELDOM = 4096

_ALL = 1
_RAD = math.pi / 180.0


@njit(error_model="numpy")
def near_km(chord2):
    """Return a distance that is never above the great-circle distance of that chord.

    The first terms of the series of the arc sine, all of which are positive: much
    cheaper than the arc sine, and hardly less below 5,000 km. Shortened as
    ``_score.km_of_chord2`` is.
    """
    half = 0.5 * math.sqrt(chord2)
    t = half * half
    arc = half * (1.0 + t * (1.0 / 6.0 + t * (0.075 + t * 0.0446428)))
    return max(0.0, 2.0 * EARTH_KM * arc * (1.0 - 1e-9) - 1e-7)


@njit(error_model="numpy")
def least_km(qf, lon, lat):
    """Return a distance that is never above that of a position, without trigonometry.

    ``sin u >= u - u^3 / 6`` and ``cos(p + d) >= cos p (1 - d^2 / 2) - |sin p| d`` in
    the haversine form, and ``asin x >= x``.
    """
    across = abs(lon - load_f8(qf, LON))
    across = min(across, 360.0 - across) * (0.5 * _RAD)
    up = abs(lat - load_f8(qf, LAT)) * _RAD
    half = 0.5 * up
    half *= 1.0 - half * half * (1.0 / 6.0)
    h = half * half
    cos_other = load_f8(qf, COS_LAT) * (1.0 - 0.5 * up * up) - abs(load_f8(qf, Z)) * up
    if cos_other > 0.0:
        across *= 1.0 - across * across * (1.0 / 6.0)
        h += load_f8(qf, COS_LAT) * cos_other * across * across
    return max(0.0, 2.0 * EARTH_KM * math.sqrt(h) * (1.0 - 1e-9) - 1e-7)


@njit(error_model="numpy")
def too_far(a, qi, qf, best, count, worst, row, text, attributes):
    """Say whether a cheap look at a row's position shows that it is not among the best."""
    lon, lat = place_of(a, row)
    km = least_km(qf, lon, lat)
    if km > load_f8(qf, MAX_KM):
        return True
    if count < len(best[0]):
        return False
    space = space_bound(qi, qf, km) if load_f8(qf, W_SPACE) > 0.0 else 0.0
    score = blend(qf, space, text, attributes)
    return score < best[0][worst] or (score == best[0][worst] and km > best[1][worst])


@njit(error_model="numpy")
def gallop(post, first, stop, row):
    """As ``lower_bound``, quick if the place is near ``first``."""
    if first >= stop or load_u4(post, first) >= row:
        return first
    step = 1
    while first + step < stop and load_u4(post, first + step) < row:
        first += step
        step <<= 1
    return lower_bound(post, first + 1, min(stop, first + step), row)


@njit(error_model="numpy")
def ask_for_rows(a, first, stop, values):
    """Ask for the memory of the rows ``post[first:stop]``."""
    n = load_i8(a, N)
    for i in range(first, stop):
        row = load_u4(load_i8(a, POST), i)
        if load_i8(a, EXACT):
            prefetch(load_i8(a, LON64) + 8 * row)
            prefetch(load_i8(a, LAT64) + 8 * row)
        else:
            prefetch(load_i8(a, LON32) + 4 * row)
            prefetch(load_i8(a, LAT32) + 4 * row)
        for c in range(values):
            if load_i8(a, WIDE):
                prefetch(load_i8(a, VALUES64) + 8 * (c * n + row))
            else:
                prefetch(load_i8(a, VALUES32) + 4 * (c * n + row))


@njit(error_model="numpy")
def block_bound(a, qi, qf, node, text):
    """Return (bound, distance) of a node of a word's tree, as ``node_bound`` does."""
    km = near_km(
        box_distance2(load_i8(a, BLOCK_BOXES), node, load_f8(qf, X), load_f8(qf, Y), load_f8(qf, Z))
    )
    if km > load_f8(qf, MAX_KM):
        return -1.0, km
    space = space_bound(qi, qf, km) if load_f8(qf, W_SPACE) > 0.0 else 0.0
    attributes = 0.0
    if load_f8(qf, W_ATTRIBUTES) > 0.0:
        attributes = attribute_part(a, qi, qf, load_i8(a, BLOCK_LOW), load_i8(a, BLOCK_HIGH), node)
    return blend(qf, space, text, attributes), km


@njit(error_model="numpy")
def _scan_all(a, qi, qf, best, count, w, first, stop, ranges, base, text, stats):
    """Offer the rows ``post[first:stop]`` of word ``w`` that have all words.

    There are no preferences: ``_preference_kernels`` answers queries with some.
    """
    post = load_i8(a, POST)
    live = load_i8(qi, LIVE)
    words = load_i8(qi, N_WORDS)
    k = len(best[0])
    worst = 0 if k > HEAPED else k - 1
    none = np.int64(0)
    others = 0
    for v in range(words):
        if v != w:
            others += ranges[base + 2 * v + 1] - ranges[base + 2 * v]
            ranges[base + 2 * words + v] = ranges[base + 2 * v]
    words_first = words > 1 and others <= 32 * (stop - first)
    if not words_first:
        ask_for_rows(a, first, min(stop, first + FAN_OUT), none)
    stats[2] += stop - first
    for i in range(first, stop):
        if not words_first and (i - first) & (FAN_OUT - 1) == 0 and i > first:
            ask_for_rows(a, i, min(stop, i + FAN_OUT), none)
        row = load_u4(post, i)
        missing = False
        if words_first:
            for v in range(words):
                if v != w:
                    cursor = gallop(
                        post, ranges[base + 2 * words + v], ranges[base + 2 * v + 1], row
                    )
                    ranges[base + 2 * words + v] = cursor
                    if cursor == ranges[base + 2 * v + 1] or load_u4(post, cursor) != row:
                        missing = True
                        break
            stats[4] += 1
            if missing:
                continue
            stats[3] += 1
        if too_far(a, qi, qf, best, count, worst, row, text, 0.0):
            continue
        km = distance_of(a, qf, row)
        if not km <= load_f8(qf, MAX_KM):
            continue
        space = decayed(qi, qf, km)
        stats[1] += 1
        score = blend(qf, space, text, 0.0)
        if count == k and (
            score < best[0][worst] or (score == best[0][worst] and km > best[1][worst])
        ):
            continue
        if not words_first:
            for v in range(words):
                if v != w:
                    cursor = lower_bound(
                        post, ranges[base + 2 * words + v], ranges[base + 2 * v + 1], row
                    )
                    ranges[base + 2 * words + v] = cursor
                    if cursor == ranges[base + 2 * v + 1] or load_u4(post, cursor) != row:
                        missing = True
                        break
            stats[4] += 1
            if missing:
                continue
            stats[3] += 1
        if live != 0 and load_u1(live, row) == 0:
            continue
        count = put(best, count, k, score, km, load_i8(load_i8(a, KEYS), row), row)
    return count


@njit(error_model="numpy")
def _scan_any(a, qi, qf, best, count, w, first, stop, ranges, base, order, near, stats):
    """Offer the rows ``post[first:stop]`` of word ``w`` that no earlier word has."""
    post = load_i8(a, POST)
    live = load_i8(qi, LIVE)
    words = load_i8(qi, N_WORDS)
    k = len(best[0])
    worst = 0 if k > HEAPED else k - 1
    prefer = load_i8(qi, N_PREFER)
    cursors = base + 2 * words
    for v in range(words):
        ranges[cursors + v] = ranges[base + 2 * v]
    ask_for_rows(a, first, min(stop, first + FAN_OUT), prefer)
    stats[2] += stop - first
    begun = False
    for i in range(first, stop):
        row = load_u4(post, i)
        text = 0.0
        mine = True
        for v in range(words):
            if v == w:
                text += load_f8(qf, WEIGHTS + v)
                continue
            end = ranges[base + 2 * v + 1]
            if ranges[cursors + v] >= end:
                continue
            if begun:
                cursor = gallop(post, ranges[cursors + v], end, row)
            else:
                cursor = lower_bound(post, ranges[cursors + v], end, row)
            ranges[cursors + v] = cursor
            if cursor < end and load_u4(post, cursor) == row:
                if order[v] < order[w]:
                    mine = False
                text += load_f8(qf, WEIGHTS + v)
        begun = True
        if not mine or (count == k and blend(qf, near, text, 1.0) < best[0][worst]):
            continue
        if too_far(a, qi, qf, best, count, worst, row, text, 1.0):
            continue
        km = distance_of(a, qf, row)
        if not km <= load_f8(qf, MAX_KM):
            continue
        space = decayed(qi, qf, km)
        attributes = 0.0
        if prefer > 0:
            if count == k and blend(qf, space, text, 1.0) < best[0][worst]:
                continue
            attributes = attributes_of(a, qi, qf, row, False)
            if attributes < -0.5:
                continue
        stats[1] += 1
        score = blend(qf, space, text, attributes)
        if count == k and (
            score < best[0][worst] or (score == best[0][worst] and km > best[1][worst])
        ):
            continue
        if live != 0 and load_u1(live, row) == 0:
            continue
        count = put(best, count, k, score, km, load_i8(load_i8(a, KEYS), row), row)
    return count


@njit(error_model="numpy")
def _trees(a, qi, ranges, order, tables):
    """Fill the words' postings, their order (rare first) and the levels of their trees.

    Row ``w`` of ``tables`` holds first node and number of nodes of each level, and
    the number of levels in its last place. Returns (rarest word, smallest number of
    postings).
    """
    words = load_i8(qi, N_WORDS)
    rarest, least = 0, load_i8(a, N) + 1
    for w in range(words):
        word = load_i8(qi, WORDS + w)
        df = np.int64(0)
        ranges[2 * w] = ranges[2 * w + 1] = 0
        if word >= 0:
            ranges[2 * w], ranges[2 * w + 1] = (
                load_u4(load_i8(a, PTR), word),
                load_u4(load_i8(a, PTR), word + 1),
            )
            df = ranges[2 * w + 1] - ranges[2 * w]
        if df < least:
            rarest, least = w, df
        order[w] = 0
        for v in range(w):
            if ranges[2 * v + 1] - ranges[2 * v] <= df:
                order[w] += 1
            else:
                order[v] += 1
        tables[w, 19] = 0
        if df > FAN_OUT:
            start = tree_of(a, word)
            nodes = (df + FAN_OUT - 1) // FAN_OUT
            level = 0
            while True:
                tables[w, 2 * level], tables[w, 2 * level + 1] = start, nodes
                start += nodes
                level += 1
                if nodes <= FAN_OUT:
                    break
                nodes = (nodes + FAN_OUT - 1) // FAN_OUT
            tables[w, 19] = level
    return rarest, least


@njit(error_model="numpy")
def search_plain(a, qi, qf, best, count, work, stats):
    """Search the words' trees; return the number of answers.

    ``work`` holds arrays for the queue: heap uint64, entries uint32, node and base
    int64, bound and distance float64 (one length), ranges int64, order int64 [64],
    tables int64 [64, 20].
    """
    heap, entries, node_at, base_at, bound_at, km_at, ranges, order, tables = work
    words = load_i8(qi, N_WORDS)
    every = load_i8(qi, MATCH) == _ALL
    k = len(best[0])
    worst = 0 if k > HEAPED else k - 1
    stride = 3 * words  # from, to and a cursor for each word
    used = stride
    combine(a, qi, qf)
    rarest, least = _trees(a, qi, ranges, order, tables)
    full_text = 0.0
    for w in range(words):
        full_text += load_f8(qf, WEIGHTS + w)
    if every:
        if least == 0:
            return count
        if tables[rarest, 19] == 0 or least <= (MERGED if words > 1 else FEW):
            return _scan_all(
                a, qi, qf, best, count, rarest, ranges[2 * rarest], ranges[2 * rarest + 1], ranges,
                np.int64(0), full_text, stats,
            )  # fmt: skip
    room = len(heap)
    size = made = np.int64(0)
    # The words' trees, rare words first; a word with few postings has none.
    for turn in range(words):
        t = rarest
        if not every:
            for w in range(words):
                if order[w] == turn:
                    t = w
        elif turn > 0:
            break
        text = full_text
        if not every:
            text = 0.0
            for w in range(words):
                if order[w] >= turn and ranges[2 * w] < ranges[2 * w + 1]:
                    text += load_f8(qf, WEIGHTS + w)
            if tables[t, 19] == 0:
                count = _scan_any(
                    a, qi, qf, best, count, t, ranges[2 * t], ranges[2 * t + 1], ranges,
                    np.int64(0), order, 1.0, stats,
                )  # fmt: skip
                continue
        level = tables[t, 19] - 1
        start, stop = tables[t, 2 * level], tables[t, 2 * level + 1]
        if made + FAN_OUT >= room:
            room *= 2
            heap, entries = _grown(heap, room), _grown(entries, room)
            node_at, base_at = _grown(node_at, room), _grown(base_at, room)
            bound_at, km_at = _grown(bound_at, room), _grown(km_at, room)
        for i in range(stop):
            bound, km = block_bound(a, qi, qf, start + i, text)
            if bound < -0.5 or (
                count == k
                and (bound < best[0][worst] or (bound == best[0][worst] and km > best[1][worst]))
            ):
                continue
            node_at[made] = (t << 40) | (level << 35) | i
            base_at[made], bound_at[made], km_at[made] = 0, bound, km
            size = queue_push(heap, entries, size, queue_key(bound, km), np.uint32(made))
            made += 1

    while size > 0:
        if count == k and (heap[0] >> np.uint64(32)) > (
            queue_key(best[0][worst], 0.0) >> np.uint64(32)
        ):
            break
        entry = np.int64(entries[0])
        size = queue_pop(heap, entries, size)
        bound, km = bound_at[entry], km_at[entry]
        if count == k and (
            bound < best[0][worst] or (bound == best[0][worst] and km > best[1][worst])
        ):
            continue
        stats[0] += 1
        if size > 0:
            # What is likely to come next is on its way meanwhile.
            code = node_at[np.int64(entries[0])]
            t = code >> 40
            level = (code >> 35) & 15
            i = (code & 0x7FFFFFFFF) * FAN_OUT
            if level == 0:
                prefetch(load_i8(a, POST) + 4 * (ranges[2 * t] + i))
            else:
                prefetch(load_i8(a, BLOCK_BOXES) + 24 * (tables[t, 2 * level - 2] + i))
        code = node_at[entry]
        t = code >> 40
        known = (code >> 39) & 1
        level = (code >> 35) & 15
        i = code & 0x7FFFFFFFF
        base = base_at[entry]
        width = np.int64(FAN_OUT) << (4 * level)
        first = ranges[2 * t] + i * width
        last = min(ranges[2 * t + 1], first + width)
        if level == 0:
            if every:
                count = _scan_all(
                    a, qi, qf, best, count, t, first, last, ranges, base, full_text, stats
                )
            else:
                near = space_bound(qi, qf, km) if load_f8(qf, W_SPACE) > 0.0 else 0.0
                count = _scan_any(
                    a, qi, qf, best, count, t, first, last, ranges, base, order, near, stats
                )
            continue
        text = full_text
        if words > 1:
            if not known:
                if used + stride > len(ranges):
                    ranges = _grown(ranges, 2 * (used + stride))
                from_row, to_row = (
                    load_u4(load_i8(a, POST), first),
                    load_u4(load_i8(a, POST), last - 1) + 1,
                )
                empty = False
                for w in range(words):
                    low, high = ranges[base + 2 * w], ranges[base + 2 * w + 1]
                    if w == t:
                        low, high = first, last
                    elif low < high:
                        low = lower_bound(load_i8(a, POST), low, high, from_row)
                        high = gallop(load_i8(a, POST), low, high, to_row)
                    ranges[used + 2 * w], ranges[used + 2 * w + 1] = low, high
                    if low == high:
                        empty = True
                        if every:
                            break
                if empty and every:
                    continue
                base = used
                used += stride
            if every:
                few, left = t, last - first
                for w in range(words):
                    length = ranges[base + 2 * w + 1] - ranges[base + 2 * w]
                    if length < left:
                        few, left = w, length
                # Words that hardly ever meet: going down would only add nodes to the postings.
                seldom = stats[4] >= 48 and stats[4] > 8 * stats[3]
                if left <= (SELDOM if seldom else FAN_OUT):
                    count = _scan_all(
                        a, qi, qf, best, count, few, ranges[base + 2 * few],
                        ranges[base + 2 * few + 1], ranges, base, full_text, stats,
                    )  # fmt: skip
                    continue
            else:
                text = 0.0
                for w in range(words):
                    if ranges[base + 2 * w] < ranges[base + 2 * w + 1] and order[w] >= order[t]:
                        text += load_f8(qf, WEIGHTS + w)
                if not known:
                    bound, km = block_bound(a, qi, qf, tables[t, 2 * level] + i, text)
                    if count == k and (
                        bound < best[0][worst] or (bound == best[0][worst] and km > best[1][worst])
                    ):
                        continue
                    key = queue_key(bound, km)
                    if size > 0 and key > heap[0]:
                        # Something else looks better now: this waits, with what is known.
                        node_at[entry] = code | (1 << 39)
                        base_at[entry], bound_at[entry], km_at[entry] = base, bound, km
                        size = queue_push(heap, entries, size, key, np.uint32(entry))
                        continue
        if made + FAN_OUT >= room:
            room *= 2
            heap, entries = _grown(heap, room), _grown(entries, room)
            node_at, base_at = _grown(node_at, room), _grown(base_at, room)
            bound_at, km_at = _grown(bound_at, room), _grown(km_at, room)
        start = tables[t, 2 * level - 2]
        for child in range(i * FAN_OUT, min((i + 1) * FAN_OUT, tables[t, 2 * level - 1])):
            bound, km = block_bound(a, qi, qf, start + child, text)
            if bound < -0.5 or (
                count == k
                and (bound < best[0][worst] or (bound == best[0][worst] and km > best[1][worst]))
            ):
                continue
            node_at[made] = (t << 40) | ((level - 1) << 35) | child
            base_at[made], bound_at[made], km_at[made] = base, bound, km
            size = queue_push(heap, entries, size, queue_key(bound, km), np.uint32(made))
            made += 1
    return count
