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
``SEARCH_AT``, ``GENERAL_AT``
    Addresses of the search (``_segment_kernels.address_of``), and of the general one
    for queries without words, which may be 0 until one comes.
``WORK``
    Address of int64 [``_segment_kernels.WORK_SIZE``]; all 0 before the first call.
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
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

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
    view_i8,
)
from shoal.spatial._kernels import (
    BITS,
    BLOB,
    LAT,
    LON,
    MATCH,
    MAX_WORDS,
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
)

__all__ = ["SEGMENT_SIZE", "STATE_SIZE", "answer"]

(MODE, SEGMENTS, SEGMENTS_AT, INTEGERS_AT, REALS_AT, SEARCH_AT, WORK) = range(7)
(SCORES_AT, KMS_AT, KEYS_AT, ROWS_AT, COUNT, STATS_AT) = range(7, 13)
(N_LIVE, EXTRA_AT, WEIGHTS_AT) = range(13, 16)
(QUERIES, LON_AT, LAT_AT, PTR_AT, IDS_AT, IDS_LENGTH, COUNTS_AT) = range(16, 23)
GENERAL_AT = 23
#: The query of ``MANY`` that is being answered.
QUERY = 24
STATE_SIZE = 25
PREPARED, COMPLETE, MANY = 0, 1, 2
# A segment's record.
SEGMENT_LAYOUT, SEGMENT_LIVE, SEGMENT_WITHOUT, SEGMENT_WORDS = 0, 1, 2, 3
SEGMENT_SIZE = SEGMENT_WORDS + MAX_WORDS
_SEPARATOR = 0xFF
_ALL = 1


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


@intrinsic
def _search(typingctx, address, state):
    """Call the search at an address (``_segment_kernels``) with the address of a state."""

    def codegen(context, builder, signature, arguments):
        number = context.get_value_type(types.int64)
        kind = ir.FunctionType(number, [number])
        return builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), [arguments[1]])

    return types.int64(types.int64, types.int64), codegen


@njit(cache=True, nogil=True, error_model="numpy")
def answer(state, lon, lat, given, text):
    """Answer what ``state`` describes; return the number of answers of the last query.

    With ``PREPARED``, ``text`` (bytes) holds the ``given`` words of the query at
    (lon, lat), UTF-8, with bytes 255 between them; else the last four are not used.
    -1: a query has no words, and ``GENERAL_AT`` is not set.
    """
    qi, qf = state[INTEGERS_AT], state[REALS_AT]
    mode = state[MODE]
    match = load_i8(qi, MATCH)
    codes = view_i8(state[WORK], MAX_WORDS)
    count = np.int64(0)
    for i in range(state[QUERIES] if mode == MANY else np.int64(1)):
        at = state[SEARCH_AT]
        possible = True
        if mode != COMPLETE:
            words = np.int64(given)
            first = np.int64(0)
            if mode == PREPARED:
                store_f8(qf, LON, lon)
                store_f8(qf, LAT, lat)
                _look_up(state, words, text, codes)
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
            if words == 0:
                at = state[GENERAL_AT]
                if at == 0:
                    return np.int64(-1)
                store_i8(qi, MATCH, 0)
            else:
                possible = _weigh(state, qi, qf, words, first)
        count = state[COUNT]
        if possible:
            state[QUERY] = i
            count = _search(at, state.ctypes.data)
        store_i8(qi, MATCH, match)
        if mode == MANY:
            store_i8(state[COUNTS_AT], i, count)
    return count
