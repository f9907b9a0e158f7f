"""Kernels of the live part: recent places scanned one by one, keys found, answers put back.

A memtable is small, so every row of a view is looked at; a 64-bit signature of a
row's words (bit ``id % 64`` of each) turns most rows away with one operation.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from shoal.spatial._build_kernels import load_i8, load_u1, load_u4
from shoal.spatial._score import (
    attribute_cost,
    decay_of,
    distance_km,
    in_region,
    offer,
    passes_filters,
)

__all__ = [
    "bury",
    "count_ids",
    "count_words_in",
    "find_live",
    "find_rows",
    "gather_words",
    "kill_rows",
    "link_words",
    "offer_rows",
    "parts",
    "repeats",
    "search",
    "signatures",
]

# Places of the scalars in the two packed arrays: one array costs less to hand over than its
# entries do one by one.
LON, LAT, DECAY_SCALE, MAX_KM, K1, B, MEAN_WORDS = range(7)
HAS_POINT, MATCH, BM25, DECAY_KIND, REGION = range(5)

_MATCH_ALL = 1
_MATCH_ANY = 2


@njit(inline="always")
def _has_word(ptr, ids, row, word):
    for i in range(ptr[row], ptr[row + 1]):  # noqa: SIM110 - numba has no any() of generators
        if ids[i] == word:
            return True
    return False


@njit(inline="always")
def _measure(row, cos_lat, place, query):
    """Return (qualifies, km, space part, text part, attribute part) of a row."""
    lons, lats, values, ptr, ids, low, span, missing = place
    (
        reals,
        codes,
        words,
        word_weights,
        without,
        pref_column,
        pref_flip,
        pref_weight,
        filter_column,
        filter_ptr,
        filter_low,
        filter_high,
        region_points,
        region_ptr,
    ) = query
    qualifies = True
    km = 0.0
    space = 0.0
    if codes[HAS_POINT] == 1:
        km = distance_km(reals[LON], reals[LAT], cos_lat, lons[row], lats[row])
        space = decay_of(codes[DECAY_KIND], reals[DECAY_SCALE], km)
        if not km <= reals[MAX_KM]:
            qualifies = False
    found = 0
    text = 0.0
    for w in range(len(words)):
        if words[w] >= 0 and _has_word(ptr, ids, row, words[w]):
            text += word_weights[w]
            found += 1
    if codes[MATCH] == _MATCH_ALL and found < len(words):
        qualifies = False
    if codes[MATCH] == _MATCH_ANY and found == 0:
        qualifies = False
    if codes[BM25] == 1:
        length = ptr[row + 1] - ptr[row]
        k1, b = reals[K1], reals[B]
        damped = 1.0 + k1 * (1.0 - b + b * length / reals[MEAN_WORDS])
        text *= min(1.0, (1.0 + k1 * (1.0 - b)) / damped)
    for w in range(len(without)):
        if without[w] >= 0 and _has_word(ptr, ids, row, without[w]):
            qualifies = False
    attributes = 0.0
    if len(pref_column) > 0:
        total = 0.0
        for j in range(len(pref_column)):
            c = pref_column[j]
            cost = attribute_cost(values[c, row], low[c], span[c], pref_flip[j], missing[c])
            if cost < 0.0:
                qualifies = False
                cost = 0.5
            total += pref_weight[j] * cost
        attributes = 1.0 - total
    if qualifies and len(filter_column) > 0:
        qualifies = passes_filters(
            filter_column, filter_ptr, filter_low, filter_high, values, values, True, row
        )
    if qualifies and codes[REGION] > 0:
        qualifies = in_region(codes[REGION], region_points, region_ptr, lons[row], lats[row])
    return qualifies, km, space, text, attributes


@njit(cache=True)
def signatures(ptr, ids, first, stop, out):
    """Set ``out[row]`` to the signature of the words of each row in ``first .. stop``."""
    for row in range(first, stop):
        bits = np.uint64(0)
        for i in range(ptr[row], ptr[row + 1]):
            bits |= np.uint64(1) << np.uint64(ids[i] & 63)
        out[row] = bits


@njit(inline="always")
def _needed(words):
    bits = np.uint64(0)
    for w in range(len(words)):
        if words[w] >= 0:
            bits |= np.uint64(1) << np.uint64(words[w] & 63)
    return bits


@njit(cache=True, nogil=True)
def search(
    rows_in_view,
    dead_in_view,
    died,
    signature,
    keys,
    place,
    query,
    weights,
    time_part,
    social_part,
    scores,
    kms,
    answer_keys,
    answer_rows,
    count,
    k,
):
    """Offer every row of a view; return (answers, rows scored).

    A row belongs to the view when it is below ``rows_in_view`` and had not yet
    died: ``died[row] >= dead_in_view``. ``time_part`` and ``social_part`` are
    float64 [rows] or empty for 0 everywhere.
    """
    reals, codes, words = query[0], query[1], query[2]
    match = codes[MATCH]
    if match == _MATCH_ALL:
        for w in range(len(words)):
            if words[w] < 0:
                return count, 0
    needed = _needed(words)
    cos_lat = math.cos(reals[LAT] * (math.pi / 180.0))
    scored = 0
    for row in range(rows_in_view):
        if died[row] < dead_in_view:
            continue
        if match == _MATCH_ALL and (signature[row] & needed) != needed:
            continue
        if match == _MATCH_ANY and (signature[row] & needed) == 0:
            continue
        qualifies, km, space, text, attributes = _measure(row, cos_lat, place, query)
        if not qualifies:
            continue
        scored += 1
        score = 0.0
        if weights[0] > 0.0:
            score += weights[0] * space
        if weights[1] > 0.0:
            score += weights[1] * text
        if weights[2] > 0.0:
            score += weights[2] * attributes
        if weights[3] > 0.0 and len(time_part) > 0:
            score += weights[3] * time_part[row]
        if weights[4] > 0.0 and len(social_part) > 0:
            score += weights[4] * social_part[row]
        count = offer(scores, kms, answer_keys, answer_rows, count, k, score, km, keys[row], row)
    return count, scored


@njit(cache=True, nogil=True)
def parts(rows, place, query, out, km_out, qualifies_out):
    """Fill the parts [m, 3 of 5], distance and membership of rows."""
    cos_lat = math.cos(query[0][LAT] * (math.pi / 180.0))
    for i in range(len(rows)):
        qualifies, km, space, text, attributes = _measure(rows[i], cos_lat, place, query)
        out[i, 0] = space
        out[i, 1] = text
        out[i, 2] = attributes
        km_out[i] = km
        qualifies_out[i] = qualifies


# --- words of recent and of dead rows, counted as they come and go ---------------------------


@njit(cache=True)
def link_words(ptr, ids, first, stop, counts, last, before, row_of):
    """Count the words of the rows ``first .. stop``, and put them into their words' lists.

    A word's list goes from its newest place in ``ids``, which is ``last[word]``, to
    older ones by ``before[place]``; -1 ends it. ``row_of[place]`` is the place's row.
    """
    for row in range(first, stop):
        for place in range(ptr[row], ptr[row + 1]):
            word = ids[place]
            counts[word] += 1
            before[place] = last[word]
            row_of[place] = row
            last[word] = place


@njit(cache=True)
def repeats(ptr, ids):
    """Say whether a row has a word twice; ``ptr`` int64 [rows + 1] into ``ids``."""
    for row in range(len(ptr) - 1):
        for i in range(ptr[row] + 1, ptr[row + 1]):
            for j in range(ptr[row], i):
                if ids[i] == ids[j]:
                    return True
    return False


@njit(cache=True)
def kill_rows(rows, deaths, died, ptr, ids, counts):
    """Number the deaths of rows from ``deaths`` on, and take their words off the counts.

    Returns how many words they have.
    """
    words = 0
    for i in range(len(rows)):
        row = rows[i]
        died[row] = deaths + i
        for place in range(ptr[row], ptr[row + 1]):
            counts[ids[place]] -= 1
            words += 1
    return words


@njit(cache=True)
def gather_words(rows, ptr, ids, out):
    """Set ``out`` to the words of rows, one row after the other."""
    stop = 0
    for row in rows:
        for place in range(ptr[row], ptr[np.int64(row) + 1]):
            out[stop] = ids[place]
            stop += 1


@njit(cache=True)
def count_ids(ids, counts):
    """Add 1 to the count of each of ``ids``."""
    for word in ids:
        counts[word] += 1


@njit(cache=True, nogil=True)
def count_words_in(wanted, counts, recent, stop, out):
    """Add to ``out[w]`` the count of each wanted word (-1: none), and its times in a stretch."""
    for w in range(len(wanted)):
        word = wanted[w]
        if word < 0:
            continue
        times = np.int64(counts[word])
        for i in range(stop):
            times += recent[i] == word
        out[w] += times


@njit(inline="always")
def _row_of(keys, order, key):
    """Return the row of a key, -1 if it is not there; ``order`` sorts ``keys``."""
    low, high = 0, len(order)
    while low < high:
        middle = (low + high) >> 1
        if keys[order[middle]] < key:
            low = middle + 1
        else:
            high = middle
    if low < len(order) and keys[order[low]] == key:
        return np.int64(order[low])
    return np.int64(-1)


@njit(cache=True, nogil=True)
def find_rows(keys, order, wanted, out):
    """Set ``out[i]`` to the row of each wanted key, -1 where there is none."""
    for i in range(len(wanted)):
        out[i] = _row_of(keys, order, wanted[i])


@njit(cache=True)
def find_live(segments, wanted, low, still, found_in, out):
    """Set ``out[i]`` to the living row of each wanted key, ``found_in[i]`` to its segment, or -1.

    ``segments`` is int64 [m, 4]: number of rows, addresses of keys, of the rows in the
    order of their keys, and of the mask of the living, 0 when no row has died. All
    keys take one step of the search after the other, so that the memory of many is
    asked for at once; ``low`` and ``still`` are int64 [keys], to work with.
    """
    found_in[:] = -1
    left_over = len(wanted)
    for i in range(left_over):
        still[i] = i
    for s in range(len(segments)):
        n, keys, order, live = segments[s, 0], segments[s, 1], segments[s, 2], segments[s, 3]
        low[:left_over] = 0
        left = n
        while left > 0:
            half = (left + 1) >> 1
            # Each key's place is in low .. low + left.
            for i in range(left_over):
                if load_i8(keys, load_u4(order, low[i] + half - 1)) < wanted[still[i]]:
                    low[i] += half
            left -= half
        kept = 0
        for i in range(left_over):
            which = still[i]
            if low[i] < n:
                row = load_u4(order, low[i])
                if load_i8(keys, row) == wanted[which] and (live == 0 or load_u1(live, row) == 1):
                    found_in[which], out[which] = s, row
                    continue
            still[kept] = which
            kept += 1
        left_over = kept


@njit(cache=True)
def bury(rows, live, ptr, ids, words, first):
    """Take rows out of a mask, and put their words at ``words[first:]``.

    ``ptr`` and ``ids`` are the words of each row. Returns how many words there are; if
    they do not fit, nothing is done.
    """
    count = np.int64(0)
    for row in rows:
        count += ptr[row + 1] - ptr[row]
    if first + count > len(words):
        return count
    place = first
    for row in rows:
        for i in range(ptr[row], ptr[row + 1]):
            words[place] = ids[i]
            place += 1
        live[row] = 0
    return count


@njit(cache=True, nogil=True)
def offer_rows(
    weights, parts_of, km_of, qualifies, keys, rows, scores, kms, answer_keys, answer_rows, count, k
):
    """Offer rows whose parts are known, unless their key is among the answers already."""
    for i in range(len(rows)):
        if not qualifies[i]:
            continue
        known = False
        for j in range(count):
            if answer_keys[j] == keys[i]:
                known = True
                break
        if known:
            continue
        score = 0.0
        for part in range(5):
            if weights[part] > 0.0:
                score += weights[part] * parts_of[i, part]
        count = offer(
            scores, kms, answer_keys, answer_rows, count, k, score, km_of[i], keys[i], rows[i]
        )
    return count
