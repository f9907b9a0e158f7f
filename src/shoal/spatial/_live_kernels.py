"""Recent places and dead rows beside the packed segments, for prepared searches.

What a call's state describes (``_call_kernels``) are segments. Here the same query is
put to memtables, whose arrays are described as a layout's are, so that positions,
attributes and scores are the very same operations; and the words of dead rows are
counted. Arrays go by address: who calls keeps them.

These hold the interpreter's lock: each takes less time than giving it away and
waiting for it behind a writer.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from shoal.spatial._best_kernels import HEAPED, heap_of_best, hopeless, put, sort_heap
from shoal.spatial._block_kernels import least_km
from shoal.spatial._bound_kernels import space_bound
from shoal.spatial._build_kernels import (
    find_word,
    load_f8,
    load_i8,
    load_u4,
    view_f8,
    view_i8,
)
from shoal.spatial._call_kernels import (
    INTEGERS_AT,
    KEYS_AT,
    KMS_AT,
    REALS_AT,
    ROWS_AT,
    SCORES_AT,
    WEIGHTS_AT,
)
from shoal.spatial._kernels import (
    BITS,
    BLOB,
    KEYS,
    MATCH,
    MAX_KM,
    MAX_WORDS,
    N_PREFER,
    OFFSETS,
    SLOTS,
    TABLE,
    W_SPACE,
    K,
    attributes_of,
    blend,
    decayed,
    distance_of,
    locate,
    place_of,
)

__all__ = ["DEAD_SIZE", "RECENT_SIZE", "dead_frequencies", "search_recent"]

# A memtable's record: rows and deaths of the view, addresses, ids of the query's words.
(RECENT_ROWS, RECENT_DEATHS, RECENT_LAYOUT, RECENT_DIED, RECENT_PTR, RECENT_IDS) = range(6)
(RECENT_COUNTS, RECENT_LAST, RECENT_BEFORE, RECENT_ROW_OF, RECENT_WORDS) = range(6, 11)
RECENT_SIZE = RECENT_WORDS + MAX_WORDS
# A record of a segment with dead rows: its layout, counts of their words, the words of the
# latest, and how many of these.
DEAD_LAYOUT, DEAD_COUNTS, DEAD_RECENT, DEAD_STOP = range(4)
DEAD_SIZE = 4

_ALL = 1
_SEPARATOR = 0xFF


@njit(error_model="numpy")
def _has(record, row, word):
    ptr, ids = load_i8(record, RECENT_PTR), load_i8(record, RECENT_IDS)
    for place in range(load_i8(ptr, row), load_i8(ptr, row + 1)):
        if load_u4(ids, place) == word:
            return True
    return False


@njit(error_model="numpy")
def _text_of(record, row, given, weights, via, every, full):
    """Return the text part of a row found by word ``via``, -1 if it is not this word's to offer."""
    if every:
        for g in range(given):
            if g != via and not _has(record, row, load_i8(record, RECENT_WORDS + g)):
                return -1.0
        return full
    text = 0.0
    for g in range(given):
        word = load_i8(record, RECENT_WORDS + g)
        if word >= 0 and (g == via or _has(record, row, word)):
            if g < via:
                return -1.0
            text += load_f8(weights, g)
    return text


@njit(error_model="numpy")
def _offer(record, qi, qf, best, count, row, given, weights, via, every, full):
    """Offer a row of a view, if it lives; return the number of answers."""
    if load_i8(load_i8(record, RECENT_DIED), row) < load_i8(record, RECENT_DEATHS):
        return count
    a = load_i8(record, RECENT_LAYOUT)
    k = len(best[0])
    worst = 0 if k > HEAPED else k - 1
    if count == k:
        lon, lat = place_of(a, row)
        near = least_km(qf, lon, lat)
        space = space_bound(qi, qf, near) if load_f8(qf, W_SPACE) > 0.0 else 0.0
        if hopeless(blend(qf, space, full, 1.0), near, best, count, k, worst):
            return count
    text = 0.0
    if given > 0:
        text = _text_of(record, row, given, weights, via, every, full)
        if text < 0.0:
            return count
    km = distance_of(a, qf, row)
    if not km <= load_f8(qf, MAX_KM):
        return count
    attributes = 0.0
    if load_i8(qi, N_PREFER) > 0:
        attributes = attributes_of(a, qi, qf, row, False)
        if attributes < -0.5:
            return count
    score = blend(qf, decayed(qi, qf, km), text, attributes)
    return put(best, count, k, score, km, load_i8(load_i8(a, KEYS), row), row)


@njit(cache=True, error_model="numpy")
def search_recent(state, records, given, count):
    """Offer the rows of memtables to the ``count`` answers of a prepared call just made.

    ``records`` is int64 [memtables, RECENT_SIZE], with the memtables' ids of the
    ``given`` words (-1: none of its rows ever had it). Returns the number of answers.
    """
    qi, qf, weights = state[INTEGERS_AT], state[REALS_AT], state[WEIGHTS_AT]
    k = load_i8(qi, K)
    best = (
        view_f8(state[SCORES_AT], k),
        view_f8(state[KMS_AT], k),
        view_i8(state[KEYS_AT], k),
        view_i8(state[ROWS_AT], k),
    )
    locate(qf)
    every = load_i8(qi, MATCH) == _ALL
    full = 0.0
    for g in range(given):
        full += load_f8(weights, g)
    if k > HEAPED:
        heap_of_best(best, count)
    for m in range(len(records)):
        record = np.int64(records.ctypes.data) + 8 * RECENT_SIZE * m
        rows = load_i8(record, RECENT_ROWS)
        if given == 0:
            for row in range(rows):
                count = _offer(
                    record, qi, qf, best, count, row, given, weights, np.int64(-1), every, full
                )
            continue
        # All words: the rows of the rarest. Any: those of each, the earlier words' left out.
        first, stop = np.int64(0), np.int64(given)
        if every:
            least = np.int64(1 << 62)
            for g in range(given):
                word = load_i8(record, RECENT_WORDS + g)
                df = load_u4(load_i8(record, RECENT_COUNTS), word) if word >= 0 else np.int64(0)
                if df < least:
                    first, least = np.int64(g), df
            if least == 0:
                continue
            stop = first + 1
        for via in range(first, stop):
            word = load_i8(record, RECENT_WORDS + via)
            if word < 0:
                continue
            left = load_u4(load_i8(record, RECENT_COUNTS), word)
            place = load_u4(load_i8(record, RECENT_LAST), word)
            while left > 0:
                row = load_u4(load_i8(record, RECENT_ROW_OF), place)
                if load_i8(load_i8(record, RECENT_DIED), row) >= load_i8(record, RECENT_DEATHS):
                    left -= 1
                    count = _offer(
                        record, qi, qf, best, count, row, given, weights, via, every, full
                    )
                place = load_u4(load_i8(record, RECENT_BEFORE), place)
    if k > HEAPED:
        sort_heap(best, count)
    return count


@njit(cache=True, error_model="numpy")
def dead_frequencies(records, given, text, out):
    """Take off ``out[g]`` the dead rows with each of the ``given`` words in ``text``.

    ``records`` is int64 [segments, DEAD_SIZE]; the words are UTF-8 with bytes 255
    between them.
    """
    first = 0
    for g in range(given):
        stop = first
        while stop < len(text) and text[stop] != _SEPARATOR:
            stop += 1
        for s in range(len(records)):
            a = records[s, DEAD_LAYOUT]
            word = find_word(
                text,
                first,
                stop,
                load_i8(a, BLOB),
                load_i8(a, OFFSETS),
                load_i8(a, TABLE),
                load_i8(a, SLOTS),
                load_i8(a, BITS),
            )
            if word < 0:
                continue
            dead = load_u4(records[s, DEAD_COUNTS], word)
            recent = records[s, DEAD_RECENT]
            for i in range(records[s, DEAD_STOP]):
                dead += load_u4(recent, i) == word
            out[g] -= dead
        first = stop + 1
