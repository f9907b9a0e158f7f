"""The general search of the packed layout: best-first over row ranges or over blocks of postings.

A node of either tree covers a range of rows, and "which words occur in it" is two
binary searches in each word's postings, which begin in the parent's range. When few
postings of the rarest word are left, they are looked at one by one and the search
goes no deeper.
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
from shoal.spatial._bound_kernels import combine, node_bound
from shoal.spatial._build_kernels import FAN_OUT, load_f8, load_i8, load_u1, load_u4
from shoal.spatial._kernels import (
    BM25,
    HAS_POINT,
    KEYS,
    LEVEL_START,
    LEVELS,
    LIVE,
    MATCH,
    MAX_KM,
    N_PREFER,
    N_WORDS,
    POST,
    PTR,
    W_ATTRIBUTES,
    WEIGHTS,
    WORDS,
    N,
    allowed,
    attributes_of,
    blend,
    damping_of,
    decayed,
    distance_of,
    has_row,
    lower_bound,
    tree_of,
)

__all__ = ["search_any_tree"]

#: Postings of the rarest word in a node from which on the search goes deeper.
SWITCH = 64

_ALL = 1
_ANY = 2
_LEVELS = 10


# --- looking at rows one by one --------------------------------------------------------------


@njit(error_model="numpy")
def _text_of(a, qi, qf, row, ranges, base, order, tree):
    """Return the text part of a row, -1 if a word of an earlier tree has it or none does."""
    text = 0.0
    found = False
    for w in range(load_i8(qi, N_WORDS)):
        low, high = ranges[base + 2 * w], ranges[base + 2 * w + 1]
        if low < high and has_row(load_i8(a, POST), low, high, row):
            if tree >= 0 and order[w] < order[tree]:
                return -1.0
            text += load_f8(qf, WEIGHTS + w)
            found = True
    return text if found else -1.0


@njit(error_model="numpy")
def scan(a, qi, qf, best, count, word, first, stop, ranges, base, order, tree, full_text, stats):
    """Offer the rows ``post[first:stop]`` of a word (-1: the rows ``first .. stop`` themselves).

    Other words are looked up in ``ranges[base:]``. With a ``tree`` (the word whose
    tree is searched) rows are left to the trees of earlier words that have them.
    Returns the number of answers.
    """
    k = len(best[0])
    worst = 0 if k > HEAPED else k - 1
    for i in range(first, stop):
        row = load_u4(load_i8(a, POST), i) if word >= 0 else np.int64(i)
        stats[2] += 1
        if load_i8(qi, LIVE) != 0 and load_u1(load_i8(qi, LIVE), row) == 0:
            continue
        text = full_text
        if load_i8(qi, MATCH) == _ANY:
            text = _text_of(a, qi, qf, row, ranges, base, order, tree)
            if text < 0.0:
                continue
        km = 0.0
        space = 0.0
        if load_i8(qi, HAS_POINT):
            km = distance_of(a, qf, row)
            if not km <= load_f8(qf, MAX_KM):
                continue
            space = decayed(qi, qf, km)
        if hopeless(blend(qf, space, text, 1.0), km, best, count, k, worst):
            continue
        stats[1] += 1
        attributes = 0.0
        if load_i8(qi, N_PREFER) > 0:
            attributes = attributes_of(a, qi, qf, row, False)
            if attributes < -0.5:
                continue
        if load_i8(qi, BM25):
            text *= damping_of(a, qf, row)
        score = blend(qf, space, text, attributes)
        if hopeless(score, km, best, count, k, worst):
            continue
        if load_i8(qi, MATCH) == _ALL:
            missing = False
            for w in range(load_i8(qi, N_WORDS)):
                if w != word and not has_row(
                    load_i8(a, POST), ranges[base + 2 * w], ranges[base + 2 * w + 1], row
                ):
                    missing = True
                    break
            if missing:
                continue
        if not allowed(a, qi, qf, row):
            continue
        count = put(best, count, k, score, km, load_i8(load_i8(a, KEYS), row), row)
    return count


# --- the search ------------------------------------------------------------------------------


@njit(error_model="numpy")
def _rows_of(a, tree, first_post, last_post, level, i):
    """Return the range of rows that node ``i`` of a level covers."""
    size = np.int64(FAN_OUT) << (4 * level)
    if tree < 0:
        return i * size, min(load_i8(a, N), (i + 1) * size)
    first = first_post + i * size
    last = min(last_post, first + size) - 1
    return load_u4(load_i8(a, POST), first), load_u4(load_i8(a, POST), last) + 1


@njit(error_model="numpy")
def _prepare(a, qi, qf, ranges, order, tables):
    """Fill the words' postings, their order (rare first), and their trees; say which to search.

    ``tables[w]`` holds, level by level, the first node and the number of nodes of
    a word's tree; the last row is the tree over all rows. Returns (what to search,
    rarest word): 0 nothing, 1 the tree over all rows, 2 the rarest word's tree, 3
    the trees of all words, 4 the postings of the rarest word.
    """
    words = load_i8(qi, N_WORDS)
    for level in range(load_i8(a, LEVELS)):
        tables[words, 2 * level] = load_i8(load_i8(a, LEVEL_START), level)
        tables[words, 2 * level + 1] = (
            load_i8(load_i8(a, LEVEL_START), level + 1) - tables[words, 2 * level]
        )
    if load_i8(a, N) == 0:
        return 0, -1
    if load_i8(qi, MATCH) != _ALL and load_i8(qi, MATCH) != _ANY:
        return 1, -1
    rarest, least, most = -1, load_i8(a, N) + 1, 0
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
        if load_i8(qi, MATCH) == _ALL or df > 0:
            if df < least:
                rarest, least = w, df
            most = max(most, df)
        order[w] = 0
        for v in range(w):
            if ranges[2 * v + 1] - ranges[2 * v] <= df:
                order[w] += 1
            else:
                order[v] += 1
        start = tree_of(a, word) if df > FAN_OUT else np.int64(-1)
        tables[w, 1] = 0
        if start >= 0:
            level = 0
            nodes = (df + FAN_OUT - 1) // FAN_OUT
            while True:
                tables[w, 2 * level], tables[w, 2 * level + 1] = start, nodes
                start += nodes
                level += 1
                if nodes <= FAN_OUT:
                    break
                nodes = (nodes + FAN_OUT - 1) // FAN_OUT
            tables[w, 2 * level + 1] = 0
    if rarest < 0 or (load_i8(qi, MATCH) == _ALL and least == 0):
        return 0, -1
    small = load_f8(qf, W_ATTRIBUTES) > 0.0
    if load_i8(qi, MATCH) == _ALL:
        if least <= SWITCH and (not small or least <= FAN_OUT):
            return 4, rarest
        if (small or 10 * least <= 3 * load_i8(a, N)) and tables[rarest, 1] > 0:
            return 2, rarest
        return 1, rarest
    if small or 10 * most <= 3 * load_i8(a, N):
        return 3, rarest
    return 1, rarest


@njit(error_model="numpy")
def search_any_tree(a, qi, qf, best, count, stats):
    """Offer every row that can be among the best; return the number of answers.

    ``a`` describes the layout, ``qi`` and ``qf`` the query, in the places named above;
    ``best`` are the answers' arrays of k places, sorted or a heap (``put``); ``stats``
    int64 are added to: nodes, scored, looked at.
    """
    combine(a, qi, qf)
    k = len(best[0])
    worst = np.int64(0) if k > HEAPED else np.int64(k - 1)
    # Numbers written out would be types of their own, and each combination a compilation.
    zero, none = np.int64(0), np.int64(-1)
    count = np.int64(count)
    words = load_i8(qi, N_WORDS)
    stride = 2 * words
    ranges = np.empty(max(1, stride) * 16, np.int64)
    used = stride  # of ranges
    order = np.empty(words, np.int64)
    tables = np.zeros((words + 1, 2 * _LEVELS), np.int64)
    way, rarest = _prepare(a, qi, qf, ranges, order, tables)
    if way == 0:
        return count
    full_text = 0.0
    if load_i8(qi, MATCH) != 0:
        for w in range(words):
            full_text += load_f8(qf, WEIGHTS + w)
    if way == 4:
        return scan(
            a, qi, qf, best, count, rarest, ranges[2 * rarest], ranges[2 * rarest + 1], ranges,
            zero, order, none, full_text, stats,
        )  # fmt: skip
    room = 256
    heap = np.empty(room, np.uint64)
    entries = np.empty(room, np.uint32)
    # What the queue's entries stand for: (tree + 1) << 40 | ranges known << 39 | level << 35 | i.
    node_at = np.empty(room, np.int64)
    base_at = np.empty(room, np.int64)
    bound_at = np.empty(room, np.float64)
    km_at = np.empty(room, np.float64)
    size = made = np.int64(0)

    # The first nodes: of the tree over all rows, or of words' trees (rare words have none).
    for t in range(-1, words):
        if (way == 1) != (t == -1) or (way == 2 and t != rarest):
            continue
        text = full_text
        if way == 3:
            first, last = ranges[2 * t], ranges[2 * t + 1]
            if tables[t, 1] == 0:
                count = scan(
                    a, qi, qf, best, count, t, first, last, ranges, zero, order, t, full_text, stats
                )
                continue
            text = 0.0
            for w in range(words):
                if order[w] >= order[t] and ranges[2 * w] < ranges[2 * w + 1]:
                    text += load_f8(qf, WEIGHTS + w)
        table = tables[t] if t >= 0 else tables[words]
        level = 0
        while table[2 * level + 3] > 0:
            level += 1
        for i in range(table[2 * level + 1]):
            bound, km = node_bound(a, qi, qf, t >= 0, table[2 * level] + i, text)
            if bound < -0.5 or hopeless(bound, km, best, count, k, worst):
                continue
            if made + 1 >= room:
                room *= 2
                heap, entries = _grown(heap, room), _grown(entries, room)
                node_at, base_at = _grown(node_at, room), _grown(base_at, room)
                bound_at, km_at = _grown(bound_at, room), _grown(km_at, room)
            node_at[made] = ((t + 1) << 40) | (level << 35) | i
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
        if hopeless(bound, km, best, count, k, worst):
            continue
        stats[0] += 1
        code = node_at[entry]
        t = (code >> 40) - 1
        known = (code >> 39) & 1
        level = (code >> 35) & 15
        i = code & 0x7FFFFFFFF
        base = base_at[entry]
        text = full_text

        if words > 0 and load_i8(qi, MATCH) != 0 and not known:
            if used + stride > len(ranges):
                ranges = _grown(ranges, 2 * (used + stride))
            first, last = (ranges[2 * t], ranges[2 * t + 1]) if t >= 0 else (zero, zero)
            from_row, to_row = _rows_of(a, t, first, last, level, i)
            new = used
            empty = False
            any_left = False
            text = 0.0
            for w in range(words):
                low, high = ranges[base + 2 * w], ranges[base + 2 * w + 1]
                if w == t:
                    step = np.int64(FAN_OUT) << (4 * level)
                    low = first + i * step
                    high = min(last, low + step)
                elif low < high:
                    low = lower_bound(load_i8(a, POST), low, high, from_row)
                    high = lower_bound(load_i8(a, POST), low, high, to_row)
                ranges[new + 2 * w], ranges[new + 2 * w + 1] = low, high
                if low == high:
                    empty = True
                    if load_i8(qi, MATCH) == _ALL:
                        break
                else:
                    any_left = True
                    if t < 0 or order[w] >= order[t]:
                        text += load_f8(qf, WEIGHTS + w)
            if not any_left or (empty and load_i8(qi, MATCH) == _ALL):
                continue
            used += stride
            base = new
            if load_i8(qi, MATCH) == _ALL:
                text = full_text
            elif text < full_text:
                bound, km = node_bound(
                    a, qi, qf, t >= 0, (tables[t] if t >= 0 else tables[words])[2 * level] + i, text
                )
                if hopeless(bound, km, best, count, k, worst):
                    continue
                key = queue_key(bound, km)
                if size > 0 and key > heap[0]:
                    # Something else looks better now: this node waits, with what is known.
                    node_at[entry] = code | (1 << 39)
                    base_at[entry], bound_at[entry], km_at[entry] = base, bound, km
                    size = queue_push(heap, entries, size, key, np.uint32(entry))
                    continue
        elif known:
            text = 0.0
            for w in range(words):
                if ranges[base + 2 * w] < ranges[base + 2 * w + 1] and (
                    t < 0 or order[w] >= order[t]
                ):
                    text += load_f8(qf, WEIGHTS + w)

        # Few postings left, or a leaf: look at them.
        if load_i8(qi, MATCH) == _ALL:
            few, left = none, load_i8(a, N) + 1
            for w in range(words):
                length = ranges[base + 2 * w + 1] - ranges[base + 2 * w]
                if length < left:
                    few, left = w, length
            if level == 0 or left <= (FAN_OUT if load_f8(qf, W_ATTRIBUTES) > 0.0 else SWITCH):
                count = scan(
                    a, qi, qf, best, count, few, ranges[base + 2 * few],
                    ranges[base + 2 * few + 1], ranges, base, order, none, full_text, stats,
                )  # fmt: skip
                continue
        elif load_i8(qi, MATCH) == _ANY:
            if t >= 0:
                if level == 0:
                    count = scan(
                        a, qi, qf, best, count, t, ranges[base + 2 * t], ranges[base + 2 * t + 1],
                        ranges, base, order, t, full_text, stats,
                    )  # fmt: skip
                    continue
            else:
                left = 0
                for w in range(words):
                    left += ranges[base + 2 * w + 1] - ranges[base + 2 * w]
                if level == 0 or left <= SWITCH:
                    for w in range(words):
                        count = scan(
                            a, qi, qf, best, count, w, ranges[base + 2 * w],
                            ranges[base + 2 * w + 1], ranges, base, order, w, full_text, stats,
                        )  # fmt: skip
                    continue
        elif level == 0:
            from_row, to_row = _rows_of(a, none, zero, zero, zero, i)
            count = scan(
                a, qi, qf, best, count, none, from_row, to_row, ranges, zero, order, none,
                full_text, stats,
            )  # fmt: skip
            continue

        below = tables[t] if t >= 0 else tables[words]
        child, stop = i * FAN_OUT, min((i + 1) * FAN_OUT, below[2 * level - 1])
        if made + FAN_OUT >= room:
            room *= 2
            heap, entries = _grown(heap, room), _grown(entries, room)
            node_at, base_at = _grown(node_at, room), _grown(base_at, room)
            bound_at, km_at = _grown(bound_at, room), _grown(km_at, room)
        while child < stop:
            bound, km = node_bound(a, qi, qf, t >= 0, below[2 * level - 2] + child, text)
            if bound > -0.5 and not hopeless(bound, km, best, count, k, worst):
                node_at[made] = ((t + 1) << 40) | ((level - 1) << 35) | child
                base_at[made], bound_at[made], km_at[made] = base, bound, km
                size = queue_push(heap, entries, size, queue_key(bound, km), np.uint32(made))
                made += 1
            child += 1
    return count
