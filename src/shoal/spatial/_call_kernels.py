"""One call of a search: a few numbers in, the best of all segments out.

Handing thirty arrays to a kernel costs more than a search does, so a call is described
by one int64 array, the state, which holds numbers and the addresses of arrays; who
calls keeps the arrays alive. A search of several segments is one call: each segment
has a record with its layout and its mask of living rows, the words are looked up in
each segment's own dictionary, their frequencies are summed over the segments, and the
segments are searched one after the other into one list of the best, so that the worst
of the best prunes in the next. Put the largest segment first.

The state's places:

``MODE``
    ``PREPARED``: one query, its point and words are arguments. ``COMPLETE``: one
    query of the first segment, for which integers and reals are complete; the
    arguments are not used. ``MANY``: ``QUERIES`` queries, see below.
``SEGMENTS``, ``SEGMENTS_AT``
    Number of segments, and their records, int64 [segments, SEGMENT_SIZE]: address of
    the layout (``PackedLayout.addresses``), address of uint8 [n] with 1 for living
    rows or 0 if all are alive, address of the int64 ids of the excluded words in
    this segment's dictionary, and room for word ids.
``INTEGERS_AT``, ``REALS_AT``
    The query, as ``_kernels`` lays it out; words, weights and point are filled in.
``PLAIN``
    Not 0: ``_nearest_kernels`` and ``_block_kernels`` may answer queries with words.
``WORK``
    Address of int64 [WORK_SIZE]; all 0 before the first call.
``SCORES_AT``, ``KMS_AT``, ``KEYS_AT``, ``ROWS_AT``, ``COUNT``
    Arrays of k places for the answers, and how many they hold already (sorted);
    rows are of the segment the answer is from.
``STATS_AT``
    int64 [5], added to: nodes, scored, looked at, and two of the search's own.
``N_LIVE``
    Living places of the whole index, segments and whatever else, for the idf.
``EXTRA_AT``
    0, or int64 [words]: is added to the number of rows with each word in all
    segments. So rows outside the segments are counted, and dead rows, which the
    segments' postings still have, are taken off. Not needed if text has no weight.
``WEIGHTS_AT``
    0, or float64 [words]: is set to each word's weight, the sum is 1, by idf or, if
    text has no weight, all equal; 0 for a word that no place has or that was given
    before. Only a word of some segment is known to have been given before.
``QUERIES``, ``LON_AT``, ``LAT_AT``, ``PTR_AT``, ``IDS_AT``, ``IDS_LENGTH``, ``COUNTS_AT``
    Of ``MANY``: points float64, ``ptr`` int64 [queries + 1] into the words, their
    ids int64 [segments, IDS_LENGTH] (-1: not in that segment), and the numbers of
    answers. Scores, distances and keys are [queries, k] then; extra and weights
    are parallel to the words.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from shoal.spatial._best_kernels import HEAPED, heap_of_best, sort_heap
from shoal.spatial._block_kernels import ROOM, search_plain
from shoal.spatial._build_kernels import (
    _EMPTY,
    _hash,
    _slot,
    find_word,
    load_f8,
    load_i8,
    load_u4,
    prefetch,
    store_f8,
    store_i8,
    view_f8,
    view_i8,
    view_i8x2,
    view_u4,
    view_u8,
)
from shoal.spatial._kernels import (
    BITS,
    BLOB,
    LAT,
    LIVE,
    LON,
    MATCH,
    MAX_WORDS,
    N_PREFER,
    N_WITHOUT,
    N_WORDS,
    OFFSETS,
    POST,
    PTR,
    SLOTS,
    TABLE,
    TREE_BITS,
    TREE_RANK,
    W_TEXT,
    WEIGHTS,
    WITHOUT,
    WORDS,
    K,
    locate,
)
from shoal.spatial._nearest_kernels import (
    BITMAP,
    CHUNK,
    EDGE,
    POOL,
    begin_nearest,
    is_nearest,
    search_nearest,
)
from shoal.spatial._preference_kernels import search_preferred
from shoal.spatial._tree_kernels import search_any_tree

__all__ = ["SEGMENT_SIZE", "STATE_SIZE", "WORK_SIZE", "answer"]

(MODE, SEGMENTS, SEGMENTS_AT, INTEGERS_AT, REALS_AT, PLAIN, WORK) = range(7)
(SCORES_AT, KMS_AT, KEYS_AT, ROWS_AT, COUNT, STATS_AT) = range(7, 13)
(N_LIVE, EXTRA_AT, WEIGHTS_AT) = range(13, 16)
(QUERIES, LON_AT, LAT_AT, PTR_AT, IDS_AT, IDS_LENGTH, COUNTS_AT) = range(16, 23)
STATE_SIZE = 23
PREPARED, COMPLETE, MANY = 0, 1, 2
# A segment's record.
SEGMENT_LAYOUT, SEGMENT_LIVE, SEGMENT_WITHOUT, SEGMENT_WORDS = 0, 1, 2, 3
SEGMENT_SIZE = SEGMENT_WORDS + MAX_WORDS
#: Entries of 8 bytes that a search works with; all 0 before the first.
WORK_SIZE = 6 * ROOM + 2048 + 21 * MAX_WORDS + BITMAP + 2 * (CHUNK + 1) + 2 * POOL + EDGE
_SEPARATOR = 0xFF
_ALL = 1


@njit(error_model="numpy")
def _work_at(at):
    """Return what ``search_plain`` works with, at an address."""
    wide = 8 * ROOM
    more = at + 6 * wide
    return (
        view_u8(at, ROOM),
        view_u4(at + 5 * wide, ROOM),
        view_i8(at + wide, ROOM),
        view_i8(at + 2 * wide, ROOM),
        view_f8(at + 3 * wide, ROOM),
        view_f8(at + 4 * wide, ROOM),
        view_i8(more, 2048),
        view_i8(more + 8 * 2048, MAX_WORDS),
        view_i8x2(more + 8 * (2048 + MAX_WORDS), MAX_WORDS, 20),
    )


@njit(error_model="numpy")
def _near_at(at):
    """Return what ``search_nearest`` works with, at the same address."""
    at += 8 * (6 * ROOM + 2048 + 21 * MAX_WORDS)
    pool = at + 8 * (BITMAP + 2 * (CHUNK + 1))
    return (
        view_u8(at, BITMAP),
        view_i8(at + 8 * BITMAP, 2 * (CHUNK + 1)),
        view_f8(pool, POOL),
        view_i8(pool + 8 * POOL, POOL),
        view_f8(pool + 16 * POOL, EDGE),
    )


@njit(error_model="numpy")
def _ask_for_words(a, text, codes, given):
    """Ask for the memory that the words' look-up and search will need first.

    One word's look-up is a chain of cache misses, each of which waits for the one
    before; here each step is taken for all words at a time. Mistakes only cost time.
    """
    slots, table = load_i8(a, SLOTS), load_i8(a, TABLE)
    mask = (np.int64(1) << load_i8(a, BITS)) - 1
    first = np.int64(0)
    for g in range(given):
        stop = first
        while stop < len(text) and text[stop] != _SEPARATOR:
            stop += 1
        codes[g] = _slot(_hash(text, first, stop), slots)
        prefetch(table + 4 * codes[g])
        first = stop + 1
    for g in range(given):
        word = load_u4(table, codes[g])
        codes[g] = np.int64(-1)
        if word != _EMPTY:
            word &= mask
            codes[g] = word
            prefetch(load_i8(a, OFFSETS) + 4 * word)
            prefetch(load_i8(a, PTR) + 4 * word)
            prefetch(load_i8(a, TREE_BITS) + 8 * (word >> 6))
            prefetch(load_i8(a, TREE_RANK) + 4 * (word >> 6))
    for g in range(given):
        word = codes[g]
        if word >= 0:
            prefetch(load_i8(a, BLOB) + load_u4(load_i8(a, OFFSETS), word))
            prefetch(load_i8(a, POST) + 4 * load_u4(load_i8(a, PTR), word))


@njit(error_model="numpy")
def _look_up(state, given, text, codes):
    """Set the segments' ids of the ``given`` words in ``text``."""
    for s in range(state[SEGMENTS]):
        record = state[SEGMENTS_AT] + 8 * SEGMENT_SIZE * s
        a = load_i8(record, SEGMENT_LAYOUT)
        _ask_for_words(a, text, codes, given)
        first = np.int64(0)
        for g in range(given):
            stop = first
            while stop < len(text) and text[stop] != _SEPARATOR:
                stop += 1
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
            store_i8(record, SEGMENT_WORDS + g, word)
            first = stop + 1


@njit(error_model="numpy")
def _weigh(state, qi, qf, given, first):
    """Put each word that occurs once into the query, with its weight; say if answers can be.

    The segments' ids of the ``given`` words become those of the words that are left;
    ``first`` is the place of the first in the arrays of extra counts and weights.
    """
    segments = state[SEGMENTS]
    weighted = load_f8(qf, W_TEXT) > 0.0
    count = np.int64(0)
    total = 0.0
    for g in range(given):
        df = load_i8(state[EXTRA_AT], first + g) if state[EXTRA_AT] != 0 else np.int64(0)
        repeated = False
        for s in range(segments):
            record = state[SEGMENTS_AT] + 8 * SEGMENT_SIZE * s
            word = load_i8(record, SEGMENT_WORDS + g)
            store_i8(record, SEGMENT_WORDS + count, word)
            if word < 0:
                continue
            ptr = load_i8(load_i8(record, SEGMENT_LAYOUT), PTR)
            df += load_u4(ptr, word + 1) - load_u4(ptr, word)
            for w in range(count):
                if load_i8(record, SEGMENT_WORDS + w) == word:
                    repeated = True
        weight = 0.0
        if df > 0 and not repeated:
            weight = 1.0
            if weighted:
                weight = math.log1p((state[N_LIVE] - df + 0.5) / (df + 0.5))
            store_f8(qf, WEIGHTS + count, weight)
            total += weight
            count += 1
        elif not repeated and load_i8(qi, MATCH) == _ALL:
            return False
        if state[WEIGHTS_AT] != 0:
            store_f8(state[WEIGHTS_AT], first + g, weight)
    for w in range(count):
        store_f8(qf, WEIGHTS + w, load_f8(qf, WEIGHTS + w) / total)
    if state[WEIGHTS_AT] != 0:
        for g in range(given):
            share = load_f8(state[WEIGHTS_AT], first + g) / max(total, 1e-300)
            store_f8(state[WEIGHTS_AT], first + g, share)
    store_i8(qi, N_WORDS, count)
    return count > 0


@njit(error_model="numpy")
def _search_segments(state, qi, qf, best, count, work, stats):
    """Search the segments for a query with its words' weights; return the number of answers."""
    locate(qf)
    complete = state[MODE] == COMPLETE
    k = len(best[0])
    words = load_i8(qi, N_WORDS)
    every = load_i8(qi, MATCH) == _ALL
    plain = state[PLAIN] != 0 and load_i8(qi, MATCH) != 0
    nearest = plain and is_nearest(qi, qf, k)
    near = _near_at(state[WORK])
    if nearest:
        begin_nearest(qf, best, count, k, near[4])
    if k > HEAPED:
        heap_of_best(best, count)
    for s in range(state[SEGMENTS]):
        record = state[SEGMENTS_AT] + 8 * SEGMENT_SIZE * s
        a = load_i8(record, SEGMENT_LAYOUT)
        missing = False
        if not complete:
            for w in range(words):
                word = load_i8(record, SEGMENT_WORDS + w)
                missing = missing or word < 0
                store_i8(qi, WORDS + w, word)
            for w in range(load_i8(qi, N_WITHOUT)):
                store_i8(qi, WITHOUT + w, load_i8(load_i8(record, SEGMENT_WITHOUT), w))
        if missing and every:
            continue
        store_i8(qi, LIVE, load_i8(record, SEGMENT_LIVE))
        if nearest:
            count = search_nearest(a, qi, qf, best, count, work, near, stats)
        elif plain and every and load_i8(qi, N_PREFER) > 0:
            count = search_preferred(a, qi, qf, best, count, work, stats)
        elif plain:
            count = search_plain(a, qi, qf, best, count, work, stats)
        else:
            count = search_any_tree(a, qi, qf, best, count, stats)
    if k > HEAPED:
        sort_heap(best, count)
    return count


@njit(cache=True, nogil=True, error_model="numpy")
def answer(state, lon, lat, given, text):
    """Answer what ``state`` describes; return the number of answers of the last query.

    With ``PREPARED``, ``text`` (bytes) holds the ``given`` words of the query at
    (lon, lat), UTF-8, with bytes 255 between them; else the last four are not used.
    """
    qi, qf = state[INTEGERS_AT], state[REALS_AT]
    k = load_i8(qi, K)
    mode = state[MODE]
    work = _work_at(state[WORK])
    stats = view_i8(state[STATS_AT], 5)
    match = load_i8(qi, MATCH)
    count = np.int64(0)
    for i in range(state[QUERIES] if mode == MANY else np.int64(1)):
        best = (
            view_f8(state[SCORES_AT] + 8 * k * i, k),
            view_f8(state[KMS_AT] + 8 * k * i, k),
            view_i8(state[KEYS_AT] + 8 * k * i, k),
            view_i8(state[ROWS_AT], k),
        )
        stats[3] = stats[4] = 0
        count = state[COUNT]
        possible = True
        if mode != COMPLETE:
            words = np.int64(given)
            first = np.int64(0)
            if mode == PREPARED:
                store_f8(qf, LON, lon)
                store_f8(qf, LAT, lat)
                _look_up(state, words, text, work[7])
            else:
                store_f8(qf, LON, load_f8(state[LON_AT], i))
                store_f8(qf, LAT, load_f8(state[LAT_AT], i))
                first = load_i8(state[PTR_AT], i)
                words = load_i8(state[PTR_AT], i + 1) - first
                for s in range(state[SEGMENTS]):
                    ids = state[IDS_AT] + 8 * (state[IDS_LENGTH] * s + first)
                    record = state[SEGMENTS_AT] + 8 * SEGMENT_SIZE * s
                    for g in range(words):
                        store_i8(record, SEGMENT_WORDS + g, load_i8(ids, g))
            store_i8(qi, N_WORDS, 0)
            store_i8(qi, MATCH, 0 if words == 0 else match)
            possible = words == 0 or _weigh(state, qi, qf, words, first)
        if possible:
            count = _search_segments(state, qi, qf, best, count, work, stats)
        store_i8(qi, MATCH, match)
        if mode == MANY:
            view_i8(state[COUNTS_AT], state[QUERIES])[i] = count
    return count
